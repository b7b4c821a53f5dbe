"""Training through towers on a few examples: images drawn anew each step, one jitted step, and what evaluations see of it."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from jclip.adapt.contexts import exact_model
from jclip.adapt.task import Task
from jclip.adapt.training import draws
from jclip.config import Augment, ConfigError
from jclip.models import Backend, MultiTower
from jclip.optim import STATISTICS
from jclip.sharding import batch_sharding, replicated
from jclip.tree import flatten, match_rules, require_used

Towers = Callable[[Any, Mapping[str, Array]], dict[str, Array]]
"""(params, inputs by tower) -> unit vectors f32 [n, E] by tower."""


def towers_of(task: Task, *, remat: bool) -> Towers:
    """The towers in f32, without dropout, as evaluations compute them; rows are split over the devices."""
    exact = exact_model(task.model, remat=remat)
    model = MultiTower(exact, backend=Backend.of(task.mesh, task.model.attention))

    def encode(params: Any, inputs: Mapping[str, Array]) -> dict[str, Array]:
        split = {name: jax.lax.with_sharding_constraint(rows, batch_sharding(task.mesh)) for name, rows in inputs.items()}
        with jax.default_matmul_precision("highest"):
            encoded = model.apply({"params": params}, split)
        return {name: jax.lax.with_sharding_constraint(one.z, replicated(task.mesh)) for name, one in encoded.items()}

    return encode


def chosen_params(task: Task, rules: tuple[tuple[str, float], ...], at: str) -> dict[str, float]:
    """Parameters, by path, that rules give a factor above 0, with it; statistics of batch normalisation are none of them.

    Raises:
        ConfigError: a rule decides on nothing, or none is left.
    """
    require_used(task.params, rules, at)
    factors = flatten(match_rules(task.params, rules))
    found = {path: factor for path, factor in factors.items() if factor > 0 and not re.fullmatch(STATISTICS[0], path)}
    if not found:
        raise ConfigError(f"adapt: {at} choose no parameter; give one a factor above 0")
    return found


def batches_of(task: Task, augment: Augment, batch_size: int, steps: int) -> Any:
    """Images u8 [b, H, W, 3] of each step, their labels and weights, 0 of rows that fill up the devices.

    Which shots, and how each is changed, is a function of the seed and the step.
    """
    rows = draws(len(task.labels), batch_size, steps, task.seed)
    filler = -rows.shape[1] % task.mesh.size
    for step, own in enumerate(rows):
        padded = np.concatenate([own, np.repeat(own[:1], filler)])
        pixels = task.encode.pixels(augment, padded, np.full(len(padded), step))
        weights = np.r_[np.ones(len(own), np.float32), np.zeros(filler, np.float32)]
        yield pixels, task.labels[padded].astype(np.int32), weights / len(own)


def run_steps(
    task: Task,
    key: Any,
    loss: Callable[..., Array],
    optimizer: optax.GradientTransformation,
    learned: Any,
    given: Any,
    batches: Any,
) -> Any:
    """Learned arrays after a step for each batch: loss(learned, batch, given) is differentiated, in one jitted step.

    Args:
        task: whose programs are kept.
        key: of the program, which must say all that `loss` and `optimizer` depend on.
        loss: scalar.
        optimizer: of `learned`.
        learned: arrays at the start, a tree.
        given: all else, an argument of the program.
        batches: of the steps.
    """

    def step(learned: Any, state: Any, batch: Any, given: Any) -> tuple[Any, Any]:
        updates, state = optimizer.update(jax.grad(loss)(learned, batch, given), state, learned)
        return optax.apply_updates(learned, updates), state

    program = task.compiled.setdefault(key, jax.jit(step, out_shardings=replicated(task.mesh)))
    learned = jax.tree.map(jnp.asarray, learned)
    state = optimizer.init(learned)
    for batch in batches:
        learned, state = program(learned, state, batch, given)
    return learned
