"""Copies of the shards of blocks: fetched ahead while the blocks before are read, and dropped behind them."""

import heapq
import logging
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import NamedTuple

from jclip.data.addresses import Address, public
from jclip.data.blocks import BlockOrder, shard_paths
from jclip.data.copies import asked_way, drop_copy, open_copy, reserve, touch_copy
from jclip.data.source import Source

log = logging.getLogger("jclip.data")

AT = "data.shuffle blocks"

AT_A_TIME = 8
"""Shards that are fetched at a time."""


class FetchAhead:
    """Threads that have the shards ready which a host is about to read.

    Of each lane two blocks are there: the one that batches are read from and the next one. A block is dropped when the last of
    its examples has been handed out, except for shards that come again in these two. Where there is room for all shards of the
    host's lanes nothing is dropped. What cannot be fetched is left to the readers, whose examples are then out of reach.
    """

    def __init__(self, order: BlockOrder, files: Mapping[str, Sequence[str]], host: int, hosts: int, drop: bool) -> None:
        self._order, self._files, self._drop = order, files, drop
        self._lanes = order.lanes_of(host, hosts)
        self._lock = threading.Lock()
        self._held: dict[str, Address] = {}
        self._end = 0
        self._pool = ThreadPoolExecutor(AT_A_TIME, "fetch-ahead")

    def at(self, batch: int) -> None:
        """Says that all batches before this one have been handed out."""
        if self._held and batch < self._end:
            return
        wanted = self._wanted(batch)
        with self._lock:
            before, self._held = self._held, wanted
        if self._drop:
            for address in (address for name, address in before.items() if name not in wanted):
                drop_copy(address)
        for address in wanted.values():  # before others make room for themselves
            touch_copy(address)
        for address in (address for name, address in wanted.items() if name not in before):
            self._pool.submit(self._fetch, address)

    def close(self) -> None:
        """Ends the threads; shards that are being fetched are fetched to their end."""
        with self._lock:
            self._held = {}
        self._pool.shutdown(cancel_futures=True)

    def _fetch(self, address: Address) -> None:
        with self._lock:
            if public(address) not in self._held:  # it was late
                return
        with suppress(OSError):
            open_copy(address)
        with self._lock:
            late = public(address) not in self._held
        if late and self._drop:
            drop_copy(address)

    def _wanted(self, batch: int) -> dict[str, Address]:
        """The shards of two blocks a lane, the present ones first; sets the batch at which the first of these ends."""
        now, later, ends = dict[str, Address](), dict[str, Address](), list[int]()
        for lane in self._lanes:
            for name, position in self._order.positions(lane, batch).items():
                block = self._order.lanes[name][lane].block(position)
                following = self._order.lanes[name][lane].block(block.end)
                for shards, found in ((block.shards, now), (following.shards, later)):
                    paths = (self._files[name][shard] for shard in shards.tolist())
                    found |= {public(path): path for path in paths if isinstance(path, Address)}
                # No lane has more examples of a source in a batch than rows.
                ends.append(batch + max(1, (block.end - position) // self._order.rows))
        self._end = min(ends)
        return {**now, **later}


class Copies(NamedTuple):
    """The copies of a host."""

    remote: list[Address]
    """All remote shards."""
    own: int
    """Number of those in lanes of the host."""
    total: int
    """Bytes of these."""
    need: int
    """Bytes of two blocks of each lane, at most."""
    stay: bool
    """True where there is room for all of the host's."""


def plan_copies(order: BlockOrder, source: Source, host: int, hosts: int) -> Copies | None:
    """The copies that a host will make; None where no shard is remote, or ranges are asked for.

    Raises:
        SourceError: the limit of copies has no room for two blocks of each lane of this host.
    """
    files = shard_paths(source)
    remote = [path for paths in files.values() for path in paths if isinstance(path, Address)]
    if not remote or asked_way(AT) == "ranges":
        return None
    need, own = 0, list[Address]()
    for lane in order.lanes_of(host, hosts):
        for name, lanes in order.lanes.items():
            mine = [path for shard in lanes[lane].shards.tolist() if isinstance(path := files[name][shard], Address)]
            need += sum(heapq.nlargest(2 * order.blocks.shards, (address.size for address in mine)))
            own += mine
    total = sum(address.size for address in own)
    return Copies(remote, len(own), total, need, reserve(AT, remote, total, need))


def fetch_ahead(order: BlockOrder, source: Source, host: int, hosts: int) -> FetchAhead | None:
    """The threads of a loader, not started with any batch; None where nothing is copied. Raises as `plan_copies`.

    From here on the shards are read from copies. Call it before a source is handed to other processes.
    """
    copies = plan_copies(order, source, host, hosts)
    if copies is None:
        return None
    for address in copies.remote:
        address.whole = True
    what = "stay" if copies.stay else f"are dropped behind the blocks, {copies.need / 1e9:.3g} GB at most at a time"
    how_many = f"{copies.own} of {len(copies.remote)} remote shards, {copies.total / 1e9:.3g} GB"
    log.info("%s: this host reads %s; their copies %s", AT, how_many, what)
    return FetchAhead(order, shard_paths(source), host, hosts, drop=not copies.stay)
