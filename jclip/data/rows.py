"""The sources `csv` and `jsonl`: rows of a text file, read at random through an index of where each begins."""

import copy
import csv
import io
import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np

from jclip.data.addresses import by_ranges, is_address, public, shown
from jclip.data.columns import Columns, as_f32, as_key, choose, split_table, told_by_values, unique
from jclip.data.files import MAX_BYTES, unread
from jclip.data.grouped import Grouped, group_rows, known_by, tell_repeated
from jclip.data.patterns import expand
from jclip.data.row_index import RowIndex, read_index
from jclip.data.source import BadExample, LazyExample, SourceError, Unreachable, decode_text
from jclip.data.storage import open_file, open_stream

SEPARATORS = {"comma": ",", "tab": "\t", "semicolon": ";"}

BOM = b"\xef\xbb\xbf"

csv.field_size_limit(
    MAX_BYTES
)  # of the whole process; 131,072 letters, Python's own limit, are fewer than embeddings in a cell have


class RowsOfFile:
    """The rows of one file; keys are FILE:ROW, counted from 0 without the header, or those of a column.

    Fields are the columns. Those of CSV are str, and its label an int where it is written so; a cell that is empty is missing.
    Those of JSON are as they are there: lists of numbers as arrays (f32, or i64 where all are whole), others as tuples,
    objects as mappings, without what is null in them.
    """

    templates: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()

    def __init__(self, path: str, separator: str, header: tuple[str, ...], columns: Columns, index: RowIndex) -> None:
        self._path = path
        self._separator = separator
        self._header = header
        self._columns = columns
        self._index: RowIndex | None = index
        self._length = len(index)
        self.waits = by_ranges([path]) or columns.waits
        """True: each example is a request to a store."""
        self._state = index.state
        self._start()

    def _start(self) -> None:
        """The open file, which every process has of its own."""
        self._file: _OpenRows | None = None
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        """The open file and the index, which another process finds in the cache, stay in this one."""
        state = {name: value for name, value in vars(self).items() if name not in ("_file", "_lock")}
        return {**state, "_index": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._start()

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> LazyExample:
        if not 0 <= index < len(self):
            raise IndexError(f"{self._path} has no row {index}; it has {len(self)}")
        row = self._row(index)
        key = as_key(row.get(self._columns.key)) if self._columns.key else f"{os.path.basename(public(self._path))}:{index}"
        several = isinstance(row.get(self._columns.text), list)
        names = [name for name in row if self._separator or row[name] is not None]
        return LazyExample(key, self._columns.readers(names, partial(_value, row), several))

    def fingerprint(self) -> str:
        """See Source: over the file's bytes, the columns that are read, and the images and sounds that rows name."""
        try:
            places = list(self._places())
        except BadExample as problem:
            raise SourceError(f"the fingerprint cannot be taken: {problem}") from None
        return self._columns.fingerprint(f"csv {self._separator}" if self._separator else "jsonl", [self._path], places)

    def _places(self) -> Iterator[str]:
        for column in self._columns.files:
            file = self._opened().onward()
            for index in range(len(self)):
                try:
                    value = self._row(index, file).get(column)
                    if isinstance(value, str) or (column in self._columns.named and isinstance(value, int)):
                        yield self._columns.locate(self._columns.path(column, value))
                except Unreachable:
                    raise
                except BadExample:
                    continue

    def _row(self, index: int, file: "_OpenRows | None" = None) -> dict[str, Any]:
        """The cells of a row by column; None for one that is empty or null."""
        text = decode_text((file or self._opened()).read(index))
        return _parse_csv(text, self._separator, self._header, self._columns.label) if self._separator else _parse_json(text)

    def _opened(self) -> "_OpenRows":
        with self._lock:
            if self._file is None:
                try:
                    index = self._index or read_index(self._path, self._separator, _scan(self._separator))
                    if index.state != self._state:
                        raise BadExample(f"its file {self._path} was changed since it was opened")
                    self._file = _OpenRows(self._path, index)
                except SourceError as error:
                    raise BadExample(f"its file {self._path} cannot be read: {error}") from None
                except OSError as error:
                    raise unread(f"its file {self._path} cannot be read: {error}", error) from None
                self._index = index
            return self._file


class _OpenRows:
    """The file and its index."""

    def __init__(self, path: str, index: RowIndex) -> None:
        self._path = path
        self._index = index
        self._file = open_file(path)

    def onward(self) -> "_OpenRows":
        """The same, for somebody who reads all rows in order."""
        found = copy.copy(self)
        found._file = self._file.onward()
        return found

    def read(self, row: int) -> bytes:
        """The bytes of a row."""
        start, end = self._index.span(row)
        if end - start > MAX_BYTES:
            raise BadExample(f"its row has {end - start} bytes, more than {MAX_BYTES}")
        try:
            if self._file.current() != self._index.state:
                raise BadExample(f"its file {self._path} was changed since it was opened")
            return self._file.read(start, end - start)
        except OSError as error:
            raise unread(f"its row cannot be read: {error.strerror}", error) from None


def open_csv(spec: str) -> RowsOfFile | Grouped:
    """Opens "FILE[?image=COLUMN&text=COLUMN&label=COLUMN&key=COLUMN&images=DIR&captions=lines|rows&separator=...]".

    The first row names the columns. Fields that have the separator, a quote or a line break in them are quoted, quotes in them
    doubled (RFC 4180); blank lines are no rows; a row that has more or fewer cells than the header is a BadExample. The separator
    (comma, tab or semicolon) is a tab where the file's name ends in .tsv, else a comma. The columns that are image and text are
    found as those of `open_parquet` are; paths are relative to `images`, or else to the folder of FILE. captions=rows makes one
    example of the rows with the same image, or where there is none sound, or with key= with the same key. A path may be made of a
    column, `sound=Y{youtube_id}.wav`, and several columns be captions, `text=caption_1,caption_2`.

    Raises:
        SourceError: no such file, column, folder or option; it is compressed, no UTF-8, has a quote that does not end, or no row.
    """
    at = f"source 'csv:{shown(spec)}'"
    path, options = split_table(spec, ("separator",))
    path = _file(at, path, "csv")
    name = options.pop("separator", "tab" if public(path).lower().endswith((".tsv", ".tab")) else "comma")
    if name not in SEPARATORS:
        raise SourceError(f"{at}: separator={name} is unknown; use {', '.join(SEPARATORS)}")
    separator = SEPARATORS[name]
    index = _read(at, path, separator)
    start, end = index.header
    header = tuple(_cells(open_file(path).read(start, end - start).decode(), separator))
    other = next((word for word, mark in SEPARATORS.items() if mark in header[0]), "") if len(header) == 1 else ""
    if other:
        raise SourceError(f"{at}: its header is one column, {header[0]!r}; add separator={other}")
    return _checked(at, path, separator, header, options, index)


def open_jsonl(spec: str) -> RowsOfFile | Grouped:
    """Opens "FILE[?image=FIELD&text=FIELD&label=FIELD&key=FIELD&images=DIR&captions=lines|rows]": an object of JSON a line.

    The fields of the first line are the columns that options name, and that image and text are found among.

    Raises:
        SourceError: no such file, field, folder or option; it is compressed; its first line is no object of JSON.
    """
    at = f"source 'jsonl:{shown(spec)}'"
    path, options = split_table(spec)
    path = _file(at, path, "jsonl")
    index = _read(at, path, "")
    if not len(index):
        raise SourceError(f"{at}: there is no row in it")
    start, end = index.span(0)
    try:
        first = _parse_json(decode_text(open_file(path).read(start, end - start)))
    except BadExample as problem:
        raise SourceError(f"{at}: the first line: {problem}") from None
    return _checked(at, path, "", tuple(first), options, index)


def _checked(
    at: str, path: str, separator: str, header: tuple[str, ...], options: dict[str, str], index: RowIndex
) -> RowsOfFile | Grouped:
    columns = choose(at, header, options, os.path.dirname(public(path)))
    if not len(index):
        raise SourceError(f"{at}: there is no row in it")
    columns = told_by_values(columns, options, header, RowsOfFile(path, separator, header, columns, index))
    source = RowsOfFile(path, separator, header, columns, index)
    if options.get("captions") == "rows":
        return group_rows(source, known_by(_column(path, separator, header, columns.key or columns.image or columns.sound)))
    if columns.key:
        values = _column(path, separator, header, columns.key)
        unique(at, columns.key, (value for value in values if not isinstance(value, BadExample)))
    if (file := columns.image or columns.sound) and columns.text:
        with suppress(SourceError):  # of a line that is no UTF-8, which is reported when it is read
            tell_repeated(at, _column(path, separator, header, file))
    return source


def _column(path: str, separator: str, header: tuple[str, ...], column: str) -> Iterator[Any]:
    """The values of a column, in one pass; of a row that is broken as a whole the BadExample that says so when it is read."""
    lines = iter(_LineReader(path))
    if not separator:
        for line in lines:
            if line.strip(" \t\n\r\v\f"):
                try:
                    yield _parse_json(line).get(column)
                except BadExample as problem:
                    yield problem
        return
    place = header.index(column)
    rows = filter(None, csv.reader(lines, delimiter=separator, strict=True))
    next(rows)
    for cells in rows:
        yield cells[place] if len(cells) == len(header) else BadExample(f"its row has {len(cells)} cells")


def _file(at: str, name: str, scheme: str) -> str:
    if is_address(name):
        path, *more = expand(name, scheme)
        if more:
            raise SourceError(f"{at}: these are {1 + len(more)} files, and it reads one")
    else:
        path = os.path.expanduser(name)
        if not os.path.isfile(path):
            raise SourceError(f"{at}: there is no file {name!r}")
    if public(path).lower().endswith((".gz", ".zst", ".bz2", ".xz", ".zip")):
        raise SourceError(f"{at}: a compressed file has no rows at random; unpack it, and name what comes of it")
    return path


def _read(at: str, path: str, separator: str) -> RowIndex:
    try:
        return read_index(path, separator, _scan(separator))
    except SourceError as error:
        raise SourceError(f"{at}: {error}") from None
    except OSError as error:
        raise SourceError(f"{at}: {path} cannot be read: {error.strerror}") from None


def _scan(separator: str) -> Callable[[str], Iterator[int]]:
    return partial(_csv_starts, separator=separator) if separator else _json_starts


class _LineReader:
    """The lines of a file as text, and the byte that the next one begins at."""

    def __init__(self, path: str) -> None:
        self._path = path
        self.place = 0
        self.number = 0

    def __iter__(self) -> Iterator[str]:
        with open_stream(self._path) as file:
            for line in file:
                self.number += 1
                skip = len(BOM) if self.number == 1 and line.startswith(BOM) else 0
                try:
                    text = line[skip:].decode("utf-8")
                except UnicodeDecodeError as error:
                    at = f"{self._path}, line {self.number}"
                    raise SourceError(f"{at} is not UTF-8: {error.reason}; save it as UTF-8") from None
                self.place += len(line)
                yield text


def _csv_starts(path: str, separator: str) -> Iterator[int]:
    """The byte that each row begins at, the header first, then the end of the file.

    The csv module finds where rows end, by asking for as many lines as a row has: quoted fields may have line breaks.
    """
    lines = _LineReader(path)
    before = len(BOM) if open_file(path).read(0, 3) == BOM else 0
    rows = csv.reader(iter(lines), delimiter=separator, strict=True)
    try:
        for row in rows:
            if row:
                yield before
            before = lines.place
    except csv.Error as error:
        at = f"{path}, line {lines.number}"
        raise SourceError(f"{at}: {error}; the row that begins at byte {before} cannot be parsed, mend its quotes") from None
    yield lines.place


def _json_starts(path: str) -> Iterator[int]:
    """The byte that each line begins at which is not blank, then the end of the file; lines are parsed when they are read."""
    place = 0
    with open_stream(path) as file:
        for line in file:
            skip = len(BOM) if not place and line.startswith(BOM) else 0
            if line[skip:].strip():
                yield place + skip
            place += len(line)
    yield place


def _cells(text: str, separator: str) -> list[str]:
    return next(csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True), [])


def _parse_csv(text: str, separator: str, header: tuple[str, ...], label: str) -> dict[str, Any]:
    try:
        cells = _cells(text, separator)
    except csv.Error as error:
        raise BadExample(f"its row cannot be parsed: {error}") from None
    if len(cells) != len(header):
        raise BadExample(f"its row has {len(cells)} cells, and the header {len(header)}")
    row: dict[str, Any] = {name: cell or None for name, cell in zip(header, cells, strict=True)}
    value = row.get(label)
    if value is not None and value.isascii() and value.isdigit() and len(value) < 19:
        row[label] = int(value)
    return row


def _parse_json(text: str) -> dict[str, Any]:
    try:
        row = json.loads(text)
        if isinstance(row, dict):
            return row
    except (ValueError, RecursionError) as error:
        raise BadExample(f"its line is no JSON: {error}") from None
    raise BadExample(f"its line is no object of JSON, but a {type(row).__name__}")


def _value(row: dict[str, Any], column: str) -> Any:
    try:
        return _plain(row.get(column))
    except RecursionError:  # json reads what is nested deeper than Python may call
        raise BadExample(f"column {column} is nested too deeply") from None


def _plain(value: Any) -> Any:
    """A value of JSON as jclip has it, see Rows."""
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items() if inner is not None}
    if not isinstance(value, list):
        return value
    if value and all(type(inner) in (int, float) for inner in value):
        whole = all(type(inner) is int and abs(inner) < 1 << 63 for inner in value)
        return np.array(value, np.int64) if whole else as_f32(value)
    if None in value and all(inner is None or type(inner) in (int, float) for inner in value):
        raise BadExample(f"{value.count(None)} of its {len(value)} numbers are null")
    return tuple(map(_plain, value))
