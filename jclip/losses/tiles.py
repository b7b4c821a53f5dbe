"""Losses over all pairs of a global batch, computed tile by tile: the B x B logits are never whole.

A tile is a block of columns beside all the rows of a device; its logits serve both directions, once forward and once backward:
4 B^2 E multiply-adds in all. `meet` brings rows and columns together, by gathering the columns or by passing them around a ring.
With logits s, weights w, and `pull` the targets (see `Targets`),

    loss = repulsion - sum_ij pull_ij s_ij

    softmax:  repulsion = sum_i w_i log sum_j exp s_ij + sum_j w_j log sum_i exp s_ij
    sigmoid:  repulsion = sum_ij (w_i + w_j) log(1 + exp s_ij)

The weights of each side, and the pulls with them, are already divided by twice their sum where they come from.
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
    """True: pairs may be left out, and candidates are told from the others."""
    smooth: bool
    """True: every pair pulls, and not the positives alone."""
    decoupled: bool
    """True: the log-sum-exps leave the positives out."""

    def on_devices(self, fn: Callable[..., Any], in_specs: Any, out_specs: Any) -> Callable[..., Any]:
        """`fn` of the rows of one device, mapped over all of them."""
        fn = partial(fn, self)
        return fn if self.mesh is None else jax.shard_map(fn, mesh=self.mesh, in_specs=in_specs, out_specs=out_specs)


class Targets(NamedTuple):
    """Facts of the rows of a batch beside their embeddings; arrays [B], or [b] on a device.

    A row of one side and a row of the other, i and j, are positives if their labels are equal; they are candidates of each other
    if both are present and they are positives or of different `thing`. Of all pairs

        pull_ij = positive_ij (own_i + own_j) + candidate_ij (spread_i + spread_j)
    """

    label: Array
    """i32: a row of the other side with the same one is a right answer."""
    thing: Array
    """i32: a row of the other side with the same one, which is no right answer, is left out."""
    present: Array
    """bool: where it is False the row takes no part on either side."""
    weight: Array
    """f32: share of the row's question in the loss; those of a side sum to 1/2."""
    own: Array
    """f32: pull towards each right answer."""
    spread: Array
    """f32: pull towards each candidate, of label smoothing."""


class TileSide(NamedTuple):
    """Rows of one side with their embeddings and, in the backward pass of a softmax, their log-sum-exps."""

    z: Array
    rows: Targets
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
    pull: Array
    """f32 [b, block]; see Rows."""


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def loss_of_tiles(plan: TilePlan, za: Array, zb: Array, scale: Array, bias: Array, rows: tuple[Targets, Targets]) -> Array:
    return _loss_forward(plan, za, zb, scale, bias, rows)[0]


def _loss_forward(
    plan: TilePlan, za: Array, zb: Array, scale: Array, bias: Array, rows: tuple[Targets, Targets]
) -> tuple[Array, Any]:
    split, one = PartitionSpec(plan.axes), PartitionSpec()
    forward = plan.on_devices(_forward, (split, split, one, one, split), (one, split, split))
    loss, lse_a, lse_b = forward(za, zb, scale, bias, rows)
    return loss, (za, zb, scale, bias, rows, lse_a, lse_b)


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

    def visit(found: Any, tile: Tile) -> Any:
        (total, lse_a), lse_b = found
        x = tile.logits
        if plan.kind == "sigmoid":
            push = rows.weight[:, None] + tile.columns.rows.weight[None]
            # softplus in two parts: the second is 0 where a pair is surely positive, and nothing is lost to rounding.
            pairs = push * jnp.log1p(jnp.exp(-jnp.abs(x))) + (push * jnp.maximum(x, 0) - tile.pull * x)
            return (total + pairs.sum(axis=1), lse_a), lse_b
        total = total - (tile.pull * x).sum(axis=1)
        lse_a = jnp.logaddexp(lse_a, log_sum_exp(tile.rivals, axis=1))
        old = lax.dynamic_slice_in_dim(lse_b, tile.start, x.shape[1])
        new = jnp.logaddexp(old, log_sum_exp(tile.rivals, axis=0))
        return (total, lse_a), lax.dynamic_update_slice_in_dim(lse_b, new, tile.start, axis=0)

    nothing = jnp.full(len(za), NEGLIGIBLE)
    found = (jnp.zeros(len(za)), nothing), nothing
    chunk = partial(_each_tile, plan, visit, mine=TileSide(za, rows), scale=scale, bias=bias)
    join = partial(join_log_sum_exps, plan.axes)
    (total, lse_a), lse_b = meet(plan.axes, plan.method, chunk, found, join, jnp.logaddexp, TileSide(zb, columns))
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

    def visit(found: Any, tile: Tile) -> Any:
        (dza, dscale, dbias), dzb = found
        g = _slope(plan, tile, sides[0].weight, lse_a)
        dscale = dscale + (g * tile.cosines).sum(axis=1)  # of g in f32: where all cosines are alike, bf16 leaves no digit
        if plan.kind == "sigmoid":
            dbias = dbias + g.sum(axis=1)
        g = g.astype(za.dtype)  # after the difference is taken: bf16 cannot tell p from 1 where a pair matches
        dza = dza + dot(g, tile.columns.z, (1, 0))
        old = lax.dynamic_slice_in_dim(dzb, tile.start, g.shape[1])
        dzb = lax.dynamic_update_slice_in_dim(dzb, old + dot(g, za, (0, 0)), tile.start, axis=0)
        return (dza, dscale, dbias), dzb

    found = (jnp.zeros(za.shape), jnp.zeros(len(za)), jnp.zeros(len(za))), jnp.zeros(zb.shape)
    chunk = partial(_each_tile, plan, visit, mine=TileSide(za, sides[0]), scale=scale, bias=bias)
    other = TileSide(zb, sides[1], lse_b)
    (dza, dscale, dbias), dzb = meet(plan.axes, plan.method, chunk, found, partial(join_sums, plan.axes), jnp.add, other)
    dza, dzb = (cotangent * scale * d for d in (dza, dzb))
    dscale, dbias = (cotangent * _sum(plan, d.sum()) for d in (dscale, dbias))
    return dza.astype(za.dtype), dzb.astype(zb.dtype), dscale, dbias


def _slope(plan: TilePlan, tile: Tile, weight: Array, lse_a: Array) -> Array:
    """The gradient of the loss in each logit of a tile, f32 [b, block]."""
    x, pull = tile.logits, tile.pull
    mine, other = weight[:, None], tile.columns.rows.weight[None]
    if plan.kind == "softmax":
        assert tile.columns.lse is not None
        return mine * jnp.exp(tile.rivals - lse_a[:, None]) + other * jnp.exp(tile.rivals - tile.columns.lse[None]) - pull
    push = mine + other
    rest = push * jax.nn.sigmoid(-jnp.abs(x))
    return jnp.where(x > 0, (push - pull) - rest, rest - pull)


def meet(
    axes: tuple[str, ...],
    method: Method,
    chunk: Callable[..., Any],
    found: tuple[Any, Array],
    join: Callable[[Array], Array],
    merge: Callable[[Array, Array], Array],
    other: Any,
) -> tuple[Any, Array]:
    """Lets the rows of every device meet the columns of all of them.

    Args:
        axes: those of the mesh that rows and columns are sharded over; none: there is one device.
        method: "gather" or "ring".
        chunk: (found, columns=) -> found: adds what the rows of this device and some columns make together; found is a pair, of
            what was added up for the rows, and for the columns.
        found: both before any pair is seen, such as zeros, for the rows and for as many columns as this device has.
        join: from what every device has found of all columns to what is known of this device's own, for "gather".
        merge: of what two devices have found of the same columns, for "ring".
        other: the columns of this device, a tree of arrays [b, ...].
    """
    if not axes:
        return chunk(found, columns=other)
    devices = lax.axis_size(axes)
    if method == "gather":
        on_rows, on_columns = found
        found = on_rows, jnp.tile(on_columns, (devices,) + (1,) * (on_columns.ndim - 1))
        columns = jax.tree.map(lambda x: lax.all_gather(x, axes, tiled=True), other)
        on_rows, on_columns = chunk(varying(found, axes), columns=columns)
        return on_rows, join(on_columns)

    # The columns that each of four devices works on:
    #
    #     device     0  1  2  3
    #     hop 0      0  1  2  3     each begins with its own columns
    #     hop 1      3  0  1  2     columns move to the next device, and with them what was found of them
    #     hop 2      2  3  0  1
    #     hop 3      1  2  3  0     what was found of columns c is on device c - 1: one more move brings it home
    #
    # So a device holds two sets of b columns, those in work and those that arrive, and three of what was found of columns; what
    # was found is one hop behind its columns, for it is sent on while the tiles are computed. All pairs are met once.
    def pass_on(tree: Any) -> Any:
        ring = [(device, (device + 1) % devices) for device in range(devices)]
        return jax.tree.map(lambda x: lax.ppermute(x, axes, ring), tree)

    nothing = varying(found, axes)

    def hop(carry: Any, _: None) -> tuple[Any, None]:
        (on_rows, on_columns), columns = carry
        # While these columns are worked on, the next ones and what the others have found of these may travel.
        following, arriving = pass_on(columns), pass_on(on_columns)
        on_rows, here = chunk((on_rows, nothing[1]), columns=columns)
        return ((on_rows, merge(arriving, here)), following), None

    ((on_rows, on_columns), _), _ = lax.scan(hop, (nothing, other), length=devices)
    return on_rows, pass_on(on_columns)


def join_log_sum_exps(axes: tuple[str, ...], lse: Array) -> Array:
    """The log-sum-exps over all devices of this device's own columns f32 [b], from those of each of all columns [B]."""
    top, size = lax.pmax(lse, axes), len(lse) // lax.axis_size(axes)
    mine = lax.dynamic_slice_in_dim(top, lax.axis_index(axes) * size, size)
    return jnp.log(lax.psum_scatter(jnp.exp(lse - top), axes, tiled=True)) + mine


def join_sums(axes: tuple[str, ...], x: Array) -> Array:
    """The sums over all devices of what belongs to this device's own columns [b, ...], from those of each of all [B, ...]."""
    return lax.psum_scatter(x, axes, tiled=True)


def _each_tile(
    plan: TilePlan, visit: Callable[[Any, Tile], Any], found: Any, *, mine: TileSide, columns: TileSide, scale: Array, bias: Array
) -> Any:
    """Visits the tiles of these columns, one after the other.

    Where the block does not divide, the last one is moved back until it fits, and what it repeats counts for nothing.
    """
    n = len(columns.z)
    size = min(plan.block, n)

    def step(found: Any, i: Array) -> tuple[Any, None]:
        start = jnp.minimum(i * size, n - size)
        part = jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, start, size), columns)
        fresh = None if n % size == 0 else start + jnp.arange(size) >= i * size
        return visit(found, _tile(plan, start, mine, part, fresh, scale, bias)), None

    return lax.scan(step, found, jnp.arange(-(-n // size)))[0]


def _tile(
    plan: TilePlan, start: Array, mine: TileSide, columns: TileSide, fresh: Array | None, scale: Array, bias: Array
) -> Tile:
    # A constant that is taken from all logits leaves a softmax's loss as it is, for the pulls of a row add up to its weight. It
    # is the scale, which makes those of a match nearly 0, where f32 is finest.
    cosines = dot(mine.z, columns.z, (1, 1))
    cosines = cosines - 1 if plan.kind == "softmax" else cosines
    logits = scale * cosines if plan.kind == "softmax" else scale * cosines + bias
    a, b = jax.tree.map(lambda x: x[:, None], mine.rows), jax.tree.map(lambda x: x[None], columns.rows)
    positive = a.label == b.label
    candidate = None
    if plan.masked:
        candidate = a.present & b.present & (positive | (a.thing != b.thing))
    if fresh is not None:
        candidate = fresh[None] if candidate is None else candidate & fresh[None]
    if candidate is not None:
        positive = positive & candidate
        logits = jnp.where(candidate, logits, NEGLIGIBLE)
    pull = jnp.where(positive, a.own + b.own, 0.0)
    if plan.smooth:
        spread = a.spread + b.spread
        pull = pull + (spread if candidate is None else jnp.where(candidate, spread, 0.0))
    rivals = jnp.where(positive, NEGLIGIBLE, logits) if plan.decoupled else logits
    return Tile(start, columns, cosines, logits, rivals, pull)


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
