"""Files by path or by address, opened as objects of the same few methods."""

import io
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from jclip.data.addresses import Address, State, is_address
from jclip.data.local_files import File, LocalFile, state_of
from jclip.files import read_whole

TICK_NS = 20_000_000
"""A file must have been left alone for so long before it is scanned: the clock that file systems write times by moves on every
4 to 10 ms, and a second change within one of its ticks would not show."""


def open_file(path: str | Path) -> File:
    """Opens a file by its path or address. Raises OSError."""
    if isinstance(path, Address):
        from jclip.data.ways import open_address

        return open_address(path)
    return LocalFile(path)


def open_settled(path: str) -> File:
    """Opens a file that is about to be scanned, once it has been left alone for TICK_NS. Raises OSError."""
    file = open_file(path)
    since = time.time_ns() - file.state[2]
    if 0 <= since < TICK_NS:
        time.sleep((TICK_NS - since) / 1e9)
        file = open_file(path)
    return file


def state_at(path: str) -> State:
    """The state of a file; for an address as it was when its source was opened. Raises OSError."""
    return path.state if isinstance(path, Address) else state_of(os.stat(path))


def find_files(paths: Sequence[str]) -> list[str | None]:
    """Regular files that are there, addresses with what is known of them; None where there is none.

    Raises:
        OSError: a store does not answer, or refuses.
    """
    found: list[str | None] = [path if not is_address(path) and os.path.isfile(path) else None for path in paths]
    if places := [number for number, path in enumerate(paths) if is_address(path)]:
        from jclip.data.remote import find_each

        for number, address in zip(places, find_each([paths[number] for number in places]), strict=True):
            found[number] = address
    return found


def read_all(path: str | Path, most: int) -> bytes:
    """The bytes of a whole file, of which there may be `most`. Raises OSError."""
    if isinstance(path, str) and is_address(path):
        from jclip.data.remote import read_address

        return read_address(path, most)
    return read_whole(path, most)


def open_stream(path: str) -> BinaryIO:
    """A file to read from its beginning, line by line. Raises OSError."""
    if not isinstance(path, Address):
        return open(path, "rb")
    return io.BufferedReader(Stream(open_file(path).onward()), 1 << 20)


def open_for_arrow(path: str) -> "str | Stream":
    """A file as pyarrow opens it: a local one by its path. Raises OSError."""
    return Stream(open_file(path)) if isinstance(path, Address) else path


class Stream(io.RawIOBase):
    """A file as Python and pyarrow read them."""

    def __init__(self, file: File) -> None:
        self._file = file
        self._place = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._place = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._file.state[0]}[whence]
        return self._place

    def tell(self) -> int:
        return self._place

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        data = self._file.read(self._place, len(buffer))
        buffer[: len(data)] = data
        self._place += len(data)
        return len(data)
