"""The divergence of two softmaxes over a global batch, a student's and a teacher's, block by block."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import Mesh, PartitionSpec

from jclip.losses.placing import split_rows, whole
from jclip.losses.tiles import NEGLIGIBLE, dot, varying


def affinity(
    za: Array,
    zb: Array,
    scale: Array,
    ta: Array,
    tb: Array,
    teacher_scale: float,
    *,
    mesh: Mesh | None = None,
    axes: str | Sequence[str] = ("data",),
    block: int = 256,
) -> Array:
    """Divergence of the student's matches from the teacher's, in both directions; 0 where they agree (Wu et al. 2023, TinyCLIP).

    With p_ij = softmax_j(scale <za_i, zb_j>) and q_ij = softmax_j(teacher_scale <ta_i, tb_j>), and p', q' over i of column j,

        loss = 1/(2B) [ sum_ij q_ij log(q_ij / p_ij) + sum_ij q'_ij log(q'_ij / p'_ij) ].

    No gradient reaches the teacher. Every device holds one whole side of both, and a tile of B / devices x `block` logits of each
    that is computed again for the backward pass.

    Args:
        za: f32 [B, E] unit vectors of the student, sharded on B over `axes` of `mesh`.
        zb: [B, E] like za.
        scale: f32 [], of the student's cosines.
        ta: f32 [B, F] unit vectors of the teacher, sharded like za.
        tb: [B, F] like ta.
        teacher_scale: of the teacher's cosines.
        mesh: mesh of the devices; None computes on one.
        axes: axes of the mesh that B is sharded over.
        block: columns of the logits held at a time.

    Returns:
        The loss, f32 [].

    Raises:
        ValueError: shapes differ.
    """
    if za.ndim != 2 or za.shape != zb.shape or ta.ndim != 2 or ta.shape != tb.shape or len(za) != len(ta):
        raise ValueError(f"affinity: {za.shape}, {zb.shape}, {ta.shape}, {tb.shape} must be [B, E] twice and [B, F] twice")
    names: tuple[str, ...] = ((axes,) if isinstance(axes, str) else tuple(axes)) if mesh is not None else ()
    size = min(block, len(za))

    def on_device(za: Array, zb: Array, ta: Array, tb: Array, scale: Array) -> Array:
        total, scales = jnp.zeros(()), varying((scale, jnp.float32(teacher_scale)), names)
        for rows, columns in (((za, ta), (zb, tb)), ((zb, tb), (za, ta))):
            columns = jax.tree.map(lambda x: lax.all_gather(x, names, tiled=True) if names else x, columns)
            total = total + _divergence(rows, columns, scales, size, names)
        return lax.psum(total, names) if names else total

    teacher = lax.stop_gradient((ta, tb))
    if names:
        rows = PartitionSpec(names)
        on_device = jax.shard_map(
            on_device, mesh=mesh, in_specs=(rows, rows, rows, rows, PartitionSpec()), out_specs=PartitionSpec()
        )
    za, zb, ta, tb = split_rows((za, zb, *teacher), mesh, names)
    return on_device(za, zb, ta, tb, whole(scale, mesh)) / (2 * len(za))


_Pair = tuple[Array, Array]
"""Something of the student, and of the teacher."""


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _divergence(rows: _Pair, columns: _Pair, scales: _Pair, block: int, axes: tuple[str, ...]) -> Array:
    """sum_ij q_ij log(q_ij / p_ij) over these rows i, f32 []."""
    return _forward(rows, columns, scales, block, axes)[0]


def _forward(rows: _Pair, columns: _Pair, scales: _Pair, block: int, axes: tuple[str, ...]) -> tuple[Array, Any]:
    """The divergence, and what the backward pass needs: the log-sum-exps f32 [b] beside the arguments.

    It is sum_i [ lse_j s_ij - lse_j t_ij + sum_j q_ij (t_ij - s_ij) ] of logits s and t, gathered over blocks of columns: sums of
    exp(s - top), exp(t - top) and exp(t - top) (t - s), which shrink when a later block has a larger logit.
    """

    def visit(found: tuple[Array, ...], start: Array) -> tuple[tuple[Array, ...], None]:
        tile = _tile(rows, columns, scales, block, start)
        s, t = tile.logits
        s_top, s_sum, t_top, t_sum, t_mean = found
        s_new, t_new = (jnp.maximum(top, x.max(axis=1)) for top, x in ((s_top, s), (t_top, t)))
        weights, shrunk = jnp.exp(t - t_new[:, None]), jnp.exp(t_top - t_new)
        s_sum = s_sum * jnp.exp(s_top - s_new) + jnp.exp(s - s_new[:, None]).sum(axis=1)
        t_mean = t_mean * shrunk + (weights * jnp.where(tile.fresh, t - s, 0)).sum(axis=1)
        return (s_new, s_sum, t_new, t_sum * shrunk + weights.sum(axis=1), t_mean), None

    none, zero = jnp.full(len(rows[0]), NEGLIGIBLE), jnp.zeros(len(rows[0]))
    start = varying((none, zero, none, zero, zero), axes)
    (s_top, s_sum, t_top, t_sum, t_mean), _ = lax.scan(visit, start, jnp.arange(0, len(columns[0]), block))
    lses = jnp.log(s_sum) + s_top, jnp.log(t_sum) + t_top
    return (lses[0] - lses[1] + t_mean / t_sum).sum(), (rows, columns, scales, lses)


def _backward(block: int, axes: tuple[str, ...], residuals: Any, cotangent: Array) -> tuple[_Pair, _Pair, _Pair]:
    """The gradients, of the student alone: d / d s_ij = p_ij - q_ij."""
    rows, columns, scales, lses = residuals
    (mine, _), (theirs, _), (scale, _) = rows, columns, scales

    def visit(found: tuple[Array, Array, Array], start: Array) -> tuple[tuple[Array, Array, Array], None]:
        tile = _tile(rows, columns, scales, block, start)
        p, q = (jnp.exp(x - lse[:, None]) for x, lse in zip(tile.logits, lses, strict=True))
        slope, (d_mine, d_theirs, d_scale) = p - q, found
        old = lax.dynamic_slice_in_dim(d_theirs, tile.at, block)
        d_theirs = lax.dynamic_update_slice_in_dim(d_theirs, old + dot(slope, mine, (0, 0)), tile.at, axis=0)
        d_mine = d_mine + dot(slope, lax.dynamic_slice_in_dim(theirs, tile.at, block), (1, 0))
        return (d_mine, d_theirs, d_scale + (slope * tile.cosines).sum()), None

    zeros = varying((jnp.zeros(mine.shape), jnp.zeros(theirs.shape), jnp.zeros(())), axes)
    (d_mine, d_theirs, d_scale), _ = lax.scan(visit, zeros, jnp.arange(0, len(theirs), block))
    factor, teacher = cotangent * scale, jax.tree.map(jnp.zeros_like, (rows[1], columns[1], scales[1]))
    return (factor * d_mine, teacher[0]), (factor * d_theirs, teacher[1]), (cotangent * d_scale, teacher[2])


_divergence.defvjp(_forward, _backward)


class _LogitTile(NamedTuple):
    """All rows and some columns."""

    at: Array
    """i32 [], the first of the columns; the last block is moved back until it fits."""
    fresh: Array
    """bool [1, block], the columns that no earlier block has."""
    cosines: Array
    """f32 [b, block] of the student, less 1: a softmax is the same, and f32 is finest near 0."""
    logits: _Pair
    """f32 [b, block], NEGLIGIBLE where the column is not fresh."""


def _tile(rows: _Pair, columns: _Pair, scales: _Pair, block: int, start: Array) -> _LogitTile:
    at = jnp.minimum(start, len(columns[0]) - block)
    fresh = (at + jnp.arange(block) >= start)[None]
    student, teacher = (dot(x, lax.dynamic_slice_in_dim(y, at, block), (1, 1)) - 1 for x, y in zip(rows, columns, strict=True))
    s, t = (jnp.where(fresh, scale * x, NEGLIGIBLE) for scale, x in zip(scales, (student, teacher), strict=True))
    return _LogitTile(at, fresh, student, (s, t))
