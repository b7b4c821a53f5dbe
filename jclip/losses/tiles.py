"""Losses over all pairs of a global batch, computed tile by tile: the B x B logits are never whole.

Rows are those of za, columns those of zb; each of D devices has b = B / D of both. A tile is a block of columns beside all the
rows of a device; its logits serve both directions, once forward and once backward: 4 B^2 E multiply-adds in all. `reduce_tiles`
brings the rows of each device and the columns of all together, by gathering the columns or by passing them around a ring, and a
`Kernel` says what is computed of a tile: the loss forward, the gradients backward. With logits s, weights w, and targets t (see
`Targets`),

    loss = repulsion - sum_ij t_ij s_ij

    softmax:  repulsion = sum_i w_i log sum_j exp s_ij + sum_j w_j log sum_i exp s_ij
    sigmoid:  repulsion = sum_ij (w_i + w_j) log(1 + exp s_ij)

The weights of both sides together sum to 1, as a rule each side's to 1/2: they, and the targets with them, come normalised.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import Mesh, PartitionSpec

NEGLIGIBLE = -1e30  # a logit that counts for nothing; finite, because the difference of two infinities is NaN

Kind = Literal["softmax", "sigmoid"]
Method = Literal["gather", "ring"]


class TilePlan(NamedTuple):
    """Settings of the compiled loss."""

    kind: Kind
    method: Method
    mesh: Mesh | None
    axes: tuple[str, ...]
    block: int
    masked: bool
    """True: pairs may be left out, so that each tile is masked by which pairs are candidates."""
    smooth: bool
    """True: every candidate has a target, and not the positives alone."""
    decoupled: bool
    """True: the log-sum-exps leave the positives out."""

    def on_devices(self, fn: Callable[..., Any], in_specs: Any, out_specs: Any) -> Callable[..., Any]:
        """`fn` of the rows of one device, mapped over all of them."""
        fn = partial(fn, self)
        return fn if self.mesh is None else jax.shard_map(fn, mesh=self.mesh, in_specs=in_specs, out_specs=out_specs)


class Targets(NamedTuple):
    """Facts of the rows of a batch beside their embeddings; arrays [B], or [b] on a device.

    A row of one side and a row of the other, i and j, are positives if their labels are equal; they are candidates of each other
    if both are present and they are positives or of different id. Of all pairs

        t_ij = positive_ij (of_positive_i + of_positive_j) + candidate_ij (of_candidate_i + of_candidate_j)
    """

    label: Array
    """i32: a row of the other side with the same one is a right answer."""
    id: Array
    """i32: a row of the other side with the same one, which is no right answer, is left out."""
    present: Array
    """bool: where it is False the row takes no part on either side."""
    weight: Array
    """f32: share of the row's question in the loss. Those of a side sum to 1/2, or to 1 and 0 where one side alone asks."""
    of_positive: Array
    """f32: target of each right answer."""
    of_candidate: Array
    """f32: target of each candidate, by label smoothing."""


class TileSide(NamedTuple):
    """Rows of one side with their embeddings and, in the backward pass of a softmax, their log-sum-exps."""

    z: Array
    targets: Targets
    lse: Array | None = None


class Tile(NamedTuple):
    """A block of columns beside all the rows of a device."""

    start: Array
    columns: TileSide
    cosines: Array
    """f32 [b, block]; of a softmax less 1."""
    logits: Array
    """f32 [b, block]; NEGLIGIBLE where the two are no candidates."""
    rivals: Array
    """The logits that the log-sum-exps count, f32 [b, block]: all, or where these are decoupled those of no positive."""
    targets: Array
    """f32 [b, block]: t_ij; see Targets."""


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def loss_of_tiles(plan: TilePlan, za: Array, zb: Array, scale: Array, bias: Array, sides: tuple[Targets, Targets]) -> Array:
    return _loss_forward(plan, za, zb, scale, bias, sides)[0]


def _loss_forward(
    plan: TilePlan, za: Array, zb: Array, scale: Array, bias: Array, sides: tuple[Targets, Targets]
) -> tuple[Array, Any]:
    split, one = PartitionSpec(plan.axes), PartitionSpec()
    forward = plan.on_devices(_forward, (split, split, one, one, split), (one, split, split))
    loss, lse_a, lse_b = forward(za, zb, scale, bias, sides)
    return loss, (za, zb, scale, bias, sides, lse_a, lse_b)


def _loss_backward(plan: TilePlan, residuals: Any, cotangent: Array) -> tuple[Any, ...]:
    split, one = PartitionSpec(plan.axes), PartitionSpec()
    backward = plan.on_devices(_backward, (split, split, one, one, split, split, split, one), (split, split, one, one))
    return (*backward(*residuals, cotangent), None)


loss_of_tiles.defvjp(_loss_forward, _loss_backward)


def _forward(
    plan: TilePlan, za: Array, zb: Array, scale: Array, bias: Array, sides: tuple[Targets, Targets]
) -> tuple[Array, Array, Array]:
    """The loss f32 [], and the log-sum-exps f32 [b] of one device's own rows and columns (of a sigmoid: not used)."""
    rows, columns = sides

    def of_tile(sums: Any, tile: Tile) -> Any:
        (total, lse_a), lse_b = sums
        x = tile.logits
        if plan.kind == "sigmoid":
            weight = rows.weight[:, None] + tile.columns.targets.weight[None]
            # softplus in two parts: the second is 0 where a pair is surely positive, and nothing is lost to rounding.
            pairs = weight * jnp.log1p(jnp.exp(-jnp.abs(x))) + (weight * jnp.maximum(x, 0) - tile.targets * x)
            return (total + pairs.sum(axis=1), lse_a), lse_b
        total = total - (tile.targets * x).sum(axis=1)
        lse_a = jnp.logaddexp(lse_a, log_sum_exp(tile.rivals, axis=1))
        old = lax.dynamic_slice_in_dim(lse_b, tile.start, x.shape[1])
        new = jnp.logaddexp(old, log_sum_exp(tile.rivals, axis=0))
        return (total, lse_a), lax.dynamic_update_slice_in_dim(lse_b, new, tile.start, axis=0)

    nothing = jnp.full(len(za), NEGLIGIBLE)
    add_columns = partial(_each_tile, plan, of_tile, mine=TileSide(za, rows), scale=scale, bias=bias)
    kernel = Kernel(((jnp.zeros(len(za)), nothing), nothing), add_columns, LOG_SUM_EXPS)
    (total, lse_a), lse_b = reduce_tiles(plan.axes, plan.method, kernel, TileSide(zb, columns))
    if plan.decoupled:  # a row without rivals has an empty sum: 0 in the loss, and its rivals are NEGLIGIBLE in the gradient
        lse_a, lse_b = (jnp.where(lse > NEGLIGIBLE / 2, lse, 0) for lse in (lse_a, lse_b))
    if plan.kind == "softmax":
        total = total + rows.weight * lse_a + columns.weight * lse_b
    return _sum(plan, total.sum()), lse_a, lse_b


def _backward(
    plan: TilePlan,
    za: Array,
    zb: Array,
    scale: Array,
    bias: Array,
    sides: tuple[Targets, Targets],
    lse_a: Array,
    lse_b: Array,
    cotangent: Array,
) -> tuple[Array, Array, Array, Array]:
    """The gradients of one device's rows of za and zb, of the scale and of the bias.

    With the slope g_ij of the loss in s_ij, dza = scale g zb, dzb = scale g^T za, dscale = sum_ij g_ij <za_i, zb_j> and
    dbias = sum_ij g_ij (0 for a softmax, whose cosines may therefore be less 1).
    """

    def of_tile(sums: Any, tile: Tile) -> Any:
        (dza, dscale, dbias), dzb = sums
        g = _slope(plan, tile, sides[0].weight, lse_a)
        dscale = dscale + (g * tile.cosines).sum(axis=1)  # of g in f32: where all cosines are alike, bf16 leaves no digit
        if plan.kind == "sigmoid":
            dbias = dbias + g.sum(axis=1)
        g = g.astype(za.dtype)  # after the difference is taken: bf16 cannot distinguish p from 1 where a pair matches
        dza = dza + dot(g, tile.columns.z, (1, 0))
        old = lax.dynamic_slice_in_dim(dzb, tile.start, g.shape[1])
        dzb = lax.dynamic_update_slice_in_dim(dzb, old + dot(g, za, (0, 0)), tile.start, axis=0)
        return (dza, dscale, dbias), dzb

    nothing = (jnp.zeros(za.shape), jnp.zeros(len(za)), jnp.zeros(len(za))), jnp.zeros(zb.shape)
    add_columns = partial(_each_tile, plan, of_tile, mine=TileSide(za, sides[0]), scale=scale, bias=bias)
    kernel = Kernel(nothing, add_columns, SUMS)
    (dza, dscale, dbias), dzb = reduce_tiles(plan.axes, plan.method, kernel, TileSide(zb, sides[1], lse_b))
    dza, dzb = (cotangent * scale * d for d in (dza, dzb))
    dscale, dbias = (cotangent * _sum(plan, d.sum()) for d in (dscale, dbias))
    return dza.astype(za.dtype), dzb.astype(zb.dtype), dscale, dbias


def _slope(plan: TilePlan, tile: Tile, weight: Array, lse_a: Array) -> Array:
    """The gradient of the loss in each logit of a tile, f32 [b, block]."""
    x, targets = tile.logits, tile.targets
    mine, other = weight[:, None], tile.columns.targets.weight[None]
    if plan.kind == "softmax":
        assert tile.columns.lse is not None
        return mine * jnp.exp(tile.rivals - lse_a[:, None]) + other * jnp.exp(tile.rivals - tile.columns.lse[None]) - targets
    both = mine + other
    rest = both * jax.nn.sigmoid(-jnp.abs(x))
    return jnp.where(x > 0, (both - targets) - rest, rest - targets)


class Combine(NamedTuple):
    """Reduction of the accumulators of several devices, of the same columns, to one."""

    merge: Callable[[Array, Array], Array]
    """Accumulators [b, ...] of two devices -> that of both; for a ring."""
    reduce_scatter: Callable[[Array, tuple[str, ...]], Array]
    """(accumulator of one device for all columns [B, ...], axes of the mesh) -> that of all devices for its own [b, ...]."""


class Kernel(NamedTuple):
    """A pass over all pairs of a global batch: accumulators for the rows and for the columns of a device, and how pairs enter."""

    init: tuple[Any, Array]
    """(for this device's rows, a tree of arrays; for its columns, an array [b, ...]) before any pair is seen, such as zeros."""
    add_columns: Callable[..., Any]
    """((for rows, for columns), columns=) -> both with the pairs of this device's rows and of these columns."""
    combine: Combine
    """Accumulators of columns come from several devices; those of rows no other device knows of."""


def reduce_tiles(axes: tuple[str, ...], method: Method, kernel: Kernel, columns: Any) -> tuple[Any, Array]:
    """The sums of a kernel over all pairs of this device's rows and the columns of all devices; called inside shard_map.

    Args:
        axes: those of the mesh that rows and columns are sharded over; none: there is one device.
        method: "gather" or "ring".
        kernel: what is added up.
        columns: those of this device, a tree of arrays [b, ...].

    Returns:
        For this device's rows, over all columns; for this device's columns [b, ...], over all rows.
    """
    if not axes:
        return kernel.add_columns(kernel.init, columns=columns)
    init = varying(kernel.init, axes)
    if method == "gather":
        return _reduce_gathered(axes, kernel._replace(init=init), columns)
    return _reduce_ring(axes, kernel._replace(init=init), columns)


def _reduce_gathered(axes: tuple[str, ...], kernel: Kernel, columns: Any) -> tuple[Any, Array]:
    """Columns [b, ...] of each device -> [B, ...] on all: each adds up for all columns, of which it gets its own back."""
    for_rows, for_columns = kernel.init
    for_columns = jnp.tile(for_columns, (lax.axis_size(axes),) + (1,) * (for_columns.ndim - 1))
    columns = jax.tree.map(lambda x: lax.all_gather(x, axes, tiled=True), columns)
    for_rows, for_columns = kernel.add_columns((for_rows, for_columns), columns=columns)
    return for_rows, kernel.combine.reduce_scatter(for_columns, axes)


def _reduce_ring(axes: tuple[str, ...], kernel: Kernel, columns: Any) -> tuple[Any, Array]:
    """Columns [b, ...] travel from device to device, and with them what was added up for them.

    The columns that each of four devices works on:

        device     0  1  2  3
        hop 0      0  1  2  3     each begins with its own columns
        hop 1      3  0  1  2     columns move to the next device, and with them their sums
        hop 2      2  3  0  1
        hop 3      1  2  3  0     the sums of columns c are on device c - 1: one more move brings them home

    So a device holds two sets of b columns, those in work and those that arrive, and three of sums for columns: those being
    added up, those that arrive, and their union. The sums are one hop behind their columns, for they are sent on while the
    tiles are computed. All pairs are met once.
    """
    devices = lax.axis_size(axes)
    ring = [(device, (device + 1) % devices) for device in range(devices)]
    for_rows, nothing = kernel.init

    def pass_on(tree: Any) -> Any:
        return jax.tree.map(lambda x: lax.ppermute(x, axes, ring), tree)

    def hop(carry: Any, _: None) -> tuple[Any, None]:
        (for_rows, for_columns), columns = carry
        # While these columns are worked on, the next ones and what the others have added up for these may travel.
        following, arriving = pass_on(columns), pass_on(for_columns)
        for_rows, added = kernel.add_columns((for_rows, nothing), columns=columns)
        return ((for_rows, kernel.combine.merge(arriving, added)), following), None

    ((for_rows, for_columns), _), _ = lax.scan(hop, (kernel.init, columns), length=devices)
    return for_rows, pass_on(for_columns)


def _all_log_sum_exps(lse: Array, axes: tuple[str, ...]) -> Array:
    """The log-sum-exps over all devices of this device's own columns f32 [b], from those of each of all columns [B]."""
    top, size = lax.pmax(lse, axes), len(lse) // lax.axis_size(axes)
    mine = lax.dynamic_slice_in_dim(top, lax.axis_index(axes) * size, size)
    return jnp.log(lax.psum_scatter(jnp.exp(lse - top), axes, tiled=True)) + mine


def _all_sums(x: Array, axes: tuple[str, ...]) -> Array:
    """The sums over all devices of what belongs to this device's own columns [b, ...], from those of each of all [B, ...]."""
    return lax.psum_scatter(x, axes, tiled=True)


SUMS = Combine(jnp.add, _all_sums)
LOG_SUM_EXPS = Combine(jnp.logaddexp, _all_log_sum_exps)


def _each_tile(
    plan: TilePlan,
    of_tile: Callable[[Any, Tile], Any],
    sums: Any,
    *,
    mine: TileSide,
    columns: TileSide,
    scale: Array,
    bias: Array,
) -> Any:
    """Accumulators for rows and columns, after the tiles of these columns, one after the other.

    Where the block does not divide, the last one is moved back until it fits, and what it repeats counts for nothing.
    """
    n = len(columns.z)
    size = min(plan.block, n)

    def step(sums: Any, i: Array) -> tuple[Any, None]:
        start = jnp.minimum(i * size, n - size)
        part = jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, start, size), columns)
        fresh = None if n % size == 0 else start + jnp.arange(size) >= i * size
        return of_tile(sums, _tile(plan, start, mine, part, fresh, scale, bias)), None

    return lax.scan(step, sums, jnp.arange(-(-n // size)))[0]


def _tile(
    plan: TilePlan, start: Array, mine: TileSide, columns: TileSide, fresh: Array | None, scale: Array, bias: Array
) -> Tile:
    # A constant that is taken from all logits leaves a softmax's loss as it is, for the targets of a row add up to its weight. It
    # is the scale, which makes those of a match nearly 0, where f32 is finest.
    cosines = dot(mine.z, columns.z, (1, 1))
    cosines = cosines - 1 if plan.kind == "softmax" else cosines
    logits = scale * cosines if plan.kind == "softmax" else scale * cosines + bias
    a, b = jax.tree.map(lambda x: x[:, None], mine.targets), jax.tree.map(lambda x: x[None], columns.targets)
    positive = a.label == b.label
    candidate = None
    if plan.masked:
        candidate = a.present & b.present & (positive | (a.id != b.id))
    if fresh is not None:
        candidate = fresh[None] if candidate is None else candidate & fresh[None]
    if candidate is not None:
        positive = positive & candidate
        logits = jnp.where(candidate, logits, NEGLIGIBLE)
    targets = jnp.where(positive, a.of_positive + b.of_positive, 0.0)
    if plan.smooth:
        smooth = a.of_candidate + b.of_candidate
        targets = targets + (smooth if candidate is None else jnp.where(candidate, smooth, 0.0))
    rivals = jnp.where(positive, NEGLIGIBLE, logits) if plan.decoupled else logits
    return Tile(start, columns, cosines, logits, rivals, targets)


def log_sum_exp(x: Array, axis: int) -> Array:
    top = x.max(axis=axis, keepdims=True)
    return jnp.log(jnp.exp(x - top).sum(axis=axis)) + top.squeeze(axis)


def dot(x: Array, y: Array, contract: tuple[int, int]) -> Array:
    """x and y contracted over one axis each, accumulated in f32; f32 inputs are multiplied as such on every platform."""
    dimensions = (((contract[0],), (contract[1],)), ((), ()))
    return lax.dot_general(x, y, dimensions, precision=lax.Precision.HIGHEST, preferred_element_type=jnp.float32)


def varying(tree: Any, axes: tuple[str, ...]) -> Any:
    """A tree of constants as one of arrays that may differ between devices, which the carry of a loop has to be."""
    return jax.tree.map(lambda x: lax.pcast(x, axes, to="varying"), tree) if axes else tree


def _sum(plan: TilePlan, x: Array) -> Array:
    return lax.psum(x, plan.axes) if plan.axes else x
