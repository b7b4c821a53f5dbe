"""The triplet losses of a global batch: hinges between each match and what is unrelated to it, on any mesh, block by block."""

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import Mesh, PartitionSpec

from jclip.losses.placing import split_rows
from jclip.losses.tiles import dot, varying

Mining = Literal["all", "hardest", "semi_hard"]
Distance = Literal["cosine", "euclidean"]

NONE = -1e30  # similarity where there is no negative


def triplet(
    za: Array,
    zb: Array,
    *,
    margin: float = 0.2,
    mining: Mining = "hardest",
    distance: Distance = "cosine",
    ids: Array | None = None,
    mesh: Mesh | None = None,
    axes: str | Sequence[str] = ("data",),
    block: int = 256,
) -> Array:
    """The hinges of row i of one side and row i of the other against the rows that are unrelated, in both directions.

    With similarities s_ij = <za_i, zb_j>, or -|za_i - zb_j|, and, of unrelated i and j, h_ij = max(0, margin - s_ii + s_ij),

        all         1/B sum_i [ sum_j h_ij + sum_j h_ji ]            (Kiros et al. 2014)
        hardest     1/B sum_i [ max_j h_ij + max_j h_ji ]            (Faghri et al. 2018, VSE++, which sums over i)
        semi_hard   as hardest, of the j with s_ij < s_ii; where there is none, the j that is farthest away
                                                                     (Schroff et al. 2015, FaceNet, section 3.2)

    Every device holds one whole side, B E numbers, and a tile of B / devices x `block` similarities, which are computed again for
    the backward pass. Where several are hardest, they share the gradient.

    Args:
        za: [B, E] unit vectors, f32 or bf16, sharded on B over `axes` of `mesh`.
        zb: [B, E] like za.
        margin: how much nearer a match has to be.
        mining: which hinges count: "all", "hardest" or "semi_hard".
        distance: "cosine" or "euclidean".
        ids: i32 [B]; rows of equal id are related, and not each other's negatives. None: every row its own thing.
        mesh: mesh of the devices; None computes on one.
        axes: axes of the mesh that B is sharded over.
        block: columns of the similarities held at a time.

    Returns:
        The loss, f32 []. A row without unrelated ones adds 0.

    Raises:
        ValueError: shapes differ, or an argument is not one of those above.
    """
    _check(za, zb, mining, distance)
    ids = jnp.arange(len(za), dtype=jnp.int32) if ids is None else jnp.asarray(ids)
    names: tuple[str, ...] = ((axes,) if isinstance(axes, str) else tuple(axes)) if mesh is not None else ()
    options = _Hinge(margin, mining, distance, min(block, len(za)), names)

    def on_device(za: Array, zb: Array, ids: Array) -> Array:
        matches = _similarity((za.astype(jnp.float32) * zb.astype(jnp.float32)).sum(axis=1), distance)
        total = jnp.zeros(())
        for mine, others in ((za, zb), (zb, za)):
            columns, column_ids = (lax.all_gather(x, names, tiled=True) if names else x for x in (others, ids))
            total = total + _hinges(options, mine, ids, matches, columns, column_ids)
        return lax.psum(total, names) if names else total

    if names:
        rows = PartitionSpec(names)
        on_device = jax.shard_map(on_device, mesh=mesh, in_specs=(rows, rows, rows), out_specs=PartitionSpec())
    return on_device(*split_rows((za, zb, ids), mesh, names)) / len(za)


def _check(za: Array, zb: Array, mining: str, distance: str) -> None:
    if za.ndim != 2 or za.shape != zb.shape or za.dtype != zb.dtype:
        raise ValueError(f"triplet: za {za.dtype}{za.shape} and zb {zb.dtype}{zb.shape} must be equal [B, E]")
    for name, value, allowed in (("mining", mining, Mining), ("distance", distance, Distance)):
        if value not in get_args(allowed):
            raise ValueError(f"triplet: {name} {value!r} is unknown; use one of {', '.join(map(repr, get_args(allowed)))}")


class _Hinge(NamedTuple):
    """Settings of the compiled loss."""

    margin: float
    mining: Mining
    distance: Distance
    block: int
    axes: tuple[str, ...]


_Found = tuple[tuple[Array, Array], tuple[Array, Array]]
"""Sums of the hinges, or nearest negatives, f32 [b], with their numbers f32 [b]; farthest negatives, likewise."""


def _hinges(options: _Hinge, mine: Array, ids: Array, matches: Array, others: Array, other_ids: Array) -> Array:
    """The sum f32 [] over rows [b, E] of their hinges against all of the other side [B, E]."""
    margin, mining, distance, block, axes = options

    @jax.checkpoint
    def visit(found: _Found, start: Array) -> tuple[_Found, None]:
        at = jnp.minimum(start, len(others) - block)  # the last block is moved back until it fits; what it repeats does not count
        part, part_ids = (lax.dynamic_slice_in_dim(x, at, block) for x in (others, other_ids))
        s = _similarity(dot(mine, part, (1, 1)), distance)
        unrelated = (ids[:, None] != part_ids[None]) & (at + jnp.arange(block) >= start)[None]
        (near, nearest), (far, farthest) = found
        if mining == "all":
            hinges = jnp.maximum(0, margin - matches[:, None] + s)
            return ((near + jnp.where(unrelated, hinges, 0).sum(axis=1), nearest), (far, farthest)), None
        counted = unrelated & (s < matches[:, None]) if mining == "semi_hard" else unrelated
        return (_largest(near, nearest, s, counted), _largest(far, farthest, -s, unrelated)), None

    none, zero = jnp.full(len(mine), NONE), jnp.zeros(len(mine))
    found = varying(((zero if mining == "all" else none, zero), (none, zero)), axes)
    ((near, _), (far, _)), _ = lax.scan(visit, found, jnp.arange(0, len(others), block))
    if mining == "all":
        return near.sum()
    if mining == "semi_hard":
        near = jnp.where(near > NONE / 2, near, jnp.where(far > NONE / 2, -far, NONE))
    return jnp.maximum(0, margin - matches + near).sum()


def _largest(top: Array, count: Array, x: Array, counted: Array) -> tuple[Array, Array]:
    """The largest value of each row up to this block, f32 [b], and how many of the row are as large; so many share its gradient.

    Args:
        top: f32 [b], the largest of the blocks before.
        count: f32 [b], how many are as large.
        x: f32 [b, block].
        counted: bool [b, block], which of them count.
    """
    here = jnp.where(counted, x, NONE).max(axis=1)
    equal = (counted & (x == here[:, None])).sum(axis=1)
    share = equal / jnp.maximum(count + equal, 1)  # of the gradient, where both are as large: `here - top` is 0 there
    joined = jnp.where(here > top, here, jnp.where(here == top, top + share * (here - top), top))
    return joined, jnp.where(here > top, equal, jnp.where(here == top, count + equal, count))


def _similarity(cosines: Array, distance: Distance) -> Array:
    """Euclidean distance of unit vectors: |a - b|^2 = 2 - 2 <a, b>."""
    return cosines if distance == "cosine" else -jnp.sqrt(jnp.maximum(2 - 2 * cosines, 1e-12))
