"""Writes golden/clap_*.json: what laion_clap 1.1.7 and msclap 1.3.4 make of tiny models. PYTHONPATH=.. python make_golden_clap.py

Their packages ask for other versions of numpy, torch and transformers than jclip's tests: install them with
`pip install --no-deps --target FOLDER laion_clap msclap torchlibrosa librosa soundfile h5py ...`, with FOLDER in PYTHONPATH.
"""

import importlib
import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
from clap_authors import BERT, GPT2, IDS, ROBERTA, TINY, WIDE, numbers, waveforms
from foreign import GOLDEN
from peers import peer

torch, transformers = peer("torch"), peer("transformers")


def package(name: str, folder: Path) -> None:
    """Makes `name` a package of the files of a folder, without running its __init__, which imports all of their training."""
    made = types.ModuleType(name)
    made.__path__ = [str(folder)]
    sys.modules[name] = made


def root(name: str) -> Path:
    found = importlib.util.find_spec(name)
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent


for found, inner in (("laion_clap", "clap_module"), ("msclap", "models")):
    package(f"{found}_{inner}", root(found) / inner)
laion = {name: importlib.import_module(f"laion_clap_clap_module.{name}") for name in ("htsat", "pann_model")}
microsoft = {name: importlib.import_module(f"msclap_models.{name}") for name in ("htsat", "audio", "clap", "config")}


class Heard:
    """The configuration of LAION-CLAP's networks of sounds."""

    mel_bins, sample_rate, window_size, hop_size, fmin, fmax, class_num = 64, 48_000, 1024, 480, 50, 14_000, 5


def narrow(cnn: Any, conv_block: Any) -> Any:
    """CNN14 with WIDE channels."""
    for i, (before, after) in enumerate(zip((1, *WIDE), WIDE, strict=False), 1):
        setattr(cnn, f"conv_block{i}", conv_block(before, after))
    cnn.fc1 = torch.nn.Linear(WIDE[-1], WIDE[-1])
    cnn.fc_audioset = torch.nn.Linear(WIDE[-1], 5)
    return cnn


def two_layers(width: int) -> Any:
    return torch.nn.Sequential(torch.nn.Linear(width, 20), torch.nn.ReLU(), torch.nn.Linear(20, 20))


def laion_model(name: str) -> Any:
    """The parts of laion_clap's CLAP under its names; its own constructor fetches roberta-base."""
    model = torch.nn.Module()
    if name == "pann":
        sound = laion["pann_model"].Cnn14(48_000, 1024, 480, 64, 50, 14_000, 5)
        model.audio_branch, width = narrow(sound, laion["pann_model"].ConvBlock), WIDE[-1]
    else:
        fusion = {"enable_fusion": name == "fused", "fusion_type": "aff_2d" if name == "fused" else "None"}
        model.audio_branch = laion["htsat"].HTSAT_Swin_Transformer(**TINY, num_classes=5, config=Heard, **fusion)
        width = 24
    model.text_branch = transformers.RobertaModel(transformers.RobertaConfig(**ROBERTA))
    model.text_projection, model.audio_projection = two_layers(64), two_layers(width)
    model.text_transform = torch.nn.Linear(20, 20)
    model.logit_scale_a, model.logit_scale_t = (torch.nn.Parameter(torch.tensor(x)) for x in (3.0, 2.0))
    return model


def microsoft_model(name: str) -> Any:
    """msclap's CLAP, whose network of texts is not fetched and whose network of sounds is narrow."""
    kind = transformers.BertModel if name == "2022" else transformers.GPT2Model
    how = transformers.BertConfig(**BERT) if name == "2022" else transformers.GPT2Config(**GPT2)
    clap = microsoft["clap"]
    clap.AutoModel = types.SimpleNamespace(from_pretrained=lambda _: kind(how))
    swin, wrapper, heard = microsoft["htsat"].HTSAT_Swin_Transformer, microsoft["htsat"].HTSATWrapper, microsoft["audio"]

    class Narrow(wrapper):  # type: ignore[misc, valid-type]
        def __init__(self, *_: Any) -> None:
            torch.nn.Module.__init__(self)
            self.htsat = swin(**TINY, config=microsoft["config"])

    kinds = {"Cnn14": lambda *sizes: narrow(heard.Cnn14(*sizes), heard.ConvBlock), "HTSAT": Narrow}
    clap.get_audio_encoder = kinds.__getitem__
    audio, width = ("Cnn14", WIDE[-1]) if name == "2022" else ("HTSAT", 24)
    sizes = (44_100, 1024, 320, 64, 50, 14_000 if name == "2022" else 8000, 5)
    return clap.CLAP(audio, *sizes, width, "bert-base-uncased" if name == "2022" else "gpt2", 64, 20)


def filled(model: Any) -> dict[str, list[int]]:
    """Gives the model the numbers of the formula, but for its constants; the shapes of all."""
    state = {key: value for key, value in model.state_dict().items() if value.is_floating_point()}
    shapes = {key: list(value.shape) for key, value in state.items()}
    made = numbers(shapes)
    model.load_state_dict({**state, **{key: torch.from_numpy(np.asarray(made[key])) for key in made}}, strict=False)
    model.eval()
    return shapes


def heard_by_laion(model: Any, name: str) -> Any:
    rows = []
    for sound in waveforms(name):
        if name == "fused":  # sounds of the length of the window alone: for others its code fails
            mel = torch.from_numpy(laion_mel(sound))
            given = {"mel_fusion": mel[None, None].repeat(1, 4, 1, 1), "longer": torch.tensor([[False]])}
        else:
            given = {"waveform": torch.from_numpy(sound)[None]}
        rows.append(model.audio_projection(model.audio_branch(given, device="cpu")["embedding"])[0])
    return torch.stack(rows)


def laion_mel(sound: np.ndarray) -> np.ndarray:
    """The spectrogram of its data.get_mel, by transformers' copy of torchaudio's: [1001, 64]."""
    extractor = transformers.ClapFeatureExtractor(truncation="fusion", frequency_min=50, frequency_max=14_000)
    return np.asarray(extractor(sound, sampling_rate=48_000)["input_features"][0][0], np.float32)


def write(name: str, found: dict[str, Any]) -> None:
    found = {
        key: np.round(x.detach().numpy().astype(float), 7).tolist() if hasattr(x, "detach") else x for key, x in found.items()
    }
    (GOLDEN / f"clap_{name}.json").write_text(json.dumps(found) + "\n")


ids = torch.from_numpy(IDS).long()
with torch.no_grad():
    for name in ("htsat", "fused", "pann"):
        model = laion_model(name)
        shapes = filled(model)
        text = model.text_branch(input_ids=ids, attention_mask=(ids != 1).long())["pooler_output"]
        write(name, {"sound": heard_by_laion(model, name), "text": model.text_projection(text), "shapes": shapes})
    for name in ("2022", "2023"):
        model = microsoft_model(name)
        shapes = filled(model)
        words = ids.clone()
        pad = 0
        words[words == 1] = pad
        if name == "2023":  # each text ends in the end of text
            for row in words:
                row[(row != 0).sum() - 1] = GPT2["vocab_size"] - 1
        given = {"input_ids": words, "attention_mask": (words != pad).long()}
        sound = torch.stack([model.audio_encoder(torch.from_numpy(x)[None])[0][0] for x in waveforms(name)])
        write(name, {"sound": sound, "text": model.caption_encoder(given), "shapes": shapes, "ids": words.tolist()})
