"""The start of a run: from the last checkpoint of its workdir, from config.init_from, or from random parameters."""

import time
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jclip.checkpoint import CheckpointError, Checkpoints, DamagedCheckpoint
from jclip.config import Config, InitFrom, Plan, from_json, make_plan
from jclip.config.same import model_changes
from jclip.facts import Record, changes, weights_digest
from jclip.init_from import start_from
from jclip.optim import make_schedule, split
from jclip.processes import Refused, gather_texts, same_everywhere, together
from jclip.program import Program, begin_step
from jclip.runs import open_run
from jclip.state import TrainState, new_extra, param_shapes
from jclip.tree import flatten
from jclip.weights import local_path

LOOKS = 5
"""Times that processes look for the last checkpoint, a second apart, before the run is refused."""


class Start(NamedTuple):
    """The state to go on from.

    Attributes:
        step: completed updates.
        state: at that step.
        origin: where it comes from, for the greeting.
        record: what the run was made of when the checkpoint was saved; None where there is none.
        other: the record of another run that is taken up, where the workdir has no checkpoint yet.
        resumed_from: the step of --resume-from that the stage before came from, at the beginning of the next.
    """

    step: int
    state: TrainState
    origin: str
    record: Mapping[str, Any] | None = None
    other: Mapping[str, Any] | None = None
    resumed_from: int | None = None

    @property
    def first(self) -> int:
        """The step behind which the history of this workdir begins, as far as this start knows."""
        return self.step if self.other is not None else 0


def find_start(plan: Plan, program: Program, checkpoints: Checkpoints, resume_from: int | None) -> Start:
    """The start of a run, or of a stage of it; see `Start`.

    Args:
        plan: of the run.
        program: what is to be trained.
        checkpoints: of the workdir.
        resume_from: step of the checkpoint to go on from, where that is not the last one; see `choose`.

    Raises:
        CheckpointError: the workdir holds another model, or a checkpoint that is damaged; the message says how to go on.
        ConfigError, WeightsError: as `start_from`.
        Refused: hosts see other weights to start from.
    """
    config = program.config
    require_same_latest(checkpoints)
    step = together(lambda: choose(checkpoints, resume_from))
    if step is not None and step == plan.first:
        return _cross(program, checkpoints, step)
    if step is None and config.optim.schedule == "cooldown":
        return _cool_down(plan, program)
    if step is None and config.init_from.path:
        _require_same_weights(config.init_from.path)
        return Start(0, *start_from(config.init_from, program))
    if step is None:
        return Start(0, program.init(), "random parameters")
    try:
        return _restore(plan, program, checkpoints, step)
    except DamagedCheckpoint as damage:
        # The one that is asked for, where a later one came from it and is damaged: the advice of before still holds.
        if resume_from is not None and plan.first <= resume_from < step and resume_from in checkpoints.steps:
            if resume_from == plan.first > 0:
                return _cross(program, checkpoints, resume_from)
            return _restore(plan, program, checkpoints, resume_from)
        raise CheckpointError(f"{damage}; {_way_on(checkpoints, step, program.state.saved(), plan)}") from None


def require_same_latest(checkpoints: Checkpoints) -> None:
    """Raises CheckpointError where processes see other last checkpoints; storage that they share has some seconds to show it."""
    for _ in range(LOOKS):
        latest = checkpoints.latest
        if same_everywhere(-1 if latest is None else latest):
            return
        time.sleep(1)
        checkpoints.look_again()
    raise CheckpointError(
        f"process {jax.process_index()} sees {checkpoints.latest} as the last checkpoint in {checkpoints.directory}, and another "
        "one does not; give a --workdir that all hosts share"
    )


def _cross(program: Program, checkpoints: Checkpoints, step: int) -> Start:
    """The begin of a stage: the parameters at the end of the one before."""
    workdir = str(checkpoints.directory.parent)
    before = InitFrom(workdir, step, text_positions=program.config.init_from.text_positions)
    try:
        state, origin = start_from(before, program)
    except DamagedCheckpoint as damage:
        earlier = [saved for saved in checkpoints.steps if saved < step]
        again = f"--resume-from {earlier[-1]} goes on from the one before" if earlier else f"remove {checkpoints.directory}"
        raise CheckpointError(f"{damage}; {again}") from None
    return Start(step, state, origin, resumed_from=_went_on_from(checkpoints, step))


def _require_same_weights(path: str) -> None:
    """Raises Refused where hosts would start from other weights, as of a branch that has moved between their fetches."""
    digests = gather_texts(together(lambda: weights_digest(local_path(path))))
    if len(set(digests)) > 1:
        raise Refused(
            f"the processes of the run see other weights at init_from.path {path}; give all the same, or hf://...@COMMIT"
        )


def _restore(plan: Plan, program: Program, checkpoints: Checkpoints, step: int) -> Start:
    """The state of a checkpoint, if it is of this model."""
    record, saved = together(lambda: (checkpoints.record(step), checkpoints.config(step)))
    together(lambda: _check_stage(record, plan))
    together(lambda: _check_same(saved, program, checkpoints.directory.parent))
    together(lambda: _check_begun(saved, record, program, step - plan.first))
    state = program.restored(step - plan.first, checkpoints.restore(step, program.state.saved()))
    unchecked = "" if "format" in record else " (saved by an older jclip, without digests: damage would not show)"
    return Start(step, state, f"resuming after step {step:,}{unchecked}", record)


def _cool_down(plan: Plan, program: Program) -> Start:
    """The whole state of another run at step init_from.step, from which its learning rate falls."""
    config = program.config
    path, step = Path(local_path(config.init_from.path)), config.init_from.step
    with ExitStack() as stack:
        checkpoints, saved, step = together(lambda: stack.enter_context(open_run(path, step)))
        record = together(lambda: checkpoints.record(step))
        if "data" not in record:
            raise CheckpointError(
                f"{path} was saved by an older jclip, which did not write how many examples there were; train it on for a step, "
                "and cool down from there"
            )
        if record["plan"].get("first", 0):
            raise CheckpointError(f"{path} has stages, and a cooldown goes on from a run of one piece; give the last stage a wsd")
        rate = _rate(saved, make_plan(saved, record["data"]["examples"]), step)
        if rate == 0:
            raise CheckpointError(f"{path} has cooled down at step {step:,} already; give an earlier init_from.step")
        if abs(rate - config.optim.lr) > 1e-4 * rate:
            raise CheckpointError(
                f"the learning rate of {path} at step {step:,} is {rate:.4g}, and would jump to {config.optim.lr:.4g}; "
                f"give --optim.lr {rate:.6g}"
            )
        start = _restore(plan, program, checkpoints, step)
    return Start(step, start.state, f"cooling down from step {step:,} of {path}", other=record)


def choose(checkpoints: Checkpoints, resume_from: int | None) -> int | None:
    """The step of the checkpoint to go on from.

    The same command is started again after every interruption. So `resume_from` counts where the last checkpoint does not
    already come from it; then the later ones are moved to W/set_aside.
    """
    latest = checkpoints.latest
    if resume_from is None or resume_from == latest:
        return latest
    if latest is not None and _went_on_from(checkpoints, latest) == resume_from:
        return latest
    if resume_from not in checkpoints.steps:
        have = ", ".join(map(str, checkpoints.steps)) or "none"
        raise CheckpointError(f"--resume-from {resume_from}: {checkpoints.directory} has no such checkpoint; it has {have}")
    return resume_from


def _went_on_from(checkpoints: Checkpoints, step: int) -> int | None:
    try:
        return checkpoints.record(step).get("resumed_from")
    except CheckpointError:
        return None


def lineage(start: Start, resume_from: int | None) -> Record:
    """Entries of a run's record about --resume-from, from its first checkpoint on."""
    before = start.resumed_from if start.record is None else start.record.get("resumed_from")
    now = resume_from if start.step == resume_from else before
    return {} if now is None else {"resumed_from": now}


def _way_on(checkpoints: Checkpoints, step: int, parts: Mapping[str, Any], plan: Plan) -> str:
    whole = checkpoints.last_whole(step, parts)
    if whole is None and plan.first in checkpoints.steps:  # of other shapes, and read when the stage begins again
        return f"--resume-from {plan.first} goes on from the end of the stage before"
    if whole is None:
        return f"no earlier one is whole; start anew in another --workdir, or remove {checkpoints.directory}"
    return (
        f"the last whole one is step {whole}: --resume-from {whole} goes on from there, and moves what is later to "
        f"{checkpoints.directory.parent / 'set_aside'}"
    )


def _check_same(saved: Config, program: Program, workdir: Path) -> None:
    """Raises CheckpointError where the parameters or the optimizer's state of a checkpoint are not those of this run."""
    config = program.config
    if fixed := model_changes(saved.model, config.model):
        raise CheckpointError(
            f"{workdir} holds another model: {'; '.join(fixed)} (there -> here); give these fields the values that they have "
            "there, or another --workdir (with --init-from.path to start from these parameters)"
        )
    if (saved.objectives, saved.views, saved.optim.ema) != (config.objectives, config.views, config.optim.ema):
        there, here = (_own_arrays(c) for c in (saved, config))
        if changed := sorted(there.items() ^ here.items()):
            names = ", ".join(dict.fromkeys(path for path, _ in changed[:3]))
            raise CheckpointError(
                f"{workdir} holds parameters or state of other objectives, or another moving average ({names}, ... differ); "
                f"go on with those, or in another --workdir with --init-from.path {workdir}"
            )
    for field in ("method", "mu_dtype"):
        there, here = (getattr(c.optim, field) for c in (saved, config))
        if there != here:
            raise CheckpointError(
                f"{workdir} has the optimizer state of optim.{field} {there}, not of {here}; give --optim.{field} {there}, or "
                f"start from its parameters alone, in another --workdir with --init-from.path {workdir} and no schedule cooldown"
            )
    before, now = (set(flatten(split(c.optim, program.state.params)[0])) for c in (saved, config))
    if before != now:
        names = ", ".join(sorted(before ^ now)[:3])
        raise CheckpointError(
            f"{workdir} has optimizer state for {len(before)} arrays of parameters, and optim.lr_rules now train {len(now)} "
            f"({names}, ... differ); go on with these rules in another --workdir, with --init-from.path {workdir}"
        )


def _check_stage(record: Mapping[str, Any], plan: Plan) -> None:
    """Raises CheckpointError where the stages before that of a checkpoint have another length now: its step would be another one
    of the schedule, and of the data."""
    then = record.get("plan", {}).get("first", 0)
    if then != plan.first:
        raise CheckpointError(
            f"the stages before had {then:,} steps when this checkpoint was saved, and have {plan.first:,} now; give them the "
            "durations they had, or start anew in another --workdir"
        )


def _check_begun(saved: Config, record: Mapping[str, Any], program: Program, step: int) -> None:
    """Raises CheckpointError where an objective has begun by the plan of a checkpoint, and not by that of this run, or the
    reverse: its state would be that of another moment."""
    then_planned = record.get("plan", {})
    total = then_planned["total"] - then_planned.get("first", 0) if "total" in then_planned else None
    for name, now in program.begins.items():
        if total is None or name not in saved.objectives:
            continue
        then = begin_step(saved.objectives[name], total)
        if (then == 0 or then < step) != (now == 0 or now < step):
            raise CheckpointError(
                f"checkpoint {step:,} is of a run whose objective {name} begins with step {then + 1:,}, and here it begins with "
                f"step {now + 1:,}: it would have the state of another moment; give a duration or a begin that leaves it on the "
                "same side of the checkpoint, or go on in another --workdir with --init-from.path, which begins anew"
            )


def _own_arrays(config: Config) -> dict[str, tuple[int, ...]]:
    """Shapes of the parameters and of the state of a run's objectives, by path."""
    params = param_shapes(config)
    own = {name: params[name] for name in config.objectives if name in params}
    extra = jax.eval_shape(partial(new_extra, config), params)
    return {path: leaf.shape for path, leaf in {**flatten(own), **flatten(extra, "extra/")}.items()}


def said_changes(start: Start, record: Record, config: Config, plan: Plan) -> list[str]:
    """Changes since the checkpoint that a run goes on from, each with its effect."""
    before = start.record or start.other
    if before is None:
        return []
    saved: Config = from_json(before["config"])
    then = make_plan(saved, before.get("data", record["data"])["examples"])
    rates = _rate(saved, then, start.step - plan.first), _rate(config, plan, start.step - plan.first)
    return changes(before, record, start.step, rates)


def _rate(config: Config, plan: Plan, step: int) -> float:
    """The learning rate of the update that follows `step` completed ones of a stage."""
    schedule = make_schedule(config.optim, warmup_steps=plan.warmup, total_steps=plan.length, cooldown_steps=plan.cooldown)
    return float(schedule(step))
