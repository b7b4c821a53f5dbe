"""Training on a few examples: the published optimizers and schedules, and the order of examples as a function of the seed."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from jclip.config.adapt_methods import OfCoOp


def epochs_of(n: int, batch_size: int, epochs: int, seed: int) -> np.ndarray:
    """Rows of each step, int32 [epochs, steps, b]: every epoch in an order of its own, without the rest that fills no batch.

    With fewer than batch_size examples an epoch is one step of all (torch's loaders in Dassl).
    """
    size = min(batch_size, n)
    rng = np.random.default_rng([seed, 1])
    orders = [rng.permutation(n)[: n // size * size].reshape(-1, size) for _ in range(epochs)]
    return np.stack(orders).astype(np.int32)


def whole_epochs(n: int, batch_size: int, epochs: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of each step, int32 [epochs, steps, b], and their weights f32, whose sum over a step is 1.

    Every epoch has all examples in an order of its own; the last batch is filled up with rows of weight 0 (torch's loaders with
    drop_last=False).
    """
    size = min(batch_size, n)
    filler = -n % size
    rng = np.random.default_rng([seed, 1])
    orders = np.stack([np.r_[order := rng.permutation(n), order[:filler]] for _ in range(epochs)])
    own = np.r_[np.ones(n), np.zeros(filler)].reshape(-1, size)
    weights = own / own.sum(axis=1, keepdims=True)
    rows = orders.reshape(epochs, -1, size)
    return rows.astype(np.int32), np.broadcast_to(weights, rows.shape).astype(np.float32)


def draws(n: int, batch_size: int, steps: int, seed: int, stream: int = 2) -> np.ndarray:
    """Rows of each of so many steps, int32 [steps, b], epoch after epoch as `epochs_of`."""
    size = min(batch_size, n)
    each = n // size
    rng = np.random.default_rng([seed, stream])
    orders = [rng.permutation(n)[: each * size].reshape(each, size) for _ in range(-(-steps // each))]
    return np.concatenate(orders)[:steps].astype(np.int32)


def coop_optimizer(method: OfCoOp, epochs: int, steps: int) -> optax.GradientTransformation:
    """SGD as torch has it (decay in the gradient, then momentum), with CoOp's rate, which changes once an epoch.

    Epoch 0 has warmup_lr, epoch e lr (1 + cos(pi (e - 1) / epochs)) / 2: the cosine of so many epochs begins behind the warm-up.
    """

    def rate(count: Array) -> Array:
        epoch = count // steps
        cosine = 0.5 * method.lr * (1 + jnp.cos(jnp.pi * (epoch - 1) / epochs))
        return jnp.where(epoch == 0, method.warmup_lr, cosine)

    return optax.chain(
        optax.add_decayed_weights(method.weight_decay),
        optax.trace(method.momentum),
        optax.scale_by_learning_rate(rate),
    )


def cosine_adamw(
    lr: float | Array, weight_decay: float | Array, steps: int, *, eps: float = 1e-8, warmup: int = 0, warmup_lr: float = 0.0
) -> optax.GradientTransformation:
    """AdamW with torch's defaults; the rate is lr (1 + cos(pi t / steps)) / 2 of step t.

    With a warm-up of w steps it is warmup_lr in the first, lr t / w until step w, and the cosine begins there, which then
    does not end at 0 (the schedule that Lin et al. 2023 publish).
    """

    def rate(count: Array) -> Array:
        cosine = 0.5 * lr * (1 + jnp.cos(jnp.pi * jnp.maximum(count - warmup, 0) / steps))
        rising = jnp.where(count == 0, warmup_lr, lr * count / max(1, warmup))
        return jnp.where(count < warmup, rising, cosine)

    return optax.chain(optax.scale_by_adam(eps=eps), optax.add_decayed_weights(weight_decay), optax.scale_by_learning_rate(rate))


def cross_entropy(logits: Array, labels: Array) -> Array:
    """Mean over the rows of [n, C] of -log softmax at the label."""
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))


def weighted_loss(logits: Array, labels: Array, weights: Array) -> Array:
    """Sum over the rows of [b, C] of -log softmax at the label times the weight."""
    return jnp.sum(weights * optax.softmax_cross_entropy_with_integer_labels(logits, labels))


def scan_steps(
    loss: Callable[..., Array], optimizer: optax.GradientTransformation, params: Any, state: Any, batches: Any
) -> tuple[Any, Any]:
    """Parameters and optimizer's state after a step for each row of `batches`: loss(params, batch) is differentiated."""

    def step(carry: tuple[Any, Any], batch: Any) -> tuple[tuple[Any, Any], None]:
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params, batch), state, params)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (params, state), batches)[0]
