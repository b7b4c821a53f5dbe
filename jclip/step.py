"""Everything that is jitted: the train state, its initialisation, the train step and the encoder."""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.sharding import Mesh

from jclip.config import Config, Family, Model
from jclip.digests import array_paths
from jclip.models import Backend, Encoded, MultiTower, example_inputs, towers_flops
from jclip.objectives import Metrics, Params, Part, make_objective
from jclip.optim import ema_decay, make_optimizer, make_schedule, moving_average, split
from jclip.sharding import (
    Gather,
    batch_sharding,
    extra_shardings,
    join_rows,
    make_gather,
    param_shardings,
    replicated,
    split_rows,
)
from jclip.tree import merge, require_used


class TrainState(NamedTuple):
    """All that changes in training.

    Attributes:
        step: i32 [], completed updates.
        params: parameters, f32: of the towers, and of each objective under its name.
        opt_state: of the optimizer, for the parameters that are trained.
        extra: what no gradient reaches: "ema", the moving average of what is trained, and the state of objectives by their names.
    """

    step: Array
    params: Params
    opt_state: Any
    extra: Params

    def saved(self) -> dict[str, Any]:
        """The parts that a checkpoint holds; its number is the step."""
        parts = {"params": self.params, "opt_state": self.opt_state, "extra": self.extra}
        return parts if self.extra else {name: part for name, part in parts.items() if name != "extra"}


def param_shapes(config: Config) -> Params:
    """The parameters' shapes and dtypes, without allocating any."""
    return jax.eval_shape(lambda: _new_params(config))


def init_params(config: Config, shardings: Params) -> Params:
    """Random parameters, made where they live."""
    return jax.jit(lambda: _new_params(config), out_shardings=shardings)()


def abstract(shapes: Any, shardings: Any) -> Any:
    """Shapes and dtypes with the shardings they are to have: what a checkpoint is restored into."""
    return jax.tree.map(lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes, shardings)


TrainStep = Callable[[TrainState, Mapping[str, Array]], tuple[TrainState, Metrics]]


class Phase(NamedTuple):
    """The part of a run from one step on, until the next objective begins.

    Attributes:
        first: completed updates with which it begins.
        views: names of the views that its objectives read.
        train_step: jitted, (state, global batch of these views) -> (state, metrics f32 []). The state that goes in is donated.
    """

    first: int
    views: tuple[str, ...]
    train_step: Any

    def views_of(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """What of a batch this phase needs."""
        return {view: batch[view] for view in self.views}


class Program(NamedTuple):
    """The training of a configuration on a mesh: what `make_program` has made of them. Nothing is allocated before `init`.

    Attributes:
        state: shapes, dtypes and shardings of the state.
        batch: those of a global batch.
        embeddings: those of its embeddings, f32 [B, E] of each view.
        init: () -> a new state, made where it lives: no device ever holds more than its share.
        phases: the parts of the run, in the last of which all objectives take part.
    """

    state: TrainState
    batch: dict[str, jax.ShapeDtypeStruct]
    embeddings: dict[str, jax.ShapeDtypeStruct]
    init: Callable[[], TrainState]
    phases: tuple[Phase, ...]

    @property
    def train_step(self) -> Any:
        """That of the last phase, for which a batch has all views."""
        return self.phases[-1].train_step

    def compile(self) -> jax.stages.Compiled:
        """This train step ahead of time; it is called like `train_step` and tells what memory it takes."""
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


def make_program(config: Config, mesh: Mesh, *, warmup_steps: int, total_steps: int) -> Program:
    """See Program; the schedule is `warmup_steps` up and the rest of `total_steps` down.

    Raises:
        ConfigError: rules leave a parameter uncovered, or decide on none.
    """
    shapes = param_shapes(config)
    for part, name in (("optim", "lr_rules"), ("optim", "weight_decay_rules"), ("mesh", "rules")):
        require_used(shapes, getattr(getattr(config, part), name), f"{part}.{name}")
    schedule = make_schedule(config.optim, warmup_steps=warmup_steps, total_steps=total_steps)
    tx = make_optimizer(config.optim, schedule, shapes)

    def new_state() -> TrainState:
        params = _new_params(config)
        trained, _ = split(config.optim, params)
        return TrainState(jnp.zeros((), jnp.int32), params, tx.init(trained), new_extra(config, params))

    params, everywhere = param_shardings(shapes, config.mesh, mesh), replicated(mesh)
    # The optimizer's moments lie with their parameters; what is frozen has none.
    trained, where = (split(config.optim, tree)[0] for tree in (shapes, params))
    opt_state = optax.tree.map_params(
        tx, lambda _, s: s, jax.eval_shape(tx.init, trained), where, transform_non_params=lambda _: everywhere
    )
    extra = extra_shardings(jax.eval_shape(partial(new_extra, config), shapes), shapes, config.mesh, mesh)
    shardings = TrainState(cast(Any, everywhere), params, opt_state, extra)
    z = jax.ShapeDtypeStruct((config.batch_size, config.model.embed_dim), jnp.float32, sharding=batch_sharding(mesh))
    inputs = view_inputs(config, config.batch_size)

    def phase(first: int, part: Config) -> Phase:
        train_step = jax.jit(
            _make_train_step(config, part, tx, schedule, mesh, total_steps),
            donate_argnums=0,
            in_shardings=(shardings, batch_sharding(mesh)),
            out_shardings=(shardings, everywhere),
        )
        return Phase(first, tuple(part.inputs()), train_step)

    return Program(
        state=abstract(jax.eval_shape(new_state), shardings),
        batch={name: jax.ShapeDtypeStruct(*like, sharding=batch_sharding(mesh)) for name, like in inputs.items()},
        embeddings=dict.fromkeys(inputs, z),
        init=jax.jit(new_state, out_shardings=shardings),
        phases=tuple(phase(first, part) for first, part in config_phases(config, total_steps)),
    )


def config_phases(config: Config, total_steps: int) -> list[tuple[int, Config]]:
    """The parts of a run: (completed updates with which it begins, the configuration with the objectives that take part)."""
    parts = []
    for first in sorted({begin_step(how, total_steps) for how in config.objectives.values()}):
        objectives = {name: how for name, how in config.objectives.items() if begin_step(how, total_steps) <= first}
        parts.append((first, dataclasses.replace(config, objectives=objectives)))
    return parts


def begin_step(objective: Family, total_steps: int) -> int:
    """Completed updates with which an objective begins to take part."""
    return int(objective.begin * total_steps)


def view_inputs(config: Config, batch_size: int) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and dtype of each view of a batch of training."""
    inputs = example_inputs(config.model, batch_size)
    return {name: inputs[view.tower] for name, view in config.inputs().items()}


def step_flops(config: Config, locked: Collection[str] = ()) -> int:
    """Floating-point operations of the matrix products of a train step, in which the `locked` towers are not trained."""
    return towers_flops(config, locked) + make_objective(config).flops()


def _new_params(config: Config) -> Params:
    """Those of the towers, and of each objective under its name."""
    key = jax.random.key(config.seed)
    batch = {name: jnp.zeros(shape, dtype) for name, (shape, dtype) in view_inputs(config, 1).items()}
    encoded, towers = _towers(config).init_with_output(key, batch)
    part = Part(batch, encoded, lambda params, views: {view: encoded[view] for view in views}, jnp.zeros(1, jnp.int32), key)
    return {**towers["params"], **make_objective(config).init(jax.random.fold_in(key, 1), part)}


def new_extra(config: Config, params: Params) -> Params:
    """The state beside parameters and optimizer at step 0, where these are the parameters."""
    ema = {} if config.optim.ema is None else {"ema": split(config.optim, params)[0]}
    return {**ema, **make_objective(config).init_extra(jax.random.fold_in(jax.random.key(config.seed), 2), params)}


def evaluated_params(config: Config, params: Params, extra: Params) -> Params:
    """The parameters that evaluations use: those in training, or their moving average, if it is asked for."""
    return merge(extra["ema"], split(config.optim, params)[1]) if config.evaluate_ema else params


def _towers(config: Config, gather: Gather | None = None, backend: Backend | None = None) -> MultiTower:
    return MultiTower(config.model, gather, backend or Backend(), config.towers_of_views())


def _make_train_step(
    whole: Config, part: Config, tx: optax.GradientTransformation, schedule: optax.Schedule, mesh: Mesh, total_steps: int
) -> TrainStep:
    """The train step of a part of the run; see `config_phases`."""
    loss_and_grads, objective = make_loss_and_grads(part, mesh), make_objective(part, mesh)
    waiting = whole.objectives.keys() - part.objectives.keys()
    first = max(begin_step(how, total_steps) for how in part.objectives.values())
    beginning = [name for name, how in part.objectives.items() if 0 < begin_step(how, total_steps) == first]

    def begun(state: TrainState) -> Params:
        """The state of objectives, of those that begin with this step as at the start of a run from these parameters."""
        fresh = new_extra(whole, state.params)
        return {**state.extra, **{name: fresh[name] for name in beginning if name in fresh}}

    def train_step(state: TrainState, batch: Mapping[str, Array]) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(whole.seed), state.step)
        if beginning:
            state = state._replace(extra=jax.lax.cond(state.step == first, begun, lambda state: state.extra, state))
        loss, metrics, grads, rows = loss_and_grads(state.params, batch, key, state.extra)
        before, frozen = split(whole.optim, state.params)
        updates, opt_state = tx.update(grads, state.opt_state, before)
        trained = objective.bound(before, optax.apply_updates(before, updates))
        trained = {name: before[name] if name in waiting else tree for name, tree in trained.items()}  # not even decayed
        params = merge(trained, frozen)
        extra = objective.update(state.extra, params, rows, batch, (state.step + 1) / total_steps)
        if whole.optim.ema is not None:
            extra["ema"] = moving_average(state.extra["ema"], trained, ema_decay(whole.optim.ema, state.step))
        metrics |= {"loss": loss, "lr": schedule(state.step), "grad_norm": optax.tree.norm(grads)}
        return TrainState(state.step + 1, params, opt_state, extra), metrics

    return train_step


def make_loss_and_grads(config: Config, mesh: Mesh) -> Callable[..., tuple[Array, Metrics, Params, Any]]:
    """(params, batch, key, extra) -> (loss, metrics, gradients of what is trained, rows) of the global batch, whatever
    config.accumulate; `rows` are what the objectives made of each row.

    In parts: the rows of all parts are made, nothing of a tower kept; the loss of all rows gives their gradients; each part is
    made again, with the same dropout, to take its gradients back to the parameters (Gao et al. 2021, GradCache). No negative is
    lost, for one more forward pass.
    """
    gather = make_gather(param_shapes(config), config.mesh, mesh)
    towers, parts = _towers(config, gather, Backend.of(mesh, config.model.attention)), config.accumulate
    objective = make_objective(config, mesh)
    views = [view for view in config.encoded_views() if view in config.inputs()]

    def see(params: Params, extra: Params, batch: Mapping[str, Array], index: Array, key: Array) -> tuple[Any, Any]:
        """Of some rows ((what the batch needs of them, their losses by themselves), sums for the metrics)."""

        def encode(params: Params, views: Sequence[str]) -> Mapping[str, Encoded]:
            encoded: Mapping[str, Encoded] = towers.apply({"params": params}, {view: batch[view] for view in views})
            return encoded

        seen = {view: batch[view] for view in views} | objective.views(params, batch, index, key)
        encoded = towers.apply({"params": params}, seen, rows=index, rngs={"dropout": key})
        rows, sums = objective.rows(params, extra, Part(batch, encoded, encode, index, key))
        return (rows, objective.local_loss(sums)), sums

    def at_once(trained: Params, frozen: Params, extra: Params, batch: Mapping[str, Array], index: Array, key: Array) -> Any:
        def loss_fn(trained: Params) -> tuple[Array, Any]:
            params = merge(trained, frozen)
            (rows, local), sums = see(params, extra, batch, index, key)
            loss, metrics = objective.batch(params, extra, rows, batch)
            return loss + local, (metrics, sums, rows)

        (loss, aux), grads = jax.value_and_grad(loss_fn, has_aux=True)(trained)
        return loss, *aux, grads

    def in_parts(trained: Params, frozen: Params, extra: Params, batch: Mapping[str, Array], index: Array, key: Array) -> Any:
        inputs = split_rows(batch, parts, mesh), split_rows(index, parts, mesh)
        params = merge(trained, frozen)
        rows = join_rows(jax.lax.map(lambda part: see(params, extra, part[0], part[1], key)[0][0], inputs), mesh)

        def loss_fn(trained: Params, rows: Any) -> tuple[Array, Metrics]:
            return objective.batch(merge(trained, frozen), extra, rows, batch)

        (loss, metrics), (grads, slopes) = jax.value_and_grad(loss_fn, argnums=(0, 1), has_aux=True)(trained, rows)

        def replay(grads: Params, part: Any) -> tuple[Params, Any]:
            inputs, slopes = part

            def again(trained: Params) -> Any:
                return see(merge(trained, frozen), extra, inputs[0], inputs[1], key)

            (_, local), back, sums = jax.vjp(again, trained, has_aux=True)
            return jax.tree.map(jnp.add, grads, *back((slopes, jnp.ones(())))), (local, sums)

        grads, found = jax.lax.scan(replay, grads, (inputs, split_rows(slopes, parts, mesh)))
        local, sums = jax.tree.map(lambda of_parts: of_parts.sum(axis=0), found)
        return loss + local, metrics, sums, rows, grads

    def loss_and_grads(
        params: Params, batch: Mapping[str, Array], key: Array, extra: Params | None = None
    ) -> tuple[Array, Metrics, Params, Any]:
        trained, frozen = split(config.optim, params)
        how = at_once if parts == 1 else in_parts
        loss, metrics, sums, rows, grads = how(trained, frozen, extra or {}, batch, jnp.arange(config.batch_size), key)
        for name, mean in objective.local_metrics(sums).items():
            metrics[name] = metrics.get(name, 0) + mean
        return loss, metrics, grads, rows

    return loss_and_grads


def non_finite(tree: Any, mesh: Mesh) -> list[str]:
    """Paths of the arrays of a tree on a mesh that hold a value which is no number, or infinite."""
    paths = array_paths(tree)
    finite = jax.device_get(_finite_arrays(mesh)(jax.tree.leaves(tree)))
    return [path for path, good in zip(paths, finite, strict=True) if not good]


@lru_cache
def _finite_arrays(mesh: Mesh) -> Any:
    return jax.jit(lambda leaves: jnp.stack([jnp.isfinite(x).all() for x in leaves]), out_shardings=replicated(mesh))


Encode = Callable[[Params, Mapping[str, Array]], dict[str, tuple[Array, Array]]]


def make_encode(model: Model, mesh: Mesh, gather: Gather | None = None) -> Encode:
    """The jitted encoder: (params, global batch of some towers) -> {tower: (pooled, z)}, all f32, on every device whole.

    With `gather` (see `make_gather`) sharded parameters are made whole block by block, as in training.
    """
    exact = MultiTower(dataclasses.replace(model, dtype="float32"), gather, Backend.of(mesh, model.attention))

    def encode(params: Params, batch: Mapping[str, Array]) -> dict[str, tuple[Array, Array]]:
        with jax.default_matmul_precision("highest"):  # TPUs and GPUs would multiply f32 with less
            encoded = exact.apply({"params": params}, batch)
        return {name: (e.output.pooled, e.z) for name, e in encoded.items()}

    return jax.jit(encode, in_shardings=(None, batch_sharding(mesh)), out_shardings=replicated(mesh))
