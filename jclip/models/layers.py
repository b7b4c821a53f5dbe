"""The layers every tower is made of: dense, attention, MLP, block, and the stack of blocks."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

Initializer = Callable[..., Array]

HIDDEN = -1e30  # a logit of attention that counts for nothing; finite, because the difference of two infinities is NaN

Params = dict[str, Any]


class Compute(NamedTuple):
    """How a tower is computed; its parameters do not depend on it, nor its output beyond rounding."""

    dtype: Any = jnp.float32
    """Of activations and products."""
    scan: bool = False
    """Loop over one compiled block, or unroll: then the last block computes no more than is asked for. With `gather` always a
    loop, or a compiler would gather all blocks at once."""
    remat: str = "none"
    """"none", or the name of the policy in jax.checkpoint_policies that says what a block keeps for the backward pass."""
    gather: Callable[[Params], Params] | None = None
    """Makes the parameters of one block whole on every device: done before the block forward and again backward, kept never."""


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": lambda x: x * (0.5 + 0.5 * jax.lax.erf(x * 0.5**0.5)),  # jax.nn.gelu takes erfc, thrice as slow on a CPU
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
}


class Dense(nn.Module):
    """An affine map of the last axis: [..., d] -> [..., features]."""

    features: int
    kernel_init: Initializer
    use_bias: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features))
        # Flat, because XLA's CPU backward pass of a dense layer takes twice as long on [b, l, d]; elsewhere it is the same.
        y = x.astype(self.dtype).reshape(-1, x.shape[-1]) @ kernel.astype(self.dtype)
        if self.use_bias:
            y = y + self.param("bias", nn.initializers.zeros, (self.features,)).astype(self.dtype)[None]
        return y.reshape(*x.shape[:-1], self.features)


class LayerNorm(nn.Module):
    """Layer normalisation (Ba et al. 2016) of the last axis, computed in float32, returned in `dtype`."""

    epsilon: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
        # Of what it computes nothing is kept for the backward pass, as in Mlp.
        return jax.checkpoint(layer_norm, static_argnums=3)(x, scale, bias, self.epsilon).astype(self.dtype)


def layer_norm(x: Array, scale: Array, bias: Array, epsilon: float) -> Array:
    """(x - mean) / sqrt(variance + epsilon) * scale + bias of the last axis, in f32 (Ba et al. 2016, equation 4)."""
    x = x.astype(jnp.float32)
    x = x - x.mean(-1, keepdims=True)
    scale, bias = (y[(None,) * (x.ndim - 1)] for y in (scale, bias))
    return x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + epsilon) * scale + bias


class Attention(nn.Module):
    """Multi-head attention (Vaswani et al. 2017) of queries [b, n, d] to tokens [b, l, d]."""

    heads: int
    residual_scale: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, tokens: Array, mask: Array | None = None, causal: bool = False) -> Array:
        """mask: [b, l], True where a token may be attended to."""
        width = x.shape[-1]
        init = nn.initializers.normal(width**-0.5)
        project = partial(Dense, width, init, dtype=self.dtype)
        q, k, v = project(name="q")(x), project(name="k")(tokens), project(name="v")(tokens)
        q, k, v = (y.reshape(*y.shape[:2], self.heads, width // self.heads) for y in (q, k, v))
        y = attend(q, k, v, mask, causal)
        out_init = nn.initializers.normal(width**-0.5 * self.residual_scale)
        return Dense(width, out_init, dtype=self.dtype, name="out")(y.reshape(x.shape))


def attend(q: Array, k: Array, v: Array, mask: Array | None = None, causal: bool = False) -> Array:
    """softmax(q k^T / sqrt(d)) v of each head, the softmax in f32 (Vaswani et al. 2017, section 3.2.1).

    Args:
        q: queries [b, n, heads, d].
        k: keys [b, l, heads, d].
        v: values [b, l, heads, d].
        mask: bool [b, l], True where a token may be attended to; None: all.
        causal: query i sees the tokens 0 to i alone.

    Returns:
        [b, n, heads, d], in the type of v.
    """
    # Heads before tokens: products of plain matrices, which XLA's CPU backend multiplies in two thirds of the time.
    q, k, v = (jnp.swapaxes(y, 1, 2) for y in (q, k, v))
    logits = jnp.einsum("bhnd,bhld->bhnl", q * q.shape[-1] ** -0.5, k, preferred_element_type=jnp.float32)
    if mask is not None:
        logits = jnp.where(mask[:, None, None, :], logits, HIDDEN)
    if causal:
        logits = jnp.where(jnp.tri(q.shape[2], k.shape[2], dtype=bool)[None, None], logits, HIDDEN)
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    return jnp.swapaxes(jnp.einsum("bhnl,bhld->bhnd", weights, v), 1, 2)


class Mlp(nn.Module):
    """Two dense layers with an activation between them: [b, l, d] -> [b, l, d]."""

    hidden: int
    activation: str
    residual_scale: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        width = x.shape[-1]
        x = Dense(self.hidden, nn.initializers.normal((2 * width) ** -0.5), dtype=self.dtype, name="fc1")(x)
        # Of what the activation computes nothing is kept for the backward pass: to compute it again is cheaper than the memory.
        x = jax.checkpoint(ACTIVATIONS[self.activation])(x)
        out_init = nn.initializers.normal(width**-0.5 * self.residual_scale)
        return Dense(width, out_init, dtype=self.dtype, name="fc2")(x)


class Dropout(nn.Module):
    """Zeroes numbers of each example in training, and scales the others up (Srivastava et al. 2014)."""

    rate: float

    @nn.compact
    def __call__(self, x: Array, rows: Array | None) -> Array:
        """rows: see MultiTower; None leaves x [b, ...] as it is."""
        if rows is None or self.rate == 0:
            return x
        kept = uniform_of_rows(self.make_rng("dropout"), rows, x.shape[1:]) >= self.rate
        return jnp.where(kept, x / (1 - self.rate), 0)


def uniform_of_rows(key: Array, rows: Array, shape: tuple[int, ...]) -> Array:
    """Uniform numbers f32 [b, *shape] of which row i is a function of the key and of rows[i]."""
    return jax.vmap(lambda row: jax.random.uniform(jax.random.fold_in(key, row), shape))(rows)


class LayerScale(nn.Module):
    """A learned factor for each channel (Touvron et al. 2021b, CaiT, section 2.1); none where `initial` is None."""

    initial: float | None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        if self.initial is None:
            return x
        scale = self.param("scale", nn.initializers.constant(self.initial), x.shape[-1:]).astype(x.dtype)
        return x * scale[(None,) * (x.ndim - 1)]


Position = int | Array
"""Of a token: the same in every example, or i32 [b]."""


def token_at(tokens: Array, at: Position) -> Array:
    """[b, l, d] -> [b, 1, d]."""
    return tokens[:, at : at + 1] if isinstance(at, int) else jnp.take_along_axis(tokens, at[:, None, None], axis=1)


class Block(nn.Module):
    """A pre-norm transformer block: attention and MLP, each added to its input."""

    heads: int
    hidden: int
    activation: str
    norm_eps: float
    residual_scale: float
    causal: bool
    dropout: float
    layer_scale: float | None
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, mask: Array | None, rows: Array | None, at: Position | None = None) -> Array:
        """x [b, l, d] -> [b, l, d], or of the token at one position alone, whose keys and values are still all: [b, 1, d]."""
        norm = partial(LayerNorm, self.norm_eps, self.dtype)
        tokens, causal = norm(name="norm1")(x), self.causal
        y = tokens
        if at is not None:
            x, y = token_at(x, at), token_at(y, at)
            if causal:
                before = jnp.arange(tokens.shape[1])[None] <= jnp.reshape(at, (-1, 1))
                mask, causal = before if mask is None else mask & before, False
        y = Attention(self.heads, self.residual_scale, self.dtype, name="attn")(y, tokens, mask, causal)
        x = x + Dropout(self.dropout)(LayerScale(self.layer_scale, name="scale1")(y), rows)
        y = norm(name="norm2")(x)
        y = Mlp(self.hidden, self.activation, self.residual_scale, self.dtype, name="mlp")(y)
        return x + Dropout(self.dropout)(LayerScale(self.layer_scale, name="scale2")(y), rows)


class MapPool(nn.Module):
    """Multi-head attention pooling with one learned query, then an MLP (Zhai et al. 2022, section 2.2): [b, l, d] -> [b, d]."""

    heads: int
    hidden: int
    activation: str
    norm_eps: float
    dtype: Any

    @nn.compact
    def __call__(self, tokens: Array, mask: Array | None) -> Array:
        b, _, width = tokens.shape
        probe = self.param("probe", nn.initializers.xavier_uniform(), (1, 1, width)).astype(self.dtype)
        x = Attention(self.heads, 1.0, self.dtype, name="attn")(jnp.broadcast_to(probe, (b, 1, width)), tokens, mask)
        y = LayerNorm(self.norm_eps, self.dtype, name="norm")(x)
        return (x + Mlp(self.hidden, self.activation, 1.0, self.dtype, name="mlp")(y))[:, 0]


def _all_but_gathered(keep: Callable[..., bool]) -> Callable[..., bool]:
    """A checkpoint policy: keep what another says, but never the parameters of a block gathered from all devices."""

    def policy(primitive: Any, *inputs: Any, **parameters: Any) -> bool:
        gathered = primitive.name in ("custom_vjp_call", "sharding_constraint")  # what `Compute.gather` may consist of
        return not gathered and keep(primitive, *inputs, **parameters)

    return policy


def _all_but_last(layers: Any) -> tuple[Any, Any]:
    """Of arrays stacked on a leading axis all but the last, stacked, and the last."""
    leaves, structure = jax.tree.flatten(layers)
    pairs = [jax.lax.split(leaf, (len(leaf) - 1, 1)) for leaf in leaves]  # gradients are joined; those of slices would be added
    return tuple(jax.tree.unflatten(structure, part) for part in zip(*((first, last[0]) for first, last in pairs), strict=True))


class Transformer(nn.Module):
    """What the towers share: a stack of blocks, and pooling by attention."""

    config: Any
    how: Compute = Compute()

    def run_blocks(
        self, x: Array, mask: Array | None, rows: Array | None, *, causal: bool, at: Position | None = None
    ) -> tuple[Array, Array | None]:
        """The stack of blocks, its parameters stacked on a leading axis.

        Who pools one token needs of the others only their keys and values in the last block: that token is computed apart, and
        XLA leaves out the tokens where nobody asks for them. A loop has no last block, and dropout draws numbers for all tokens;
        there all are computed.

        Args:
            x: [b, l, d].
            mask: as in Attention.
            rows: as in Dropout.
            causal: as in Attention.
            at: the position of the token that is pooled, where it is one.

        Returns:
            The tokens [b, l, d], and the one at `at` [b, d], or None.
        """
        c, (dtype, scan, remat, gather) = self.config, self.how
        extra = {"residual_scale": (2 * c.depth) ** -0.5, "dropout": c.dropout, "layer_scale": c.layer_scale}
        block = Block(**self._fields(), **extra, causal=causal, parent=None)

        def init(key: Array) -> Params:  # one block after the other: their random bits are never in memory together
            return jax.lax.map(lambda key: block.init(key, x, None, None)["params"], jax.random.split(key, c.depth))

        key = self.make_rng("dropout") if rows is not None and c.dropout > 0 else None
        loop = scan or gather is not None

        def one(x: Array, layer: tuple[Array, Params], at: Position | None = None) -> tuple[Array, None]:
            index, params = layer
            if gather is not None:  # in the type they are used in: half of the bytes travel
                params = gather(jax.tree.map(lambda w: w.astype(dtype) if w.ndim > 1 else w, params))
            rngs = {} if key is None else {"dropout": jax.random.fold_in(key, index)}
            return block.apply({"params": params}, x, mask, rows, at, rngs=rngs), None

        def kept(f: Callable[..., Any]) -> Callable[..., Any]:
            if remat == "none" and gather is None:
                return f
            keep = getattr(jax.checkpoint_policies, "everything_saveable" if remat == "none" else remat)
            return jax.checkpoint(f, policy=keep if gather is None else _all_but_gathered(keep), prevent_cse=not loop)

        layers = jnp.arange(c.depth), self.param("blocks", init)
        if self.is_initializing():  # of a pass that makes parameters only their shapes are asked, and blocks keep the shape
            tokens = x
        elif loop or at is None or key is not None:
            tokens = jax.lax.scan(kept(one), x, layers, unroll=1 if loop else c.depth)[0]
        else:
            first, last = _all_but_last(layers)
            x = jax.lax.scan(kept(one), x, first, unroll=c.depth)[0]
            return kept(one)(x, last)[0], kept(partial(one, at=at))(x, last)[0][:, 0]
        return tokens, None if at is None else token_at(tokens, at)[:, 0]

    def map_pool(self, tokens: Array, mask: Array | None) -> Array:
        """See MapPool."""
        return MapPool(**self._fields(), name="map")(tokens, mask)

    def _fields(self) -> dict[str, Any]:
        c = self.config
        hidden = round(c.mlp_ratio * c.width)
        return {"heads": c.heads, "hidden": hidden, "activation": c.activation, "norm_eps": c.norm_eps, "dtype": self.how.dtype}
