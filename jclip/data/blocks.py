"""Shuffling in blocks of shards: an order in which a host reads a few shards at a time, and only its own.

Every shard belongs to one of L lanes, and row i of a global batch of B examples to lane i * L // B. A lane has an endless order
of its own: its shards are permuted anew each epoch and taken k at a time, and the examples of such a block are permuted. So the
batch of a step is a function of the shards, the seed, L and k, whatever the number of hosts and workers, and each place is
arithmetic.

    rows of a batch     0 .. 3    4 .. 7    8 .. 11   12 .. 15        B = 16, L = 4: two hosts read two lanes each
    lane                0         1         2         3
    its shards          b e i     a f k     c g j     d h l           dealt so that the lanes have as many examples, nearly
    blocks of k = 2     (i b)(e)  (f a)(k)  ...                       of its first epoch
"""

import hashlib
import heapq
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jclip.config import Config
from jclip.data.addresses import Address
from jclip.data.mixture import Mixture, Order, Shares
from jclip.data.source import Source, SourceError

NEAR = 8
"""Draws of a substitute from one block before the lane's next one is drawn from: all shards of a block may be gone."""

KEPT = 2
"""Blocks of a lane of which the permutation is kept: threads read on in the next one while others are in the last."""

Numbers = NDArray[np.int64]


class Blocks(NamedTuple):
    """Sizes of a shuffling in blocks of shards."""

    lanes: int
    """Parts of the shards, and of a batch."""
    shards: int
    """Shards of a block, of each lane."""


class Spot(NamedTuple):
    """A place of the order."""

    source: str
    """Name of a source of a mixture; "" where there is one source."""
    example: int
    """Its index in that source."""
    lane: int
    position: int
    """The place in the lane's order of that source."""


class ShardBlock(NamedTuple):
    """Shards whose examples are mixed."""

    shards: Numbers
    """Their numbers in the source."""
    end: int
    """Position behind the last example."""


class Lane:
    """The endless order of some shards of a source: position -> index of the example in the source.

    Args:
        entropy: what its random numbers come from.
        shards: numbers of its shards in the source; each has an example at least.
        starts: first example of each, as an index of the source.
        counts: examples of each.
        size: shards of a block.
    """

    def __init__(self, entropy: tuple[int, ...], shards: Numbers, starts: Numbers, counts: Numbers, size: int) -> None:
        self.entropy, self.shards, self.starts, self.counts, self.size = entropy, shards, starts, counts, size
        self.examples = int(counts.sum())
        """Examples of an epoch."""
        self._start()

    def _start(self) -> None:
        self._epoch = lru_cache(KEPT)(self._make_epoch)
        self._mix = lru_cache(KEPT)(self._make_mix)

    def __getstate__(self) -> dict[str, Any]:
        """Permutations are made again where they are needed."""
        return {name: value for name, value in vars(self).items() if name not in ("_epoch", "_mix")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._start()

    def __getitem__(self, position: int) -> int:
        epoch, number, first, _ = self._place(position)
        offsets, ends, mixed = self._mix(epoch, number)
        return _example(offsets, ends, int(mixed[position - first]))

    def span(self, first: int, end: int) -> Numbers:
        """Indices of the examples at the positions from `first` up to `end`, which lies behind it."""
        parts = []
        while first < end:
            epoch, number, start, behind = self._place(first)
            offsets, ends, mixed = self._mix(epoch, number)
            numbers = mixed[first - start : end - start].astype(np.int64)
            parts.append(numbers + offsets[np.searchsorted(ends, numbers, "right")])
            first = behind
        return np.concatenate(parts)

    def block(self, position: int) -> ShardBlock:
        """The block in which a position lies."""
        epoch, number, _, end = self._place(position)
        return ShardBlock(self.shards[self._members(epoch, number)], end)

    def draw(self, position: int, attempt: int, rng: np.random.Generator) -> int:
        """Index of some example in place of the one at a position: of its block, and after NEAR attempts of the next one."""
        for _ in range(attempt // NEAR):
            position = self._place(position)[3]
        epoch, number, _, _ = self._place(position)
        offsets, ends, mixed = self._mix(epoch, number)
        return _example(offsets, ends, int(rng.integers(len(mixed))))

    def _place(self, position: int) -> tuple[int, int, int, int]:
        """Epoch and number of the block of a position, the position of its first example, and the one behind its last."""
        epoch, rest = divmod(position, self.examples)
        _, ends = self._epoch(epoch)
        number = int(np.searchsorted(ends, rest, "right"))
        first = epoch * self.examples
        return epoch, number, first + (int(ends[number - 1]) if number else 0), first + int(ends[number])

    def _members(self, epoch: int, number: int) -> Numbers:
        return self._epoch(epoch)[0][number * self.size : (number + 1) * self.size]

    def _make_epoch(self, epoch: int) -> tuple[Numbers, Numbers]:
        """The shards in their order, as places in `shards`; and the number of examples up to the end of each block."""
        order = np.random.default_rng([*self.entropy, 0, epoch]).permutation(len(self.counts))
        so_far = np.cumsum(self.counts[order])
        return order, np.append(so_far[self.size - 1 : -1 : self.size], so_far[-1])

    def _make_mix(self, epoch: int, number: int) -> tuple[Numbers, Numbers, NDArray[np.uint32]]:
        """Examples of a block are numbered through its shards: what to add to a number of a shard for its index in the source,
        the numbers behind each shard, and all numbers as they are mixed."""
        members = self._members(epoch, number)
        ends = np.cumsum(self.counts[members])
        offsets = self.starts[members] - (ends - self.counts[members])
        mixed = np.random.default_rng([*self.entropy, 1, epoch, number]).permutation(int(ends[-1]))
        return offsets, ends, mixed.astype(np.uint32)


def _example(offsets: Numbers, ends: Numbers, number: int) -> int:
    return number + int(offsets[np.searchsorted(ends, number, "right")])


class BlockOrder:
    """The endless order of training: place -> Spot. Row i of batch k has place skipped + k * batch_size + i.

    Args:
        seed: of the order.
        source: a source, or a mixture of such, whose shards are files.
        blocks: sizes.
        batch_size: examples of a global batch.
        skipped: examples of batches before the first one.

    Raises:
        SourceError: a source has no shards, or fewer than lanes.
        ValueError: `lanes` does not divide batch_size, skipped, or where the weights of a mixture change.
    """

    def __init__(self, seed: int, source: Source, blocks: Blocks, batch_size: int, skipped: int = 0) -> None:
        count = blocks.lanes
        if count < 1 or blocks.shards < 1 or batch_size % count or skipped % count:
            raise ValueError(
                f"blocks of {blocks.shards} shards in {count} lanes: {count} must divide the batch of {batch_size} examples, and "
                f"the {skipped} before; use 1 shard and 1 lane at least"
            )
        self.batch_size, self.skipped, self.blocks = batch_size, skipped, blocks
        self.rows = batch_size // count
        """Rows of a lane in a batch."""
        sources: Mapping[str, Source] = source.sources if isinstance(source, Mixture) else {"": source}
        self.lanes = {name: make_lanes(seed, name, shard_ends(one, name), blocks) for name, one in sources.items()}
        """The lanes of each source."""
        self.mixers = [_of_lane(source.order(seed), lane, count) for lane in range(count)] if isinstance(source, Mixture) else []

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, place: int) -> Spot:
        batch, row = divmod(place - self.skipped, self.batch_size)
        lane = row // self.rows
        position, name = self.first(lane, batch) + row % self.rows, ""
        if self.mixers:
            name, position = self.mixers[lane].place(position)
        return Spot(name, self.lanes[name][lane][position], lane, position)

    def first(self, lane: int, batch: int) -> int:
        """Number of examples of a lane before a batch."""
        return self.skipped // self.blocks.lanes + batch * self.rows

    def positions(self, lane: int, batch: int) -> dict[str, int]:
        """Number of examples of each source in a lane before a batch."""
        before = self.first(lane, batch)
        return self.mixers[lane].counts(before) if self.mixers else {"": before}

    def counts(self, place: int) -> dict[str, int]:
        """Number of examples of each source before a place."""
        batch, row = divmod(place - self.skipped, self.batch_size)
        total = dict.fromkeys(self.lanes, 0)
        for lane, mixer in enumerate(self.mixers):
            here = min(max(row - lane * self.rows, 0), self.rows)
            for name, count in mixer.counts(self.first(lane, batch) + here).items():
                total[name] += count
        return total if self.mixers else {"": place}

    def draw(self, spot: Spot, attempt: int, rng: np.random.Generator) -> int:
        """Index of a substitute for the example of a spot; see `Lane.draw`."""
        return self.lanes[spot.source][spot.lane].draw(spot.position, attempt, rng)

    def lanes_of(self, host: int, hosts: int) -> range:
        """The lanes of which a host has rows."""
        return range(host * self.blocks.lanes // hosts, -(-(host + 1) * self.blocks.lanes // hosts))


def run_blocks(config: Config) -> Blocks | None:
    """The blocks of a run; None where all its examples are shuffled at once."""
    return Blocks(config.data.lanes, config.data.block_shards) if config.data.shuffle == "blocks" else None


def run_order(config: Config, source: Source, skipped: int = 0) -> Order | BlockOrder | None:
    """The order of a part of a run, behind `skipped` examples; None of one source that is shuffled at once, which needs none.

    Raises:
        SourceError: as BlockOrder.
        ValueError: as BlockOrder.
    """
    if blocks := run_blocks(config):
        return BlockOrder(config.seed, source, blocks, config.batch_size, skipped)
    return source.order(config.seed) if isinstance(source, Mixture) else None


def make_lanes(seed: int, name: str, ends: Numbers, blocks: Blocks) -> list[Lane]:
    """The lanes of a source, by the number of examples up to the end of each of its shards.

    Raises:
        SourceError: there are fewer shards with examples than lanes.
    """
    counts = np.diff(ends, prepend=0)
    shards = np.flatnonzero(counts)
    if len(shards) < blocks.lanes:
        what = f"{len(shards)} shards with examples are fewer than {blocks.lanes} lanes"
        raise SourceError(f"data.shuffle blocks: {_of(name)}{what}; use data.lanes {len(shards)} or fewer, or data.shuffle full")
    own = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=4).digest())  # one more source changes no other
    dealt = deal(counts[shards], blocks.lanes, np.random.default_rng([seed, own]))
    parts = [shards[part] for part in dealt]
    return [Lane((seed, own, lane), part, (ends - counts)[part], counts[part], blocks.shards) for lane, part in enumerate(parts)]


def deal(counts: Numbers, lanes: int, rng: np.random.Generator) -> list[Numbers]:
    """Places in `counts` of each lane's shards, rising: the largest first, each to the lane with the fewest examples."""
    mixed = rng.permutation(len(counts))
    order = mixed[np.argsort(-counts[mixed], kind="stable")]
    dealt: list[list[int]] = [[] for _ in range(lanes)]
    heap = [(0, 0, lane) for lane in range(lanes)]
    for shard, count in zip(order.tolist(), counts[order].tolist(), strict=True):
        total, number, lane = heap[0]
        dealt[lane].append(shard)
        heapq.heapreplace(heap, (total + count, number + 1, lane))
    return [np.array(sorted(part), np.int64) for part in dealt]


def shard_ends(source: Source, name: str = "") -> Numbers:
    """Examples of a source up to the end of each shard. Raises SourceError where it has no shards."""
    ends = getattr(source, "shard_ends", None)
    if ends is None:
        raise SourceError(
            f"data.shuffle blocks: {_of(name)}this source is not kept in shards; use one of webdataset: or parquet: without "
            "captions=rows (`jclip pack` writes shards), or data.shuffle full"
        )
    return np.asarray(ends, np.int64)


def shard_paths(source: Source) -> dict[str, Sequence[str]]:
    """Path or address of each shard, by the name of the source in a mixture; "" where there is one source."""
    sources: Mapping[str, Source] = source.sources if isinstance(source, Mixture) else {"": source}
    return {name: getattr(one, "shard_paths", None) or () for name, one in sources.items()}


def any_remote(source: Source) -> bool:
    """True where a shard is remote."""
    return any(isinstance(path, Address) for paths in shard_paths(source).values() for path in paths)


def said_blocks(order: BlockOrder, hosts: int = 1) -> list[str]:
    """Lines for people on blocks: lanes, how even they are, how many shards are mixed at a time."""
    lines = []
    for name, lanes in order.lanes.items():
        sizes = [lane.examples for lane in lanes]
        more = max(sizes) / min(sizes) - 1
        uneven = f", so that an example of the smallest is seen {more:.2%} more often than one of the largest" if more else ""
        mixed = sum(min(lane.size, len(lane.shards)) for lane in lanes)
        share = f"{len(lanes)} lanes of {min(sizes):,} to {max(sizes):,} examples, each with epochs of its own{uneven}"
        lines.append(f"{_of(name)}{share}; {mixed:,} of {sum(len(lane.shards) for lane in lanes):,} shards are mixed at a time")
    if order.blocks.lanes % hosts:
        readers = Counter(lane for host in range(hosts) for lane in order.lanes_of(host, hosts))
        fewest, most = min(readers.values()), max(readers.values())
        each = f"each of which {most} hosts read" if fewest == most else f"each of which {fewest} to {most} hosts read"
        times = f"{sum(readers.values()) / order.blocks.lanes:.2f}".rstrip("0").rstrip(".")
        what = f"{hosts} hosts share {order.blocks.lanes} lanes, {each}, so that the whole set is fetched {times} times an epoch"
        lines.append(f"{what}; let data.lanes be a multiple of {hosts}")
    return lines


def _of(name: str) -> str:
    return f"{name}: " if name else ""


def _of_lane(order: Order, lane: int, lanes: int) -> Order:
    """The order of the sources in one lane of a mixture: all lanes have one where the source is one for a whole batch."""
    phases = []
    for phase in order.phases:
        if phase.first % lanes or (phase.together > 1 and phase.together % lanes):
            raise ValueError(f"{lanes} lanes must divide where weights change, {phase.first}, and batches of one source")
        phases.append(Shares(phase.first // lanes, phase.weights, max(1, phase.together // lanes)))
    whole = any(phase.together > 1 for phase in order.phases)
    own = int.from_bytes(hashlib.blake2b(f"{order.seed} {0 if whole else lane}".encode(), digest_size=4).digest())
    return replace(order, seed=own, phases=tuple(phases))
