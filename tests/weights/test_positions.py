"""Positions resampled for other resolutions and context lengths are open_clip's, and what does not fit is refused."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from encoding import encoder
from foreign import GOLDEN, OPEN_CLIP, TEXTS, images, number
from make_golden_positions import GRIDS, LENGTHS, RECTANGLES, WIDTH
from peers import peer
from safetensors.numpy import save_file
from test_cli import exit_status

import jclip
from jclip.config import ConfigError, Model, ResNetTower, TextTower, VisionTower, as_image_size
from jclip.tree import flatten
from jclip.weights import WeightsError, read_weights, resize_positions, with_sizes


def model_of(grid: int | tuple[int, int], length: int, **image: Any) -> Model:
    """A model with a class token, patches of 4 pixels and tokens of 3 numbers."""
    options = {"patch_size": 4, "width": WIDTH, "depth": 1, "heads": 1, **image}
    rows, columns = grid if isinstance(grid, tuple) else (grid, grid)
    size = as_image_size((rows * options["patch_size"], columns * options["patch_size"]))
    return Model(
        {
            "image": VisionTower(image_size=size, **options),
            "text": TextTower(context_length=length, width=WIDTH, depth=1, heads=1),
        }
    )


@pytest.mark.parametrize(("before", "after"), GRIDS)
def test_the_grid_of_patches_is_resampled_as_open_clip_does(before: int, after: int) -> None:
    expected = np.float32(json.loads((GOLDEN / "positions.json").read_text())["image"][GRIDS.index((before, after))])
    params = {"image/pos_embed": number("positions", (1 + before**2, WIDTH)), "image/cls": number("cls", (WIDTH,))}
    resized = resize_positions(params, model_of(before, 8), model_of(after, 8))
    np.testing.assert_allclose(resized["image/pos_embed"], expected, rtol=0, atol=1e-6, strict=True)
    np.testing.assert_array_equal(resized["image/pos_embed"][0], params["image/pos_embed"][0])
    assert resized["image/cls"] is params["image/cls"]


@pytest.mark.parametrize(("before", "after"), RECTANGLES)
def test_grids_that_are_not_square_are_resampled_as_images_are(before: tuple[int, int], after: tuple[int, int]) -> None:
    """Grids with as many patches are among them, which open_clip takes for the same grid."""
    expected = np.float32(json.loads((GOLDEN / "positions_rectangles.json").read_text())[RECTANGLES.index((before, after))])
    patches = number("positions", (*before, WIDTH)).reshape(-1, WIDTH)
    params = {"image/pos_embed": np.concatenate([number("cls", (1, WIDTH)), patches])}
    resized = resize_positions(params, model_of(before, 8), model_of(after, 8))["image/pos_embed"]
    np.testing.assert_allclose(resized[1:], expected, rtol=0, atol=1e-6, strict=True)
    np.testing.assert_array_equal(resized[0], params["image/pos_embed"][0])
    assert not np.array_equal(resized, params["image/pos_embed"])


@pytest.mark.parametrize(("before", "after"), LENGTHS)
def test_the_positions_of_a_text_are_interpolated_as_open_clip_does(before: int, after: int) -> None:
    expected = np.float32(json.loads((GOLDEN / "positions.json").read_text())["text"][LENGTHS.index((before, after))])
    params = {"text/pos_embed": number("positions", (before, WIDTH))}
    resized = resize_positions(params, model_of(2, before), model_of(2, after))
    np.testing.assert_allclose(resized["text/pos_embed"], expected, rtol=0, atol=1e-6, strict=True)


@pytest.mark.parametrize("kind", ["patches", "resnet"])
def test_a_grid_without_class_token_and_that_of_a_resnet_are_resampled_alike(kind: str) -> None:
    with_token = {"image/pos_embed": number("positions", (1 + 7**2, WIDTH))}
    expected = resize_positions(with_token, model_of(7, 8), model_of(12, 8))["image/pos_embed"]
    if kind == "patches":
        params = {"image/pos_embed": with_token["image/pos_embed"][1:]}
        resized = resize_positions(params, model_of(7, 8, pool="map"), model_of(12, 8, pool="map"))
        np.testing.assert_array_equal(resized["image/pos_embed"], expected[1:], strict=True)
        return
    before, after = (Model({"image": ResNetTower(image_size=32 * grid)}) for grid in (7, 12))
    resized = resize_positions({"image/pool/pos_embed": with_token["image/pos_embed"]}, before, after)
    np.testing.assert_array_equal(resized["image/pool/pos_embed"], expected, strict=True)


def test_positions_that_no_parameter_holds_need_nothing() -> None:
    before, after = (model_of(grid, 8, width=4, positions="sincos") for grid in (2, 3))
    assert resize_positions({"text/pos_embed": np.zeros((8, 3))}, before, after).keys() == {"text/pos_embed"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 6}, r"width \(3, not 6\)"),
        ({"patch_size": 2}, r"patch_size \(4, not 2\)"),
        ({"pool": "map"}, r"class_token \(1, not 0\)"),
        (None, "are of a VisionTower, the model has a ResNetTower"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any] | None, message: str) -> None:
    before = model_of(2, 8)
    after = Model({"image": ResNetTower()}) if change is None else model_of(2, 8, **change)
    with pytest.raises(WeightsError, match=f"image: .*{message}"):
        resize_positions({"image/pos_embed": number("positions", (5, WIDTH))}, before, after)
    untouched = {"text/pos_embed": number("positions", (8, WIDTH))}  # whatever the image tower is: none of it comes along
    assert resize_positions(untouched, before, model_of(2, 8) if change is None else after).keys() == untouched.keys()


def write_folder(folder: Path) -> Path:
    """A tiny model of open_clip: images of 24 pixels in patches of 8, texts of 20 tokens."""
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": OPEN_CLIP}))
    shapes = json.loads((GOLDEN / "open_clip.json").read_text())["shapes"]
    save_file({name: number(name, tuple(shape)) for name, shape in shapes.items()}, folder / "open_clip_model.safetensors")
    return folder


def test_loading_and_converting_to_another_size_are_one(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "source")
    loaded = jclip.load(source, image_size=40, context_length=24)
    towers = loaded.config.towers
    assert (towers["image"].image_size, towers["text"].context_length) == (40, 24)
    stored = read_weights(source)
    expected = resize_positions(dict(stored), stored.model, loaded.config)
    assert loaded.params["image"]["pos_embed"].shape == (26, 36)
    jax.tree.map(np.testing.assert_array_equal, dict(flatten(loaded.params)), expected)

    options = ["--image-size", "40x40", "--context-length", "24"]
    assert exit_status(["convert", str(source), str(tmp_path / "larger"), *options]) == 0
    again = jclip.load(tmp_path / "larger")
    assert again.config == loaded.config
    np.testing.assert_array_equal(again.embed_image(list(images(40))), loaded.embed_image(list(images(40))))
    np.testing.assert_array_equal(again.embed_text(TEXTS), loaded.embed_text(TEXTS))


def test_an_architecture_and_a_size_that_it_cannot_have(tmp_path: Path) -> None:
    assert jclip.load("ViT-tiny-test", image_size=32).params["image"]["pos_embed"].shape == (17, 32)
    with pytest.raises(ConfigError, match="image_size 36 is not divisible by patch_size 8; use 32 or 40"):
        jclip.load(write_folder(tmp_path / "m"), image_size=36)
    model = model_of(2, 8)
    of_texts = dataclasses.replace(model, towers=dict.fromkeys("ab", model.towers["text"]))
    with pytest.raises(ConfigError, match="image_size 36: the model has no tower with one; towers: a, b"):
        with_sizes(of_texts, image_size=36)


@pytest.mark.parity
def test_features_at_another_size_are_those_of_open_clip(tmp_path: Path) -> None:
    open_clip, torch = peer("open_clip"), peer("torch")
    source = write_folder(tmp_path / "m")
    config = json.loads(json.dumps(OPEN_CLIP))
    for size, length in ((56, 33), (16, 7), ((40, 16), 20)):
        config["vision_cfg"]["image_size"], config["text_cfg"]["context_length"] = size, length
        theirs = open_clip.model.CLIP(**config).eval()
        open_clip.load_checkpoint(theirs, str(source / "open_clip_model.safetensors"), strict=True)
        ours = jclip.load(source, image_size=size, context_length=length)
        pixels = np.random.default_rng(0).normal(size=(2, *ours.config.towers["image"].size, 3)).astype(np.float32)
        ids = np.zeros((2, length), np.int32)
        ids[:, 0], ids[:, 1], ids[:, 2] = 49406, (7, 300), 49407
        with torch.no_grad():
            image = theirs.encode_image(torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()), normalize=True).numpy()
            text = theirs.encode_text(torch.from_numpy(ids).long(), normalize=True).numpy()
        with jax.default_matmul_precision("highest"):
            encoded = encoder(ours.config)({"params": ours.params}, {"image": pixels, "text": ids}, normalised=True)
        np.testing.assert_allclose(encoded["image"].z, image, atol=1e-5)
        np.testing.assert_allclose(encoded["text"].z, text, atol=1e-5)
