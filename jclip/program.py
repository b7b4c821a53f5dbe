"""The training of a configuration on a mesh: shapes, shardings and compiled functions, before anything is allocated."""

import dataclasses
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jclip.config import Config, ConfigError, Family
from jclip.learner import make_learner
from jclip.objectives import Params
from jclip.optim import make_optimizer, make_schedule, split
from jclip.sharding import Gather, batch_sharding, extra_shardings, make_gather, moment_shardings, param_shardings, replicated
from jclip.state import TrainState, abstract, new_extra, new_params, param_shapes, view_inputs
from jclip.step import make_train_step
from jclip.tree import require_used


class Phase(NamedTuple):
    """The part of a run from one step on, until the next objective begins.

    Attributes:
        first: completed updates with which it begins.
        views: names of the arrays of a batch that its objectives read.
        train_step: jitted, (state, global batch of these views) -> (state, metrics f32 []). The state that goes in is donated.
    """

    first: int
    views: tuple[str, ...]
    train_step: Any

    def views_of(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Views of a batch that this phase needs."""
        return {view: batch[view] for view in self.views}


class Program(NamedTuple):
    """The training of a configuration on a mesh: what `make_program` has made of them. Nothing is allocated before `init`.

    Attributes:
        config: what it trains.
        mesh: the devices.
        gather: makes the parameters of a block whole; see `make_gather`.
        state: shapes, dtypes and shardings of the state.
        batch: those of a global batch.
        embeddings: those of its embeddings, f32 [B, E] of each view.
        init: () -> a new state, made where it lives: no device ever holds more than its share.
        phases: the parts of the run, in the last of which all objectives take part.
        begins: completed updates with which each objective begins, by name.
    """

    config: Config
    mesh: Mesh
    gather: Gather | None
    state: TrainState
    batch: dict[str, jax.ShapeDtypeStruct]
    embeddings: dict[str, jax.ShapeDtypeStruct]
    init: Callable[[], TrainState]
    phases: tuple[Phase, ...]
    begins: Mapping[str, int]

    @property
    def train_step(self) -> Any:
        """Train step of the last phase, for which a batch has all views."""
        return self.phases[-1].train_step

    def compile(self) -> jax.stages.Compiled:
        """Train step compiled ahead of time; it is called like `train_step` and knows what memory it takes."""
        return cast(jax.stages.Compiled, self.train_step.lower(self.state, self.batch).compile())

    def compile_phases(self) -> tuple[Phase, ...]:
        """The phases with their train steps compiled: once training goes on, none is waited for or found too large."""

        def compiled(phase: Phase) -> Phase:
            return phase._replace(train_step=phase.train_step.lower(self.state, phase.views_of(self.batch)).compile())

        return (*map(compiled, self.phases[:-1]), self.phases[-1]._replace(train_step=self.compile()))

    def parts(self) -> dict[str, Any]:
        """The least that the devices hold in a step, as shapes with shardings."""
        parts = {
            "parameters": self.state.params,
            "optimizer": self.state.opt_state,
            "extra state": self.state.extra,
            "batch": self.batch,
            "embeddings": self.embeddings,
        }
        return {name: part for name, part in parts.items() if part}

    def restored(self, step: int, saved: Mapping[str, Any]) -> TrainState:
        """The inverse of `TrainState.saved`."""
        at = jax.device_put(np.int32(step), self.state.step.sharding)
        return TrainState(at, saved["params"], saved["opt_state"], saved.get("extra", {}))


def make_program(config: Config, mesh: Mesh, *, warmup_steps: int, total_steps: int, cooldown_steps: int = 0) -> Program:
    """See Program; the steps are those of the schedule, see `make_schedule`.

    Raises:
        ConfigError: rules leave a parameter uncovered, or decide on none.
    """
    shapes = param_shapes(config)
    for part, name in (("optim", "lr_rules"), ("optim", "weight_decay_rules"), ("mesh", "rules")):
        require_used(shapes, getattr(getattr(config, part), name), f"{part}.{name}")
    _require_frozen(config, shapes)
    schedule = make_schedule(config.optim, warmup_steps=warmup_steps, total_steps=total_steps, cooldown_steps=cooldown_steps)
    tx = make_optimizer(config.optim, schedule, shapes)

    def new_state() -> TrainState:
        params = new_params(config)
        trained, _ = split(config.optim, params)
        return TrainState(jnp.zeros((), jnp.int32), params, tx.init(trained), new_extra(config, params))

    params, everywhere = param_shardings(shapes, config.mesh, mesh), replicated(mesh)
    opt_state = moment_shardings(jax.eval_shape(tx.init, split(config.optim, shapes)[0]), shapes, config.mesh, mesh)
    extra = extra_shardings(jax.eval_shape(partial(new_extra, config), shapes), shapes, config.mesh, mesh)
    shardings = TrainState(cast(Any, everywhere), params, opt_state, extra)
    gather = make_gather(shapes, config.mesh, mesh)
    init = jax.jit(new_state, out_shardings=shardings)
    z = jax.ShapeDtypeStruct((config.batch_size, config.model.embed_dim), jnp.float32, sharding=batch_sharding(mesh))
    inputs = view_inputs(config, config.batch_size)
    begins = {name: begin_step(objective, total_steps) for name, objective in config.objectives.items()}

    def phase(first: int, part: Config) -> Phase:
        train_step = make_train_step(
            make_learner(part, mesh, gather),
            tx,
            schedule,
            seed=config.seed,
            total_steps=total_steps,
            ema=config.optim.ema,
            waiting=_waiting(config, part),
            first=first,
            begun=_begun(config, [name for name in part.objectives if 0 < begins[name] == first]),
        )
        jitted = jax.jit(
            train_step,
            donate_argnums=0,
            in_shardings=(shardings, batch_sharding(mesh)),
            out_shardings=(shardings, everywhere),
        )
        return Phase(first, tuple(view_inputs(part, 1)), jitted)

    return Program(
        config=config,
        mesh=mesh,
        gather=gather,
        state=abstract(init.eval_shape(), shardings),
        batch={name: jax.ShapeDtypeStruct(*like, sharding=batch_sharding(mesh)) for name, like in inputs.items()},
        embeddings=dict.fromkeys(config.inputs(), z),
        init=init,
        phases=tuple(phase(first, part) for first, part in config_phases(config, total_steps)),
        begins=begins,
    )


def begin_step(objective: Family, total_steps: int) -> int:
    """Completed updates with which an objective begins to take part."""
    return int(objective.begin * total_steps)


def _waiting(whole: Config, phase: Config) -> set[str]:
    """Names of the parameters that no objective of a phase trains, and a later one does."""
    towers = whole.trained_towers() - phase.trained_towers()
    return (whole.objectives.keys() - phase.objectives.keys()) | towers | {f"{tower}_projection" for tower in towers}


def _begun(config: Config, names: Collection[str]) -> Callable[[Params], Params] | None:
    """parameters -> the state of these objectives as at the start of a run from these parameters; None for none of them."""
    if not names:
        return None

    def begun(params: Params) -> Params:
        fresh = new_extra(config, params)
        return {name: fresh[name] for name in names if name in fresh}

    return begun


def _require_frozen(config: Config, shapes: Params) -> None:
    """Raises ConfigError where the rules would let a tower that no objective trains decay, or give it a moving average."""
    trained, _ = split(config.optim, shapes)
    for tower in sorted(config.teachers() | config.idle_towers()):
        if tower in trained or f"{tower}_projection" in trained:
            what = "is a teacher, which no objective trains" if tower in config.teachers() else "is read by no objective"
            raise ConfigError(
                f"config: tower {tower} {what}; freeze it: let optim.lr_rules begin with ('{tower}(_projection)?/.*', 0.0)"
            )


def config_phases(config: Config, total_steps: int) -> list[tuple[int, Config]]:
    """The parts of a run: (completed updates with which it begins, the configuration with the objectives that take part)."""
    parts = []
    for first in sorted({begin_step(how, total_steps) for how in config.objectives.values()}):
        objectives = {name: how for name, how in config.objectives.items() if begin_step(how, total_steps) <= first}
        parts.append((first, dataclasses.replace(config, objectives=objectives)))
    return parts
