"""Time of a collective on the wires between the chips of a TPU slice, by its bytes alone.

A slice is a grid of chips, each with a link to its neighbours in either direction of every axis; a side that the pod closes is a
ring. Collectives on such a grid are bound by what a chip must take in, through the links that it has towards the others:

    line   0 -- 1 -- 2 -- 3             the chips at the ends take all of it through one link
    ring   0 -- 1 -- 2 -- 3 -- (0)      every chip takes half of it through either of two

and axes work side by side (Austin et al. 2025, "How to Scale Your Model", part 3). Left out are the time until the first byte
arrives, about a microsecond for each step to a neighbour, and that chips compute meanwhile.
"""

from typing import NamedTuple

from jclip.hlo import Collective


class Wires(NamedTuple):
    """The links between the chips that run a program.

    Attributes:
        places: of each device of the mesh, in its order, the coordinates of its chip.
        sides: chips along each axis.
        rings: which sides are closed.
        bandwidth: bytes a second of one link in one direction.
    """

    places: tuple[tuple[int, ...], ...]
    sides: tuple[int, ...]
    rings: tuple[bool, ...]
    bandwidth: float


def seconds(collective: Collective, wires: Wires) -> float:
    """The time of all runs of a collective, one after the other.

    With n chips and a result of s bytes a chip takes in (n - 1) / n s in an all-gather, (n - 1) s in a reduce-scatter, both of
    these in an all-reduce. A permute is taken to send to neighbours. Of an all-to-all half crosses the middle of an axis.
    """
    group = collective.group or tuple(range(len(wires.places)))
    axes = [axis for axis in (_axis(group, wires, i) for i in range(len(wires.sides))) if axis is not None]
    if not axes:
        return 0.0
    n, links = len(group), sum(links for _, links in axes)
    match collective.kind:
        case "all-gather":
            load = (n - 1) / n / links
        case "reduce-scatter":
            load = (n - 1) / links
        case "all-reduce":
            load = 2 * (n - 1) / n / links
        case "all-to-all":
            load = max(chips / (4 * links) for chips, links in axes)
        case _:
            load = 1.0
    return collective.runs * collective.size * load / wires.bandwidth


def _axis(group: tuple[int, ...], wires: Wires, axis: int) -> tuple[int, float] | None:
    """The chips of a group along an axis, and the links of that axis through which the last of them takes its data in.

    Groups that lie between each other's chips share the links.
    """
    places = sorted({wires.places[device][axis] for device in group})
    if len(places) == 1:
        return None
    step = places[1] - places[0]
    if wires.rings[axis] and len(places) * step == wires.sides[axis]:
        return len(places), 2 / step
    return len(places), (len(places) - 1) / (places[-1] - places[0])
