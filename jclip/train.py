"""The training loop: `main(config, workdir)`, read from top to bottom along the road of the data."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from jclip.checkpoint import CheckpointError, Checkpoints
from jclip.config import Config, ConfigError, Plan, check, differences, make_plan, to_json
from jclip.data import make_loader, open_source
from jclip.data.survey import outline
from jclip.eval import run_evaluators
from jclip.evaluate import make_evaluators
from jclip.init_from import start_from
from jclip.metrics import Clock, JsonlWriter, NonFiniteLoss, Terminal, TrainLog, Writer, tensorboard_writer
from jclip.optim import split
from jclip.processes import is_first, leave_together, same_everywhere, stop_signal, sum_over_processes
from jclip.sharding import make_mesh, to_global
from jclip.step import Program, TrainState, make_program
from jclip.tree import flatten
from jclip.weights import WeightsError


def main(config: Config, workdir: str | Path) -> dict[str, float]:
    """Trains to the configured end and returns the last results; goes on from the last checkpoint in `workdir`.

    Where there is none it starts from config.init_from, or else from random parameters.

    SIGTERM and Ctrl-C save a checkpoint and return early.

    Raises:
        ConfigError: the configuration contradicts itself.
        CheckpointError: the workdir holds another model.
        WeightsError: what init_from names cannot be read.
        NonFiniteLoss: training has diverged.
    """
    if "://" in str(workdir):
        raise ConfigError(f"config: --workdir {workdir} is no folder; mount the bucket and give the path it has then")
    workdir = Path(workdir)
    if workdir.exists() and not workdir.is_dir():
        raise ConfigError(f"config: --workdir {workdir} is a file; give a folder")
    check(config, devices=jax.device_count(), hosts=jax.process_count())
    source = open_source(config.data.source)
    plan = make_plan(config, examples=len(source))
    mesh = make_mesh(config.mesh)

    program = make_program(config, mesh, warmup_steps=plan.warmup, total_steps=plan.total)
    evaluators = make_evaluators(config, mesh)

    results: dict[str, float] = {}
    with (
        leave_together((NonFiniteLoss, CheckpointError, ConfigError, WeightsError)),
        Checkpoints(workdir, keep=config.checkpoint.keep, best=config.checkpoint.best) as checkpoints,
    ):
        start, state, origin = _restore_or_init(config, program, checkpoints, mesh)
        if start > plan.total:
            raise ConfigError(
                f"config: duration {config.duration} is {plan.total:,} steps, and {workdir} has come to step {start:,}; "
                "use a longer one, or another --workdir"
            )
        train_step = program.compile()
        terminal = Terminal(plan.total, start=start, quiet=not is_first())
        terminal.say(_greeting(config, plan, mesh, train_step, program, origin, workdir))
        fields = {tower: config.data.fields.get(tower, tower) for tower in config.model.towers}
        terminal.say("\n".join(f"jclip: {line}" for line in outline(source, fields, config.batch_size)))
        if start and (changes := differences(checkpoints.config(start), config)):
            terminal.say("\n  ".join(["jclip: the checkpoint was trained with another configuration; from here on", *changes]))
        if start == plan.total:
            terminal.say(f"jclip: all {start:,} steps are done; `jclip eval {workdir}` evaluates, a longer --duration goes on")
        if is_first():
            (workdir / "config.json").write_text(json.dumps(to_json(config), indent=2))
        with (
            _make_log(config, plan, terminal, start, checkpoints) as log,
            make_loader(config, source, start=start, host=jax.process_index(), hosts=jax.process_count()) as loader,
            stop_signal() as stop_requested,
        ):
            for step, batch in zip(range(start + 1, plan.total + 1), loader, strict=False):
                arrays = to_global(batch.arrays, mesh)
                with jax.transfer_guard("disallow"):
                    state, metrics = train_step(state, arrays)
                log.step(step, metrics, batch.keys, batch.problems)

                stop = stop_requested(step) and step < plan.total
                due = {} if stop else {name: evaluators[name] for name in plan.due_evaluations(step)}
                if due:
                    try:
                        results = log.evaluation(step, run_evaluators(due, state.params))
                        _check_best(config.checkpoint.best, due, results)
                    except Exception:
                        if jax.process_count() == 1:  # others may not have met the error, and would not save with this one
                            checkpoints.save(step, state.saved(), config)  # a mistake in an evaluation costs no training
                        raise
                if plan.due_checkpoint(step) or stop or (due and config.checkpoint.best in results):
                    log.flush()
                    checkpoints.save(step, state.saved(), config, results if due else None)
                if stop:
                    checkpoints.wait()
                    terminal.say(f"stopped after step {step:,}, which is saved; the same command goes on from there")
                    break
            checkpoints.wait()
    return results


def _restore_or_init(config: Config, program: Program, checkpoints: Checkpoints, mesh: Mesh) -> tuple[int, TrainState, str]:
    """The step to go on from, its state, and where that comes from: the workdir's last checkpoint, init_from, or nothing."""
    step = checkpoints.latest
    if not same_everywhere(-1 if step is None else step):
        raise CheckpointError(
            f"process {jax.process_index()} sees {step} as the last checkpoint in {checkpoints.directory}, and another one "
            "does not; give a --workdir that all hosts share"
        )
    if step is None and config.init_from.path:
        return 0, *start_from(config, program, mesh)
    if step is None:
        return 0, program.init(), "random parameters"
    saved = checkpoints.config(step)
    if saved.model != config.model:
        raise CheckpointError(
            f"{checkpoints.directory.parent} holds another model (its config.json says which); "
            "give another --workdir, or the configuration that it was started with"
        )
    before, now = (flatten(split(c.optim, program.state.params)[0]).keys() for c in (saved, config))
    if before != now:
        raise CheckpointError(
            f"{checkpoints.directory.parent} has optimizer state for {len(before)} arrays of parameters, and optim.lr_rules now "
            f"train {len(now)}; go on with these rules in another --workdir, with --init-from.path {checkpoints.directory.parent}"
        )
    saved_state = checkpoints.restore(step, program.state.saved())
    return step, program.restored(step, saved_state), f"resuming after step {step:,}"


def _check_best(best: str | None, due: Mapping[str, object], results: Mapping[str, float]) -> None:
    if best is not None and best not in results and any(best.startswith(f"{name}/") for name in due):
        raise ConfigError(f"config: checkpoint.best {best!r} is none of the metrics: {', '.join(results)}")


def _make_log(config: Config, plan: Plan, terminal: Terminal, start: int, checkpoints: Checkpoints) -> TrainLog:
    def last_good(step: int) -> str:
        good = [saved for saved in checkpoints.steps if saved < step - 1]
        found = f"The last good checkpoint is {checkpoints.directory / str(good[-1])}" if good else "There is no good checkpoint"
        if step - 1 in checkpoints.steps:  # its parameters are the ones that gave this loss
            found += f"; remove {checkpoints.directory / str(step - 1)}, which is not, before you go on"
        return found

    workdir = checkpoints.directory.parent
    writers: list[Writer] = [terminal]
    if is_first():
        writers += [
            JsonlWriter(workdir / "metrics.jsonl", start=start),
            *tensorboard_writer(workdir / "tensorboard", start=start),
        ]
    clock = Clock(config.batch_size, plan.total, start)
    return TrainLog(
        writers, terminal, clock, every=config.log_every, total=plan.total, last_good=last_good, sum_up=sum_over_processes
    )


def _greeting(
    config: Config, plan: Plan, mesh: Mesh, train_step: jax.stages.Compiled, program: Program, origin: str, workdir: Path
) -> str:
    trained, frozen = (sum(leaf.size for leaf in jax.tree.leaves(part)) for part in split(config.optim, program.state.params))
    how_many = f"{trained / 1e6:.1f}M trained and {frozen / 1e6:.1f}M frozen" if frozen else f"{trained / 1e6:.1f}M"
    memory: Any = train_step.memory_analysis()
    lines = [
        f"{how_many} parameters in {', '.join(config.model.towers)} on {mesh.size} x {jax.devices()[0].device_kind} "
        f"(mesh data {mesh.shape['data']} x fsdp {mesh.shape['fsdp']})",
        origin,
        f"a device holds {_mib(memory.argument_size_in_bytes)} of state and batch, "
        f"and {_mib(memory.temp_size_in_bytes)} more in a step",
        f"{plan.total:,} steps of {config.batch_size} examples of {config.data.source}; all goes to {workdir}",
    ]
    if jax.process_count() > 1:
        lines.append(f"{jax.process_count()} processes: when one is lost all end; start the same command again on all hosts")
    for flags in ("XLA_FLAGS", "LIBTPU_INIT_ARGS"):
        if value := os.environ.get(flags):
            lines.append(f"{flags}={value}")
    return "\n".join(f"jclip: {line}" for line in lines)


def _mib(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"
