"""The source `esc50`: sounds in the layout of ESC-50 (Piczak 2015), with their folds and the ids of their recordings."""

import csv
import io
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from jclip.data.files import read_file
from jclip.data.fingerprint import combine, file_digests
from jclip.data.source import BadExample, LazyExample, SourceError, decode_text, split_options

COLUMNS = ("filename", "fold", "target", "category")
"""Columns that each table has; `esc10`, `src_file` and `take` may be missing."""


class Clip(NamedTuple):
    """A row of the table."""

    file: str
    """Name of the file in audio/."""
    fold: int
    label: int
    """Index into the source's classes."""
    esc10: bool
    recording: str
    """Id of the recording at Freesound that the clip is a part of; "" where the table does not say it."""
    take: str
    """Letter of the part of that recording."""


@dataclass(frozen=True)
class Esc50:
    """Sounds in the order of their table. Example fields: key (name of the file), sound (bytes), label, text (the class), fold
    (int), and where the table has them src_file (Freesound's id of the recording, as text) and take."""

    folder: Path
    """Folder of the files."""
    clips: tuple[Clip, ...]
    classes: tuple[str, ...]
    """Names of the classes in the order of their targets, with spaces for underscores."""
    templates: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> LazyExample:
        if not 0 <= index < len(self):
            raise IndexError(f"esc50 has no clip {index}; it has {len(self)}")
        clip = self.clips[index]
        known: dict[str, int | str] = {"label": clip.label, "text": self.classes[clip.label], "fold": clip.fold}
        known |= {name: value for name, value in (("src_file", clip.recording), ("take", clip.take)) if value}
        readers = {name: partial(_same, value) for name, value in known.items()}
        return LazyExample(clip.file, {"sound": partial(read_file, self.folder / clip.file), **readers})

    def fingerprint(self) -> str:
        """See Source: over the rows, the names of the classes, and the bytes of the files that are there."""
        there = [clip.file for clip in self.clips if (self.folder / clip.file).is_file()]
        digests = dict(zip(there, file_digests([self.folder / name for name in there]), strict=True))
        rows = ("\t".join(map(str, clip)) for clip in self.clips)
        return combine("esc50", *self.classes, "", *rows, *(digests.get(clip.file, "missing") for clip in self.clips))


def open_esc50(spec: str) -> Esc50:
    """Opens "DIR[?folds=1,2][&esc10=1]": DIR/meta/esc50.csv and DIR/audio/*.wav, as the set is published.

    folds: the folds that are read, of those that the table has; all where it is left out. A label is the same in any of them.
    esc10=1: the ten classes of ESC-10 alone, numbered in the order of their targets.

    Raises:
        SourceError: there is no such folder, table, column, fold or option; a row cannot be used; a target has two categories, a
            category two targets, or a file two rows.
    """
    at = f"source 'esc50:{spec}'"
    name, options = (spec, {}) if os.path.isdir(os.path.expanduser(spec)) else split_options(spec, ("folds", "esc10"))
    root = Path(os.path.expanduser(name))
    table, folder = root / "meta" / "esc50.csv", root / "audio"
    if not table.is_file() or not folder.is_dir():
        lacking = "meta/esc50.csv" if not table.is_file() else "folder audio"
        raise SourceError(f"{at}: {root} has no {lacking}; name the folder of the set as it is unpacked, with meta/ and audio/")
    if options.get("esc10", "1") != "1":
        raise SourceError(f"{at}: esc10={options['esc10']} is unknown; use esc10=1, or leave it out")
    clips, names = _rows(f"{at}: {table}", table)
    if "esc10" in options:
        clips, names = _only_esc10(at, clips, names)
    if "folds" in options:
        chosen = _folds(at, options["folds"], {clip.fold for clip in clips})
        clips = [clip for clip in clips if clip.fold in chosen]
    return Esc50(folder, tuple(clips), tuple(name.replace("_", " ") for name in names))


def _same(value: int | str) -> int | str:
    return value


def _rows(where: str, table: Path) -> tuple[list[Clip], list[str]]:
    """The clips, and the categories in the order of their targets."""
    try:
        text = decode_text(read_file(table)).removeprefix("\ufeff")
        rows = list(csv.DictReader(io.StringIO(text, newline=""), strict=True))
    except (BadExample, csv.Error) as error:
        raise SourceError(f"{where}: {error}") from None
    if not rows:
        raise SourceError(f"{where} has no row")
    if missing := [column for column in COLUMNS if column not in rows[0]]:
        raise SourceError(f"{where} has no column {missing[0]!r}; columns: {', '.join(filter(None, rows[0]))}")
    parsed = [_clip(f"{where}, row {number}", row) for number, row in enumerate(rows)]
    categories = _categories(where, [(clip.label, category) for clip, category in parsed])
    if twice := _twice(clip.file for clip, _ in parsed):
        raise SourceError(f"{where} has several rows of the file {twice!r}; leave all but one out")
    place = {target: index for index, target in enumerate(categories)}
    return [clip._replace(label=place[clip.label]) for clip, _ in parsed], list(categories.values())


def _clip(where: str, row: dict[str, str]) -> tuple[Clip, str]:
    """A row as a clip, whose label is its target, and its category. Names of files are not trusted."""
    numbers = [row["fold"], row["target"]]
    if None in row or None in row.values():
        raise SourceError(f"{where} has more or fewer cells than the header; mend it")
    if not all(number.isascii() and number.isdecimal() and len(number) < 10 for number in numbers):
        raise SourceError(f"{where}: fold {numbers[0]!r} and target {numbers[1]!r} have to be whole numbers")
    file, category = row["filename"], row["category"]
    if not file or file != os.path.basename(file) or file in (".", "..") or not category.strip():
        raise SourceError(
            f"{where} needs the name of a file in audio/ and a category; it has {file[:80]!r} and {category[:80]!r}"
        )
    esc10 = row.get("esc10", "").lower() == "true"
    return Clip(file, int(numbers[0]), int(numbers[1]), esc10, row.get("src_file", ""), row.get("take", "")), category


def _categories(where: str, pairs: Sequence[tuple[int, str]]) -> dict[int, str]:
    """Categories by their targets, which ascend."""
    found = dict(sorted(dict(pairs).items()))
    for target, category in pairs:
        if found[target] != category:
            raise SourceError(f"{where}: target {target} is {category!r} in one row and {found[target]!r} in another")
    if twice := _twice(found.values()):
        raise SourceError(f"{where}: the category {twice!r} has several targets")
    return found


def _twice(names: Iterable[str]) -> str:
    """A name that comes twice, or ""."""
    seen = set[str]()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return ""


def _only_esc10(at: str, clips: list[Clip], names: list[str]) -> tuple[list[Clip], list[str]]:
    chosen = [clip for clip in clips if clip.esc10]
    if not chosen:
        raise SourceError(f"{at}: no row of the table is of ESC-10; leave out esc10=1")
    labels = sorted({clip.label for clip in chosen})
    return [clip._replace(label=labels.index(clip.label)) for clip in chosen], [names[label] for label in labels]


def _folds(at: str, text: str, known: set[int]) -> set[int]:
    parts = text.split(",")
    if not all(part.isascii() and part.isdecimal() and int(part) in known for part in parts):
        raise SourceError(
            f"{at}: folds={text} has to name folds of the table: {', '.join(map(str, sorted(known)))}; as in folds=1,2"
        )
    if twice := _twice(parts):
        raise SourceError(f"{at}: folds={text} names {twice} twice")
    return set(map(int, parts))
