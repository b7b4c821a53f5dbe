"""Inputs of towers: the table of how each kind makes its own of an example's value, in training and in evaluations."""

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from jclip.config import (
    Augment,
    ConfigError,
    HtsatTower,
    ImageTower,
    ImuTower,
    PlaneTower,
    SoundAugment,
    SoundTower,
    TextAugment,
    TokenTower,
    Tower,
)
from jclip.data.decoding import MAX_PIXELS
from jclip.data.reading import MAX_SECONDS, Reading, Transform
from jclip.data.sensors import imu_transform, plane_transform
from jclip.data.transforms import image_transform, text_transform


def sound_transform(tower: SoundTower, reading: Reading) -> Transform:
    """The waveform of a sound, or with fusion the sound and its length."""
    if isinstance(tower, HtsatTower) and tower.fused_seconds is not None:
        from jclip.data.long_sounds import long_transform

        return long_transform(tower, reading)
    from jclip.data.sounds import sound_transform as transform  # which programs without sounds need not import

    return transform(tower, reading)


INPUTS: dict[type, Callable[[Any, Reading], Transform]] = {
    ImageTower: image_transform,
    ImuTower: imu_transform,
    PlaneTower: plane_transform,
    SoundTower: sound_transform,
    TokenTower: text_transform,
}
"""Makers of the inputs of each kind of tower, of a base those of all below it: (tower, reading) ->
transform. A row of your own is one of them."""


def eval_transform(tower: Tower, *, max_pixels: int = MAX_PIXELS, upright: bool = False, empty_texts: bool = False) -> Transform:
    """Transform of an example's value to the input of `tower`, nothing random: u8[H,W,3] of an image, i32[L] of a text.

    The pixels are those of open_clip's evaluation transform, bit for bit, but for images of more than 8 bits (see `Decode`).

    Args:
        tower: whose input is made.
        max_pixels: as in `Reading`.
        upright: as in `Reading`.
        empty_texts: as in `Reading`.

    Raises:
        ConfigError: the tower has a vocabulary file that cannot be used, or is of a kind without a row in INPUTS.
    """
    return input_transform(tower, Reading(max_pixels=max_pixels, upright=upright, empty_texts=empty_texts))


def train_transform(
    tower: Tower,
    augment: Augment,
    text_augment: TextAugment | None = None,
    *,
    sound_augment: SoundAugment = SoundAugment(),
    max_pixels: int = MAX_PIXELS,
    max_seconds: float = MAX_SECONDS,
    decode: Literal["exact", "fast"] = "exact",
) -> Transform:
    """Transform of an example's value to the input of `tower` in training: u8[H,W,3] of an image, i32[L] of a text.

    A random crop of the image, resized to H by W; with resize="longest" the image is padded to that shape before, and a crop of
    that shape has ratio 1. Needs an `rng`, except for texts as they are. Images of more than `max_pixels` are BadExamples.
    With decode="fast" a JPEG is decoded as `ScaledCrop` says. Of a sound a random part; of more than `max_seconds`, a BadExample.

    Raises:
        ConfigError: the tower has a vocabulary file that cannot be used, or the file of synonyms cannot, or it is of a kind
            without a row in INPUTS.
    """
    return input_transform(tower, Reading(augment, text_augment, sound_augment, max_pixels, decode, max_seconds))


def empty_input(tower: Tower) -> NDArray[Any]:
    """The input that stands for what an example lacks: zeros, or of texts the shortest one, so that buckets stay as they are."""
    shape, dtype = tower.input()
    if not isinstance(tower, TokenTower):
        return np.zeros(shape, dtype)
    ids = np.full(shape, tower.tokenizer.pad_id, dtype)
    ids[0] = ids[0] if tower.eot_id is None else tower.eot_id
    return ids


def input_transform(tower: Tower, reading: Reading) -> Transform:
    """The transform of the tower's kind, or of the nearest base of it that has a row in INPUTS."""
    for kind in type(tower).__mro__:
        if kind in INPUTS:
            return INPUTS[kind](tower, reading)
    raise ConfigError(f"config: nothing makes inputs of a {type(tower).__name__}; give jclip.data.INPUTS a row for it")
