"""Transfers of a compiled program between devices, read from its HLO text."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "collective-permute", "all-to-all")

# "  %all-gather.3 = bf16[8,64]{1,0} all-gather(%x), ..."; a "-start" is the first half of an asynchronous one.
COLLECTIVE = re.compile(rf"= (?P<type>.+?) (?P<kind>{'|'.join(KINDS)})(?P<start>-start)?\(")
# A TPU has no instruction for a reduce-scatter, but fuses an all-reduce with the slicing that follows it.
FUSED = re.compile(r"= (?P<type>.+?) fusion\(.*calls=(?P<called>%all-reduce-scatter[\w.-]*)")
# A TPU runs a collective beside others' computing, and beside all turns of a loop, by fusing a piece of it into each computation
# there: every piece reads as the whole, and all bear one number. The first of them, where it starts, is the one that counts.
CHAIN = re.compile(r'chain_id="(\d+)"')
CALLED = re.compile(r"(?:body|calls|to_apply)=(%[\w.-]+)")
BRANCHES = re.compile(r"(?:branch_computations=\{|true_computation=)(%[\w.-]+(?:, (?:false_computation=)?%[\w.-]+)*)")
CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
SHAPE = re.compile(r"\b(pred|bf16|[fsu]\d+)(?:e\d\w*)?\[([\d,]*)\]")
# Who takes part: the first group written out, or as a reshaped and transposed range, or as axes of a mesh; pairs of a permute.
LISTED = re.compile(r"(?:replica_groups|source_target_pairs)=\{\{([\d,]+)\}")
RANGE = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
MESH = re.compile(
    r"replica_groups=mesh\[(?P<axes>[^\]]*)\]"
    r"(?:, device_ids=\(\[(?P<sides>[\d,]+)\](?:T\((?P<order>[\d,]+)\))?\))?\s*\{(?P<inside>[^}]*)\}"
)


class Collective(NamedTuple):
    """A collective of a program.

    Attributes:
        kind: one of KINDS.
        sizes: bytes of its result, on one device, by the type of its numbers as HLO writes it: "f32", "bf16", ...
        runs: how often it is run in one run of the program.
        group: the devices among which it is, by their places in the program's mesh, of the one group that has the first; empty:
            all. Of a permute, the first pair.
    """

    kind: str
    sizes: dict[str, int]
    runs: int
    group: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes of all of it."""
        return sum(self.sizes.values())


class Traffic(NamedTuple):
    """Collectives of one kind, of one device in one run of the program.

    Attributes:
        runs: how many are run.
        sizes: bytes of their results, by the type of their numbers.
    """

    runs: int
    sizes: dict[str, int]

    @property
    def size(self) -> int:
        """Bytes of all of them."""
        return sum(self.sizes.values())


def collectives(hlo: str) -> list[Collective]:
    """All collectives; what stands in a loop is run as often as the loop (once, where nothing says how often)."""
    blocks, entry = computations(hlo)

    chains: set[str] = set()

    def visit(name: str, times: int) -> Iterator[Collective]:
        for line in blocks.get(name, ()):
            chain = CHAIN.search(line)
            if (found := _collective(line, blocks)) is not None and not (chain and chain[1] in chains):
                yield found._replace(runs=times)
            chains.update(chain.groups() if chain else ())
            if FUSED.search(line):
                continue
            runs = times * trips(line, blocks) if " while(" in line else times
            for called in (*CALLED.findall(line), *taken(line, blocks)):
                yield from visit(called, runs)

    return list(visit(entry, 1))


def traffic(found: Iterable[Collective]) -> dict[str, Traffic]:
    """Sums by kind."""
    runs, sizes = Counter[str](), {kind: Counter[str]() for kind in KINDS}
    for collective in found:
        runs[collective.kind] += collective.runs
        sizes[collective.kind].update({dtype: collective.runs * size for dtype, size in collective.sizes.items()})
    return {kind: Traffic(runs[kind], dict(sizes[kind])) for kind in KINDS if runs[kind]}


def _collective(line: str, blocks: dict[str, list[str]]) -> Collective | None:
    """The one that an instruction is, run once."""
    if found := FUSED.search(line):
        inner = next((text for text in blocks.get(found["called"], ()) if COLLECTIVE.search(text)), "")
        return Collective("reduce-scatter", _result_sizes(found["type"], "reduce-scatter", False), 1, _group(inner))
    if found := COLLECTIVE.search(line):
        return Collective(found["kind"], _result_sizes(found["type"], found["kind"], bool(found["start"])), 1, _group(line))
    return None


def _group(line: str) -> tuple[int, ...]:
    if found := LISTED.search(line):
        return tuple(_numbers(found[1]))
    if found := RANGE.search(line):
        return _first(_range(found[2], found[3]).reshape(_numbers(found[1])))
    if found := MESH.search(line):
        axes = dict(re.findall(r"'(\w+)'=(\d+)", found["axes"]))
        places = _range(found["sides"] or ",".join(axes.values()), found["order"]).reshape([int(n) for n in axes.values()])
        inside = re.findall(r"'(\w+)'", found["inside"])
        return _first(np.moveaxis(places, [list(axes).index(name) for name in inside], range(-len(inside), 0)), len(inside))
    return ()


def _range(sides: str, order: str | None) -> np.ndarray:
    """0, 1, 2, ... in a grid of these sides, and then its axes in this order."""
    grid = np.arange(np.prod(_numbers(sides))).reshape(_numbers(sides))
    return grid.transpose(_numbers(order)) if order else grid


def _first(groups: np.ndarray, axes: int = 1) -> tuple[int, ...]:
    """The first group of an array whose last axes are those of a group."""
    return tuple(map(int, groups[(0,) * (groups.ndim - axes)].flat))


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def computations(hlo: str) -> tuple[dict[str, list[str]], str]:
    """The instructions of each computation by its name, and the name of the first to run."""
    found: dict[str, list[str]] = {}
    name = entry = ""
    for line in hlo.splitlines():
        if line.startswith(("%", "ENTRY ")):
            name = line.removeprefix("ENTRY ").split(" ", 1)[0]
            entry = name if line.startswith("ENTRY ") else entry
            found[name] = []
        elif name:
            found[name].append(line)
    return found, entry


def trips(line: str, blocks: dict[str, list[str]]) -> int:
    """Runs of a loop: as the compiler says, or else the number that its condition compares with."""
    if found := re.search(r'"known_trip_count":\{"n":"(\d+)"', line):
        return int(found[1])
    condition = re.search(r"condition=(%[\w.-]+)", line)
    bounds = re.findall(r"= [su]32\[\]\S* constant\((\d+)\)", "\n".join(blocks.get(condition[1], ()))) if condition else []
    return int(bounds[0]) if len(bounds) == 1 else 1


def taken(line: str, blocks: dict[str, list[str]]) -> list[str]:
    """The one of the branches of an instruction that is expected to run: the cheapest. Texts fit their buckets, and no objective
    begins with this step."""
    found = BRANCHES.search(line)
    names = re.findall(r"%[\w.-]+", found[1])[::-1] if found else []  # of equal ones the last, which a predicate that holds takes
    return [min(names, key=lambda name: _cycles(name, blocks))] if names else []


def _cycles(name: str, blocks: dict[str, list[str]]) -> int:
    """Estimated cycles of a computation, loops included."""
    total = 0
    for line in blocks.get(name, ()):
        found = CYCLES.search(line)
        total += int(found[1]) if found else 0
        runs = trips(line, blocks) if " while(" in line else 1
        if " fusion(" not in line:  # whose own estimate has all of it
            total += runs * sum(_cycles(called, blocks) for called in (*CALLED.findall(line), *taken(line, blocks)))
    return total


def _result_sizes(result: str, kind: str, start: bool) -> dict[str, int]:
    if start and kind != "all-reduce":  # a tuple of operands, results and, on a TPU, semaphores
        result = _elements(result)[1]
    sizes = Counter[str]()
    for dtype, dimensions in SHAPE.findall(result):
        sizes[dtype] += _bytes(dtype, dimensions)
    return dict(sizes)


def _elements(type_: str) -> list[str]:
    """Parts of a tuple type such as "((f32[2], f32[3]), f32[4]{0:T(8)})", one level deep."""
    elements, depth = [""], 0
    for letter in type_.strip()[1:-1]:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            elements.append("")
        else:
            elements[-1] += letter
    return elements


def _bytes(dtype: str, dimensions: str) -> int:
    size = 1
    for length in filter(None, dimensions.split(",")):
        size *= int(length)
    bits = 8 if dtype == "pred" else int(re.sub(r"\D", "", dtype))
    return -(-size * bits // 8)
