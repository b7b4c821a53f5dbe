"""CLAP as Hugging Face describes it, in and out: `config.json` and `preprocessor_config.json` of a `ClapModel`."""

import json
import logging
import re
from collections.abc import Container, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from jclip.config import LAION_FUSED_MEL, LAION_MEL, BertTower, HtsatTower, Mel, Model, TokenizerConfig, Waveform
from jclip.weights.errors import WeightsError
from jclip.weights.hugging_face.bert import bert_config, bert_tower, text_rules
from jclip.weights.io.files import Lazy, read_json
from jclip.weights.layout import SCALAR, Rule, dense_rules
from jclip.weights.options import COUNT, COUNTS, FLAG, NUMBER, SECTION, SQUARE, check_options, one_of, optional, side
from jclip.weights.same import require_same
from jclip.weights.sound_names import BUFFERS, SCALE, htsat_rules
from jclip.weights.texts.tokenizer_files import write_hugging_face
from jclip.weights.texts.tokenizers import longest_text, read_hugging_face

log = logging.getLogger(__name__)

PROCESSOR = "preprocessor_config.json"
NESTED = "processor_config.json"

FUSED_SECONDS = 30.0
"""Seconds of a long sound that a fused model sees here; transformers takes as many as there are."""

TOP = {"text_config": optional(SECTION), "audio_config": optional(SECTION), "projection_dim": COUNT}
AUDIO = {
    **dict.fromkeys(
        ("patch_embeds_hidden_size", "num_mel_bins", "spec_size", "window_size", "aff_block_r", "hidden_size"), COUNT
    ),
    **{"patch_size": SQUARE, "patch_stride": SQUARE, "depths": COUNTS, "num_attention_heads": COUNTS, "mlp_ratio": NUMBER},
    **{"enable_fusion": FLAG, "fusion_type": optional(one_of(("aff_2d",)))},
}
DEFAULTS: dict[str, Any] = {
    **{"patch_embeds_hidden_size": 96, "num_mel_bins": 64, "spec_size": 256, "window_size": 8, "aff_block_r": 4, "patch_size": 4},
    **{"depths": [2, 2, 6, 2], "num_attention_heads": [4, 8, 16, 32], "mlp_ratio": 4.0, "enable_fusion": False},
}
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    **{
        "qkv_bias": (True,),
        "enable_patch_layer_norm": (True,),
        "flatten_patch_embeds": (True,),
        "patch_embed_input_channels": (1,),
    },
    **{
        "layer_norm_eps": (1e-5,),
        "hidden_act": ("gelu",),
        "projection_hidden_act": ("relu",),
        "chunk_size_feed_forward": (0, None),
    },
}
INERT = {
    "num_classes",
    "drop_path_rate",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "num_hidden_layers",
    "projection_dim",
}
INERT |= {"hidden_size"}

PADDINGS = {"repeatpad": "repeat_pad", "repeat": "repeat", "pad": "pad"}
"""Ways in which a short sound is made longer: their name, and ours."""

SOUNDS = {
    **dict.fromkeys(("feature_size", "sampling_rate", "hop_length", "fft_window_size"), COUNT),
    **dict.fromkeys(("frequency_min", "frequency_max", "max_length_s"), NUMBER),
    **{"truncation": one_of(("fusion", "rand_trunc")), "padding": one_of(PADDINGS)},
}
SOUND_DEFAULTS: dict[str, Any] = {
    **{"feature_size": 64, "sampling_rate": 48_000, "hop_length": 480, "fft_window_size": 1024, "max_length_s": 10},
    **{"frequency_min": 0, "frequency_max": 14_000, "truncation": "fusion", "padding": "repeatpad"},
}
SOUND_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    **{"top_db": (None,), "padding_value": (0, 0.0), "return_attention_mask": (False, None), "padding_side": ("right",)},
    **{"feature_extractor_type": ("ClapFeatureExtractor",)},
}
SOUND_INERT = {"chunk_length_s", "n_fft", "nb_frequency_bins", "nb_max_samples", "processor_class"}


def read_clap(folder: Path, config: Mapping[str, Any], inert: set[str]) -> tuple[Model, tuple[str, ...]]:
    """The model of a `ClapModel`'s folder, and the path of its scale.

    Args:
        folder: of the files.
        config: its `config.json`.
        inert: options on which no feature depends, of all models.

    Raises:
        WeightsError: a file is missing or damaged, or an option has a value that is not reproduced.
    """
    at, found = folder / "config.json", read_json(folder / NESTED) if (folder / NESTED).is_file() else {}
    given = found.get("feature_extractor")
    if given is None:
        if not (folder / PROCESSOR).is_file():
            raise WeightsError(f"{folder / PROCESSOR}: is missing, and without it nothing says how sounds are seen; put it there")
        given = read_json(folder / PROCESSOR)
    tokenizer = read_hugging_face(folder, "clap")
    model = clap_model(str(at), config, given, tokenizer, inert, longest_text(folder))
    return model, (SCALE,)


def clap_model(
    at: str,
    config: Mapping[str, Any],
    sounds: Mapping[str, Any],
    tokenizer: TokenizerConfig,
    inert: set[str],
    longest: int | None,
) -> Model:
    """The model of a `config.json`, of the settings of its sounds, and of a tokenizer that cuts texts to `longest`."""
    known = inert | INERT
    check_options(f"{at}: ", config, TOP, NEUTRAL, known)
    audio, text = config.get("audio_config") or {}, config.get("text_config") or {}
    check_options(f"{at}: audio_config.", audio, AUDIO, NEUTRAL, known)
    check_options(f"{PROCESSOR}: ", sounds, SOUNDS, SOUND_NEUTRAL, known | SOUND_INERT)
    words = bert_tower(f"{at}: text_config", "clap", _without(text, "projection_hidden_act", "relu"), tokenizer, known, longest)
    how, heard = {**DEFAULTS, **audio}, {**SOUND_DEFAULTS, **sounds}
    fused = how["enable_fusion"]
    if fused != (heard["truncation"] == "fusion"):
        raise WeightsError(
            f"{at}: audio_config.enable_fusion is {fused}, and truncation in {PROCESSOR} {heard['truncation']!r}; sounds are "
            "made for the other kind of model"
        )
    if side(how.get("patch_stride", how["patch_size"])) != side(how["patch_size"]):
        raise WeightsError(f"{at}: audio_config.patch_stride is {how['patch_stride']}; only that of patch_size is reproduced")
    tower = HtsatTower(
        waveform=Waveform(
            heard["sampling_rate"], float(heard["max_length_s"]), cast(Any, PADDINGS[heard["padding"]]), dtype="float32"
        ),
        mel=_mel(heard, how["num_mel_bins"]),
        spec_size=how["spec_size"],
        patch_size=side(how["patch_size"]),
        stem_width=how["patch_embeds_hidden_size"],
        depths=tuple(how["depths"]),
        heads=tuple(how["num_attention_heads"]),
        window=how["window_size"],
        mlp_ratio=how["mlp_ratio"],
        fused_seconds=FUSED_SECONDS if fused else None,
        fusion_ratio=how["aff_block_r"],
    )
    if (width := how.get("hidden_size", 768)) != tower.width:
        raise WeightsError(f"{at}: audio_config.hidden_size is {width}; the last stage has {tower.width}")
    return Model({"sound": tower, "text": words}, config.get("projection_dim", 512))


def _mel(heard: Mapping[str, Any], mels: int) -> Mel:
    """The spectrogram of a `ClapFeatureExtractor`: two definitions, by whether sounds are fused."""
    if heard["feature_size"] != mels:
        raise WeightsError(f"{PROCESSOR}: feature_size is {heard['feature_size']}, and the model takes {mels} mels")
    base, size = LAION_FUSED_MEL if heard["truncation"] == "fusion" else LAION_MEL, heard["fft_window_size"]
    low, high = float(heard["frequency_min"]), float(heard["frequency_max"])
    return replace(base, n_fft=size, window=size, hop=heard["hop_length"], mels=mels, fmin=low, fmax=high)


def _without(options: Mapping[str, Any], name: str, only: Any) -> dict[str, Any]:
    """The options without one that has to have one value."""
    check_options("config.json: text_config.", {name: options.get(name, only)}, {}, {name: (only,)})
    return {key: value for key, value in options.items() if key != name}


def clap_rules(model: Model, paths: Container[str], *, writing: bool) -> list[Rule]:
    """A rule for every parameter.

    A `ClapModel` has two scales. That of sounds is the one that LAION trained, and the only one here; in what is written both
    have its value.
    """
    sound, text = model.towers["sound"], model.towers["text"]
    assert isinstance(sound, HtsatTower)
    assert isinstance(text, BertTower)
    return [
        *([Rule(SCALE, "logit_scale_a", SCALAR)] if SCALE in paths else []),
        *([Rule(SCALE, "logit_scale_t", SCALAR)] if SCALE in paths and writing else []),
        *htsat_rules(sound, "audio_model.audio_encoder.", transformers=True),
        *(rule for i in (1, 2) for rule in dense_rules(f"sound_projection/fc{i}", f"audio_projection.linear{i}")),
        *text_rules(text, "clap"),
    ]


def opened_clap(folder: Path, tensors: Mapping[str, Lazy]) -> dict[str, Lazy]:
    """The arrays that are parameters of ours; that one of two scales is left out is said."""
    kept = {name: x for name, x in tensors.items() if not re.fullmatch(BUFFERS, name)}
    if kept.pop("logit_scale_t", None) is not None:
        log.info("%s: logit_scale_a is the scale, and logit_scale_t is left out: of LAION's models it was not trained", folder)
    return kept


def write_clap(model: Model, folder: Path, scales: Sequence[str], inert: set[str]) -> None:
    """Writes the files from which transformers makes the same model.

    Raises:
        WeightsError: transformers has no such model.
    """
    sound, text = model.towers.get("sound"), model.towers.get("text")
    if len(model.towers) != 2 or not isinstance(sound, HtsatTower) or not isinstance(text, BertTower):
        raise WeightsError(
            "Hugging Face's ClapModel has towers sound and text, an HtsatTower and a BertTower; this model has "
            + ", ".join(f"{name} ({type(tower).__name__})" for name, tower in model.towers.items())
        )
    if {*scales} != {SCALE}:
        raise WeightsError(
            f"Hugging Face's ClapModel has one objective, sound_text; this model has {', '.join(scales) or 'none'}"
        )
    config, sounds = _config(model, sound, text), _sounds(sound)
    again = clap_model("config.json", config, sounds, text.tokenizer, inert, text.context_length)
    heard = again.towers["sound"]
    assert isinstance(heard, HtsatTower)
    # How a long sound is cut stands in none of its files; there it is cut at random.
    how = replace(heard.waveform, crop=sound.waveform.crop, channels=sound.waveform.channels, dtype=sound.waveform.dtype)
    seconds = sound.fused_seconds if heard.fused_seconds is not None else None
    same = {"sound": replace(heard, waveform=how, fused_seconds=seconds, spec_augment=sound.spec_augment)}
    same_text = replace(cast(BertTower, again.towers["text"]), context_length=text.context_length)
    require_same("Hugging Face's ClapModel cannot compute this model", model, replace(again, towers={**same, "text": same_text}))
    write_hugging_face(text.tokenizer, folder, "clap", text.context_length)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / PROCESSOR).write_text(json.dumps(sounds, indent=2) + "\n")


def _config(model: Model, sound: HtsatTower, text: BertTower) -> dict[str, Any]:
    fused = sound.fused_seconds is not None
    audio = {
        "num_mel_bins": sound.mel.mels,
        "spec_size": sound.spec_size,
        "patch_size": sound.patch_size,
        "patch_stride": [sound.patch_size, sound.patch_size],
        "patch_embeds_hidden_size": sound.stem_width,
        "hidden_size": sound.width,
        "depths": list(sound.depths),
        "num_attention_heads": list(sound.heads),
        "window_size": sound.window,
        "mlp_ratio": sound.mlp_ratio,
        "enable_fusion": fused,
        "fusion_type": "aff_2d" if fused else None,
        "aff_block_r": sound.fusion_ratio,
    }
    config = {"architectures": ["ClapModel"], "model_type": "clap", "projection_dim": model.embed_dim}
    return {**config, "audio_config": audio, "text_config": bert_config(text)}


def _sounds(sound: HtsatTower) -> dict[str, Any]:
    theirs = {ours: name for name, ours in PADDINGS.items()}
    how, mel = sound.waveform, sound.mel
    return {
        "feature_extractor_type": "ClapFeatureExtractor",
        "feature_size": mel.mels,
        "sampling_rate": how.sample_rate,
        "hop_length": mel.hop,
        "fft_window_size": mel.n_fft,
        "max_length_s": int(how.seconds) if how.seconds == int(how.seconds) else how.seconds,
        "frequency_min": mel.fmin,
        "frequency_max": mel.fmax,
        "truncation": "rand_trunc" if sound.fused_seconds is None else "fusion",
        "padding": theirs[how.short],
    }
