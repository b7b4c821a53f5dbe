"""Findings on every example of a source, as `jclip filter` collects them: what subset and caption say, and all as a table."""

import re
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jclip.config import Filter, Subset
from jclip.data.balance import Entries
from jclip.data.fields import class_names, find, is_blank
from jclip.data.language import Language, language_of
from jclip.data.reader import reading_threads
from jclip.data.source import BadExample, Source, SourceError
from jclip.data.subset import SelectedExamples, select
from jclip.files import read_whole

RULES = ("unreadable", "subset", "language", "unlike", "score", "contaminated", "duplicate", "balance")
"""Rules in the order in which they are asked; an example is unreadable where a rule cannot read what it asks for."""

AT_A_TIME = 2048
"""Examples that a thread reads before it hands over what it has found."""


class Findings:
    """All that is known of n examples: row i belongs to example i of the source."""

    def __init__(self, n: int, rules: Filter) -> None:
        self.rules = rules
        self.keys: list[str | None] = [None] * n
        """Keys; None of an example that cannot be read."""
        self.dropped = np.zeros(n, np.int8)
        """The `number` of the rule that has dropped it; 0: kept."""
        self.language: list[Language | None] = [None] * n
        self.entries = [np.zeros(0, np.int32)] * n
        """Indices of the entries of `balance` that its caption has."""
        self.names: list[str] = []
        """These entries."""
        self.score = np.full(n, np.nan, np.float32)
        """Cosine of image and caption; NaN where it was not asked for."""
        self.cluster = np.full(n, -1)
        """Number of the cluster of its image; -1 where it was not asked for."""
        self.before_cosine, self.before_row = np.full(n, -np.inf, np.float32), np.full(n, -1)
        """The nearest image before it, as an index of the source; -inf and -1 where it was not asked for or there is none."""
        self.against_cosine, self.against_row = np.full(n, -np.inf, np.float32), np.full(n, -1)
        """The nearest image of the sources `against`, as an index of that source."""
        self.against_source = np.full(n, -1)
        """Place of that source in `against`; -1 where there is none."""
        self.reasons = Counter[str]()
        """Number of problems by reason, of examples that cannot be read; one may have two."""
        self.notes: list[str] = []
        """Lines for people."""

    @staticmethod
    def number(rule: str) -> int:
        """Number of a rule in `dropped`."""
        return 1 + RULES.index(rule)

    def kept(self) -> NDArray[np.int64]:
        """Rows that no rule has dropped yet, ascending."""
        return np.flatnonzero(self.dropped == 0)

    def rows(self, rule: str) -> NDArray[np.int64]:
        """Rows that a rule has dropped, ascending."""
        return np.flatnonzero(self.dropped == self.number(rule))

    def drop(self, rows: NDArray[np.int64], rule: str) -> None:
        """Drops those of the rows that no rule has dropped before: each example is counted once, by the first."""
        self.dropped[rows[self.dropped[rows] == 0]] = self.number(rule)

    def counts(self) -> dict[str, int]:
        """Number of examples kept, and dropped by each rule; their sum is that of all."""
        return {"kept": len(self.kept()), **{rule: len(self.rows(rule)) for rule in RULES}}

    def count_unreadable(self, problems: Path) -> None:
        """Adds the reasons that a file of `jclip embed` gives, lines of "TOWER: KEY: REASON"."""
        for line in read_whole(problems).decode().splitlines() if problems.exists() else []:
            tower, _, rest = line.partition(": ")
            self.reasons[f"{tower}: {_kind(rest.partition(': ')[2] or rest)}"] += 1


class _Finding(NamedTuple):
    """Findings on one example, from its key and caption."""

    key: str | None = None
    language: Language | None = None
    entries: NDArray[np.int32] = np.zeros(0, np.int32)
    problem: str = ""


def read_findings(source: Source, rules: Filter, entries: Entries | None) -> Findings:
    """Findings from subset and captions, which needs no model and no image.

    Every key is read, and of the examples of the subset the caption, where a rule asks for it.

    Raises:
        SourceError: a file cannot be read, or nothing is left of the subset.
    """
    found = Findings(len(source), rules)
    found.names = entries.names if entries is not None else []
    inside = np.ones(len(source), bool)
    if rules.subset != Subset():
        part = select(source, rules.subset, "filter: subset")
        assert isinstance(part, SelectedExamples)
        inside[:] = False
        inside[part.rows] = True
        found.notes += part.notes[1:]
    with ThreadPoolExecutor(reading_threads()) as pool:
        starts = range(0, len(source), AT_A_TIME)
        parts = [range(start, min(start + AT_A_TIME, len(source))) for start in starts]
        for rows, reads in zip(parts, pool.map(partial(_read, source, rules, entries, inside), parts), strict=True):
            for row, read in zip(rows, reads, strict=True):
                found.keys[row], found.language[row], found.entries[row] = read.key, read.language, read.entries
                if read.problem:
                    found.reasons[_kind(read.problem)] += 1
                    found.dropped[row] = found.number("unreadable")
    found.drop(np.flatnonzero(~inside), "subset")
    known = [key for key in found.keys if key is not None]
    if repeated := len(known) - len(set(known)):
        found.notes.append(f"{repeated:,} examples have the key of another before them: a file of keys keeps both or none")
    if rules.languages:
        found.drop(np.array([row for row in found.kept() if not _is_in(found.language[row], rules)], np.int64), "language")
    return found


def _read(source: Source, rules: Filter, entries: Entries | None, inside: NDArray[np.bool_], rows: range) -> list[_Finding]:
    return [_read_one(source, rules, entries, row, bool(inside[row])) for row in rows]


def _read_one(source: Source, rules: Filter, entries: Entries | None, row: int, inside: bool) -> _Finding:
    key = None
    try:
        example = source[row]
        key = str(example["key"])
        if not inside or not rules.reads_text:
            return _Finding(key)
        text = caption(find(example, rules.text, class_names(source)).value)
    except BadExample as problem:
        return _Finding(key, problem=str(problem))
    language = language_of(text) if rules.languages else None
    matched = entries.match(text) if entries is not None and _is_in(language, rules) else _Finding().entries
    return _Finding(key, language, matched)


def caption(value: Any) -> str:
    """The caption that a field holds, of several the first. Raises BadExample where it is none."""
    texts = value if isinstance(value, tuple | list) else (value,)
    if (text := next((one for one in texts if not is_blank(one)), None)) is None:
        raise BadExample("its caption is blank")
    if not isinstance(text, str):
        raise BadExample(f"its caption is a {type(text).__name__}, not a text")
    return text


def _is_in(language: Language | None, rules: Filter) -> bool:
    if not rules.languages:
        return True
    return language is not None and language.code in rules.languages and language.probability >= rules.language_least


def _kind(problem: str) -> str:
    """A reason without the numbers that differ between examples."""
    return re.sub(r"\d+", "N", problem)[:100]


def read_entries(path: str) -> Entries:
    """The entries of a file, one a line; blank lines are none. Raises SourceError where it cannot be read or has no entry."""
    try:
        lines = read_whole(Path(path).expanduser()).decode("utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"filter: {path} cannot be read: {error}") from None
    try:
        return Entries(line for line in lines if line.strip())
    except SourceError as error:
        raise SourceError(f"filter: {path}: {error}") from None


def table_of(found: Findings, others: Sequence[Sequence[str]]) -> Any:
    """The findings as an Arrow table, a row for each example whose key can be read; what no rule asked for is null.

    Args:
        found: the findings.
        others: the keys of each source `against`.
    """
    import pyarrow as pa

    rows = np.array([row for row, key in enumerate(found.keys) if key is not None], np.int64)

    def number(values: NDArray[np.float32]) -> Any:
        return pa.array(values[rows], pa.float32(), mask=~np.isfinite(values[rows]))

    def texts(values: Sequence[str | None]) -> Any:
        return pa.array([one and one.encode("utf-8", "backslashreplace").decode() for one in values], pa.string())

    def met(row: int) -> str | None:
        source, at = found.against_source[row], found.against_row[row]
        return others[source][at] if at >= 0 else None

    language = [found.language[row] for row in rows]
    names = ["", *RULES]
    return pa.table(
        {
            "key": texts([found.keys[row] for row in rows]),
            "index": pa.array(rows, pa.int64()),
            "dropped": texts([names[found.dropped[row]] for row in rows]),
            "language": texts([one and one.code for one in language]),
            "language_probability": pa.array([one and one.probability for one in language], pa.float32()),
            "cluster": pa.array(found.cluster[rows], pa.int64(), mask=found.cluster[rows] < 0),
            "score": number(found.score),
            "before": texts([found.keys[at] if (at := found.before_row[row]) >= 0 else None for row in rows]),
            "before_cosine": number(found.before_cosine),
            "against": texts([met(row) for row in rows]),
            "against_source": texts([[None, *found.rules.against][1 + found.against_source[row]] for row in rows]),
            "against_cosine": number(found.against_cosine),
            "entries": pa.array([[found.names[i] for i in found.entries[row]] for row in rows], pa.list_(pa.string())),
        }
    )
