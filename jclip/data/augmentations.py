"""Random changes of an RGB image that leave what it shows: colours, blur and RandAugment, by the element's own rng."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from jclip.config import Augment

Generator = np.random.Generator
Change = Callable[[Image.Image, Generator | None], Image.Image]


def changes(augment: Augment) -> tuple[Any, ...]:
    """The random transforms of an RGB image that `augment` asks for beside crop and flip, in the order they are applied."""
    steps: list[Any] = []
    if augment.rand_augment > 0:
        steps.append(RandAugment(augment.rand_augment, augment.magnitude))
    if augment.jitter_p > 0 and any(augment.jitter):
        steps.append(Sometimes(augment.jitter_p, ColorJitter(*augment.jitter)))
    if augment.grayscale > 0:
        steps.append(Sometimes(augment.grayscale, Grayscale()))
    if augment.blur > 0:
        steps.append(Sometimes(augment.blur, Blur(*augment.blur_sigma)))
    if augment.solarize > 0:
        steps.append(Sometimes(augment.solarize, Solarize()))
    return tuple(steps)


def needs_rng(rng: Generator | None, transform: object) -> Generator:
    """The rng of a random transform; ValueError where there is none."""
    if rng is None:
        raise ValueError(f"{transform} is random: give it an rng")
    return rng


@dataclass(frozen=True)
class Sometimes:
    """A change with probability `p`."""

    p: float
    change: Any

    def __call__(self, value: Image.Image, rng: Generator | None = None) -> Image.Image:
        return self.change(value, rng) if needs_rng(rng, self).random() < self.p else value


@dataclass(frozen=True)
class ColorJitter:
    """Brightness, contrast, saturation and hue, in random order (torchvision's; SimCLR, appendix A).

    The first three are factors uniform in [max(0, 1 - x), 1 + x]; the hue moves by a share uniform in [-x, x] of the circle.
    """

    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1

    def __call__(self, value: Image.Image, rng: Generator | None = None) -> Image.Image:
        rng = needs_rng(rng, self)
        enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
        strengths = (self.brightness, self.contrast, self.saturation)
        factors = [rng.uniform(max(0.0, 1 - x), 1 + x) for x in strengths]
        turn = rng.uniform(-self.hue, self.hue)
        for i in rng.permutation(4):
            value = turn_hue(value, turn) if i == 3 else enhancers[i](value).enhance(factors[i])
        return value


def turn_hue(image: Image.Image, turn: float) -> Image.Image:
    """An RGB image with its hue moved by a share of the circle, in steps of 1/256."""
    if (steps := round(turn * 256) % 256) == 0:
        return image
    hue, saturation, value = image.convert("HSV").split()
    hue = hue.point([(level + steps) % 256 for level in range(256)])
    return Image.merge("HSV", (hue, saturation, value)).convert("RGB")


@dataclass(frozen=True)
class Grayscale:
    """Luma (ITU-R 601-2) in all three bands."""

    def __call__(self, value: Image.Image, rng: Generator | None = None) -> Image.Image:
        return value.convert("L").convert("RGB")


@dataclass(frozen=True)
class Blur:
    """A Gaussian blur of a sigma uniform in [low, high] pixels; Pillow's, three box filters (MoCo v2, SLIP)."""

    low: float = 0.1
    high: float = 2.0

    def __call__(self, value: Image.Image, rng: Generator | None = None) -> Image.Image:
        return value.filter(ImageFilter.GaussianBlur(needs_rng(rng, self).uniform(self.low, self.high)))


@dataclass(frozen=True)
class Solarize:
    """Levels of 128 and above inverted (BYOL)."""

    def __call__(self, value: Image.Image, rng: Generator | None = None) -> Image.Image:
        return ImageOps.solarize(value, 128)


@dataclass(frozen=True)
class RandAugment:
    """`count` changes drawn from OPERATIONS, each with strength `magnitude` (Cubuk et al. 2020).

    The magnitude is a share: 1 is the paper's 30, and its usual 9 is 0.3. What the change uncovers becomes black.
    """

    count: int
    magnitude: float

    def __call__(self, value: Image.Image, rng: Generator | None = None) -> Image.Image:
        rng = needs_rng(rng, self)
        for i in rng.integers(len(OPERATIONS), size=self.count):
            strength = self.magnitude * (1 if rng.random() < 0.5 else -1)
            value = OPERATIONS[i](value, strength)
        return value


def _affine(image: Image.Image, matrix: Sequence[float]) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, tuple(matrix), Image.Resampling.NEAREST)


OPERATIONS: tuple[Callable[[Image.Image, float], Image.Image], ...] = (
    lambda image, strength: image,
    lambda image, strength: ImageOps.autocontrast(image),
    lambda image, strength: ImageOps.equalize(image),
    lambda image, strength: image.rotate(30 * strength),
    lambda image, strength: ImageOps.solarize(image, round(256 * (1 - abs(strength)))),
    lambda image, strength: ImageOps.posterize(image, max(1, 8 - math.floor(4 * abs(strength)))),
    lambda image, strength: ImageEnhance.Color(image).enhance(1 + 0.9 * strength),
    lambda image, strength: ImageEnhance.Contrast(image).enhance(1 + 0.9 * strength),
    lambda image, strength: ImageEnhance.Brightness(image).enhance(1 + 0.9 * strength),
    lambda image, strength: ImageEnhance.Sharpness(image).enhance(1 + 0.9 * strength),
    lambda image, strength: _affine(image, (1, 0.3 * strength, 0, 0, 1, 0)),
    lambda image, strength: _affine(image, (1, 0, 0, 0.3 * strength, 1, 0)),
    lambda image, strength: _affine(image, (1, 0, 0.45 * strength * image.width, 0, 1, 0)),
    lambda image, strength: _affine(image, (1, 0, 0, 0, 1, 0.45 * strength * image.height)),
)
"""(RGB image, strength from -1 to 1) -> RGB image: none, autocontrast, equalize, rotate, solarize, posterize, colour, contrast,
brightness, sharpness, shear along x and y, shift along x and y."""
