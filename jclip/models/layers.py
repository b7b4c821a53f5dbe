"""The layers every tower is made of: dense, norm, attention, MLP, dropout, and the pre-norm block."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from jclip.models.attention import attend, attention_weights
from jclip.models.compute import Compute
from jclip.models.products import broadcast, product

Initializer = Callable[..., Array]

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": lambda x: x * (0.5 + 0.5 * jax.lax.erf(x * 0.5**0.5)),  # jax.nn.gelu takes erfc, thrice as slow on a CPU
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
}


class Dense(nn.Module):
    """An affine map of the last axis: [..., d] -> [..., features]. Its result bears its name, for `Compute.remat`."""

    features: int
    kernel_init: Initializer
    use_bias: bool = True
    how: Compute = Compute()

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel, shape = self.param("kernel", self.kernel_init, (x.shape[-1], self.features)), (*x.shape[:-1], self.features)
        # Flat, because XLA's CPU backward pass of a dense layer takes twice as long on [b, l, d], and its GPU compiler adds the
        # bias inside the product; on a TPU, whose tiles are 8 tokens high, flat would be a copy where 8 does not divide l.
        y = product(x if self.how.backend.platform == "tpu" else x.reshape(-1, x.shape[-1]), kernel, self.how)
        if self.use_bias:
            y = y + broadcast(self.param("bias", nn.initializers.zeros, (self.features,)), y.shape[:-1], y.dtype)
        return checkpoint_name(y.reshape(shape), str(self.name))


def along_last(w: Array, x: Array) -> Array:
    """w [d] with as many axes as x [..., d]."""
    return w[(None,) * (x.ndim - 1)]


class LayerNorm(nn.Module):
    """Layer normalisation (Ba et al. 2016) of the last axis, computed in float32, returned in the type of `how`. Its result bears
    its name, for `Compute.remat`."""

    epsilon: float
    how: Compute = Compute()

    @nn.compact
    def __call__(self, x: Array) -> Array:
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
        return checkpoint_name(layer_norm(x, scale, bias, self.epsilon, self.how.dtype), str(self.name))


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def layer_norm(x: Array, scale: Array, bias: Array, epsilon: float, dtype: Any = jnp.float32) -> Array:
    """(x - mean) / sqrt(variance + epsilon) * scale + bias of the last axis, computed in f32 (Ba et al. 2016, equation 4).

    For the backward pass it keeps of each row the mean and 1 / sqrt(variance + epsilon), and x, which is kept anyway.
    """
    return _layer_norm_forward(x, scale, bias, epsilon, dtype)[0]


def _layer_norm_forward(x: Array, scale: Array, bias: Array, epsilon: float, dtype: Any) -> tuple[Array, Any]:
    y = x.astype(jnp.float32)
    mean = y.mean(-1, keepdims=True)
    y = y - mean
    factor = jax.lax.rsqrt((y * y).mean(-1, keepdims=True) + epsilon)
    return (y * factor * along_last(scale, x) + along_last(bias, x)).astype(dtype), (x, scale, mean, factor)


def _layer_norm_backward(epsilon: float, dtype: Any, kept: Any, dy: Array) -> tuple[Array, Array, Array]:
    """Gradients, with n normalised rows and g = dy scale: dx = factor (g - mean(g) - n mean(g n)), dscale = sum(dy n), dbias =
    sum(dy)."""
    x, scale, mean, factor = kept

    def normalised(x: Array) -> Array:
        return (x.astype(jnp.float32) - mean) * factor

    # Sums over rows and over columns, of the same products. Behind the barrier XLA reads x and dy once more for the second,
    # in their own type, where it would write the products to memory in f32 to share them.
    dy_again, x_again = jax.lax.optimization_barrier((dy, x))
    rows, dy_again = tuple(range(x.ndim - 1)), dy_again.astype(jnp.float32)
    dscale, dbias = (dy_again * normalised(x_again)).sum(rows), dy_again.sum(rows)
    g, n = dy.astype(jnp.float32) * along_last(scale, x), normalised(x)
    dx = factor * (g - g.mean(-1, keepdims=True) - n * (g * n).mean(-1, keepdims=True))
    return dx.astype(x.dtype), dscale, dbias


layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


class Attention(nn.Module):
    """Multi-head attention (Vaswani et al. 2017) of queries [b, n, d] to tokens [b, l, d].

    Where the collection "cache" is mutable it keeps keys and values, so that text can be made word by word: with `lengths` those
    of one more token, behind the others of its text, and without, those of all tokens, which later calls then leave out. Where
    "attention" is mutable it leaves its weights there, f32 [b, heads, n, l].
    """

    heads: int
    residual_scale: float
    how: Compute = Compute()
    extra_key: bool = False
    """A learned key and value that every query sees beside the tokens (torch's add_bias_kv). Nothing is causal or cached
    then, and of the weights those of the tokens are left."""

    @nn.compact
    def __call__(self, x: Array, tokens: Array | None, lengths: Array | None = None, causal: bool = False) -> Array:
        """See the class.

        Args:
            x: [b, n, d]; or [b * m, n, d], where m rows side by side attend to the same tokens.
            tokens: [b, l, d]; None: those of the cache.
            lengths: i32 [b], how many of the tokens, from the first on, may be attended to; None: all.
            causal: query i sees the tokens 0 to i alone.
        """
        width, size = x.shape[-1], x.shape[-1] // self.heads
        project = partial(Dense, width, nn.initializers.normal(width**-0.5), how=self.how)
        q = project(name="q")(x)
        if tokens is None:
            k, v = (self.get_variable("cache", name) for name in "kv")
        else:
            k, v = (project(name=name)(tokens).reshape(*tokens.shape[:2], self.heads, size) for name in "kv")
            if self.is_mutable_collection("cache") and not self.is_initializing():
                k, v = (self._kept(name, new, lengths) for name, new in (("k", k), ("v", v)))
        q = q.reshape(len(k), -1, self.heads, size)
        if self.extra_key:  # first, because lengths count keys from the first on
            k, v = (self._with_extra(name, y) for name, y in (("k", k), ("v", v)))
            lengths = None if lengths is None else lengths + 1
        if self.is_mutable_collection("attention") and not self.is_initializing():
            self.put_variable("attention", "weights", attention_weights(q, k, lengths, causal)[..., int(self.extra_key) :])
        y = attend(q, k, v, lengths, causal, self.how.backend)
        out_init = nn.initializers.normal(width**-0.5 * self.residual_scale)
        return Dense(width, out_init, how=self.how, name="out")(y.reshape(x.shape))

    def _with_extra(self, name: str, y: Array) -> Array:
        """Keys or values [b, l, heads, d / heads] behind the learned one."""
        extra = self.param(f"extra_{name}", nn.initializers.normal((self.heads * y.shape[-1]) ** -0.5), y.shape[2:])
        return jnp.concatenate([broadcast(extra, (len(y), 1), y.dtype), y], axis=1)

    def _kept(self, name: str, new: Array, lengths: Array | None) -> Array:
        """The cache with what is new: `new` [b, l, heads, d / heads], or with `lengths` its one token behind the others."""
        if lengths is not None:
            new = self.get_variable("cache", name).at[jnp.arange(len(new)), lengths - 1].set(new[:, 0])
        self.put_variable("cache", name, new)
        return new


class Mlp(nn.Module):
    """Two dense layers with an activation between them: [b, l, d] -> [b, l, d]."""

    hidden: int
    activation: str
    residual_scale: float
    how: Compute = Compute()

    @nn.compact
    def __call__(self, x: Array) -> Array:
        width = x.shape[-1]
        x = Dense(self.hidden, nn.initializers.normal((2 * width) ** -0.5), how=self.how, name="fc1")(x)
        # Nothing that the activation computes is kept for the backward pass: to compute it again is cheaper than the memory.
        x = self.how.backend.recomputed(ACTIVATIONS[self.activation])(x)
        out_init = nn.initializers.normal(width**-0.5 * self.residual_scale)
        return Dense(width, out_init, how=self.how, name="fc2")(x)


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
        scale = self.param("scale", nn.initializers.constant(self.initial), x.shape[-1:])
        return x * broadcast(scale, x.shape[:-1], x.dtype)


Hidden = tuple[Array, Array]
"""The tokens that are hidden, bool [b, l], and what stands for them, [b, d]."""


def hide(x: Array, hidden: Hidden | None) -> Array:
    """[b, l, d] with another vector in place of the tokens that are hidden."""
    return x if hidden is None else jnp.where(hidden[0][:, :, None], hidden[1][:, None].astype(x.dtype), x)


Position = int | Array
"""Place of a token: the same in every example, or i32 [b]."""


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
    how: Compute
    extra_key: bool = False

    @nn.compact
    def __call__(self, x: Array, lengths: Array | None, rows: Array | None, at: Position | None = None) -> Array:
        """x [b, l, d] -> [b, l, d], or of the token at one position alone, whose keys and values are still all: [b, 1, d]."""
        norm = partial(LayerNorm, self.norm_eps, self.how)
        tokens, causal = norm(name="norm1")(x), self.causal
        y = tokens
        if at is not None:
            x, y = token_at(x, at), token_at(y, at)
            if causal:  # it sees itself and the tokens before
                before = jnp.broadcast_to(at, x.shape[:1]) + 1
                lengths, causal = before if lengths is None else jnp.minimum(lengths, before), False
        attention = Attention(self.heads, self.residual_scale, self.how, self.extra_key, name="attn")
        y = attention(y, tokens, lengths, causal)
        x = x + Dropout(self.dropout)(LayerScale(self.layer_scale, name="scale1")(y), rows)
        y = norm(name="norm2")(x)
        y = Mlp(self.hidden, self.activation, self.residual_scale, self.how, name="mlp")(y)
        return x + Dropout(self.dropout)(LayerScale(self.layer_scale, name="scale2")(y), rows)


class MapPool(nn.Module):
    """Multi-head attention pooling with one learned query, then an MLP (Zhai et al. 2022, section 2.2): [b, l, d] -> [b, d]."""

    heads: int
    hidden: int
    activation: str
    norm_eps: float
    how: Compute

    @nn.compact
    def __call__(self, tokens: Array, lengths: Array | None) -> Array:
        b, _, width = tokens.shape
        probe = self.param("probe", nn.initializers.xavier_uniform(), (1, 1, width))
        x = Attention(self.heads, 1.0, self.how, name="attn")(broadcast(probe[0], (b,), self.how.dtype), tokens, lengths)
        y = LayerNorm(self.norm_eps, self.how, name="norm")(x)
        return (x + Mlp(self.hidden, self.activation, 1.0, self.how, name="mlp")(y))[:, 0]


class AttentionalPool(nn.Module):
    """Pooling by learned queries, each by itself (Yu et al. 2022, CoCa, section 3.2): [b, l, d] -> [b, n, width].

    LayerNorm of queries and of tokens before, and no MLP behind, as in open_clip's CoCa.
    """

    queries: int
    width: int
    heads: int
    norm_eps: float
    how: Compute

    @nn.compact
    def __call__(self, tokens: Array) -> Array:
        exact = self.how._replace(dtype=jnp.float32)
        probe = self.param("probe", nn.initializers.normal(1.0), (self.queries, self.width))
        queries = broadcast(LayerNorm(self.norm_eps, exact, name="norm_q")(probe), tokens.shape[:1], self.how.dtype)
        tokens = LayerNorm(self.norm_eps, self.how, name="norm_k")(tokens)
        return Attention(self.heads, 1.0, self.how, name="attn")(queries, tokens)
