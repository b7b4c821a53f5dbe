"""The optimizer: AdamW with linear warm-up, cosine decay, and weight decay by rule."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jclip.config import Optim
from jclip.tree import match_rules


def make_schedule(config: Optim, *, warmup_steps: int, total_steps: int) -> optax.Schedule:
    """The learning rate of the update that follows `step` completed ones.

    lr (step + 1) / warmup_steps during warm-up, then a half cosine from lr to final_lr * lr at total_steps.
    """

    def schedule(step: Array | int) -> Array:
        step = jnp.asarray(step, jnp.float32)
        progress = jnp.clip((step - warmup_steps) / max(1, total_steps - warmup_steps), 0.0, 1.0)
        cosine = config.final_lr + (1 - config.final_lr) * 0.5 * (1 + jnp.cos(jnp.pi * progress))
        return config.lr * jnp.where(step < warmup_steps, (step + 1) / max(1, warmup_steps), cosine)

    return schedule


def make_optimizer(config: Optim, schedule: optax.Schedule, params: Mapping[str, Any]) -> optax.GradientTransformation:
    """AdamW (Loshchilov and Hutter 2019) for parameters of these shapes.

    Raises:
        ValueError: weight_decay_rules leave a parameter uncovered.
    """
    factors = match_rules(params, config.weight_decay_rules)

    def decay(updates: Any, params: Any) -> Any:
        return jax.tree.map(lambda u, p, factor: u + config.weight_decay * factor * p, updates, params, factors)

    clip = optax.identity() if config.clip_norm is None else optax.clip_by_global_norm(config.clip_norm)
    adam = optax.scale_by_adam(config.b1, config.b2, config.eps)
    return optax.chain(clip, adam, optax.stateless(decay), optax.scale_by_learning_rate(schedule))
