"""The training loop: `main(config, workdir)`, read from top to bottom along the road of the data."""

import json
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import jax
import optax
from jax.sharding import Mesh

from jclip.checkpoint import CheckpointError, Checkpoints
from jclip.config import Config, Plan, check, differences, make_plan, to_json
from jclip.data import make_loader, open_source
from jclip.eval import run_evaluators
from jclip.evaluate import make_evaluators
from jclip.metrics import Clock, JsonlWriter, Terminal, TrainLog, tensorboard_writer
from jclip.optim import make_optimizer, make_schedule
from jclip.sharding import make_mesh, to_global
from jclip.step import TrainState, abstract, init_state, make_train_step, param_shapes, state_shapes, state_shardings


def main(config: Config, workdir: str | Path) -> dict[str, float]:
    """Trains to the configured end and returns the last results; goes on from the last checkpoint in `workdir`.

    SIGTERM and Ctrl-C save a checkpoint and return early.

    Raises:
        ConfigError: the configuration contradicts itself.
        CheckpointError: the workdir holds another model.
        NonFiniteLoss: training has diverged.
    """
    workdir = Path(workdir)
    check(config, devices=jax.device_count(), hosts=jax.process_count())
    source = open_source(config.data.source)
    plan = make_plan(config, examples=len(source))
    mesh = make_mesh(config.mesh)

    shapes = param_shapes(config)
    schedule = make_schedule(config.optim, warmup_steps=plan.warmup, total_steps=plan.total)
    tx = make_optimizer(config.optim, schedule, shapes)
    shardings = state_shardings(shapes, tx, config, mesh)
    train_step = make_train_step(config, tx, schedule, mesh, shardings)
    evaluators = make_evaluators(config, mesh)

    results: dict[str, float] = {}
    with Checkpoints(workdir, keep=config.checkpoint.keep, best=config.checkpoint.best) as checkpoints:
        start, state = _restore_or_init(config, tx, shardings, checkpoints)
        terminal = Terminal(plan.total, start=start)
        terminal.say(_greeting(config, plan, mesh, state, start, workdir))
        if start and (changes := differences(checkpoints.config(start), config)):
            terminal.say(f"jclip: the checkpoint was trained with another configuration: {'; '.join(changes)}")
        (workdir / "config.json").write_text(json.dumps(to_json(config), indent=2))
        with (
            _make_log(config, plan, terminal, start, checkpoints) as log,
            make_loader(config, source, start=start) as loader,
            _stop_signal() as stop_requested,
        ):
            for step, batch in zip(range(start + 1, plan.total + 1), loader, strict=False):
                arrays = to_global(batch.arrays, mesh)
                with jax.transfer_guard("disallow"):
                    state, metrics = train_step(state, arrays)
                log.step(step, metrics, batch.keys, batch.problems)

                stop = stop_requested()
                due = {} if stop else {name: evaluators[name] for name in plan.due_evaluations(step)}
                if due:
                    try:
                        results = log.evaluation(step, run_evaluators(due, state.params))
                    except Exception:
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


def _restore_or_init(
    config: Config, tx: optax.GradientTransformation, shardings: TrainState, checkpoints: Checkpoints
) -> tuple[int, TrainState]:
    """The step to go on from and its state: the workdir's last checkpoint, or a new state at 0."""
    step = checkpoints.latest
    if step is None:
        return 0, init_state(config, tx, shardings)
    if checkpoints.config(step).model != config.model:
        raise CheckpointError(
            f"{checkpoints.directory.parent} holds another model (its config.json says which); "
            "give another --workdir, or the configuration that it was started with"
        )
    wanted = abstract(state_shapes(config, tx), shardings)
    return step, TrainState.restored(step, checkpoints.restore(step, wanted.saved()), shardings)


def _make_log(config: Config, plan: Plan, terminal: Terminal, start: int, checkpoints: Checkpoints) -> TrainLog:
    def last_good(step: int) -> str:
        good = [saved for saved in checkpoints.steps if saved < step - 1]
        found = f"The last good checkpoint is {checkpoints.directory / str(good[-1])}" if good else "There is no good checkpoint"
        if step - 1 in checkpoints.steps:  # its parameters are the ones that gave this loss
            found += f"; remove {checkpoints.directory / str(step - 1)}, which is not, before you go on"
        return found

    workdir = checkpoints.directory.parent
    jsonl = JsonlWriter(workdir / "metrics.jsonl", start=start)
    writers = [jsonl, terminal, *tensorboard_writer(workdir / "tensorboard", start=start)]
    clock = Clock(config.batch_size, plan.total, start)
    return TrainLog(writers, terminal, clock, every=config.log_every, total=plan.total, last_good=last_good)


def _greeting(config: Config, plan: Plan, mesh: Mesh, state: TrainState, start: int, workdir: Path) -> str:
    device = jax.devices()[0]
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    resumed = f", resuming after step {start:,}" if start else ""
    return (
        f"jclip: {parameters / 1e6:.1f}M parameters in {', '.join(config.model.towers)} on {mesh.size} x {device.device_kind} "
        f"(mesh data {mesh.shape['data']} x fsdp {mesh.shape['fsdp']})\n"
        f"jclip: {plan.total:,} steps of {config.batch_size} examples of {config.data.source}{resumed}; all goes to {workdir}"
    )


@contextmanager
def _stop_signal() -> Iterator[Callable[[], bool]]:
    """Whether SIGTERM or Ctrl-C has come; a second one stops at once."""
    received: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)

    previous = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
