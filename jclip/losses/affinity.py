"""The divergence of two softmaxes over a global batch, a student's and a teacher's, block by block."""

from collections.abc import Sequence

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
        total = jnp.zeros(())
        for rows, columns in (((za, ta), (zb, tb)), ((zb, tb), (za, ta))):
            others = tuple(lax.all_gather(x, names, tiled=True) if names else x for x in columns)
            total = total + _divergence(rows, others, (scale, jnp.float32(teacher_scale)), size, names)
        return lax.psum(total, names) if names else total

    teacher = lax.stop_gradient((ta, tb))
    if names:
        rows = PartitionSpec(names)
        on_device = jax.shard_map(
            on_device, mesh=mesh, in_specs=(rows, rows, rows, rows, PartitionSpec()), out_specs=PartitionSpec()
        )
    za, zb, ta, tb = split_rows((za, zb, *teacher), mesh, names)
    return on_device(za, zb, ta, tb, whole(scale, mesh)) / (2 * len(za))


def _divergence(
    rows: tuple[Array, Array], columns: tuple[Array, ...], scales: tuple[Array, Array], block: int, axes: tuple[str, ...]
) -> Array:
    """sum_ij q_ij log(q_ij / p_ij) over these rows i, f32 [].

    It is sum_i [ lse_j s_ij - lse_j t_ij + sum_j q_ij (t_ij - s_ij) ] of logits s and t, gathered over blocks of columns: sums of
    exp(s - top), exp(t - top) and exp(t - top) (t - s), which shrink when a later block has a larger logit.
    """
    n = len(columns[0])

    @jax.checkpoint
    def visit(found: tuple[Array, ...], start: Array) -> tuple[tuple[Array, ...], None]:
        at = jnp.minimum(start, n - block)  # the last block is moved back until it fits; what it repeats does not count
        new = (at + jnp.arange(block) >= start)[None]
        s, t = (
            jnp.where(new, scale * (dot(x, lax.dynamic_slice_in_dim(y, at, block), (1, 1)) - 1), NEGLIGIBLE)
            for x, y, scale in zip(rows, columns, scales, strict=True)
        )
        s_top, s_sum, t_top, t_sum, t_mean = found
        s_new, t_new = (lax.stop_gradient(jnp.maximum(top, x.max(axis=1))) for top, x in ((s_top, s), (t_top, t)))
        weights, shrunk = jnp.exp(t - t_new[:, None]), jnp.exp(t_top - t_new)
        s_sum = s_sum * jnp.exp(s_top - s_new) + jnp.exp(s - s_new[:, None]).sum(axis=1)
        t_mean = t_mean * shrunk + (weights * jnp.where(new, t - s, 0)).sum(axis=1)
        return (s_new, s_sum, t_new, t_sum * shrunk + weights.sum(axis=1), t_mean), None

    none, zero = jnp.full(len(rows[0]), NEGLIGIBLE), jnp.zeros(len(rows[0]))
    start = varying((none, zero, none, zero, zero), axes)
    (s_top, s_sum, t_top, t_sum, t_mean), _ = lax.scan(visit, start, jnp.arange(0, n, block))
    return (jnp.log(s_sum) + s_top - jnp.log(t_sum) - t_top + t_mean / t_sum).sum()
