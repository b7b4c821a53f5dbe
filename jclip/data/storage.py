"""Files by path or by address, opened as objects of the same few methods."""

import io
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, Protocol

from jclip.data.addresses import Address, State, is_address
from jclip.files import read_whole

TICK_NS = 20_000_000
"""A file must have been left alone for so long before it is scanned: the clock that file systems write times by moves on every
4 to 10 ms, and a second change within one of its ticks would not show."""


class File(Protocol):
    """An open file, safe to read from several threads; closed when the last reader lets go of it. Errors are OSError."""

    @property
    def state(self) -> State:
        """State of the file when it was opened."""
        ...

    def current(self) -> State:
        """State of the open file now; every `read` of a remote one looks by itself whether it is the same."""
        ...

    def read(self, offset: int, size: int) -> bytes:
        """The bytes from `offset` on, `size` of them, fewer only where the file ends before."""
        ...

    def around(self, spans: Sequence[tuple[int, int]]) -> "File":
        """The same file, for somebody who will read these (offset, size): a remote one asks for all of them at once."""
        ...

    def onward(self) -> "File":
        """The same file, for somebody who will read it from its beginning to its end: a remote one reads ahead."""
        ...


class LocalFile:
    """A file on a disk, or a copy of a remote one, whose state it then has."""

    def __init__(self, path: str | Path, state: State | None = None) -> None:
        self._descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        self._remote = state
        self.state = state or self.current()

    def current(self) -> State:
        return self._remote or state_of(os.fstat(self._descriptor))

    def read(self, offset: int, size: int) -> bytes:
        return os.pread(self._descriptor, size, offset)

    def around(self, spans: Sequence[tuple[int, int]]) -> File:
        return self

    def onward(self) -> File:
        return self

    def links(self) -> int:
        """Number of names that the file has."""
        return os.fstat(self._descriptor).st_nlink

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)


def is_deleted(file: File) -> bool:
    """True for a file on a disk, such as a copy, that was deleted there: it can be read, and takes room until it is closed."""
    return isinstance(file, LocalFile) and file.links() == 0


def open_file(path: str | Path) -> File:
    """Opens a file by its path or address. Raises OSError."""
    if isinstance(path, Address):
        from jclip.data.remote import open_address

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


def state_of(status: os.stat_result) -> State:
    """See State."""
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, _signed(status.st_ino)


def _signed(number: int) -> int:
    """Inodes are 64 bits without a sign, and indexes have a sign."""
    return number - (1 << 64) if number >= 1 << 63 else number


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
