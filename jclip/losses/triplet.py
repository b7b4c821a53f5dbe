"""The triplet losses of a global batch: hinges between each match and what is unrelated to it, on any mesh, block by block."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

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

    Every device holds one whole side, B E numbers, and a tile of B / devices x `block` similarities. For "all" they are computed
    again for the backward pass. Of several that are equally near the first counts.

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


def _hinges(options: _Hinge, mine: Array, ids: Array, matches: Array, others: Array, other_ids: Array) -> Array:
    """The sum f32 [] over rows [b, E] of their hinges against all of the other side [B, E]."""
    if options.mining == "all":
        return _all_hinges(options, mine, ids, matches, others, other_ids)
    mined, some = _mine(options, *lax.stop_gradient((mine, ids, matches, others, other_ids)))
    nearest = _similarity((mine.astype(jnp.float32) * others[mined].astype(jnp.float32)).sum(axis=1), options.distance)
    return jnp.where(some, jnp.maximum(0, options.margin - matches + nearest), 0).sum()


def _all_hinges(options: _Hinge, mine: Array, ids: Array, matches: Array, others: Array, other_ids: Array) -> Array:
    @jax.checkpoint
    def of_block(start: Array) -> Array:
        _, s, unrelated = _block(options, mine, ids, others, other_ids, start)
        return jnp.where(unrelated, jnp.maximum(0, options.margin - matches[:, None] + s), 0).sum()

    def visit(total: Array, start: Array) -> tuple[Array, None]:
        return total + of_block(start), None

    starts = jnp.arange(0, len(others), options.block)
    return lax.scan(visit, varying(jnp.zeros(()), options.axes), starts)[0]


def _mine(options: _Hinge, mine: Array, ids: Array, matches: Array, others: Array, other_ids: Array) -> tuple[Array, Array]:
    """The negative of each row that counts, i32 [b], and whether there is one, bool [b].

    It is found first and its similarity computed again after: so the backward pass needs neither tiles nor what led there.
    """
    rows = jnp.arange(len(mine))

    def better(found: tuple[Array, Array], at: Array, x: Array, counted: Array) -> tuple[Array, Array]:
        """The first column of the largest value of each row so far."""
        x = jnp.where(counted, x, NONE)
        column = x.argmax(axis=1)
        here = x[rows, column]
        top, index = found
        return jnp.maximum(top, here), jnp.where(here > top, at + column, index)

    def visit(found: tuple[Any, Any], start: Array) -> tuple[tuple[Any, Any], None]:
        at, s, unrelated = _block(options, mine, ids, others, other_ids, start)
        counted = unrelated & (s < matches[:, None]) if options.mining == "semi_hard" else unrelated
        near, far = found
        return (better(near, at, s, counted), better(far, at, -s, unrelated)), None

    nothing = jnp.full(len(mine), NONE), jnp.zeros(len(mine), jnp.int32)
    start = varying((nothing, nothing), options.axes)
    ((near, nearest), (far, farthest)), _ = lax.scan(visit, start, jnp.arange(0, len(others), options.block))
    if options.mining == "semi_hard":  # where none is farther than the match, the farthest
        return jnp.where(near > NONE / 2, nearest, farthest), far > NONE / 2
    return nearest, near > NONE / 2


def _block(options: _Hinge, mine: Array, ids: Array, others: Array, other_ids: Array, start: Array) -> tuple[Array, Array, Array]:
    """First column of the block, similarities f32 [b, block] of rows and columns, and which are unrelated.

    The last block is moved back until it fits, and what it repeats is not counted as unrelated.
    """
    at = jnp.minimum(start, len(others) - options.block)
    part, part_ids = (lax.dynamic_slice_in_dim(x, at, options.block) for x in (others, other_ids))
    fresh = at + jnp.arange(options.block) >= start
    return at, _similarity(dot(mine, part, (1, 1)), options.distance), (ids[:, None] != part_ids[None]) & fresh[None]


def _similarity(cosines: Array, distance: Distance) -> Array:
    """Euclidean distance of unit vectors: |a - b|^2 = 2 - 2 <a, b>."""
    return cosines if distance == "cosine" else -jnp.sqrt(jnp.maximum(2 - 2 * cosines, 1e-12))
