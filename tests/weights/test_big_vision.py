"""Weights of big_vision give the numbers that open_clip and timm compute of the same file, or are refused."""

import importlib
import json
import zipfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from encoding import encoder
from foreign import GOLDEN, images
from make_golden_big_vision import DEPTH, GRID, HEADS, HIDDEN, LENGTH, PATCH, WIDTH, classifier, features, ids, siglip, theirs
from peers import peer
from test_cli import exit_status

import jclip
from jclip.config import ConfigError, TextTower, VisionTower, check, replace
from jclip.tree import unflatten
from jclip.weights import Weights, WeightsError, read_weights
from jclip.weights.io.npz import open_npz

EXPECTED: dict[str, Any] = json.loads((GOLDEN / "big_vision.json").read_text())


@pytest.fixture
def vocabulary(tmp_path: Path) -> Path:
    path = tmp_path / "sentencepiece.model"
    path.write_bytes(b"ids of words")
    return path


def write(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


def embed(weights: Weights, **inputs: Any) -> dict[str, np.ndarray]:
    """Unit vectors of the inputs of each tower."""
    with jax.default_matmul_precision("highest"):
        encoded = encoder(weights.model)({"params": unflatten(dict(weights))}, inputs)
    return {name: np.asarray(output.z) for name, output in encoded.items()}


def unit(x: Any) -> np.ndarray:
    x = np.asarray(x, np.float64)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def stacked(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same with all blocks of a tower in one array."""
    first = [name for name in arrays if "encoderblock_0/" in name]
    blocks = {name: [arrays[name.replace("block_0", f"block_{i}")] for i in range(DEPTH)] for name in first}
    others = {name: array for name, array in arrays.items() if "encoderblock_" not in name}
    return others | {name.replace("encoderblock_0", "encoderblock"): np.stack(parts) for name, parts in blocks.items()}


@pytest.mark.parametrize("layout", ["a block an array", "stacked", "with an optimizer", "fortran"])
def test_the_features_of_siglip_are_those_that_open_clip_computes(layout: str, tmp_path: Path, vocabulary: Path) -> None:
    arrays = siglip()
    if layout == "stacked":
        arrays = stacked(arrays)
    elif layout == "with an optimizer":
        arrays = arrays | {"opt/0/mu/t": np.zeros(1, np.float32), "opt/0/count": np.array(3)}
    elif layout == "fortran":
        arrays = {name: np.asfortranarray(array) for name, array in arrays.items()}
    weights = read_weights(write(tmp_path / "siglip.npz", arrays), tokenizer=vocabulary)
    z = embed(weights, image=images(PATCH * GRID), text=ids())
    np.testing.assert_allclose(z["image"], unit(EXPECTED["image"]), atol=1e-6)
    np.testing.assert_allclose(z["text"], unit(EXPECTED["text"]), atol=1e-6)
    params = dict(weights)
    assert params["image_text/logit_scale"] == np.float32(EXPECTED["logit_scale"])
    assert params["image_text/logit_bias"] == np.float32(EXPECTED["logit_bias"])


def test_shapes_tell_the_architecture_and_the_vocabulary_how_it_is_read(tmp_path: Path, vocabulary: Path) -> None:
    model = read_weights(write(tmp_path / "siglip.npz", siglip()), tokenizer=vocabulary).model
    image, text = model.towers["image"], model.towers["text"]
    assert isinstance(image, VisionTower)
    assert isinstance(text, TextTower)
    assert (image.image_size, image.patch_size, image.depth, image.heads, image.pool) == (
        PATCH * GRID,
        PATCH,
        DEPTH,
        HEADS,
        "map",
    )
    assert (text.context_length, text.causal, text.pool, text.projection) == (LENGTH, False, "last", "affine")
    assert {round(tower.mlp_ratio * WIDTH) for tower in (image, text)} == {HIDDEN}
    assert (image.preprocess.resize, image.preprocess.mean) == ("squash", (0.5, 0.5, 0.5))
    tokenizer = text.tokenizer
    assert (tokenizer.kind, tokenizer.file, tokenizer.clean) == ("sentencepiece", str(vocabulary), "canonicalize")
    assert (tokenizer.eos_id, tokenizer.pad_id, len(tokenizer.sha256)) == (1, 1, 64)


def test_bfloat16_is_read_under_numpys_name_for_it(tmp_path: Path, vocabulary: Path) -> None:
    import ml_dtypes

    half = {name: array.astype(ml_dtypes.bfloat16) for name, array in siglip().items()}
    weights = dict(read_weights(write(tmp_path / "half.npz", half), tokenizer=vocabulary))
    np.testing.assert_array_equal(weights["text/token_embed"], np.float32(half["params/txt/Embed_0/embedding"]))


@pytest.mark.parametrize("first", [False, True])
def test_a_classifier_is_a_model_of_one_tower(first: bool, tmp_path: Path) -> None:
    path = write(tmp_path / "vit.npz", classifier(first=first))
    weights = read_weights(path)
    assert set(weights.model.towers) == {"image"}
    expected = unit(EXPECTED["classifier"]["first" if first else "since"])
    np.testing.assert_allclose(embed(weights, image=images(PATCH * GRID))["image"], expected, atol=1e-6)
    loaded = jclip.load(path)
    np.testing.assert_allclose(loaded.embed_image(list(images(PATCH * GRID))), expected, atol=1e-5)
    assert exit_status(["convert", str(path), str(tmp_path / "ours"), "--image-size", "40"]) == 0
    assert jclip.load(tmp_path / "ours").embed_image(list(images(40))).shape == (3, WIDTH)
    assert exit_status(["convert", str(path), str(tmp_path / "theirs"), "--to", "open_clip"]) == 1
    assert exit_status(["info", str(path)]) == 0


def test_one_tower_is_not_trained_alone(tmp_path: Path) -> None:
    import dataclasses

    from tiny import tiny_config

    model = dataclasses.replace(tiny_config().model, towers={"image": tiny_config().model.towers["image"]})
    with pytest.raises(ConfigError, match="there is no view 'text'; views: image"):
        check(dataclasses.replace(tiny_config(), model=model, evals={}))


def changed(**changes: np.ndarray | None) -> dict[str, np.ndarray]:
    arrays = {**siglip(), **{f"params/{name}": array for name, array in changes.items()}}
    return {name: array for name, array in arrays.items() if array is not None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"img/embedding/kernel": None}, "img/embedding/kernel is missing"),
        ({"b": None}, "missing b$"),
        ({"t": None}, "missing t$"),
        ({"img/embedding/bias": None}, "missing img/embedding/bias"),
        ({"img/embedding/bias": np.zeros(3)}, r"img/embedding/bias is \[3\]"),
        ({"img/pos_embedding": None}, "img/pos_embedding is missing"),
        ({"txt/pos_embedding": np.zeros((LENGTH, WIDTH))}, r"txt/pos_embedding is \[16, 36\], not of 3 axes"),
        ({"txt/Encoder_0/encoderblock_1/LayerNorm_1/bias": None}, "missing txt/Encoder_0/encoderblock_1/LayerNorm_1/bias"),
        ({"img/pre_logits/bias": np.zeros(3)}, "unknown img/pre_logits/bias"),
        ({"img/MAPHead_0/MultiHeadDotProductAttention_0/query/bias": np.zeros((6, 6))}, r"query/bias is \[6, 6\]"),
        ({"img/MAPHead_0/MultiHeadDotProductAttention_0/out/kernel": np.zeros((6, 6, 36))}, r"out/kernel is \[6, 6, 36\]"),
        ({"txt/Embed_0/embedding": np.zeros((1000, WIDTH))}, "a vocabulary of 1,000 ids"),
        ({"img/pos_embedding": np.zeros((1, GRID**2 + 1, WIDTH))}, "img/pos_embedding is of 10 patches, which are no square"),
    ],
)
def test_what_is_no_siglip_is_refused(changes: dict[str, Any], message: str, tmp_path: Path, vocabulary: Path) -> None:
    path = write(tmp_path / "siglip.npz", changed(**changes))
    with pytest.raises(WeightsError, match=message):
        jclip.load(path, tokenizer=vocabulary)


def test_what_is_asked_for_and_what_is_not_is_said(tmp_path: Path, vocabulary: Path) -> None:
    path = write(tmp_path / "siglip.npz", siglip())
    for options, message in (
        ({}, r"leaves out its vocabulary c4_en; give that sentencepiece model: --tokenizer FILE"),
        ({"tokenizer": tmp_path / "none"}, "none: No such file"),
        ({"tokenizer": vocabulary, "architecture_name": "ViT-B-16"}, "its shapes say the architecture"),
    ):
        with pytest.raises(WeightsError, match=message):
            jclip.load(path, **options)
    with pytest.raises(WeightsError, match="has no text tower"):
        jclip.load(write(tmp_path / "vit.npz", classifier(first=True)), tokenizer=vocabulary)
    (tmp_path / "folder").mkdir()
    with pytest.raises(WeightsError, match="says its tokenizer itself"):
        jclip.load(tmp_path / "folder", tokenizer=vocabulary)


def test_what_is_converted_needs_the_vocabulary_no_more(tmp_path: Path, vocabulary: Path) -> None:
    path = write(tmp_path / "siglip.npz", siglip())
    assert exit_status(["convert", str(path), str(tmp_path / "ours"), "--tokenizer", str(vocabulary)]) == 0
    assert exit_status(["info", str(path), "--tokenizer", str(vocabulary)]) == 0
    before, after = read_weights(path, tokenizer=vocabulary), read_weights(tmp_path / "ours")
    file = "towers.text.tokenizer.file"
    assert replace(after.model, file, str(vocabulary)) == before.model
    assert (tmp_path / "ours" / vocabulary.name).read_bytes() == vocabulary.read_bytes()
    jax.tree.map(np.testing.assert_array_equal, dict(after), dict(before))


class Touch:
    """A pickle that runs a program."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def test_archives_of_anything_but_plain_arrays_are_refused(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    np.savez(tmp_path / "object.npz", a=np.array([Touch(mark)], dtype=object))
    np.savez(tmp_path / "text.npz", a=np.array(["word"]))
    np.savez_compressed(tmp_path / "bomb.npz", a=np.zeros(10**6))
    np.savez(tmp_path / "empty.npz")
    np.savez(tmp_path / "good.npz", a=np.zeros(1000))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "good.npz").read_bytes()[:-100])
    with zipfile.ZipFile(tmp_path / "short.npz", "w") as archive:
        archive.writestr("a.npy", zipfile.ZipFile(tmp_path / "good.npz").read("a.npy")[:-8])
    with zipfile.ZipFile(tmp_path / "noise.npz", "w") as archive:
        archive.writestr("a.npy", b"noise")
    for name, message in (
        ("object", "a pickle, say, may run any program"),
        ("text", "holds <U4, not numbers"),
        ("bomb", "compressed or encrypted"),
        ("cut", "cut short"),
        ("short", r"is float64 \[1000\], but holds 7992 bytes"),
        ("noise", "is no array of numpy"),
    ):
        with pytest.raises(WeightsError, match=message):
            open_npz(tmp_path / f"{name}.npz")
    assert not mark.exists()
    with pytest.raises(WeightsError, match="img/pos_embedding is missing"):
        jclip.load(tmp_path / "empty.npz")


@pytest.mark.parity
def test_features_are_those_of_open_clips_importer_in_this_process(tmp_path: Path, vocabulary: Path) -> None:
    open_clip, timm, torch = (peer(name) for name in ("open_clip", "timm", "torch"))
    importlib.import_module("open_clip.convert")
    rng = np.random.default_rng(1)
    arrays = {name: (array + 0.1 * rng.normal(size=array.shape)).astype(np.float32) for name, array in siglip().items()}
    path = write(tmp_path / "siglip.npz", arrays)
    expected = features(torch, theirs(timm, open_clip), path)
    z = embed(read_weights(path, tokenizer=vocabulary), image=images(PATCH * GRID), text=ids())
    np.testing.assert_allclose(z["image"], unit(expected["image"]), atol=1e-6)
    np.testing.assert_allclose(z["text"], unit(expected["text"]), atol=1e-6)
