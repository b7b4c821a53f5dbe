"""Architectures and files that leave out their vocabulary are good for all once it is given."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from foreign import TINY_TIMM, images
from make_golden_big_vision import siglip
from test_cli import exit_status
from test_weights import write_folder
from vocabularies import write_folder as write_tokenizer

import jclip
from jclip import init_from
from jclip.config import ConfigError, InitFrom, TokenizerConfig, architectures, load, replace
from jclip.sharding import make_mesh
from jclip.weights import WeightsError, named_model, read_weights
from jclip.weights.open_clip.timm import TIMM
from jclip.weights.texts.tokenizers import read_open_clip

GOLDEN = Path(__file__).parents[1] / "data" / "golden" / "tokenizers"
ROOT = Path(__file__).parents[2]
FILE, SHA256 = "towers.text.tokenizer.file", "towers.text.tokenizer.sha256"


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of open_clip's; its weight file alone is of the architecture "tiny-SigLIP"."""
    tower = dataclasses.replace(TIMM["vit_base_patch16_siglip_224"], image_size=24, patch_size=8, width=36, depth=2, heads=3)
    monkeypatch.setitem(TIMM, TINY_TIMM, dataclasses.replace(tower, mlp_ratio=3.25))
    folder = write_folder(tmp_path / "tiny", "open_clip_siglip")
    model = replace(replace(read_weights(folder).model, FILE, ""), SHA256, "")
    monkeypatch.setitem(architectures._TABLE, "tiny-SigLIP", model)
    return folder


def tokenizer_of(name: str, file: str) -> TokenizerConfig:
    tower = named_model(name, GOLDEN / file).towers["text"]
    assert isinstance(tower, jclip.config.TextTower)
    return tower.tokenizer


def test_a_file_with_its_architecture_and_vocabulary_is_the_folder(tiny: Path, tmp_path: Path) -> None:
    file, vocabulary = tiny / "open_clip_model.safetensors", tiny / "tokenizer.json"
    whole = jclip.load(tiny)
    alone = jclip.load(file, architecture_name="tiny-SigLIP", tokenizer=vocabulary)
    assert alone.config == whole.config
    np.testing.assert_array_equal(alone.embed_image(list(images(24))), whole.embed_image(list(images(24))))
    options = ["--architecture", "tiny-SigLIP", "--tokenizer", str(vocabulary)]
    assert exit_status(["convert", str(file), str(tmp_path / "ours"), *options]) == 0
    assert replace(read_weights(tmp_path / "ours").model, FILE, str(vocabulary)) == whole.config
    assert exit_status(["info", str(file), *options]) == 0


def test_a_name_with_a_vocabulary_has_random_weights(tiny: Path) -> None:
    made = jclip.load("tiny-SigLIP", tokenizer=tiny / "tokenizer.json")
    assert made.embed_text("word7 word8").shape == (1, 36)
    assert jclip.find_model("tiny-SigLIP", tokenizer=str(tiny / "tokenizer.json")) == made.config


@pytest.mark.parametrize("npz", [False, True])
def test_recipes_start_from_what_leaves_out_its_vocabulary(npz: bool, tiny: Path, tmp_path: Path) -> None:
    file, options = tiny / "open_clip_model.safetensors", ["--architecture", "tiny-SigLIP"]
    if npz:
        file, options = tmp_path / "siglip.npz", []
        np.savez(file, **siglip())  # type: ignore[arg-type]
    vocabulary = ["--tokenizer", str(tiny / "tokenizer.json")]
    for recipe in ("lit", "finetune"):
        config = load(ROOT / "configs" / f"{recipe}.py", ["--weights", str(file), *options, *vocabulary])
        assert config.init_from.tokenizer == vocabulary[1]
    tower = config.model.towers["text"]
    assert isinstance(tower, jclip.config.TextTower)
    assert tower.tokenizer.file == vocabulary[1]
    source = init_from._open(config.init_from)
    assert source.model == replace(config.model, "dtype", "float32")
    assert "image_text/logit_bias" in dict(source.read(make_mesh(config.mesh)))


def test_a_vocabulary_is_read_as_its_architecture_reads_it(tmp_path: Path) -> None:
    for name, kind, text in (
        ("ViT-B-16-SigLIP", "t5", {"tokenizer_kwargs": {"clean": "canonicalize"}}),
        ("ViT-B-16-SigLIP2", "gemma", {"tokenizer_kwargs": {"clean": "canonicalize"}}),
        ("ViT-L-14-CLIPA", "bert", {}),
    ):
        given = tokenizer_of(name, f"{kind}.json")
        theirs = read_open_clip(
            write_tokenizer(tmp_path / kind, kind, GOLDEN / f"{kind}.json"), text | {"hf_tokenizer_name": "x"}
        )
        strip = given.strip_id  # which is that of BERT's own vocabulary
        assert given == dataclasses.replace(theirs, file=str(GOLDEN / f"{kind}.json"), strip_id=strip)
    pieces = tokenizer_of("ViT-B-16-SigLIP", "t5.model")
    assert (pieces.kind, pieces.eos_id, pieces.pad_id, len(pieces.sha256)) == ("sentencepiece", 1, 1, 64)


def test_what_is_asked_for_and_what_is_not_is_said(tiny: Path, tmp_path: Path) -> None:
    file, vocabulary = tiny / "open_clip_model.safetensors", tiny / "tokenizer.json"
    needs = r"does not bring the vocabulary of its texts, a {}; give --tokenizer FILE \(tokenizer=FILE\)"
    (tmp_path / "damaged.json").write_text(json.dumps({"post_processor": 3}))
    cases: tuple[tuple[str | Path, dict[str, Any], str], ...] = (
        ("ViT-B-16-SigLIP", {}, needs.format("sentencepiece model, or a tokenizer.json that ends each text alike")),
        ("ViT-H-14-worldwide", {}, needs.format("tokenizer.json")),
        (file, {"architecture_name": "tiny-SigLIP"}, "tiny-SigLIP " + needs.format("tokenizer.json")),
        ("ViT-B-32", {"tokenizer": vocabulary}, "ViT-B-32 has CLIP's own tokenizer; leave out the tokenizer"),
        (tiny, {"tokenizer": vocabulary}, "says its tokenizer itself; leave out"),
        ("ViT-B-16-SigLIP", {"tokenizer": tmp_path / "none.model"}, r"none\.model: No such file"),
        ("ViT-B-16-SigLIP", {"tokenizer": GOLDEN / "bert.json"}, "around a text; the architecture reads id 1 behind it"),
        ("ViT-B-16-SigLIP", {"tokenizer": tmp_path / "damaged.json"}, r"no tokenizer\.json, or damaged"),
        ("ViT-L-14-CLIPA", {"tokenizer": GOLDEN / "t5.model"}, "the architecture reads a tokenizer.json"),
        ("ViT-B-32", {"architecture_name": "ViT-B-16"}, "ViT-B-32 is an architecture itself; leave out ViT-B-16"),
    )
    for given, options, message in cases:
        with pytest.raises((WeightsError, ConfigError), match=message):
            jclip.load(given, **options)


def test_init_from_names_what_it_has_no_use_for(tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "config.json").write_text("{}")
    for field in ("architecture", "tokenizer"):
        with pytest.raises(ConfigError, match=f"is a workdir; leave out init_from.{field}"):
            init_from._open(InitFrom(str(tmp_path / "run"), **{field: "x"}))  # type: ignore[arg-type]
