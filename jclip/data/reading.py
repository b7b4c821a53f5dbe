"""Transforms as such: a function of one value, several in order, and the settings by which a tower's is made."""

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from jclip.config import Augment, SoundAugment, TextAugment
from jclip.data.decoding import MAX_PIXELS

Generator = np.random.Generator

MAX_SECONDS = 36_000.0
"""Longer sounds are refused: ten hours."""


class Transform(Protocol):
    """A function of one value; what is random in it comes from `rng` alone."""

    def __call__(self, value: Any, rng: Generator | None = None) -> Any:
        """The transformed value. Raises BadExample if this value cannot be used."""
        ...


@dataclass(frozen=True)
class Compose:
    """Transforms in the order they are applied."""

    transforms: tuple[Transform, ...]

    def __call__(self, value: Any, rng: Generator | None = None) -> Any:
        for transform in self.transforms:
            value = transform(value, rng)
        return value


@dataclass(frozen=True)
class Reading:
    """Settings of the transform of a value, beside what the tower says."""

    augment: Augment | None = None
    """Augmentation of images; None: nothing is random, as in evaluations."""
    text_augment: TextAugment | None = None
    """Augmentation of texts; None: nothing is random."""
    sound_augment: SoundAugment | None = None
    """Augmentation of sounds; None: nothing is random."""
    max_pixels: int = MAX_PIXELS
    """Largest image, in pixels; a larger one is a BadExample."""
    decode: Literal["exact", "fast"] = "exact"
    """fast: a JPEG is decoded as `ScaledCrop` says, where something is random."""
    max_seconds: float = MAX_SECONDS
    """Longest sound, in seconds; a longer one is a BadExample."""
    upright: bool = False
    """True: images are turned as their EXIF data say. Protocols and training do not: open_clip does not."""
    empty_texts: bool = False
    """True: an empty text is a text. In protocols and training it is a BadExample."""
