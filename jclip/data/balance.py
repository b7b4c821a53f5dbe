"""MetaCLIP's balancing (Xu et al. 2023, arXiv:2309.16671): captions by the entries of a list that stand in them.

What is common is thinned out, and what is rare stays: the captions of the list's entries become nearly equally many, which
is what sets CLIP's data apart from a plain crawl.
"""

import re
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from jclip.data.clean import lower
from jclip.data.fingerprint import combine
from jclip.data.source import SourceError

WORD = re.compile(r"\w+")
"""A word: letters, digits and underscores of any script. Scripts without spaces between words have long ones."""


def words_of(text: str) -> list[str]:
    """The words of a text, cleaned and in lower case, without punctuation."""
    return WORD.findall(lower(text))


class Entries:
    """A list of entries, each of one or more words, found in captions on the borders of words."""

    def __init__(self, entries: Iterable[str]) -> None:
        """Takes entries in order; those of the same words are one. Raises SourceError where one has no word, or none is there."""
        self.names: list[str] = []
        """The words of each entry, joined by spaces."""
        self._places: dict[str, int] = {}
        self._lengths: dict[str, tuple[int, ...]] = {}
        for number, entry in enumerate(entries, 1):
            words = words_of(entry)
            if not words:
                raise SourceError(f"entry {number}, {entry[:80]!r}, has no word, by which a caption could be known")
            if (name := " ".join(words)) not in self._places:
                self._places[name] = len(self.names)
                self.names.append(name)
                # Lengths by the first word: a caption of w words is looked up some w times, not w times the longest entry.
                self._lengths[words[0]] = tuple(sorted({*self._lengths.get(words[0], ()), len(words)}))
        if not self.names:
            raise SourceError("there is no entry")

    def __len__(self) -> int:
        return len(self.names)

    def match(self, text: str) -> NDArray[np.int32]:
        """Indices of the entries that stand in a text, each once, ascending."""
        words = words_of(text)
        found = {
            self._places.get(" ".join(words[start : start + length]), -1)
            for start, word in enumerate(words)
            for length in self._lengths.get(word, ())
            if start + length <= len(words)
        }
        return np.array(sorted(found - {-1}), np.int32)


def balanced(
    matches: Sequence[NDArray[np.int32]], keys: Sequence[str], entries: Sequence[str], most: int, seed: int
) -> NDArray[np.bool_]:
    """True for each of n captions that the draw of one of its entries keeps.

    Args:
        matches: n arrays of indices of entries.
        keys: n keys of examples, which the draws depend on: not on order, hosts or other examples' draws.
        entries: the entries.
        most: captions of an entry that are kept on average; one with `count` keeps each with probability min(1, most / count).
        seed: of the draws.
    """
    counts = np.bincount(np.concatenate([*matches, np.zeros(0, np.int32)]), minlength=len(entries))
    share = np.minimum(1.0, most / np.maximum(counts, 1))
    return np.array(
        [
            any(share[entry] >= 1 or draw(seed, key, entries[entry]) < share[entry] for entry in matched)
            for key, matched in zip(keys, matches, strict=True)
        ],
        bool,
    )


def draw(seed: int, key: str, entry: str) -> float:
    """A number of [0, 1), uniform over keys and over entries: 53 bits of a digest."""
    return (int(combine(str(seed), key, entry)[:16], 16) >> 11) * 2.0**-53
