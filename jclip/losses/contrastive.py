"""The contrastive losses of a global batch: exact on any mesh, one frame for every kind and method (see `tiles`)."""

import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import Mesh

from jclip.losses.placing import split_rows, whole
from jclip.losses.tiles import Kind, Method, Targets, TilePlan, loss_of_tiles

Equal = Literal["ignore", "positive"]
Direction = Literal["both", "a_to_b"]


def contrastive(
    za: Array,
    zb: Array,
    scale: Array | float,
    bias: Array | float | None = None,
    *,
    kind: Kind = "softmax",
    mesh: Mesh | None = None,
    axes: str | Sequence[str] = ("data",),
    method: Method = "gather",
    block: int = 256,
    label_smoothing: float = 0.0,
    decoupled: bool = False,
    ids: Array | None = None,
    ids_b: Array | None = None,
    equal: Equal = "ignore",
    valid: Array | None = None,
    direction: Direction = "both",
) -> Array:
    """The loss of matching row i of one side with row i of the other, against all other rows of the global batch.

    With logits s_ij = scale * <za_i, zb_j> + bias:

        softmax   1/(2B) sum_i [ log sum_j exp s_ij + log sum_j exp s_ji - 2 s_ii ]           (InfoNCE; CLIP, figure 3)
        sigmoid   1/B sum_ij log(1 + exp(-y_ij s_ij)), y_ij = 1 where i = j, else -1          (SigLIP, algorithm 1)

    Value and gradients are those of the global batch, whatever the mesh, the method and the block. `gather` holds one whole side
    and in the backward pass its gradient, f32, on every device: 2 B E numbers; `ring` passes both around the devices and holds
    2 B E / devices, and as much in transit. Beside that there is one tile of B / devices x `block` logits; the backward pass
    computes the tiles again.

    Args:
        za: [B, E] unit vectors, f32 or bf16, sharded on B over `axes` of `mesh`.
        zb: [B, E] like za.
        scale: f32 [], factor on the cosines: 1 / temperature, not its logarithm.
        bias: f32 [], added to the logits of a sigmoid (None: 0); a softmax does not depend on it.
        kind: "softmax" or "sigmoid".
        mesh: mesh of the devices; None computes on one.
        axes: axes of the mesh that B is sharded over.
        method: "gather" or "ring".
        block: columns of the logits held at a time.
        label_smoothing: e in [0, 1). softmax: each target is 1 - e on the positive plus e spread evenly over all candidates
            (Szegedy et al. 2016, section 7); sigmoid: targets are 1 - e/2 and e/2 for 1 and 0.
        decoupled: whether a softmax leaves the right answers out of its sums over j (Yeh et al. 2022, DCL). The loss then falls
            without bound as the scale grows, so keep the scale bounded. A row without any negative gives scale - s_ii: its pull
            alone, with logits counted from the scale (see tiles.py).
        ids: i32 [B]; rows of equal id show the same thing, and are not each other's negatives. None: every row its own thing.
        ids_b: i32 [B], the ids of the rows of zb, where they are not those of za and pairs of equal id are left out.
        equal: what rows of equal id are to each other: "ignore" leaves the pair out, "positive" makes it as right an answer as
            the row's own partner (softmax: the mean over all right answers, SupCon's L_out, Khosla et al. 2020, equation 2).
        valid: [B], weight of each row as a question, in both directions; a row of weight 0 (or below, or NaN) is no candidate
            either, and whatever it holds, NaN included, changes nothing. The sums above are then weighted means. None: all are 1.
        direction: whose rows ask: "both", or of a softmax "a_to_b", 1/B sum_i [ log sum_j exp s_ij - s_ii ].

    Returns:
        The loss, f32 []; 0 where no row is valid.

    Raises:
        ValueError: shapes or dtypes differ, B does not divide, or an argument is not one of those above.

    Why is there no `local_loss`, no `gather_with_grad`? Because there is one loss: those flags of other codebases choose between
    memory and exactness, and tiles need no such choice.
    """
    axes = (axes,) if isinstance(axes, str) else tuple(axes)
    _check(za, zb, scale, bias, kind, mesh, axes, method, block, label_smoothing, decoupled, ids, ids_b, equal, valid, direction)
    za, zb = split_rows((za, zb), mesh, axes)
    scale, bias, ids, ids_b, valid = whole((scale, 0.0 if bias is None else bias, ids, ids_b, valid), mesh)
    masked = ids is not None or valid is not None
    plan = TilePlan(kind, method, mesh, axes if mesh is not None else (), block, masked, label_smoothing > 0, decoupled)
    if valid is not None:
        present = jnp.asarray(valid)[:, None] > 0
        za, zb = (jnp.where(present, z, 0) for z in (za, zb))
    ids_b = ids if ids_b is None else ids_b
    rows = _targets(kind, len(za), label_smoothing, ids, ids_b, equal, valid)
    columns = rows if ids_b is ids else _targets(kind, len(za), label_smoothing, ids_b, ids, equal, valid)
    if direction == "a_to_b":
        rows, columns = _times(2.0, rows), _times(0.0, columns)
    sides = split_rows((rows, columns), mesh, axes)
    return loss_of_tiles(plan, za, zb, jnp.asarray(scale, jnp.float32), jnp.asarray(bias, jnp.float32), sides)


def _times(factor: float, targets: Targets) -> Targets:
    """The same candidates, whose questions count for more or less."""
    return targets._replace(
        weight=factor * targets.weight, of_positive=factor * targets.of_positive, of_candidate=factor * targets.of_candidate
    )


def _targets(
    kind: Kind, batch: int, smoothing: float, ids: Array | None, others: Array | None, equal: Equal, valid: Array | None
) -> Targets:
    """The targets of one side of the global batch. Weights come out divided by 2W, of which tiles.py then knows nothing.

    `ids` are those of this side, `others` those of the other one, or None both.
    """
    index = jnp.arange(batch, dtype=jnp.int32)
    id = index if ids is None else jnp.asarray(ids)
    label = id if equal == "positive" else index
    weight = jnp.ones(batch) if valid is None else lax.stop_gradient(jnp.asarray(valid, jnp.float32))
    present = weight > 0
    weight = jnp.where(present, weight, 0)
    weight = weight / jnp.maximum(2 * weight.sum(), 1e-30)
    if kind == "sigmoid":
        return Targets(label, id, present, weight, (1 - smoothing) * weight, smoothing / 2 * weight)
    others = id if others is None else jnp.asarray(others)
    same = jnp.ones(batch) if ids is None else _count_equal(id, others, present)
    positives = same if equal == "positive" else jnp.ones(batch)
    # Of the rows present those of equal id are no candidates, but right answers are: all of these, or the row's own partner.
    candidates = present.sum() - same + (same if equal == "positive" else id == others)
    of_positive = (1 - smoothing) * weight / jnp.maximum(positives, 1)
    of_candidate = smoothing * weight / jnp.maximum(candidates, 1)
    return Targets(label, id, present, weight, of_positive, of_candidate)


def _count_equal(ids: Array, others: Array, present: Array) -> Array:
    """Number of others present with the id of each row, f32 [B]."""
    order = jnp.argsort(others)
    ordered = others[order]
    before = jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(present[order], dtype=jnp.int32)])
    first, last = jnp.searchsorted(ordered, ids, side="left"), jnp.searchsorted(ordered, ids, side="right")
    return (before[last] - before[first]).astype(jnp.float32)


def _check(
    za: Array,
    zb: Array,
    scale: Any,
    bias: Any,
    kind: str,
    mesh: Mesh | None,
    axes: tuple[str, ...],
    method: str,
    block: int,
    label_smoothing: float,
    decoupled: bool,
    ids: Array | None,
    ids_b: Array | None,
    equal: str,
    valid: Array | None,
    direction: str,
) -> None:
    if za.ndim != 2 or za.shape != zb.shape or za.dtype != zb.dtype or za.size == 0:
        raise ValueError(f"contrastive: za {za.dtype}{za.shape} and zb {zb.dtype}{zb.shape} must be equal [B, E], and not empty")
    if za.dtype not in (jnp.float32, jnp.bfloat16):
        raise ValueError(f"contrastive: embeddings are {za.dtype}; use float32 or bfloat16")
    named = (("kind", kind, Kind), ("method", method, Method), ("equal", equal, Equal), ("direction", direction, Direction))
    for name, value, allowed in named:
        if value not in get_args(allowed):
            raise ValueError(f"contrastive: {name} {value!r} is unknown; use {' or '.join(map(repr, get_args(allowed)))}")
    if bias is not None and kind == "softmax":
        raise ValueError("contrastive: a softmax does not depend on a bias; leave it None")
    if decoupled and kind == "sigmoid":
        raise ValueError("contrastive: a sigmoid has no sum to leave the right answers out of; leave decoupled False")
    if direction != "both" and kind == "sigmoid":
        raise ValueError("contrastive: the pairs of a sigmoid have no direction; leave direction 'both'")
    if ids_b is not None and ids is None:
        raise ValueError("contrastive: ids_b are the ids of the other side; give ids too")
    if ids_b is not None and equal == "positive":  # a row's own partner would have another id, and perhaps no row its own
        raise ValueError('contrastive: with equal="positive" both sides have the same ids; leave ids_b out')
    for name, number in (("scale", scale), ("bias", bias)):
        if number is not None and jnp.ndim(number):
            raise ValueError(f"contrastive: {name} has shape {jnp.shape(number)}; it is one number, []")
    if block < 1:
        raise ValueError(f"contrastive: block {block} must be at least 1")
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"contrastive: label_smoothing {label_smoothing} is a share; use 0 or more and less than 1")
    for name, rows in (("ids", ids), ("ids_b", ids_b), ("valid", valid)):
        if rows is not None and rows.shape != za.shape[:1]:
            raise ValueError(f"contrastive: {name} has shape {rows.shape}; it needs one value a row, [{len(za)}]")
    for name, values in (("ids", ids), ("ids_b", ids_b)):
        if values is not None and not jnp.issubdtype(values.dtype, jnp.integer):
            raise ValueError(f"contrastive: {name} are {values.dtype}; use integers")
    if mesh is None:
        return
    if missing := [axis for axis in axes if axis not in mesh.shape]:
        raise ValueError(f"contrastive: the mesh has no axis {missing[0]!r}; axes: {', '.join(mesh.shape)}")
    devices = math.prod(mesh.shape[axis] for axis in axes)
    if len(za) % devices:
        raise ValueError(f"contrastive: batch {len(za)} is not divisible by the {devices} devices of {axes}")
