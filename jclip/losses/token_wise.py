"""The token-wise contrastive loss of a global batch (FILIP): every token finds its best match, in tiles, exact on any mesh."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import Mesh, PartitionSpec

from jclip.losses.placing import split_rows, whole
from jclip.losses.tiles import LOG_SUM_EXPS, NEGLIGIBLE, SUMS, Kernel, Method, dot, log_sum_exp, reduce_tiles


def token_wise(
    ta: Array,
    tb: Array,
    mask_a: Array,
    mask_b: Array,
    scale: Array | float,
    *,
    mesh: Mesh | None = None,
    axes: str | Sequence[str] = ("data",),
    method: Method = "gather",
    block: int = 16,
    decoupled: bool = False,
) -> Array:
    """The loss of matching example i of one side with example i of the other by late interaction (Yao et al. 2022, FILIP).

    With the real tokens u_k of ta_i and v_r of tb_j, two similarities that differ, one a direction:

        s_ij = mean_k max_r <u_k, v_r>,    t_ij = mean_r max_k <u_k, v_r>
        loss = 1/(2B) sum_i [ log sum_j exp(scale s_ij) + log sum_j exp(scale t_ji) - scale s_ii - scale t_ii ]

    A tile is `block` examples of each side, block^2 K L similarities of tokens: it serves both directions, and is computed again
    for the backward pass; 4 B^2 K L E multiply-adds in all. `gather` holds the tokens of side b of the whole batch and their
    gradient, 2 B L E numbers, on every device; `ring` passes both around the devices. Where several tokens are the best match,
    they share the gradient.

    Args:
        ta: [B, K, E] unit vectors, f32 or bf16, sharded on B over `axes` of `mesh`; the longer side.
        tb: [B, L, E] like ta; the side that travels.
        mask_a: bool [B, K], True where a token is real; each example has at least one.
        mask_b: bool [B, L] like mask_a.
        scale: f32 [], factor on the similarities: 1 / temperature, not its logarithm.
        mesh: mesh of the devices; None computes on one.
        axes: axes of the mesh that B is sharded over.
        method: "gather" or "ring".
        block: examples of each side in a tile.
        decoupled: whether the sums over j leave the match out (DCL), as in `contrastive`.

    Returns:
        The loss, f32 [].

    Raises:
        ValueError: shapes or dtypes do not fit, B does not divide, or an argument is not one of those above.
    """
    axes = (axes,) if isinstance(axes, str) else tuple(axes)
    _check(ta, tb, mask_a, mask_b, mesh, axes, method, block)
    options = _Options(method, mesh, axes if mesh is not None else (), block, decoupled, 0.5 / len(ta))
    index = jnp.arange(len(ta), dtype=jnp.int32)
    words = _Words(_shares(mask_a), index), _Words(_shares(mask_b), index)
    ta, tb, words = split_rows((ta, tb, words), mesh, axes)
    return _loss(options, ta, tb, jnp.asarray(whole(scale, mesh), jnp.float32), words)


class _Options(NamedTuple):
    """Options that are known when the loss is compiled."""

    method: Method
    mesh: Mesh | None
    axes: tuple[str, ...]
    block: int
    decoupled: bool
    weight: float
    """Factor on the sum over all rows of both directions."""

    def on_devices(self, fn: Callable[..., Any], in_specs: Any, out_specs: Any) -> Callable[..., Any]:
        """`fn` of the rows of one device, mapped over all of them."""
        fn = partial(fn, self)
        return fn if self.mesh is None else jax.shard_map(fn, mesh=self.mesh, in_specs=in_specs, out_specs=out_specs)

    def sum(self, x: Array) -> Array:
        """The sum over all devices."""
        return lax.psum(x, self.axes) if self.axes else x


class _Words(NamedTuple):
    """Examples of one side, beside their tokens."""

    share: Array
    """f32 [b, K]: of each token in the mean over its example, 0 where it is not real."""
    example: Array
    """i32 [b]: which of the batch it is."""


class _Side(NamedTuple):
    """Examples of one side: their tokens [b, K, E] and, in the backward pass, their log-sum-exps f32 [b]."""

    tokens: Array
    words: _Words
    lse: Array | None = None


class _Tile(NamedTuple):
    """Some examples of one side and some of the other."""

    a: _Side
    b: _Side
    start_a: Array
    start_b: Array
    cosines: Array
    """f32 [a, K, b, L], less 1: a softmax is the same, and f32 is finest near 0, where the best matches are."""
    fresh: Array
    """bool [a, b]: whether the pair is not one that an earlier tile has seen."""
    positive: Array
    """bool [a, b]: whether the pair is a match."""

    def similarities(self, cosines: Array) -> tuple[Array, Array]:
        """The two similarities f32 [a, b] of each pair, of tile.cosines: how well a is found in b, and b in a."""
        share_a, share_b = self.a.words.share, self.b.words.share
        best_b = jnp.where((share_b > 0)[None, None], cosines, NEGLIGIBLE).max(axis=3)
        best_a = jnp.where((share_a > 0)[:, :, None, None], cosines, NEGLIGIBLE).max(axis=1)
        return (best_b * share_a[:, :, None]).sum(axis=1), (best_a * share_b[None]).sum(axis=2)

    def rivals(self, logits: Array, decoupled: bool) -> Array:
        """The logits f32 [a, b] where the log-sum-exps count them, and NEGLIGIBLE elsewhere."""
        return jnp.where(self.fresh & ~self.positive if decoupled else self.fresh, logits, NEGLIGIBLE)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _loss(options: _Options, ta: Array, tb: Array, scale: Array, words: tuple[_Words, _Words]) -> Array:
    return _loss_forward(options, ta, tb, scale, words)[0]


def _loss_forward(options: _Options, ta: Array, tb: Array, scale: Array, words: tuple[_Words, _Words]) -> tuple[Array, Any]:
    split, one = PartitionSpec(options.axes), PartitionSpec()
    loss, lse_a, lse_b = options.on_devices(_forward, (split, split, one, split), (one, split, split))(ta, tb, scale, words)
    return loss, (ta, tb, scale, words, lse_a, lse_b)


def _loss_backward(options: _Options, residuals: Any, cotangent: Array) -> tuple[Any, ...]:
    split, one = PartitionSpec(options.axes), PartitionSpec()
    backward = options.on_devices(_backward, (split, split, one, split, split, split, one), (split, split, one))
    return (*backward(*residuals, cotangent), None)


_loss.defvjp(_loss_forward, _loss_backward)


def _forward(options: _Options, ta: Array, tb: Array, scale: Array, words: tuple[_Words, _Words]) -> tuple[Array, Array, Array]:
    """The loss f32 [], and the log-sum-exps f32 [b] of one device's own examples of either side."""

    def of_tile(sums: Any, tile: _Tile) -> Any:
        (matches, lse_a), lse_b = sums
        s, t = (scale * x for x in tile.similarities(tile.cosines))
        matches = matches + jnp.where(tile.positive, s + t, 0).sum()
        more_a, more_b = (log_sum_exp(tile.rivals(x, options.decoupled), axis) for x, axis in ((s, 1), (t, 0)))
        return (matches, _update(jnp.logaddexp, lse_a, tile.start_a, more_a)), _update(jnp.logaddexp, lse_b, tile.start_b, more_b)

    nothing = jnp.full(len(ta), NEGLIGIBLE)
    add_columns = partial(_each_tile, options, of_tile, mine=_Side(ta, words[0]))
    kernel = Kernel(((jnp.zeros(()), nothing), nothing), add_columns, LOG_SUM_EXPS)
    (matches, lse_a), lse_b = reduce_tiles(options.axes, options.method, kernel, _Side(tb, words[1]))
    if options.decoupled:  # an example without rivals has an empty sum
        lse_a, lse_b = (jnp.where(lse > NEGLIGIBLE / 2, lse, 0) for lse in (lse_a, lse_b))
    return options.weight * options.sum(lse_a.sum() + lse_b.sum() - matches), lse_a, lse_b


def _backward(
    options: _Options,
    ta: Array,
    tb: Array,
    scale: Array,
    words: tuple[_Words, _Words],
    lse_a: Array,
    lse_b: Array,
    cotangent: Array,
) -> tuple[Array, Array, Array]:
    """The gradients of one device's examples of either side, and of the scale."""

    def of_tile(sums: Any, tile: _Tile) -> Any:
        (dta, dscale), dtb = sums
        assert tile.a.lse is not None
        assert tile.b.lse is not None
        (s, t), to_cosines = jax.vjp(tile.similarities, tile.cosines)
        slope_s = jnp.exp(tile.rivals(scale * s, options.decoupled) - tile.a.lse[:, None]) - tile.positive
        slope_t = jnp.exp(tile.rivals(scale * t, options.decoupled) - tile.b.lse[None]) - tile.positive
        dscale = dscale + (slope_s * s + slope_t * t).sum()
        (slope,) = to_cosines((slope_s, slope_t))
        slope = slope.reshape(ta.shape[1] * len(s), -1).astype(ta.dtype)
        more_a = dot(slope, _flat(tile.b.tokens), (1, 0)).reshape(tile.a.tokens.shape)
        more_b = dot(slope, _flat(tile.a.tokens), (0, 0)).reshape(tile.b.tokens.shape)
        return (_update(jnp.add, dta, tile.start_a, more_a), dscale), _update(jnp.add, dtb, tile.start_b, more_b)

    add_columns = partial(_each_tile, options, of_tile, mine=_Side(ta, words[0], lse_a))
    kernel = Kernel(((jnp.zeros(ta.shape), jnp.zeros(())), jnp.zeros(tb.shape)), add_columns, SUMS)
    (dta, dscale), dtb = reduce_tiles(options.axes, options.method, kernel, _Side(tb, words[1], lse_b))
    factor = cotangent * options.weight
    return (factor * scale * dta).astype(ta.dtype), (factor * scale * dtb).astype(tb.dtype), factor * options.sum(dscale)


def _each_tile(options: _Options, of_tile: Callable[[Any, _Tile], Any], sums: Any, *, mine: _Side, columns: _Side) -> Any:
    """Accumulators after all tiles of this device's examples and these of the other side, one after the other."""
    down, across = (-(-len(side.tokens) // options.block) for side in (mine, columns))

    def step(i: Array, sums: Any) -> Any:
        (start_a, a, fresh_a), (start_b, b, fresh_b) = (
            _part(side, options.block, at) for side, at in ((mine, i // across), (columns, i % across))
        )
        fresh = fresh_a[:, None] & fresh_b[None]
        shape = *a.tokens.shape[:2], *b.tokens.shape[:2]
        cosines = dot(_flat(a.tokens), _flat(b.tokens), (1, 1)).reshape(shape) - 1
        positive = fresh & (a.words.example[:, None] == b.words.example[None])
        return of_tile(sums, _Tile(a, b, start_a, start_b, cosines, fresh, positive))

    return lax.fori_loop(0, down * across, step, sums)  # a scan over an array would hold a number for each tile


def _part(side: _Side, block: int, i: Array) -> tuple[Array, _Side, Array]:
    """Block i of a side: where it starts, what it is, and which of its examples are in no earlier block, bool [block].

    The last one is moved back until it fits.
    """
    size = min(block, len(side.tokens))
    start = jnp.minimum(i * size, len(side.tokens) - size)
    part = jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, start, size), side)
    return start, part, start + jnp.arange(size) >= i * size


def _update(merge: Callable[[Array, Array], Array], x: Array, start: Array, more: Array) -> Array:
    """x [b, ...] with `more` [n, ...] merged into it from `start` on."""
    old = lax.dynamic_slice_in_dim(x, start, len(more))
    return lax.dynamic_update_slice_in_dim(x, merge(old, more), start, axis=0)


def _flat(tokens: Array) -> Array:
    return tokens.reshape(-1, tokens.shape[-1])


def _shares(mask: Array) -> Array:
    real = (jnp.asarray(mask) > 0).astype(jnp.float32)
    return real / jnp.maximum(real.sum(axis=1, keepdims=True), 1)


def _check(
    ta: Array, tb: Array, mask_a: Array, mask_b: Array, mesh: Mesh | None, axes: tuple[str, ...], method: str, block: int
) -> None:
    shapes = f"ta {ta.dtype}{ta.shape} and tb {tb.dtype}{tb.shape}"
    if ta.ndim != 3 or tb.ndim != 3 or (len(ta), ta.shape[2]) != (len(tb), tb.shape[2]) or ta.size * tb.size == 0:
        raise ValueError(f"token_wise: {shapes} must be [B, K, E] and [B, L, E], and not empty")
    if ta.dtype != tb.dtype or ta.dtype not in (jnp.float32, jnp.bfloat16):
        raise ValueError(f"token_wise: {shapes} must both be float32 or both bfloat16")
    for name, mask, tokens in (("mask_a", mask_a, ta), ("mask_b", mask_b, tb)):
        if mask.shape != tokens.shape[:2]:
            raise ValueError(f"token_wise: {name} has shape {mask.shape}; it needs one value a token, {tokens.shape[:2]}")
    if method not in get_args(Method):
        raise ValueError(f"token_wise: method {method!r} is unknown; use {' or '.join(map(repr, get_args(Method)))}")
    if block < 1:
        raise ValueError(f"token_wise: block {block} must be at least 1")
    devices = math.prod(mesh.shape[axis] for axis in axes) if mesh is not None else 1
    if len(ta) % devices:
        raise ValueError(f"token_wise: batch {len(ta)} is not divisible by the {devices} devices of {axes}")
