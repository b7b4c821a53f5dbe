"""Simulates ways of shuffling a set of shards: what each costs at any size, and how well it mixes.

    python tools/simulate_order.py                     1.4 billion pairs in 140,000 shards on 64 hosts, some minutes
    python tools/simulate_order.py --shards 2000 --hosts 8 --mixed 64

Sizes of shards are drawn; the orders are those that training computes (jclip.data.blocks, and Grain's shuffle), and so are the
index of the shards and the rule of what is fetched and dropped. Two tables are printed:

- cost: the processor's time until the order and the first rows of a host are there, and of a million places once blocks are
  mixed; memory of the process; and what a host with so much cache fetches in an epoch. Of a full shuffle with copies the hits of
  a cache of the copies used last are counted over --window examples. "index" is the index of remote shards whose counts are in
  the cache; answers of the store are not in it. "index, made" is where one host reads the headers of all shards, at --bandwidth:
  files are so small that its requests leave out next to nothing.
- quality, of --mixed shards: the shards in a batch of --batch rows; pairs of examples in a batch that are neighbours in the
  source, at most ten apart, of which crawls have near duplicates; steps between an example and the next one of the source, as a
  share of the epoch (median, and the nearest twentieth); and chi-squared of the shards of a batch against equal shares, by its
  degrees of freedom. Beside them stands the buffer of webdataset as open_clip uses it: shards permuted and dealt to hosts and
  workers, read from beginning to end, through a buffer of 5,000 examples a worker; each batch of a host is of one worker.

docs/tutorials/buckets.md has what was measured.
"""

import argparse
import json
import os
import pickle
import subprocess
import sys
import tempfile
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Column, Table

from jclip.data.addresses import Address
from jclip.data.blocks import BlockOrder, Blocks

Numbers = NDArray[np.int64]

NEAR = 10
"""Largest distance of neighbours in the source."""

BUFFER, WORKERS = 5_000, 4
"""Examples of webdataset's buffer, and its workers of a host."""

WAYS = ("full", "1 x 256", "8 x 4", "64 x 4", "64 x 16", "64 x 64")
"""Ways of shuffling: full, or lanes x shards of a block."""


@dataclass(frozen=True)
class Drawn:
    """A source of examples 0, 1, ... in shards, of which nothing can be read."""

    shard_ends: Numbers
    classes: tuple[str, ...] = ()
    templates: tuple[str, ...] = ()

    def __len__(self) -> int:
        return int(self.shard_ends[-1])

    def __getitem__(self, index: int) -> dict[str, str]:
        raise IndexError(index)

    def fingerprint(self) -> str:
        return "0" * 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=140_000, help="of the set (default: 140,000)")
    parser.add_argument("--examples", type=int, default=10_000, help="of a shard, on average (default: 10,000)")
    parser.add_argument("--kilobytes", type=float, default=33, help="of an example (default: 33)")
    parser.add_argument("--hosts", type=int, default=64, help="that train (default: 64)")
    parser.add_argument("--cache", type=float, default=500, help="GB of copies of a host (default: 500)")
    parser.add_argument("--bandwidth", type=float, default=1, help="GB that a host reads from the store in a second (default: 1)")
    parser.add_argument("--batch", type=int, default=32_768, help="examples of a global batch (default: 32,768)")
    parser.add_argument("--window", type=int, default=100_000, help="examples of a host in which hits are counted (100,000)")
    parser.add_argument("--mixed", type=int, default=1024, help="shards of the set of which the quality is measured (1,024)")
    parser.add_argument("--worker", nargs=2, metavar=("WAY", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(cost(options.worker[0], Path(options.worker[1]), options)))
        return
    ways = [way for way in WAYS if way == "full" or sizes_of(way).lanes <= min(options.batch, options.shards)]
    names = ("order", "start: s", "1M places: s", "MiB", "GB a host, epoch", "requests a host", "GB held", "note")
    table = Table(*(Column(name, no_wrap=True) for name in names), title=f"{options.shards:,} shards, {options.hosts} hosts")
    with tempfile.TemporaryDirectory() as folder:
        for way in ("counts", "index", *ways):
            command = [sys.executable, __file__, *sys.argv[1:], "--worker", way, folder]
            done = subprocess.run(command, env={**os.environ, "JCLIP_CACHE": folder}, capture_output=True, text=True, check=True)
            for row in json.loads(done.stdout):
                table.add_row(*row)
    Console().print(table)
    Console().print(quality(ways, options))


def sizes_of(way: str) -> Blocks:
    """The blocks of a way."""
    lanes, shards = map(int, way.split(" x "))
    return Blocks(lanes, shards)


def draw_counts(shards: int, examples: int) -> Numbers:
    """Examples of each shard: nearly all have as many, the last of each crawl fewer."""
    rng = np.random.default_rng(0)
    counts = np.round(examples * rng.normal(0.97, 0.02, shards)).astype(np.int64)
    short = rng.random(shards) < 0.01
    counts[short] = rng.integers(1, examples + 1, int(short.sum()))
    return np.clip(counts, 1, examples)


def cost(way: str, folder: Path, options: argparse.Namespace) -> list[list[str]]:
    """The cells of a way's rows."""
    import grain

    counts = draw_counts(options.shards, options.examples)
    if way in ("counts", "index"):
        return index_cost(counts, options, write=way == "counts")
    before, began = resident(), time.process_time()
    source = Drawn(np.cumsum(counts))
    mine = options.batch // options.hosts
    gigabyte = options.kilobytes * 1e-6
    if way == "full":
        order = grain.MapDataset.range(len(source)).seed(0).shuffle().repeat()
        places: Sequence[int] = [order[i] for i in range(mine)]
        start, took = time.process_time() - began, timed(order)
        each = len(source) / options.hosts
        row = [way, f"{start:.2f}", f"{took:.1f}", f"{resident() - before:.0f}"]
        shard = gigabyte * options.examples
        misses = misses_of(order, np.cumsum(counts), options, int(options.cache / shard))
        return [
            [*row, f"{each * gigabyte:,.0f}", f"{each:,.0f}", "0", "by ranges"],
            [
                *row,
                f"{each * misses * shard:,.0f}",
                f"{each * misses:,.0f}",
                f"{options.cache:,.0f}",
                f"copies, {misses:.1%} missed",
            ],
        ]
    blocks = sizes_of(way)
    by_blocks = BlockOrder(0, source, blocks, options.batch)
    places = [by_blocks[i].example for i in range(mine)]
    start, took = time.process_time() - began, timed(by_blocks)
    fetched, held = traffic(by_blocks, counts, options.hosts)
    lanes = [lane.examples for lane in by_blocks.lanes[""]]
    note = (
        f"lanes differ by {max(lanes) / min(lanes) - 1:.2%}"
        if held * gigabyte <= options.cache
        else "refused: more than its cache"
    )
    memory = f"{resident() - before:.0f}"
    row = [way, f"{start:.2f}", f"{took:.1f}", memory, f"{fetched[0] * gigabyte:,.0f}", f"{fetched[1]:,}"]
    return [[*row, f"{held * gigabyte:,.1f}", note]] if len(places) == mine else []


def index_cost(counts: Numbers, options: argparse.Namespace, write: bool) -> list[list[str]]:
    """The row of the index of the shards: a source of remote shards whose counts are in the cache, opened; or their counts
    written there."""
    from jclip.data.shards import Shard, _Folder, load_shards
    from jclip.data.webdataset import WebDataset

    def address(number: int) -> Address:
        found = Address(f"s3://bucket/set/{number:06}.tar")
        found.size, found.version = int(counts[number] * options.kilobytes * 1e3), f'"{number:032x}"'
        return found

    before, began = resident(), time.process_time()
    paths = [address(number) for number in range(len(counts))]
    if write:
        kept = _Folder("s3://bucket/set")
        for path, count in zip(paths, counts.tolist(), strict=True):
            kept.add(Shard(path, path.size, count, -1, {"fields": {"image text": count}, "left_out": {}}), path.state)
        kept.save()
        return []
    source = WebDataset(load_shards(paths))
    start = time.process_time() - began
    size = len(pickle.dumps(source)) / 2**20
    note = f"{size:.0f} MiB to each worker process"
    total = float(counts.sum()) * options.kilobytes * 1e-6
    made = ["index, made", f"{total / options.bandwidth:,.0f}", "-", "-", f"{total:,.0f}", "-", "-", "by one host, for all"]
    return [made, ["index", f"{start:.2f}", "-", f"{resident() - before:.0f}", "-", "-", "-", note]]


def timed(order: Sequence[object] | BlockOrder) -> float:
    """Seconds of a million places, from those of 50,000 in a row, when they are read a second time."""
    for _ in range(2):
        began = time.process_time()
        for place in range(50_000):
            order[place]
    return (time.process_time() - began) * 20


def misses_of(order: Sequence[int], ends: Numbers, options: argparse.Namespace, room: int) -> float:
    """Share of a host's examples whose shard is not among the `room` that were used last, once the cache is full."""
    mine, held, missed, counted = options.batch // options.hosts, OrderedDict[int, None](), 0, 0
    for i in range(min(room, len(ends)) * 3 + options.window):
        shard = int(np.searchsorted(ends, order[i // mine * options.batch + i % mine], "right"))
        counts = i >= min(room, len(ends)) * 3
        counted += counts
        missed += counts and shard not in held
        held[shard] = None
        held.move_to_end(shard)
        while len(held) > room:
            held.popitem(last=False)
    return missed / counted


def traffic(order: BlockOrder, counts: Numbers, hosts: int) -> tuple[tuple[int, int], int]:
    """Examples and shards that the first host fetches in an epoch of its lanes, and most examples that it holds at a time."""
    fetched, shards, held = 0, 0, 0
    for lane in (order.lanes[""][number] for number in order.lanes_of(0, hosts)):
        position, before, most = 0, set[int](), 0
        while position < lane.examples:
            block = lane.block(position)
            following = lane.block(block.end)
            wanted = {*block.shards.tolist(), *following.shards.tolist()}
            fetched += int(counts[list(wanted - before)].sum())
            shards += len(wanted - before)
            most = max(most, int(counts[list(wanted)].sum()))
            position, before = block.end, wanted
        held += most
    return (fetched, shards), held


def quality(ways: Sequence[str], options: argparse.Namespace) -> Table:
    """The table of how well each way mixes."""
    counts = np.full(options.mixed, options.examples)
    names = ("order", "shards a batch", "neighbours a batch", "median distance", "nearest 5%", "chi-squared / df")
    title = f"{options.mixed:,} shards of {options.examples:,}, batches of {options.batch:,}"
    table = Table(*(Column(name, no_wrap=True) for name in names), title=title)
    orders = [(way, order_of(way, counts, options)) for way in ways if way == "full" or sizes_of(way).lanes <= options.mixed]
    orders.append(("a random permutation", np.random.default_rng(0).permutation(int(counts.sum()))))
    orders.append((f"webdataset, buffers of {BUFFER:,}", webdataset(counts, options)))
    orders.append(("no shuffle", np.arange(counts.sum())))
    for name, order in orders:
        table.add_row(name, *measures(order, counts, options.batch))
    return table


def order_of(way: str, counts: Numbers, options: argparse.Namespace) -> Numbers:
    """An epoch of a way; of lanes as many batches as all have examples for."""
    import grain

    source = Drawn(np.cumsum(counts))
    batches = len(source) // options.batch
    if way == "full":
        shuffled = grain.MapDataset.range(len(source)).seed(0).shuffle()
        return np.fromiter((shuffled[i] for i in range(batches * options.batch)), np.int64)
    order = BlockOrder(0, source, sizes_of(way), options.batch)
    rows = [lane.span(0, batches * order.rows).reshape(batches, order.rows) for lane in order.lanes[""]]
    return np.concatenate(rows, 1).ravel()


def webdataset(counts: Numbers, options: argparse.Namespace) -> Numbers:
    """An epoch of webdataset's order."""
    rng, ends = np.random.default_rng(0), np.cumsum(counts)
    shards, mine = rng.permutation(len(counts)), max(1, options.batch // options.hosts)
    workers = [shards[i :: options.hosts * WORKERS] for i in range(options.hosts * WORKERS)]
    read = [
        buffered(np.concatenate([np.arange(ends[s] - counts[s], ends[s]) for s in part]), rng) for part in workers if len(part)
    ]
    batches = min(map(len, read)) // mine
    # Batch k of a host is of its worker k % WORKERS.
    of_workers = np.stack([one[: batches * mine].reshape(batches, mine) for one in read])
    return of_workers.reshape(-1, min(WORKERS, len(read)), batches, mine).transpose(2, 1, 0, 3).ravel()


def buffered(stream: Numbers, rng: np.random.Generator) -> Numbers:
    """A stream behind a buffer, of which each time one at random is taken, and the next of the stream put in its place."""
    buffer, out = stream[:BUFFER].tolist(), []
    picks = rng.random(len(stream))
    for pick, example in zip(picks, stream[BUFFER:].tolist(), strict=False):
        place = int(pick * len(buffer))
        out.append(buffer[place])
        buffer[place] = example
    return np.array(out + [buffer[i] for i in rng.permutation(len(buffer))])


def measures(order: Numbers, counts: Numbers, batch: int) -> list[str]:
    """The cells of an order i64[n], whole batches of it."""
    order = order[: len(order) // batch * batch]
    rows, ends = order.reshape(-1, batch), np.cumsum(counts)
    shards = np.searchsorted(ends, rows, "right")
    expected = batch / len(counts)
    distinct, near, chi = [], [], []
    for examples, of in zip(rows, shards, strict=True):
        found = np.bincount(of, minlength=len(counts))
        distinct.append(np.count_nonzero(found))
        chi.append(((found - expected) ** 2 / expected).sum() / (len(counts) - 1))
        ranks = np.sort(examples)
        near.append((np.searchsorted(ranks, ranks + NEAR, "right") - np.arange(batch) - 1).sum())
    step = np.full(int(ends[-1]), -1)
    step[order] = np.arange(len(order)) // batch
    both = (step[1:] >= 0) & (step[:-1] >= 0)
    distances = np.abs(np.diff(step))[both] / len(rows)
    apart = [f"{np.median(distances):.1%}", f"{np.quantile(distances, 0.05):.2%}"]
    return [f"{np.mean(distinct):,.1f}", f"{np.mean(near):,.1f}", *apart, f"{np.mean(chi):.2f}"]


def resident() -> float:
    """MiB that this process has in memory at most."""
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) / 1024


if __name__ == "__main__":
    main()
