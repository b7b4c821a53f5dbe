"""The optimizer: optax's methods by name, the learning rate over the run, and weight decay, rates and freezing by rule."""

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
from jax import Array

from jclip.config import ConfigError, Optim
from jclip.tree import flatten, match_rules, unflatten

STATISTICS = (r".*/(mean|var)", 0.0)
"""The rule before all others: means and variances of batch normalisation are kept as they came."""

BEFORE_BLOCKS = r"(stem\d+|patch_embed|norm_pre)/.*|cls|pos_embed|token_embed"
"""Parameters of a transformer tower that come before its blocks, as a regex."""


def make_schedule(config: Optim, *, warmup_steps: int, total_steps: int, cooldown_steps: int = 0) -> optax.Schedule:
    """The learning rate of the update that follows `step` completed ones.

    lr (step + 1) / warmup_steps during warm-up, then what config.schedule says: half a cosine from lr to final_lr * lr at
    total_steps, or lr, or lr sqrt(warmup_steps / (step + 1)). In the last `cooldown_steps` of the run the latter two are
    multiplied by a factor that falls linearly from 1 to final_lr at total_steps.
    """

    def schedule(step: Array | int) -> Array:
        step = jnp.asarray(step, jnp.float32)
        if config.schedule == "cosine":
            progress = jnp.clip((step - warmup_steps) / max(1, total_steps - warmup_steps), 0.0, 1.0)
            after = config.final_lr + (1 - config.final_lr) * 0.5 * (1 + jnp.cos(jnp.pi * progress))
        else:
            left = jnp.clip((total_steps - step) / max(1, cooldown_steps), 0.0, 1.0) if cooldown_steps else jnp.ones(())
            after = config.final_lr + (1 - config.final_lr) * left
            if config.schedule == "inverse_sqrt":
                after *= jnp.sqrt(max(1, warmup_steps) / jnp.maximum(step + 1, max(1, warmup_steps)))
        return config.lr * jnp.where(step < warmup_steps, (step + 1) / max(1, warmup_steps), after)

    return schedule


def split(config: Optim, params: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The trained and the frozen part of a tree by parameters; `tree.merge` joins them again.

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
    """The optimizer of what is trained (see `split`) of parameters of these shapes.

    Whatever the method, an update is -lr * rate * (direction + weight_decay * decay * parameter), with rate and decay by rule;
    LAMB makes what is in the parentheses as long as the parameter, in each layer.

    Raises:
        ConfigError: as `split` does, or weight_decay_rules leave a parameter uncovered.
    """
    decays, _ = split(config, match_rules(params, config.weight_decay_rules))
    rates, _ = split(config, lr_factors(config, params))

    def decay_and_scale(updates: Any, params: Any) -> Any:
        def one(u: Array, p: Array, decay: float, rate: Any, layers: bool) -> Array:
            step = u + config.weight_decay * decay * p
            return rate * (as_long(step, p, layers) if config.method == "lamb" else step)

        return jax.tree.map(one, updates, params, decays, rates, stacked(updates))

    clip = optax.identity() if config.clip_norm is None else optax.clip_by_global_norm(config.clip_norm)
    return optax.chain(clip, _direction(config), optax.stateless(decay_and_scale), optax.scale_by_learning_rate(schedule))


def _direction(config: Optim) -> optax.GradientTransformation:
    """Gradients -> what a step goes along, by config.method."""
    dtype = None if config.mu_dtype == "float32" else config.mu_dtype  # None: that of the parameters
    adam = optax.scale_by_adam(config.b1, config.b2, config.eps, mu_dtype=dtype)
    match config.method:
        case "adamw" | "lamb":
            return adam if config.clip_update is None else _stable(adam, config)
        case "lion":
            return optax.scale_by_lion(config.b1, config.b2, mu_dtype=dtype)
        case "adafactor":
            factored = optax.scale_by_factored_rms(decay_rate_fn=_adafactor_decay)
            most = config.clip_update
            clip = optax.identity() if most is None else optax.stateless(partial(_clip_layers, most))
            return optax.chain(factored, clip, optax.ema(config.b1, debias=False, accumulator_dtype=dtype))
        case "muon":
            muon = optax.contrib.scale_by_muon(beta=config.b1, mu_dtype=dtype, weight_dimension_numbers=_matrix_axes)
            return optax.partition({"matrix": optax.chain(muon, optax.stateless(_as_adam)), "other": adam}, _kinds)


def _adafactor_decay(step: Array, power: float) -> Array:
    """Decay of Adafactor's second moment after so many steps, 1 - (step + 1)^-power, at most 0.999 (Zhai et al. 2022)."""
    return jnp.minimum(0.999, 1 - (step + 1.0) ** -power)


def stacked(tree: Any) -> Any:
    """Tree of bool: True for a parameter that holds the layers of a stack along its first axis."""
    return unflatten({path: "/blocks/" in path for path in flatten(tree)})


def as_long(step: Array, param: Array, layers: bool) -> Array:
    """A step as long as the parameter, in each layer; as it is where one of them is 0 (You et al. 2020, LAMB)."""
    trust = optax.scale_by_trust_ratio()

    def one(step: Array, param: Array) -> Array:
        scaled: Array = trust.update(step, trust.init(param), param)[0]
        return scaled

    return jax.vmap(one)(step, param) if layers else one(step, param)


def _rms(x: Array, layers: bool) -> Array:
    """Root mean square, of each layer [depth, 1, ...] or of all."""
    return jnp.sqrt(jnp.mean(jnp.square(x), axis=tuple(range(int(layers), x.ndim)), keepdims=True))


def _clip_layers(most: float, updates: Any, params: Any = None) -> Any:
    """Updates divided by what their root mean square is above `most`, in each layer."""
    return jax.tree.map(lambda u, layers: u / jnp.maximum(1, _rms(u, layers) / most), updates, stacked(updates))


def _stable(adam: optax.GradientTransformation, config: Optim) -> optax.GradientTransformation:
    """Adam, its update divided by what the root mean square of g / sqrt(v) is above config.clip_update, in each layer
    (Wortsman et al. 2023, algorithm 2; v without bias as theirs is, which AdamW's correction makes it)."""
    most = config.clip_update
    assert most is not None

    def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        updates, state = adam.update(grads, state, params)
        bias = 1 - config.b2 ** state.count.astype(jnp.float32)

        def one(u: Array, g: Array, nu: Array, layers: bool) -> Array:
            ratio = g / jnp.sqrt(jnp.maximum(nu / bias, config.eps**2))
            return u / jnp.maximum(1, _rms(ratio, layers) / most)

        return jax.tree.map(one, updates, grads, state.nu, stacked(updates)), state

    return optax.GradientTransformation(adam.init, update)


def _kinds(params: Any) -> Any:
    """Muon's: which parameters are matrices of a stack, [depth, in, out]."""
    flat = flatten(params)
    matrices = {path for path, leaf in flat.items() if re.fullmatch(".*/blocks/.*/kernel", path) and leaf.ndim == 3}
    return unflatten({path: "matrix" if path in matrices else "other" for path in flat})


def _matrix_axes(updates: Any) -> Any:
    return jax.tree.map(lambda _: optax.contrib.MuonDimensionNumbers(reduction_axis=1, output_axis=2), updates)


def _as_adam(updates: Any, params: Any = None) -> Any:
    """An orthogonal matrix times 0.2 sqrt(max(in, out)): then its root mean square is 0.2, about that of an update of Adam
    (Liu et al. 2025, section 2.2)."""
    return jax.tree.map(lambda u: 0.2 * max(u.shape[1:]) ** 0.5 * u, updates)


def moving_average(old: Any, new: Any, decay: Array) -> Any:
    """decay * old + (1 - decay) * new of trees; exactly `new` where decay is 0."""
    return jax.tree.map(lambda before, now: now + decay * (before - now), old, new)


def ema_decay(most: float, step: Array) -> Array:
    """The decay of the moving average after `step` completed updates: (1 + step) / (10 + step), `most` at most.

    So that the random parameters of the start are forgotten soon (TensorFlow's ExponentialMovingAverage).
    """
    step = step.astype(jnp.float32)
    return jnp.minimum(most, (1 + step) / (10 + step))
