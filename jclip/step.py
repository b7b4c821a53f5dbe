"""Everything that is jitted in training: loss and gradients of a batch, and the train step around them."""

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.sharding import Mesh

from jclip.config import Config
from jclip.digests import array_paths
from jclip.learner import Learner, make_learner
from jclip.models import Encoded
from jclip.objectives import Metrics, Params, Part
from jclip.optim import ema_decay, moving_average
from jclip.sharding import join_rows, make_gather, replicated, split_rows
from jclip.state import TrainState, param_shapes
from jclip.tree import merge

Batch = Mapping[str, Array]
TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
LossAndGrads = Callable[..., tuple[Array, Metrics, Params, Any]]


def make_train_step(
    learner: Learner,
    tx: optax.GradientTransformation,
    schedule: optax.Schedule,
    *,
    seed: int,
    total_steps: int,
    ema: float | None = None,
    waiting: Collection[str] = (),
    first: int = 0,
    begun: Callable[[Params], Params] | None = None,
) -> TrainStep:
    """The train step of a run, or of the part of it in which some objectives do not take part yet.

    Args:
        learner: what is learned.
        tx: the optimizer.
        schedule: the learning rate by completed updates.
        seed: of dropout and of all that objectives draw.
        total_steps: of the run.
        ema: maximum decay of the moving average of parameters; None: there is none.
        waiting: names at the top of the parameters that stay as they are until an objective begins.
        first: completed updates with which this part of the run begins.
        begun: parameters -> the state of the objectives that begin with it; None: none has any.
    """

    def begin(state: TrainState) -> Params:
        assert begun is not None
        return {**state.extra, **begun(state.params)}

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        if begun is not None:
            state = state._replace(extra=jax.lax.cond(state.step == first, begin, lambda state: state.extra, state))
        loss, metrics, grads, rows = loss_and_grads(learner, state.params, batch, key, state.extra)

        before, frozen = learner.split(state.params)
        updates, opt_state = tx.update(grads, state.opt_state, before)
        trained = learner.objective.bound(before, optax.apply_updates(before, updates))
        trained = {name: before[name] if name in waiting else tree for name, tree in trained.items()}  # not even decayed
        params = merge(trained, frozen)

        extra = learner.objective.update(state.extra, params, rows, batch, (state.step + 1) / total_steps)
        if ema is not None:
            extra["ema"] = moving_average(state.extra["ema"], trained, ema_decay(ema, state.step))
        metrics |= {"loss": loss, "lr": schedule(state.step), "grad_norm": optax.tree.norm(grads)}
        return TrainState(state.step + 1, params, opt_state, extra), metrics

    return train_step


def make_loss_and_grads(config: Config, mesh: Mesh) -> LossAndGrads:
    """`loss_and_grads` of a configuration: (params, batch, key, extra) -> (loss, metrics, gradients, rows)."""
    gather = make_gather(param_shapes(config), config.mesh, mesh)
    return partial(loss_and_grads, make_learner(config, mesh, gather))


def loss_and_grads(
    learner: Learner, params: Params, batch: Batch, key: Array, extra: Params | None = None
) -> tuple[Array, Metrics, Params, Any]:
    """The loss of a global batch and the gradients of what is trained, whatever the parts and the buckets.

    Args:
        learner: what is learned.
        params: all parameters.
        batch: views [B, ...] by name, sharded on B.
        key: of the step.
        extra: state of objectives by name.

    Returns:
        loss f32 []; metrics f32 []; gradients; and `rows`, what the objectives made of each row, sharded on B.
    """
    if learner.bucketed is None:
        return _padded_or_bucketed(learner, params, batch, key, extra)
    fits, bucketed = learner.fits(batch), learner._replace(towers=learner.bucketed)
    one, other = (partial(_padded_or_bucketed, each) for each in (bucketed, learner))
    loss, metrics, grads, rows = jax.lax.cond(fits, one, other, params, batch, key, extra)
    return loss, {**metrics, "in_buckets": fits.astype(jnp.float32)}, grads, rows


def _padded_or_bucketed(
    learner: Learner, params: Params, batch: Batch, key: Array, extra: Params | None
) -> tuple[Array, Metrics, Params, Any]:
    trained, frozen = learner.split(params)
    algorithm = at_once if learner.parts == 1 else in_parts
    index = jnp.arange(learner.batch_size)
    loss, metrics, sums, rows, grads = algorithm(learner, trained, frozen, extra or {}, batch, index, key)
    for name, mean in learner.objective.local_metrics(sums).items():  # losses of both kinds are summed
        metrics[name] = metrics.get(name, 0) + mean
    return loss, metrics, grads, rows


def encode_rows(
    learner: Learner, params: Params, extra: Params, batch: Batch, index: Array, key: Array
) -> tuple[tuple[Any, Array], Any]:
    """The towers and the objectives' `rows` on some rows of a batch, b of B; `index`, i32 [b], says which.

    Returns:
        (what the loss of the batch needs of each row, arrays [b, ...]; the losses of single rows, summed and already divided by
        B, f32 []), and sums over the rows for the metrics.
    """

    def encode(params: Params, views: Sequence[str]) -> Mapping[str, Encoded]:
        encoded: Mapping[str, Encoded] = learner.towers.apply({"params": params}, {view: batch[view] for view in views})
        return encoded

    inputs = {view: batch[view] for view in learner.views} | learner.objective.views(params, batch, index, key)
    # Dropout depends on the step's key and on a row's index in the global batch alone: all passes draw the same. Teachers
    # have none.
    encoded = learner.towers.apply({"params": params}, inputs, rows=index, rngs={"dropout": key})
    encoded |= encode(params, learner.teacher_views)
    rows, sums = learner.objective.rows(params, extra, Part(batch, encoded, encode, index, key))
    return (rows, learner.objective.local_loss(sums)), sums


def at_once(
    learner: Learner, trained: Params, frozen: Params, extra: Params, batch: Batch, index: Array, key: Array
) -> tuple[Array, Metrics, Any, Any, Params]:
    """The algorithm: towers, objectives, gradient. See `in_parts` for what comes back."""

    def loss_fn(trained: Params) -> tuple[Array, Any]:
        params = merge(trained, frozen)
        (rows, local), sums = encode_rows(learner, params, extra, batch, index, key)
        loss, metrics = learner.objective.batch(params, extra, rows, batch)
        return loss + local, (metrics, sums, rows)

    (loss, (metrics, sums, rows)), grads = jax.value_and_grad(loss_fn, has_aux=True)(trained)
    return loss, metrics, sums, rows, grads


def in_parts(
    learner: Learner, trained: Params, frozen: Params, extra: Params, batch: Batch, index: Array, key: Array
) -> tuple[Array, Metrics, Any, Any, Params]:
    """The same loss and gradients, where the towers have memory for a part of the batch only (Gao et al. 2021, GradCache).

    The sum of each part's own loss would be another objective, in which a row meets the negatives of its part alone. The loss
    needs the rows of all parts at once; so there are three passes:

        rows          towers, part after part; only what the loss needs of each row is kept
        slopes        the loss of all rows, and its gradient in each of them: no tower is seen
        replay        towers again, part after part, each with its slopes pulled back through it

    By the chain rule the sum over parts of (slopes of the part) x (Jacobian of the part) is the whole gradient. No negative is
    lost, for one more forward pass. The replay draws the same dropout, or its Jacobian would not be that of the rows. A part is
    an equal share of the rows of every device, so that no row moves between devices.

    Returns:
        loss f32 []; metrics of the batch; sums over its rows for further metrics; the rows; gradients of what is trained.
    """
    parts = split_rows(batch, learner.parts, learner.mesh), split_rows(index, learner.parts, learner.mesh)
    params = merge(trained, frozen)

    rows = jax.lax.map(lambda part: encode_rows(learner, params, extra, part[0], part[1], key)[0][0], parts)
    rows = join_rows(rows, learner.mesh)

    def loss_fn(trained: Params, rows: Any) -> tuple[Array, Metrics]:
        return learner.objective.batch(merge(trained, frozen), extra, rows, batch)

    (loss, metrics), (grads, slopes) = jax.value_and_grad(loss_fn, argnums=(0, 1), has_aux=True)(trained, rows)

    def replay(grads: Params, part: Any) -> tuple[Params, Any]:
        (batch, index), slopes = part

        def again(trained: Params) -> Any:
            return encode_rows(learner, merge(trained, frozen), extra, batch, index, key)

        # The losses of single rows add up to their share of the loss, in which their slope is 1.
        (_, local), back, sums = jax.vjp(again, trained, has_aux=True)
        return jax.tree.map(jnp.add, grads, *back((slopes, jnp.ones(())))), (local, sums)

    grads, of_parts = jax.lax.scan(replay, grads, (parts, split_rows(slopes, learner.parts, learner.mesh)))
    local, sums = jax.tree.map(lambda of_parts: of_parts.sum(axis=0), of_parts)
    return loss + local, metrics, sums, rows, grads


def non_finite(tree: Any, mesh: Mesh) -> list[str]:
    """Paths of the arrays of a tree on a mesh that hold a value which is no number, or infinite."""
    paths = array_paths(tree)
    finite = jax.device_get(_finite_arrays(mesh)(jax.tree.leaves(tree)))
    return [path for path, good in zip(paths, finite, strict=True) if not good]


@lru_cache
def _finite_arrays(mesh: Mesh) -> Any:
    return jax.jit(lambda leaves: jnp.stack([jnp.isfinite(x).all() for x in leaves]), out_shardings=replicated(mesh))
