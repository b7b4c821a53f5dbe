"""Everything that is jitted: the train step, loss and gradients, and the encoder."""

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.sharding import Mesh

from jclip.config import Config, Family, Groups, groups_of
from jclip.digests import array_paths
from jclip.models import Backend, Encoded, bucketed_views, fits_buckets, towers_flops
from jclip.objectives import Metrics, Params, Part, make_objective
from jclip.optim import ema_decay, moving_average, split
from jclip.peaks import peak_flops
from jclip.sharding import join_rows, make_gather, replicated, split_rows
from jclip.state import TrainState, make_towers, new_extra, param_shapes
from jclip.tree import flatten, merge

TrainStep = Callable[[TrainState, Mapping[str, Array]], tuple[TrainState, Metrics]]


def make_train_step(
    whole: Config, phase: Config, tx: optax.GradientTransformation, schedule: optax.Schedule, mesh: Mesh, total_steps: int
) -> TrainStep:
    """The train step of a phase of the run, until the next objective begins; see `config_phases`."""
    loss_and_grads, objective = make_loss_and_grads(phase, mesh), make_objective(phase, mesh)
    waiting = whole.objectives.keys() - phase.objectives.keys()
    for tower in whole.trained_towers() - phase.trained_towers():
        waiting |= {tower, f"{tower}_projection"}
    first = max(begin_step(how, total_steps) for how in phase.objectives.values())  # with which this phase begins
    beginning = [name for name, how in phase.objectives.items() if 0 < begin_step(how, total_steps) == first]

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


def begin_step(objective: Family, total_steps: int) -> int:
    """Completed updates with which an objective begins to take part."""
    return int(objective.begin * total_steps)


LossAndGrads = Callable[..., tuple[Array, Metrics, Params, Any]]


def make_loss_and_grads(config: Config, mesh: Mesh) -> LossAndGrads:
    """(params, batch, key, extra) -> (loss, metrics, gradients of what is trained, rows) of the global batch, whatever
    config.accumulate and config.buckets; `rows` are what the objectives made of each row.
    """
    padded = _make_loss_and_grads(config, mesh)
    if not bucketed_views(config):
        return padded
    bucketed = _make_loss_and_grads(config, mesh, groups_of(config.buckets))

    def loss_and_grads(params: Params, batch: Mapping[str, Array], *rest: Any) -> tuple[Array, Metrics, Params, Any]:
        fits = fits_buckets(config, batch, mesh)
        loss, metrics, grads, rows = jax.lax.cond(fits, bucketed, padded, params, batch, *rest)
        return loss, {**metrics, "in_buckets": fits.astype(jnp.float32)}, grads, rows

    return loss_and_grads


def _make_loss_and_grads(config: Config, mesh: Mesh, buckets: Mapping[str, Groups] | None = None) -> LossAndGrads:
    """`make_loss_and_grads` of a batch that is padded, or that fits into buckets.

    In parts: the rows of all parts are made, nothing of a tower kept; the loss of all rows gives their gradients; each part is
    made again, with the same dropout, to take its gradients back to the parameters (Gao et al. 2021, GradCache). No negative is
    lost, for one more forward pass. A part is an equal share of the rows of every device, so that no row moves.
    """
    gather = make_gather(param_shapes(config), config.mesh, mesh)
    towers, parts = make_towers(config, gather, Backend.of(mesh, config.model.attention), buckets), config.accumulate
    objective = make_objective(config, mesh)
    views, teachers = config.inputs(), config.teachers()
    seen_views = [view for view in config.encoded_views() if view in views]
    of_teachers = [view for view in seen_views if views[view].tower in teachers]

    def see(params: Params, extra: Params, batch: Mapping[str, Array], index: Array, key: Array) -> tuple[Any, Any]:
        """Some rows -> ((what the loss of the batch needs of each [b, ...], the losses of single rows, summed and already
        divided by B), sums for the metrics)."""

        def encode(params: Params, views: Sequence[str]) -> Mapping[str, Encoded]:
            encoded: Mapping[str, Encoded] = towers.apply({"params": params}, {view: batch[view] for view in views})
            return encoded

        seen = {view: batch[view] for view in seen_views if view not in of_teachers} | objective.views(params, batch, index, key)
        # Dropout depends on the step's key and on a row's index in the global batch alone: all passes draw the same. Teachers
        # have none.
        encoded = towers.apply({"params": params}, seen, rows=index, rngs={"dropout": key}) | encode(params, of_teachers)
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
        # Three passes, because the loss needs the rows of all parts at once, and the towers have memory for one part:
        #
        #     rows          towers, part after part; only their outputs are kept
        #     slopes        the loss of all rows, and its gradient in each of them: no tower is seen
        #     replay        towers again, part after part, each with its slopes pulled back through it
        #
        # The chain rule makes the sum over parts of (slopes of the part) x (Jacobian of the part) the whole gradient.
        all_parts = split_rows(batch, parts, mesh), split_rows(index, parts, mesh)
        params = merge(trained, frozen)
        rows = join_rows(jax.lax.map(lambda part: see(params, extra, part[0], part[1], key)[0][0], all_parts), mesh)

        def loss_fn(trained: Params, rows: Any) -> tuple[Array, Metrics]:
            return objective.batch(merge(trained, frozen), extra, rows, batch)

        (loss, metrics), (grads, slopes) = jax.value_and_grad(loss_fn, argnums=(0, 1), has_aux=True)(trained, rows)

        def replay(grads: Params, part: Any) -> tuple[Params, Any]:
            (batch, index), slopes = part

            def again(trained: Params) -> Any:
                return see(merge(trained, frozen), extra, batch, index, key)

            # The losses of single rows add up to their share of the loss, in which their slope is 1.
            (_, local), back, sums = jax.vjp(again, trained, has_aux=True)
            return jax.tree.map(jnp.add, grads, *back((slopes, jnp.ones(())))), (local, sums)

        grads, found = jax.lax.scan(replay, grads, (all_parts, split_rows(slopes, parts, mesh)))
        local, sums = jax.tree.map(lambda of_parts: of_parts.sum(axis=0), found)
        return loss + local, metrics, sums, rows, grads

    def loss_and_grads(
        params: Params, batch: Mapping[str, Array], key: Array, extra: Params | None = None
    ) -> tuple[Array, Metrics, Params, Any]:
        trained, frozen = split(config.optim, params)
        how = at_once if parts == 1 else in_parts
        loss, metrics, sums, rows, grads = how(trained, frozen, extra or {}, batch, jnp.arange(config.batch_size), key)
        for name, mean in objective.local_metrics(sums).items():  # an objective may have losses of both kinds: they are summed
            metrics[name] = metrics.get(name, 0) + mean
        return loss, metrics, grads, rows

    return loss_and_grads


def step_flops(config: Config, locked: Collection[str] = ()) -> int:
    """Floating-point operations of the matrix products of a train step, in which the `locked` towers are not trained."""
    return towers_flops(config, locked) + make_objective(config).flops()


def trained_flops(config: Config) -> int:
    """Floating-point operations of a step, of which frozen towers have no backward pass."""
    trained = flatten(split(config.optim, param_shapes(config))[0])
    parts = {name: (f"{name}/", f"{name}_projection/") for name in config.model.towers}
    return step_flops(config, [name for name, part in parts.items() if not any(path.startswith(part) for path in trained)])


def peak_steps(config: Config, mesh: Mesh) -> float | None:
    """Steps a second at the peak rate of all devices; None where that is not known, or objectives that begin later change it."""
    peak = peak_flops(mesh.devices.flat[0])
    if peak is None or any(how.begin for how in config.objectives.values()):
        return None
    return peak * mesh.size / trained_flops(config)


def non_finite(tree: Any, mesh: Mesh) -> list[str]:
    """Paths of the arrays of a tree on a mesh that hold a value which is no number, or infinite."""
    paths = array_paths(tree)
    finite = jax.device_get(_finite_arrays(mesh)(jax.tree.leaves(tree)))
    return [path for path, good in zip(paths, finite, strict=True) if not good]


@lru_cache
def _finite_arrays(mesh: Mesh) -> Any:
    return jax.jit(lambda leaves: jnp.stack([jnp.isfinite(x).all() for x in leaves]), out_shardings=replicated(mesh))
