"""Examples of a source as arrays, and the whole source once and in order, as evaluations read it."""

import copy
import itertools
import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jclip.config import valid_name
from jclip.data.allocator import keep_freed_memory
from jclip.data.decoding import Decode, Open
from jclip.data.fields import check_fields, class_names, find, is_blank
from jclip.data.reading import Compose, Transform
from jclip.data.source import BadExample, Lacking, Source, SourceError

Arrays = dict[str, NDArray[Any]]

READ_AHEAD = 2
"""Batches of an evaluation that are read ahead."""


@dataclass(frozen=True)
class EvalBatch:
    """This host's rows of one global batch of an evaluation."""

    arrays: Arrays
    """Inputs by tower; zeros where `mask` is False."""
    mask: NDArray[np.bool_]
    """bool[b]: whether the row is an example, neither padding nor broken."""
    keys: list[str]
    """The example of each row, broken ones included; "" for padding."""
    problems: list[str]
    """ "key: reason" of each broken example."""


def read_once(
    source: Source,
    transforms: Mapping[str, Transform],
    *,
    batch_size: int,
    host: int = 0,
    hosts: int = 1,
    fields: Mapping[str, str] | None = None,
    start: int = 0,
    stop: int | None = None,
) -> Iterator[EvalBatch]:
    """The whole source once, in its order; the same number of batches on every host, the last one padded.

    Args:
        source: what is read.
        transforms: how the input of each tower is made, by tower name; other towers' inputs are not read.
        batch_size: examples in the global batch; host h has rows h*b to (h+1)*b of it, where b = batch_size / hosts.
        host: which host this is.
        hosts: how many there are.
        fields: field of an example for each tower, where that is not its own name; an expression, see `find`.
        start: the example to begin with.
        stop: the example before which to end; None: after the last.

    Raises:
        ValueError: `hosts` does not divide batch_size, host is out of range, or a field is no expression.
    """
    check_fields(fields or {}, "read_once")
    if not 0 <= host < hosts or batch_size < 1 or batch_size % hosts:
        raise ValueError(f"read_once: batch_size {batch_size} cannot be shared by {hosts} hosts (this is host {host})")
    read = _ReadExample(source, transforms, fields or {})
    rows = batch_size // hosts
    first = start + host * rows
    stop = len(source) if stop is None else stop
    starts = range(first, first + -(-(stop - start) // batch_size) * batch_size, batch_size)
    return _read_ahead(read, stop, starts, rows)


def read_field(source: Source, field: str) -> Iterator[Any]:
    """One field of every example, in order; where it cannot be read, the BadExample that says why.

    Args:
        source: what is read.
        field: an expression, as `find` takes it; of alternatives each example gives the first that is there.
    """

    def read(index: int) -> Any:
        try:
            return find(source[index], field, class_names(source)).value
        except BadExample as problem:
            return problem

    with ThreadPoolExecutor(reading_threads(source)) as pool:
        for start in range(0, len(source), 1024):  # not all at once: nothing waits in memory
            yield from pool.map(read, range(start, min(start + 1024, len(source))))


def make_arrays(
    transforms: Mapping[str, Transform],
    example: Mapping[str, Any],
    fields: Mapping[str, str],
    rng: np.random.Generator | None,
    same: Mapping[str, str] = MappingProxyType({}),
    classes: Sequence[str] = (),
    optional: Mapping[str, NDArray[Any]] = MappingProxyType({}),
) -> Arrays:
    """The arrays that the transforms make of an example.

    Args:
        transforms: how each array is made, by its name.
        example: what a source has given.
        fields: field of each array, where that is not its own name; an expression, see `find`.
        rng: of all that is random in fields and transforms; None: nothing is, as in evaluations.
        same: arrays that repeat the random draws of another.
        classes: names of the source's labels.
        optional: arrays that the example may lack, and what then stands for each. Beside each there is another one, "NAME/valid",
            bool []: whether the example has it.

    Raises:
        BadExample: a field is missing, or a value cannot be used, also one that may be missing.
    """
    decoded: dict[tuple[str, Decode | Open], Any] = {}  # several views of an image decode it once, which is most of the work

    def made(field: str, transform: Transform, rng: np.random.Generator | None, may_lack: bool) -> NDArray[Any]:
        value, _, name = find(example, field, classes, rng)
        if may_lack and is_blank(value):
            raise Lacking(f"{field} is blank")
        if not isinstance(transform, Compose) or not isinstance(decode := transform.transforms[0], Decode | Open):
            return np.asarray(transform(value, rng))
        if (name, decode) not in decoded:
            decoded[name, decode] = decode(value)
        return np.asarray(Compose(transform.transforms[1:])(decoded[name, decode], rng))

    # Views beside the towers' own draw from streams of their own: one more, or another augmentation, changes no other.
    more = any("@" in name for name in transforms)
    base = int(copy.deepcopy(rng).integers(2**63)) if more and rng is not None else None
    streams = {name: rng if base is None or "@" not in name else _stream(base, name) for name in transforms}
    arrays, before = dict[str, NDArray[Any]](), dict[str, np.random.Generator | None]()
    for name in sorted(transforms, key=lambda name: name in same):  # in their order, those that repeat others last
        stream = copy.deepcopy(before[same[name]]) if name in same else streams[name]
        if name in same.values():
            before[name] = copy.deepcopy(stream)
        try:
            arrays[name] = made(fields.get(name, name), transforms[name], stream, name in optional)
        except Lacking:
            if name not in optional:
                raise
            arrays[name] = optional[name]
    arrays |= {valid_name(name): np.asarray(arrays[name] is not empty) for name, empty in optional.items()}
    return arrays


WAITING = 32
"""Threads that read a source whose examples are requests to a store: nearly all of their time they wait."""


def waits(source: Source) -> bool:
    """True for a source of whose examples each is a request to a store, and for a mixture with one."""
    return bool(getattr(source, "waits", False))


def reading_threads(source: Source | None = None) -> int:
    """Threads that read: one a core of this process, at most 8, for each may hold a whole batch; WAITING where they wait."""
    if source is not None and waits(source):
        return WAITING
    return min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def _stream(base: int, name: str) -> np.random.Generator:
    return np.random.default_rng([base, *name.encode()])


def _read_ahead(read: "_ReadExample", length: int, starts: range, rows: int) -> Iterator[EvalBatch]:
    keep_freed_memory()
    pool = ThreadPoolExecutor(reading_threads(read.source))
    try:
        waiting: deque[list[Future[_Row]]] = deque()
        empty: Arrays = {}
        for start in itertools.chain(starts, [None] * READ_AHEAD):
            if start is not None:
                waiting.append([pool.submit(read, index) for index in range(start, min(start + rows, length))])
            if waiting and (start is None or len(waiting) > READ_AHEAD):
                batch = [future.result() for future in waiting.popleft()]
                empty = empty or read.empty(batch)
                yield _fill(batch, rows, empty)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # a read from a disk that does not answer would be waited for


@dataclass(frozen=True)
class _Row:
    """One example of an evaluation, or why it is none."""

    key: str
    arrays: Arrays | None = None
    problem: str = ""


@dataclass(frozen=True)
class _ReadExample:
    """Reads one example of an evaluation."""

    source: Source
    transforms: Mapping[str, Transform]
    fields: Mapping[str, str]

    def __call__(self, index: int) -> _Row:
        key = f"example {index}"
        try:
            example = self.source[index]
            key = example["key"]
            return _Row(key, make_arrays(self.transforms, example, self.fields, None, classes=class_names(self.source)))
        except BadExample as error:
            return _Row(key, problem=f"{key}: {error}")

    def empty(self, batch: Sequence[_Row]) -> Arrays:
        """Zeros like the arrays of any example: of this batch, or of the first that can be read."""
        problem = "it is empty"
        for row in itertools.chain(batch, map(self, range(len(self.source)))):
            if row.arrays is not None:
                return {name: np.zeros_like(value) for name, value in row.arrays.items()}
            problem = row.problem
        raise SourceError(f"no example of the source can be read: {problem}")


def _fill(batch: Sequence[_Row], rows: int, empty: Arrays) -> EvalBatch:
    mask = np.zeros(rows, np.bool_)
    mask[: len(batch)] = [row.arrays is not None for row in batch]
    arrays = {name: np.zeros((rows, *zero.shape), zero.dtype) for name, zero in empty.items()}
    for i, row in enumerate(batch):
        for name, value in (row.arrays or {}).items():
            arrays[name][i] = value
    keys = [row.key for row in batch] + [""] * (rows - len(batch))
    return EvalBatch(arrays, mask, keys, [row.problem for row in batch if row.problem])
