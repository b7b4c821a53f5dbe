"""Attention: softmax(q k^T / sqrt(d)) v of each head, in the form that is fastest where it runs."""

import jax
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from jclip.models.compute import Backend, Compute

HIDDEN = -1e30  # a logit of attention that counts for nothing; finite, because the difference of two infinities is NaN


def attend(
    q: Array, k: Array, v: Array, lengths: Array | None = None, causal: bool = False, backend: Backend = Backend()
) -> Array:
    """softmax(q k^T / sqrt(d)) v of each head, the softmax in f32 (Vaswani et al. 2017, section 3.2.1).

    With `backend.fused_attention` the logits are never in memory: on GPUs by cuDNN (Dao et al. 2022), on TPUs by a kernel of our
    own, both for bfloat16 and as many queries as keys; anything else takes the plain form.

    Args:
        q: queries [b, n, heads, d].
        k: keys [b, l, heads, d].
        v: values [b, l, heads, d].
        lengths: i32 [b], at least 1: how many of the keys, from the first on, may be attended to; None: all.
        causal: query i sees the keys 0 to i alone.
        backend: what this is compiled for.

    Returns:
        [b, n, heads, d], in the type of v; named "attention", for `Compute.remat`.
    """
    if backend.fused_attention and q.dtype == jnp.bfloat16 and q.shape == k.shape:
        if backend.platform == "gpu" and fits_cudnn(q):
            # Kept as "attention" too: see `cudnn_attention`.
            return jax.nn.dot_product_attention(q, k, v, is_causal=causal, key_value_seq_lengths=lengths, implementation="cudnn")
        if backend.platform == "tpu":
            from jclip.models import attention_tpu  # Pallas, which nothing else needs

            if attention_tpu.fits(q):
                return _named(backend.by_rows(lambda *rows: attention_tpu.attend(*rows, causal=causal))(q, k, v, lengths))
    return _named(_plain(q, k, v, lengths, causal, backend))


def _named(y: Array) -> Array:
    """[b, n, heads, d] with its name; heads beside each other, because 64 numbers by themselves would be kept as 128 on a TPU."""
    return checkpoint_name(y.reshape(*y.shape[:2], -1), "attention").reshape(y.shape)


def fits_cudnn(q: Array) -> bool:
    """True where cuDNN can train on queries and as many keys [b, l, heads, d]."""
    return q.shape[1] % 2 == 0 and q.shape[3] % 8 == 0 and q.shape[3] <= 128


def with_even_length(x: Array, lengths: Array | None, causal: bool, how: Compute) -> tuple[Array, Array | None]:
    """Tokens [b, l, d] and their lengths, with one more token, of zeros, that the others do not see, where `fits_cudnn` needs it.

    At the head of a stack of blocks: padding queries, keys and values in each would copy them.
    """
    if x.shape[1] % 2 == 0 or how.dtype != jnp.bfloat16 or not (how.backend.fused_attention and how.backend.platform == "gpu"):
        return x, lengths
    if lengths is None and not causal:
        lengths = jnp.full(x.shape[:1], x.shape[1], jnp.int32)
    return jnp.pad(x, ((0, 0), (0, 1), (0, 0))), lengths


def attention_weights(q: Array, k: Array, lengths: Array | None, causal: bool) -> Array:
    """softmax(q k^T / sqrt(d)), the weights of `attend`: f32 [b, heads, n, l], those of a query sum to 1."""
    logits = jnp.einsum("bnhd,blhd->bhnl", q * q.shape[-1] ** -0.5, k, preferred_element_type=jnp.float32)
    return _softmax(logits, lengths, causal)


def _plain(q: Array, k: Array, v: Array, lengths: Array | None, causal: bool, backend: Backend) -> Array:
    q = q * q.shape[-1] ** -0.5
    if backend.platform == "tpu":
        logits = jnp.einsum("bnhd,blhd->bhnl", q, k, preferred_element_type=jnp.float32)
    else:  # Heads before tokens: products of plain matrices, which XLA's CPU backend multiplies in two thirds of the time.
        q, k, v = (jnp.swapaxes(y, 1, 2) for y in (q, k, v))
        logits = jnp.einsum("bhnd,bhld->bhnl", q, k, preferred_element_type=jnp.float32)
    weights = _softmax(logits, lengths, causal).astype(v.dtype)
    if backend.platform == "tpu":
        return jnp.einsum("bhnl,blhd->bnhd", weights, v)
    return jnp.swapaxes(jnp.einsum("bhnl,bhld->bhnd", weights, v), 1, 2)


def _softmax(logits: Array, lengths: Array | None, causal: bool) -> Array:
    """Softmax of logits [b, heads, n, l] over the keys that a query may see."""
    n, length = logits.shape[2:]
    if lengths is not None:
        visible = jnp.arange(length)[None] < lengths[:, None]
        logits = jnp.where(visible[:, None, None, :], logits, HIDDEN)
    if causal:
        logits = jnp.where(jnp.tri(n, length, dtype=bool)[None, None], logits, HIDDEN)
    return jax.nn.softmax(logits, axis=-1)
