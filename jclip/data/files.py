"""Reading the file of an example."""

import errno
from pathlib import Path

from jclip.data.source import BadExample, Unreachable
from jclip.data.storage import read_all

MAX_BYTES = 1 << 29
"""Larger files and members of shards are not read: 512 MiB hold 64 M pixels of any format without compression."""

CHANGED = errno.EBADMSG
"""Number of the error of a remote file that is another one than it was."""

ABSENT = frozenset(
    getattr(errno, name) for name in ("ENOENT", "ENOTDIR", "EISDIR", "EINVAL", "EFBIG", "ENAMETOOLONG", "ELOOP", "EBADMSG")
)
"""Numbers of errors that say something about a file of one example, and nothing about its disk or store."""


def unread(reason: str, error: OSError, own: bool = False) -> BadExample:
    """The error of an example whose file cannot be read: Unreachable, unless the file itself is the cause.

    Args:
        reason: its text.
        error: of the disk or store.
        own: whether the file is the example's own. One that holds many is somewhere, though not there at the moment.
    """
    return BadExample(reason) if error.errno in (ABSENT if own else (CHANGED,)) else Unreachable(reason)


def read_file(path: str | Path) -> bytes:
    """The bytes of a file, by its path or address.

    Raises:
        BadExample: it is not there, is larger than MAX_BYTES, or is a folder, a pipe or a device, which might never end; as
            Unreachable: it cannot be read.
    """
    try:
        return read_all(path, MAX_BYTES)
    except OSError as error:
        raise unread(f"file cannot be read: {error.strerror}", error, own=True) from None
