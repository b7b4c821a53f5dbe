"""Weight files of LAION-CLAP and MS-CLAP: features of their authors' packages in golden files, and what is refused."""

import json
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from bert_tiny import write_roberta
from clap_authors import CONSTANTS, IDS, SOUNDS, numbers, waveforms
from encoding import encoder
from foreign import golden
from safetensors.numpy import save_file
from test_cli import exit_status

import jclip
from jclip.config import MSCLAP_2023_MEL, Cnn14Tower, HtsatTower, TextTower, TokenizerConfig
from jclip.data import get_tokenizer
from jclip.models import mel_bank
from jclip.tree import unflatten
from jclip.weights import WeightsError, read_weights
from jclip.weights.clap_files import MSCLAP_2023_SAID

KINDS = {"htsat": "laion_clap", "fused": "laion_clap", "pann": "laion_clap", "2022": "msclap", "2023": "msclap"}


def write_words(folder: Path) -> Path:
    """A tokenizer.json of 60 tokens."""
    folder.mkdir(exist_ok=True)
    write_roberta(folder)
    return folder / "tokenizer.json"


def arrays(name: str) -> dict[str, np.ndarray]:
    """The arrays of a file, its constants too."""
    shapes = golden(f"clap_{name}")["shapes"]
    made = numbers(shapes)
    made |= {key: np.zeros(shape, np.float32) for key, shape in shapes.items() if key not in made}
    return {key: value for key, value in made.items() if not key.endswith("melW")}


def write_file(folder: Path, name: str, prefix: str = "", **changes: Any) -> Path:
    """A file as training programs write it, and its vocabulary."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {prefix + key: np.ascontiguousarray(value) for key, value in (arrays(name) | changes).items() if value is not None}
    save_file(content, folder / "weights.safetensors")
    write_words(folder)
    return folder / "weights.safetensors"


def opened(folder: Path, name: str, prefix: str = "", **changes: Any) -> Any:
    return read_weights(write_file(folder, name, prefix, **changes), tokenizer=folder / "tokenizer.json")


# HTS-AT and CNN14 are in the others too.
NAMES = [pytest.param(name, marks=pytest.mark.slow) if name in ("htsat", "pann") else name for name in KINDS]


@pytest.mark.parametrize("name", NAMES)
def test_features_are_those_of_the_authors(name: str, tmp_path: Path) -> None:
    weights = opened(tmp_path, name, "module." if name == "htsat" else "")
    assert weights.format == KINDS[name]
    ids = np.asarray(golden(f"clap_{name}").get("ids", IDS), np.int32)
    model = weights.resized(context_length=ids.shape[1]) if name != "2023" else weights
    params = unflatten(dict(model))
    sound = model.model.towers["sound"]
    heard = np.stack(waveforms(name))
    if name == "fused":
        rows = np.zeros((2, sound.input()[0][0]), np.float32)
        rows[:, : heard.shape[1]], rows[:, -1] = heard, heard.shape[1]
        rows[:, heard.shape[1] : heard.shape[1] + 512] = heard[:, -513:-1][:, ::-1]
        heard = rows
    length = model.model.towers["text"].context_length
    words = np.pad(ids, ((0, 0), (0, length - ids.shape[1])))
    with jax.default_matmul_precision("highest"):
        run = encoder(model.model)
        ours = run({"params": params}, {"sound": heard})["sound"].z, run({"params": params}, {"text": words})["text"].z
    for mine, part in zip(ours, ("sound", "text"), strict=True):
        theirs = np.asarray(golden(f"clap_{name}")[part])
        np.testing.assert_allclose(mine, theirs / np.linalg.norm(theirs, axis=1, keepdims=True), atol=1e-5, err_msg=part)
    assert float(params["sound_text"]["logit_scale"]) == 3


def test_towers_are_identified_by_the_shapes(tmp_path: Path) -> None:
    towers = {name: opened(tmp_path / name, name).model.towers for name in KINDS}
    assert isinstance(towers["htsat"]["sound"], HtsatTower)
    assert (towers["htsat"]["sound"].depths, towers["htsat"]["sound"].heads, towers["htsat"]["sound"].window) == (
        (2, 2),
        (2, 4),
        8,
    )
    assert towers["htsat"]["sound"].fused_seconds is None
    assert isinstance(towers["fused"]["sound"], HtsatTower)
    assert towers["fused"]["sound"].fused_seconds == 30
    assert (towers["fused"]["sound"].mel.scale, towers["htsat"]["sound"].mel.scale) == ("htk", "slaney")
    assert isinstance(towers["pann"]["sound"], Cnn14Tower)
    assert towers["pann"]["sound"].projection == "mlp"
    assert isinstance(towers["2023"]["text"], TextTower)
    assert towers["2022"]["text"].context_length == 20
    for name, (rate, seconds) in SOUNDS.items():
        assert towers[name]["sound"].waveform.samples == rate * seconds


def test_they_are_loaded_converted_and_described(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(write_file(tmp_path / "w", "htsat"))
    words = ("--tokenizer", str(tmp_path / "w" / "tokenizer.json"))
    assert exit_status(["info", file, *words, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["towers"]["sound"]["projection"] == "mlp"
    assert exit_status(["convert", file, str(tmp_path / "ours"), *words]) == 0
    assert exit_status(["convert", str(tmp_path / "ours"), str(tmp_path / "theirs"), "--to", "hugging_face"]) == 0
    loaded = [jclip.load(file, tokenizer=words[1]), jclip.load(tmp_path / "ours")]
    z = [model.embed_text(["word5 word7", "word9"]) for model in loaded]
    np.testing.assert_array_equal(z[0], z[1])
    assert exit_status(["convert", file, str(tmp_path / "x"), *words, "--to", "open_clip"]) == 1
    assert "open_clip has models of an image and a text tower; this one has sound, text" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("htsat", {"audio_branch.norm.weight": None}, r"missing audio_branch\.norm\.weight"),
        ("htsat", {"audio_branch.extra": np.zeros(3, np.float32)}, r"unknown audio_branch\.extra"),
        ("htsat", {"audio_branch.layers.0.blocks.1.norm1.weight": None}, r"unknown audio_branch\.layers\.0\.blocks\.1"),
        ("htsat", {"text_projection.2.weight": None}, r"there is no text_projection\.2\.weight"),
        ("htsat", {"text_branch.embeddings.word_embeddings.weight": None}, "KeyError"),
        ("pann", {"audio_branch.mel_conv2d.0.weight": np.zeros((4, 1, 5, 5), np.float32)}, "fusion of a PANN's sounds"),
        ("2022", {"audio_encoder.base.logmel_extractor.melW": np.ones((513, 64), np.float32)}, "are not the filters of Mel"),
    ],
)
def test_what_is_damaged_or_unknown_is_refused(name: str, changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=message):
        opened(tmp_path, name, **changes)


def test_a_file_without_its_vocabulary_says_which(tmp_path: Path) -> None:
    for name, owner in (("htsat", "roberta-base"), ("2022", "bert-base-uncased"), ("2023", "gpt2")):
        with pytest.raises(WeightsError, match=rf"the tokenizer\.json of {owner}; give --tokenizer"):
            read_weights(write_file(tmp_path / name, name))
    with pytest.raises(WeightsError, match="which says its architecture and sees no pixels; leave out ViT-B-32"):
        read_weights(tmp_path / "2022" / "weights.safetensors", "ViT-B-32", tmp_path / "2022" / "tokenizer.json")


def test_filters_in_the_file_tell_the_spectrogram(tmp_path: Path) -> None:
    made = mel_bank(MSCLAP_2023_MEL, 44_100).astype(np.float32)
    assert (
        opened(tmp_path / "a", "2023", **{"audio_encoder.base.htsat.logmel_extractor.melW": made})
        .model.towers["sound"]
        .mel.filter_rate
        == 32_000
    )  # type: ignore[attr-defined]
    other = MSCLAP_2023_SAID
    bank = mel_bank(other, 44_100).astype(np.float32)
    found = opened(tmp_path / "b", "2023", **{"audio_encoder.base.htsat.logmel_extractor.melW": bank}).model.towers["sound"]
    assert found.mel == other


def gpt2_words(folder: Path) -> Path:
    """A tokenizer.json of GPT-2's kind: bytes, "!" is id 0, and the end of text is an added token."""
    words = {"!": 0, '"': 1, "a": 2, "b": 3, "Ġ": 4, "!!": 5, "Ġa": 6, "<|endoftext|>": 7}
    added = {"id": 7, "content": "<|endoftext|>", "special": True}
    added |= dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    model = {"type": "BPE", "vocab": words, "merges": [["!", "!"], ["Ġ", "a"]]}
    model |= {**dict.fromkeys(("dropout", "unk_token"), None), "fuse_unk": False, "byte_fallback": False}
    content = {"version": "1.0", "added_tokens": [added], "pre_tokenizer": level, "decoder": level, "post_processor": level}
    content |= {"model": model, **dict.fromkeys(("truncation", "padding", "normalizer"))}
    folder.mkdir(exist_ok=True)
    (folder / "gpt2.json").write_text(json.dumps(content))
    return folder / "gpt2.json"


def test_an_exclamation_mark_moves_no_pooling(tmp_path: Path) -> None:
    """MS-CLAP counts the ids that are not 0 for the place of the last token, and 0 is "!" of GPT-2, not padding alone."""
    how = TokenizerConfig("hugging_face", str(gpt2_words(tmp_path)), clean="msclap", pad_id=0, eos_id=7)
    rows = get_tokenizer(how)(["a a", "a!!", "", "a" * 30], 8)
    assert rows.tolist() == [
        [2, 6, 4, 7, 0, 0, 0, 0],
        [2, 0, 0, 4, 7, 0, 0, 0],
        [4, 7, 0, 0, 0, 0, 0, 0],
        [2, 2, 2, 2, 2, 2, 2, 7],
    ]
    weights = opened(tmp_path / "w", "2023")
    tower = weights.model.towers["text"]
    assert isinstance(tower, TextTower)
    end = tower.vocab_size - 1
    params, run = unflatten(dict(weights)), encoder(weights.model)
    ids = np.zeros((3, tower.context_length), np.int32)
    for row, text in zip(ids, ([5, 6, end], [5, 0, 6, end], [5, 6, 9, end]), strict=True):
        row[: len(text)] = text
    z = run({"params": params}, {"text": ids})["text"]
    tokens = np.asarray(z.output.tokens)
    np.testing.assert_array_equal(np.asarray(z.output.mask).sum(axis=1), [3, 4, 4])
    np.testing.assert_allclose(z.output.pooled, tokens[[0, 1, 2], [2, 3, 3]], atol=1e-5)


def test_constants_are_no_parameters(tmp_path: Path) -> None:
    names = [name for name in golden("clap_htsat")["shapes"] if re.fullmatch(CONSTANTS, name)]
    assert len(names) > 3
    assert not [path for path in opened(tmp_path, "htsat").shapes if "extractor" in path or "index" in path]
