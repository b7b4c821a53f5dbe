"""The program simulate_order: what its tables count, on orders of which that is known."""

import argparse
from types import ModuleType

import numpy as np
import pytest
from programs import load_program

from jclip.data.blocks import BlockOrder, Blocks


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return load_program("simulate_order")


def test_a_source_that_is_not_shuffled_is_measured_as_arithmetic_says(tool: ModuleType) -> None:
    counts = np.full(8, 100)
    distinct, near, median, nearest, chi = tool.measures(np.arange(800), counts, 50)
    # 50 in a row: 10 * 50 - (1 + ... + 10) pairs at most ten apart, all of one of eight shards.
    assert (distinct, near, median, nearest) == ("1.0", "445.0", "0.0%", "0.00%")
    assert chi == f"{((50 - 6.25) ** 2 + 7 * 6.25**2) / 6.25 / 7:.2f}"
    every = np.arange(800).reshape(8, 100).T.ravel()  # one of each shard in turn
    assert tool.measures(every, counts, 8)[0] == "8.0"
    assert tool.measures(every, counts, 8)[4] == "0.00"
    assert tool.measures(every, counts, 8)[2] == "1.0%"  # neighbours of a shard are a step of a hundred apart


def test_a_buffer_hands_on_all_and_nothing_before_it_was_read(tool: ModuleType) -> None:
    out = tool.buffered(np.arange(20_000), np.random.default_rng(0))
    assert sorted(out.tolist()) == list(range(20_000))
    assert all(example <= place + tool.BUFFER for place, example in enumerate(out[:15_000].tolist()))
    assert (out[:1000] < 1000).mean() < 0.3


def test_orders_of_all_ways_have_each_example_once(tool: ModuleType) -> None:
    options, counts = argparse.Namespace(batch=32, hosts=2), np.full(16, 100)
    for way in ("full", "8 x 4", "1 x 256"):
        order = tool.order_of(way, counts, options)
        assert len(set(order.tolist())) == len(order) == 1600
    blocks = BlockOrder(0, tool.Drawn(np.cumsum(counts)), Blocks(8, 4), 32)
    assert tool.order_of("8 x 4", counts, options)[:96].tolist() == [blocks[place].example for place in range(96)]
    sampled = tool.webdataset(counts, options)
    assert len(set(sampled.tolist())) == len(sampled) == 1536  # eight workers of 12 whole batches of 16


def test_an_epoch_fetches_the_shards_of_the_host_once(tool: ModuleType) -> None:
    counts = np.arange(1, 41)
    order = BlockOrder(0, tool.Drawn(np.cumsum(counts)), Blocks(4, 2), 8)
    found = [tool.traffic(order, counts, 2), tool.traffic(order, counts, 1)]
    own = [lane.examples for lane in order.lanes[""]]
    lanes = [sum(own[:2]), sum(own)]
    for (_, shards), held in found:
        assert shards >= 20
        assert held < 40 * 16
    assert lanes[0] <= found[0][0][0] <= lanes[0] + 4 * 40  # and of the next epoch what the last blocks have ahead
    assert lanes[1] <= found[1][0][0] <= lanes[1] + 8 * 40
