"""The index of a text table: the byte at which each row begins, kept as an array in a cache."""

import hashlib
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from jclip.data.addresses import Address, State, public
from jclip.data.caches import cache_folder, write_atomically
from jclip.data.source import SourceError
from jclip.data.storage import open_settled, state_at

log = logging.getLogger("jclip.data")

VERSION = 1
"""Version of the format below; an index of another one is built anew."""

HEADER = 8
"""Numbers before the rows: version; the file's size, mtime and ctime in ns, and inode; the separator (0: JSON lines); and two of
the digest of all else."""

DIGEST = slice(6, 8)


@dataclass(frozen=True)
class RowIndex:
    """i64: HEADER numbers, the byte that each row begins at (the first is the header of a CSV), and the end of the last."""

    data: NDArray[np.int64]

    @property
    def _first(self) -> int:
        return HEADER + (1 if self.data[5] else 0)

    def __len__(self) -> int:
        return max(0, len(self.data) - self._first - 1)

    @property
    def state(self) -> State:
        """The file's when it was scanned."""
        size, mtime, ctime, inode = self.data[1:5].tolist()
        return size, mtime, ctime, inode

    @property
    def header(self) -> tuple[int, int]:
        """The bytes of a CSV's header, from and to; of none where it is empty."""
        return self._between(HEADER) if len(self.data) > HEADER + 1 else (0, 0)

    def span(self, row: int) -> tuple[int, int]:
        """The bytes of a row, from and to; blank lines may follow it there."""
        return self._between(self._first + row)

    def _between(self, place: int) -> tuple[int, int]:
        start, end = self.data[place : place + 2].tolist()
        return start, end


def read_index(path: str, separator: str, scan: Callable[[str], Iterator[int]]) -> RowIndex:
    """The index of a file, from the cache, or built with `scan` where it is missing, damaged or older than the file.

    Raises:
        SourceError: the file cannot be parsed, or changes meanwhile.
        OSError: it cannot be read.
    """
    place = _place(path, separator)
    kept = _load(place, state_at(path))
    if kept is not None:
        return RowIndex(kept)
    state = open_settled(path).state
    rows = np.fromiter(scan(path), np.int64)
    if state_at(path) != state:
        raise SourceError(f"{path} was changed while it was read; wait until it is written, and try again")
    data = np.concatenate([np.array([VERSION, *state, _mark(separator), 0, 0], np.int64), rows])
    data[DIGEST] = _digest(data)
    try:
        write_atomically(place, lambda part: np.save(part, data))
    except OSError as error:
        log.info("index not saved: %s", error)
    return RowIndex(data)


def _load(place: Path, state: State) -> NDArray[np.int64] | None:
    """The array in a file, mapped; None where it is none of this table."""
    try:
        data = np.lib.format.open_memmap(place, mode="r")
    except (OSError, ValueError, EOFError):
        return None
    if data.dtype != np.int64 or data.ndim != 1 or len(data) <= HEADER or int(data[0]) != VERSION:
        return None
    if tuple(data[1:5].tolist()) != state:
        return None
    if not np.array_equal(data[DIGEST], _digest(data)):
        log.warning("index %s is damaged, and is built again", place)
        return None
    return np.asarray(data)


def _mark(separator: str) -> int:
    return ord(separator) if separator else 0


def _digest(data: NDArray[np.int64]) -> NDArray[np.int64]:
    """Two numbers that stand for all others of an index."""
    found = hashlib.blake2b(data[: DIGEST.start].tobytes(), digest_size=16)
    found.update(np.ascontiguousarray(data[DIGEST.stop :]).data)
    return np.frombuffer(found.digest(), np.int64)


def _place(path: str, separator: str) -> Path:
    table = Path(public(path)) if isinstance(path, Address) else Path(path).resolve()
    name = hashlib.sha256(os.fsencode(table)).hexdigest()[:20]
    return cache_folder("rows") / f"{name}-{_mark(separator)}-{table.name[-60:]}.npy"
