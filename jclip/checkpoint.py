"""Checkpoints: saved while training goes on, restored onto any mesh, each complete in itself and checked when it is read."""

import gc
import json
import logging
import re
import shutil
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from jclip.config import Config, ConfigError, from_json
from jclip.data.caches import write_atomically
from jclip.digests import begin_digests
from jclip.files import read_whole
from jclip.keeping import kept, old_scores
from jclip.processes import is_first
from jclip.saved_digests import DIGESTS, FILE, SavedDigests, array_digests, named_arrays, record_digest, type_and_shape
from jclip.tree import flatten

SCORES = "evaluations.json"

UNFINISHED = ".orbax-checkpoint-tmp"
"""Mark in the name of a checkpoint that is being written; Orbax takes it off in one step."""

SHOWN = 5
"""Arrays that a message names."""


class CheckpointError(RuntimeError):
    """There is no checkpoint, or it does not fit what it is loaded into; the message says what to do."""


class DamagedCheckpoint(CheckpointError):
    """A checkpoint is not what was saved; the message says which part of it."""


class Checkpoints:
    """The checkpoints of a workdir: W/checkpoints/STEP, with parameters, optimizer state, their digests and a record of the run.

    A context manager: leaving it waits until what is being written is safe. A save that fails raises nothing: `poll` and `wait`
    say it.
    """

    def __init__(
        self,
        workdir: str | Path,
        *,
        keep: int = 1,
        best: str | None = None,
        read_only: bool = False,
        guard: Callable[[], object] = lambda: None,
    ) -> None:
        """
        Args:
            workdir: folder of the run; made where it is missing.
            keep: how many of the latest checkpoints stay.
            best: metric whose highest checkpoint stays as well.
            read_only: leave alone what another process may be writing; otherwise what a killed one left unfinished is removed.
            guard: called before anything in the workdir is changed; raises where it may not be.
        """
        self.directory = Path(workdir).absolute() / "checkpoints"
        self.scores: dict[int, dict[str, float]] = {}
        """Results of evaluations by step, which decide what stays; W/evaluations.json holds them."""
        self._keep, self._best, self._guard = keep, best, guard
        self._writer = ThreadPoolExecutor(1)
        self._pending: tuple[int, Future[None]] | None = None
        self._problem, self._notices = "", list[str]()
        if not read_only:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._remove_unfinished()
        self.steps = self._listed()
        """The steps saved, in order."""

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._finish()
        self._writer.shutdown()

    @property
    def latest(self) -> int | None:
        """The last step saved."""
        return max(self.steps, default=None)

    def look_again(self) -> None:
        """Reads anew which steps are on disk."""
        self.steps = self._listed()

    def _listed(self) -> list[int]:
        """The steps on disk, read once: each process knows what it saves, and shared storage may show it later to some."""
        if not self.directory.is_dir():
            return []
        return sorted(int(path.name) for path in self.directory.iterdir() if path.name.isdecimal() and path.is_dir())

    def record(self, step: int) -> dict[str, Any]:
        """The record of the run when it saved this checkpoint; see `jclip.facts`.

        Raises:
            DamagedCheckpoint: it cannot be read, or is not what was saved.
            CheckpointError: it is none of jclip's.
        """
        path = self.directory / str(step) / "_CHECKPOINT_METADATA"
        try:
            saved = json.loads(read_whole(path))["custom_metadata"]
            if not isinstance(saved, dict) or "config" not in saved:
                raise CheckpointError(f"checkpoint: {path.parent} holds no configuration; it is not one of jclip's")
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise DamagedCheckpoint(f"checkpoint {path.parent} is damaged: {path.name} ({_reason(error)})") from None
        if self._has_digests(saved, step) and self._digests(step)["record"] != record_digest(saved):
            raise DamagedCheckpoint(f"checkpoint {path.parent} is damaged: {path.name} is not what was saved")
        return saved

    def config(self, step: int) -> Config:
        """The configuration that the checkpoint was trained with."""
        try:
            return from_json(self.record(step)["config"])
        except ConfigError as error:
            raise CheckpointError(f"checkpoint {self.directory / str(step)}: its configuration cannot be used: {error}") from None

    def save(self, step: int, parts: Mapping[str, Any], record: Mapping[str, Any]) -> None:
        """Starts to save; training goes on. The previous save has ended first. Nothing is done where the step is saved already.

        Args:
            step: completed updates.
            parts: trees of arrays by name.
            record: what the run is made of, as JSON.
        """
        self._finish()
        if step in self.steps:
            return
        self._guard()
        try:
            digests = SavedDigests({name: (part, begin_digests(part)) for name, part in parts.items()}, record)
            with _context():
                response = ocp.save_checkpointables_async(
                    self.directory / str(step), {**parts, DIGESTS: digests}, custom_metadata=dict(record)
                )
            self._pending = step, self._writer.submit(response.result)
        except Exception as error:
            self._fail(step, error)

    def poll(self) -> str:
        """Reason why a save has failed, once; "" where none has, or where it is still being written."""
        if self._pending and self._pending[1].done():
            self._finish()
        problem, self._problem = self._problem, ""
        return problem

    def notices(self) -> list[str]:
        """Other files that could not be written or removed, said once; no checkpoint is missing for them."""
        notices, self._notices = self._notices, []
        return notices

    def wait(self) -> str:
        """Waits until the last save is safe on disk; returns what `poll` does."""
        self._finish()
        self._prune()  # what has been evaluated since the last save may be the best one
        return self.poll()

    def _finish(self) -> None:
        if self._pending is not None:
            (step, future), self._pending = self._pending, None
            try:
                future.result()
                self.steps = sorted({*self.steps, step})
            except Exception as error:
                self._fail(step, error)
            self._prune()

    def _fail(self, step: int, error: Exception) -> None:
        if isinstance(error, (jax.errors.JaxRuntimeError, MemoryError)):
            raise error  # the device's, or the machine's, not the disk's
        self._problem = f"step {step:,} could not be saved in {self.directory}: {_reason(error)}"
        self._remove_unfinished()

    def read_scores(self) -> str:
        """Reads W/evaluations.json; says what is wrong with it, or "". Without it no checkpoint is the best one so far."""
        path = self.directory.parent / SCORES
        self.scores = old_scores(self.directory, self.steps)
        try:
            content = json.loads(read_whole(path))
            self.scores |= {int(step): {k: float(v) for k, v in values.items()} for step, values in content.items()}
        except FileNotFoundError:
            pass
        except (OSError, AttributeError, TypeError, ValueError, RecursionError) as error:
            return f"{path} is damaged ({_reason(error)}): evaluations of earlier checkpoints do not count for checkpoint.best"
        return ""

    def evaluated(self, step: int, results: Mapping[str, float]) -> None:
        """Keeps the results of evaluations of a step that is saved, and what they say of which checkpoints stay."""
        self.scores[step] = {**self.scores.get(step, {}), **results}
        self._write_scores({*self.steps, step})

    def _write_scores(self, steps: Collection[int]) -> None:
        known = {str(step): scores for step, scores in sorted(self.scores.items()) if step in steps}
        if is_first():
            text = json.dumps(known, indent=1)
            self._guard()
            try:
                write_atomically(self.directory.parent / SCORES, lambda part: part.write_text(text, encoding="utf-8"))
            except OSError as error:
                self._notices.append(f"{self.directory.parent / SCORES} could not be written: {_reason(error)}")

    def _prune(self) -> None:
        """Removes the checkpoints that are neither among the latest nor the best."""
        stay = kept(self.steps, self.scores, keep=self._keep, best=self._best)
        for step in set(self.steps).difference(stay) if is_first() else ():
            self._guard()
            try:
                _remove(self.directory / str(step))
            except FileNotFoundError:
                pass  # somebody else has removed it
            except OSError as error:
                self._notices.append(f"{self.directory / str(step)} could not be removed: {_reason(error)}")
        self.steps = stay

    def _remove_unfinished(self) -> None:
        """Remains of what was not written, or not removed, to its end; of several processes the first tidies up."""
        if is_first():
            self._guard()
            for path in self.directory.glob(f"*{UNFINISHED}*"):
                shutil.rmtree(path, ignore_errors=True)

    def set_aside(self, after: int) -> list[Path]:
        """Moves the checkpoints of later steps to W/set_aside, where nothing looks for them; returns where they are now."""
        moved = []
        for step in (step for step in self.steps if step > after):
            self._guard()
            place = self.directory.parent / "set_aside"
            place.mkdir(exist_ok=True)
            free = next(path for i in range(10**6) if not (path := place / (f"{step}-{i}" if i else str(step))).exists())
            (self.directory / str(step)).rename(free)
            moved.append(free)
        return moved

    def forget(self, after: int) -> None:
        """Later steps do not count any more; see `set_aside`, which the first process does for all."""
        self.steps = [step for step in self.steps if step <= after]
        if any(step > after for step in self.scores):  # or they would count for the checkpoints that take their place
            self.scores = {step: scores for step, scores in self.scores.items() if step <= after}
            self._write_scores(self.steps)

    def restore(self, step: int, parts: Mapping[str, Any]) -> dict[str, Any]:
        """The parts of a checkpoint, laid out as the given shapes and shardings say, whatever the mesh that wrote them.

        Raises:
            DamagedCheckpoint: an array is not what was saved, or cannot be read; all are named.
            CheckpointError: a parameter is missing, extra, or of another shape; all are listed.
        """
        at = self.directory / str(step)
        digests = self._digests(step)["arrays"] if self._has_digests(self.record(step), step) else None
        wanted = {f"{name}/{path}": leaf for name, part in parts.items() for path, leaf in named_arrays(part)}
        try:
            saved = _saved_shapes(at, digests, parts)
        except Exception as error:
            raise DamagedCheckpoint(f"checkpoint {at} is damaged: its list of arrays cannot be read ({_reason(error)})") from None
        _check_fits(at, saved, {path: type_and_shape(leaf) for path, leaf in wanted.items()})
        try:
            with _context(), _quiet():
                restored = ocp.load_checkpointables(at, dict(parts))
        except (jax.errors.JaxRuntimeError, MemoryError):
            raise
        except Exception as error:
            raise DamagedCheckpoint(f"checkpoint {at} is damaged: {_unreadable(error)}") from None
        if digests is not None:
            found = {name: text for part in parts for name, text in array_digests(part, restored[part]).items()}
            if changed := [path for path in found if found[path] != digests[path]]:
                names = ", ".join(changed[:SHOWN]) + (", ..." if len(changed) > SHOWN else "")
                raise DamagedCheckpoint(
                    f"checkpoint {at} is damaged: {len(changed)} of {len(found)} arrays are not what was saved: {names}"
                )
        return restored

    def last_whole(self, before: int, parts: Mapping[str, Any]) -> int | None:
        """The latest intact checkpoint before `before`: all of it can be read, and is what was saved."""
        for step in reversed([step for step in self.steps if step < before]):
            try:
                self.restore(step, parts)
            except CheckpointError:
                continue
            return step
        return None

    def _has_digests(self, record: Mapping[str, Any], step: int) -> bool:
        """True where the jclip that saved it wrote digests: either trace of them shows, should one be damaged."""
        return "format" in record or (self.directory / str(step) / DIGESTS).exists()

    def _digests(self, step: int) -> dict[str, Any]:
        """{"record": digest, "arrays": {path: shape, type and digest}}."""
        path = self.directory / str(step) / DIGESTS / FILE
        try:
            content = json.loads(read_whole(path))
            if not isinstance(content["arrays"], dict) or not isinstance(content["record"], str):
                raise ValueError("it is no list of digests")
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise DamagedCheckpoint(
                f"checkpoint {path.parents[1]} is damaged: {DIGESTS}/{path.name} ({_reason(error)})"
            ) from None
        return dict(content)


def _saved_shapes(at: Path, digests: Mapping[str, str] | None, parts: Mapping[str, Any]) -> dict[str, str]:
    """Type and shape of the arrays that a checkpoint has, by path; of one without digests, those of its parameters."""
    if digests is not None:
        shapes = {path: text.split(" ")[0] for path, text in digests.items()}
        return {path: shape for path, shape in shapes.items() if path.partition("/")[0] in parts}
    with _context(), _quiet():
        saved = ocp.checkpointables_metadata(at).metadata
    found: dict[str, str] = {}
    for name, part in parts.items():
        if isinstance(part, Mapping):
            found |= {f"{name}/{path}": type_and_shape(leaf) for path, leaf in flatten(saved[name]).items()}
        else:
            found |= {f"{name}/{path}": type_and_shape(leaf) for path, leaf in named_arrays(part)}
    return found


def _check_fits(at: Path, have: Mapping[str, str], want: Mapping[str, str]) -> None:
    problems = [f"missing {path} {want[path]}" for path in want if path not in have]
    problems += [f"extra {path} {have[path]}" for path in have if path not in want]
    problems += [f"{path} is {have[path]}, not {want[path]}" for path in want if path in have and have[path] != want[path]]
    if problems:
        raise CheckpointError(f"checkpoint {at} does not fit this model: {'; '.join(problems)}")


def _context() -> ocp.Context:
    """Devices that hold the same array share the writing of it, unless it is so small that cutting it up takes longer."""
    context = ocp.Context()
    context.array.saving.min_slice_bytes_for_replica_parallel = 2**20
    return context


@contextmanager
def _quiet() -> Iterator[None]:
    """A block in which Orbax logs no error, as it is explained here in one line; the coroutines that an error keeps are freed."""
    log = logging.getLogger("absl")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
            try:
                yield
            except Exception as error:
                error.__traceback__ = None  # it holds them
                gc.collect()
                raise
    finally:
        log.setLevel(level)


def _remove(path: Path) -> None:
    """Removal in two steps, so that what is half removed is never taken for a checkpoint."""
    gone = path.with_name(f"{path.name}{UNFINISHED}-removed")
    path.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def _unreadable(error: BaseException) -> str:
    """The array that could not be read, and why: what TensorStore says is the innermost of the errors that Orbax raises."""
    while inner := error.__cause__ or error.__context__:
        error = inner
    name = re.search(r'"([^"/]+)/[^"]*" in OCDBT', str(error))
    what = name[1].replace(".", "/") if name else "an array"
    return f"{what} cannot be read ({_reason(error)})"


def _reason(error: BaseException) -> str:
    """The first line of an error, not too long."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200]
