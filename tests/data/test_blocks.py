"""Shuffling in blocks of shards: beside a plain implementation, equal for any number of hosts and workers, and local."""

import itertools
import pickle
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from archives import write_tar
from batches import assert_equal, batches
from hypothesis import given, settings
from hypothesis import strategies as st

from jclip.config import Config, ConfigError, Contrastive, Data, Model, Portion, Subset, TextTower, check, make_plans
from jclip.data import (
    BadExample,
    Batch,
    Mixture,
    Shares,
    SourceError,
    in_numbers,
    make_loader,
    open_data,
    open_source,
    planned,
    select,
)
from jclip.data.blocks import BlockOrder, Blocks, Lane, deal, make_lanes, said_blocks

COUNTS = (7, 0, 5, 9, 4, 6, 8, 3, 5, 7, 2)


@dataclass(frozen=True)
class Sharded:
    """Examples 0, 1, ... in shards of these sizes; the broken ones are lost."""

    counts: tuple[int, ...] = COUNTS
    broken: frozenset[int] = frozenset()
    classes: tuple[str, ...] = ()
    templates: tuple[str, ...] = ()

    @property
    def shard_ends(self) -> Sequence[int]:
        return list(itertools.accumulate(self.counts))

    def __len__(self) -> int:
        return sum(self.counts)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index in self.broken:
            raise BadExample("lost")
        return {"key": str(index), "text": f"text {index}"}

    def shard(self, index: int) -> int:
        return int(np.searchsorted(self.shard_ends, index, "right"))

    def fingerprint(self) -> str:
        return "0" * 32


def number(value: str, rng: np.random.Generator) -> np.ndarray[Any, Any]:
    """The number in a text, beside a random one."""
    return np.array([int(value.split()[1]), rng.integers(1 << 30)])


def global_batches(source: Any, count: int, hosts: int = 1, **options: Any) -> list[Batch]:
    """Global batches of 12 in four lanes of blocks of two shards."""
    options = {"batch_size": 12, "blocks": Blocks(4, 2), "seed": 3, **options}
    loaders = [make_loader(source, {"text": number}, host=host, hosts=hosts, **options) for host in range(hosts)]
    try:
        rows = [[next(loader) for loader in loaders] for _ in range(count)]
    finally:
        for loader in loaders:
            loader.close()
    return [
        Batch(
            {"text": np.concatenate([part.arrays["text"] for part in row])},
            [key for part in row for key in part.keys],
            [problem for part in row for problem in part.problems],
        )
        for row in rows
    ]


def plain(lane: Lane, epochs: int) -> list[int]:
    """The order of a lane, made epoch by epoch from all that was before."""
    order: list[int] = []
    for epoch in range(epochs):
        shards = np.random.default_rng([*lane.entropy, 0, epoch]).permutation(len(lane.shards))
        for block, first in enumerate(range(0, len(shards), lane.size)):
            members = shards[first : first + lane.size]
            examples = [int(lane.starts[shard]) + i for shard in members for i in range(int(lane.counts[shard]))]
            mixed = np.random.default_rng([*lane.entropy, 1, epoch, block]).permutation(len(examples))
            order += [examples[i] for i in mixed]
    return order


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=12), st.integers(1, 4), st.integers(1, 5), st.integers(0, 2**31))
def test_a_lane_is_what_a_plain_implementation_reads_from_the_start(counts: list[int], lanes: int, size: int, seed: int) -> None:
    if np.count_nonzero(counts) < lanes:
        with pytest.raises(SourceError, match=f"fewer than {lanes} lanes; use data.lanes"):
            make_lanes(seed, "", np.cumsum(counts), Blocks(lanes, size))
        return
    made = make_lanes(seed, "", np.cumsum(counts), Blocks(lanes, size))
    assert sorted(itertools.chain(*(plain(lane, 1) for lane in made))) == list(range(sum(counts)))
    for lane in made:
        expected = plain(lane, 3)
        late_first = [lane[position] for position in reversed(range(len(expected)))][::-1]
        assert late_first == expected
        cut = seed % len(expected)
        assert lane.span(cut, len(expected)).tolist() == expected[cut:]
        position, blocks = 0, list[int]()
        while position < lane.examples:
            block = lane.block(position)
            of_shards = {i for shard in block.shards for i in range(sum(counts[:shard]), sum(counts[: shard + 1]))}
            assert of_shards == set(expected[position : block.end])
            blocks += block.shards.tolist()
            position = block.end
        assert sorted(blocks) == lane.shards.tolist()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(1, 6), st.integers(0, 99))
def test_shards_are_dealt_once_each_and_evenly(counts: list[int], lanes: int, seed: int) -> None:
    dealt = deal(np.array(counts), lanes, np.random.default_rng(seed))
    assert sorted(np.concatenate(dealt).tolist()) == list(range(len(counts)))
    totals = [sum(counts[shard] for shard in part) for part in dealt]
    assert max(totals) - min(totals) <= max(counts)  # a lane gets a shard only where it has the fewest examples
    if len(counts) >= lanes:
        assert min(map(len, dealt)) >= 1


def test_the_largest_shards_are_dealt_first() -> None:
    for seed in range(5):
        dealt = deal(np.array([1] * 10 + [10]), 2, np.random.default_rng(seed))
        assert sorted(map(len, dealt)) == [1, 10]


@pytest.mark.parametrize(("hosts", "workers"), [(2, 0), (3, 0), (4, 0), (1, 1)])
def test_batches_do_not_depend_on_hosts_or_workers(hosts: int, workers: int) -> None:
    assert_equal(global_batches(Sharded(), 11, hosts, workers=workers), global_batches(Sharded(), 11))


@pytest.mark.slow
@pytest.mark.parametrize(("hosts", "workers"), [(1, 3), (2, 1), pytest.param(4, 3, marks=pytest.mark.exhaustive)])
def test_batches_do_not_depend_on_more_workers(hosts: int, workers: int) -> None:
    assert_equal(global_batches(Sharded(), 11, hosts, workers=workers), global_batches(Sharded(), 11))


@pytest.mark.parametrize("start", [1, 4, 9])
def test_a_start_anywhere_goes_on_with_what_would_have_come(start: int) -> None:
    broken = frozenset({0, 3, 17, 18, 30})
    whole = global_batches(Sharded(broken=broken), 12)
    assert_equal(global_batches(Sharded(broken=broken), 12 - start, start=start), whole[start:])
    assert any(batch.problems for batch in whole)
    behind = global_batches(Sharded(broken=broken), 12 - start, skipped=12 * start)  # as a stage does: places are the same
    assert [batch.keys for batch in behind] == [batch.keys for batch in whole[start:]]
    assert len(global_batches(Sharded(), 1, start=10**9)[0].keys) == 12


def test_a_stage_with_another_batch_goes_on_in_each_lane() -> None:
    source, small = Sharded(), Blocks(4, 2)
    before, after = BlockOrder(3, source, small, 8), BlockOrder(3, source, small, 12, skipped=40)
    seen = {lane: [before[place] for place in range(40) if before[place].lane == lane] for lane in range(4)}
    for place in range(40, 40 + 36):
        spot = after[place]
        assert spot.position == len(seen[spot.lane])
        seen[spot.lane].append(spot)
    for lane, spots in seen.items():
        assert [spot.example for spot in spots] == plain(after.lanes[""][lane], 4)[: len(spots)]


def test_each_example_comes_once_an_epoch_of_its_lane_in_an_order_of_its_own() -> None:
    rows = [batch.arrays["text"][:, 0].reshape(4, 3) for batch in global_batches(Sharded(), 30)]
    lanes = np.concatenate(rows, 1)
    order = BlockOrder(3, Sharded(), Blocks(4, 2), 12)
    for lane, examples in zip(order.lanes[""], lanes.tolist(), strict=True):
        epochs = [examples[i : i + lane.examples] for i in range(0, len(examples) - lane.examples, lane.examples)]
        assert len(epochs) >= 4
        assert all(sorted(epoch) == sorted(epochs[0]) and len(set(epoch)) == len(epoch) for epoch in epochs)
        assert epochs[0] != epochs[1]
    assert sorted(np.concatenate([lanes[i, : lane.examples] for i, lane in enumerate(order.lanes[""])])) == list(range(56))


def test_another_seed_deals_and_shuffles_otherwise() -> None:
    one, other = (make_lanes(seed, "", np.arange(1, 101) * 10, Blocks(2, 50)) for seed in (0, 1))
    assert one[0].shards.tolist() != other[0].shards.tolist()
    a, b = (make_lanes(0, name, np.arange(1, 101) * 10, Blocks(2, 50)) for name in "ab")
    assert a[0].shards.tolist() != b[0].shards.tolist()


def test_a_host_touches_the_shards_of_its_own_lanes_alone_and_few_at_a_time() -> None:
    source = Sharded(tuple(10 + i % 3 for i in range(64)))
    order = BlockOrder(0, source, Blocks(4, 2), 16)
    rows = np.array([order[place].example for place in range(16 * 170)]).reshape(170, 16)
    shards = np.searchsorted(source.shard_ends, rows, "right")
    of_host = [set(shards[:, host * 8 : host * 8 + 8].ravel().tolist()) for host in range(2)]
    assert not of_host[0] & of_host[1]
    assert len(of_host[0] | of_host[1]) == 64
    for host, lanes in enumerate((range(2), range(2, 4))):
        assert order.lanes_of(host, 2) == lanes
        own = {shard for lane in lanes for shard in order.lanes[""][lane].shards.tolist()}
        assert of_host[host] == own
        for first in range(0, 165, 5):  # five batches have 20 examples of a lane, which are of two blocks of 20 at most
            assert len(set(shards[first : first + 5, host * 8 : host * 8 + 8].ravel().tolist())) <= 2 * 2 * 2
    assert [list(order.lanes_of(host, 3)) for host in range(3)] == [[0, 1], [1, 2], [2, 3]]
    full = np.random.default_rng(0).permutation(len(source))[:40]
    assert len({source.shard(int(i)) for i in full}) > 25  # what the bound above is worth


def test_a_substitute_is_of_the_same_block_and_of_later_ones_where_all_of_it_is_gone() -> None:
    source = Sharded((4,) * 16)
    order = BlockOrder(1, source, Blocks(2, 2), 4)
    block = order.lanes[""][1].block(0)
    gone = frozenset(i for shard in block.shards.tolist() for i in range(4 * shard, 4 * shard + 4))
    one = min(gone)
    for batch in global_batches(replace(source, broken=frozenset({one})), 4, batch_size=4, blocks=Blocks(2, 2), seed=1):
        assert all(source.shard(int(key)) in block.shards for key in batch.keys[2:])
    following = order.lanes[""][1].block(block.end)
    run = global_batches(replace(source, broken=gone), 4, batch_size=4, blocks=Blocks(2, 2), seed=1)
    found = [int(key) for batch in run for key in batch.keys[2:]]
    assert {source.shard(i) for i in found} <= set(following.shards.tolist())
    assert [order[place].lane for place in range(4)] == [0, 0, 1, 1]


def test_an_order_goes_to_other_processes_without_what_it_has_computed() -> None:
    order = BlockOrder(3, Sharded((1000,) * 8), Blocks(2, 4), 4)
    small = len(pickle.dumps(order))
    expected = [order[place] for place in range(2000, 2040)]
    assert len(pickle.dumps(order)) == small
    assert [pickle.loads(pickle.dumps(order))[place] for place in range(2000, 2040)] == expected


SIZES = {"a": (5,) * 8, "b": (3, 4, 5, 6), "c": (20, 1, 9, 2, 2)}


def mixture(phases: tuple[Shares, ...] = (), **changes: tuple[int, ...]) -> Mixture:
    return Mixture({name: Sharded(counts) for name, counts in {**SIZES, **changes}.items()}, phases)


LATER = (Shares(0, (0.5, 0.25, 0.25)), Shares(480, (0.0, 0.5, 0.5)))


@pytest.mark.parametrize("phases", [(), LATER])
def test_each_source_of_a_mixture_has_lanes_and_blocks_of_its_own(phases: tuple[Shares, ...]) -> None:
    order = BlockOrder(5, mixture(phases), Blocks(4, 2), 24)
    drawn: dict[tuple[str, int], list[int]] = {}
    counted = Counter[str]()
    for place in range(24 * 60):
        if place % 240 in (0, 7):
            assert {name: count for name, count in order.counts(place).items() if count} == counted
        spot = order[place]
        mine = drawn.setdefault((spot.source, spot.lane), [])
        assert spot.position == len(mine)
        mine.append(spot.example)
        counted[spot.source] += 1
    for (name, lane), examples in drawn.items():
        assert examples == plain(order.lanes[name][lane], 100)[: len(examples)]
    for batch in (0, 3, 40):
        for lane in range(4):
            before = Counter(order[place].source for place in range(24 * batch) if order[place].lane == lane)
            assert {name: count for name, count in order.positions(lane, batch).items() if count} == before


def test_shares_of_a_mixture_hold_and_one_source_more_changes_no_other() -> None:
    order = BlockOrder(5, mixture((Shares(0, (0.5, 0.25, 0.25)),)), Blocks(4, 2), 16)
    assert order.counts(4096) == {"a": 2048, "b": 1024, "c": 1024}
    assert len({tuple(order[16 * batch + row].source for row in range(16)) for batch in range(20)}) == 20
    fewer = BlockOrder(5, Mixture({"a": Sharded(SIZES["a"])}), Blocks(4, 2), 16)
    for lane in range(4):
        assert [fewer.lanes["a"][lane][i] for i in range(30)] == [order.lanes["a"][lane][i] for i in range(30)]
    assert in_numbers(mixture((Shares(0, (0.5, 0.25, 0.25)),)), order, 0, 4096)[0].startswith("a: 40 examples, 50.0%")


def test_a_batch_of_one_source_is_one_in_all_lanes() -> None:
    order = BlockOrder(5, mixture((Shares(0, (0.5, 0.25, 0.25), 16),)), Blocks(4, 2), 16)
    of_batch = [{order[16 * batch + row].source for row in range(16)} for batch in range(60)]
    assert all(len(names) == 1 for names in of_batch)
    assert set.union(*of_batch) == {"a", "b", "c"}


@pytest.mark.parametrize("hosts", [2, 4])
def test_mixtures_in_blocks_do_not_depend_on_hosts_or_the_start(hosts: int) -> None:
    whole = global_batches(mixture(LATER), 40, batch_size=24)
    assert_equal(global_batches(mixture(LATER), 15, hosts, batch_size=24, start=25), whole[25:])


def test_what_cannot_be_shuffled_in_blocks_is_refused_by_name() -> None:
    shapes = open_source("shapes:train?length=10")
    with pytest.raises(SourceError, match=r"data.shuffle blocks: this source is not kept in shards; .*or data.shuffle full"):
        BlockOrder(0, shapes, Blocks(1, 1), 4)
    with pytest.raises(SourceError, match=r"data.shuffle blocks: drawn: this source"):
        BlockOrder(0, Mixture({"a": Sharded(), "drawn": shapes}), Blocks(1, 1), 4)
    with pytest.raises(SourceError, match=r"10 shards with examples are fewer than 11 lanes; use data.lanes 10"):
        BlockOrder(0, Sharded(), Blocks(11, 1), 22)
    for blocks, size, skipped in ((Blocks(4, 2), 6, 0), (Blocks(0, 2), 4, 0), (Blocks(2, 0), 4, 0), (Blocks(4, 2), 8, 6)):
        with pytest.raises(ValueError, match="must divide the batch"):
            BlockOrder(0, Sharded(), blocks, size, skipped)
    with pytest.raises(ValueError, match="4 lanes must divide where weights change, 6"):
        BlockOrder(0, mixture((Shares(0, (1, 1, 1)), Shares(6, (1, 1, 0)))), Blocks(4, 2), 8)
    with pytest.raises(ConfigError, match=r"data.lanes 8 does not divide the batch of 12 examples"):
        check(replace(Config(), batch_size=12, data=Data(shuffle="blocks")))
    with pytest.raises(ConfigError, match=r"data.lanes and block_shards are of shuffle blocks"):
        check(replace(Config(), data=Data(lanes=4)))


def test_what_lanes_change_is_computed_and_said() -> None:
    assert said_blocks(BlockOrder(0, Sharded((10, 10, 10, 20)), Blocks(2, 1), 4), hosts=4) == [
        "2 lanes of 20 to 30 examples, each with epochs of its own, so that an example of the smallest is seen 50.00% more often "
        "than one of the largest; 2 of 4 shards are mixed at a time",
        "4 hosts share 2 lanes, each of which 2 hosts read, so that the whole set is fetched 2 times an epoch; "
        "let data.lanes be a multiple of 4",
    ]
    uneven = said_blocks(BlockOrder(0, Sharded((10,) * 4), Blocks(2, 1), 6), hosts=3)[-1]
    assert "each of which 2 hosts read, so that the whole set is fetched 2 times an epoch" in uneven
    few = said_blocks(BlockOrder(0, Sharded((10,) * 4), Blocks(4, 1), 12), hosts=3)[-1]
    assert "each of which 1 to 2 hosts read, so that the whole set is fetched 1.5 times an epoch" in few
    even = said_blocks(BlockOrder(0, Mixture({"a": Sharded((10,) * 4)}), Blocks(2, 3), 4), hosts=2)
    assert even == ["a: 2 lanes of 20 to 20 examples, each with epochs of its own; 4 of 4 shards are mixed at a time"]


TOWERS = {"text": TextTower(context_length=12), "title": TextTower(context_length=12)}


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """A run on seven tars of 3 to 9 captions in two lanes."""
    for shard in range(7):
        write_tar(tmp_path / f"{shard}.tar", {f"{shard}-{i}.txt": f"text {shard} {i}".encode() for i in range(3 + shard)})
    data = Data(source=f"webdataset:{tmp_path}/*.tar", shuffle="blocks", lanes=2, block_shards=2, fields={"title": "text"})
    return Config(
        model=Model(towers=TOWERS),
        objectives={"pair": Contrastive("text", "title")},
        data=data,
        batch_size=8,
        duration="20",
        seed=2,
    )


def test_a_run_in_blocks_reads_tars_whatever_the_hosts(config: Config) -> None:
    check(config)
    whole = batches(config, 12)
    assert_equal(batches(config, 8, start=4, hosts=2), whole[4:])
    assert len({key for batch in whole for key in batch.keys}) == 42
    full = replace(config, data=Data(source=config.data.source, fields={"title": "text"}))
    assert [batch.keys for batch in batches(full, 12)] != [batch.keys for batch in whole]


def test_a_part_of_a_source_is_dealt_by_what_is_kept_of_each_shard(config: Config) -> None:
    source = open_source(config.data.source)
    some = select(source, Subset(where="not (text in ('text 0 0', 'text 0 1', 'text 0 2', 'text 6 8'))"))
    assert [*np.diff(some.shard_ends, prepend=0)] == [0, 4, 5, 6, 7, 8, 8]
    order = BlockOrder(0, some, Blocks(3, 1), 6)
    assert sorted(i for lane in order.lanes[""] for i in plain(lane, 1)) == list(range(38))
    for lane in order.lanes[""]:
        for shard, start, count in zip(lane.shards, lane.starts, lane.counts, strict=True):
            assert {some[int(i)]["key"].split(".tar")[0] for i in range(start, start + count)} == {str(shard)}


def test_weights_that_change_in_a_run_are_planned_in_lanes(config: Config) -> None:
    portion = Portion(config.data.source, weight=1.0)
    data = replace(config.data, source="", sources={"x": portion, "y": replace(portion, weight=1.0, changes=(("10", 0.0),))})
    config = replace(config, data=data)
    check(config)
    source = open_data(config)
    assert isinstance(source, Mixture)
    mixed = planned(source, [(config, make_plans(config, len(source))[0])])
    whole = batches(config, 14, source=mixed)
    assert_equal(batches(config, 6, start=8, hosts=2, source=mixed), whole[8:])
    assert {key.partition("/")[0] for batch in whole[10:] for key in batch.keys} == {"x"}
    assert {key.partition("/")[0] for batch in whole[:10] for key in batch.keys} == {"x", "y"}


def test_parquet_files_are_shards(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow", reason="the extra tables is not installed")
    pq = pytest.importorskip("pyarrow.parquet")
    for shard, count in enumerate((4, 6, 5)):
        pq.write_table(pa.table({"text": [f"text {shard}{i}" for i in range(count)]}), tmp_path / f"{shard}.parquet")
    source = open_source(f"parquet:{tmp_path}/*.parquet")
    with make_loader(source, {"text": number}, batch_size=5, blocks=Blocks(1, 1)) as loader:
        shards = [{key.split(".")[0] for key in batch.keys} for batch in islice(loader, 3)]
    assert list(np.diff(source.shard_ends, prepend=0)) == [4, 6, 5]
    assert all(len(names) <= 2 for names in shards)
