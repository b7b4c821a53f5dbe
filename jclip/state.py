"""The state that training changes, and its beginning: parameters, and the state of optimizer and objectives."""

from collections import deque
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jclip.config import Config, Groups, Input, valid_name
from jclip.models import Backend, MultiTower, example_input
from jclip.objectives import Params, Part, make_objective
from jclip.optim import split
from jclip.sharding import Gather
from jclip.tree import merge


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


def new_params(config: Config, key: Array | None = None) -> Params:
    """Random parameters: those of the towers, and of each objective under its name. Without a key, those of config.seed."""
    key = jax.random.key(config.seed) if key is None else key
    rows, batch = jnp.zeros(1, jnp.int32), {name: jnp.zeros(*like) for name, like in view_inputs(config, 1).items()}
    seen = {name: batch[name] for name, view in config.inputs().items() if not view.stored}
    # Where only teachers were heard, and are left out of a run that is read, no objective sees a tower.
    unseen = config.model.towers.keys() - {config.inputs()[name].tower for name in seen}
    seen |= {name: jnp.zeros(*example_input(config.model.towers[name], 1)) for name in unseen}
    encoded, towers = make_towers(config).init_with_output({"params": key, "dropout": key}, seen, rows=rows)
    part = Part(batch, encoded, lambda params, views: {view: encoded[view] for view in views}, rows, key)
    return {**towers["params"], **make_objective(config).init(jax.random.fold_in(key, 1), part)}


def param_shapes(config: Config) -> Params:
    """The parameters' shapes and dtypes, without allocating any.

    A run asks in several places, and tracing a large model takes seconds: the last few answers are remembered.
    """
    asked = (config.model, config.views, config.objectives)
    shapes = next((shapes for known, shapes in tuple(_SHAPES) if known == asked), None)
    if shapes is None:
        shapes = jax.eval_shape(lambda: new_params(config))
        _SHAPES.append((asked, shapes))
    return jax.tree.map(lambda leaf: leaf, shapes)  # a tree of the caller's own


_SHAPES: deque[tuple[Any, Params]] = deque(maxlen=8)
"""((model, views, objectives), shapes), which nothing else decides on."""


def init_params(config: Config, shardings: Params) -> Params:
    """Random parameters, made where they live."""
    return jax.jit(lambda: new_params(config), out_shardings=shardings)()


def abstract(shapes: Any, shardings: Any) -> Any:
    """Shapes and dtypes with the shardings they are to have: what a checkpoint is restored into."""
    return jax.tree.map(lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes, shardings)


def new_extra(config: Config, params: Params) -> Params:
    """The state beside parameters and optimizer at step 0, where these are the parameters."""
    ema = {} if config.optim.ema is None else {"ema": split(config.optim, params)[0]}
    return {**ema, **make_objective(config).init_extra(jax.random.fold_in(jax.random.key(config.seed), 2), params)}


def evaluated_params(config: Config, params: Params, extra: Params) -> Params:
    """The parameters that evaluations use: those in training, or their moving average, if it is asked for."""
    return merge(extra["ema"], split(config.optim, params)[1]) if config.evaluate_ema else params


def view_inputs(config: Config, batch_size: int) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and dtype of each array of a batch of training: of each view, and whether examples have those that they may lack."""

    def one(view: Input) -> tuple[tuple[int, ...], str]:
        return ((batch_size, view.stored_size), "float32") if view.stored else example_input(view.seen_by, batch_size)

    views = {name: one(view) for name, view in config.inputs().items()}
    return views | {valid_name(name): ((batch_size,), "bool") for name in views if name in config.data.optional}


def make_towers(
    config: Config, gather: Gather | None = None, backend: Backend | None = None, buckets: Mapping[str, Groups] | None = None
) -> MultiTower:
    """The model for the views of a batch of training; with `buckets`, of one that fits into them."""
    views = {name: view.tower for name, view in config.all_views().items()}
    return MultiTower(config.model, gather, backend or Backend(), views, buckets)
