"""Matching of two lists of classes: by name, and never by a guess."""

import difflib
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

_SHOWN = 8
"""Names that a message lists of either side."""


class Matches(NamedTuple):
    """Findings of `match_names`."""

    places: list[int | None]
    """Index in the second list of each name of the first; None: no such name there."""
    unmatched: list[str]
    """The names of the first list without one in the second."""
    missing: list[str]
    """The names of the second list without one in the first."""

    def describe(self) -> str:
        """Both sides that were not matched, the nearest names beside those of the first."""
        near = {name_key(name): name for name in self.missing}
        shown = []
        for name in self.unmatched[:_SHOWN]:
            close = difflib.get_close_matches(name_key(name), list(near)[:2000], n=1, cutoff=0.5)
            shown.append(f"{name!r}" + (f" (nearest: {near[close[0]]!r})" if close else ""))
        others = _listed([repr(name) for name in self.missing[:_SHOWN]], len(self.missing))
        return f"{_listed(shown, len(self.unmatched))}; on the other side nothing matches {others}"


def match_names(names: Sequence[str], others: Sequence[str]) -> Matches:
    """Matches each of `names` with at most one of `others`: equal names first, then names with equal `name_key`.

    A name that a list holds several times is ambiguous and matches nothing, unless both lists are equal name by name.
    """
    if len(names) == len(others) and list(map(name_key, names)) == list(map(name_key, others)):
        return Matches(list(range(len(names))), [], [])
    index: list[int | None] = [None] * len(names)
    free = set(range(len(others)))
    for key in (str, name_key):
        mine = Counter(key(name) for i, name in enumerate(names) if index[i] is None)
        theirs = Counter(key(others[j]) for j in free)
        place = {key(others[j]): j for j in free}
        for i, name in enumerate(names):
            if index[i] is None and mine[key(name)] == theirs[key(name)] == 1:
                index[i] = place[key(name)]
                free.discard(place[key(name)])
    return Matches(index, [name for i, name in zip(index, names, strict=True) if i is None], [others[j] for j in sorted(free)])


class NameIndex:
    """Finds single names in a list, as `match_names` matches them."""

    def __init__(self, names: Sequence[str]) -> None:
        self._exact, self._key = (_unique(names, key) for key in (str, name_key))

    def find(self, name: str) -> int | None:
        """The index of a name; None where it is not there or is ambiguous."""
        found = self._exact.get(name)
        return self._key.get(name_key(name)) if found is None else found


def _unique(names: Sequence[str], key: Callable[[str], str]) -> dict[str, int]:
    count = Counter(map(key, names))
    return {key(name): i for i, name in enumerate(names) if count[key(name)] == 1}


def name_key(name: str) -> str:
    """The part of a name that counts: its letters in Unicode's NFKC form, case folded, words with single spaces between.

    Underscores are spaces, and what cannot be seen (byte order marks, zero-width characters: category Cf) does not count.
    """
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
    seen = "".join(letter for letter in text if unicodedata.category(letter) != "Cf")
    return " ".join(seen.replace("_", " ").split())


def _listed(shown: Sequence[str], total: int) -> str:
    more = f" and {total - len(shown)} more" if total > len(shown) else ""
    return (", ".join(shown) or "none") + more
