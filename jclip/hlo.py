"""What a compiled program sends between devices, read from its HLO text."""

import re
from collections import Counter
from typing import NamedTuple

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "collective-permute", "all-to-all")

# "  %all-gather.3 = bf16[8,64]{1,0} all-gather(%x), ..."; a "-start" is the first half of an asynchronous one.
COLLECTIVE = re.compile(rf"= (?P<type>.+?) (?P<kind>{'|'.join(KINDS)})(?P<start>-start)?\(")
# A TPU has no instruction for a reduce-scatter, but fuses an all-reduce with the slicing that follows it.
FUSED = re.compile(r"= (?P<type>.+?) fusion\(.*calls=%all-reduce-scatter")
CALLED = re.compile(r"(?:body|calls|to_apply|branch_computations)=\{?(%[\w.-]+(?:, %[\w.-]+)*)")
SHAPE = re.compile(r"\b(pred|bf16|[fsu]\d+)(?:e\d\w*)?\[([\d,]*)\]")


class Traffic(NamedTuple):
    """Collectives of one kind, of one device in one run of the program.

    Attributes:
        runs: how many are run.
        size: bytes of their results.
    """

    runs: int
    size: int


def collectives(hlo: str) -> dict[str, Traffic]:
    """All collectives by kind; what stands in a loop counts as often as the loop runs (once, where that cannot be told)."""
    blocks, entry = computations(hlo)
    counts: Counter[str] = Counter()
    sizes: Counter[str] = Counter()

    def visit(name: str, times: int) -> None:
        for line in blocks.get(name, ()):
            if found := FUSED.search(line):
                counts["reduce-scatter"] += times
                sizes["reduce-scatter"] += times * _result_bytes(found["type"], "reduce-scatter", False)
                continue
            if found := COLLECTIVE.search(line):
                counts[found["kind"]] += times
                sizes[found["kind"]] += times * _result_bytes(found["type"], found["kind"], bool(found["start"]))
            runs = times * trips(line, blocks) if " while(" in line else times
            for names in CALLED.findall(line):
                for called in names.split(", "):
                    visit(called, runs)

    visit(entry, 1)
    return {kind: Traffic(counts[kind], sizes[kind]) for kind in KINDS if counts[kind]}


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
    """How often a loop runs: as the compiler says, or else the number that its condition compares with."""
    if found := re.search(r'"known_trip_count":\{"n":"(\d+)"', line):
        return int(found[1])
    condition = re.search(r"condition=(%[\w.-]+)", line)
    bounds = re.findall(r"= [su]32\[\]\S* constant\((\d+)\)", "\n".join(blocks.get(condition[1], ()))) if condition else []
    return int(bounds[0]) if len(bounds) == 1 else 1


def _result_bytes(result: str, kind: str, start: bool) -> int:
    if start and kind != "all-reduce":  # a tuple of operands, results and, on a TPU, semaphores
        result = _elements(result)[1]
    return sum(_bytes(dtype, dimensions) for dtype, dimensions in SHAPE.findall(result))


def _elements(type_: str) -> list[str]:
    """Of a tuple type such as "((f32[2], f32[3]), f32[4]{0:T(8)})", one level deep."""
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
