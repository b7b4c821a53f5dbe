"""The optimizer: AdamW with linear warm-up, cosine decay, and weight decay, learning rates and freezing by rule."""

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from jclip.config import ConfigError, Optim
from jclip.tree import flatten, match_rules, unflatten

STATISTICS = (r".*/(mean|var)", 0.0)
"""The rule before all others: means and variances of batch normalisation are kept as they came."""

BEFORE_BLOCKS = r"(stem\d+|patch_embed|norm_pre)/.*|cls|pos_embed|token_embed"
"""What of a transformer tower its blocks come after."""


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


def split(config: Optim, params: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Of a tree by parameters: (what is trained, what is frozen); `tree.merge` joins them again.

    Frozen is what lr_rules give the factor 0, and the statistics of batch normalisation always.

    Raises:
        ConfigError: nothing is left to train, or a parameter matches no rule.
    """
    factors, flat = flatten(match_rules(params, (STATISTICS, *config.lr_rules))), flatten(params)
    trained = {path: leaf for path, leaf in flat.items() if factors[path] != 0}
    if not trained:
        raise ConfigError("config: optim.lr_rules freeze every parameter; give one of them a factor above 0")
    return unflatten(trained), unflatten({path: leaf for path, leaf in flat.items() if path not in trained})


def lr_factors(config: Optim, params: Mapping[str, Any]) -> dict[str, Any]:
    """The factor on the learning rate of each parameter: a number, or for stacked blocks f32 [depth, 1, ...].

    It is that of lr_rules. In a tower of layer_decay with decay d and n blocks it is multiplied by d^(n - i) for block i, counted
    from 0, and by d^(n + 1) for what comes before the blocks (Bao et al. 2022, BEiT; the code they published).
    """
    flat, factors = flatten(params), flatten(match_rules(params, config.lr_rules))
    for tower, decay in config.layer_decay.items():
        blocks = [path for path in flat if path.startswith(f"{tower}/blocks/")]
        depth = flat[blocks[0]].shape[0]
        for path in blocks:
            by_block = decay ** np.arange(depth, 0, -1, dtype=np.float32)
            factors[path] *= by_block.reshape(depth, *(1,) * (flat[path].ndim - 1))
        for path in flat:
            if re.fullmatch(f"{tower}/({BEFORE_BLOCKS})", path):
                factors[path] *= decay ** (depth + 1)
    return unflatten(factors)


def make_optimizer(config: Optim, schedule: optax.Schedule, params: Mapping[str, Any]) -> optax.GradientTransformation:
    """AdamW (Loshchilov and Hutter 2019) for what is trained (see `split`) of parameters of these shapes.

    Raises:
        ConfigError: as `split` does, or weight_decay_rules leave a parameter uncovered.
    """
    decays, _ = split(config, match_rules(params, config.weight_decay_rules))
    rates, _ = split(config, lr_factors(config, params))

    def decay_and_scale(updates: Any, params: Any) -> Any:
        def one(u: Array, p: Array, decay: float, rate: Any) -> Array:
            return rate * (u + config.weight_decay * decay * p)

        return jax.tree.map(one, updates, params, decays, rates)

    clip = optax.identity() if config.clip_norm is None else optax.clip_by_global_norm(config.clip_norm)
    adam = optax.scale_by_adam(config.b1, config.b2, config.eps)
    return optax.chain(clip, adam, optax.stateless(decay_and_scale), optax.scale_by_learning_rate(schedule))


def moving_average(old: Any, new: Any, decay: Array) -> Any:
    """decay * old + (1 - decay) * new of trees; exactly `new` where decay is 0."""
    return jax.tree.map(lambda before, now: now + decay * (before - now), old, new)


def ema_decay(most: float, step: Array) -> Array:
    """The decay of the moving average after `step` completed updates: (1 + step) / (10 + step), `most` at most.

    So that the random parameters of the start are forgotten soon (TensorFlow's ExponentialMovingAverage).
    """
    step = step.astype(jnp.float32)
    return jnp.minimum(most, (1 + step) / (10 + step))
