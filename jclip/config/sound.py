"""The dataclasses of sounds: waveforms, log-mel spectrograms, their definitions in published models, and a tower of them."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from jclip.config.ranges import Range, Size
from jclip.config.towers import MAX_TOKENS, Activation, Layers, Projection, Tower, head_problems, hidden_problems

Hertz = Annotated[float, Range(least=0, most=400_000)]

Count = Annotated[int, Range(least=0, most=1000)]

MAX_SAMPLES = 2**26
"""Samples of a waveform, at most: 23 minutes at 48 kHz."""


@dataclass(frozen=True)
class Waveform:
    """The waveform that a tower sees: every sound becomes so many samples, of one channel, at one rate."""

    sample_rate: Annotated[int, Range(least=1000, most=400_000)] = 48_000
    """Samples a second; sounds of other rates are resampled (soxr's HQ, librosa's default)."""
    seconds: Annotated[float, Range(above=0, most=3600)] = 10.0
    """Length. Of a longer sound a part is seen: in training at random, in evaluations the one that `crop` says."""
    short: Literal["repeat_pad", "repeat", "pad"] = "repeat_pad"
    """A shorter sound is followed by zeros (pad), by itself as often as it fits whole and then zeros (repeat_pad, LAION-CLAP),
    or by itself until the end (repeat, MS-CLAP)."""
    crop: Literal["start", "middle"] = "start"
    """Part of a longer sound that evaluations see. The references crop at random there too."""
    channels: Literal["mean", "first"] = "mean"
    """One channel of several: their mean, or the first (ImageBind)."""
    dtype: Literal["int16", "float32"] = "int16"
    """Type in which samples travel to the device. int16: x * 32767 rounded towards 0 after a clip to [-1, 1], as LAION-CLAP does
    to its inputs; half the bytes."""

    @property
    def samples(self) -> int:
        """Number of samples."""
        return round(self.sample_rate * self.seconds)

    def problems(self) -> Iterator[str]:
        """Contradictions, each after the place of this dataclass."""
        if not 1 <= self.samples <= MAX_SAMPLES:
            yield f".seconds {self.seconds} at {self.sample_rate} Hz are {self.samples:,} samples; use 1 to {MAX_SAMPLES:,}"


@dataclass(frozen=True)
class Mel:
    """A log-mel spectrogram. Published models differ in nearly every field; LAION_MEL, MSCLAP_2023_MEL, ... have theirs."""

    n_fft: Annotated[int, Range(least=2, most=2**16)] = 1024
    """Length of the Fourier transform, in samples."""
    window: Annotated[int, Range(least=2, most=2**16)] = 1024
    """Length of the window, at most n_fft."""
    hop: Annotated[int, Range(least=1, most=2**16)] = 480
    """Samples from one frame to the next."""
    mels: Annotated[int, Range(least=1, most=4096)] = 64
    """Number of mel filters."""
    fmin: Hertz = 50.0
    """Lower end of the first filter, in Hz."""
    fmax: Hertz = 14_000.0
    """Upper end of the last filter, in Hz; at most half of the sample rate."""
    filter_rate: Annotated[int, Range(least=1000, most=400_000)] | None = None
    """Rate that the filters are made for, where it is not the waveform's: frequencies are then those of that rate (MS-CLAP 2023
    hears 44.1 kHz by filters for 32); None: the waveform's."""
    scale: Literal["slaney", "htk", "kaldi"] = "slaney"
    """Mel scale: Slaney's, linear up to 1 kHz (librosa, torchlibrosa); HTK's; or Kaldi's, which is HTK's with filters that are
    triangles in mels instead of in Hz."""
    norm: Literal["slaney", "none"] = "slaney"
    """slaney: each filter has area 1 (in Hz, up to a constant); none: height 1."""
    framing: Literal["centred", "kaldi"] = "centred"
    """centred: frame i has its middle at sample i * hop, the signal is reflected at both ends, the window is a periodic Hann.
    kaldi: only frames that fit whole; of each the mean is taken out, then pre-emphasis, then a symmetric Hann window, and zeros
    up to n_fft."""
    pre_emphasis: Annotated[float, Range(least=0, most=1)] = 0.0
    """x[t] - a * x[t-1] within a frame, of framing="kaldi" (its default: 0.97)."""
    zero_mean: bool = False
    """Mean of the whole waveform is taken out before (ImageBind)."""
    power: Literal[1, 2] = 2
    """Power of the magnitudes that filters sum."""
    log: Literal["decibel", "natural"] = "decibel"
    """decibel: 10 log10; natural: ln."""
    floor: Annotated[float, Range(above=0, most=1)] = 1e-10
    """Energies are at least so large; silence is its logarithm (-100 dB), and its gradient is 0."""
    frames: Size | None = None
    """Number of frames: zeros follow the log energies, or the last ones are cut (ImageBind: 204); None: as many as there are."""
    mean: Annotated[float, Range(least=-1000, most=1000)] = 0.0
    """Mean of the log energies, which is taken out."""
    std: Annotated[float, Range(least=1e-3, most=1000)] = 1.0
    """Standard deviation, by which they are divided."""

    def frames_of(self, samples: int) -> int:
        """Number of frames of a waveform."""
        if self.frames is not None:
            return self.frames
        if self.framing == "kaldi":
            return max(0, 1 + (samples - self.window) // self.hop)
        return 1 + samples // self.hop

    def problems(self) -> Iterator[str]:
        """Contradictions, each after the place of this dataclass."""
        if self.window > self.n_fft:
            yield f".window {self.window} is longer than n_fft {self.n_fft}; use {self.n_fft} at most"
        if self.framing == "centred" and self.n_fft % 2:
            yield f".n_fft {self.n_fft} is odd, and a frame has its middle at a sample; use {self.n_fft - 1} or {self.n_fft + 1}"
        if self.fmin >= self.fmax:
            yield f".fmin {self.fmin} is not below fmax {self.fmax}"
        if self.pre_emphasis and self.framing != "kaldi":
            yield f".pre_emphasis {self.pre_emphasis} is of framing='kaldi'; use 0, or that framing"
        if self.scale == "kaldi" and self.norm != "none":
            yield f".norm {self.norm!r}: Kaldi's filters have none; use norm='none'"


@dataclass(frozen=True)
class SpecAugment:
    """Masks of a spectrogram in training (Park et al. 2019, SpecAugment, section 2; without its time warping).

    They are drawn on the device, as a function of the row of the global batch, and become zeros after Mel.mean and std.
    """

    time_masks: Count = 0
    """Masks of consecutive frames (LAION-CLAP: 2)."""
    time_width: Annotated[int, Range(least=0, most=2**16)] = 64
    """Frames of a mask, at most; the number is drawn from 0 to it."""
    mel_masks: Count = 0
    """Masks of consecutive mel filters (LAION-CLAP: 2)."""
    mel_width: Annotated[int, Range(least=0, most=4096)] = 8
    """Filters of a mask, at most."""

    @property
    def active(self) -> bool:
        """True where anything is masked."""
        return (self.time_masks > 0 and self.time_width > 0) or (self.mel_masks > 0 and self.mel_width > 0)


class SoundTower(Tower):
    """Base of the towers of sounds, whose input is a waveform."""

    waveform: Waveform
    """The waveform that it sees."""

    def input(self) -> tuple[tuple[int, ...], str]:
        """Samples: int16, of which 32767 is 1.0, or float32."""
        return (self.waveform.samples,), self.waveform.dtype

    def summary(self) -> Mapping[str, Any]:
        """Rate and length."""
        return {"sample_rate": self.waveform.sample_rate, "seconds": self.waveform.seconds}


def mel_problems(waveform: Waveform, mel: Mel) -> Iterator[str]:
    """Contradictions of a spectrogram and the waveform that it is made of, each after the place of their tower."""
    rate = mel.filter_rate or waveform.sample_rate
    nyquist = rate / 2
    if mel.fmax > nyquist:
        yield f".mel.fmax {mel.fmax} is above half of the sample rate {rate}; use {nyquist:g} at most"
    least = mel.window if mel.framing == "kaldi" else mel.n_fft // 2 + 1
    if waveform.samples < least:
        yield f".waveform.seconds {waveform.seconds} are {waveform.samples} samples; the spectrogram needs {least}"


@dataclass(frozen=True)
class SpectrogramTower(SoundTower):
    """A vision transformer (Dosovitskiy et al. 2021) over the log-mel spectrogram, as in AST (Gong et al. 2021) and ImageBind.

    Its patches may overlap. Rows of the grid are mels, from low to high, and columns are time.
    """

    waveform: Waveform = Waveform()
    """The waveform that it sees."""
    mel: Mel = Mel()
    """Its spectrogram."""
    patch_size: Size | tuple[Size, Size] = 16
    """Side of a square patch, or (mels, frames)."""
    stride: Size | tuple[Size, Size] | None = None
    """Distance of neighbouring patches, or (mels, frames); None: patch_size. AST and ImageBind: 10."""
    width: Size = 768
    """Size of a token."""
    depth: Layers = 12
    """Number of blocks."""
    heads: Size = 12
    """Attention heads; divides width."""
    mlp_ratio: Annotated[float, Range(above=0, most=1000)] = 4.0
    """Hidden size of the MLP, in widths."""
    activation: Activation = "gelu"
    """gelu is the exact (erf) form."""
    positions: Literal["learned", "sincos"] = "learned"
    """Position embedding: learned, or fixed 2-D sines and cosines (MoCo v3)."""
    pool: Literal["cls", "avg", "map"] = "cls"
    """Pooling: class token, mean of the patches, or multi-head attention pooling with one learned query."""
    class_token: bool = False
    """A class token although something else is pooled; pool="cls" has one always."""
    norm_after_pool: bool = False
    """Last LayerNorm after the pooling instead of before."""
    pre_norm: bool = True
    """LayerNorm before the first block."""
    patch_bias: bool = False
    """Bias of the patch embedding."""
    patch_norm: bool = False
    """LayerNorm of the embeddings of patches, before positions are added (ImageBind); its epsilon is 1e-5."""
    extra_key: bool = False
    """A learned key and value in each attention, as in `SensorTower` (ImageBind)."""
    norm_eps: Annotated[float, Range(above=0, most=1)] = 1e-5
    """Epsilon of every LayerNorm."""
    patch_dropout: Annotated[float, Range(least=0, below=1)] = 0.0
    """Fraction of the patches left out in training (FLIP; PaSST's unstructured patchout); the number kept is at least 1."""
    dropout: Annotated[float, Range(least=0, below=1)] = 0.0
    """Probability that training zeroes a number that attention or MLP adds to a token (Vaswani et al. 2017, section 5.4)."""
    layer_scale: Annotated[float, Range(least=0, most=1000)] | None = None
    """Initial value of learned factors on what attention and MLP add to a token (Touvron et al. 2021b); None: there are none."""
    projection: Projection = "linear"
    """Projection to the shared space: linear, affine (with a bias), or none, where width is embed_dim."""
    spec_augment: SpecAugment = SpecAugment()
    """Masks of the spectrogram in training."""

    @property
    def patch(self) -> tuple[int, int]:
        """Mels and frames of a patch."""
        return _pair(self.patch_size)

    @property
    def strides(self) -> tuple[int, int]:
        """Mels and frames from one patch to the next."""
        return self.patch if self.stride is None else _pair(self.stride)

    @property
    def size(self) -> tuple[int, int]:
        """Mels and frames of the spectrogram."""
        return self.mel.mels, self.mel.frames_of(self.waveform.samples)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows (mels) and columns (time) of patches; mels and frames that fill no patch are left out."""
        (rows, columns) = (max(0, 1 + (n - p) // s) for n, p, s in zip(self.size, self.patch, self.strides, strict=True))
        return rows, columns

    def summary(self) -> Mapping[str, Any]:
        """Rate, length, and the sizes of the spectrogram."""
        return {**super().summary(), "mels": self.size[0], "frames": self.size[1]}

    def problems(self) -> Iterator[str]:
        """Contradictions, each after the place of this dataclass."""
        yield from mel_problems(self.waveform, self.mel)
        yield from head_problems(self)
        yield from hidden_problems(self)
        for name in ("patch_size", "stride"):
            sides = getattr(self, name)
            if isinstance(sides, tuple) and sides[0] == sides[1]:
                yield f".{name} {sides} is a square; use {sides[0]}"
        if not math.prod(self.grid):
            yield f".patch_size {self.patch_size} is larger than the spectrogram, {self.size[0]} mels and {self.size[1]} frames"
        if math.prod(self.grid) > MAX_TOKENS:
            yield f".stride {self.strides} makes {math.prod(self.grid):,} tokens; {MAX_TOKENS:,} at most"
        if self.positions == "sincos" and self.width % 4:
            yield f".width {self.width} is not divisible by 4, which positions='sincos' needs"


def _pair(sides: int | tuple[int, int]) -> tuple[int, int]:
    return (sides, sides) if isinstance(sides, int) else (sides[0], sides[1])


LAION_WAVEFORM = Waveform()
"""LAION-CLAP: 10 s at 48 kHz, repeated and padded."""

LAION_MEL = Mel()
"""LAION-CLAP without fusion: torchlibrosa's, 1001 frames of 10 s."""

LAION_FUSED_MEL = Mel(scale="htk", norm="none")
"""LAION-CLAP with fusion: torchaudio's, whose filters are others."""

MSCLAP_2022_WAVEFORM = Waveform(44_100, 5.0, "repeat", dtype="float32")
"""MS-CLAP 2022: 5 s at 44.1 kHz."""

MSCLAP_2022_MEL = Mel(hop=320)
"""MS-CLAP 2022: 690 frames of 5 s. Its configuration says n_fft 1028, which its code does not use."""

MSCLAP_2023_WAVEFORM = Waveform(44_100, 7.0, "repeat", dtype="float32")
"""MS-CLAP 2023: 7 s at 44.1 kHz."""

MSCLAP_2023_MEL = Mel(hop=320, filter_rate=32_000)
"""MS-CLAP 2023, and its captioner: 965 frames of 7 s. Its configuration says fmax 8000, but its HTS-AT takes none of that: its
filters are made for 32 kHz, 50 to 14,000 Hz (msclap 1.3.4, models/htsat.py and config.py), and see of 44.1 kHz what is between 69
and 19,294 Hz."""

IMAGEBIND_WAVEFORM = Waveform(16_000, 2.0, "pad", "middle", "first", "float32")
"""ImageBind: 2 s at 16 kHz, the first channel."""

IMAGEBIND_MEL = Mel(
    n_fft=512,
    window=400,
    hop=160,
    mels=128,
    fmin=20.0,
    fmax=8000.0,
    scale="kaldi",
    norm="none",
    framing="kaldi",
    pre_emphasis=0.97,
    zero_mean=True,
    log="natural",
    floor=2.0**-23,
    frames=204,
    mean=-4.268,
    std=9.138,
)
"""ImageBind: Kaldi's filter banks of frames of 25 ms, every 10 ms; 198 frames of 2 s, with zeros up to 204."""
