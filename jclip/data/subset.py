"""A part of a source: the rows that keys, a condition or a score keep, found once when it is opened."""

import io
import json
import math
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from jclip.config import ConfigError, Subset
from jclip.config.conditions import CannotSay, parse_condition
from jclip.data.fields import class_names
from jclip.data.fingerprint import combine
from jclip.data.open import open_source
from jclip.data.reader import reading_threads, waits
from jclip.data.source import BadExample, Example, Source, SourceError, Unreachable, lookup, read_lines
from jclip.files import read_whole

if TYPE_CHECKING:
    from jclip.data.keys import KeyIndex

AT_A_TIME = 2048
"""Examples that a thread looks at before it hands over what it has found; where each is a request to a store, WAITING_EACH."""

WAITING_EACH = 64

MOST_REASONS = 6
"""Reasons why examples are left out that are listed; the rarer ones are counted together."""

Rows = NDArray[np.int64]


class SelectedExamples:
    """Some examples of a source, in its order."""

    def __init__(self, source: Source, rows: Rows, notes: Sequence[str], fields: Mapping[str, int] | None = None) -> None:
        self.source = source
        self.rows = rows.astype(np.uint32) if len(source) < 2**32 else rows
        """Index in the source of each example; u32 where these are enough, as every worker process has a copy."""
        self.notes = tuple(notes)
        """A line for people on what is kept, and on each reason why examples are left out."""
        self.fields = dict(fields or {})
        """Number of these examples by their fields, whose names are joined by a space, where the source knows them of its own."""

    @property
    def classes(self) -> tuple[str, ...]:
        return class_names(self.source)

    @property
    def templates(self) -> tuple[str, ...]:
        return tuple(getattr(self.source, "templates", ()))

    @property
    def shards(self) -> Mapping[str, int] | None:
        """Bytes of each shard of the source, by name; None where it has none."""
        return getattr(self.source, "shards", None)

    @property
    def shard_paths(self) -> Sequence[str] | None:
        """Path or address of each shard of the source; None where it has none."""
        return getattr(self.source, "shard_paths", None)

    @property
    def shard_ends(self) -> Rows | None:
        """Number of these examples up to the end of each shard of the source; None where it has none."""
        ends = getattr(self.source, "shard_ends", None)
        return None if ends is None else np.searchsorted(self.rows, np.asarray(ends, self.rows.dtype)).astype(np.int64)

    @property
    def left_out(self) -> Mapping[str, int]:
        """Number of things in the files of the source that are in no example, by the reason."""
        return getattr(self.source, "left_out", {})

    @property
    def waits(self) -> bool:
        """True where reading an example is mostly waiting for a store."""
        return waits(self.source)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(f"this part of a source has no example {index}; it has {len(self)}")
        return self.source[int(self.rows[index])]

    def fingerprint(self) -> str:
        """See Source: over the source, and which of its examples these are."""
        return combine("subset", self.source.fingerprint(), self.rows.astype("<i8").tobytes())


def select(source: Source, subset: Subset, at: str = "subset") -> Source:
    """The part of a source that `subset` says; the source itself where it says nothing.

    Reads the key of every example once, and the fields that `by`, `where` and `best` name. Examples that cannot be read, or of
    which the condition says nothing, are left out and counted.

    Args:
        source: the whole.
        subset: what is kept.
        at: what an error names.

    Raises:
        SourceError: a file of keys or the table cannot be read; or nothing is left.
        ConfigError: the condition means nothing.
    """
    if subset == Subset():
        return source
    search = _Search.of(subset, at)
    size = WAITING_EACH if waits(source) else AT_A_TIME
    parts = [range(start, min(start + size, len(source))) for start in range(0, len(source), size)]
    try:
        with ThreadPoolExecutor(reading_threads(source)) as pool:
            looks = list(_progress(pool.map(partial(search.look, source), parts), len(parts)))
    except Unreachable as problem:  # the subset would depend on the day
        raise SourceError(f"{at}: not all examples can be read: {problem}; start again when they can") from None
    kept = np.concatenate([look.kept for look in looks]) if looks else np.zeros(0, bool)
    why = Counter[str]()
    first = dict[str, str]()
    for look in looks:
        why.update(look.why)
        first = {**look.first, **first}
    if subset.best is not None:
        field, share = subset.best
        best = highest(np.concatenate([look.scores for look in looks]), share)
        why[f"not among the best {share:.3g} by {field}"] = int(np.sum(kept & ~best))
        kept &= best
    notes = [f"{kept.sum():,} of {len(source):,} examples are in the subset", *_reasons(why, first)]
    if search.keys is not None:
        unused = search.keys.distinct - len(np.unique(np.concatenate([look.places for look in looks])))
        if unused:
            notes.append(f"{unused:,} of {search.keys.distinct:,} keys in {subset.keys} are no {subset.by} of an example")
    if not kept.any():
        raise SourceError(f"{at}: nothing is left of {len(source):,} examples: {'; '.join(notes[1:])}")
    rows = np.flatnonzero(kept)
    names = list(chain.from_iterable(look.fields for look in looks))
    return SelectedExamples(source, rows, notes, Counter(names[row] for row in rows) if names else None)


def source_name(source: str | Source) -> str:
    """The name of a source in records and on pages: what names it, or of an object its class."""
    return source if isinstance(source, str) else type(source).__name__


def open_part(source: str | Source, subset: Subset, command: str) -> Source:
    """The part of a source that the arguments of a command name: of an object, of what names a source, or of a folder of images
    or packed shards.

    Raises:
        SourceError: the source cannot be opened, or nothing of it is left.
        ConfigError: `subset` contradicts itself.
    """
    for problem in subset.problems():
        raise ConfigError(f"{command}: --{problem[1:]}")
    if isinstance(source, str):
        if Path(source).is_dir():
            source = f"webdataset:{source}" if Path(source, "nshards.txt").exists() else f"folder:{source}"
        source = open_source(source)
    return select(source, subset, command)


def highest(scores: NDArray[np.float64], share: float) -> NDArray[np.bool_]:
    """True for the highest scores f64[n], NaN below all others: round(share * n) of them, of equal ones the first."""
    ranks = np.argsort(-scores, kind="stable")  # NaN last
    best = np.zeros(len(scores), bool)
    best[ranks[: round(share * len(scores))]] = True
    return best & ~np.isnan(scores)


class _Look(NamedTuple):
    """Findings of n examples."""

    kept: NDArray[np.bool_]
    """bool[n]: what keys and condition keep."""
    scores: NDArray[np.float64]
    """f64[n] of `best`; NaN where there is none."""
    places: Rows
    """Places in the file of keys that were found."""
    why: Counter[str]
    """Number of examples left out, by `_kind` of the reason."""
    first: dict[str, str]
    """The first reason of each kind."""
    fields: list[str]
    """Names of the fields of each; none where the source does not count them."""


@dataclass(frozen=True)
class _Search:
    """Subset with its files read."""

    subset: Subset
    keys: "KeyIndex | None"
    table: "KeyedTable | None"

    @classmethod
    def of(cls, subset: Subset, at: str) -> "_Search":
        names = list(parse_condition(subset.where).paths) if subset.where else []
        names += [subset.best[0]] if subset.best is not None else []
        from jclip.data.keys import KeyIndex

        keys = KeyIndex(read_keys(subset.keys, subset.by, at)) if subset.keys else None
        return cls(subset, keys, read_table(subset.table, names, at) if subset.table else None)

    def look(self, source: Source, rows: range) -> _Look:
        """Examples that keys and condition keep among these, and the score of each."""
        kept, scores, places = np.zeros(len(rows), bool), np.full(len(rows), np.nan), list[int]()
        why, first, fields = Counter[str](), dict[str, str](), list[str]()
        counted = bool(getattr(source, "fields", None))
        for i, row in enumerate(rows):
            try:
                example = source[row]
                if counted:
                    fields.append(sys.intern(" ".join(name for name in example if name != "key")))
                place = self._place(example)
                if place is not None and place >= 0:
                    places.append(place)
                if self.subset.best is not None:  # a share of the whole source, whatever else leaves an example out
                    scores[i] = self._score(example)
                if place == -1:
                    raise _LeftOut(f"not in {self.subset.keys}")
                if self.subset.where and not parse_condition(self.subset.where)(partial(self._value, example)):
                    raise _LeftOut(f"not {self.subset.where}")
                kept[i] = True
            except Unreachable:
                raise
            except (_LeftOut, BadExample, CannotSay) as reason:
                why[_kind(str(reason))] += 1
                first.setdefault(_kind(str(reason)), str(reason))
            if counted and len(fields) <= i:  # it cannot be read
                fields.append("")
        return _Look(kept, scores, np.array(places, np.int64), why, first, fields)

    def _place(self, example: Example) -> int | None:
        """The place of an example in the file of keys; -1 where it is not there, None where there is no file."""
        return None if self.keys is None else self.keys.find(str(lookup(example, self.subset.by)))

    def _score(self, example: Example) -> float:
        assert self.subset.best is not None
        try:
            value = self._value(example, self.subset.best[0])
        except LookupError as problem:
            raise _LeftOut(str(problem.args[0] if problem.args else problem)) from None
        if isinstance(value, bool) or not isinstance(value, int | float | np.number):
            raise _LeftOut(f"{self.subset.best[0]} is no number")
        try:
            score = float(value)
        except OverflowError:
            raise _LeftOut(f"{self.subset.best[0]} is beyond all numbers") from None
        if math.isnan(score):
            raise _LeftOut(f"{self.subset.best[0]} is NaN")
        return score

    def _value(self, example: Example, path: str) -> Any:
        """A column of the table, or a field; LookupError where there is none."""
        if self.table is not None and path in self.table.columns:
            return self.table.value(str(example["key"]), path)
        try:
            return lookup(example, path)
        except Unreachable:
            raise
        except BadExample as problem:
            raise LookupError(str(problem)) from None


class _LeftOut(Exception):
    """The reason why an example is left out."""


@dataclass(frozen=True)
class KeyedTable:
    """Columns of a table, by the keys of examples."""

    path: str
    index: "KeyIndex"
    columns: Mapping[str, Any]
    """Arrow arrays by name."""

    def value(self, key: str, column: str) -> Any:
        """A cell; LookupError where the table has no such row."""
        place = self.index.find(key)
        if place < 0:
            raise LookupError(f"{self.path} has no row of it")
        return self.columns[column][place].as_py()


def read_table(path: str, names: Sequence[str], at: str) -> KeyedTable:
    """Columns of a Parquet file, those among `names`, by its column "key".

    Raises:
        SourceError: it cannot be read, has no column "key" of texts, none of the names, or a key twice.
    """
    columns = _read_columns(path, ("key", *names), at)
    if "key" not in columns:
        raise SourceError(f"{at}: {path} has no column key, by which a row is known")
    if len(columns) == 1:
        raise SourceError(f"{at}: {path} has none of the columns {', '.join(names)}")
    from jclip.data.keys import KeyIndex

    index = KeyIndex(_texts(columns.pop("key").to_pylist(), path, at))
    if index.distinct < len(index):
        raise SourceError(f"{at}: {path} has a key twice; a row is known by its key")
    return KeyedTable(path, index, columns)


def _read_columns(path: str, names: Sequence[str], at: str) -> dict[str, Any]:
    """Columns of a Parquet file, those among `names`: Arrow arrays."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise SourceError(f'{at}: pyarrow cannot be imported ({error}); pip install "jclip[tables]"') from None
    try:
        with pq.ParquetFile(pa.BufferReader(read_whole(Path(path).expanduser()))) as file:
            table = file.read([name for name in file.schema_arrow.names if name in names])
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise SourceError(f"{at}: {path} cannot be read: {str(error).splitlines()[0]}") from None
    return {name: table.column(name).combine_chunks() for name in table.column_names}


def read_keys(path: str, by: str, at: str) -> Iterator[str]:
    """The keys in a file, see `Subset.keys`; DataComp's uids as 32 hexadecimal digits.

    Raises:
        SourceError: it cannot be read, or is none of the kinds; from `next`: it has a key that is no text.
    """
    place = Path(path).expanduser()
    keys: Iterable[Any]
    try:
        match place.suffix:
            case ".txt":
                keys = read_lines(place)
            case ".jsonl":
                keys = [json.loads(line) for line in read_whole(place).split(b"\n") if line.strip()]
            case ".npy":
                keys = _array_keys(np.load(io.BytesIO(read_whole(place)), allow_pickle=False))
            case _:
                if by not in (columns := _read_columns(path, (by,), at)):
                    raise SourceError(f"{at}: {path} has no column {by}")
                keys = columns[by].to_pylist()
    except SourceError:
        raise
    except (OSError, ValueError, EOFError, RecursionError) as error:
        raise SourceError(f"{at}: {path} cannot be read as keys: {error}") from None
    return _texts(keys, path, at)


def _texts(keys: Iterable[Any], path: str, at: str) -> Iterator[str]:
    for key in keys:
        if not isinstance(key, str):
            raise SourceError(f"{at}: {path} has a key that is no text: {key!r}")
        yield key


def _array_keys(array: NDArray[Any]) -> Iterator[str]:
    """The keys of an array of texts, or of uids: pairs of u64, of which the first has the first 16 of 32 digits."""
    kinds = [array.dtype[name].str for name in array.dtype.names or ()]
    if array.ndim != 1 or not (array.dtype.kind == "U" or kinds == ["<u8", "<u8"]):
        raise ValueError(f"it is {array.dtype}{list(array.shape)}, neither texts nor uids (pairs of u64)")
    return map(str, array) if not kinds else (f"{high:016x}{low:016x}" for high, low in map(tuple, array))


def _kind(reason: str) -> str:
    """A reason without what differs between examples: numbers, and what is quoted."""
    return re.sub(r"(?<![\w.])\d[\d,.]*", "N", re.sub(r"'[^']*'", "'...'", reason))[:120]


def _reasons(why: Counter[str], first: Mapping[str, str]) -> list[str]:
    lines = [f"{count:,} are left out: {first.get(kind, kind)[:200]}" for kind, count in why.most_common(MOST_REASONS) if count]
    rest = sum(why.values()) - sum(count for _, count in why.most_common(MOST_REASONS))
    return [*lines, f"{rest:,} are left out for other reasons"] if rest else lines


def _progress(looks: Iterable[_Look], total: int) -> Iterable[_Look]:
    """The same, beside a bar on a terminal."""
    return track(looks, "select", total=total, console=Console(emoji=False, stderr=True), transient=True, disable=total < 8)
