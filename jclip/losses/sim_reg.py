"""The difference of the similarities within two sides, without a matrix of all pairs."""

from jax import Array

from jclip.losses.tiles import dot


def sim_reg(za: Array, zb: Array) -> Array:
    """The mean over i != j of (<za_i, za_j> - <zb_i, zb_j>)^2 (x-clip's `sim_reg_loss`).

    With d = za - zb and s = za + zb the matrix of all differences is (d s^T + s d^T) / 2, so the sum of its squares is

        sum_kl [ (d^T d)_kl (s^T s)_kl + (s^T d)_kl (s^T d)_lk ] / 2,

    E x E numbers instead of B x B, and exact to rounding where both sides are nearly the same. B is contracted, so that XLA adds
    up the products of the devices by itself.

    Args:
        za: f32 [B, E], B at least 2, sharded on B in any way.
        zb: [B, E] like za.

    Returns:
        The loss, f32 [].

    Raises:
        ValueError: shapes differ, or there is no pair.
    """
    if za.ndim != 2 or za.shape != zb.shape or len(za) < 2:
        raise ValueError(f"sim_reg: za {za.shape} and zb {zb.shape} must be equal [B, E] of 2 rows or more")
    batch = len(za)
    d, s = za - zb, za + zb
    dd, ss, sd = (dot(x, y, (0, 0)) for x, y in ((d, d), (s, s), (s, d)))
    own = (d * s).sum(axis=1)  # |za_i|^2 - |zb_i|^2, the differences of the diagonal
    return ((dd * ss + sd * sd.T).sum() / 2 - (own * own).sum()) / (batch * (batch - 1))
