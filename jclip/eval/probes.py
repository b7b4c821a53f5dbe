"""The protocols of linear probes: how a linear classifier of frozen features is fitted, and how its strength is chosen."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jclip.config import ConfigError
from jclip.eval.logistic import LogisticFit, components, fit_prepared, prepare
from jclip.eval.probe_file import Probe, unit
from jclip.eval.scores import Score, accuracy

Protocol = Literal["openai", "clip_benchmark", "ridge", "logistic"]
Examples = tuple[np.ndarray, np.ndarray]
"""Features [n, D] float32 and labels, [n] int64 or [n, C] bool."""

OPENAI_GRID = 10.0 ** np.linspace(-6, 6, 97)
CLIP_BENCHMARK_GRID = 10.0 ** np.linspace(-6, 2, 97)
RIDGE_GRID = 10.0 ** np.linspace(-6, 6, 25)
HELD_OUT = 0.2
"""Share of train, where a search has no validation split."""
_LR, _EPOCHS, _BATCH = 0.1, 10, 64


@dataclass(frozen=True)
class _Task:
    """Arguments of all protocols."""

    train: Examples
    validation: Examples | None
    classes: int
    strength: float | None
    seed: int
    score: Score
    place: Callable[[Any], jax.Array]
    devices: int
    precise: bool

    def split(self) -> tuple[Examples, Examples]:
        """Train and validation; without one, a part of train, of each class as much."""
        if self.validation is not None:
            return self.train, self.validation
        x, y = self.train
        held = held_out(y, self.seed)
        return (x[~held], y[~held]), (x[held], y[held])

    def everything(self) -> Examples:
        """Train and validation together."""
        if self.validation is None:
            return self.train
        x, y = (np.concatenate(both) for both in zip(self.train, self.validation, strict=True))
        return x, y


def fit_probe(
    protocol: Protocol,
    train: Examples,
    validation: Examples | None,
    classes: int,
    *,
    strength: float | None = None,
    seed: int = 0,
    score: Score = accuracy,
    place: Callable[[Any], jax.Array] = jnp.asarray,
    devices: int = 1,
    precise: bool = False,
) -> Probe:
    """Fits a probe; the weights returned are always of train and validation together.

    - `openai` (Radford et al. 2021, appendix A.3), on features before the projection: L-BFGS, at most 1,000 iterations; strength
      is lambda = 1/C of scikit-learn, searched on 97 points from 1e-6 to 1e6 (`search`), each fit begun from its neighbour's.
    - `clip_benchmark`, on features after the projection, which are normalised: a linear layer from zero by AdamW, lr 0.1 falling
      to 0 as a cosine over 10 epochs in batches of 64, shuffled by `seed`; strength is the weight decay (of the bias, too, as in
      torch), searched on 97 points from 1e-6 to 1e2.
    - `ridge`, for a quick look: least squares on targets -1 and 1 in closed form; strength is scikit-learn's `alpha`, chosen of
      25 points from 1e-6 to 1e6 by leaving out one example at a time.
    - `logistic`: one fit of `fit_prepared`; strength is its `l2`.

    Args:
        protocol: see above.
        train: features [n, D] float32, finite, and labels [n] integers or, not for `clip_benchmark`, [n, C] bool.
        validation: likewise. Without it, searches hold out 20 % of train, of each class as much, drawn by `seed`.
        classes: C.
        strength: instead of a search; `logistic` needs it.
        seed: of what is drawn.
        score: the data set's metric, by which strengths are compared; of equal ones the smallest strength wins.
        place: spreads an array over devices by its first axis, for `openai` and `logistic`.
        devices: over how many.
        precise: whether the last fit of `openai` and `logistic` ends in f64, as `fit_prepared` explains.

    Raises:
        ConfigError: an unknown protocol, one that lacks a strength or cannot have several labels, or examples that do not fit.
    """
    if protocol not in _PROTOCOLS:
        raise ConfigError(f"probe: the protocol {protocol!r} is unknown; use {', '.join(get_args(Protocol))}")
    return _PROTOCOLS[protocol](_Task(train, validation, classes, strength, seed, score, place, devices, precise))


def search(score: Callable[[int], float], points: int = 97) -> tuple[int, dict[int, float]]:
    """The best index of a grid and the scores of all that were tried, coarse to fine: 11 to 15 of 97.

    Every 16th first, then the two beside the best 8 away from it, 4, 2 and 1. Of equal scores the lowest index wins, as in
    clip_benchmark. Every 16th is tried from the last to the first: a fit begun from one with a stronger penalty is short.
    """
    scores = {i: score(i) for i in reversed(range(0, points, 16))}
    best = max(sorted(scores), key=scores.__getitem__)
    for step in (8, 4, 2, 1):
        beside = [i for i in (best - step, best, best + step) if 0 <= i < points]
        scores.update({i: score(i) for i in beside if i not in scores})
        best = max(beside, key=scores.__getitem__)
    return best, scores


def held_out(labels: np.ndarray, seed: int, part: float = HELD_OUT) -> np.ndarray:
    """Examples to hold out, bool [n]: `part` of each class, at least one where it has two, never all.

    Of examples with several labels, [n, C] bool, `part` of all.

    Raises:
        ConfigError: none can be held out.
    """
    ids = np.zeros(len(labels), np.int64) if labels.ndim == 2 else labels
    rng, held = np.random.default_rng(seed), np.zeros(len(labels), bool)
    for label in np.unique(ids):
        of_class = rng.permutation(np.flatnonzero(ids == label))
        held[of_class[: min(max(round(part * len(of_class)), 1), len(of_class) - 1)]] = True
    if not held.any():
        raise ConfigError(f"probe: no class of these {len(labels)} examples has two, so none can be held out; give a strength")
    return held


def _openai(task: _Task) -> Probe:
    strength, tried, fits = task.strength, dict[int, float](), dict[int, LogisticFit]()
    if strength is None:
        (x, y), (x_validation, y_validation) = task.split()
        prepared = prepare(x, y, task.classes, place=task.place, devices=task.devices)

        def score(i: int) -> float:
            near = min(fits, key=lambda j: abs(i - j), default=None)
            fits[i] = fit_prepared(prepared, l2=OPENAI_GRID[i] / len(x), start=None if near is None else fits[near])
            return task.score(fits[i].scores(x_validation), y_validation)

        best, tried = search(score)
        strength = float(OPENAI_GRID[best])
    start = fits[best] if fits else None
    x, y = task.everything()
    fit = fit_prepared(
        prepare(x, y, task.classes, place=task.place, devices=task.devices),
        l2=strength / len(x),
        start=start,
        precise=task.precise,
    )
    return _logistic_probe("openai", strength, fit, _listed(OPENAI_GRID, tried))


def _logistic(task: _Task) -> Probe:
    if task.strength is None:
        raise ConfigError("probe: the protocol 'logistic' searches nothing; give its strength, or use 'openai'")
    x, y = task.everything()
    fit = fit_prepared(
        prepare(x, y, task.classes, place=task.place, devices=task.devices), l2=task.strength, precise=task.precise
    )
    return _logistic_probe("logistic", task.strength, fit, ())


def _logistic_probe(protocol: str, strength: float, fit: LogisticFit, tried: tuple[tuple[float, float], ...]) -> Probe:
    return Probe(fit.weights, fit.bias, protocol, strength, tried, fit.converged, fit.iterations)


def _listed(grid: np.ndarray, scores: dict[int, float]) -> tuple[tuple[float, float], ...]:
    return tuple((float(grid[i]), float(scores[i])) for i in sorted(scores))


def _clip_benchmark(task: _Task) -> Probe:
    if task.train[1].ndim == 2:
        raise ConfigError("probe: the protocol 'clip_benchmark' is for examples with one label; use 'openai' or 'ridge'")
    strength, tried = task.strength, dict[int, float]()
    if strength is None:
        train, (x_validation, y_validation) = task.split()
        fit = _adamw_on(train, task)

        def score(i: int) -> float:
            probe = fit(float(CLIP_BENCHMARK_GRID[i]))
            return task.score(probe.scores(x_validation), y_validation) if probe.converged else 0.0

        best, tried = search(score)
        strength = float(CLIP_BENCHMARK_GRID[best])
    return replace(_adamw_on(task.everything(), task)(strength), tried=_listed(CLIP_BENCHMARK_GRID, tried))


def _adamw_on(examples: Examples, task: _Task) -> Callable[[float], Probe]:
    """A function from a weight decay to the probe; `converged` is false where it diverged: the decay times lr may exceed 2."""
    x, y = examples
    n = len(x)
    steps = -(-n // _BATCH)
    rng = np.random.default_rng(task.seed)
    order = np.full((_EPOCHS, steps * _BATCH), -1, np.int32)  # -1 fills up the last batch, which is smaller
    order[:, :n] = [rng.permutation(n) for _ in range(_EPOCHS)]
    arrays = [jnp.asarray(a) for a in (unit(x).astype(np.float32), y.astype(np.int32), order.reshape(-1, _BATCH))]

    def fit(decay: float) -> Probe:
        weights, bias = (np.asarray(a, np.float64) for a in _adamw(*arrays, np.float32(decay), classes=task.classes))
        finite = bool(np.isfinite(weights).all() and np.isfinite(bias).all())
        return Probe(weights, bias, "clip_benchmark", decay, (), finite, len(order) * steps, normalised=True)

    return fit


@partial(jax.jit, static_argnames="classes")
def _adamw(x: jax.Array, y: jax.Array, order: jax.Array, decay: jax.Array, *, classes: int) -> tuple[jax.Array, jax.Array]:
    """Weights [D, C] and bias [C] after one step for each row of `order`, [steps, batch] of indices."""
    optimizer = optax.adamw(optax.cosine_decay_schedule(_LR, len(order)), weight_decay=decay)

    def loss(layer: tuple[jax.Array, jax.Array], rows: jax.Array) -> jax.Array:
        scores = jnp.matmul(x[rows], layer[0], precision="highest") + layer[1][None, :]
        losses = optax.softmax_cross_entropy_with_integer_labels(scores, y[rows])
        return jnp.sum(jnp.where(rows >= 0, losses, 0.0)) / jnp.sum(rows >= 0)

    def step(carry: Any, rows: jax.Array) -> tuple[Any, None]:
        layer, state = carry
        updates, state = optimizer.update(jax.grad(loss)(layer, rows), state, layer)
        return (optax.apply_updates(layer, updates), state), None

    layer = (jnp.zeros((x.shape[1], classes)), jnp.zeros(classes))
    (weights, bias), _ = jax.lax.scan(step, (layer, optimizer.init(layer)), order)[0]
    return weights, bias


def _ridge(task: _Task) -> Probe:
    """The fit in the coordinates of the principal components, where the normal equations are diagonal for every strength."""
    x, y = task.everything()
    mean = x.mean(axis=0, dtype=np.float64)
    variances, axes = components(x, mean)
    turned = (x - mean) @ axes
    targets = np.where(y if y.ndim == 2 else y[:, None] == np.arange(task.classes), 1.0, -1.0)
    products, bias = turned.T @ targets, targets.mean(axis=0)

    def score(strength: float) -> float:
        """Score of each example by the fit to the others, which is e / (1 - h) off, e off with it, h its leverage."""
        inverse = 1 / (len(x) * variances + strength)
        leverage = 1 / len(x) + np.square(turned) @ inverse
        off = targets - bias - turned @ (inverse[:, None] * products)
        return task.score(targets - off / np.maximum(1 - leverage, 1e-12)[:, None], y)

    strength, tried = task.strength, list[tuple[float, float]]()
    if strength is None:
        tried = [(float(s), score(s)) for s in RIDGE_GRID]
        strength = max(tried, key=lambda t: t[1])[0]
    spread = len(x) * variances + strength
    weights = axes @ (products / np.where(spread > 0, spread, 1.0)[:, None])
    return Probe(weights, bias - mean @ weights, "ridge", strength, tuple(tried))


_PROTOCOLS: dict[str, Callable[[_Task], Probe]] = {
    "openai": _openai,
    "clip_benchmark": _clip_benchmark,
    "ridge": _ridge,
    "logistic": _logistic,
}
