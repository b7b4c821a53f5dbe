"""Reading a file that somebody names: at once or not at all."""

import os
import stat
from pathlib import Path

from jclip.data.sources import BadExample

MAX_BYTES = 1 << 29
"""Larger files and members of shards are not read: 512 MiB hold 64 M pixels of any format without compression."""


def read_file(path: str | Path) -> bytes:
    """The bytes of a file.

    Raises:
        BadExample: it cannot be read, is larger than MAX_BYTES, or is a folder, a pipe or a device, which might never end.
    """
    try:
        # Without O_NONBLOCK, opening a pipe that nobody writes to waits for ever.
        file = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
        with os.fdopen(file, "rb", buffering=0) as opened:
            status = os.fstat(file)
            if not stat.S_ISREG(status.st_mode):
                raise BadExample("it is no regular file, but a folder, pipe or device")
            if status.st_size > MAX_BYTES:
                raise BadExample(f"file has {status.st_size} bytes, more than {MAX_BYTES}")
            return opened.readall()
    except IsADirectoryError:
        raise BadExample("it is no regular file, but a folder") from None
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
        raise BadExample(f"file cannot be read: {error}") from None
