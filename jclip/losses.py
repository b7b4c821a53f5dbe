"""The contrastive loss of a global batch: exact on any mesh, computed block by block, the B x B logits never whole."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import Mesh, PartitionSpec

NEGLIGIBLE = -1e30  # a logit that counts for nothing; finite, because the difference of two infinities is NaN


def contrastive(
    za: Array,
    zb: Array,
    scale: Array | float,
    bias: Array | float | None = None,
    *,
    kind: Literal["softmax"] = "softmax",
    mesh: Mesh | None = None,
    axes: tuple[str, ...] = ("data",),
    method: Literal["gather"] = "gather",
    block: int = 1024,
) -> Array:
    """The symmetric cross-entropy of matching row i of one side with row i of the other (InfoNCE; CLIP, figure 3).

    With logits s_ij = scale * <za_i, zb_j>:

        loss = 1/(2B) sum_i [ log sum_j exp s_ij  +  log sum_j exp s_ji  -  2 s_ii ]

    The value and the gradients are those of the global batch, whatever the mesh and the block. One side is gathered; each device
    goes over it in blocks of `block` columns. A block serves both directions, and the backward pass computes it again instead of
    keeping it: 4 B^2 E multiply-adds in all, 2 B E numbers and one block of (B / devices) x block on a device.

    Args:
        za: [B, E] unit vectors, f32 or bf16, sharded on B over `axes` of `mesh`.
        zb: [B, E] like za.
        scale: f32 [], factor on the cosines: 1 / temperature, not its logarithm.
        bias: must be None: a softmax does not depend on it.
        kind: "softmax".
        mesh: mesh of the devices; None computes on one.
        axes: axes of the mesh that B is sharded over.
        method: "gather".
        block: columns of the logits held at a time.

    Returns:
        The loss, f32 [].

    Raises:
        ValueError: shapes or dtypes differ, B does not divide, or an argument is not one of those above.

    Why is there no `local_loss`, no `gather_with_grad`? Because there is one loss: those flags of other codebases choose between
    memory and exactness, and blocks need no such choice.
    """
    _check(za, zb, bias, kind, mesh, axes, method, block)
    return _softmax(Layout(mesh, axes if mesh is not None else (), block), za, zb, jnp.asarray(scale, jnp.float32))


class Layout(NamedTuple):
    """How the batch lies on the devices, and how many columns are computed at a time."""

    mesh: Mesh | None
    axes: tuple[str, ...]
    block: int

    def on_devices(self, fn: Callable[..., Any], in_specs: Any, out_specs: Any) -> Callable[..., Any]:
        """`fn` of the rows of one device, mapped over all of them."""
        fn = partial(fn, self.axes, self.block)
        return fn if self.mesh is None else jax.shard_map(fn, mesh=self.mesh, in_specs=in_specs, out_specs=out_specs)

    @property
    def rows(self) -> PartitionSpec:
        """Sharded on the leading axis."""
        return PartitionSpec(self.axes)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _softmax(layout: Layout, za: Array, zb: Array, scale: Array) -> Array:
    return _softmax_forward(layout, za, zb, scale)[0]


def _softmax_forward(layout: Layout, za: Array, zb: Array, scale: Array) -> tuple[Array, tuple[Array, ...]]:
    rows = layout.rows
    forward = layout.on_devices(_forward, (rows, rows, PartitionSpec()), (PartitionSpec(), rows, rows))
    loss, lse_a, lse_b = forward(za, zb, scale)
    return loss, (za, zb, scale, lse_a, lse_b)


def _softmax_backward(layout: Layout, residuals: tuple[Array, ...], cotangent: Array) -> tuple[Array, ...]:
    rows, one = layout.rows, PartitionSpec()
    backward = layout.on_devices(_backward, (rows, rows, one, rows, rows, one), (rows, rows, one))
    return backward(*residuals, cotangent)


_softmax.defvjp(_softmax_forward, _softmax_backward)


def _forward(axes: tuple[str, ...], block: int, za: Array, zb: Array, scale: Array) -> tuple[Array, Array, Array]:
    """On one device: the loss f32 [], and the log-sum-exps of its own rows and columns f32 [b]."""
    columns = _gather(zb, axes)
    b, n = len(za), len(columns)
    own = _own_rows(axes, b)

    def step(carry: tuple[Array, ...], i: Array) -> tuple[tuple[Array, ...], None]:
        positives, row_lse, column_max, column_sum = carry
        start, cosines, logits = _logits(za, columns, scale, block, i)
        # Taken from the block and not as a dot of their own, whose last bit would differ: the loss of equal embeddings is ln B.
        positives = jnp.maximum(positives, _pick(cosines, own - start))
        row_lse = jnp.logaddexp(row_lse, jax.nn.logsumexp(logits, axis=1))
        top = logits.max(axis=0)
        # Columns that the previous block has done hold NEGLIGIBLE here: they keep what that block has found.
        done = top <= NEGLIGIBLE / 2
        total = jnp.exp(logits - top[None]).sum(axis=0)
        column_max = _write(column_max, top, done, start)
        column_sum = _write(column_sum, total, done, start)
        return (positives, row_lse, column_max, column_sum), None

    empty = jnp.full(b, NEGLIGIBLE), jnp.full(b, NEGLIGIBLE), jnp.full(n, NEGLIGIBLE), jnp.zeros(n)
    (positives, lse_a, column_max, column_sum), _ = lax.scan(step, _varying(empty, axes), jnp.arange(_blocks(n, block)))
    top = lax.pmax(column_max, axes) if axes else column_max
    lse_b = jnp.log(_scatter_sum(column_sum * jnp.exp(column_max - top), axes)) + _own(top, axes, b)
    loss = jnp.sum(lse_a + lse_b - 2 * scale * (positives - 1)) / (2 * n)
    return (lax.psum(loss, axes) if axes else loss), lse_a, lse_b


def _backward(
    axes: tuple[str, ...], block: int, za: Array, zb: Array, scale: Array, lse_a: Array, lse_b: Array, cotangent: Array
) -> tuple[Array, Array, Array]:
    """On one device: the gradients of its rows of za and zb, and of the scale.

    With p_ij = exp(s_ij - lse_a_i), q_ij = exp(s_ij - lse_b_j) and g_ij = (p_ij + q_ij - 2 [i = j]) / (2B):
    dza = scale g zb, dzb = scale g^T za and dscale = sum_ij g_ij <za_i, zb_j> = sum_i <za_i, (g zb)_i>.
    """
    columns, column_lse = _gather(zb, axes), _gather(lse_b, axes)
    b, n = len(za), len(columns)
    own = _own_rows(axes, b)

    def step(carry: tuple[Array, Array], i: Array) -> tuple[tuple[Array, Array], None]:
        dza, dcolumns = carry
        start, _, logits = _logits(za, columns, scale, block, i)
        size = logits.shape[1]
        lse = lax.dynamic_slice_in_dim(column_lse, start, size)
        g = (jnp.exp(logits - lse_a[:, None]) + jnp.exp(logits - lse[None])) / (2 * n)
        # The diagonal leaves in f32: once pairs match, g is the small difference of numbers that bf16 does not tell apart.
        match = (own[:, None] == start + jnp.arange(size)[None]) & (logits > NEGLIGIBLE / 2)
        g = (g - jnp.where(match, 1 / n, 0.0)).astype(za.dtype)
        dza = dza + _dot(g, lax.dynamic_slice_in_dim(columns, start, size), (1, 0))
        old = lax.dynamic_slice_in_dim(dcolumns, start, size)
        dcolumns = lax.dynamic_update_slice_in_dim(dcolumns, old + _dot(g, za, (0, 0)), start, axis=0)
        return (dza, dcolumns), None

    empty = jnp.zeros(za.shape), jnp.zeros(columns.shape)
    (dza, dcolumns), _ = lax.scan(step, _varying(empty, axes), jnp.arange(_blocks(n, block)))
    dzb = _scatter_sum(dcolumns, axes)
    dscale = cotangent * jnp.sum(dza * za.astype(jnp.float32))
    dza, dzb = cotangent * scale * dza, cotangent * scale * dzb
    return dza.astype(za.dtype), dzb.astype(zb.dtype), (lax.psum(dscale, axes) if axes else dscale)


def _logits(za: Array, columns: Array, scale: Array, block: int, i: Array) -> tuple[Array, Array, Array]:
    """The start of block i of the columns, its cosines and its logits, both f32 [b, block].

    Where the block does not divide, the last one is moved back until it fits, and the logits it repeats are NEGLIGIBLE.
    """
    n = len(columns)
    size = min(block, n)
    start = jnp.minimum(i * size, n - size)
    # Less `scale`, which changes neither loss nor gradient: the cosine of a match is near 1, and f32 is finest near 0.
    cosines = _dot(za, lax.dynamic_slice_in_dim(columns, start, size), (1, 1))
    logits = scale * (cosines - 1)
    if n % size:
        new = start + jnp.arange(size) >= i * size
        logits = jnp.where(new[None], logits, NEGLIGIBLE)
    return start, cosines, logits


def _pick(cosines: Array, column: Array) -> Array:
    """The cosine of each row in its column [b], NEGLIGIBLE where the block does not hold that column."""
    inside = (column >= 0) & (column < cosines.shape[1])
    picked = jnp.take_along_axis(cosines, jnp.where(inside, column, 0)[:, None], axis=1)[:, 0]
    return jnp.where(inside, picked, NEGLIGIBLE)


def _blocks(n: int, block: int) -> int:
    return -(-n // min(block, n))


def _dot(x: Array, y: Array, contract: tuple[int, int]) -> Array:
    """x and y contracted over one axis each, accumulated in f32; f32 inputs are multiplied as such on every platform."""
    dimensions = (((contract[0],), (contract[1],)), ((), ()))
    return lax.dot_general(x, y, dimensions, precision=lax.Precision.HIGHEST, preferred_element_type=jnp.float32)


def _write(whole: Array, part: Array, keep: Array, start: Array) -> Array:
    old = lax.dynamic_slice_in_dim(whole, start, len(part))
    return lax.dynamic_update_slice_in_dim(whole, jnp.where(keep, old, part), start, axis=0)


def _varying(tree: Any, axes: tuple[str, ...]) -> Any:
    return jax.tree.map(lambda x: lax.pcast(x, axes, to="varying"), tree) if axes else tree


def _gather(x: Array, axes: tuple[str, ...]) -> Array:
    return lax.all_gather(x, axes, tiled=True) if axes else x


def _scatter_sum(x: Array, axes: tuple[str, ...]) -> Array:
    return lax.psum_scatter(x, axes, tiled=True) if axes else x


def _own(x: Array, axes: tuple[str, ...], b: int) -> Array:
    """The slice [b] of x [B] that belongs to this device."""
    return lax.dynamic_slice_in_dim(x, lax.axis_index(axes) * b, b) if axes else x


def _own_rows(axes: tuple[str, ...], b: int) -> Array:
    """The indices [b], in the global batch, of the rows of this device."""
    return jnp.arange(b) + (lax.axis_index(axes) * b if axes else 0)


def _check(
    za: Array, zb: Array, bias: object, kind: str, mesh: Mesh | None, axes: tuple[str, ...], method: str, block: int
) -> None:
    if za.ndim != 2 or za.shape != zb.shape or za.dtype != zb.dtype:
        raise ValueError(f"contrastive: za {za.dtype}{za.shape} and zb {zb.dtype}{zb.shape} must be equal [B, E]")
    if za.dtype not in (jnp.float32, jnp.bfloat16):
        raise ValueError(f"contrastive: embeddings are {za.dtype}; use float32 or bfloat16")
    if kind != "softmax":
        raise ValueError(f"contrastive: kind {kind!r} is unknown; use 'softmax'")
    if method != "gather":
        raise ValueError(f"contrastive: method {method!r} is unknown; use 'gather'")
    if bias is not None:
        raise ValueError("contrastive: a softmax does not depend on a bias; leave it None")
    if block < 1:
        raise ValueError(f"contrastive: block {block} must be at least 1")
    if mesh is None:
        return
    if missing := [axis for axis in axes if axis not in mesh.shape]:
        raise ValueError(f"contrastive: the mesh has no axis {missing[0]!r}; axes: {', '.join(mesh.shape)}")
    devices = 1
    for axis in axes:
        devices *= mesh.shape[axis]
    if len(za) % devices:
        raise ValueError(f"contrastive: batch {len(za)} is not divisible by the {devices} devices of {axes}")
