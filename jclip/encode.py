"""The jitted encoder of evaluations and of loaded models."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax import Array
from jax.sharding import Mesh

from jclip.config import Model
from jclip.models import Backend, MultiTower
from jclip.sharding import Gather, batch_sharding, replicated

Params = dict[str, Any]

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
