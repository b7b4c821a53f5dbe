"""The source `folder`: the images in a folder and in those below it, each with its caption beside it if there is one."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from jclip.data.fingerprint import combine, file_digests
from jclip.data.names import match_names
from jclip.data.sources import BadExample, LazyExample, SourceError, decode_text, read_lines, split_options

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")
"""File names, in lower case, that are images."""


@dataclass(frozen=True)
class Folder:
    """Images in the order of their paths. Example fields: key (path below the folder), image (bytes), text (of NAME.txt).

    Where the folders are labels there is "label" too: the index of the image's folder, the first below the root.
    """

    root: Path
    names: tuple[str, ...]
    folders: tuple[str, ...] = ()
    """The folders right below the root that are labels, sorted; () where there are none."""
    classes: tuple[str, ...] = ()
    """Names of the labels, one for each of `folders`."""
    templates: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> LazyExample:
        path = self.root / self.names[index]
        caption = path.with_suffix(".txt")
        readers: dict[str, Callable[[], Any]] = {"image": partial(read_file, path)}
        if caption.is_file():
            readers["text"] = lambda: decode_text(read_file(caption))
        if self.folders:
            label = self.folders.index(Path(self.names[index]).parts[0])
            readers["label"] = lambda: label
        return LazyExample(self.names[index], readers)

    def fingerprint(self) -> str:
        """See Source: over the paths below the folder, the bytes of images and captions, and the labels with their names."""
        names = list(self.names)
        for name in self.names:
            caption = Path(name).with_suffix(".txt")
            if (self.root / caption).is_file():
                names.append(str(caption))
        digests = file_digests([self.root / name for name in names])
        return combine("folder", *names, *digests, *self.folders, "", *self.classes)


def read_file(path: Path) -> bytes:
    """The bytes of a file. Raises BadExample where it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadExample(f"file cannot be read: {error}") from None


def open_folder(spec: str) -> Folder:
    """Opens "DIR" or "DIR?labels=folders".

    labels=folders: every image lies in a folder below DIR that is its class. Each folder right below DIR is a class, also one
    without images, but none whose name begins with a dot; they are numbered as their names are sorted, numbers by their value.
    DIR/classnames.txt, if it is there, has the names to show, a line for each of them in that order, or in any if these are the
    folders' own names; otherwise the folders' names are shown.

    Raises:
        SourceError: there is no such folder or option, or no image in it; an image that lies in no class; classnames.txt does not
            fit the folders.
    """
    at = f"source 'folder:{spec}'"
    # A folder may have a question mark in its name; its options are asked for only where there is none of the whole name.
    path, options = (spec, {}) if Path(spec).is_dir() else split_options(spec, ("labels",))
    root = Path(path)
    if not root.is_dir():
        raise SourceError(f"{at}: there is no such folder")
    names = sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    labels = options.get("labels")
    if labels not in (None, "folders"):
        raise SourceError(f"{at}: labels={labels} is unknown; use labels=folders, or leave it out")
    if labels:
        names = [name for name in names if not name.startswith(".")]
    if not names:
        raise SourceError(f"{at}: no image in it; images end in {', '.join(SUFFIXES)}")
    return Folder(root, tuple(names), *(_classes(at, root, names) if labels else ()))


def _classes(at: str, root: Path, names: list[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The folders that are classes, and the names to show for them."""
    loose = next((name for name in names if len(Path(name).parts) == 1), None)
    if loose:
        raise SourceError(f"{at}: {loose} lies in no folder of its class; move it to {root}/CLASS/{loose}, or leave out labels")
    folders = tuple(sorted((path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")), key=_order))
    listed = root / "classnames.txt"
    if not listed.exists():
        return folders, folders
    classes = read_lines(listed)
    if len(classes) != len(folders):
        raise SourceError(
            f"{at}: {listed} names {len(classes)} classes, but there are {len(folders)} folders, {folders[0]} to {folders[-1]}; "
            "write one line for each folder, in the order of their names"
        )
    found = match_names(classes, folders)
    if all(index in (None, i) for i, index in enumerate(found.places)):
        return folders, classes
    if found.unmatched:
        raise SourceError(
            f"{at}: {listed} names some folders, in another order, and not all of them: no folder is {found.describe()}; "
            "write one line for each folder, in the order of their names, or the names of the folders"
        )
    shown = dict(zip(found.places, classes, strict=True))
    return folders, tuple(shown[i] for i in range(len(folders)))


def _order(name: str) -> tuple[bool, int, str]:
    """Names that are all digits by their value (0, 1, 2, 10), then the others as text."""
    number = name.isascii() and name.isdigit()
    return (not number, int(name) if number and len(name) < 1000 else 0, name)
