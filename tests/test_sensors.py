"""Maps of depth and heat, and motion: inputs as their formulas say, towers beside others, hostile bytes refused."""

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from data.batches import batches
from PIL import Image
from tiny import tiny_config

from jclip.config import (
    Augment,
    ConfigError,
    Contrastive,
    DepthTower,
    ImuTower,
    Model,
    ThermalTower,
    Tower,
    View,
    VisionTower,
    check,
    check_model,
)
from jclip.data import BadExample, eval_transform, train_transform
from jclip.eval.previews import preview
from jclip.models import MultiTower, output_tokens, tower_flops
from jclip.train import main
from jclip.tree import flatten

DEPTH = DepthTower(8, 1, 2, image_size=16, patch_size=8)
HEAT = ThermalTower(width=8, depth=1, heads=2, image_size=16, patch_size=8)
MOTION = ImuTower(8, 1, 2, channels=3, samples=20, patch_size=5)


def png(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "PNG")
    return stream.getvalue()


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def test_depth_is_disparity_and_what_was_not_measured_is_0() -> None:
    millimetres = np.full((16, 16), 2000, np.uint16)
    millimetres[0, :3] = 0, 65535, 100
    want = np.full((16, 16), 38.9 / 2 / 75)
    want[0, :3] = 0, 38.9 / 65.535 / 75, 1
    for value in (png(millimetres), npy(millimetres), millimetres, millimetres[:, :, None], Image.fromarray(millimetres)):
        found = eval_transform(DEPTH)(value)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found[:, :, 0], want, rtol=1e-6)
    metres = np.full((16, 16), 2.0)
    metres[0, :3] = np.nan, -1, np.inf
    want[0, :3] = 0
    np.testing.assert_allclose(eval_transform(dataclasses.replace(DEPTH, unit=1.0))(metres)[:, :, 0], want, rtol=1e-6)


def test_heat_is_scaled_by_its_range_and_cut_there() -> None:
    counts = np.full((16, 16), 8000, np.uint16)
    counts[0, :3] = 0, 7000, 20000
    want = np.full((16, 16), 0.25)
    want[0, :3] = 0, 0, 1
    found = eval_transform(dataclasses.replace(HEAT, low=7000.0, high=11000.0))(png(counts))
    np.testing.assert_allclose(found[:, :, 0], want, rtol=1e-6)
    grey = np.random.default_rng(0).integers(0, 256, (16, 16, 1), np.uint8)
    for value in (png(grey[:, :, 0]), png(np.repeat(grey, 3, axis=2))):
        np.testing.assert_allclose(eval_transform(HEAT)(value), grey / 255, rtol=1e-6)


def test_a_map_is_cropped_and_mirrored_where_its_image_is() -> None:
    """The same draws: the picture's red, as f32, is the map."""
    ramp = np.add.outer(np.arange(40), 3 * np.arange(60)).astype(np.uint8)
    image = VisionTower(image_size=16, patch_size=8)
    augment = Augment(scale=(0.3, 0.6), flip=0.5)
    bilinear = dataclasses.replace(image, preprocess=dataclasses.replace(image.preprocess, interpolation="bilinear"))
    for seed in range(6):
        seen = train_transform(bilinear, augment)(png(np.repeat(ramp[:, :, None], 3, axis=2)), np.random.default_rng(seed))
        found = train_transform(HEAT, augment)(png(ramp), np.random.default_rng(seed))
        np.testing.assert_allclose(found[:, :, 0] * 255, seen[:, :, 0], atol=1.01)


def test_motion_is_turned_cut_and_filled() -> None:
    x = np.arange(90, dtype=np.float64).reshape(3, 30)
    for value in (x, x.T, npy(x.astype(np.float32)), x.tolist()):
        np.testing.assert_array_equal(eval_transform(MOTION)(value), x[:, 5:25])
    np.testing.assert_array_equal(eval_transform(MOTION)(x[:, :4]), np.pad(x[:, :4], ((0, 0), (0, 16))))
    firsts = {int(train_transform(MOTION, Augment())(x, np.random.default_rng(seed))[0, 0]) for seed in range(200)}
    assert firsts == set(range(11))


def truncated() -> bytes:
    return npy(np.zeros((3, 20)))[:-8]


def huge() -> bytes:
    """Six bytes behind a header that says a terabyte."""
    header = npy(np.zeros((3, 20)))[:128].replace(b"(3, 20)", b"(9999999, 99999)")
    return header[:118] + b" " * 9 + b"\n" + b"123456"


def odd_header() -> bytes:
    """A header whose indentation numpy's parser does not expect."""
    header = b"  {'descr'\n :'<f4'"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header


def with_object() -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.array([{"a": 1}], object), allow_pickle=True)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("tower", "value", "said"),
    [
        (DEPTH, png(np.random.default_rng(0).integers(0, 9, (16, 16, 3), np.uint8)), r"depth is \[16, 16, 3\], not one channel"),
        (DEPTH, b"\x89PNG rubbish", "cannot be decoded"),
        (DEPTH, "depth.png", "depth is a str, not an array of numbers"),
        (HEAT, np.full((16, 16), np.nan), "heat has values that are not finite"),
        (HEAT, png(np.zeros((16, 16), np.uint8))[:50], "cannot be decoded"),
        (HEAT, np.zeros((0, 16)), "not one channel"),
        (MOTION, truncated(), "motion cannot be read as .npy: its header says"),
        (MOTION, huge(), "motion cannot be read as .npy"),
        (MOTION, with_object(), "motion cannot be read as .npy: it holds object, not numbers"),
        (MOTION, b"\x93NUMPY", "motion cannot be read as .npy"),
        (MOTION, np.zeros((4, 20)), r"motion is \[4, 20\], not \[3, n\] or \[n, 3\]"),
        (MOTION, np.zeros((3, 0)), "motion has no measurement"),
        (MOTION, np.full((3, 30), np.inf), "motion has values that are not finite"),
        (MOTION, np.full((3, 30), 1e300), "not finite, or too large"),
        (MOTION, odd_header(), "motion cannot be read as .npy"),
        (MOTION, [[1, 2], [3]], "its rows differ in length"),
        (MOTION, np.array([["a"]]), "not an array of numbers"),
    ],
)
def test_what_is_no_measurement_is_a_bad_example(tower: Tower, value: Any, said: str) -> None:
    with pytest.raises(BadExample, match=said):
        eval_transform(tower)(value)


@pytest.mark.parametrize(
    ("tower", "said"),
    [
        (dataclasses.replace(DEPTH, image_size=20), "image_size 20 is not divisible by patch_size 8; use 16 or 24"),
        (dataclasses.replace(HEAT, low=3.0, high=3.0), "low 3.0 is not below high 3.0"),
        (dataclasses.replace(MOTION, samples=22), "samples 22 is not divisible by patch_size 5; use 20 or 25"),
        (dataclasses.replace(MOTION, heads=3), "heads 3 does not divide width 8"),
    ],
)
def test_contradictions_of_a_tower_are_reported(tower: Tower, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check_model(Model({"sensor": tower}, embed_dim=8))


def test_patches_are_pixels_of_squares_or_measurements_of_each_channel() -> None:
    """With a map that keeps its input, tokens are the patches: what sees others is set to nothing."""
    for tower, shape in ((dataclasses.replace(HEAT, width=64, mean=0.5, std=2.0), (16, 16, 1)), (MOTION, (3, 20))):
        model = Model(
            {
                "sensor": dataclasses.replace(
                    tower,
                    width=tower.patch_values if tower is MOTION else 64,
                    heads=1,
                    patch_norm=False,
                    pool="avg",
                    projection="none",
                )
            },
            embed_dim=64,
        )
        values = np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)
        module = MultiTower(model)
        params = module.init(jax.random.key(0), {"sensor": values})["params"]
        kernel = np.eye(model.towers["sensor"].width)
        params["sensor"]["patch_embed"]["kernel"] = kernel
        params["sensor"]["pos_embed"] = np.zeros_like(params["sensor"]["pos_embed"])
        blocks = jax.tree.map(np.zeros_like, params["sensor"]["blocks"])
        tokens = module.apply({"params": {"sensor": {**params["sensor"], "blocks": blocks}}}, {"sensor": values})[
            "sensor"
        ].output.tokens
        x = values.astype(np.float64)
        if tower is MOTION:
            patches = np.stack([x[:, :, 5 * i : 5 * i + 5].reshape(2, 15) for i in range(4)], axis=1)
        else:
            squares = [x[:, 8 * r : 8 * r + 8, 8 * c : 8 * c + 8].reshape(2, 64) for r in range(2) for c in range(2)]
            patches = (np.stack(squares, axis=1) - 0.5) / 2
        centred = patches - patches.mean(axis=2, keepdims=True)
        want = centred / np.sqrt((centred**2).mean(axis=2, keepdims=True) + 1e-6)
        np.testing.assert_allclose(tokens, want, atol=1e-5)
        assert output_tokens(model.towers["sensor"]) == 4
        assert tower_flops(model.towers["sensor"]) > 0


def test_what_a_sensor_sees_is_a_picture_on_pages() -> None:
    for tower, field in ((DEPTH, "depth"), (HEAT, "thermal"), (MOTION, "imu")):
        index = ("depth", "thermal", "imu").index(field)
        shown = preview(Sensed(), index, field, tower)
        assert shown is not None
        assert shown.image.startswith("data:image/png;base64,")


class Sensed:
    """Pictures, each with one of the other three."""

    classes = ()
    templates = ()

    def __len__(self) -> int:
        return 48

    def __getitem__(self, index: int) -> dict[str, Any]:
        dice = np.random.default_rng(index)
        others = {
            "depth": dice.integers(500, 9000, (20, 20), np.uint16),
            "thermal": png(dice.integers(0, 256, (18, 18), np.uint8)),
            "imu": dice.normal(size=(25, 3)),
        }
        name = ("depth", "thermal", "imu")[index % 3]
        return {"key": f"k{index}", "image": dice.integers(0, 256, (16, 16, 3), np.uint8), name: others[name]}

    def fingerprint(self) -> str:
        return "sensed"


@pytest.mark.slow
def test_images_are_bound_to_each_of_three_sensors_in_one_run(tmp_path: Path) -> None:
    base = tiny_config(evals={}, duration="4", **{"checkpoint.best": None, "optim.warmup": "1", "model.embed_dim": 8})
    sensors = {
        "depth": dataclasses.replace(DEPTH, extra_key=True),
        "thermal": HEAT,
        "imu": dataclasses.replace(MOTION, dropout=0.1),
    }
    model = dataclasses.replace(base.model, towers={"image": base.model.towers["image"], **sensors})
    objectives = {f"image_{name}": Contrastive("image", name) for name in sensors}
    data = dataclasses.replace(base.data, optional=tuple(sensors))
    main(dataclasses.replace(base, model=model, objectives=objectives, data=data), tmp_path, source=Sensed())
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        assert sum(line[f"image_{name}/pairs"] for name in sensors) == pytest.approx(1)
        assert np.isfinite([line[f"image_{name}/loss"] for name in sensors]).all()
    import jclip

    loaded = jclip.load(tmp_path)
    assert {path.split("/")[-1] for path in flatten(loaded.params) if "extra" in path} == {"extra_k", "extra_v"}


class Mapped:
    """Pictures of one ramp each, and the same as heat."""

    classes = ()
    templates = ()

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> dict[str, Any]:
        ramp = np.add.outer(np.arange(40), (1 + index % 3) * np.arange(50)).astype(np.uint8)
        heat = {"thermal": ramp} if index % 2 else {}
        return {"key": f"k{index}", "image": np.repeat(ramp[:, :, None], 3, axis=2), **heat}

    def fingerprint(self) -> str:
        return "mapped"


def test_a_view_of_a_map_is_cropped_where_its_image_is_in_batches_too() -> None:
    base = tiny_config(evals={}, **{"checkpoint.best": None, "data.augment": Augment(scale=(0.3, 0.6), flip=0.5)})
    image = base.model.towers["image"]
    image = dataclasses.replace(image, preprocess=dataclasses.replace(image.preprocess, interpolation="bilinear"))
    config = dataclasses.replace(
        base,
        model=dataclasses.replace(base.model, towers={"image": image, "thermal": HEAT}),
        views={"thermal@same": View("thermal", same_as="image")},
        objectives={"image_heat": Contrastive("image", "thermal@same")},
        data=dataclasses.replace(base.data, optional=("thermal@same",)),
    )
    check(config, devices=1)
    (batch,) = batches(config, 1, source=Mapped())
    valid = batch.arrays["thermal@same/valid"]
    assert valid.tolist() == [int(key[1:]) % 2 == 1 for key in batch.keys]
    assert 0 < valid.sum() < len(valid)
    seen, heat = batch.arrays["image"][valid][..., 0], 255 * batch.arrays["thermal@same"][valid][..., 0]
    np.testing.assert_allclose(heat, seen, atol=1.01)
    assert not batch.arrays["thermal@same"][~valid].any()
