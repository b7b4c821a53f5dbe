"""The stack of blocks that the transformer towers share, and their pooling by attention."""

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from jclip.models.attention import with_even_length
from jclip.models.compute import Compute, Params
from jclip.models.layers import Block, MapPool, Position, token_at
from jclip.models.output import Tap

Run = Callable[..., tuple[Array, Array | None]]
"""(x [b, l, d], (index of the block, its parameters), at=None, attention=False) -> (x [b, l, d], or of the token at `at`
[b, 1, d]; None, or with `attention` its weights f32 [b, heads, l, l])."""


class Transformer(nn.Module):
    """The part that transformer towers share."""

    config: Any
    how: Compute = Compute()
    BLOCK: ClassVar[type[Block]] = Block
    """Sizes of the stack."""

    def run_blocks(
        self,
        x: Array,
        lengths: Array | None,
        rows: Array | None,
        *,
        causal: bool,
        at: Position | None = None,
        context: tuple[Array, ...] = (),
    ) -> tuple[Array, Array | None]:
        """The stack of blocks, its parameters stacked on a leading axis.

        Who pools one token needs of the others only their keys and values in the last block: that token is computed apart, and
        XLA leaves out the tokens where nobody asks for them. A loop has no last block, and dropout draws numbers for all tokens;
        there all are computed.

        Args:
            x: [b, l, d].
            lengths: as in Attention.
            rows: as in Dropout.
            causal: as in Attention.
            at: the position of the token that is pooled, where it is one.
            context: what else each block sees, such as the tokens of images.

        Returns:
            The tokens [b, l, d], and the one at `at` [b, d], or None.
        """
        depth, how, length = self.config.depth, self.how, x.shape[1]
        block = self.block(causal)
        layers = jnp.arange(depth), self.param("blocks", partial(init_blocks, block, depth, x, context))
        key = self.make_rng("dropout") if rows is not None and block.dropout > 0 else None
        loop = how.scan or how.gather is not None
        if self.is_initializing():  # only the shapes of a pass that makes parameters are asked for, and blocks keep the shape
            return x, None if at is None else token_at(x, at)[:, 0]
        x, lengths = with_even_length(x, lengths, causal, how)
        run = partial(run_block, block, how, lengths=lengths, rows=rows, key=key, context=context)
        if how.taps is not None:
            x = self._tapped(run, x, layers, length)
            return x[:, :length], None if at is None else token_at(x, at)[:, 0]
        if loop or at is None or key is not None:
            x, _ = jax.lax.scan(remat(run, how), x, layers, unroll=1 if loop else depth)
            return x[:, :length], None if at is None else token_at(x, at)[:, 0]
        # The last block is run twice, for its pooled token and for all tokens. Who reads one result pays for that one: XLA
        # drops what nobody reads, and a training step of CLIP reads the pooled token alone.
        first, last = all_but_last(layers)
        x, _ = jax.lax.scan(remat(run, how), x, first, unroll=depth)
        pooled, _ = remat(partial(run, at=at), how)(x, last)
        return remat(run, how)(x, last)[0][:, :length], pooled[:, 0]

    def _tapped(self, run: Run, x: Array, layers: Any, length: int) -> Array:
        """The stack of blocks, of which those of `Compute.taps` leave what they make; a loop would leave that of all."""
        how, kept, start = self.how, list[Tap](), 0
        assert how.taps is not None
        loop, tap = how.scan or how.gather is not None, remat(partial(run, attention=how.taps.attention), how)

        def between(x: Array, start: int, stop: int) -> Array:
            part = jax.tree.map(lambda leaf: leaf[start:stop], layers)
            return x if start == stop else jax.lax.scan(remat(run, how), x, part, unroll=1 if loop else stop - start)[0]

        for block in how.taps.blocks:
            x, weights = tap(between(x, start, block), jax.tree.map(lambda leaf, block=block: leaf[block], layers))
            kept.append(Tap(x[:, :length], None if weights is None else weights[:, :, :length, :length]))
            start = block + 1
        self.put_variable("taps", "blocks", tuple(kept))
        return between(x, start, self.config.depth)

    def map_pool(self, tokens: Array, lengths: Array | None) -> Array:
        """See MapPool."""
        return MapPool(**self._fields(), name="map")(tokens, lengths)

    def block(self, causal: bool) -> Block:
        """One of the stack, without parameters."""
        c = self.config
        extra = {"residual_scale": (2 * c.depth) ** -0.5, "dropout": c.dropout, "layer_scale": getattr(c, "layer_scale", None)}
        return self.BLOCK(**self._fields(), **extra, causal=causal, parent=None)

    def _fields(self) -> dict[str, Any]:
        c = self.config
        hidden = round(c.mlp_ratio * c.width)
        return {"heads": c.heads, "hidden": hidden, "activation": c.activation, "norm_eps": c.norm_eps, "how": self.how}


def init_blocks(block: Block, depth: int, x: Array, context: tuple[Array, ...], key: Array) -> Params:
    """Parameters of `depth` blocks, stacked; made one block after the other, so that their random bits are never in memory
    together."""
    return jax.lax.map(lambda key: block.init(key, x, None, None, None, *context)["params"], jax.random.split(key, depth))


def run_block(
    block: Block,
    how: Compute,
    x: Array,
    layer: tuple[Array, Params],
    at: Position | None = None,
    *,
    lengths: Array | None,
    rows: Array | None,
    key: Array | None,
    context: tuple[Array, ...] = (),
    attention: bool = False,
) -> tuple[Array, Array | None]:
    """One block as the body of a scan; see Run."""
    index, params = layer
    if how.gather is not None:
        params = how.gather(params, how.dtype, how.reduce)
    rngs = {} if key is None else {"dropout": jax.random.fold_in(key, index)}
    inputs = how.backend.row_major(x), lengths, rows, at, *context
    if not attention:
        return block.apply({"params": params}, *inputs, rngs=rngs), None
    x, kept = block.apply({"params": params}, *inputs, rngs=rngs, mutable=["attention"])
    return x, kept["attention"]["attn"]["weights"]


def step_blocks(
    block: Block, params: Params, cache: Params, x: Array, lengths: Array, context: tuple[Array | None, ...] = ()
) -> tuple[Array, Params]:
    """A stack of blocks for one more token of each text, of which the others are known by their keys and values alone.

    Args:
        block: not causal: what is not yet there is hidden by `lengths`.
        params: of the blocks, stacked.
        cache: of `Attention`, stacked; see `empty_cache`.
        x: [b, 1, d].
        lengths: i32 [b], of the texts with this token.
        context: as in `Transformer.run_blocks`; None where the cache knows it.

    Returns:
        [b, 1, d]; the cache.
    """

    def run(x: Array, layer: tuple[Params, Params]) -> tuple[Array, Params]:
        params, cache = layer
        variables = {"params": params, "cache": cache}
        x, kept = block.apply(variables, x, lengths, None, None, *context, mutable=["cache"])
        return x, kept["cache"]

    return jax.lax.scan(run, x, (params, cache))


def empty_cache(depth: int, rows: int, length: int, width: int, heads: int, dtype: Any) -> Params:
    """The cache of a stack of blocks before the first token."""
    nothing = jnp.zeros((depth, rows, length, heads, width // heads), dtype)
    return {"attn": {"k": nothing, "v": nothing}}


def remat(run: Run, how: Compute) -> Run:
    """`run`, keeping for the backward pass what `how.remat` says, and never the parameters gathered from all devices."""
    if how.remat == "none" and how.gather is None:
        return run
    keep = how.policy
    loop = how.scan or how.gather is not None  # a loop's body is compiled once forward and once backward: nothing to merge
    return jax.checkpoint(run, policy=keep if how.gather is None else all_but_gathered(keep), prevent_cse=not loop)


def all_but_gathered(keep: Callable[..., bool]) -> Callable[..., bool]:
    """A checkpoint policy: keep what another says, but never the parameters of a block gathered from all devices."""

    def policy(primitive: Any, *inputs: Any, **parameters: Any) -> bool:
        gathered = primitive.name in ("custom_vjp_call", "sharding_constraint")  # what `Compute.gather` may consist of
        return not gathered and keep(primitive, *inputs, **parameters)

    return policy


def all_but_last(layers: Any) -> tuple[Any, Any]:
    """Arrays stacked on a leading axis, taken apart: all but the last, stacked; the last."""
    leaves, structure = jax.tree.flatten(layers)
    pairs = [jax.lax.split(leaf, (len(leaf) - 1, 1)) for leaf in leaves]  # gradients are joined; those of slices would be added
    return tuple(jax.tree.unflatten(structure, part) for part in zip(*((first, last[0]) for first, last in pairs), strict=True))
