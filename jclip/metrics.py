"""Writers of metrics: metrics.jsonl, the terminal, TensorBoard."""

import errno
import importlib.util
import json
import math
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from jclip.clock import Clock
from jclip.files import read_whole

Values = Mapping[str, float]
SHOWN_PROBLEMS = 5
SHOWN_KEYS = 8

FLUSH_SECONDS = 10
"""Time between two flushes of TensorBoard's file, each of which waits for the disk."""


class Writer(Protocol):
    """Destination of the metrics of a run."""

    def write(self, step: int, values: Values) -> None:
        """Training metrics or results of evaluations after `step` updates."""

    def close(self) -> None:
        """Ends the writer: no more metrics come."""


class JsonlWriter:
    """One JSON object a line, {"step": 120, "loss": 1.93, ...}, flushed at once."""

    def __init__(self, path: Path, *, start: int = 0) -> None:
        """Appends to `path`. Lines of steps after `start`, which a killed run may have left, are dropped: they come again."""
        self.lost = 0
        """Lines that were dropped because they are damaged; the last one may have been cut off when a run was killed."""
        self.last = 0
        """Last step of the lines that stay."""
        if path.exists() or path.is_symlink():
            steps = [(line, _step_of(line)) for line in read_whole(path).splitlines()]
            self.lost = sum(step is None for _, step in steps[:-1])
            stay = [(line, step) for line, step in steps if step is not None and step <= start]
            self.last = round(max((step for _, step in stay), default=0))
            rewritten = path.with_suffix(".tmp")
            rewritten.write_bytes(b"".join(line + b"\n" for line, _ in stay))
            os.replace(rewritten, path)
        self._file = path.open("ab", buffering=0)

    def write(self, step: int, values: Values) -> None:
        """Appends a line. Raises OSError where not all of it could be written."""
        line = (json.dumps({"step": step, **values}) + "\n").encode()
        if self._file.write(line) != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def _step_of(line: bytes) -> float | None:
    """The step of a line of metrics; None where it is none."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


class TensorBoardWriter:
    """Scalars for TensorBoard, where the extra `tensorboard` is installed.

    They are written at once, by this thread: the queue of tensorboardX's SummaryWriter fills up once its thread has died of an
    error, and whoever writes to it then waits for ever.
    """

    def __init__(self, directory: Path, *, start: int = 0) -> None:
        """Writes to `directory`; what a killed run wrote of steps after `start` is hidden."""
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.summary import scalar

        directory.mkdir(parents=True, exist_ok=True)
        self._event, self._scalar = Event, scalar
        self._writer = EventsWriter(str(directory / "events"))
        self._flushed = time.monotonic()
        if start:
            self._writer.write_event(Event(step=start + 1, file_version="brain.Event:2"))
            self._writer.write_event(Event(step=start + 1, session_log=SessionLog(status=SessionLog.START)))

    def write(self, step: int, values: Values) -> None:
        """Adds each as a scalar."""
        for name, value in values.items():
            self._writer.write_event(self._event(step=step, wall_time=time.time(), summary=self._scalar(name, value)))
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self._writer.flush()
            self._flushed = time.monotonic()

    def close(self) -> None:
        """Flushes and closes."""
        self._writer.close()


class Guarded:
    """A writer whose first error is said, and that writes nothing from there on: metrics never stop a run."""

    def __init__(self, what: str, make: Callable[[], Writer], say: Callable[[str], object]) -> None:
        """
        Args:
            what: names it in the message, such as its path.
            make: opens the writer.
            say: shows a message.
        """
        self._what, self._say = what, say
        self._writer: Writer | None = None
        self._try(lambda: setattr(self, "_writer", make()))

    def write(self, step: int, values: Values) -> None:
        """Writes, if nothing has failed so far."""
        if (writer := self._writer) is not None:
            self._try(lambda: writer.write(step, values))

    def close(self) -> None:
        """Closes it; what is still to be written may fail."""
        if (writer := self._writer) is not None:
            self._try(writer.close)
        self._writer = None

    def _try(self, action: Callable[[], object]) -> None:
        try:
            action()
        except Exception as error:
            self._writer = None
            self._say(f"metrics are no longer written to {self._what}: {error}; training goes on")


class Terminal:
    """A live progress bar on a terminal, plain lines elsewhere; evaluations appear as they come."""

    def __init__(self, total_steps: int, *, start: int = 0, console: Console | None = None, quiet: bool = False) -> None:
        """
        Args:
            total_steps: of the run.
            start: steps that are done.
            console: where to write; None: standard output.
            quiet: show nothing, as all processes of a run but one.
        """
        self.console = console or Console(emoji=False, highlight=False, quiet=quiet)
        self._total = total_steps
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("[bold]train"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss [cyan]{task.fields[loss]:.4f}"),
            TextColumn("[green]{task.fields[speed]:,.0f} examples/s{task.fields[mfu]}"),
            TextColumn("data wait {task.fields[wait]:.0%}{task.fields[sources]}", markup=False),
            TimeRemainingColumn(compact=True),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        shown: dict[str, Any] = {"loss": float("nan"), "speed": 0.0, "wait": 0.0, "mfu": "", "sources": ""}
        self._task = self._progress.add_task("train", total=total_steps, completed=start, **shown)
        self._progress.start()

    def say(self, message: str) -> None:
        """A line above the bar. Letters that no terminal has, such as half of a surrogate pair from data, are escaped."""
        self._print(message.encode("utf-8", "backslashreplace").decode(), soft_wrap=True, markup=False)

    def _print(self, *what: Any, **options: Any) -> None:
        """Prints, unless the other end of the pipe has gone or the disk of the log is full: that must not stop a run."""
        try:
            self.console.print(*what, **options)
        except OSError:
            self.console.quiet = True

    def advance(self, step: int, loss: float, speed: Mapping[str, float]) -> None:
        """Moves the bar; `speed` as a Clock reads it."""
        mfu = f", MFU {speed['mfu']:.1%}" if "mfu" in speed else ""
        rate, wait = speed["examples_per_second"], speed["data_wait"]
        self._progress.update(self._task, completed=step, loss=loss, speed=rate, wait=wait, mfu=mfu)

    def write(self, step: int, values: Values) -> None:
        """A training line (only where there is no bar), or a table of results."""
        if "loss" not in values:
            self._print(results_table(f"step {step:,} of {self._total:,}", values))
        elif self.console.is_terminal:
            self._progress.update(self._task, sources=_sources(values))
        else:
            eta, wait = values.get("seconds_left", float("nan")), values.get("data_wait", 0.0)
            mfu = f"MFU {values['mfu']:.1%}  " if "mfu" in values else ""
            self.say(
                f"step {step:>6,}/{self._total:,}  loss {values['loss']:.4f}  lr {values['lr']:.2e}  "
                f"{values['examples_per_second']:,.0f} examples/s  {mfu}data wait {wait:.0%}{_sources(values)}  "
                f"{_minutes(eta)} left"
            )

    def close(self) -> None:
        """Leaves the bar as it is."""
        with suppress(OSError):
            self._progress.stop()


def results_table(title: str, values: Values) -> Table:
    """Results of evaluations, a line each."""
    table = Table(title=Text(title), title_justify="left", show_header=False, box=None, padding=(0, 2))
    for name, value in values.items():
        whole = isinstance(value, int) or (float(value).is_integer() and abs(value) > 1)
        table.add_row(Text(name), f"{value:,.0f}" if whole else f"{value:.4f}")
    return table


def _sources(values: Values) -> str:
    """Shares of what was seen of each source of a mixture: ", a 75%, b 25%"; empty where there is one source."""
    seen = {name.removeprefix("data/"): count for name, count in values.items() if name.startswith("data/")}
    total = sum(seen.values())
    return "".join(f", {name} {count / total:.0%}" for name, count in seen.items()) if total else ""


def _minutes(seconds: float) -> str:
    if seconds != seconds:
        return "?"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{seconds:02}s"


class _Finish:
    """The time at which arrays that are being computed were there, so far infinity; a thread waits for them."""

    def __init__(self, arrays: Any) -> None:
        self.time = math.inf
        threading.Thread(target=self._wait, args=(arrays,), name="finish").start()

    def _wait(self, arrays: Any) -> None:
        with suppress(Exception):  # whoever reads them hears of it
            jax.block_until_ready(arrays)
            self.time = time.perf_counter()


class NonFiniteLoss(RuntimeError):
    """The loss or the gradient is no longer a number; the message names the step, the examples and what to do."""


class TrainLog:
    """The metrics of training, fetched a step late so that nothing waits for the device, and written every few steps."""

    def __init__(
        self,
        writers: Sequence[Writer],
        terminal: Terminal,
        clock: Clock,
        *,
        every: int,
        total: int,
        last_good: Callable[[int], str],
        sum_up: Callable[[int], int] = lambda count: count,
        seen: Callable[[int], Mapping[str, int]] = lambda step: {},
    ) -> None:
        """
        Args:
            writers: where metrics go, `terminal` among them.
            terminal: whose bar advances with every step.
            clock: of this run.
            every: steps between lines of metrics.
            total: steps of the run.
            last_good: says which checkpoint to go back to when training diverges at a step.
            sum_up: the sum of a count over all processes of the run.
            seen: the examples of each source of a mixture that were seen up to a step, by the source's name.
        """
        self._writers, self._terminal, self._clock = writers, terminal, clock
        self._every, self._total, self._last_good, self._sum_up, self._seen = every, total, last_good, sum_up, seen
        self._pending: tuple[int, Any, Sequence[str]] | None = None
        self._speed: dict[str, float] = {"examples_per_second": 0.0, "data_wait": 0.0}
        self._finish: _Finish | None = None
        self.broken = 0
        """Examples that could not be read and were replaced, in this process since it started."""

    def __enter__(self) -> "TrainLog":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for writer in self._writers:
            writer.close()

    def step(self, step: int, metrics: Any, keys: Sequence[str], problems: Sequence[str]) -> None:
        """Takes the metrics of the step just started and reports those of the one before.

        Raises:
            NonFiniteLoss: see there.
        """
        self._finish = _Finish(metrics)
        self.flush()
        self._pending = (step, metrics, keys)
        for problem in problems:
            self.broken += 1
            if self.broken <= SHOWN_PROBLEMS:
                self._terminal.say(f"replaced a broken example: {problem}")
            if self.broken == SHOWN_PROBLEMS:
                self._terminal.say("further broken examples are counted in metrics.jsonl, not shown")

    def waited(self, since: float) -> None:
        """Takes note that the loop has waited for a batch since then (time.perf_counter).

        The time in which the device still computed the step before is no loss, and not counted.
        """
        idle = since if self._finish is None else max(since, self._finish.time)
        self._clock.wait(max(0.0, time.perf_counter() - idle))

    def flush(self) -> None:
        """Reports what is pending; waits for the device."""
        if self._pending is None:
            return
        (step, metrics, keys), self._pending = self._pending, None
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        if not (math.isfinite(values["loss"]) and math.isfinite(values["grad_norm"])):
            raise NonFiniteLoss(
                f"step {step}: the loss is {values['loss']} and the norm of the gradient {values['grad_norm']}. "
                f"{self._last_good(step)}. A lower optim.lr, a longer optim.warmup or optim.clip_norm 1.0 may help. "
                f"The batch held {', '.join(keys[:SHOWN_KEYS])}"
                + (f" and {len(keys) - SHOWN_KEYS:,} more" if len(keys) > SHOWN_KEYS else "")
            )
        if step % self._every == 0 or step == self._total:
            self._speed = self._clock.read(step)
            broken = self._sum_up(self.broken)
            counted = {"broken_examples": float(broken)} if broken else {}
            seen = {f"data/{name}": float(count) for name, count in self._seen(step).items()}
            self._write(step, {**values, **self._speed, **counted, **seen})
        self._terminal.advance(step, values["loss"], self._speed)

    def evaluation(self, step: int, results: Iterable[tuple[str, float]]) -> dict[str, float]:
        """Runs evaluations, writes what they yield, and keeps their time out of the training speed.

        What they have yielded is written also where one of them is cut short.
        """
        self.flush()
        began = time.perf_counter()
        values: dict[str, float] = {}
        try:
            for name, value in results:
                values[name] = value
        finally:
            if values:
                self._write(step, values)
            self._clock.exclude(time.perf_counter() - began)
        return values

    def _write(self, step: int, values: Values) -> None:
        for writer in self._writers:
            writer.write(step, values)


def open_writers(workdir: Path, terminal: Terminal, *, first: int = 0, start: int = 0, every: int = 1) -> list[Writer]:
    """Writers of metrics.jsonl, and for TensorBoard where the extra is installed; one that fails is said and dropped.

    What a run that goes on at step `start`, with a line `every` so many steps behind step `first`, finds damaged or missing is
    said.
    """

    def jsonl() -> Writer:
        writer = JsonlWriter(workdir / "metrics.jsonl", start=start)
        if writer.lost:
            terminal.say(
                f"jclip: {writer.lost} lines of {workdir / 'metrics.jsonl'} are damaged, and are dropped; the rest stays"
            )
        last = max(writer.last, first)
        if last + every <= start:
            lacking = f"the steps {last + 1:,} to {start:,}"
            terminal.say(f"jclip: {workdir / 'metrics.jsonl'} has no line of {lacking}: they are lost")
        return writer

    writers: list[Writer] = [Guarded(str(workdir / "metrics.jsonl"), jsonl, terminal.say)]
    if importlib.util.find_spec("tensorboardX"):
        folder = workdir / "tensorboard"
        writers.append(Guarded(str(folder), lambda: TensorBoardWriter(folder, start=start), terminal.say))
    return writers
