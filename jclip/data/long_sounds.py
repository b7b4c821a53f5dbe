"""The input of a tower that fuses parts of a long sound with all of it: the whole sound, and how long it is."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jclip.config import HtsatTower, SoundAugment
from jclip.data.reading import Compose, Reading, Transform
from jclip.data.sounds import AsType, ChangeSound, DecodeSound, FitSound, Generator, Samples, needs_packages


def long_transform(tower: HtsatTower, reading: Reading) -> Compose:
    """See `FitLong`. Raises ConfigError where the packages that decode sounds are missing."""
    needs_packages()
    assert tower.fused_seconds is not None
    how, augment = tower.waveform, reading.sound_augment
    whole = replace(how, seconds=tower.fused_seconds)
    steps: list[Transform] = [DecodeSound(whole, reading.max_seconds, augment is not None)]
    if augment is not None and augment != SoundAugment():
        steps.append(ChangeSound(augment))
    return Compose((*steps, FitLong(tower)))


@dataclass(frozen=True)
class FitLong:
    """f32 [n] to the input of a tower with fusion, f32 [HtsatTower.input()]: the sound, its end reflected, zeros, its length.

    A sound shorter than the waveform becomes as long as that, padded or repeated. The last number is the length in samples. The
    reflection is that of centred frames, so that those at the end are the same however long the input is.
    """

    tower: HtsatTower

    def __call__(self, value: Samples, rng: Generator | None = None) -> NDArray[Any]:
        how, (size,) = self.tower.waveform, self.tower.input()[0]
        value = FitSound(how)(value) if len(value) < how.samples else value
        if how.dtype == "int16":
            value = AsType()(value).astype(np.float32) / np.float32(32767)
        row = np.zeros(size, np.float32)
        row[: len(value)] = value
        margin = self.tower.mel.n_fft // 2
        row[len(value) : len(value) + margin] = value[-margin - 1 : -1][::-1]
        row[-1] = len(value)
        return row
