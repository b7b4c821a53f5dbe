"""Random changes of images: their formulas, their frequencies, and that they are the element's own."""

import colorsys

import numpy as np
import pytest
from PIL import Image

from jclip.config import Augment, VisionTower
from jclip.data import train_transform
from jclip.data.augmentations import OPERATIONS, Blur, ColorJitter, Grayscale, RandAugment, Solarize, Sometimes, turn_hue


def picture(seed: int = 0, side: int = 12) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3)).astype(np.uint8))


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("band", range(3))
def test_one_strength_alone_is_its_formula(band: int) -> None:
    """Brightness scales the levels, contrast their distance from the mean grey, saturation that from the pixel's grey."""
    image, strengths = picture(), [0.0, 0.0, 0.0]
    strengths[band] = 0.8
    draws = rng(5)
    factor = [draws.uniform(1 - x, 1 + x) for x in strengths][band]
    levels = np.asarray(image, np.float64)
    grey = np.asarray(image.convert("L"), np.float64)
    base = (np.zeros_like(levels), np.full_like(levels, int(grey.mean() + 0.5)), grey[:, :, None] + 0 * levels)[band]
    want = np.clip(base + factor * (levels - base), 0, 255)
    got = np.asarray(ColorJitter(*strengths, hue=0.0)(image, rng(5)), np.float64)
    assert np.abs(got - want).max() <= 1


def test_the_hue_turns_by_its_share_of_the_circle() -> None:
    image = Image.new("RGB", (2, 2), (200, 60, 30))
    h, s, v = colorsys.rgb_to_hsv(200 / 255, 60 / 255, 30 / 255)
    want = np.array(colorsys.hsv_to_rgb((h + 0.25) % 1, s, v)) * 255
    assert np.abs(np.asarray(turn_hue(image, 0.25))[0, 0] - want).max() < 6  # a step of the hue is 1/256 of the circle
    np.testing.assert_array_equal(turn_hue(image, 1.0), image)
    assert turn_hue(image, 0.0) is image


def test_grey_solarized_and_blurred_are_what_they_are_called() -> None:
    image = picture()
    grey = np.asarray(Grayscale()(image))
    assert (grey == grey[:, :, :1]).all()
    want = np.asarray(image, np.float64) @ [0.299, 0.587, 0.114]
    assert np.abs(grey[:, :, 0] - want).max() <= 1
    levels = np.asarray(image)
    np.testing.assert_array_equal(Solarize()(image), np.where(levels < 128, levels, 255 - levels))
    point = Image.fromarray(np.pad(np.full((1, 1, 3), 255, np.uint8), ((15, 15), (15, 15), (0, 0))))
    spread = np.asarray(Blur(2.0, 2.0)(point, rng()), np.float64)[:, :, 0]
    at = np.arange(31) - 15
    variance = (spread.sum(0) * at**2).sum() / spread.sum()
    assert variance == pytest.approx(4, rel=0.15)


def test_each_happens_as_often_as_it_is_asked_for() -> None:
    image, draws = picture(), rng(1)
    changed = [np.asarray(Sometimes(0.3, Solarize())(image, draws)).tobytes() != image.tobytes() for _ in range(2000)]
    assert np.mean(changed) == pytest.approx(0.3, abs=0.04)


def test_rand_augment_draws_so_many_operations_evenly_and_at_its_strength(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, float]] = []

    def spy(i: int):
        return lambda image, strength: (seen.append((i, strength)), image)[1]

    monkeypatch.setattr("jclip.data.augmentations.OPERATIONS", tuple(map(spy, range(len(OPERATIONS)))))
    draws = rng(2)
    for _ in range(1000):
        RandAugment(3, 0.4)(picture(), draws)
    assert len(seen) == 3000
    counts = np.bincount([i for i, _ in seen], minlength=len(OPERATIONS))
    assert counts.min() > 0.7 * 3000 / len(OPERATIONS)
    assert {strength for _, strength in seen} == {0.4, -0.4}


@pytest.mark.parametrize("operation", range(len(OPERATIONS)))
def test_every_operation_keeps_size_and_mode_and_does_little_where_it_is_weak(operation: int) -> None:
    image = picture(side=16).resize((64, 64), Image.Resampling.BICUBIC).point([40 + level // 2 for level in range(256)] * 3)
    for strength in (-1.0, 1.0):
        changed = OPERATIONS[operation](image, strength)
        assert (changed.size, changed.mode) == (image.size, "RGB")
        assert (np.asarray(changed) != np.asarray(image)).any() == (operation != 0)
    if operation not in (1, 2):  # autocontrast and equalize have no strength
        weak = OPERATIONS[operation](image, 1e-6)
        assert np.abs(np.asarray(weak, int) - np.asarray(image, int)).mean() < 1


EVERYTHING = Augment(flip=0.5, rand_augment=2, jitter_p=0.8, grayscale=0.2, blur=0.5, solarize=0.2)


def test_the_pixels_are_a_function_of_the_rng_alone_and_differ_between_examples() -> None:
    transform = train_transform(VisionTower(image_size=16, patch_size=8), EVERYTHING)
    pixels = [transform(picture(3, 40), rng(seed)) for seed in (1, 1, 2, 3)]
    assert pixels[0].shape == (16, 16, 3)
    np.testing.assert_array_equal(pixels[0], pixels[1])
    assert len({p.tobytes() for p in pixels}) == 3


def test_without_options_the_pixels_are_those_of_crop_and_flip_alone() -> None:
    transform = train_transform(VisionTower(image_size=16, patch_size=8), Augment(flip=0.5))
    assert [type(step).__name__ for step in transform.transforms] == ["Decode", "ToRgb", "RandomResizedCrop", "Flip", "ToArray"]
    with pytest.raises(ValueError, match="is random: give it an rng"):
        train_transform(VisionTower(image_size=16, patch_size=8), EVERYTHING)(picture())
