"""The beginning of every tower of sounds: waveforms to log-mel spectrograms, on the device and in float32."""

from functools import lru_cache
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from numpy.typing import NDArray

from jclip.config import Mel, SpecAugment, Waveform
from jclip.models.compute import Backend
from jclip.models.layers import along_last, uniform_of_rows

FULL_SCALE = 32767
"""The int16 that is 1.0, as in LAION-CLAP."""


def as_waveform(sounds: Array, waveform: Waveform) -> Array:
    """f32 [b, n], -1 to 1, of sounds [b, n] in int16, of which 32767 is 1.0, or in floats.

    Raises:
        ValueError: they have another length or type.
    """
    if sounds.shape[1:] != (waveform.samples,):
        raise ValueError(
            f"sound: shape {sounds.shape} is not [b, {waveform.samples}], {waveform.seconds} s at {waveform.sample_rate} Hz"
        )
    if sounds.dtype == jnp.int16:
        return sounds.astype(jnp.float32) / FULL_SCALE
    if not jnp.issubdtype(sounds.dtype, jnp.floating):
        raise ValueError(f"sound: {sounds.dtype} is neither int16 nor a float")
    return sounds.astype(jnp.float32)


def log_mel(x: Array, mel: Mel, sample_rate: int, backend: Backend = Backend()) -> Array:
    """The log-mel spectrogram f32 [b, frames, mels] of waveforms f32 [b, n], normalised by mean and std.

    Energies below `mel.floor` become it before the logarithm, so that the gradient at silence is 0 and never NaN.
    """
    if mel.zero_mean:
        x = x - x.mean(axis=1, keepdims=True)
    if mel.framing == "centred":
        x = jnp.pad(x, ((0, 0), (mel.n_fft // 2, mel.n_fft // 2)), mode="reflect")
    energies = _energies(x, mel, sample_rate, backend)
    logs = jnp.log(jnp.maximum(energies, mel.floor)) * (10 / np.log(10) if mel.log == "decibel" else 1.0)
    if mel.frames is not None:
        logs = jnp.pad(logs[:, : mel.frames], ((0, 0), (0, max(0, mel.frames - logs.shape[1])), (0, 0)))
    return (logs - mel.mean) / mel.std


def _energies(x: Array, mel: Mel, sample_rate: int, backend: Backend) -> Array:
    """f32 [b, frames, mels] of waveforms that are padded already."""
    bank = mel_bank(mel, sample_rate)
    if backend.platform == "tpu":
        # A product with the bins that filters see, 1.2 GFLOP for 10 s at 48 kHz in LAION-CLAP's definition, is 1% of a ViT-B's
        # forward and backward pass, and what matrix units are for. Which is faster on a TPU has not been measured.
        used = np.flatnonzero(bank.any(axis=1))
        matrix, bank = frame_matrix(mel)[:, used], bank[used]
        parts = (jnp.asarray(part, jnp.float32) for part in (matrix.real, matrix.imag))
        taken = frames(x, matrix.shape[0], mel.hop)
        real, imaginary = (jnp.matmul(taken, part, precision=lax.Precision.HIGHEST) for part in parts)
        power = real**2 + imaginary**2
    else:
        devices = 1 if backend.mesh is None else backend.mesh.size
        alone = len(x) % devices == 0  # rows that devices cannot share, as no batch of training has, are not on any of them alone
        # The partitioner would gather the batch for an FFT.
        power = backend.by_rows(lambda x: _power_by_fft(x, mel))(x) if alone else _power_by_fft(x, mel)
    if mel.power == 1:
        power = jnp.sqrt(jnp.maximum(power, 1e-30))
    return jnp.matmul(power, jnp.asarray(bank, jnp.float32), precision=lax.Precision.HIGHEST)


def _power_by_fft(x: Array, mel: Mel) -> Array:
    """Squared magnitudes f32 [b, frames, n_fft / 2 + 1]."""
    taken = frames(x, mel.n_fft if mel.framing == "centred" else mel.window, mel.hop)
    if mel.framing == "kaldi":
        taken = taken - taken.mean(axis=2, keepdims=True)
        before = jnp.concatenate([taken[:, :, :1], taken[:, :, :-1]], axis=2)
        taken = taken - mel.pre_emphasis * before
    spectrum = jnp.fft.rfft(taken * along_last(jnp.asarray(window_of(mel), jnp.float32), taken), mel.n_fft)
    return spectrum.real**2 + spectrum.imag**2


def frames(x: Array, length: int, hop: int) -> Array:
    """[b, n] -> [b, 1 + (n - length) // hop, length]: `length` samples each, `hop` apart, of all those that fit.

    They are slices of rows of `hop` samples, side by side: no gather.
    """
    count, rows = 1 + (x.shape[1] - length) // hop, -(-length // hop)
    total = (count + rows - 1) * hop
    x = jnp.pad(x, ((0, 0), (0, max(0, total - x.shape[1]))))[:, :total].reshape(len(x), -1, hop)
    return jnp.concatenate([x[:, row : row + count] for row in range(rows)], axis=2)[:, :, :length]


def window_of(mel: Mel) -> NDArray[Any]:
    """The window of a frame: [n_fft], periodic and in its middle; or [window], symmetric, of Kaldi's."""
    if mel.framing == "kaldi":
        return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(mel.window) / (mel.window - 1))
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(mel.window) / mel.window)
    before = (mel.n_fft - mel.window) // 2
    return np.pad(window, (before, mel.n_fft - mel.window - before))


@lru_cache(maxsize=16)
def frame_matrix(mel: Mel) -> NDArray[Any]:
    """All that is linear from a frame to its spectrum as one matrix, c128 [length of a frame, n_fft / 2 + 1]."""
    window = window_of(mel)
    length = len(window)
    matrix = np.fft.rfft(np.diag(window), mel.n_fft, axis=1)
    if mel.framing == "kaldi":
        emphasis = np.eye(length) - mel.pre_emphasis * np.eye(length, k=-1)
        emphasis[0, 0] = 1 - mel.pre_emphasis
        matrix = (np.eye(length) - 1 / length) @ emphasis.T @ matrix
    return matrix


@lru_cache(maxsize=16)
def mel_bank(mel: Mel, sample_rate: int) -> NDArray[Any]:
    """Triangular filters f64 [n_fft / 2 + 1, mels], whose corners are equally far apart on the mel scale."""
    bins = np.arange(mel.n_fft // 2 + 1) * ((mel.filter_rate or sample_rate) / mel.n_fft)
    low, high = (to_mels(np.array(hertz), mel.scale) for hertz in (mel.fmin, mel.fmax))
    corners = np.linspace(low, high, mel.mels + 2)
    if mel.scale == "kaldi":
        places = to_mels(bins, mel.scale)
    else:
        places, corners = bins, from_mels(corners, mel.scale)
    left, middle, right = corners[:-2], corners[1:-1], corners[2:]
    rising = (places[:, None] - left) / (middle - left)
    falling = (right - places[:, None]) / (right - middle)
    bank = np.maximum(0, np.minimum(rising, falling))
    return bank * (2 / (right - left)) if mel.norm == "slaney" else bank


def to_mels(hertz: NDArray[Any], scale: str) -> NDArray[Any]:
    """Mels of frequencies. Slaney's (Auditory Toolbox, 1998) have 200/3 Hz each below 1 kHz, and from there on 27 are a factor of
    6.4; HTK's are 2595 log10(1 + f / 700), and Kaldi's 1127 ln(1 + f / 700)."""
    if scale == "htk":
        return 2595 * np.log10(1 + hertz / 700)
    if scale == "kaldi":
        return 1127 * np.log1p(hertz / 700)
    return np.where(hertz < 1000, hertz * 3 / 200, 15 + 27 * np.log(np.maximum(hertz, 1000) / 1000) / np.log(6.4))


def from_mels(mels: NDArray[Any], scale: str) -> NDArray[Any]:
    """The inverse of `to_mels`, of Slaney's and HTK's."""
    if scale == "htk":
        return 700 * (10 ** (mels / 2595) - 1)
    return np.where(mels < 15, mels * 200 / 3, 1000 * np.exp((np.maximum(mels, 15) - 15) * np.log(6.4) / 27))


def mask_bands(key: Array, rows: Array, logs: Array, how: SpecAugment) -> Array:
    """[b, frames, mels] with zeros in random bands of frames and of mels: row i's are a function of the key and of rows[i]."""
    if not how.active:
        return logs
    draws = uniform_of_rows(key, rows, (how.time_masks + how.mel_masks, 2))
    frames = _bands(draws[:, : how.time_masks], logs.shape[1], how.time_width)
    mels = _bands(draws[:, how.time_masks :], logs.shape[2], how.mel_width)
    return jnp.where(frames[:, :, None] | mels[:, None, :], 0, logs)


def _bands(draws: Array, length: int, most: int) -> Array:
    """bool [b, length], True within a band: draws [b, n, 2] are the width, 0 to `most`, and the place of each."""
    width = jnp.floor(draws[:, :, 0] * (min(most, length) + 1))
    start = jnp.floor(draws[:, :, 1] * (length - width + 1))
    place = jnp.arange(length, dtype=jnp.float32)[None, None]
    return ((place >= start[:, :, None]) & (place < (start + width)[:, :, None])).any(axis=1)
