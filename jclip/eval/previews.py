"""Examples as pages show them: a small picture of an image; the spectrogram of a sound, and a player of its beginning."""

import base64
import io
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from jclip.config import Mel, SensorTower, SoundTower, Tower, Waveform
from jclip.data import BadExample, Source, eval_transform, find
from jclip.data.decoding import Decode
from jclip.data.sounds import DecodeSound, FitSound, resampled
from jclip.models.mel import as_waveform, log_mel

SIDE = 96
"""Pixels of the longer side of a thumbnail of an image."""

SPECTROGRAM = (160, 96)
"""Width and height of the picture of a sound, in pixels."""

HEARD = Waveform(sample_rate=16_000, seconds=10.0, short="pad", dtype="float32")
"""The part of a sound that a player has: of more rate or length nothing is in a page."""

HEARD_MEL = Mel(window=512, n_fft=1024, hop=160, mels=64, fmin=50.0, fmax=8000.0)
"""Spectrogram of a sound that no tower sees."""

SHOWN_DECIBELS = 80.0
"""From black to white."""

RAMP = np.array([(0, 0, 8), (60, 15, 110), (170, 45, 110), (240, 120, 55), (252, 253, 191)], np.float64)
"""Colours of a spectrogram from faint to loud, at equal distances."""


class Preview(NamedTuple):
    """An example as a page shows it."""

    image: str
    """Data URL of a picture."""
    sound: str = ""
    """Data URL of a sound; empty where there is none."""

    def facts(self) -> dict[str, str]:
        """Its parts that there are, by name."""
        return {"image": self.image, **({"sound": self.sound} if self.sound else {})}


def preview(source: Source, index: int, field: str, tower: Tower) -> Preview | None:
    """An example as a page shows what a tower sees of it; None where its field holds neither an image nor a sound."""
    try:
        value = find(source[index], field).value
        if isinstance(tower, SoundTower):
            return Preview(spectrogram(eval_transform(tower)(value), tower), player(value))
        if isinstance(tower, SensorTower):
            return Preview(measured(eval_transform(tower)(value)))
        return Preview(thumbnail(value))
    except (BadExample, TypeError, ValueError):
        return None


def thumbnail(image: Any, side: int = SIDE) -> str:
    """Data URL of a small JPEG of an image, encoded or an array. Raises BadExample, TypeError or ValueError where it is none."""
    small = Image.fromarray(np.asarray(Decode()(image)))
    small.thumbnail((side, side))
    return _url("image/jpeg", small.convert("RGB"), quality=80)


def measured(values: Any, side: int = SIDE) -> str:
    """Data URL of a grey PNG of what a sensor tower sees, [H, W, 1] or [channels, n], from its least value to its greatest."""
    rows = np.asarray(values, np.float64)
    rows = rows[:, :, 0] if rows.ndim == 3 else rows
    level = (rows - rows.min()) / max(float(np.ptp(rows)), 1e-12)
    image = Image.fromarray((255 * level).round().astype(np.uint8)).resize((side, side), Image.Resampling.BOX)
    return _url("image/png", image)


def sound_preview(value: Any) -> Preview:
    """Spectrogram and player of a sound that no tower sees. Raises BadExample where it is none."""
    samples = DecodeSound(HEARD)(value)
    energies = _energies(FitSound(HEARD)(samples), HEARD, HEARD_MEL)
    return Preview(_picture(energies[: HEARD_MEL.frames_of(len(samples))]), _encoded(samples, HEARD.sample_rate))


def spectrogram(row: NDArray[Any], tower: SoundTower) -> str:
    """Data URL of a PNG of what a tower sees of a sound: mels from low to high upwards, time to the right.

    Args:
        row: input of the tower, [samples]; of a longer one, as those that fuse parts take it, the beginning.
        tower: its own spectrogram is drawn; of a tower without one HEARD_MEL.
    """
    own = getattr(tower, "mel", None)
    mel = own if isinstance(own, Mel) else _fitting(tower.waveform)
    return _picture(_energies(row[: tower.waveform.samples], tower.waveform, mel))


def player(value: Any) -> str:
    """Data URL of the beginning of a sound, of one channel, as a browser plays it. Raises BadExample where it is none."""
    return _encoded(DecodeSound(HEARD)(value), HEARD.sample_rate)


def player_of(row: NDArray[Any], waveform: Waveform) -> str:
    """Data URL of the input of a tower, [samples], as a browser plays it."""
    samples = np.asarray(as_waveform(jnp.asarray(row[: waveform.samples])[None], waveform))[0]
    if waveform.sample_rate > HEARD.sample_rate:
        samples = resampled(samples, waveform.sample_rate, HEARD.sample_rate)
    rate = min(waveform.sample_rate, HEARD.sample_rate)
    return _encoded(samples[: round(HEARD.seconds * rate)], rate)


def _fitting(waveform: Waveform) -> Mel:
    """HEARD_MEL for a waveform of another rate."""
    factor = waveform.sample_rate / HEARD.sample_rate
    size = max(4, 2 ** round(np.log2(HEARD_MEL.n_fft * factor)))
    nyquist = waveform.sample_rate / 2
    return Mel(n_fft=size, window=size // 2, hop=max(1, size // 6), mels=HEARD_MEL.mels, fmin=50.0, fmax=min(8000.0, nyquist))


@lru_cache(maxsize=8)
def _log_mel(waveform: Waveform, mel: Mel) -> Any:
    return jax.jit(lambda row: log_mel(as_waveform(row[None], waveform), mel, waveform.sample_rate)[0])


def _energies(row: NDArray[Any], waveform: Waveform, mel: Mel) -> NDArray[np.float64]:
    """Log energies in decibels, [frames, mels]."""
    logs = np.asarray(_log_mel(waveform, mel)(jnp.asarray(row)), np.float64) * mel.std + mel.mean
    return logs if mel.log == "decibel" else logs * 10 / np.log(10)


def _picture(energies: NDArray[np.float64]) -> str:
    loud = energies.max() - SHOWN_DECIBELS
    level = np.clip((energies - loud) / SHOWN_DECIBELS, 0, 1).T[::-1]
    if np.ptp(energies) < 1e-6:  # silence has no loudest place
        level = np.zeros_like(level)
    places = np.linspace(0, 1, len(RAMP))
    pixels = np.stack([np.interp(level, places, channel) for channel in RAMP.T], axis=-1).round().astype(np.uint8)
    image = Image.fromarray(pixels).resize(SPECTROGRAM, Image.Resampling.BOX if pixels.shape[1] > SPECTROGRAM[0] else None)
    return _url("image/png", image)


def _encoded(samples: NDArray[np.float32], rate: int) -> str:
    """MP3, which every browser plays, or where libsndfile cannot write it WAV."""
    import soundfile

    for kind, mime in (("MP3", "audio/mpeg"), ("WAV", "audio/wav")):
        file = io.BytesIO()
        try:
            soundfile.write(file, np.clip(samples, -1, 1), rate, format=kind)
        except (ValueError, TypeError, soundfile.LibsndfileError):
            continue
        return f"data:{mime};base64,{base64.b64encode(file.getvalue()).decode()}"
    raise BadExample("sound cannot be written as a file")


def _url(mime: str, image: Image.Image, **options: Any) -> str:
    file = io.BytesIO()
    image.save(file, mime.partition("/")[2].upper(), **options)
    return f"data:{mime};base64,{base64.b64encode(file.getvalue()).decode()}"
