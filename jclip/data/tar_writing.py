"""Tars of samples as `jclip pack` writes them."""

import io
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def writing_tar(path: Path) -> Iterator[Callable[[list[tuple[str, bytes]]], None]]:
    """A function that adds the members of an example, (name, bytes) each, to a new tar. Raises OSError."""
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:

        def add(members: list[tuple[str, bytes]]) -> None:
            for name, data in members:
                info = tarfile.TarInfo(name)  # no times and no owners: the same source gives the same bytes
                info.size, info.mode = len(data), 0o644
                tar.addfile(info, io.BytesIO(data))

        yield add
