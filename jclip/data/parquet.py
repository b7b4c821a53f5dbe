"""The source `parquet`: rows of Parquet files, read at random by row group."""

import json
import logging
import os
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import accumulate
from typing import Any, NamedTuple

from jclip.data.addresses import State, by_ranges, is_copied, public, shown
from jclip.data.cells import is_bytes, is_image, is_list, is_text, path_of, plain
from jclip.data.columns import Columns, as_key, choose, split_table, told_by_values, unique
from jclip.data.files import unread
from jclip.data.grouped import Grouped, group_rows, known_by, tell_repeated
from jclip.data.patterns import short_names
from jclip.data.source import BadExample, LazyExample, SourceError, Unreachable
from jclip.data.splits import find_tables
from jclip.data.storage import open_for_arrow, state_at

log = logging.getLogger("jclip.data")

CACHE_BYTES = 256 << 20
"""Decoded columns of row groups that a process keeps of a source, in bytes; one that is larger is kept alone."""

LARGE_GROUP = 8 << 20
"""Bytes of a row group from which on random access to a set that is larger than CACHE_BYTES is slow enough to be reported."""

OPEN_FILES = 16
"""Files that a process holds open at a time, each with its footer."""


class Footer(NamedTuple):
    """Facts of a file's footer."""

    path: str
    state: State
    ends: tuple[int, ...]
    """Number of rows up to the end of each row group."""


class Parquet:
    """The rows of files, in the order of the files' names; keys are FILE:ROW, or those of a column.

    Fields are the columns: bytes; str; int, float and bool; lists of numbers as arrays, floats as f32; other lists as tuples;
    structs as mappings, without what is null in them; Hugging Face's images (structs of bytes and path) as bytes. Only columns
    that are asked for are read, a row group at a time: CACHE_BYTES of what is decoded are kept, so that order at random
    is fast where a set, or its row groups, are small.
    """

    templates: tuple[str, ...] = ()

    def __init__(self, files: Sequence[Footer], names: Sequence[str], columns: Columns, several: bool) -> None:
        self._files = tuple(files)
        self._names = tuple(names)
        self._columns = columns
        self._several = several
        self._shown = short_names([file.path for file in files])
        self._ends = list(accumulate(file.ends[-1] if file.ends else 0 for file in files))
        self._start()

    def _start(self) -> None:
        """Open files and decoded columns, which every process has of its own."""
        self._open: OrderedDict[int, _OpenParquet] = OrderedDict()
        self._decoded: OrderedDict[tuple[int, int, str], Any] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        """Open files and what is decoded stay in this process."""
        return {name: value for name, value in vars(self).items() if name not in ("_open", "_decoded", "_lock", "_bytes")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._start()

    @property
    def classes(self) -> tuple[str, ...]:
        """See Source: the names that Hugging Face's metadata give the label."""
        return self._columns.classes

    @property
    def waits(self) -> bool:
        """True: each example, or its row group, is a request to a store."""
        return by_ranges(self.shard_paths) or self._columns.waits

    @property
    def shard_paths(self) -> list[str]:
        """Path or address of each file."""
        return [file.path for file in self._files]

    @property
    def shard_ends(self) -> list[int]:
        """Number of rows up to the end of each file."""
        return self._ends

    @property
    def shards(self) -> dict[str, int]:
        """Bytes of each file, by name."""
        return {name: file.state[0] for name, file in zip(self._shown, self._files, strict=True)}

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> LazyExample:
        if not 0 <= index < len(self):
            raise IndexError(f"parquet has no example {index}; it has {len(self)}")
        number = bisect_right(self._ends, index)
        row = index - (self._ends[number - 1] if number else 0)
        read = partial(self._cell, number, row)
        key = as_key(read(self._columns.key)) if self._columns.key else f"{self._shown[number]}:{row}"
        return LazyExample(key, self._columns.readers(self._names, read, self._several))

    def of_rows(self, at: str, paths_only: bool, joined: bool) -> "Parquet | Grouped":
        """The source as options want it: keys are looked at, rows of an image reported, or `joined` into one example.

        Args:
            at: what an error begins with.
            paths_only: whether the column of images, or else of sounds, holds paths.
            joined: whether captions=rows is given.
        """
        columns = self._columns
        if joined:
            if not columns.key and not paths_only:
                held = f"column {columns.image} holds the images" if columns.image else f"column {columns.sound} holds the sounds"
                raise SourceError(f"{at}: {held}; name a column that identifies them with key=")
            return group_rows(self, known_by(self.values(columns.key or columns.image or columns.sound)))
        if columns.key:
            unique(at, columns.key, (value for value in self.values(columns.key) if not isinstance(value, BadExample)))
        if paths_only and columns.text:
            tell_repeated(at, self.values(columns.image or columns.sound))
        return self

    def fingerprint(self) -> str:
        """See Source: over the files' bytes in order, the columns that are read, and images and sounds outside of them."""
        try:
            places = list(self._places())
        except BadExample as problem:
            raise SourceError(f"the fingerprint cannot be taken: {problem}") from None
        return self._columns.fingerprint("parquet", [file.path for file in self._files], places)

    def _places(self) -> Iterator[str]:
        """The files of images that rows name by a path, in order; row groups that have all bytes in them are not read."""
        for column in self._columns.files:
            yield from self._places_of(column)

    def _places_of(self, column: str) -> Iterator[str]:
        for number, file in enumerate(self._files):
            for group, end in enumerate(file.ends):
                if self._file(number).has_images(group, column):
                    continue
                for row in range(file.ends[group - 1] if group else 0, end):
                    try:
                        scalar = self._scalar(number, row, column)
                        number_of = scalar.as_py() if column in self._columns.named else None
                        if (value := path_of(scalar)) or isinstance(value := number_of, int):
                            yield self._columns.locate(self._columns.path(column, value))
                    except Unreachable:
                        raise
                    except (BadExample, UnicodeDecodeError):
                        continue

    def values(self, column: str) -> Iterator[Any]:
        """The values of a column, in order; of a cell that is broken the BadExample that says so when its row is read.

        Raises SourceError where a file cannot be read.
        """
        for number, file in enumerate(self._files):
            for row in range(file.ends[-1] if file.ends else 0):
                try:
                    yield self._cell(number, row, column)
                except Unreachable as problem:
                    raise SourceError(f"{problem}; mend it, or take it out of the source") from None
                except BadExample as problem:
                    yield problem

    def _cell(self, number: int, row: int, column: str) -> Any:
        try:
            return plain(self._scalar(number, row, column), self._columns)
        except (BadExample, UnicodeDecodeError) as problem:
            kind = type(problem) if isinstance(problem, BadExample) else BadExample
            raise kind(f"column {column}: {problem}") from None

    def _scalar(self, number: int, row: int, column: str) -> Any:
        ends = self._files[number].ends
        group = bisect_right(ends, row)
        return self._column(number, group, column)[row - (ends[group - 1] if group else 0)]

    def _column(self, number: int, group: int, column: str) -> Any:
        """A column of a row group, decoded."""
        place = (number, group, column)
        found = self._kept(place)
        if found is not None:
            return found
        file = self._file(number)
        with file.lock:  # a reader of a file is no two threads'; what one has decoded, the next one finds
            found = self._kept(place)
            if found is None:
                found = file.read(group, column)
                self._keep(place, found)
        return found

    def _kept(self, place: tuple[int, int, str]) -> Any:
        with self._lock:
            found = self._decoded.get(place)
            if found is not None:
                self._decoded.move_to_end(place)
            return found

    def _keep(self, place: tuple[int, int, str], values: Any) -> None:
        with self._lock:
            if place in self._decoded:  # by a reader of the file that was closed meanwhile
                return
            self._decoded[place] = values
            self._bytes += values.nbytes
            while self._bytes > CACHE_BYTES and len(self._decoded) > 1:
                _, oldest = self._decoded.popitem(last=False)
                self._bytes -= oldest.nbytes

    def _file(self, number: int) -> "_OpenParquet":
        """File `number`, open. One that is closed here lives on until its last reader lets go of it."""
        with self._lock:
            file = self._open.get(number)
        if file is None or file.copied != is_copied(self._files[number].path):
            file = _OpenParquet(self._files[number])
        with self._lock:
            if self._open.setdefault(number, file).copied != file.copied:
                self._open[number] = file
            file = self._open[number]
            self._open.move_to_end(number)
            while len(self._open) > OPEN_FILES:
                self._open.popitem(last=False)
        return file


class _OpenParquet:
    """A file and its footer. Raises BadExample where it is not what it was when the source was opened."""

    def __init__(self, file: Footer) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.lock = threading.Lock()
        self.copied = is_copied(file.path)
        self._path = file.path
        self._ends = file.ends
        self._errors = (pa.ArrowException, OSError, UnicodeDecodeError)  # the last: names in a damaged footer
        try:
            if state_at(file.path) != file.state:
                raise BadExample(f"its file {file.path} was changed since it was opened")
            self._reader = pq.ParquetFile(open_for_arrow(file.path))
        except self._errors as error:
            raise _unread(f"its file {file.path} cannot be read: {_first(error)}", error) from None

    def has_images(self, group: int, column: str) -> bool:
        """True where the footer says that each image of a row group is bytes, so that none is a path."""
        kind = self._reader.schema_arrow.field(column).type
        facts = self._reader.metadata.row_group(group)
        chunks = map(facts.column, range(facts.num_columns))
        try:
            chunk = next((chunk for chunk in chunks if chunk.path_in_schema == f"{column}.bytes"), None)
        except UnicodeDecodeError:
            return False
        if chunk is None or not is_image(kind):
            return is_bytes(kind)
        return chunk.statistics is not None and chunk.statistics.has_null_count and chunk.statistics.null_count == 0

    def read(self, group: int, column: str) -> Any:
        """A column of a row group: a ChunkedArray."""
        try:
            values = self._reader.read_row_group(group, columns=[column], use_threads=False).column(column)
        except (*self._errors, KeyError) as error:
            raise _unread(f"row group {group} of {self._path} cannot be read: {_first(error)}", error) from None
        rows = self._ends[group] - (self._ends[group - 1] if group else 0)
        if len(values) != rows:
            raise BadExample(f"row group {group} of {self._path} is damaged: it has {len(values)} rows of {rows}")
        return values


def _unread(reason: str, error: BaseException) -> BadExample:
    """See `unread`: pyarrow says OSError of damage as well, without a number."""
    return unread(reason, error) if isinstance(error, OSError) and error.errno is not None else BadExample(reason)


def _first(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def open_parquet(spec: str) -> Parquet | Grouped:
    """Opens "PATTERN[?image=COLUMN&text=COLUMN&label=COLUMN&key=COLUMN&images=DIR&captions=lines|rows&split=SPLIT]".

    PATTERN is as in jclip.data.patterns, or a folder of files such as train-00000-of-00002.parquet, also in its folder "data", of
    which `split` chooses. Without options the image is the first column there is of IMAGES, the text of TEXTS
    (jclip.data.columns), the label is "label", or the only column that Hugging Face's metadata give names of classes.
    captions=rows makes one example of the rows with the same image, or with key= with the same key.

    Raises:
        SourceError: pyarrow is missing; no such file, column, folder or option; a file is damaged, or has other columns than the
            first; keys that are not unique; no row.
    """
    at = f"source 'parquet:{shown(spec)}'"
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise SourceError(f'{at}: pyarrow cannot be imported ({error}); pip install "jclip[tables]"') from None
    pattern, options = split_table(spec, ("split",))
    paths = find_tables(at, pattern, options.pop("split", ""))
    first = None
    files: list[Footer] = []
    sizes: list[int] = []
    for path in paths:
        file, schema, groups = _footer(at, path)
        files.append(file)
        sizes += groups
        if first is None:
            first = schema
            columns = choose(at, schema.names, options, os.path.dirname(public(path)))
        _check(at, path, schema, first, columns)
    assert first is not None, "`expand` names one file at least"
    if not columns.label and len(names := [name for name in first.names if _class_names(first, name)]) == 1:
        columns = replace(columns, label=names[0])
    columns = replace(columns, classes=_class_names(first, columns.label))
    several = bool(columns.text) and is_list(first.field(columns.text).type)
    source = Parquet(files, first.names, columns, several)
    if not len(source):
        raise SourceError(f"{at}: there is no row in {len(paths)} files")
    columns = told_by_values(columns, options, first.names, source)
    source = Parquet(files, first.names, columns, several)
    if sum(sizes) > CACHE_BYTES and max(sizes) > LARGE_GROUP:
        log.warning(
            "%s: its row groups have up to %d MiB, and an example drawn at random decodes the columns it needs of a whole one; "
            "write it again with smaller row groups (row_group_size=100 or less), or as tar shards",
            at,
            max(sizes) >> 20,
        )
    paths_only = bool(media := columns.image or columns.sound) and is_text(first.field(media).type)
    return source.of_rows(at, paths_only, options.get("captions") == "rows")


def _footer(at: str, path: str) -> tuple[Footer, Any, list[int]]:
    """The facts of a file, its schema (pyarrow.Schema), and the bytes of each row group before compression."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        state = state_at(path)
        with pq.ParquetFile(open_for_arrow(path)) as reader:
            groups = [reader.metadata.row_group(i) for i in range(reader.metadata.num_row_groups)]
            ends = tuple(accumulate(group.num_rows for group in groups))
            schema = reader.schema_arrow
            # Names are decoded where they are asked for, and those of a damaged footer are no UTF-8.
            list(schema.names)
            str(schema)
            return Footer(path, state, ends), schema, [group.total_byte_size for group in groups]
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = f"{path} is no whole Parquet file: {_first(error)}"
        raise SourceError(f"{at}: {reason}; get it again, or take it out of the source") from None


def _check(at: str, path: str, schema: Any, first: Any, columns: Columns) -> None:
    """Raises SourceError where a file has other columns or classes than the first one, or an image that cannot be one."""
    if set(schema.names) != set(first.names):
        others = ", ".join(sorted(set(schema.names) ^ set(first.names)))
        raise SourceError(f"{at}: {path} has other columns than the first file: {others}; name files of one table")
    if columns.image:
        kind = schema.field(columns.image).type
        import pyarrow as pa

        if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind):
            raise SourceError(
                f"{at}: {path}: column {columns.image} is {kind}; an image is bytes, a struct of bytes and path, or a path: name "
                "its column with image="
            )
    for name in first.names:
        if _class_names(schema, name) != _class_names(first, name):
            raise SourceError(f"{at}: {path} has other classes of {name} than the first file; name files of one table")


def _class_names(schema: Any, column: str) -> tuple[str, ...]:
    """The names of a ClassLabel in Hugging Face's metadata; () where there are none."""
    try:
        feature = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"][column]
        names = feature["names"] if feature["_type"] == "ClassLabel" else ()
    except (KeyError, ValueError, TypeError, RecursionError):
        return ()
    return tuple(map(str, names)) if isinstance(names, list) else ()
