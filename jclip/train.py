"""The training loop: `main(config, workdir)`, read from top to bottom along the road of the data."""

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from jclip.checkpoint import CheckpointError, Checkpoints
from jclip.clock import Clock
from jclip.config import Config, ConfigError, Plan
from jclip.data import Batch, LostWorker, Source, SourceError
from jclip.data.loader import Loader
from jclip.eval import Evaluator, run_evaluators
from jclip.evaluate import make_evaluators
from jclip.facts import Record
from jclip.greeting import greeting
from jclip.lock import LockedWorkdir
from jclip.memory import device_memory, require_memory
from jclip.metrics import NonFiniteLoss, Terminal, TrainLog, open_writers
from jclip.operations import peak_steps
from jclip.parts import RunPart, compare_hosts, prepare, require_room
from jclip.processes import (
    Refused,
    end_with_main_thread,
    is_first,
    leave_together,
    sum_over_processes,
    together,
)
from jclip.program import Phase, Program, make_program
from jclip.resume import Start, choose, find_start, lineage, require_same_latest, said_changes
from jclip.sharding import make_mesh, to_global
from jclip.signals import Stopped, StopSignal
from jclip.state import TrainState, evaluated_params
from jclip.step import non_finite
from jclip.weights import WeightsError
from jclip.workdir import copied, folder, last_good, locked, tidy


def main(
    config: Config, workdir: str | Path, *, resume_from: int | None = None, source: Source | None = None
) -> dict[str, float]:
    """Trains to the configured end and returns the last results; goes on from the last checkpoint in `workdir`, which may also
    be the address of a folder in a bucket, s3://BUCKET/FOLDER or gs://BUCKET/FOLDER.

    Where there is none it starts from config.init_from, or else from random parameters. `resume_from` goes on from an earlier
    checkpoint; the later ones are moved to W/set_aside. Called again with the same `resume_from`, it goes on from what came of
    that checkpoint. A `source` of your own is trained on in place of the one that
    config.data names; the run keeps that name and what the source gives as its fingerprint.

    SIGTERM, SIGHUP, SIGUSR1 and Ctrl-C save a checkpoint and return early, where it is called in the main thread. Of several
    processes one that meets an error alone ends at once, and does not return.

    Raises:
        ConfigError: the configuration contradicts itself.
        SourceError: the data cannot be opened.
        Refused: the processes of the run differ in what they would train, or one of them cannot start.
        LockedWorkdir: another run writes to the workdir, or has taken it over while this one was paused.
        NotCopied: the workdir is in a bucket, to which the last files could not be copied.
        CheckpointError: the workdir holds another model, or a damaged checkpoint; or the last step could not be saved.
        WeightsError: what init_from names cannot be read.
        NonFiniteLoss: training has diverged.
        LostWorker: a process that reads data was killed; the steps done are saved.
    """
    given, workdir = workdir, together(partial(folder, workdir))
    parts = together(lambda: prepare(config, source))
    command = {"workdir": str(workdir.absolute()), "resume_from": resume_from}
    compare_hosts({**parts[-1].record, "command": command}, parts[-1].data.source)
    together(partial(require_room, parts))
    mesh = make_mesh(config.mesh)
    programs = together(lambda: [_make_program(part, mesh) for part in parts])
    results: dict[str, float] = {}
    with (
        locked(workdir) as local,
        copied(given, workdir, local) as hold,
        leave_together((NonFiniteLoss, CheckpointError, ConfigError, WeightsError, Refused, LockedWorkdir)),
    ):
        begin = _first_part(workdir, parts, resume_from)
        for part, program in list(zip(parts, programs, strict=True))[begin:]:
            stopped, results = _run_part(part, program, workdir, resume_from, hold)
            if stopped:
                break
    return results


def _first_part(workdir: Path, parts: Sequence[RunPart], resume_from: int | None) -> int:
    """Index of the part to go on with: the first of which a step, or an evaluation of its last step, is not done."""
    if len(parts) == 1:
        return 0

    with together(lambda: Checkpoints(workdir, read_only=True)) as checkpoints:
        require_same_latest(checkpoints)
        checkpoints.read_scores()
        step = together(lambda: choose(checkpoints, resume_from))
        have: Collection[str] = checkpoints.scores.get(step, ()) if step is not None else ()
    if step is None:
        return 0
    for i, part in enumerate(parts[:-1]):
        if step < part.plan.total or (step == part.plan.total and _owed(part.plan, step, have)):
            return i
    return len(parts) - 1


def _run_part(
    part: RunPart, program: Program, workdir: Path, resume_from: int | None, hold: Callable[[], object]
) -> tuple[bool, dict[str, float]]:
    """Trains one part, from its last checkpoint or from the end of the one before; whether the run is to stop, and its last
    results."""
    config, plan, mesh = part.config, part.plan, program.mesh
    with Checkpoints(workdir, keep=config.checkpoint.keep, best=config.checkpoint.best, guard=hold) as checkpoints:
        stop = StopSignal(jax.process_count(), sum_over_processes)
        evaluators = together(lambda: make_evaluators(config, mesh, program.gather, stop.between_batches))
        start = find_start(plan, program, checkpoints, resume_from)
        if start.step > plan.total:
            raise ConfigError(
                f"config: duration {config.duration} ends at step {plan.total:,}, and {workdir} has come to step {start.step:,}; "
                "use a longer one, or another --workdir"
            )
        phases = program.compile_phases()
        terminal = Terminal(plan.total, start=start.step, quiet=not is_first())
        terminal.say(greeting(part, program, phases[-1].train_step, start.origin, workdir))
        _say_changes(start, part, checkpoints, terminal)
        record = {**part.record, **lineage(start, resume_from)}
        together(hold)  # compiling may have taken minutes, in which another run may have taken the workdir over
        tidy(workdir, part.run, checkpoints, start, terminal)
        with (
            _make_log(part, mesh, terminal, start, checkpoints) as log,
            part.data.loader(start.step) as loader,
        ):
            run = Run(config, plan, mesh, evaluators, checkpoints, record, log, terminal, stop, hold)
            with stop.listening():
                owed = _owed_evaluations(run, start.step, start.record)
                done, results = _train(run, phases, start.step, start.state, loader, owed)
            # A signal may also have come in the last step of a stage, or in its evaluations: the next one must not begin.
            stopped = done < plan.total or (not part.is_last and stop.received_anywhere())
            if stopped:
                saved = ", which is saved; the same command goes on from there" if done else ": nothing is done yet"
                terminal.say(f"stopped after step {done:,}{saved}")
        if not loader.ended:
            end_with_main_thread()
    return stopped, results


class Run(NamedTuple):
    """Parts that the loop works with."""

    config: Config
    plan: Plan
    mesh: Mesh
    evaluators: Mapping[str, Evaluator]
    checkpoints: Checkpoints
    record: Record
    log: TrainLog
    terminal: Terminal
    stop: StopSignal
    hold: Callable[[], object]
    """Raises LockedWorkdir where the workdir is another run's by now."""


def _train(
    run: Run, phases: Sequence[Phase], start: int, state: TrainState, loader: Loader, owed: Mapping[str, Evaluator]
) -> tuple[int, dict[str, float]]:
    """The loop, from step `start` on, with the evaluations that this step still owes; the last step, and the last results."""
    plan, done, retry_at, results = run.plan, start, -1, dict[str, float]()
    try:
        if owed:
            results = _evaluate(run, start, state, owed)
        for step in range(start + 1, plan.total + 1):
            batch = _next_batch(run, start, done, state, loader)
            phase = next(phase for phase in reversed(phases) if phase.first < step - plan.first)
            arrays = to_global(phase.views_of(batch.arrays), run.mesh)
            with jax.transfer_guard("disallow"):
                state, metrics = phase.train_step(state, arrays)
            done = step
            run.log.step(step, metrics, batch.keys, batch.problems)

            stopping = run.stop.after_step(step) and step < plan.total
            due = {} if stopping else {name: run.evaluators[name] for name in plan.due_evaluations(step)}
            if due or stopping or plan.due_checkpoint(step) or step == retry_at:
                _save(run, step, state)  # before the evaluations: nothing that happens in them costs training
            if stopping:
                break
            if problem := run.checkpoints.poll():
                retry_at = _say_failed(run, step, problem)
            _say_notices(run)
            if due:
                results = _evaluate(run, step, state, due)
    except Stopped:
        run.terminal.say(f"told to stop after step {done:,}")
    _finish(run, start, done, state)
    return done, results


def _next_batch(run: Run, start: int, done: int, state: TrainState, loader: Loader) -> Batch:
    """The batch of the step after `done`; where the data cannot be read any more, the steps done are saved."""
    began = time.perf_counter()
    try:
        with run.stop.may_leave():
            batch = next(loader)
        run.log.waited(began)
        return batch
    except Exception as error:
        if jax.process_count() > 1 or done == start:  # others may have data, and would not save with this one
            raise
        _finish(run, start, done, state)
        if isinstance(error, (LostWorker, SourceError)):
            raise type(error)(f"{error}\nstep {done:,} is saved: the same command goes on from there") from None
        raise


def _save(run: Run, step: int, state: TrainState) -> None:
    """Starts to save the state after a step; raises NonFiniteLoss where training has diverged, also in that very step."""
    together(run.hold)
    run.log.flush()
    if broken := non_finite(state.saved(), run.mesh):
        raise NonFiniteLoss(
            f"step {step}: its update has made {len(broken)} arrays infinite or no number, such as {broken[0]}. "
            f"{last_good(run.checkpoints, step)}. A lower optim.lr, a longer optim.warmup or optim.clip_norm 1.0 may help"
        )
    run.checkpoints.save(step, state.saved(), run.record)


def _say_failed(run: Run, step: int, problem: str) -> int:
    """Says why a save has failed; returns the step at which it is tried again."""
    retry_at = step + max(1, round(run.plan.checkpoint_every / 10)) if jax.process_count() == 1 else -1
    again = f"it is tried again after step {retry_at:,}" if retry_at > 0 else "it is tried again at the next one that is due"
    run.terminal.say(f"jclip: {problem}; the checkpoints before stay, training goes on, and {again}")
    return retry_at


def _say_notices(run: Run) -> None:
    for notice in run.checkpoints.notices():
        run.terminal.say(f"jclip: {notice}")


def _finish(run: Run, start: int, done: int, state: TrainState) -> None:
    """Waits until the last step is safe; one more try where it is not.

    Raises:
        CheckpointError: it cannot be saved.
    """
    problem = run.checkpoints.wait()
    _say_notices(run)
    if done == start or not _on_any(done not in run.checkpoints.steps):
        if problem:
            run.terminal.say(f"jclip: {problem}")
        return
    _save(run, done, state)
    problem = run.checkpoints.wait() or problem
    if _on_any(done not in run.checkpoints.steps):
        last = run.checkpoints.latest
        raise CheckpointError(
            f"{problem or 'another process could not save'}; the last whole checkpoint is {'none' if last is None else last}; "
            "make room, and start the same command again"
        )


def _on_any(condition: bool) -> bool:
    """True where it holds on any process; every one has to call it."""
    return sum_over_processes(int(condition)) > 0


def _owed_evaluations(run: Run, start: int, record: Mapping[str, Any] | None) -> dict[str, Evaluator]:
    """The evaluations of the step that a run goes on from which were cut short, or never begun."""
    if record is None or "format" not in record:  # an older jclip evaluated before it saved
        return {}
    missing = _owed(run.plan, start, run.checkpoints.scores.get(start, ()))
    if missing:
        run.terminal.say(f"jclip: evaluations of step {start:,} that were not finished come first: {', '.join(missing)}")
    return {name: run.evaluators[name] for name in missing}


def _owed(plan: Plan, step: int, have: Collection[str]) -> list[str]:
    """The evaluations due after a step of which `have`, the names of results, has none; every process has to call it.

    All decide the same, though the file of results may come to one process later than to another.
    """
    return [name for name in plan.due_evaluations(step) if _on_any(not any(key.startswith(f"{name}/") for key in have))]


def _evaluate(run: Run, step: int, state: TrainState, due: Mapping[str, Evaluator]) -> dict[str, float]:
    """Runs evaluations of a step that is saved; those that are complete are kept also where another one is cut short."""
    values: dict[str, float] = {}

    def results() -> Iterator[tuple[str, float]]:
        for name, value in run_evaluators(due, evaluated_params(run.config, state.params, state.extra)):
            values[name] = value
            yield name, value

    try:
        with run.stop.may_leave():
            run.log.evaluation(step, results())
    finally:
        if values:
            run.checkpoints.evaluated(step, values)
    best = run.config.checkpoint.best
    if best is not None and best not in values and any(best.startswith(f"{name}/") for name in due):
        raise ConfigError(f"config: checkpoint.best {best!r} is none of the metrics: {', '.join(values)}")
    return values


def _make_program(part: RunPart, mesh: Mesh) -> Program:
    """The program, if this host's devices have the memory for it."""
    config, plan = part.config, part.plan
    program = make_program(config, mesh, warmup_steps=plan.warmup, total_steps=plan.length, cooldown_steps=plan.cooldown)
    require_memory(program.parts(), device_memory(mesh.local_devices[0]))
    return program


def _say_changes(start: Start, part: RunPart, checkpoints: Checkpoints, terminal: Terminal) -> None:
    if changed := said_changes(start, part.record, part.config, part.plan):
        what = "the checkpoint" if start.other is None else "the run that is taken up"
        terminal.say("\n  ".join([f"jclip: {what} was trained with another configuration; from here on", *changed]))
    if part.is_last and start.step == part.plan.total:
        terminal.say(
            f"jclip: all {start.step:,} steps are done; `jclip eval {checkpoints.directory.parent}` evaluates, "
            "a longer --duration goes on"
        )


def _make_log(part: RunPart, mesh: Mesh, terminal: Terminal, start: Start, checkpoints: Checkpoints) -> TrainLog:
    config, plan = part.config, part.plan

    def back_to(step: int) -> str:
        found = last_good(checkpoints, step - 1)
        if step - 1 in checkpoints.steps:  # its parameters are the ones that gave this loss
            found += f"; remove {checkpoints.directory / str(step - 1)}, which is not, before you go on"
        return found

    workdir = checkpoints.directory.parent
    before = 0 if start.record is None else int(start.record["config"]["log_every"])  # steps may have had fewer lines then
    every = max(config.log_every, before)
    writers = [
        terminal,
        *(open_writers(workdir, terminal, first=start.first, start=start.step, every=every) if is_first() else []),
    ]
    clock = Clock(config.batch_size, plan.total, start.step, peak_steps(config, mesh))
    return TrainLog(
        writers,
        terminal,
        clock,
        every=config.log_every,
        total=plan.total,
        last_good=back_to,
        sum_up=sum_over_processes,
        seen=part.data.counts,
    )
