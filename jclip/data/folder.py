"""The source `folder`: the images, or else the sounds, in a folder and in those below it, each with its caption beside it."""

import logging
import os
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from jclip.data.files import read_file
from jclip.data.fingerprint import combine, file_digests
from jclip.data.names import match_names
from jclip.data.samples import SOUNDS as EXTENSIONS
from jclip.data.source import LazyExample, SourceError, decode_text, read_lines, split_options, text_readers

log = logging.getLogger("jclip.data")

SUFFIXES = (".jpg", ".jpeg", ".jfif", ".jpe", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")
"""File names, in lower case, that are images."""

SOUNDS = tuple(f".{extension}" for extension in EXTENSIONS)
"""File names, in lower case, that are sounds."""

DEBRIS = ("__macosx", "@eadir", "@tmp", "#recycle", "@recycle", "$recycle.bin", "lost+found", "system volume information")
"""Folders, in lower case, that systems leave among others; what is hidden (.ipynb_checkpoints, ._0001.jpg) is left out too."""

UNREAD = (".heic", ".heif", ".jp2", ".jxl", ".svg", ".psd", ".ico", ".ppm", ".pgm", ".tga", ".exr", ".dng", ".cr2", ".nef")
"""File names, in lower case, of images whose formats are not read."""


@dataclass(frozen=True)
class Folder:
    """Images in the order of their paths, or sounds where there is no image. Example fields: key (path below the folder), image
    or sound (bytes), text (of NAME.txt); of an image also sound, where a sound of its name lies beside it.

    Where the folders are labels there is "label" too: the index of the image's folder, the first below the root.
    """

    root: Path
    names: tuple[str, ...]
    folders: tuple[str, ...] = ()
    """The folders right below the root that are labels, sorted; () where there are none."""
    classes: tuple[str, ...] = ()
    """Names of the labels, one for each of `folders`."""
    templates: tuple[str, ...] = ()
    left_out: Mapping[str, int] = field(default_factory=dict)
    """Number of files that are in no example of this source, by the reason."""
    lines: bool = False
    """True: each line of a caption's file is a caption."""
    sounds: Mapping[str, str] = field(default_factory=dict)
    """The sounds beside images, by the names of these."""
    alone: tuple[str, ...] = ()
    """The sounds without an image beside them, where there are images: they are in no example."""

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> LazyExample:
        path = self.root / self.names[index]
        caption = path.with_suffix(".txt")
        readers: dict[str, Callable[[], Any]] = {"sound" if is_sound(path.name) else "image": partial(read_file, path)}
        if beside := self.sounds.get(self.names[index]):
            readers["sound"] = partial(read_file, self.root / beside)
        if caption.is_file():
            readers |= text_readers(lambda: decode_text(read_file(caption)), self.lines)
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
            if beside := self.sounds.get(name):
                names.append(beside)
        digests = file_digests([self.root / name for name in names])
        return combine("folder", *names, *digests, *self.folders, "", *self.classes)


def open_folder(spec: str) -> Folder:
    """Opens "DIR[?labels=folders][&captions=lines]".

    Links to folders and files are followed. What is hidden, or debris of a system, or no image is left out and counted. NAME.wav
    beside NAME.jpg is its sound. Where there is no image at all, each sound is an example.

    labels=folders: every image lies in a folder below DIR that is its class. Each folder right below DIR is a class, also one
    without images, but none that is hidden or debris; they are numbered as their names are sorted, numbers by their value.
    DIR/classnames.txt, if it is there, has the names to show, a line for each of them in that order, or in any if these are the
    folders' own names; otherwise the folders' names are shown.

    captions=lines: each line of NAME.txt is a caption of NAME.jpg, see `text_readers`.

    Raises:
        SourceError: there is no such folder or option, or no image in it; a link leads back to a folder that it lies in; an image
            that lies in no class; classnames.txt does not fit the folders.
    """
    at = f"source 'folder:{spec}'"
    # A folder may have a question mark in its name; its options are asked for only where there is none of the whole name.
    path, options = (spec, {}) if _local(spec).is_dir() else split_options(spec, ("labels", "captions"))
    root = _local(path)
    if not root.is_dir():
        raise SourceError(f"{at}: there is no such folder")
    for option, value in (("labels", "folders"), ("captions", "lines")):
        if options.get(option, value) != value:
            raise SourceError(f"{at}: {option}={options[option]} is unknown; use {option}={value}, or leave it out")
    names, left_out = _walk(root, at)
    names, sounds, alone = _examples(names)
    left_out["sounds without an image of their name beside them"] += len(alone)
    left_out = +left_out
    reasons = "; ".join(f"{count} {what}" for what, count in left_out.most_common())
    if not names:
        others = f" (left out: {reasons})" if reasons else ""
        kinds = f"images end in {', '.join(SUFFIXES)}, and sounds, of which there is none either, in {', '.join(SOUNDS)}"
        raise SourceError(f"{at}: no image in it; {kinds}{others}")
    if reasons:
        log.warning("%s: left out: %s", at, reasons)
    folders, classes = _classes(at, root, names) if "labels" in options else ((), ())
    return Folder(
        root, tuple(names), folders, classes, left_out=dict(left_out), lines="captions" in options, sounds=sounds, alone=alone
    )


def _local(path: str) -> Path:
    """A path with ~ for the home folder, where nothing is called so."""
    return Path(path) if os.path.exists(path) else Path(path).expanduser()


def _walk(root: Path, at: str) -> tuple[list[str], Counter[str]]:
    """The images and sounds below a folder, sorted by their paths, and how many other files there are by the reason."""
    names, left_out = list[str](), Counter[str]()

    def walk(folder: str, below: str, above: tuple[tuple[int, int], ...]) -> None:
        status = os.stat(folder)
        place = (status.st_dev, status.st_ino)
        if place in above:
            raise SourceError(f"{at}: the link {folder} leads back to a folder that it lies in; remove it")
        with os.scandir(folder) as entries:
            for entry in entries:
                if _is_debris(entry.name):
                    left_out["hidden or debris of a system"] += _files(entry)
                elif entry.is_dir():
                    walk(entry.path, f"{below}{entry.name}/", (*above, place))
                elif not entry.is_file():
                    left_out["links to nothing" if entry.is_symlink() else "no regular files"] += 1
                elif Path(entry.name).suffix.lower() in SUFFIXES or is_sound(entry.name):
                    names.append(below + entry.name)
                elif reason := _no_image(entry.name):
                    left_out[reason] += 1

    try:
        walk(str(root), "", ())
    except OSError as error:
        raise SourceError(f"{at}: {error.filename} cannot be read: {error.strerror}; mend it or take it away") from None
    return sorted(names), left_out


def is_sound(name: str) -> bool:
    """True for the name of a sound."""
    return Path(name).suffix.lower() in SOUNDS


def _examples(names: list[str]) -> tuple[list[str], dict[str, str], tuple[str, ...]]:
    """The images, the sounds beside them by their names, and the other sounds; or all sounds, where there is no image."""
    images = [name for name in names if not is_sound(name)]
    if not images:
        return names, {}, ()
    sounds: dict[str, str] = {}
    for name in reversed(names):  # of several sounds of one name the first counts
        if is_sound(name):
            sounds[str(Path(name).with_suffix(""))] = name
    beside = {name: sounds[stem] for name in images if (stem := str(Path(name).with_suffix(""))) in sounds}
    used = set(beside.values())
    return images, beside, tuple(name for name in names if is_sound(name) and name not in used)


def _is_debris(name: str) -> bool:
    return name.startswith(".") or name.lower() in DEBRIS


def _files(entry: "os.DirEntry[str]") -> int:
    """Number of files of a file or a folder; links in it are not followed."""
    if not entry.is_dir(follow_symlinks=False):
        return 1
    return sum(len(files) for _, _, files in os.walk(entry.path))


def _no_image(name: str) -> str:
    """Reason why a file is no image of a source; "" for one that has another use there."""
    suffix = Path(name).suffix.lower()
    if suffix == ".txt":  # a caption, classnames.txt
        return ""
    what = "images of a format that is not read" if suffix in UNREAD else "files that are no images"
    return f"{what} ({suffix or 'without a suffix'})"


def _classes(at: str, root: Path, names: list[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The folders that are classes, and the names to show for them."""
    loose = next((name for name in names if len(Path(name).parts) == 1), None)
    if loose:
        raise SourceError(f"{at}: {loose} lies in no folder of its class; move it to {root}/CLASS/{loose}, or leave out labels")
    folders = tuple(sorted((path.name for path in root.iterdir() if path.is_dir() and not _is_debris(path.name)), key=_order))
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
