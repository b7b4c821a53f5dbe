"""Augmentations of texts: words that are exchanged, swapped or left out. What is random in them comes from `rng` alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from jclip.config import ConfigError, TextAugment
from jclip.data.augmentations import needs_rng


@dataclass(frozen=True)
class ChangeWords:
    """The changes of `TextAugment`, in the order of its fields; words are what spaces separate, which become one space each."""

    how: TextAugment

    def __call__(self, text: str, rng: np.random.Generator | None = None) -> str:
        how, rng, words = self.how, needs_rng(rng, self), text.split()
        if how.synonym > 0:
            known = read_synonyms(how.synonyms)
            words = [_synonym(word, known, rng) if rng.random() < how.synonym else word for word in words]
        if how.swap > 0:
            for i in range(len(words)):
                if rng.random() < how.swap:
                    j = int(rng.integers(len(words)))
                    words[i], words[j] = words[j], words[i]
        if how.drop > 0 and words:
            stays = int(rng.integers(len(words)))
            kept = rng.random(len(words)) >= how.drop
            words = [word for word, keep in zip(words, kept, strict=True) if keep] or [words[stays]]
        return " ".join(words)


def _synonym(word: str, known: Mapping[str, tuple[str, ...]], rng: np.random.Generator) -> str:
    """Another word for it; case and the punctuation around it are those of the word."""
    bare = word.strip(".,;:!?\"'()")
    others = known.get(bare.lower(), ())
    if not others:
        return word
    other = others[int(rng.integers(len(others)))]
    at = word.index(bare)
    return word[:at] + (other.capitalize() if bare[0].isupper() else other) + word[at + len(bare) :]


@lru_cache
def read_synonyms(path: str) -> dict[str, tuple[str, ...]]:
    """The synonyms of each word of a file, in its order; of a word in several groups those of all.

    Raises:
        ConfigError: the file cannot be read, is not UTF-8, or has a line of one word alone.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigError(f"text_augment.synonyms: {path} cannot be read: {reason}") from None
    known: dict[str, tuple[str, ...]] = {}
    for number, line in enumerate(lines, 1):
        group = list(dict.fromkeys(" ".join(word.lower().split()) for word in line.split(",") if word.strip()))
        if len(group) == 1:
            alone = f"{path}, line {number}: {line.strip()!r}"
            raise ConfigError(f"text_augment.synonyms: {alone} has no synonym; separate them by commas")
        for word in group:
            known[word] = (*known.get(word, ()), *(other for other in group if other != word))
    return known
