"""The sources `sugarcrepe` and `winoground`: images beside captions of which some are wrong, to be told apart."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from jclip.data.files import read_file
from jclip.data.fingerprint import combine, file_digests
from jclip.data.folder import SUFFIXES
from jclip.data.source import LazyExample, SourceError, split_options
from jclip.files import read_whole


@dataclass(frozen=True)
class Item:
    """Images and captions of one example; image i and caption i belong together, and captions beyond the images are wrong."""

    key: str
    images: tuple[Path, ...]
    captions: tuple[str, ...]
    tag: str | None = None
    """The kind of example, where the file says it."""


@dataclass(frozen=True)
class Selection:
    """Examples in the order of their file. Fields: key, images (tuple of encoded bytes), captions (tuple of str), and tag."""

    scheme: str
    items: tuple[Item, ...]
    classes: tuple[str, ...] = ()
    templates: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> LazyExample:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.scheme} has no example {index}; it has {len(self)}")
        item = self.items[index]
        readers = {"images": lambda: tuple(map(read_file, item.images)), "captions": lambda: item.captions}
        return LazyExample(item.key, readers if item.tag is None else {**readers, "tag": lambda: item.tag})

    def fingerprint(self) -> str:
        """See Source: over keys, captions, tags and the bytes of the images; the images' names are no part of it."""
        digests = iter(file_digests([path for item in self.items for path in item.images]))
        texts = [json.dumps([item.key, item.captions, item.tag, len(item.images)]) for item in self.items]
        return combine(self.scheme, *texts, *digests)


def open_sugarcrepe(spec: str) -> Selection:
    """Opens "FILE?images=DIR": JSON, {id: {"filename", "caption", "negative_caption"}}, and the folder of the images.

    One image and two captions an example, the right one first. Published files name images of COCO's val2017.

    Raises:
        SourceError: a file is missing or is not as it should be, or an image lies outside DIR.
    """
    path, folder, at = _open("sugarcrepe", spec)
    content = _parse(at, read_whole(path), str(path))
    if not isinstance(content, dict):
        raise SourceError(f'{at}: {path} is no JSON object of {{"filename", "caption", "negative_caption"}} by id')
    items = []
    for key, row in content.items():
        image, right, wrong = _texts(f"{at}: {path}: {key!r}", row, ("filename", "caption", "negative_caption"))
        items.append(Item(key, (_find(at, folder, image),), (right, wrong)))
    return _selection("sugarcrepe", at, path, items)


def open_winoground(spec: str) -> Selection:
    """Opens "FILE?images=DIR": a line of JSON for each example, with image_0, image_1, caption_0 and caption_1.

    Two images and two captions an example. The names of images may lack their suffix; "tag", if there is one, is kept.

    Raises:
        SourceError: a file is missing or is not as it should be, or an image lies outside DIR.
    """
    path, folder, at = _open("winoground", spec)
    items = []
    for number, line in enumerate(read_whole(path).split(b"\n"), 1):
        if not line.strip():
            continue
        row = _parse(at, line, f"{path}, line {number}")
        *images, a, b = _texts(f"{at}: {path}, line {number}", row, ("image_0", "image_1", "caption_0", "caption_1"))
        key, tag = row.get("id", number - 1), row.get("tag")
        items.append(Item(str(key), tuple(map(partial(_find, at, folder), images)), (a, b), None if tag is None else str(tag)))
    return _selection("winoground", at, path, items)


def _open(scheme: str, spec: str) -> tuple[Path, Path, str]:
    """The file, the folder of images with no symlink in its path, and what an error begins with."""
    at = f"source '{scheme}:{spec}'"
    name, options = split_options(spec, ("images",))
    if "images" not in options:
        raise SourceError(f"{at}: say where the images are: {scheme}:{name or 'FILE'}?images=DIR")
    path, folder = Path(name).expanduser(), Path(options["images"]).expanduser()
    if not path.is_file():
        raise SourceError(f"{at}: there is no file {name!r}")
    if not folder.is_dir():
        raise SourceError(f"{at}: there is no folder {options['images']!r}")
    return path, folder.resolve(), at


def _parse(at: str, data: bytes, where: str) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{at}: {where} is no JSON: {error}") from None


def _texts(where: str, row: Any, names: Sequence[str]) -> list[str]:
    """The fields `names` of a row, which must be texts."""
    values = [row.get(name) if isinstance(row, Mapping) else None for name in names]
    texts = [value for value in values if isinstance(value, str) and value.strip()]
    if len(texts) < len(names):
        raise SourceError(f"{where} needs a text for each of {', '.join(names)}; it is {json.dumps(row)[:200]}")
    return texts


def _find(at: str, folder: Path, name: str) -> Path:
    """The image of that name below `folder`, with a suffix if it has none. Names are not trusted: symlinks are followed first."""
    for candidate in (name, *(name + suffix for suffix in SUFFIXES)):
        try:
            path = (folder / candidate).resolve()
            found = path.is_file()
        except (OSError, ValueError, RuntimeError):  # too long, a null byte, a loop of symlinks
            continue
        if not path.is_relative_to(folder):
            raise SourceError(f"{at}: the image {name!r} lies outside {folder}; images= must be a folder that holds them all")
        if found:
            return path
    raise SourceError(f"{at}: there is no image {name!r} in {folder}; check images=, or get the image")


def _selection(scheme: str, at: str, path: Path, items: list[Item]) -> Selection:
    if not items:
        raise SourceError(f"{at}: {path} has no example")
    if repeated := [key for key, count in Counter(item.key for item in items).items() if count > 1]:
        raise SourceError(f"{at}: {path} has several examples of the id {repeated[0]!r}; each needs its own")
    return Selection(scheme, tuple(items))
