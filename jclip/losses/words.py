"""Cross-entropy of words over a vocabulary, some of them at a time."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array


def word_cross_entropy(logits: Callable[[Array], Array], x: Array, words: Array, weights: Array, *, block: int) -> Array:
    """-sum_i w_i log softmax(logits(x_i))[word_i], f32 [].

    The logits of n words are never in memory together, forward or backward: those of a block are made again for its gradient.

    Args:
        logits: x [m, d] -> [m, V], which jax can differentiate also by what it has closed over.
        x: [n, d].
        words: i32 [n], of V.
        weights: f32 [n]; words of weight 0 do not count.
        block: how many are computed at a time.
    """

    @jax.checkpoint
    def some(x: Array, words: Array, weights: Array) -> Array:
        log_p = jax.nn.log_softmax(logits(x).astype(jnp.float32))
        return -(weights * jnp.take_along_axis(log_p, words[:, None], axis=1)[:, 0]).sum()

    count = min(block, len(x))
    whole = len(x) // count * count
    parts = (part[:whole].reshape(-1, count, *part.shape[1:]) for part in (x, words, weights))
    total, _ = jax.lax.scan(lambda total, part: (total + some(*part), None), jnp.zeros(()), tuple(parts))
    return total if whole == len(x) else total + some(x[whole:], words[whole:], weights[whole:])
