"""The dataclasses of the towers of sounds that published CLAPs have: HTS-AT and PANN's CNN14."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from jclip.config.ranges import Range, Size
from jclip.config.sound import Mel, SoundTower, SpecAugment, Waveform, mel_problems
from jclip.config.towers import Layers, Projection


@dataclass(frozen=True)
class HtsatTower(SoundTower):
    """HTS-AT (Chen et al. 2022): a Swin transformer (Liu et al. 2021) over a log-mel spectrogram that is folded to a square.

    The spectrogram is stretched in time to spec_size ** 2 / mels frames, cut into spec_size / mels parts, and these are put below
    each other. Batch normalisation keeps the means and variances that its weights came with, in training as well.
    """

    waveform: Waveform = Waveform()
    """The waveform that it sees."""
    mel: Mel = Mel()
    """Its spectrogram."""
    spec_size: Size = 256
    """Side of the square; divisible by mel.mels, and each stage's by the window."""
    patch_size: Size = 4
    """Side of a patch; divides spec_size."""
    stem_width: Size = 96
    """Size of a patch; each stage after the first has twice that of the one before (tiny: 96, base: 128)."""
    depths: tuple[Layers, ...] = (2, 2, 6, 2)
    """Blocks of each stage (base: 2, 2, 12, 2)."""
    heads: tuple[Size, ...] = (4, 8, 16, 32)
    """Attention heads of each stage."""
    window: Size = 8
    """Side of a window of attention, in tokens; those of every second block lie half a window further."""
    mlp_ratio: Annotated[float, Range(above=0, most=1000)] = 4.0
    """Hidden size of the MLP, in widths."""
    fused_seconds: Annotated[float, Range(above=0, most=3600)] | None = None
    """Fusion of parts of a sound longer than the waveform with all of it, shrunk to that length (Wu et al. 2023, section 3.2,
    AFF-2D): so many seconds are seen, and what is beyond is cut off. The parts are the middle ones of the places that the authors
    draw from, in evaluation and in training. None: there are no such layers, and a longer sound is cut to the waveform."""
    fusion_ratio: Size = 4
    """Factor by which the bottlenecks of these layers are smaller than stem_width."""
    projection: Projection = "mlp"
    """Map to the shared space: mlp (LAION-CLAP), residual (MS-CLAP), linear, affine, mlp_gelu, or none."""
    spec_augment: SpecAugment = SpecAugment()
    """Masks of the spectrogram in training."""

    @property
    def width(self) -> int:  # type: ignore[override]
        """Size of a token of the last stage."""
        return self.stem_width * 2 ** (len(self.depths) - 1)

    def input(self) -> tuple[tuple[int, ...], str]:
        """Samples, as of any tower of sounds; with fusion float32: of the longest sound, half an n_fft, and their number."""
        if self.fused_seconds is None:
            return super().input()
        return (round(self.waveform.sample_rate * self.fused_seconds) + self.mel.n_fft // 2 + 1,), "float32"

    @property
    def frames(self) -> int:
        """Frames of the spectrogram, or of each of the four that are fused."""
        return self.mel.frames_of(self.waveform.samples)

    @property
    def sides(self) -> tuple[int, ...]:
        """Tokens of a side of the square, of each stage."""
        return tuple(self.spec_size // self.patch_size // 2**stage for stage in range(len(self.depths)))

    def summary(self) -> Mapping[str, Any]:
        """Rate, length, and the sizes of the spectrogram."""
        return {**super().summary(), "mels": self.mel.mels, "frames": self.frames}

    def problems(self) -> Iterator[str]:
        """Contradictions, each after the place of this dataclass."""
        yield from mel_problems(self.waveform, self.mel)
        if self.spec_size % self.mel.mels:
            yield f".spec_size {self.spec_size} is not divisible by mel.mels {self.mel.mels}; use {4 * self.mel.mels}"
        elif self.frames > (most := self.spec_size**2 // self.mel.mels):
            yield f".spec_size {self.spec_size} holds {most} frames, not {self.frames}; shorten waveform.seconds"
        if not self.depths or len(self.depths) != len(self.heads):
            yield f".heads {self.heads}: give as many as depths {self.depths}, at least one"
            return
        unit = self.patch_size * self.window * 2 ** (len(self.depths) - 1)
        if self.spec_size % unit:
            yield f".spec_size {self.spec_size} is not divisible by {unit}, patches and windows of the last stage; use {unit}"
        for stage, heads in enumerate(self.heads):
            if self.stem_width * 2**stage % heads:
                yield f".heads {heads} does not divide width {self.stem_width * 2**stage} of stage {stage + 1}"
        if self.fused_seconds is None:
            return
        if self.stem_width < self.fusion_ratio:
            yield f".fusion_ratio {self.fusion_ratio} leaves nothing of stem_width {self.stem_width}"
        if self.fused_seconds <= self.waveform.seconds:
            yield f".fused_seconds {self.fused_seconds}: waveform.seconds {self.waveform.seconds} are as many; use more, or None"
        if self.waveform.sample_rate * self.fused_seconds >= 2**24:  # whole numbers of float32
            yield f".fused_seconds {self.fused_seconds}: use {2**24 // self.waveform.sample_rate} at most"
        if self.mel.framing != "centred" or self.mel.frames is not None or self.mel.zero_mean:
            yield ".mel: fusion is of centred frames, as many as there are, without zero_mean; leave these as they are"


@dataclass(frozen=True)
class Cnn14Tower(SoundTower):
    """CNN14 of PANNs (Kong et al. 2020, table 1): six blocks of two convolutions over the log-mel spectrogram.

    Its batch normalisation keeps the means and variances that its weights came with, in training as well.
    """

    waveform: Waveform = Waveform()
    """The waveform that it sees."""
    mel: Mel = Mel()
    """Its spectrogram."""
    channels: tuple[Size, ...] = (64, 128, 256, 512, 1024, 2048)
    """Channels of each block; all but the last are followed by the mean of squares of two by two."""
    projection: Projection = "residual"
    """Map to the shared space: residual (MS-CLAP), mlp (LAION-CLAP), linear, affine, mlp_gelu, or none."""
    spec_augment: SpecAugment = SpecAugment()
    """Masks of the spectrogram in training."""

    @property
    def width(self) -> int:  # type: ignore[override]
        """Channels of the last block."""
        return self.channels[-1]

    @property
    def frames(self) -> int:
        """Frames of the spectrogram."""
        return self.mel.frames_of(self.waveform.samples)

    @property
    def tokens(self) -> int:
        """Frames that are left after the last block."""
        return self.frames // 2 ** (len(self.channels) - 1)

    def summary(self) -> Mapping[str, Any]:
        """Rate, length, and the sizes of the spectrogram."""
        return {**super().summary(), "mels": self.mel.mels, "frames": self.frames}

    def problems(self) -> Iterator[str]:
        """Contradictions, each after the place of this dataclass."""
        if not self.channels:
            yield ".channels is empty; give those of each block"
            return
        yield from mel_problems(self.waveform, self.mel)
        least = 2 ** (len(self.channels) - 1)
        if min(self.frames, self.mel.mels) < least:
            sizes = f"{self.frames} frames and {self.mel.mels} mels"
            yield f".channels: {len(self.channels)} blocks leave nothing of {sizes}; use {int(math.log2(least))} blocks at most"
