"""Open files as objects of a few methods, whatever holds them, and those on a disk."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from jclip.data.addresses import State


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


def state_of(status: os.stat_result) -> State:
    """See State."""
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, _signed(status.st_ino)


def _signed(number: int) -> int:
    """Inodes are 64 bits without a sign, and indexes have a sign."""
    return number - (1 << 64) if number >= 1 << 63 else number
