"""Times programs that take turns on one machine, each in a process of its own: what disturbs one disturbs the others too."""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console
from rich.progress import track


class Worker:
    """A process that runs its step when told to; see `serve`."""

    def __init__(self, *command: str) -> None:
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.facts: dict[str, float] = self._read()
        """Facts that the process states once it is ready."""

    def step(self) -> float:
        """Seconds of one step."""
        assert self._process.stdin is not None
        self._process.stdin.write("step\n")
        self._process.stdin.flush()
        return float(self._read())

    def _read(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("a worker has ended; its error is above")
        return json.loads(line)

    def close(self) -> None:
        """Ends the process."""
        self._process.communicate()


def serve(step: Callable[[], float | None], **facts: float) -> None:
    """The other side of a Worker: what there is to say at first, then a step for every line on standard input.

    A step returns its seconds, or None where all of it counts, by the clock.
    """
    print(json.dumps(facts), flush=True)
    while sys.stdin.readline():
        began = time.perf_counter()
        seconds = step()
        print(json.dumps(time.perf_counter() - began if seconds is None else seconds), flush=True)


def take_turns(workers: Sequence[Worker], *, warmup: int, steps: int, title: str) -> list[list[float]]:
    """Seconds of each timed step of each worker, one after the other; closes them."""
    times: list[list[float]] = [[] for _ in workers]
    for step in track(range(warmup + steps), title, console=Console(stderr=True), disable=not title):
        for worker, seconds in zip(workers, times, strict=True):
            taken = worker.step()
            if step >= warmup:
                seconds.append(taken)
    for worker in workers:
        worker.close()
    return times


def take_rounds(starts: Sequence[Callable[[], Worker]], *, rounds: int, warmup: int, steps: int, title: str) -> list[list[float]]:
    """Median seconds of a step of each program in each round: one whole process runs after the other, never two at a time.

    Two that are there at once disturb each other's memory, though only one of them computes.
    """
    times: list[list[float]] = [[] for _ in starts]
    for _ in track(range(rounds), title, console=Console(stderr=True)):
        for start, medians in zip(starts, times, strict=True):
            (seconds,) = take_turns([start()], warmup=warmup, steps=steps, title="")
            medians.append(statistics.median(seconds))
    return times


def median_ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Median of the turns' ratios, which a noisy machine disturbs least."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
