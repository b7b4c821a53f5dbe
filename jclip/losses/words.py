"""Cross-entropy of words over a vocabulary, some of them at a time."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array


def word_cross_entropy(logits: Callable[[Array], Array], x: Array, words: Array, weights: Array, *, block: int) -> Array:
    """-sum_ij w_ij log softmax(logits(x_ij))[word_ij], f32 [].

    The logits of all words are never in memory together, forward or backward: those of a block are made again for its gradient.
    A block has some words of every text, so that each device computes those of its own texts.

    Args:
        logits: x [b, m, d] -> [b, m, V], which jax can differentiate also by what it has closed over.
        x: [b, k, d], sharded on b in any way.
        words: i32 [b, k], of V.
        weights: f32 [b, k]; words of weight 0 do not count.
        block: words of a text that are computed at a time.
    """

    @jax.checkpoint
    def some(x: Array, words: Array, weights: Array) -> Array:
        log_p = jax.nn.log_softmax(logits(x).astype(jnp.float32))
        return -(weights * jnp.take_along_axis(log_p, words[:, :, None], axis=2)[:, :, 0]).sum()

    return sum_of_blocks(some, (x, words, weights), block)


def sum_of_blocks(some: Callable[..., Array], arrays: tuple[Array, ...], block: int) -> Array:
    """The sum f32 [] of `some` over blocks of the second axis of arrays [b, k, ...], one after the other."""
    k = arrays[0].shape[1]
    count = min(block, k)
    whole = k // count * count
    blocks = tuple(x[:, :whole].reshape(len(x), -1, count, *x.shape[2:]).swapaxes(0, 1) for x in arrays)
    total, _ = jax.lax.scan(lambda total, part: (total + some(*part), None), jnp.zeros(()), blocks)
    return total if whole == k else total + some(*(x[:, whole:] for x in arrays))
