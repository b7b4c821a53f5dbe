"""Augmentation: changes of an example's values, in training, before they become a tower's input."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from jclip.config.ranges import Range

Fraction = Annotated[float, Range(above=0, most=1)]
Ratio = Annotated[float, Range(least=0.01, most=100)]
Factor = Annotated[float, Range(least=0, most=10)]
Sigma = Annotated[float, Range(least=0, most=100)]
Decibel = Annotated[float, Range(least=-60, most=60)]
Beta = Annotated[float, Range(least=0.01, most=1000)]


@dataclass(frozen=True)
class Augment:
    """Random changes of an image in training, before it has the tower's size."""

    scale: tuple[Fraction, Fraction] = (0.9, 1.0)
    """Range of the area of the random crop, as a fraction of the image (open_clip's default)."""
    ratio: tuple[Ratio, Ratio] = (3 / 4, 4 / 3)
    """Range of width over height of the random crop, in pixels of the image, whatever the shape of the tower's input, as in
    open_clip; with resize="longest", which pads an image to that shape before, in multiples of its width over height."""
    flip: Annotated[float, Range(least=0, most=1)] = 0.0
    """Probability of a horizontal flip."""
    rand_augment: Annotated[int, Range(least=0, most=20)] = 0
    """Changes that RandAugment draws for each image (Cubuk et al. 2020; usual: 2)."""
    magnitude: Annotated[float, Range(least=0, most=1)] = 0.3
    """Strength of these changes; 1 is the paper's 30, 0.3 its usual 9."""
    jitter: tuple[Factor, Factor, Factor, Annotated[float, Range(least=0, most=0.5)]] = (0.4, 0.4, 0.4, 0.1)
    """Strength of a change of brightness, contrast, saturation and hue (SLIP's)."""
    jitter_p: Annotated[float, Range(least=0, most=1)] = 0.0
    """Probability of that change (SimCLR, SLIP: 0.8)."""
    grayscale: Annotated[float, Range(least=0, most=1)] = 0.0
    """Probability that an image loses its colours (SimCLR, SLIP: 0.2)."""
    blur: Annotated[float, Range(least=0, most=1)] = 0.0
    """Probability of a Gaussian blur (SimCLR, SLIP: 0.5)."""
    blur_sigma: tuple[Sigma, Sigma] = (0.1, 2.0)
    """Range of its sigma, in pixels of what the tower sees."""
    solarize: Annotated[float, Range(least=0, most=1)] = 0.0
    """Probability that levels of 128 and above are inverted (BYOL: 0.2 of one of the views)."""

    def problems(self) -> Iterator[str]:
        """Contradictions, each after the place of this dataclass."""
        for name in ("scale", "ratio", "blur_sigma"):
            low, high = getattr(self, name)
            if low > high:
                yield f".{name} {(low, high)} is no range: it ends before it begins"


@dataclass(frozen=True)
class TextAugment:
    """Random changes of a text's words in training (Wei and Zou 2019, EDA; there 0.1 each)."""

    synonym: Annotated[float, Range(least=0, most=1)] = 0.0
    """Probability that a word which has synonyms gives way to one of them."""
    synonyms: str = ""
    """File of these, UTF-8: a group a line, its words or phrases separated by commas."""
    swap: Annotated[float, Range(least=0, most=1)] = 0.0
    """Probability that a word changes places with another one."""
    drop: Annotated[float, Range(least=0, most=1)] = 0.0
    """Probability that a word is left out; the last one stays."""

    def problems(self) -> Iterator[str]:
        """Contradictions, each after the place of this dataclass."""
        if bool(self.synonyms) != (self.synonym > 0):
            yield f".synonym {self.synonym} and synonyms {self.synonyms!r} go together; give both, or none"


@dataclass(frozen=True)
class SoundAugment:
    """Random changes of a waveform in training, beside the place of its crop; masks of its spectrogram are of the tower."""

    gain: tuple[Decibel, Decibel] = (0.0, 0.0)
    """Range of the change of loudness, in dB; drawn uniformly. What exceeds full scale is clipped in int16."""
    shift: Annotated[float, Range(least=0, most=1)] = 0.0
    """Largest circular shift of what the tower sees, as a fraction of its length; drawn uniformly, to either side."""
    invert: Annotated[float, Range(least=0, most=1)] = 0.0
    """Probability that the waveform changes its sign, which nobody hears."""

    def problems(self) -> Iterator[str]:
        """Contradictions, each after the place of this dataclass."""
        if self.gain[0] > self.gain[1]:
            yield f".gain {self.gain} is no range: it ends before it begins"


@dataclass(frozen=True)
class SoundMix:
    """Mixtures of two sounds in training: mixup of waveforms (Zhang et al. 2018; AST, Gong et al. 2021), described by both texts.

    A mixture sounds like l * a + (1 - l) * b, and its text is that of a, `joint` and that of b: texts are joined as in PairMix
    (Kim et al. 2022, Exploring train and test-time augmentations for audio-language learning), in place of mixed labels. b is
    drawn from the same source by the random stream of its place in the order, so that batches depend on the step alone.
    """

    p: Annotated[float, Range(least=0, most=1)] = 0.0
    """Probability that an example is a mixture (AST: 0.5)."""
    beta: Beta = 10.0
    """Both parameters of the beta distribution of l. 10 (AST) keeps both sounds audible; below 1 one of them nearly vanishes,
    which joined texts do not say."""
    joint: str = " and "
    """Words between both texts."""
