"""Log-mel spectrograms against definitions written out in float64, with an explicit DFT, and beside other libraries."""

import math
import re
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jclip.config import (
    IMAGEBIND_MEL,
    IMAGEBIND_WAVEFORM,
    LAION_FUSED_MEL,
    LAION_MEL,
    LAION_WAVEFORM,
    MSCLAP_2022_MEL,
    MSCLAP_2022_WAVEFORM,
    MSCLAP_2023_MEL,
    MSCLAP_2023_WAVEFORM,
    Mel,
    MeshConfig,
    SpecAugment,
    Waveform,
)
from jclip.models import Backend, as_waveform, log_mel, mask_bands, mel_bank
from jclip.sharding import batch_sharding, make_mesh

DEFINITIONS = {
    "laion": (LAION_WAVEFORM, LAION_MEL, 1001),
    "laion_fused": (LAION_WAVEFORM, LAION_FUSED_MEL, 1001),
    "msclap_2022": (MSCLAP_2022_WAVEFORM, MSCLAP_2022_MEL, 690),
    "msclap_2023": (MSCLAP_2023_WAVEFORM, MSCLAP_2023_MEL, 965),
    "imagebind": (IMAGEBIND_WAVEFORM, IMAGEBIND_MEL, 204),
}
FRAMES = (0, 1, 3, 50, 95)
"""Frames that the explicit DFT computes, of a second of sound."""


def signals(rate: int, seconds: float = 1.0) -> dict[str, np.ndarray]:
    time = np.arange(round(rate * seconds)) / rate
    noise = np.random.default_rng(7).standard_normal(len(time))
    return {
        "noise": 0.1 * noise,
        "sines": 0.3 * np.sin(2 * np.pi * 440 * time) + 0.2 * np.sin(2 * np.pi * 5000 * time) + 1e-3 * noise,
        "silence": np.zeros(len(time)),
        "clipped": np.clip(3 * np.sin(2 * np.pi * 200 * time) + 0.01 * noise, -1, 1),
        "offset": 0.5 + 0.05 * noise,
    }


def mels(hertz: float, scale: str) -> float:
    if scale != "slaney":
        return 1127 * math.log(1 + hertz / 700)
    return 3 * hertz / 200 if hertz < 1000 else 15 + 27 * math.log(hertz / 1000) / math.log(6.4)


@lru_cache
def corner(mel: Mel, number: int) -> float:
    """The frequency of a corner of the filters, by bisection of the scale."""
    low, high = mels(mel.fmin, mel.scale), mels(mel.fmax, mel.scale)
    goal, a, b = low + (high - low) * number / (mel.mels + 1), 0.0, 1e5
    for _ in range(200):
        a, b = ((a + b) / 2, b) if mels((a + b) / 2, mel.scale) < goal else (a, (a + b) / 2)
    return a


def triangle(mel: Mel, number: int, hertz: float) -> float:
    left, middle, right = (corner(mel, number + i) for i in range(3))
    height = 2 / (right - left) if mel.norm == "slaney" else 1.0
    if mel.scale == "kaldi":
        left, middle, right, hertz = (mels(f, "kaldi") for f in (left, middle, right, hertz))
    if not left < hertz < right:
        return 0.0
    return height * ((hertz - left) / (middle - left) if hertz <= middle else (right - hertz) / (right - middle))


def expected(x: np.ndarray, rate: int, mel: Mel) -> np.ndarray:
    """f64 [len(FRAMES), mels] before mean and std, frame by frame: each bin is a sum over samples."""
    n = mel.n_fft
    bank = np.array([[triangle(mel, m, k * rate / n) for m in range(mel.mels)] for k in range(n // 2 + 1)])
    if mel.zero_mean:
        x = x - x.sum() / len(x)
    dft = np.exp(-2j * np.pi * np.outer(np.arange(n // 2 + 1), np.arange(n)) / n)
    found = []
    for i in FRAMES:
        if mel.framing == "kaldi":
            cut = x[i * mel.hop : i * mel.hop + mel.window].copy()
            cut -= cut.sum() / len(cut)
            cut = np.array([cut[t] - mel.pre_emphasis * cut[max(0, t - 1)] for t in range(len(cut))])
            cut *= [0.5 - 0.5 * math.cos(2 * math.pi * t / (mel.window - 1)) for t in range(mel.window)]
        else:
            places = [abs(i * mel.hop - n // 2 + t) for t in range(n)]
            cut = np.array([x[p if p < len(x) else 2 * (len(x) - 1) - p] for p in places])
            start = (n - mel.window) // 2
            inside = [start <= t < start + mel.window for t in range(n)]
            cut *= [0.5 - 0.5 * math.cos(2 * math.pi * (t - start) / mel.window) if ok else 0 for t, ok in enumerate(inside)]
        spectrum = dft[:, : len(cut)] @ cut
        energy = np.maximum(np.abs(spectrum) ** mel.power @ bank, mel.floor)
        found.append(10 * np.log10(energy) if mel.log == "decibel" else np.log(energy))
    return np.array(found)


def closeness(found: Any, right: np.ndarray, mel: Mel) -> tuple[float, float]:
    """Largest difference in dB where power is within 50 dB of the loudest, and of all in a share of the loudest energy."""
    unit = 1.0 if mel.log == "decibel" else 10 / np.log(10)
    found, right = np.asarray(found, np.float64) * unit, right * unit
    loud = right > right.max() - 25 * mel.power
    return np.abs(found - right)[loud].max(), np.abs(10 ** (found / 10) - 10 ** (right / 10)).max() / 10 ** (right.max() / 10)


SMALL = {
    "slaney": (22050, Mel(n_fft=512, window=400, hop=220, mels=20, fmin=60.0, fmax=9000.0)),
    "htk": (16000, Mel(n_fft=512, window=512, hop=160, mels=20, scale="htk", norm="none", fmax=8000.0, power=1)),
    "kaldi": (16000, replace(IMAGEBIND_MEL, mels=24, frames=None, mean=0.0, std=1.0)),
}


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
@pytest.mark.parametrize("name", SMALL)
def test_spectrograms_are_those_of_an_explicit_dft_in_float64(name: str, platform: str) -> None:
    rate, mel = SMALL[name]
    waves = signals(rate)
    found = jax.jit(lambda x: log_mel(x, mel, rate, Backend(platform)))(np.stack(list(waves.values())).astype(np.float32))
    for kind, logs in zip(waves, found, strict=True):
        db, share = closeness(logs[jnp.array(FRAMES)], expected(waves[kind].astype(np.float32).astype(float), rate, mel), mel)
        assert db < 1e-4 * (5 if kind == "offset" else 1), (kind, db)
        assert share < 3e-6, (kind, share)


@pytest.mark.parametrize("name", DEFINITIONS)
def test_published_definitions_have_their_number_of_frames(name: str) -> None:
    waveform, mel, frames = DEFINITIONS[name]
    x = jax.ShapeDtypeStruct((2, waveform.samples), jnp.float32)
    assert jax.eval_shape(lambda x: log_mel(x, mel, waveform.sample_rate), x).shape == (2, frames, mel.mels)
    assert mel.frames_of(waveform.samples) == frames


@pytest.mark.parametrize("samples", [1025, 1439, 1440, 1441, 4800])
@pytest.mark.parametrize("mel", [LAION_MEL, replace(IMAGEBIND_MEL, frames=None)], ids=["centred", "kaldi"])
def test_frames_are_counted_as_they_are_made(samples: int, mel: Mel) -> None:
    x = jax.ShapeDtypeStruct((1, samples), jnp.float32)
    assert jax.eval_shape(lambda x: log_mel(x, mel, 48000), x).shape[1] == mel.frames_of(samples)


@pytest.mark.parametrize("name", DEFINITIONS)
def test_a_sine_peaks_in_the_filter_around_its_frequency(name: str) -> None:
    waveform, mel, _ = DEFINITIONS[name]
    x = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(waveform.samples) / waveform.sample_rate)
    part = jnp.asarray(x[None, : waveform.samples // 3], jnp.float32)
    logs = jax.jit(lambda x: log_mel(x, replace(mel, frames=None), waveform.sample_rate))(part)[0, 50]
    peak = int(logs.argmax())
    hertz = 1000 * (32_000 / 44_100 if name == "msclap_2023" else 1)  # it takes its sounds for such of 32 kHz
    middles = [corner(mel, i + 1) for i in range(mel.mels)]
    assert peak in np.argsort(np.abs(np.array(middles) - hertz))[:2]
    assert corner(mel, peak) < hertz < corner(mel, peak + 2)


def test_the_filters_of_msclap_2023_are_those_of_another_rate_than_its_sounds() -> None:
    """The filters of msclap 1.3.4's code: of 32 kHz, 50 to 14,000 Hz; the fmax of 8000 in its configuration reaches no code."""
    here, there = mel_bank(MSCLAP_2023_MEL, 44_100), mel_bank(replace(MSCLAP_2022_MEL, hop=320), 32_000)
    right = np.array([[triangle(LAION_MEL, m, k * 32_000 / 1024) for m in range(64)] for k in range(513)])
    np.testing.assert_allclose(here, right, atol=1e-12)
    np.testing.assert_array_equal(here, there)
    np.testing.assert_array_equal(np.flatnonzero(here.any(axis=1))[[0, -1]], [2, 447])  # 86 and 19,251 Hz of 44.1 kHz


@pytest.mark.parametrize("name", ["laion", "msclap_2023", "imagebind"])
def test_silence_is_minus_100_db_and_gradients_there_are_zero(name: str) -> None:
    waveform, mel, _ = DEFINITIONS[name]
    mel = replace(mel, mean=0.0, std=1.0)

    @jax.jit
    def gradient_and_logs(x: Any) -> Any:
        def total(x: Any) -> Any:
            logs = log_mel(x, mel, waveform.sample_rate)
            return logs.sum(), logs

        return jax.grad(total, has_aux=True)(x)

    gradient, logs = gradient_and_logs(jnp.zeros((1, waveform.sample_rate // 10)))
    assert np.allclose(logs[:, :8], -100.0 if name != "imagebind" else math.log(2.0**-23), atol=1e-4)
    assert not gradient.any()


def test_gradients_of_magnitudes_are_finite_at_silence() -> None:
    rate, mel = SMALL["htk"]
    assert np.isfinite(jax.jit(jax.grad(lambda x: log_mel(x, mel, rate).sum()))(jnp.zeros((1, 1600)))).all()


def test_gradients_are_those_of_finite_differences() -> None:
    rate, mel = SMALL["kaldi"]
    x = jnp.asarray(signals(rate, 0.1)["noise"], jnp.float32)[None]
    direction = jnp.asarray(np.random.default_rng(1).standard_normal(x.shape), jnp.float32)

    def f(x: Any) -> Any:
        return log_mel(x, mel, rate).sum()

    f = jax.jit(f)
    slope = float((jax.grad(f)(x) * direction).sum())
    assert slope == pytest.approx(float(f(x + 1e-4 * direction) - f(x - 1e-4 * direction)) / 2e-4, rel=1e-2)


def test_frames_that_are_missing_are_zeros_before_the_normalisation() -> None:
    x = jnp.asarray(signals(16000, 2.0)["noise"], jnp.float32)[None]
    logs, fewer = (
        jax.jit(lambda x, mel=mel: log_mel(x, mel, 16000))(x) for mel in (IMAGEBIND_MEL, replace(IMAGEBIND_MEL, frames=100))
    )
    assert np.allclose(logs[:, 198:], 4.268 / 9.138)
    assert not np.allclose(logs[:, 197], 4.268 / 9.138, atol=0.1)
    np.testing.assert_allclose(fewer, logs[:, :100], atol=1e-6)


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_no_device_sees_the_rows_of_another(platform: str) -> None:
    """XLA's partitioner gathers what an FFT transforms."""
    mesh = make_mesh(MeshConfig(4, 2))
    rate, mel = SMALL["slaney"]
    x = jax.ShapeDtypeStruct((16, 4000), jnp.float32, sharding=batch_sharding(mesh))
    compiled = jax.jit(lambda x: log_mel(x, mel, rate, Backend(platform, mesh=mesh)), out_shardings=batch_sharding(mesh)).lower(x)
    assert not re.findall(r"all-gather|all-to-all|collective-permute|all-reduce", compiled.compile().as_text())
    waves = np.random.default_rng(0).standard_normal((16, 4000)).astype(np.float32)
    apart = jax.jit(lambda x: log_mel(x, mel, rate, Backend(platform, mesh=mesh)))(jax.device_put(waves, batch_sharding(mesh)))
    np.testing.assert_allclose(apart, jax.jit(lambda x: log_mel(x, mel, rate, Backend(platform)))(waves), atol=1e-4)


def test_int16_is_a_waveform_of_full_scale_32767_and_other_inputs_are_refused() -> None:
    how = Waveform(8000, 0.001)
    whole = jnp.array([[32767, -32767, 0, 1, 2, 3, 4, 5]], jnp.int16)
    np.testing.assert_allclose(as_waveform(whole, how)[0, :4], [1, -1, 0, 1 / 32767])
    with pytest.raises(ValueError, match=r"shape \(1, 7\) is not \[b, 8\], 0.001 s at 8000 Hz"):
        as_waveform(whole[:, :7], how)
    with pytest.raises(ValueError, match="int32 is neither int16 nor a float"):
        as_waveform(whole.astype(jnp.int32), how)


def test_masks_are_bands_of_the_row_alone() -> None:
    how, key = SpecAugment(time_masks=2, time_width=10, mel_masks=1, mel_width=6), jax.random.key(3)
    logs = jnp.ones((400, 40, 16))
    mask = jax.jit(partial(mask_bands, how=how))
    masked = np.asarray(mask(key, jnp.arange(400), logs)) == 0
    some = jnp.array([17, 3])
    np.testing.assert_array_equal(np.asarray(mask(jax.random.key(3), some, logs[:2])) == 0, masked[np.array([17, 3])])
    frames, mels_ = masked.all(axis=2), masked.all(axis=1)
    np.testing.assert_array_equal(masked, frames[:, :, None] | mels_[:, None, :])  # whole bands, and nothing else
    widths = mels_.sum(axis=1)  # one mask each: its mels are neighbours
    assert {int(w) for w in widths} == set(range(7))
    assert abs(np.mean(widths) - 3) < 0.4
    assert ((np.diff(mels_.astype(int), axis=1) == 1).sum(axis=1) + mels_[:, 0] <= 1).all()
    assert frames.sum(axis=1).max() <= 20
    assert mels_.any(axis=0).all()
    assert frames.any(axis=0).all()


def test_filters_have_the_area_or_the_height_that_their_norm_says() -> None:
    heights = mel_bank(replace(LAION_FUSED_MEL, n_fft=2**15), 48000).max(axis=0)
    np.testing.assert_allclose(heights, 1, atol=0.06)
    areas = mel_bank(replace(LAION_MEL, n_fft=2**15), 48000).sum(axis=0) * 48000 / 2**15
    np.testing.assert_allclose(areas, 1, atol=0.01)


@pytest.mark.parity
@pytest.mark.parametrize("name", ["laion", "laion_fused", "msclap_2022", "msclap_2023"])
def test_spectrograms_are_those_of_librosa(name: str) -> None:
    librosa = pytest.importorskip("librosa", reason="the extra parity is not installed")
    waveform, mel, frames = DEFINITIONS[name]
    rate = waveform.sample_rate
    for kind, x in signals(rate, waveform.seconds).items():
        x32 = x.astype(np.float32)
        power = (
            np.abs(librosa.stft(x32.astype(np.float64), n_fft=1024, hop_length=mel.hop, window="hann", pad_mode="reflect")) ** 2
        )
        energy = librosa.feature.melspectrogram(
            S=power,
            sr=mel.filter_rate or rate,
            n_fft=1024,
            n_mels=64,
            fmin=50,
            fmax=mel.fmax,
            htk=mel.scale == "htk",
            norm="slaney" if mel.norm == "slaney" else None,
            dtype=np.float64,
        )
        right = librosa.power_to_db(energy, ref=1.0, amin=1e-10, top_db=None).T
        found = log_mel(jnp.asarray(x32)[None], mel, rate)[0]
        assert found.shape == right.shape == (frames, 64)
        db, share = closeness(found, right, mel)
        assert db < (5e-4 if kind == "offset" else 1e-4), kind
        assert share < 3e-6


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore:At least one mel filter:UserWarning")
def test_the_spectrogram_of_imagebind_is_kaldis_of_transformers() -> None:
    audio = pytest.importorskip("transformers.audio_utils", reason="the extra parity is not installed")
    bank = audio.mel_filter_bank(
        num_frequency_bins=257,
        num_mel_filters=128,
        min_frequency=20,
        max_frequency=8000,
        sampling_rate=16000,
        norm=None,
        mel_scale="kaldi",
        triangularize_in_mel_space=True,
    )
    window = audio.window_function(400, "hann", periodic=False)
    for kind, x in signals(16000, 2.0).items():
        x32 = x.astype(np.float32)
        right = audio.spectrogram(
            x32.astype(np.float64) - x32.astype(np.float64).mean(),
            window,
            frame_length=400,
            hop_length=160,
            fft_length=512,
            power=2.0,
            center=False,
            preemphasis=0.97,
            mel_filters=bank,
            log_mel="log",
            mel_floor=2.0**-23,
            remove_dc_offset=True,
            dtype=np.float64,
        ).T
        found = log_mel(jnp.asarray(x32)[None], replace(IMAGEBIND_MEL, mean=0.0, std=1.0), 16000)[0]
        db, share = closeness(found[:198], right, IMAGEBIND_MEL)
        assert db < 1e-3, kind
        assert share < 3e-6, kind
