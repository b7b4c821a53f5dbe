"""Losses between two views of one example through one tower."""

from collections.abc import Sequence
from functools import partial

import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import Mesh

from jclip.losses.contrastive import contrastive
from jclip.losses.tiles import Method


def nt_xent(
    a: Array,
    b: Array,
    temperature: float,
    *,
    mesh: Mesh | None = None,
    axes: str | Sequence[str] = ("data",),
    method: Method = "gather",
    block: int = 256,
) -> Array:
    """The loss of finding each view's other one among all 2B but itself (Chen et al. 2020, SimCLR, equation 1):

        1/(2B) sum_i [ log sum_{k != i} exp(<z_i, z_k> / temperature) - <z_i, z_other(i)> / temperature ].

    Args:
        a: [B, F] unit vectors, f32 or bf16, sharded on B over `axes` of `mesh`.
        b: [B, F] like a.
        temperature: divides the cosines.
        mesh: mesh of the devices; None computes on one.
        axes: axes of the mesh that B is sharded over.
        method: as of `contrastive`.
        block: as of `contrastive`.

    Returns:
        The loss, f32 [].

    Raises:
        ValueError: as of `contrastive`.
    """
    # The views of an example side by side, so that they stay on its device; and each in the place of its other view. So the right
    # answers are the diagonal, and a row meets itself where the columns' ids say so.
    mine, other = (jnp.stack(pair, axis=1).reshape(-1, a.shape[-1]) for pair in ((a, b), (b, a)))
    ids = jnp.arange(len(mine), dtype=jnp.int32)
    loss = partial(contrastive, mesh=mesh, axes=axes, method=method, block=block)
    return loss(mine, other, 1 / temperature, ids=ids, ids_b=ids ^ 1)


def negative_cosines(p: Array, z: Array) -> Array:
    """-<p_i, z_i> of unit vectors f32 [b, F], f32 [b]; no gradient reaches z (Chen and He 2021, SimSiam, equation 1)."""
    return -(p * lax.stop_gradient(z)).sum(axis=1)
