"""Encoded sounds and arrays to the waveform that a tower sees: decoded where it is needed, one channel, one rate, one length."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jclip.config import ConfigError, SoundAugment, SoundTower, Waveform
from jclip.data.augmentations import needs_rng
from jclip.data.reading import MAX_SECONDS, Compose, Reading, Transform
from jclip.data.sound_files import whole_file
from jclip.data.source import BadExample

Generator = np.random.Generator

Samples = NDArray[np.float32]

FORMATS = ("WAV", "WAVEX", "FLAC", "OGG", "MP3", "CAF")
"""Formats that are decoded, by libsndfile's names, recognised by the content and not by a file's name; OGG is Vorbis, Opus or
FLAC. Of others libsndfile reads also what is cut short, and says nothing."""

MARGIN = 512
"""Samples beside a part of a sound that are resampled with it, in those of the lower rate: as far as soxr's filter reaches."""

UNKNOWN_LENGTH = 2**62
"""Samples from here on are libsndfile's word for a length that a file does not say."""

MP3_SLACK = 2 * 1152
"""Samples by which an MP3 may end before its header says: encoders disagree about their delay by a frame or two."""


def sound_transform(tower: SoundTower, reading: Reading) -> Compose:
    """The waveform of a sound, [samples] in the type of the tower: in training of a random part, changed at random.

    Raises:
        ConfigError: the packages that decode sounds are missing.
    """
    needs_packages()
    how, augment = tower.waveform, reading.sound_augment
    steps: list[Transform] = [DecodeSound(how, reading.max_seconds, augment is not None), FitSound(how)]
    if augment is not None and augment != SoundAugment():
        steps.append(ChangeSound(augment))
    return Compose((*steps, AsType(how.dtype)))


LOOKED_THROUGH = Waveform(sample_rate=8_000, seconds=300.0, dtype="float32")
"""The part of a sound that is decoded to see whether it can be read."""


def needs_packages() -> None:
    """Raises ConfigError where the packages that decode and resample sounds are missing."""
    try:
        import soundfile  # noqa: F401
        import soxr  # noqa: F401
    except (ImportError, OSError) as error:  # soundfile raises OSError where there is no libsndfile
        raise ConfigError(f'config: sounds cannot be decoded ({error}); pip install "jclip[sound]"') from None


@dataclass(frozen=True)
class DecodeSound:
    """A sound to f32 [n], n at most waveform.samples: of a longer one a part, of which nothing else is decoded.

    A sound is the bytes of a file, a pair (array [n] or [n, channels], samples a second), or Hugging Face's mapping with "array"
    and "sampling_rate". Integers of 8 (unsigned), 16 and 32 bits are scaled by their range, wider ones, as TensorFlow Datasets
    has them, by that of 16 bits.

    Raises BadExample for what is no sound, is empty, is cut short or damaged where it is decoded, is longer than `max_seconds`,
    or has samples that are not finite.
    """

    waveform: Waveform = Waveform()
    max_seconds: float = MAX_SECONDS
    random: bool = False
    """True: a random part of a longer sound, in place of the one that `waveform.crop` says."""

    def __call__(self, value: Any, rng: Generator | None = None) -> Samples:
        place = needs_rng(rng, self).random() if self.random else None
        if isinstance(value, bytes):
            return self._decoded(value, place)
        if isinstance(value, Mapping) and {"array", "sampling_rate"} <= value.keys():
            value = (value["array"], value["sampling_rate"])
        if isinstance(value, np.ndarray):
            raise BadExample("sound is an array, and nothing says its rate; give a pair (array, samples a second)")
        if not isinstance(value, tuple) or len(value) != 2 or not isinstance(value[0], np.ndarray):
            raise BadExample(f"sound is a {type(value).__name__}, not the bytes of a file or a pair (array, samples a second)")
        return self._of_array(*value, place)

    def _decoded(self, data: bytes, place: float | None) -> Samples:
        import soundfile

        try:
            with soundfile.SoundFile(BytesIO(data)) as file:
                if file.format not in FORMATS:
                    raise BadExample(f"sound is a {file.format} file, not one of {', '.join(FORMATS)}; convert it")
                whole_file(data, file.format)
                return self._part(file.frames, file.samplerate, partial(_read, file), place)
        except BadExample:
            raise
        except Exception as error:  # libsndfile's errors, and nearly anything on foreign bytes, MemoryError too
            why = str(error).replace(repr(data), "").split(">: ")[-1]
            raise BadExample(f"sound of {len(data)} bytes cannot be decoded: {why}") from None

    def _of_array(self, array: NDArray[Any], rate: Any, place: float | None) -> Samples:
        whole = isinstance(rate, int | float | np.integer | np.floating) and not isinstance(rate, bool) and np.isfinite(rate)
        if not whole or not 1 <= rate == int(rate):
            raise BadExample(f"sound has {rate!r} samples a second, which is no whole number")
        if array.ndim not in (1, 2) or array.dtype.kind not in "iuf":
            raise BadExample(f"sound is {array.dtype}{list(array.shape)}, not [n] or [n, channels]")
        if array.ndim == 2 and 0 < array.shape[0] < array.shape[1]:
            raise BadExample(f"sound is {list(array.shape)}, [channels, n] it seems; give its transpose, [n, channels]")
        array = array[:, None] if array.ndim == 1 else array
        return self._part(len(array), int(rate), lambda start, stop: _scaled(array[start:stop]), place)

    def _part(self, length: int, rate: int, read: Callable[[int, int], Samples], place: float | None) -> Samples:
        """The part of a sound that is seen, at the tower's rate; `read` gives samples [n, channels] between two places."""
        how = self.waveform
        if length < 1:
            raise BadExample("sound has no samples")
        if length >= UNKNOWN_LENGTH:
            raise BadExample("sound does not say its length, as when an encoder writes to a pipe; encode it again, to a file")
        if length > self.max_seconds * rate:
            raise BadExample(f"sound has {length / rate:,.0f} seconds, more than {self.max_seconds:,.0f}")
        total = max(1, math.ceil(length * how.sample_rate / rate))
        first = self._first(total - how.samples, place) if total > how.samples else 0
        if rate == how.sample_rate:
            return one_channel(read(first, min(length, first + how.samples)), how.channels)
        # A part is resampled with some samples around it, as its filter reaches them; it begins where samples of both rates
        # coincide, so that the result is that of the whole sound.
        step = math.gcd(how.sample_rate, rate)
        up, down = how.sample_rate // step, rate // step
        margin = math.ceil(MARGIN * max(1.0, rate / how.sample_rate) / down)
        block = max(0, first // up - margin)
        start = block * down
        stop = min(length, math.ceil((first + how.samples) * rate / how.sample_rate) + margin * down)
        part = one_channel(read(start, stop), how.channels)
        found = resampled(part, rate, how.sample_rate)[first - block * up :][: how.samples]
        return found if len(found) else np.zeros(1, np.float32)

    def _first(self, beyond: int, place: float | None) -> int:
        """The first sample that is seen of a sound with so many more than are seen."""
        if place is not None:
            return int(place * (beyond + 1))
        return 0 if self.waveform.crop == "start" else beyond // 2


@dataclass(frozen=True)
class FitSound:
    """f32 [n] to [samples]: a shorter sound is padded or repeated, as the waveform says."""

    waveform: Waveform = Waveform()

    def __call__(self, value: Samples, rng: Generator | None = None) -> Samples:
        size, short = self.waveform.samples, self.waveform.short
        if len(value) < size and short != "pad":
            times = size // len(value) + (short == "repeat")
            value = np.tile(value, times)
        return np.pad(value[:size], (0, max(0, size - len(value))))


@dataclass(frozen=True)
class ChangeSound:
    """The random changes of `SoundAugment`, on f32 [n]: shift, sign, loudness."""

    augment: SoundAugment

    def __call__(self, value: Samples, rng: Generator | None = None) -> Samples:
        rng, how = needs_rng(rng, self), self.augment
        shift, sign, gain = rng.uniform(-how.shift, how.shift), rng.random(), rng.uniform(*how.gain)
        factor = 10 ** (gain / 20) * (-1 if sign < how.invert else 1)
        return np.roll(value, round(shift * len(value))) * np.float32(factor)


@dataclass(frozen=True)
class AsType:
    """f32 [n] as it travels: int16 as LAION-CLAP makes it, x * 32767 rounded towards 0 after a clip to [-1, 1]; or as it is."""

    dtype: str = "int16"

    def __call__(self, value: Samples, rng: Generator | None = None) -> NDArray[Any]:
        if self.dtype == "float32":
            return np.ascontiguousarray(value, np.float32)
        return (np.clip(value, -1, 1) * np.float32(32767)).astype(np.int16)


class SoundFacts(NamedTuple):
    """Facts of a sound as it is stored."""

    format: str
    """Format of its file, as libsndfile calls it; "array" of samples."""
    rate: int
    """Samples a second."""
    channels: int
    seconds: float


def sound_facts(value: Any) -> SoundFacts:
    """Facts of a sound whose first five minutes can be decoded. Raises BadExample where they cannot, or it is none."""
    try:
        needs_packages()
    except ConfigError as problem:
        raise BadExample(str(problem)) from None
    import soundfile

    DecodeSound(LOOKED_THROUGH)(value)
    if isinstance(value, bytes):
        with soundfile.SoundFile(BytesIO(value)) as file:
            return SoundFacts(str(file.format), file.samplerate, file.channels, file.frames / file.samplerate)
    array, rate = (value["array"], value["sampling_rate"]) if isinstance(value, Mapping) else value
    return SoundFacts("array", int(rate), 1 if array.ndim == 1 else array.shape[1], len(array) / rate)


def one_channel(value: Samples, how: str) -> Samples:
    """f32 [n] of [n, channels]: their mean, or the first. Raises BadExample where a sample is not finite."""
    found = value[:, 0] if how == "first" else value.mean(axis=1)
    if not np.isfinite(found).all():
        raise BadExample("sound has samples that are not finite")
    return np.asarray(found, np.float32)


def resampled(value: Samples, rate: float, to: float) -> Samples:
    """f32 [n] at another rate, by soxr's HQ, which librosa takes too."""
    import soxr

    found: Samples = soxr.resample(value, rate, to, quality="HQ")
    return found


def _read(file: Any, start: int, stop: int) -> Samples:
    """f32 [stop - start, channels] of an open file. Raises BadExample where it ends before."""
    if start:
        file.seek(start)
    found: Samples = file.read(stop - start, dtype="float32", always_2d=True)
    missing = stop - start - len(found)
    if missing > (MP3_SLACK if file.format == "MP3" else 0) or not len(found):
        raise BadExample(f"sound is cut short or damaged: it ends after {start + len(found)} of {file.frames} samples")
    return found


def _scaled(value: NDArray[Any]) -> Samples:
    """f32, -1 to 1, of samples of any type."""
    if value.dtype.kind == "f":
        return np.asarray(value, np.float32)
    if value.dtype == np.uint8:
        return (value.astype(np.float32) - 128) / np.float32(128)
    bits = 8 * value.dtype.itemsize if value.dtype in (np.int8, np.int16, np.int32) else 16
    if bits == 16 and value.size and (int(value.max()) > 32767 or int(value.min()) < -32768):
        raise BadExample(f"sound has {value.dtype} samples beyond 16 bits, and nothing says what 1.0 is; give floats, or int32")
    return np.asarray(value / 2.0 ** (bits - 1), np.float32)
