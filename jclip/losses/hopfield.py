"""Retrieval from a modern Hopfield network: what the stored patterns of a global batch make of a query, block by block."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import Mesh, PartitionSpec

from jclip.losses.placing import split_rows
from jclip.losses.tiles import dot, varying

MOST_BETA = 40.0
"""Largest inverse temperature: exp(-2 beta) is still a normal float32."""


def retrieve(
    queries: Array,
    patterns: Array,
    beta: float,
    *,
    mesh: Mesh | None = None,
    axes: str | Sequence[str] = ("data",),
    block: int = 256,
) -> Array:
    """The unit vector along sum_j softmax_j(beta <q, s_j>) s_j of each query q (Fuerst et al. 2022, CLOOB, equations 3 to 6).

    What the softmax divides by changes no direction, and less beta the exponents of unit vectors lie within -2 beta and 0: so it
    is a plain sum over the patterns, without a largest logit to look for. With beta near 0 it is the direction of the mean of
    the patterns, with a large one the nearest pattern.

    Every device holds all patterns, N E numbers, and a tile of its queries beside `block` patterns, which is computed again for
    the backward pass.

    Args:
        queries: [n, E] unit vectors, f32 or bf16, sharded on n over `axes` of `mesh`.
        patterns: [N, E] unit vectors, sharded like the queries.
        beta: inverse temperature, 0 to MOST_BETA.
        mesh: mesh of the devices; None computes on one.
        axes: axes of the mesh that n and N are sharded over.
        block: patterns in a tile.

    Returns:
        f32 [n, E], sharded like the queries.

    Raises:
        ValueError: sizes differ or do not divide, or beta is out of its range.
    """
    if queries.ndim != 2 or patterns.ndim != 2 or queries.shape[1] != patterns.shape[1] or patterns.size == 0:
        raise ValueError(f"retrieve: queries {queries.shape} and patterns {patterns.shape} must be [n, E] and [N, E]")
    if not 0 <= beta <= MOST_BETA:
        raise ValueError(f"retrieve: beta {beta} must be at least 0 and at most {MOST_BETA:g}")
    names: tuple[str, ...] = ((axes,) if isinstance(axes, str) else tuple(axes)) if mesh is not None else ()
    devices = math.prod(mesh.shape[axis] for axis in names) if mesh is not None else 1
    if len(queries) % devices or len(patterns) % devices:
        raise ValueError(f"retrieve: {len(queries)} queries of {len(patterns)} patterns are not divisible by {devices} devices")

    def on_device(queries: Array, patterns: Array) -> Array:
        stored = lax.all_gather(patterns, names, tiled=True) if names else patterns
        return _retrieve(queries, stored, beta, min(block, len(stored)), names)

    if names:
        rows = PartitionSpec(names)
        on_device = jax.shard_map(on_device, mesh=mesh, in_specs=(rows, rows), out_specs=rows)
    return on_device(*split_rows((queries, patterns), mesh, names))


def _retrieve(queries: Array, stored: Array, beta: float, size: int, axes: tuple[str, ...]) -> Array:
    """The answers f32 [n, E] to one device's queries [n, E] from all patterns [N, E], `size` of them at a time."""

    @jax.checkpoint
    def of_block(start: Array) -> tuple[Array, Array]:
        at = jnp.minimum(start, len(stored) - size)  # the last block is moved back until it fits; what it repeats is nothing
        columns = lax.dynamic_slice_in_dim(stored, at, size)
        weights = jnp.exp(beta * (dot(queries, columns, (1, 1)) - 1))
        weights = jnp.where((at + jnp.arange(size) >= start)[None], weights, 0)
        return weights.sum(axis=1), dot(weights.astype(columns.dtype), columns, (1, 0))

    def add(sums: tuple[Array, Array], start: Array) -> tuple[tuple[Array, Array], None]:
        # Added outside of what is computed again: a sum needs none of its terms for the backward pass.
        return jax.tree.map(jnp.add, sums, of_block(start)), None

    nothing = varying((jnp.zeros(len(queries)), jnp.zeros(queries.shape)), axes)
    (total, weighted), _ = lax.scan(add, nothing, jnp.arange(0, len(stored), size))
    mean = weighted / lax.stop_gradient(total)[:, None]  # so that its square is not 0; the length is taken away next
    return mean / jnp.sqrt(jnp.maximum((mean * mean).sum(axis=1, keepdims=True), 1e-24))
