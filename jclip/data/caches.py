"""Caches of what can be computed again, written so that no process ever reads half of it."""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path


def cache_folder(kind: str) -> Path:
    """The folder for one kind of cache, such as "index": in $JCLIP_CACHE if that is set, else in the user's cache."""
    if cache := os.environ.get("JCLIP_CACHE"):
        return Path(cache, kind)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "jclip", kind)


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Puts what `write` writes to the file it is given at `path`, in one step; makes the folders that are missing.

    Raises:
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".jclip-") as folder:
        part = Path(folder, f"part{path.suffix}")
        write(part)
        os.replace(part, path)


_for_blocks: ContextVar[bool] = ContextVar("for_blocks", default=False)


@contextmanager
def opening_for_blocks(yes: bool = True) -> Iterator[None]:
    """Remote sources that are opened meanwhile are shuffled in blocks of shards, of which `jclip.data.ahead` makes copies."""
    token = _for_blocks.set(yes)
    try:
        yield
    finally:
        _for_blocks.reset(token)


def opened_for_blocks() -> bool:
    """True within `opening_for_blocks`."""
    return _for_blocks.get()
