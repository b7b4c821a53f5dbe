"""Batches of training: endless, and a function of the step."""

import itertools
import multiprocessing
import re
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from jclip.config import Config, SoundMix
from jclip.data.blocks import BlockOrder, Blocks, any_remote, run_blocks
from jclip.data.caches import opening_for_blocks
from jclip.data.fields import check_fields
from jclip.data.inputs import empty_input, train_transform
from jclip.data.mixture import Mixture, open_data
from jclip.data.open import open_source
from jclip.data.preparing import Prepare
from jclip.data.reader import WAITING, Arrays, waits
from jclip.data.reading import Transform
from jclip.data.source import Source, SourceError
from jclip.data.workers import read_batches, why_lost

if TYPE_CHECKING:  # it imports what reads remote files
    from jclip.data.ahead import FetchAhead
    from jclip.data.mixing import Mixer

CLOSE_SECONDS = 3.0
"""Time that workers have to end by themselves."""


@dataclass(frozen=True)
class Batch:
    """This host's rows of one global batch of training."""

    arrays: Arrays
    """Inputs by view: u8[b,S,S,3] of images, i32[b,L] of texts, what `Tower.input` says of others, f32[b,E] of embeddings that
    are stored; bool[b] as "NAME/valid" beside each that an example may lack."""
    keys: list[str]
    """The example of each row."""
    problems: list[str]
    """ "key: reason" of each broken example whose place another one took."""


class LostWorker(RuntimeError):
    """A worker process has ended before its time; the message says how, and what to do."""


class Loader(Iterator[Batch]):
    """The endless iterator of `make_loader`. Close it, or use it as a context manager, to end its threads and processes."""

    def __init__(
        self, batches: Any, together: "_Together | None" = None, ahead: "FetchAhead | None" = None, start: int = 0
    ) -> None:
        self._batches, self._ahead, self._next = batches, ahead, start
        self._end = weakref.finalize(self, _close, batches, together, ahead)
        self.ended = False
        """True where all threads and processes have ended after `close`; not where a thread waits for a disk for ever."""

    def __next__(self) -> Batch:
        try:
            batch = next(self._batches)
        except RuntimeError as error:
            if code := re.search(r"terminated unexpectedly with exit code (-?\d+)", str(error)):
                raise LostWorker(why_lost(int(code[1]))) from None
            raise
        except SourceError as error:
            raise SourceError(str(error).partition("\n-----")[0]) from None  # Grain adds a note on frames that it leaves out
        self._next += 1
        if self._ahead is not None:
            self._ahead.at(self._next)
        # Worker processes hand over shared memory, which a copy lets go of at once.
        arrays = {name: value if type(value) is np.ndarray else np.array(value) for name, value in batch["arrays"].items()}
        return Batch(arrays, batch["notes"].keys, batch["notes"].problems)

    def close(self) -> None:
        """Ends threads and processes; there is no batch afterwards."""
        self._batches = iter(())
        if self._end.alive:
            self.ended = bool(self._end())

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def make_loader(
    source: Source | str,
    transforms: Mapping[str, Transform],
    *,
    batch_size: int,
    seed: int = 0,
    start: int = 0,
    skipped: int = 0,
    host: int = 0,
    hosts: int = 1,
    fields: Mapping[str, str] | None = None,
    same: Mapping[str, str] | None = None,
    optional: Arrays | None = None,
    mix: SoundMix | None = None,
    blocks: Blocks | None = None,
    ahead: bool = True,
    workers: int = 0,
    broken: Literal["replace", "stop"] = "replace",
) -> Loader:
    """Endless batches of a source from batch `start` on: batch k is a function of the source, the transforms, the seed and k.

    The global batch, which is the hosts' rows in the order of the hosts, depends neither on the number of hosts nor on
    that of workers. Every epoch of len(source) examples has every example once, in its own order; a batch may span two.

    A broken example stops a run only where `broken` says so: another one, drawn from the same random stream, takes its place; in
    a mixture one of the same source.

    Args:
        source: a Source, or what names one; see `open_source`.
        transforms: how each array of a batch is made of an example's field, by the name of the array; see `train_transform`.
        batch_size: examples in the global batch.
        seed: of the order, and of what is random in transforms.
        start: the first batch.
        skipped: examples of the endless order before batch 0, which an earlier part of the run has seen.
        host: which host this is: it has rows host*b to (host+1)*b of each batch, where b = batch_size / hosts.
        hosts: how many there are.
        fields: field of an example for each array, where that is not its own name; an expression, see `find`.
        same: arrays that repeat the random draws of another.
        optional: arrays that an example may lack, with what then stands for each. Beside each there is another one,
            "NAME/valid", bool [b]: whether the example has it.
        mix: mixtures of two examples of a source, of whose parts one that is broken is replaced as an example is.
        blocks: shuffles in blocks of shards, see jclip.data.blocks, in place of all examples at once: then an epoch is that of a
            lane, and a substitute is drawn from the same block.
        ahead: of blocks: remote shards are fetched ahead as copies, and dropped again; False leaves them as they are read.
        workers: processes that read; 0: threads do.
        broken: whether another example takes the place of a broken one, or reading stops there.

    Raises:
        SourceError: the source cannot be opened, or not shuffled in blocks; from `next`: MAX_ATTEMPTS examples in a row were
            broken, or one where `broken` is "stop".
        LostWorker: from `next`: a process that reads was killed.
        ValueError: `hosts` or `blocks.lanes` does not divide batch_size; that, host, start, skipped or workers are out of range;
            or `fields`, `same` or `optional` name an array that no transform makes; or a field is no expression; or what
            `mix` cannot mix is there.
    """
    _check_places(batch_size, workers, start, skipped, host, hosts)
    if unknown := {*(fields or {}), *(same or {}), *(same or {}).values(), *(optional or {})} - transforms.keys():
        raise ValueError(f"loader: no transform makes {', '.join(sorted(unknown))}; there are {', '.join(transforms)}")
    check_fields(fields or {}, "loader")
    import grain

    with opening_for_blocks(blocks is not None):
        source = open_source(source) if isinstance(source, str) else source
    by_blocks = BlockOrder(seed, source, blocks, batch_size, skipped) if blocks else None
    fetch = _fetch_ahead(by_blocks, source, host, hosts) if by_blocks and ahead else None
    mixer = _mixer(mix, transforms)
    prepare = Prepare(source, transforms, fields or {}, same or {}, dict(optional or {}), by_blocks, mixer, broken == "stop")
    examples = _order(source, by_blocks, seed).random_map(prepare)
    examples = examples[skipped:] if skipped else examples
    rows = batch_size // hosts
    together = _Together(examples, rows) if waits(source) else None
    batches = grain.MapDataset.source(together) if together else examples.batch(rows, drop_remainder=True, batch_fn=_collate)
    read = read_batches(batches[host::hosts][start:], workers)
    if fetch:
        fetch.at(start)
    return Loader(iter(read), together, fetch, start)


def _check_places(batch_size: int, workers: int, start: int, skipped: int, host: int, hosts: int) -> None:
    if not 0 <= host < hosts or start < 0 or skipped < 0:
        place = f"host {host} of {hosts} from batch {start} behind {skipped} examples"
        raise ValueError(f"loader: {place} does not exist; use 0 <= host < hosts, start >= 0, skipped >= 0")
    if batch_size < 1 or workers < 0:
        raise ValueError(f"loader: batch_size {batch_size} must be at least 1, and workers {workers} at least 0")
    if batch_size % hosts:
        raise ValueError(f"loader: batch_size {batch_size} is not divisible by {hosts} hosts")


def _order(source: Source, by_blocks: BlockOrder | None, seed: int) -> Any:
    """The endless order of a source, a grain.MapDataset of the indices of its examples."""
    import grain

    if by_blocks:
        return grain.MapDataset.source(by_blocks).seed(seed)
    if isinstance(source, Mixture):
        return grain.MapDataset.source(source.order(seed)).seed(seed)
    return grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat()


def make_run_loader(
    config: Config,
    source: Source | None = None,
    *,
    start: int = 0,
    skipped: int = 0,
    host: int = 0,
    hosts: int = 1,
    ahead: bool = True,
) -> Loader:
    """The batches of a run: those of `make_loader`, of the views of a configuration; batch k takes step k to k+1.

    Raises:
        SourceError: as `make_loader`.
        ValueError: as `make_loader`.
    """
    from jclip.data.stored import stored_embeddings

    views, data = config.inputs(), config.data
    transforms: dict[str, Transform] = {
        name: stored_embeddings(view.stored, view.tower, view.stored_size)
        if view.stored
        else train_transform(
            view.seen_by,
            view.augment,
            view.text_augment,
            sound_augment=view.sound_augment,
            max_pixels=data.max_pixels,
            max_seconds=data.max_seconds,
            decode=data.decode,
        )
        for name, view in views.items()
    }
    return make_loader(
        open_data(config) if source is None else source,
        transforms,
        batch_size=config.batch_size,
        seed=config.seed,
        start=start,
        skipped=skipped,
        host=host,
        hosts=hosts,
        fields={name: view.field for name, view in views.items()},
        same={name: view.same_as for name, view in views.items() if view.same_as},
        optional={name: empty_input(view.seen_by) for name, view in views.items() if name in data.optional},
        mix=data.sound_mix,
        blocks=run_blocks(config),
        ahead=ahead,
        workers=data.workers,
        broken=data.broken,
    )


def _mixer(mix: SoundMix | None, transforms: Mapping[str, Transform]) -> "Mixer | None":
    """The mixer of examples; None where none are mixed."""
    if mix is None or not mix.p:
        return None
    from jclip.data.mixing import make_mixer

    return make_mixer(mix, transforms)


def _fetch_ahead(order: BlockOrder, source: Source, host: int, hosts: int) -> "FetchAhead | None":
    """The threads that fetch remote shards; None where all lie on disks."""
    if not any_remote(source):
        return None
    from jclip.data.ahead import fetch_ahead

    return fetch_ahead(order, source, host, hosts)


class _Together:
    """The batches of a source whose examples are requests to a store: those of a batch are asked for together.

    Grain makes the examples of a batch one after the other. Each is a function of its place alone, so that the order in which
    they are made changes nothing.
    """

    def __init__(self, examples: Any, rows: int) -> None:
        self.examples, self.rows = examples, rows
        self._start()

    def _start(self) -> None:
        """Threads, which every process has of its own."""
        self._pool = ThreadPoolExecutor(WAITING)

    def close(self) -> None:
        """Ends the threads, and waits for the requests that are under way; others are not begun."""
        self._pool.shutdown(cancel_futures=True)

    def __getstate__(self) -> dict[str, Any]:
        return {"examples": self.examples, "rows": self.rows}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._start()

    def __len__(self) -> int:
        return len(self.examples) // self.rows

    def __getitem__(self, number: int) -> dict[str, Any]:
        places = range(number * self.rows, (number + 1) * self.rows)
        return _collate(list(self._pool.map(self.examples.__getitem__, places)))


class _Notes:
    """Keys and problems of a batch, as one object that Grain passes on whole."""

    def __init__(self, keys: list[str], problems: list[str]) -> None:
        self.keys = keys
        self.problems = problems


def _collate(rows: Sequence[tuple[str, Arrays, list[str]]]) -> dict[str, Any]:
    keys, arrays, problems = zip(*rows, strict=True)
    stacked = {name: np.stack([one[name] for one in arrays]) for name in arrays[0]}
    return {"arrays": stacked, "notes": _Notes(list(keys), list(itertools.chain.from_iterable(problems)))}


def _close(batches: Any, together: _Together | None, ahead: "FetchAhead | None") -> bool:
    """Ends threads and processes, and returns whether they have ended.

    What does not end by itself, such as a frozen worker, is killed; a thread that waits for a disk or store which does not
    answer is left behind.
    """

    def close() -> None:
        batches.close()
        if together is not None:
            together.close()
        if ahead is not None:
            ahead.close()

    closing = threading.Thread(target=close, daemon=True)
    closing.start()
    closing.join(CLOSE_SECONDS)
    if closing.is_alive():
        for process in multiprocessing.active_children():
            if process.name.startswith("grain-process-prefetch"):
                process.kill()
        closing.join(CLOSE_SECONDS)
    return not closing.is_alive()
