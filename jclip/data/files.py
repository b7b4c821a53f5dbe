"""Reading the file of an example."""

from pathlib import Path

from jclip.data.source import BadExample
from jclip.data.storage import read_all

MAX_BYTES = 1 << 29
"""Larger files and members of shards are not read: 512 MiB hold 64 M pixels of any format without compression."""


def read_file(path: str | Path) -> bytes:
    """The bytes of a file, by its path or address.

    Raises:
        BadExample: it cannot be read, is larger than MAX_BYTES, or is a folder, a pipe or a device, which might never end.
    """
    try:
        return read_all(path, MAX_BYTES)
    except OSError as error:
        raise BadExample(f"file cannot be read: {error.strerror}") from None
