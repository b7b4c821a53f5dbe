"""Everything that is jitted: the train state, its initialisation, the train step and the encoder."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.sharding import Mesh

from jclip import losses
from jclip.config import Config, Model
from jclip.models import MultiTower, example_inputs
from jclip.sharding import BATCH_AXES, batch_sharding, param_shardings, replicated

LOG_SCALE_RANGE = (0.0, math.log(100.0))
"""Bounds of the logarithm of the logit scale (Radford et al. 2021, section 2.5)."""

Params = dict[str, Any]


class TrainState(NamedTuple):
    """All that changes in training.

    Attributes:
        step: i32 [], completed updates.
        params: parameters, f32.
        opt_state: of the optimizer.
    """

    step: Array
    params: Params
    opt_state: Any

    def saved(self) -> dict[str, Any]:
        """The parts that a checkpoint holds; its number is the step."""
        return {"params": self.params, "opt_state": self.opt_state}

    @classmethod
    def restored(cls, step: int, saved: Mapping[str, Any], shardings: "TrainState") -> "TrainState":
        """The inverse of `saved`."""
        return cls(jax.device_put(np.int32(step), shardings.step), saved["params"], saved["opt_state"])


def param_shapes(model: Model) -> Params:
    """The parameters' shapes and dtypes, without allocating any."""
    return jax.eval_shape(lambda: _init_params(model, jax.random.key(0)))


def abstract(shapes: Any, shardings: Any) -> Any:
    """Shapes and dtypes with the shardings they are to have: what a checkpoint is restored into."""
    return jax.tree.map(lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes, shardings)


def state_shardings(shapes: Params, tx: optax.GradientTransformation, config: Config, mesh: Mesh) -> TrainState:
    """Where each part of the state lives: the optimizer's moments lie with their parameters."""
    params, everywhere = param_shardings(shapes, config.mesh, mesh), replicated(mesh)
    opt_shapes = jax.eval_shape(tx.init, shapes)
    opt_state = optax.tree.map_params(tx, lambda _, s: s, opt_shapes, params, transform_non_params=lambda _: everywhere)
    return TrainState(cast(Any, everywhere), params, opt_state)


def state_shapes(config: Config, tx: optax.GradientTransformation) -> TrainState:
    """The state's shapes and dtypes, without allocating any."""
    return jax.eval_shape(lambda: _new_state(config, tx))


def init_state(config: Config, tx: optax.GradientTransformation, shardings: TrainState) -> TrainState:
    """A new state, made where it lives: no device ever holds more than its share."""
    return jax.jit(lambda: _new_state(config, tx), out_shardings=shardings)()


def _new_state(config: Config, tx: optax.GradientTransformation) -> TrainState:
    params = _init_params(config.model, jax.random.key(config.seed))
    return TrainState(jnp.zeros((), jnp.int32), params, tx.init(params))


def init_params(model: Model, seed: int, shardings: Params) -> Params:
    """Random parameters, made where they live."""
    return jax.jit(lambda: _init_params(model, jax.random.key(seed)), out_shardings=shardings)()


def _init_params(model: Model, key: Array) -> Params:
    batch = {name: jnp.zeros(shape, dtype) for name, (shape, dtype) in example_inputs(model, 1).items()}
    return MultiTower(model).init(key, batch)["params"]


TrainStep = Callable[[TrainState, Mapping[str, Array]], tuple[TrainState, dict[str, Array]]]


def make_train_step(
    config: Config, tx: optax.GradientTransformation, schedule: optax.Schedule, mesh: Mesh, shardings: TrainState
) -> TrainStep:
    """The jitted update: (state, global batch) -> (state, metrics f32 []). The state that goes in is donated."""
    model = MultiTower(config.model)

    def loss_fn(params: Params, batch: Mapping[str, Array], key: Array) -> Array:
        encoded = model.apply({"params": params}, batch, train=True, rngs={"patches": key})
        scale = jnp.exp(params["logit_scale"])
        total = jnp.zeros(())
        for pair in config.pairs:
            za, zb = encoded[pair.a].z, encoded[pair.b].z
            loss = losses.contrastive(za, zb, scale, kind=pair.loss, mesh=mesh, axes=BATCH_AXES, block=pair.block)
            total = total + pair.weight * loss
        return total

    def train_step(state: TrainState, batch: Mapping[str, Array]) -> tuple[TrainState, dict[str, Array]]:
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)
        loss, grads = jax.value_and_grad(loss_fn)(state.params, batch, key)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        params["logit_scale"] = jnp.clip(params["logit_scale"], *LOG_SCALE_RANGE)
        metrics = {
            "loss": loss,
            "lr": schedule(state.step),
            "grad_norm": optax.tree.norm(grads),
            "logit_scale": jnp.exp(state.params["logit_scale"]),
        }
        return TrainState(state.step + 1, params, opt_state), metrics

    return jax.jit(
        train_step,
        donate_argnums=0,
        in_shardings=(shardings, batch_sharding(mesh)),
        out_shardings=(shardings, replicated(mesh)),
    )


Encode = Callable[[Params, Mapping[str, Array]], dict[str, tuple[Array, Array]]]


def make_encode(model: Model, mesh: Mesh) -> Encode:
    """The jitted encoder: (params, global batch of some towers) -> {tower: (pooled, z)}, all f32, on every device whole."""
    exact = MultiTower(dataclasses.replace(model, dtype="float32"))

    def encode(params: Params, batch: Mapping[str, Array]) -> dict[str, tuple[Array, Array]]:
        with jax.default_matmul_precision("highest"):  # TPUs and GPUs would multiply f32 with less
            encoded = exact.apply({"params": params}, batch)
        return {name: (e.output.pooled, e.z) for name, e in encoded.items()}

    return jax.jit(encode, in_shardings=(None, batch_sharding(mesh)), out_shardings=replicated(mesh))
