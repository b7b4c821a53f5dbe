"""The time that the TPU compiler expects a compiled program to take, read from its HLO text: cycles by part of the model.

It is a model, not a measurement: ratios between programs are good evidence, absolute figures within some tens of percent.
Transfers that run beside computation are not counted, and of a kernel of our own (Pallas) the compiler knows only what its
`cost_estimate` says.
"""

import re
from collections import defaultdict
from collections.abc import Iterator

from jclip.hlo import CYCLES, computations, taken, trips

KERNEL = re.compile(r'"flops":"(\d+)","transcendentals":"(\d+)","bytes_accessed":"(\d+)"')
LOOP = re.compile(r" while\(.*body=(%[\w.-]+)")
CALL = re.compile(r" call\(.*to_apply=(%[\w.-]+)")
PATH = re.compile(r'op_name="([^"]*)"')

PARTS = (
    ("attention", "/attn"),
    ("MLP", "/mlp"),
    ("norms", "/norm"),
    ("patch embedding", "/patch_embed"),
    ("loss", "jvp()"),
    ("other of the towers", "jvp("),
    ("optimizer", "jit(train_step)/"),
)
"""Parts of a step, each with what the paths of its operations contain; the first that matches counts."""

EXPONENTIAL = 10 / (2 * 1024)
"""Cycles of a kernel for each exponential: about ten vector operations, two a cycle, on 1,024 numbers at a time."""


def estimated_cycles(hlo: str, *, flops: float, bandwidth: float, clock: float) -> dict[str, float]:
    """Cycles of one run of a program by part, the largest first; empty where the text has no estimates (on CPUs and GPUs).

    The body of a loop counts as often as it runs. A kernel counts with the larger of its operations at `flops` and its bytes at
    `bandwidth`, and its exponentials.

    Args:
        hlo: compiled.as_text().
        flops: peak operations a second of a device.
        bandwidth: bytes a second of its memory.
        clock: its cycles a second.
    """
    blocks, entry = computations(hlo)
    total: dict[str, float] = defaultdict(float)

    def cycles(line: str) -> float:
        if found := CYCLES.search(line):
            return float(found[1])
        if "tpu_custom_call" in line and (found := KERNEL.search(line)):
            operations, exponentials, size = map(float, found.groups())
            return clock * max(operations / flops, size / bandwidth) + EXPONENTIAL * exponentials
        return 0.0

    for line, times in executed(blocks, entry):
        if found := cycles(line):
            total[part(line)] += times * found
    return dict(sorted(total.items(), key=lambda item: -item[1]))


def executed(blocks: dict[str, list[str]], name: str, times: int = 1) -> Iterator[tuple[str, int]]:
    """The instructions of a computation and of all that it runs, each with how often it runs; fusions count as one."""
    for line in blocks.get(name, ()):
        yield line, times
        for body in LOOP.findall(line):
            yield from executed(blocks, body, times * trips(line, blocks))
        for called in (*CALL.findall(line), *taken(line, blocks)):
            yield from executed(blocks, called, times)


def part(line: str) -> str:
    """The part of a step that an instruction belongs to, by its path."""
    found = PATH.search(line)
    path = found[1] if found else ""
    return next((name for name, mark in PARTS if mark in path), "layout and transfers")
