"""Times of collectives on grids of chips, against what one counts by hand."""

import itertools

import pytest

from jclip.hlo import Collective
from jclip.interconnect import Wires, seconds


def wires(*sides: int, closed: bool = False) -> Wires:
    """A grid whose devices are counted with the last coordinate fastest; links of 1 byte a second."""
    places = tuple(itertools.product(*map(range, sides)))
    return Wires(places, sides, (closed,) * len(sides), 1.0)


@pytest.mark.parametrize(
    ("grid", "group", "links"),
    [
        (wires(4), (0, 1, 2, 3), 1),  # a chip at an end of a line has one neighbour
        (wires(4, closed=True), (0, 1, 2, 3), 2),
        (wires(2, 2), (0, 1, 2, 3), 2),  # a square is a ring of four
        (wires(16, 16, closed=True), tuple(range(256)), 4),
        (wires(4, 4), (0, 1, 2, 3), 1),  # a row
        (wires(4, 4), (0, 4, 8, 12), 1),  # a column
        (wires(8), (0, 2, 4, 6), 0.5),  # two groups share a line
        (wires(16, closed=True), tuple(range(0, 16, 4)), 0.5),  # four groups share a ring
        (wires(16, closed=True), (0, 1, 2, 3), 1),  # a part of a ring is a line
    ],
)
def test_a_collective_is_bound_by_the_links_of_its_group(grid: Wires, group: tuple[int, ...], links: float) -> None:
    n = len(group)
    for kind, taken in (("all-gather", 600 * (n - 1) / n), ("reduce-scatter", 600 * (n - 1)), ("all-reduce", 1200 * (n - 1) / n)):
        assert seconds(Collective(kind, {"f32": 400, "bf16": 200}, 1, group), grid) == pytest.approx(taken / links), kind
    assert seconds(Collective("collective-permute", {"f32": 600}, 1, group), grid) == 600


def test_half_of_what_all_send_to_all_crosses_the_middle() -> None:
    """Sixteen chips of a line keep 30 bytes for each: 8 x 8 x 30 cross one link each way; a ring has two there."""
    for closed, time in ((False, 8 * 8 * 30), (True, 8 * 8 * 30 / 2)):
        grid = wires(16, closed=closed)
        assert seconds(Collective("all-to-all", {"f32": 16 * 30}, 1, ()), grid) == time


def test_runs_add_up_and_a_device_alone_sends_nothing() -> None:
    grid = wires(4)
    assert seconds(Collective("all-gather", {"f32": 600}, 7, ()), grid) == 7 * seconds(
        Collective("all-gather", {"f32": 600}, 1, ()), grid
    )
    assert seconds(Collective("all-gather", {"f32": 600}, 7, (2,)), grid) == 0
