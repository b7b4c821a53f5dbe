"""Columns of a table as fields of examples: which are image, text, label and key, and images that tables name by paths."""

import os
import posixpath
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jclip.data.addresses import Address, is_address, shown
from jclip.data.files import read_file
from jclip.data.fingerprint import combine, file_digests
from jclip.data.samples import SOUNDS as EXTENSIONS
from jclip.data.source import BadExample, Lacking, Source, SourceError, caption_lines, decode_text, split_options
from jclip.data.storage import find_files

OPTIONS = ("image", "sound", "text", "label", "key", "images", "captions", "urls")
"""Options of every table: see `Columns`."""

IMAGES = ("image", "img", "jpg", "jpeg", "png", "webp", "filepath", "image_path", "path", "file_name")
"""Columns that are the image where none is named: those of Hugging Face's sets, of img2dataset and of open_clip."""

ENDINGS = tuple(f".{extension}" for extension in EXTENSIONS)
"""Endings of paths of sounds."""

SOUNDS = ("sound", "audio")
"""Columns that are the sound where none is named; SOUND_PATHS are, too, where their values end as names of sounds do."""

SOUND_PATHS = ("path", "file_name", "filepath", "audio_path", "audio_filepath", "filename", "file")
"""Columns whose values may be paths of sounds, recognised by their endings, in a table without a column of images: those of
Common Voice, NeMo's manifests, Clotho and ESC-50."""

LOOKED_AT = 8
"""Rows whose values decide what a column is taken to hold."""

TEXTS = ("text", "caption", "title")
"""Columns that are the text where none is named."""

Read = Callable[[str], Any]
"""A column's name to the value of a row, None where it is null. Raises BadExample."""


@dataclass(frozen=True)
class Columns:
    """The columns that fields are read from; "" where no column is one."""

    image: str = ""
    """Bytes of an encoded image, u8[H,W,3], or a path below `images`."""
    text: str = ""
    """A text or a list of texts."""
    label: str = ""
    """A whole number or a name."""
    key: str = ""
    """A column that is unique; "": keys are FILE:ROW."""
    images: str = "."
    """The folder, or address of one, that paths of images and sounds are relative to, and that holds them all."""
    lines: bool = False
    """True: each line of a text is a caption."""
    classes: tuple[str, ...] = ()
    """Names of labels that are numbers."""
    sound: str = ""
    """Bytes of an encoded sound, a mapping of an array and its rate, or a path below `images`."""
    sound_asked: bool = False
    """True: the column of sounds is named, and what it holds are sounds whatever it looks like."""
    more_texts: tuple[str, ...] = ()
    """Further columns of texts, each a caption as `text` is."""
    named: Mapping[str, str] = field(default_factory=dict)
    """Paths of images and sounds by their column, with {} for its value, where that is but a part of them: "Y{}.wav"."""
    urls: bool = False
    """True: a path may be an address of http, which is read wherever it leads: the table is trusted."""

    @property
    def waits(self) -> bool:
        """True: each image or sound is a request to a store."""
        return self.urls or is_address(self.images)

    @property
    def files(self) -> tuple[str, ...]:
        """The columns that may name files."""
        return tuple(filter(None, (self.image, self.sound)))

    def readers(self, names: Iterable[str], read: Read, several: bool = False) -> dict[str, Callable[[], Any]]:
        """The readers of a row's fields: each column by its name, and "image", "sound", "text", "label" (and "captions").

        Args:
            names: the row's columns.
            read: their values.
            several: whether the text is a list, so that the row has "captions".
        """
        found: dict[str, Callable[[], Any]] = {name: partial(_present, read, name) for name in names if name not in ("", "key")}
        if self.image:
            found["image"] = partial(self._image, read)
        if self.sound:
            found["sound"] = partial(self._sound, read)
        if self.text:
            found["text"] = partial(self._text, read)
            if several or self.lines or self.more_texts:
                found["captions"] = found["text"]
        if self.label:
            found["label"] = partial(self._label, read)
        return found

    def fingerprint(self, kind: str, tables: Sequence[str], places: Sequence[str]) -> str:
        """The fingerprint of tables, over their bytes, these columns, and the images and sounds at `places`, in order.

        The folder of the images is no part of it, nor are the files' names. Raises SourceError as `Source.fingerprint`.
        """
        places = [place for place in places if not (self.urls and is_address(place))]  # the table has the addresses themselves
        try:
            found = list(filter(None, find_files(list(dict.fromkeys(places)))))
        except OSError as error:
            raise SourceError(f"{error.filename} cannot be read: {error.strerror}; the fingerprint needs it") from None
        digests = file_digests([*tables, *found])
        images = dict(zip(found, digests[len(tables) :], strict=True))
        roles = (self.image, self.text, self.label, self.key, "lines" if self.lines else "", *self.classes)
        roles += ("sound", self.sound) if self.sound else ()  # without sounds as before there were any
        roles += ("texts", *self.more_texts) if self.more_texts else ()
        return combine(kind, *roles, *digests[: len(tables)], "", *(images.get(place, "missing") for place in places))

    def path(self, column: str, value: str | int) -> str:
        """The path of an image or a sound by the value of its column."""
        return self.named.get(column, "{}").replace("{}", str(value))

    def locate(self, path: str) -> str:
        """The place of an image that a table names by its path.

        Tables are not trusted, unless `urls` says so: a path that leads out of `images`, as it is written, is refused. Links that
        lie in there are followed, as the source `folder` does.

        Raises:
            BadExample: it lies outside, or is an address.
        """
        if "://" in path:
            if self.urls and path.startswith(("http://", "https://")):
                return Address(path)
            raise BadExample(f"image {shown(path[:200])!r} is an address; without urls=yes paths below images= alone are read")
        if is_address(self.images):
            return self._address(path)
        root = os.path.abspath(self.images)
        place = os.path.normpath(os.path.join(root, path))
        if not place.startswith(root.rstrip(os.sep) + os.sep):
            raise BadExample(f"image {path[:200]!r} lies outside {root}; images= must be a folder that holds them all")
        return place

    def _address(self, path: str) -> str:
        """The address of an image below an address."""
        web = self.images.startswith(("http://", "https://"))
        root, _, query = self.images.partition("?") if web else (self.images, "", "")
        inside = posixpath.normpath(path)
        if inside in (".", "..") or inside.startswith(("/", "../")):
            raise BadExample(f"image {path[:200]!r} lies outside {shown(root)}; images= must be a folder that holds them all")
        # A path is a name, and in an address of http % ? and # are none: "%2e%2e/a" would lead out of the folder.
        inside = quote(inside, errors="surrogatepass") if web else inside
        return Address(f"{root.rstrip('/')}/{inside}" + (f"?{query}" if query else ""))

    def read_image(self, path: str, what: str = "image") -> bytes:
        """The bytes of an image, or of `what` is named so, by its path in a table. Raises BadExample as `read_file`."""
        place = self.locate(path)
        try:
            return read_file(place)
        except BadExample as problem:
            raise type(problem)(f"{what} {path[:200]!r}: {problem}") from None

    def _image(self, read: Read) -> Any:
        value = _present(read, self.image)
        if isinstance(value, str) or (self.image in self.named and isinstance(value, int)):
            return self.read_image(self.path(self.image, value))
        if not isinstance(value, (bytes, np.ndarray)):
            raise BadExample(f"image is neither bytes nor a path: column {self.image} is a {type(value).__name__}")
        return value

    def _sound(self, read: Read) -> Any:
        value = _present(read, self.sound)
        if not self.sound_asked and isinstance(value, str) and not value.lower().endswith(ENDINGS):
            return value  # a text in a column that is only called so, as ever
        if isinstance(value, str) or (self.sound in self.named and isinstance(value, int)):
            return self.read_image(self.path(self.sound, value), "sound")
        if not isinstance(value, (bytes, Mapping)):
            raise BadExample(f"sound is neither bytes nor a path: column {self.sound} is a {type(value).__name__}")
        return value

    def _text(self, read: Read) -> Any:
        if not self.more_texts:
            return self._text_of(read, self.text)
        found = [read(column) for column in (self.text, *self.more_texts)]
        there = [column for column, value in zip((self.text, *self.more_texts), found, strict=True) if not is_nothing(value)]
        if not there:
            raise Lacking("it has no caption")
        texts = (self._text_of(read, column) for column in there)
        return tuple(chain.from_iterable((text,) if isinstance(text, str) else text for text in texts))

    def _text_of(self, read: Read, column: str) -> Any:
        value = _present(read, column)
        if isinstance(value, bytes):
            value = decode_text(value)
        if isinstance(value, str):
            return caption_lines(value) if self.lines else value
        if not isinstance(value, tuple) or not all(isinstance(text, str) for text in value):
            raise BadExample(f"text is no text: column {column} is a {type(value).__name__}")
        if not value:
            raise BadExample("it has no caption")
        return value

    def _label(self, read: Read) -> Any:
        value = _present(read, self.label)
        if isinstance(value, (str, np.ndarray)):
            return value
        if not isinstance(value, int):
            raise BadExample(f"label is not a whole number: column {self.label} is {str(value)[:40]!r}")
        if self.classes and not 0 <= value < len(self.classes):
            raise BadExample(f"label is {value}, but there are {len(self.classes)} classes")
        return int(value)


def choose(at: str, names: Sequence[str], options: dict[str, str], folder: str) -> Columns:
    """The columns that `options` name, or else those of IMAGES, TEXTS and "label" that are there.

    Args:
        at: what an error begins with.
        names: the table's columns.
        options: those of OPTIONS that are given. The image and the sound may be paths with a column in them, "Y{youtube_id}.wav",
            and the texts several columns, "caption_1,caption_2".
        folder: the table's, which paths of images are relative to where `images` is not given.

    Raises:
        SourceError: no such column or folder; a column comes twice; captions=rows without images or texts.
    """
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise SourceError(f"{at}: there are several columns {twice[0]!r}; rename all but one")
    options, named = dict(options), dict[str, str]()
    for role in ("image", "sound"):
        before, brace, rest = options.get(role, "").partition("{")
        column, end, after = rest.partition("}")
        if brace and end and options[role] not in names:
            options[role], named[column] = column, f"{before}{{}}{after}"
    several = options.get("text", "").split(",")
    if len(several) > 1 and options["text"] not in names:
        if unknown := [name for name in several if name not in names or several.count(name) > 1]:
            raise SourceError(
                f"{at}: text= has {unknown[0]!r}, which is no column, or is there twice; columns: {', '.join(names)}"
            )
        options["text"] = several[0]
    else:
        several = several[:1]
    for role in ("image", "sound", "text", "label", "key"):
        if role in options and options[role] not in names:
            raise SourceError(f"{at}: there is no column {options[role]!r}; columns: {', '.join(names)}")
    if options.get("captions", "lines") not in ("lines", "rows"):
        raise SourceError(f"{at}: captions={options['captions']} is unknown; use captions=lines or captions=rows")
    if options.get("urls", "no") not in ("yes", "no"):
        raise SourceError(f"{at}: urls={options['urls']} is unknown; use urls=yes or urls=no")
    images = _images_folder(at, options.get("images", folder or "."))
    sound = options.get("sound") or next((name for name in SOUNDS if name in names), "")
    image = options.get("image") or next((name for name in IMAGES if name in names and name != sound), "")
    text = options.get("text") or next((name for name in TEXTS if name in names), "")
    label = options.get("label") or ("label" if "label" in names else "")
    if options.get("captions") == "rows" and not (text and (image or sound or options.get("key"))):
        raise SourceError(
            f"{at}: captions=rows needs a column of texts and one of images or sounds; name them with text= and image= or sound="
        )
    lines, more = options.get("captions") == "lines", tuple(several[1:])
    return Columns(
        image,
        text,
        label,
        options.get("key", ""),
        images,
        lines,
        sound=sound,
        sound_asked="sound" in options,
        more_texts=more,
        named=named,
        urls=options.get("urls") == "yes",
    )


def _images_folder(at: str, images: str) -> str:
    if not is_address(images):
        images = os.path.abspath(os.path.expanduser(images))
        if not os.path.isdir(images):
            raise SourceError(f"{at}: there is no folder {shown(images)!r}; images= is the folder of the images")
    return images


def told_by_values(columns: Columns, options: Mapping[str, str], names: Sequence[str], rows: Source) -> Columns:
    """The columns, with one of SOUND_PATHS as the sound where the values of the first rows all end as names of sounds do.

    Args:
        columns: what `choose` has found by the names.
        options: those that are given: what they name stays as it is.
        names: the table's columns.
        rows: examples with a field for each column. It has files open afterwards: nobody else is to use it.
    """
    if columns.sound or "image" in options:
        return columns
    taken = (columns.text, *columns.more_texts, columns.label, columns.key)
    candidates = [name for name in SOUND_PATHS if name in names and name not in taken]
    for name in candidates if not columns.image else [name for name in candidates if name == columns.image]:
        values = list(_some(rows, name))
        if values and all(isinstance(value, str) and value.lower().endswith(ENDINGS) for value in values):
            return replace(columns, image="", sound=name)
    return columns


def _some(rows: Source, name: str) -> Iterator[Any]:
    """Values of a column in the first rows that have one."""
    for i in range(min(LOOKED_AT, len(rows))):
        with suppress(BadExample, KeyError):
            yield rows[i][name]


def split_table(spec: str, more: tuple[str, ...] = ()) -> tuple[str, dict[str, str]]:
    """Splits "FILE?image=a&..." into the path and its options; a path that exists as it is written has none.

    Raises:
        SourceError: an option is neither in OPTIONS nor in `more`.
    """
    return (spec, {}) if os.path.exists(os.path.expanduser(spec)) else split_options(spec, (*OPTIONS, *more))


def as_key(value: Any) -> str:
    """A cell as the key of its example. Raises BadExample for what cannot be one."""
    if isinstance(value, (str, int)) and str(value).strip():
        return str(value)
    raise BadExample(f"key is no text or whole number: {str(value)[:40]!r}")


def unique(at: str, column: str, keys: Iterable[Any]) -> None:
    """Raises SourceError where the values of a column are no keys, or one comes twice."""
    seen = set[str]()
    for row, value in enumerate(keys):
        try:
            key = as_key(value)
        except BadExample as problem:
            raise SourceError(f"{at}: row {row}, column {column}: {problem}; leave out key=") from None
        if key in seen:
            raise SourceError(f"{at}: the key {key!r} comes twice in column {column}; leave out key=")
        seen.add(key)


def as_f32(values: ArrayLike) -> NDArray[np.float32]:
    """Numbers as f32. Raises BadExample where one is too large."""
    try:
        exact = np.asarray(values, np.float64)
    except OverflowError:
        raise BadExample("one of its numbers is too large for f32") from None
    with np.errstate(over="ignore"):
        found = exact.astype(np.float32)
    if np.any(np.isinf(found) & ~np.isinf(exact)):
        raise BadExample("one of its numbers is too large for f32")
    return found


def is_nothing(value: Any) -> bool:
    """True for a cell of a caption that says nothing."""
    return value is None or (isinstance(value, str) and not value.strip())


def _present(read: Read, name: str) -> Any:
    value = read(name)
    if value is None:
        raise Lacking(f"no {name}: its cell is empty")
    return value
