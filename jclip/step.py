"""Everything that is jitted: the train state, its initialisation, the train step and the encoder."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.sharding import Mesh

from jclip import losses
from jclip.config import Config, Model
from jclip.digests import array_paths
from jclip.models import Backend, MultiTower, example_inputs
from jclip.optim import make_optimizer, make_schedule, split
from jclip.sharding import BATCH_AXES, Gather, batch_sharding, join_rows, make_gather, param_shardings, replicated, split_rows
from jclip.tree import merge, require_used

LOG_SCALE_RANGE = (0.0, math.log(100.0))
"""Bounds of the logarithm of the logit scale (Radford et al. 2021, section 2.5)."""

Params = dict[str, Any]


class TrainState(NamedTuple):
    """All that changes in training.

    Attributes:
        step: i32 [], completed updates.
        params: parameters, f32.
        opt_state: of the optimizer, for the parameters that are trained.
    """

    step: Array
    params: Params
    opt_state: Any

    def saved(self) -> dict[str, Any]:
        """The parts that a checkpoint holds; its number is the step."""
        return {"params": self.params, "opt_state": self.opt_state}


def param_shapes(config: Config) -> Params:
    """The parameters' shapes and dtypes, without allocating any."""
    return jax.eval_shape(lambda: _new_params(config))


def init_params(config: Config, shardings: Params) -> Params:
    """Random parameters, made where they live."""
    return jax.jit(lambda: _new_params(config), out_shardings=shardings)()


def abstract(shapes: Any, shardings: Any) -> Any:
    """Shapes and dtypes with the shardings they are to have: what a checkpoint is restored into."""
    return jax.tree.map(lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes, shardings)


TrainStep = Callable[[TrainState, Mapping[str, Array]], tuple[TrainState, dict[str, Array]]]


class Program(NamedTuple):
    """The training of a configuration on a mesh: what `make_program` has made of them. Nothing is allocated before `init`.

    Attributes:
        state: shapes, dtypes and shardings of the state.
        batch: those of a global batch.
        embeddings: those of its embeddings, f32 [B, E] of each tower.
        init: () -> a new state, made where it lives: no device ever holds more than its share.
        train_step: jitted, (state, global batch) -> (state, metrics f32 []). The state that goes in is donated.
    """

    state: TrainState
    batch: dict[str, jax.ShapeDtypeStruct]
    embeddings: dict[str, jax.ShapeDtypeStruct]
    init: Callable[[], TrainState]
    train_step: Any

    def compile(self) -> jax.stages.Compiled:
        """The train step ahead of time; it is called like `train_step` and tells what memory it takes."""
        return cast(jax.stages.Compiled, self.train_step.lower(self.state, self.batch).compile())

    def parts(self) -> dict[str, Any]:
        """The least that the devices hold in a step, as shapes with shardings."""
        return {
            "parameters": self.state.params,
            "optimizer": self.state.opt_state,
            "batch": self.batch,
            "embeddings": self.embeddings,
        }

    def restored(self, step: int, saved: Mapping[str, Any]) -> TrainState:
        """The inverse of `TrainState.saved`."""
        return TrainState(jax.device_put(np.int32(step), self.state.step.sharding), saved["params"], saved["opt_state"])


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
        return TrainState(jnp.zeros((), jnp.int32), params, tx.init(split(config.optim, params)[0]))

    params, everywhere = param_shardings(shapes, config.mesh, mesh), replicated(mesh)
    # The optimizer's moments lie with their parameters; what is frozen has none.
    trained, where = (split(config.optim, tree)[0] for tree in (shapes, params))
    opt_state = optax.tree.map_params(
        tx, lambda _, s: s, jax.eval_shape(tx.init, trained), where, transform_non_params=lambda _: everywhere
    )
    shardings = TrainState(cast(Any, everywhere), params, opt_state)
    inputs = example_inputs(config.model, config.batch_size)
    z = jax.ShapeDtypeStruct((config.batch_size, config.model.embed_dim), jnp.float32, sharding=batch_sharding(mesh))
    return Program(
        state=abstract(jax.eval_shape(new_state), shardings),
        batch={name: jax.ShapeDtypeStruct(*like, sharding=batch_sharding(mesh)) for name, like in inputs.items()},
        embeddings=dict.fromkeys(inputs, z),
        init=jax.jit(new_state, out_shardings=shardings),
        train_step=jax.jit(
            _make_train_step(config, tx, schedule, mesh),
            donate_argnums=0,
            in_shardings=(shardings, batch_sharding(mesh)),
            out_shardings=(shardings, everywhere),
        ),
    )


def _new_params(config: Config) -> Params:
    batch = {name: jnp.zeros(shape, dtype) for name, (shape, dtype) in example_inputs(config.model, 1).items()}
    towers = MultiTower(config.model).init(jax.random.key(config.seed), batch)["params"]
    return {**towers, **_new_scales(config)}


def _new_scales(config: Config) -> Params:
    """The scale and bias of each pair; the defaults are those of CLIP and SigLIP (Zhai et al. 2023, section 3.2)."""
    scales = {}
    for pair in config.pairs:
        default = 1 / 0.07 if pair.loss == "softmax" else 10.0
        scales[pair.name] = {"logit_scale": jnp.log(jnp.float32(default if pair.logit_scale is None else pair.logit_scale))}
        if pair.loss == "sigmoid":
            bias = -math.log(config.batch_size - 1) if pair.logit_bias == "batch" else pair.logit_bias
            scales[pair.name]["logit_bias"] = jnp.float32(-10.0 if bias is None else bias)
    return scales


def _objective(
    config: Config, mesh: Mesh, params: Params, z: Mapping[str, Array], batch: Mapping[str, Array]
) -> tuple[Array, dict[str, Array]]:
    """The weighted sum of the losses of all pairs, and of each the loss, scale and bias."""
    total = jnp.zeros(())
    metrics: dict[str, Array] = {}
    for pair in config.pairs:
        scale, bias = jnp.exp(params[pair.name]["logit_scale"]), params[pair.name].get("logit_bias")
        za, zb = (z[tower].astype(pair.dtype) for tower in (pair.a, pair.b))
        same: dict[str, Any] = {}
        if pair.equal != "negative":
            same = {"ids": hash_rows(batch[pair.equal_by or pair.b]), "equal": pair.equal}
        loss = losses.contrastive(
            za,
            zb,
            scale,
            bias,
            kind=pair.loss,
            mesh=mesh,
            axes=BATCH_AXES,
            method=pair.method,
            block=pair.block,
            label_smoothing=pair.label_smoothing,
            **same,
        )
        total = total + pair.weight * loss
        metrics |= {f"{pair.name}/loss": loss, f"{pair.name}/logit_scale": scale}
        metrics |= {} if bias is None else {f"{pair.name}/logit_bias": bias}
    return total, metrics


def hash_rows(x: Array) -> Array:
    """i32 [B] of integers [B, ...]: equal for equal rows, for two others once in 4e9.

    Each word is mixed with its place by the finalizer of MurmurHash3 (Appleby 2011), so that no simple change cancels another.
    """
    words = x.reshape(len(x), -1).astype(jnp.uint32)
    mixed = words ^ jax.random.bits(jax.random.key(0), (1, words.shape[1]), jnp.uint32)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        mixed = (mixed ^ (mixed >> shift)) * jnp.uint32(factor)
    total = (mixed ^ (mixed >> 16)).sum(axis=1, dtype=jnp.uint32)
    return jax.lax.bitcast_convert_type(total, jnp.int32)


def _make_train_step(config: Config, tx: optax.GradientTransformation, schedule: optax.Schedule, mesh: Mesh) -> TrainStep:
    loss_and_grads = make_loss_and_grads(config, mesh)

    def train_step(state: TrainState, batch: Mapping[str, Array]) -> tuple[TrainState, dict[str, Array]]:
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)
        loss, metrics, grads = loss_and_grads(state.params, batch, key)
        trained, frozen = split(config.optim, state.params)
        updates, opt_state = tx.update(grads, state.opt_state, trained)
        params = merge(_bounded(config, trained, optax.apply_updates(trained, updates)), frozen)
        metrics |= {"loss": loss, "lr": schedule(state.step), "grad_norm": optax.tree.norm(grads)}
        return TrainState(state.step + 1, params, opt_state), metrics

    return train_step


def _bounded(config: Config, old: Params, new: Params) -> Params:
    """The updated parameters with the scales within their bounds, or, where they came from outside (SigLIP's), no further out."""
    low, high = LOG_SCALE_RANGE
    for name in {pair.name for pair in config.pairs} & new.keys():
        if "logit_scale" in new[name]:
            before, after = old[name]["logit_scale"], new[name]["logit_scale"]
            new[name]["logit_scale"] = jnp.clip(after, jnp.minimum(before, low), jnp.maximum(before, high))
    return new


def make_loss_and_grads(config: Config, mesh: Mesh) -> Callable[..., tuple[Array, dict[str, Array], Params]]:
    """(params, batch, key) -> (loss, metrics, gradients of what is trained) of the global batch, whatever config.accumulate.

    In parts: all parts are embedded, nothing of a tower kept; the loss of all embeddings gives their gradients; each part is
    embedded again, with the same dropout, to take its gradients back to the parameters (Gao et al. 2021, GradCache). No negative
    is lost, for one more forward pass.
    """
    gather = make_gather(param_shapes(config), config.mesh, mesh)
    model, parts = MultiTower(config.model, gather, Backend.of(mesh, config.model.attention)), config.accumulate

    def embed(params: Params, batch: Mapping[str, Array], rows: Array, key: Array) -> dict[str, Array]:
        encoded = model.apply({"params": params}, batch, rows=rows, rngs={"dropout": key})
        return {name: e.z for name, e in encoded.items()}

    def at_once(trained: Params, frozen: Params, batch: Mapping[str, Array], rows: Array, key: Array) -> Any:
        def loss_fn(trained: Params) -> tuple[Array, dict[str, Array]]:
            params = merge(trained, frozen)
            return _objective(config, mesh, params, embed(params, batch, rows, key), batch)

        return jax.value_and_grad(loss_fn, has_aux=True)(trained)

    def in_parts(trained: Params, frozen: Params, batch: Mapping[str, Array], rows: Array, key: Array) -> Any:
        inputs, indices = split_rows(batch, parts, mesh), split_rows(rows, parts, mesh)
        params = merge(trained, frozen)
        z = jax.lax.map(lambda part: embed(params, part[0], part[1], key), (inputs, indices))

        def loss_fn(trained: Params, z: Mapping[str, Array]) -> tuple[Array, dict[str, Array]]:
            return _objective(config, mesh, merge(trained, frozen), z, batch)

        value_and_grads = jax.value_and_grad(loss_fn, argnums=(0, 1), has_aux=True)
        value, (of_scales, dz) = value_and_grads(trained, join_rows(z, mesh))

        def replay(grads: Params, part: Any) -> tuple[Params, None]:
            batch, rows, dz = part
            _, back = jax.vjp(lambda trained: embed(merge(trained, frozen), batch, rows, key), trained)
            return jax.tree.map(jnp.add, grads, *back(dz)), None

        grads, _ = jax.lax.scan(replay, of_scales, (inputs, indices, split_rows(dz, parts, mesh)))
        return value, grads

    def loss_and_grads(params: Params, batch: Mapping[str, Array], key: Array) -> tuple[Array, dict[str, Array], Params]:
        trained, frozen = split(config.optim, params)
        rows = jnp.arange(config.batch_size)
        (loss, metrics), grads = (at_once if parts == 1 else in_parts)(trained, frozen, batch, rows, key)
        return loss, metrics, grads

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
