"""Test examples that are in the training data: ids and bytes that both have."""

import hashlib
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jclip.data import BadExample


class Met(NamedTuple):
    """Values of a test set that the training data have too."""

    found: NDArray[np.bool_]
    """bool[n]: True of the examples whose value is there."""
    unknown: int
    """Test examples without a value, which are not found."""
    train: int
    """Examples of the training data."""
    train_unknown: int
    """Those of them without a value."""


def recording_id(value: Any) -> str | None:
    """An id without host and folders before it, and without what follows its first dot; None where it says nothing.

    >>> recording_id("https://freesound.org/people/a/sounds/1234/"), recording_id("freesound/1234.flac"), recording_id(1234)
    ('1234', '1234', '1234')
    """
    if isinstance(value, bool) or not isinstance(value, str | int | np.integer):
        return None
    text = str(value).strip().rstrip("/").rpartition("/")[2]
    return text.partition(".")[0] or None


def content_digest(value: Any) -> str | None:
    """Digest of the bytes of an input as it is stored: a file, an array, a text; None where it is none of these."""
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], np.ndarray):
        value = value[0]
    if isinstance(value, np.ndarray):
        value = f"{value.dtype} {value.shape};".encode() + np.ascontiguousarray(value).tobytes()
    if isinstance(value, str):
        value = value.encode(errors="surrogatepass")
    return hashlib.blake2b(value, digest_size=16).hexdigest() if isinstance(value, bytes) else None


def meet(test: Iterable[str | None], train: Iterable[str | None]) -> Met:
    """The values of a test set that the training data have, in one pass over each, and the test set's alone in memory.

    Args:
        test: of each example, an id or a digest; None where there is none.
        train: of each example of the training data.
    """
    values = list(test)
    wanted, seen, total, unknown = set(values) - {None}, set[str | None](), 0, 0
    for value in train:
        total += 1
        unknown += value is None
        if value in wanted:
            seen.add(value)
    return Met(np.array([value in seen for value in values], bool), sum(value is None for value in values), total, unknown)


def or_none(values: Iterable[Any]) -> Iterable[Any]:
    """Values as they are read, with None for what cannot be."""
    return (None if isinstance(value, BadExample) else value for value in values)
