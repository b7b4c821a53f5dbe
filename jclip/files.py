"""Files and folders that somebody names: a file read at once or not at all, and what makes one a workdir or an adapted model."""

import errno
import json
import os
import stat
from pathlib import Path


def read_whole(path: str | Path, most: int | None = None) -> bytes:
    """The bytes of a file, of which there may be `most`.

    Raises:
        OSError: it cannot be read, is larger, or is a folder, a pipe or a device, which might never end; `strerror` says which.
    """
    # Without O_NONBLOCK, opening a pipe that nobody writes to waits for ever.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
    try:
        with open(path, "rb", buffering=0, opener=lambda name, _: os.open(name, flags)) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise OSError(errno.EINVAL, "it is no regular file, but a pipe or device", str(path))
            if most is not None and status.st_size > most:
                raise OSError(errno.EFBIG, f"file has {status.st_size} bytes, more than {most}", str(path))
            return file.readall()
    except IsADirectoryError:
        raise IsADirectoryError(errno.EISDIR, "it is a folder", str(path)) from None
    except ValueError as error:  # a name with a zero byte
        raise OSError(errno.EINVAL, str(error), str(path)) from None


BUCKETS = ("s3://", "gs://")
"""Beginnings of the addresses of buckets that runs may be in."""


def is_bucket(path: str | Path) -> bool:
    """True for the address of a folder in a bucket."""
    return str(path).startswith(BUCKETS)


ADAPTED = "adapted.json"
"""File that describes an adapted model."""


def is_adapted(path: str | Path) -> bool:
    """True for the folder of an adapted model."""
    return (Path(path) / ADAPTED).is_file()


def adapted_below(path: str | Path) -> list[str]:
    """Folders of adapted models below that of a whole adaptation, METHOD/shots-K/seed-S, in order."""
    return sorted(str(found.parent.relative_to(path)) for found in Path(path).glob(f"*/shots-*/seed-*/{ADAPTED}"))


def is_run_config(content: bytes) -> bool:
    """True for the content of a training run's config.json."""
    try:
        config = json.loads(content)
    except (ValueError, RecursionError):
        return False
    return isinstance(config, dict) and config.get("type") == "Config"


def is_run(path: str | Path) -> bool:
    """True for the workdir of a training run."""
    return (Path(path) / "checkpoints").is_dir()
