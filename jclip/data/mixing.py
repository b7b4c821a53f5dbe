"""Mixtures of two examples: sounds are added, and their texts joined."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jclip.config import SoundMix
from jclip.data.reader import Arrays
from jclip.data.reading import Compose, Transform
from jclip.data.sounds import AsType
from jclip.data.transforms import Tokenize


@dataclass(frozen=True)
class Words:
    """A text that is not ids yet, as `Tokenize` would take it: str in an array []."""

    last: Tokenize

    def __call__(self, value: Any, rng: np.random.Generator | None = None) -> NDArray[np.str_]:
        return np.asarray(self.last.words(value, rng))


@dataclass(frozen=True)
class Mixer:
    """The transforms of a batch, each cut in two: what makes an example's part of a mixture, and what makes an input of both."""

    how: SoundMix
    parts: Mapping[str, Transform]
    """Makers of the parts by the name of the array: f32 [samples] of a sound, the words of a text."""
    last: Mapping[str, AsType | Tokenize]
    """Makers of the input of the mixture, of both parts."""

    def draw(self, rng: np.random.Generator) -> float | None:
        """Share of the first example in a mixture; None of an example that is none."""
        mixed, share = rng.random() < self.how.p, float(rng.beta(self.how.beta, self.how.beta))
        return share if mixed else None

    def join(self, first: Arrays, second: Arrays, share: float) -> Arrays:
        """The arrays of a mixture, of the parts of both examples."""
        return {name: self._joined(self.last[name], first[name], second[name], share) for name in first}

    def _joined(self, last: AsType | Tokenize, a: NDArray[Any], b: NDArray[Any], share: float) -> NDArray[Any]:
        if isinstance(last, Tokenize):
            return last.ids(f"{a}{self.how.joint}{b}")
        return last(np.asarray(np.float32(share) * a + np.float32(1 - share) * b, np.float32))


def make_mixer(how: SoundMix, transforms: Mapping[str, Transform]) -> Mixer:
    """The mixer of a batch whose arrays these transforms make.

    Raises:
        ValueError: one of them makes neither a waveform nor the ids of a text.
    """
    parts, lasts = dict[str, Transform](), dict[str, AsType | Tokenize]()
    for name, transform in transforms.items():
        steps = transform.transforms if isinstance(transform, Compose) else (transform,)
        last = steps[-1]
        if isinstance(last, Tokenize):
            parts[name], lasts[name] = Compose((*steps[:-1], Words(last))), last
        elif isinstance(last, AsType):
            parts[name], lasts[name] = Compose(steps[:-1]), last
        else:
            raise ValueError(f"loader: {name} is neither a sound nor a text, and cannot be mixed; leave out sound_mix")
    return Mixer(how, parts, lasts)
