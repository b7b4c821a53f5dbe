"""The source `folder`: the images in a folder and in those below it, each with its caption beside it if there is one."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from jclip.data.sources import BadExample, LazyExample, SourceError, decode_text

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")
"""File names, in lower case, that are images."""


@dataclass(frozen=True)
class Folder:
    """Images in the order of their paths. Example fields: key (path below the folder), image (bytes), text (of NAME.txt)."""

    root: Path
    names: tuple[str, ...]

    @property
    def classes(self) -> tuple[str, ...]:
        """None: a folder has no labels."""
        return ()

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> LazyExample:
        path = self.root / self.names[index]
        caption = path.with_suffix(".txt")
        readers: dict[str, Callable[[], Any]] = {"image": partial(_read, path)}
        if caption.is_file():
            readers["text"] = lambda: decode_text(_read(caption))
        return LazyExample(self.names[index], readers)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadExample(f"file cannot be read: {error}") from None


def open_folder(spec: str) -> Folder:
    """Opens a folder.

    Raises:
        SourceError: there is no such folder, or no image in it.
    """
    root = Path(spec)
    if not root.is_dir():
        raise SourceError(f"source 'folder:{spec}': there is no such folder")
    names = sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not names:
        raise SourceError(f"source 'folder:{spec}': no image in it; images end in {', '.join(SUFFIXES)}")
    return Folder(root, tuple(names))
