"""Rows of a table that name the same image, as one example with all their texts: `captions=rows`."""

import logging
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jclip.data.fields import is_blank
from jclip.data.fingerprint import combine
from jclip.data.reader import waits
from jclip.data.source import BadExample, Lacking, LazyExample, Source

log = logging.getLogger("jclip.data")

LOOKED_AT = 10_000
"""Rows in which images that come again are looked for when a table is opened."""

REPEATED = 0.01
"""Share of the rows with an image of an earlier one, from which on it is reported."""


class Grouped:
    """A table's images in the order of their first rows. Fields are those of the first row; "text" and "captions" are a tuple of
    the texts of all rows, in their order, without what is blank or cannot be read."""

    def __init__(self, rows: Source, order: NDArray[np.int64], ends: NDArray[np.int64]) -> None:
        self._rows = rows
        self._order = order
        self._ends = ends

    @property
    def classes(self) -> tuple[str, ...]:
        """See Source."""
        return self._rows.classes

    @property
    def templates(self) -> tuple[str, ...]:
        """See Source."""
        return self._rows.templates

    @property
    def shards(self) -> dict[str, int] | None:
        """Bytes of each file, by name; None where the table is one file."""
        return getattr(self._rows, "shards", None)

    @property
    def waits(self) -> bool:
        """True where reading an example is mostly waiting for a store."""
        return waits(self._rows)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> LazyExample:
        if not 0 <= index < len(self):
            raise IndexError(f"the table has no image {index}; it has {len(self)}")
        members = self._order[self._ends[index - 1] if index else 0 : self._ends[index]].tolist()
        first = self._rows[members[0]]
        texts = partial(_texts, self._rows, members)
        readers: dict[str, Callable[[], Any]] = {name: partial(first.__getitem__, name) for name in first if name != "key"}
        return LazyExample(first["key"], {**readers, "text": texts, "captions": texts})

    def fingerprint(self) -> str:
        """See Source: over the table's own, and which of its rows belong together."""
        return combine("captions=rows", self._rows.fingerprint(), self._order.tobytes(), self._ends.tobytes())


def known_by(values: Iterable[Any]) -> Iterator[Any]:
    """Names or numbers as they are, None for anything else."""
    return (value if type(value) in (str, int) and value != "" else None for value in values)  # true is no 1


def group_rows(rows: Source, values: Iterable[Any]) -> Grouped:
    """The table with the rows of equal values as one example.

    Args:
        rows: the table.
        values: of each row, what its image is known by; None of a row that is broken, which stays an example of its own.
    """
    place = dict[Any, int]()
    number = [place.setdefault((row,) if value is None else value, len(place)) for row, value in enumerate(values)]
    order = np.argsort(np.array(number, np.int64), kind="stable").astype(np.int64)
    return Grouped(rows, order, np.cumsum(np.bincount(number)).astype(np.int64))


def tell_repeated(at: str, images: Iterable[Any]) -> None:
    """Warns where many rows have the image of an earlier one. Each would be an example of its own, and their captions wrong
    answers for each other."""
    names = [name for name in known_by(islice(images, LOOKED_AT)) if name is not None]
    if (repeated := len(names) - len(set(names))) > REPEATED * len(names):
        log.warning(
            "%s: %s of its first %s rows have the image of an earlier row, and their captions count as wrong answers for each "
            "other, in training and in retrieval; with the option captions=rows the rows of an image are one example",
            at,
            f"{repeated:,}",
            f"{len(names):,}",
        )


def _texts(rows: Source, members: list[int]) -> tuple[str, ...]:
    found = list(_each_text(rows, members))
    if not found:
        raise Lacking("it has no caption")
    return tuple(found)


def _each_text(rows: Source, members: list[int]) -> Iterator[str]:
    for row in members:
        try:
            value = rows[row]["text"]
        except (BadExample, KeyError):
            continue
        yield from (text for text in ([value] if isinstance(value, str) else value) if not is_blank(text))
