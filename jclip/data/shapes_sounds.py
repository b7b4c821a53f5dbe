"""Sounds of `shapes`: a tone for each object, its shape heard as timbre, its colour as pitch and its size as loudness."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jclip.data.shapes_drawing import COLOURS

RATE = 8_000
"""Samples a second."""

LENGTH = 4_000
"""Samples of a sound: half a second."""

PITCHES = {colour: 150.0 * 2 ** (3 * i / 7) for i, colour in enumerate(COLOURS)}
"""Pitch of each colour in Hz: eight equal steps over three octaves, 5.1 semitones each."""

DETUNE = 0.02
"""Largest change of a pitch, as a fraction: a third of a semitone, so that none is taken for its neighbour."""

LOUDNESS = 1.0
"""Amplitude of an object whose radius is the whole image."""

NOISE = 0.02
"""Largest deviation of the noise behind the tones."""

HARMONICS, HIGHEST = 9, 3_700.0
"""Harmonics end here, by their number and in Hz."""


def sound(objects: Sequence[dict[str, Any]], rng: np.random.Generator) -> tuple[NDArray[np.float32], int]:
    """The sound of a scene (see Shapes for its objects), f32 [LENGTH], and its rate."""
    total = rng.random() * NOISE * rng.standard_normal(LENGTH, np.float32)
    for item in objects:
        pitch = PITCHES[item["colour"]] * (1 + DETUNE * (2 * rng.random() - 1))
        total = total + np.float32(LOUDNESS * item["r"]) * tone(item["shape"], pitch, 2 * rng.random())
    return np.asarray(total, np.float32), RATE


def tone(shape: str, pitch: float, phase: float) -> NDArray[np.float32]:
    """A tone of amplitude 1, f32 [LENGTH], with the timbre of a shape; it begins at `phase`, in turns.

    circle: a sine; square: odd harmonics; star: all harmonics, as a saw tooth; triangle: a fifth; cross: tremolo; ring: vibrato;
    diamond: plucked, which dies away; crescent: a swell, which comes up.
    """
    time = np.arange(LENGTH, dtype=np.float64) / RATE
    turns = np.float32(2 * np.pi) * np.asarray((pitch * time + phase) % 2, np.float32)  # whole turns of a fifth, too
    match shape:
        case "circle":
            wave = np.sin(turns)
        case "square":
            wave = _harmonics(turns, pitch, 2)
        case "star":
            wave = _harmonics(turns, pitch, 1)
        case "triangle":
            wave = np.sin(turns) + np.sin(1.5 * turns)
        case "cross":
            wave = np.sin(turns) * (1 + np.cos(2 * np.pi * 12 * time))
        case "ring":
            wave = np.sin(turns + 0.06 * pitch / 8 * np.sin(2 * np.pi * 8 * time))
        case "diamond":
            wave = _harmonics(turns, pitch, 1) * np.exp(-10 * time)
        case "crescent":
            wave = np.sin(turns) * (time / time[-1]) ** 2
        case _:
            raise ValueError(f"no timbre is that of {shape!r}")
    return np.asarray(wave / np.abs(wave).max(), np.float32)


def _harmonics(turns: NDArray[Any], pitch: float, step: int) -> NDArray[Any]:
    """Every `step`-th harmonic below HIGHEST, the k-th with amplitude 1 / k."""
    total = np.sin(turns)
    for k in range(1 + step, min(HARMONICS, int(HIGHEST / pitch)) + 1, step):
        total += np.sin(k * turns) / k
    return total
