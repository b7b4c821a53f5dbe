"""Logistic regression on features: L-BFGS in JAX, rows spread over devices, in coordinates in which it is well conditioned."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jclip.eval.lbfgs import Optimum, minimize

GRADIENT = 1e-4
"""The `LogisticFit.gradient` up to which a fit counts as converged."""
ITERATIONS = 1000
"""CLIP's limit."""
_PRECISE = 1e-8  # in f64
_AIM = 4e-6  # of scores; f32 leads to 2e-6 to 3e-6


class LogisticFit(NamedTuple):
    """A classifier: the scores of features x [n, D] are x @ weights + bias."""

    weights: np.ndarray
    """[D, C] float64."""
    bias: np.ndarray
    """[C] float64; -inf for a class without an example to fit on, which is never predicted."""
    loss: float
    """The objective at the end."""
    gradient: float
    """Distance of the optimum, by the gradient at the end: `Optimum.error`, in scores."""
    iterations: int
    """Iterations of L-BFGS."""

    @property
    def converged(self) -> bool:
        """True where the gradient vanishes."""
        return self.gradient <= GRADIENT

    def scores(self, features: np.ndarray) -> np.ndarray:
        """The scores [n, C] float64 of features [n, D]; their softmax are the probabilities."""
        scores: np.ndarray = features @ self.weights + self.bias
        return scores

    def predict(self, features: np.ndarray) -> np.ndarray:
        """The classes [n] of features [n, D]."""
        classes: np.ndarray = np.argmax(self.scores(features), axis=1)
        return classes


@dataclass(frozen=True)
class Prepared:
    """Features in the coordinates of their principal components, on the devices: what all fits to the same features share."""

    x: jax.Array
    """[devices, rows, K] float32: centred, turned, not scaled; K components have a variance."""
    y: jax.Array
    """[devices, rows] int32, indices into `present`, or [devices, rows, C] int8 for several labels; -1 in rows that only pad."""
    mean: np.ndarray
    """[D] float64."""
    axes: np.ndarray
    """[D, K] float64, the components' directions."""
    variances: np.ndarray
    """[K] float64."""
    present: np.ndarray
    """The classes that have an example, ascending."""
    n: int
    classes: int
    block: int


def prepare(
    features: np.ndarray,
    labels: np.ndarray,
    classes: int,
    *,
    place: Callable[[Any], jax.Array] = jnp.asarray,
    devices: int = 1,
    block: int = 2048,
) -> Prepared:
    """Turns features to their principal components, once for all strengths that are tried on them.

    Means, variances and directions are f64, on the host: components whose variances differ by 1e10 keep their digits. Where there
    are fewer examples than features, only the components that the examples span are kept; the others' weights are zero.

    Args:
        features: [n, D] float32, finite.
        labels: [n] integers, 0 to `classes` - 1, or [n, classes] bool where an example may have several.
        classes: number of classes C.
        place: spreads an array [devices, ...] over devices by its first axis.
        devices: over how many.
        block: rows of a device at a time, which bounds the memory of their scores.

    Raises:
        ValueError: no example, shapes that do not fit, or a label outside of the classes.
    """
    _check(features, labels, classes)
    n, several = len(features), labels.ndim == 2
    mean = features.mean(axis=0, dtype=np.float64)
    variances, axes = components(features, mean)
    present = np.flatnonzero(labels.any(axis=0)) if several else np.unique(labels)
    targets = labels[:, present].astype(np.int8) if several else np.searchsorted(present, labels).astype(np.int32)
    share = -(-n // devices)
    blocks = -(-share // block)
    block = -(-share // blocks)  # as few rows of padding as can be
    rows = blocks * block
    x = np.zeros((devices * rows, len(variances)), np.float32)
    for start in range(0, n, 65536):
        part = slice(start, min(start + 65536, n))
        x[part] = (features[part] - mean) @ axes
    y = np.full((devices * rows, *targets.shape[1:]), -1, targets.dtype)
    y[:n] = targets
    x, y = (a.reshape(devices, rows, *a.shape[1:]) for a in (x, y))
    return Prepared(place(x), place(y), mean, axes, variances, present, n, classes, block)


def fit_logistic(
    features: np.ndarray,
    labels: np.ndarray,
    classes: int,
    *,
    l2: float,
    start: LogisticFit | None = None,
    place: Callable[[Any], jax.Array] = jnp.asarray,
    devices: int = 1,
    block: int = 2048,
    iterations: int = ITERATIONS,
    precise: bool = False,
) -> LogisticFit:
    """`fit_prepared` on features that are fitted to once; the arguments are those of `prepare` and of `fit_prepared`."""
    prepared = prepare(features, labels, classes, place=place, devices=devices, block=block)
    return fit_prepared(prepared, l2=l2, start=start, iterations=iterations, precise=precise)


def fit_prepared(
    data: Prepared, *, l2: float, start: LogisticFit | None = None, iterations: int = ITERATIONS, precise: bool = False
) -> LogisticFit:
    """Minimises mean_i -log softmax(x_i W + b)[y_i] + l2/2 |W|^2; the bias is free of the penalty.

    This is scikit-learn's LogisticRegression with C = 1 / (l2 n). Where an example may have several labels, the loss is the sum
    of the classes' binary cross-entropies, which is a LogisticRegression for each class. Features are neither normalised nor
    standardised, as in CLIP (Radford et al. 2021, appendix A.3).

    L-BFGS works in the coordinates of the principal components j and begins each step with one over h_j, the diagonal of the
    Hessian averaged over classes: h_j = mean_i x_ij^2 mean_c p_ic (1 - p_ic) + l2, renewed every 16 steps. At W = 0 that is
    var_j (1/C - 1/C^2) + l2, Newton's step. Where examples are already classified well, the loss has lost nearly all of its
    curvature and the penalty has not: a scale fixed at the start, or the same for all components, is wrong there by orders of
    magnitude. It all runs on the devices in f32; f32 is enough because the residual of a well classified example is summed from
    the other classes' probabilities, not taken as 1 - p (`_multinomial`), and because the line search goes by slopes.

    Args:
        data: of `prepare`.
        l2: penalty, at least 0; without any, separable classes have no optimum.
        start: an earlier fit to features of the same size and classes, from where to begin.
        iterations: at most; a fit that needs more has `converged` false.
        precise: goes on in f64 from where f32 ends, with as many iterations again. Probabilities of f32 are within 1e-5 for the
            strengths that searches choose; where hardly any penalty holds separable classes, those of examples far from the ones
            fitted to may be 1e-3 off. It costs twice the memory and more than twice the time, on a TPU much more.
    """
    k, c = len(data.variances), len(data.present)
    weights, bias = np.zeros((len(data.mean), data.classes)), np.full(data.classes, -np.inf)
    several = data.y.ndim == 3
    if c < 2 and not several:
        bias[data.present] = 0.0
        return LogisticFit(weights, bias, 0.0, 0.0, 0)
    theta = np.zeros((k + 1, c)) if start is None else _to_components(data, start)
    found = _on_devices(data, theta, l2, iterations)
    used = int(found.iterations)
    if precise:
        with jax.enable_x64(True):
            exact = replace(data, x=data.x.astype(np.float64))
            found = _on_devices(exact, np.asarray(found.theta, np.float64), l2, iterations)
        used += int(found.iterations)
    theta = np.asarray(found.theta, np.float64)
    weights[:, data.present] = data.axes @ theta[:k]
    bias[data.present] = theta[k] - data.mean @ weights[:, data.present]
    return LogisticFit(weights, bias, float(found.loss), float(found.error), used)


def _on_devices(data: Prepared, theta: np.ndarray, l2: float, iterations: int) -> Optimum:
    """`_minimize` in the precision of the features that were prepared."""
    dtype, everywhere = data.x.dtype, _everywhere(data.x)
    placed = jax.device_put(theta.astype(dtype), everywhere)
    numbers = (dtype.type(l2), np.int32(data.n), np.int32(iterations))
    return _minimize(data.x, data.y, placed, *numbers, block=data.block, everywhere=everywhere)


def _check(features: np.ndarray, labels: np.ndarray, classes: int) -> None:
    shapes = f"features {features.shape}, labels {labels.shape}, {classes} classes"
    if features.ndim != 2 or len(features) == 0 or labels.shape not in ((len(features),), (len(features), classes)):
        raise ValueError(
            f"logistic regression: {shapes}; needs features [n, D] and labels [n] or [n, classes] of n >= 1 examples"
        )
    if labels.ndim == 1 and (labels.min() < 0 or labels.max() >= classes):
        raise ValueError(f"logistic regression: labels from {labels.min()} to {labels.max()}; use 0 to {classes - 1}")


def components(features: np.ndarray, mean: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Variances [K] and directions [D, K] of the principal components that have a variance."""
    n, d = features.shape
    if n <= d:
        _, singular, turned = np.linalg.svd(features - mean, full_matrices=False)
        variances, axes = singular**2 / n, turned.T
    else:
        covariance = np.zeros((d, d))
        for start in range(0, n, 65536):
            part = features[start : start + 65536] - mean
            covariance += part.T @ part
        variances, axes = np.linalg.eigh(covariance / n)
    # Below this, rounding; one component stays where all features are constant, so that no array is empty.
    kept = variances > max(n, d) * np.finfo(np.float64).eps * variances.max(initial=0.0)
    kept[-1 if n > d else 0] = True
    return np.maximum(variances[kept], 0.0), axes[:, kept]


def _to_components(data: Prepared, start: LogisticFit) -> np.ndarray:
    """The parameters [K+1, C] of an earlier fit; a class that it had no example of begins at the least of its biases."""
    weights, bias = start.weights[:, data.present], start.bias[data.present]
    bias = bias + data.mean @ weights
    bias = np.where(np.isfinite(bias), bias, np.min(bias, where=np.isfinite(bias), initial=0.0))
    return np.vstack([data.axes.T @ weights, bias - bias.mean()])


def _everywhere(x: jax.Array) -> Any:
    """Whole on every device that holds a part of x."""
    return NamedSharding(x.sharding.mesh, PartitionSpec()) if isinstance(x.sharding, NamedSharding) else x.sharding


@partial(jax.jit, static_argnames=("block", "everywhere"))
def _minimize(
    x: jax.Array,
    y: jax.Array,
    theta: jax.Array,
    l2: jax.Array,
    n: jax.Array,
    iterations: jax.Array,
    *,
    block: int,
    everywhere: Any,
) -> Optimum:
    """The optimum from theta [K+1, C] on; strengths and numbers of examples are arguments, so that a path compiles once."""
    constrain = partial(jax.lax.with_sharding_constraint, shardings=everywhere)
    free = jnp.ones_like(theta).at[-1].set(0.0)

    def objective(theta: jax.Array) -> tuple[jax.Array, jax.Array]:
        loss, gradient = _cross_entropy(x, y, theta, block)
        return constrain((loss / n + l2 / 2 * jnp.sum(free * theta**2), gradient / n + l2 * free * theta))

    def diagonal(theta: jax.Array) -> tuple[jax.Array, jax.Array]:
        curvature = constrain(_curvature(x, y, theta, block)) / n
        whole = jnp.broadcast_to(curvature.mean(axis=1, keepdims=True), theta.shape) + l2 * free
        tiny = 1e8 * jnp.finfo(theta.dtype).tiny
        return 1 / jnp.maximum(whole, tiny), jnp.maximum(curvature[-1].sum(), tiny)

    return minimize(objective, diagonal, theta, aim=_AIM if theta.dtype == jnp.float32 else _PRECISE, iterations=iterations)


def _cross_entropy(x: jax.Array, y: jax.Array, w: jax.Array, block: int) -> tuple[jax.Array, jax.Array]:
    """Sum over rows of the cross-entropy of x [devices, rows, K] @ w [K+1, C], and its gradient [K+1, C].

    Devices add up their own blocks; what they found is added once, at the end.
    """
    devices, rows, _ = x.shape

    def add(i: int, total: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        xs = jax.lax.dynamic_slice_in_dim(x, i * block, block, axis=1)
        ys = jax.lax.dynamic_slice_in_dim(y, i * block, block, axis=1)
        scores = jnp.einsum("drk,kc->drc", xs, w[:-1], precision="highest") + w[-1][None, None, :]
        loss, residual = (_binary if y.ndim == 3 else _multinomial)(scores, ys)
        gradient = jnp.einsum("drk,drc->dkc", xs, residual, precision="highest")
        return total[0] + loss.sum(axis=1), total[1] + gradient, total[2] + residual.sum(axis=1)

    k, c = w.shape[0] - 1, w.shape[1]
    zeros = tuple(jnp.zeros((devices, *shape), x.dtype) for shape in ((), (k, c), (c,)))
    loss, gradient, bias = jax.lax.fori_loop(0, rows // block, add, zeros)
    return loss.sum(), jnp.concatenate([gradient.sum(axis=0), bias.sum(axis=0)[None]])


def _curvature(x: jax.Array, y: jax.Array, w: jax.Array, block: int) -> jax.Array:
    """Diagonal of the Hessian of the sum of the cross-entropies, [K+1, C]; the last row is the sum of p (1 - p)."""
    devices, rows, k = x.shape

    def add(i: int, total: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        xs = jax.lax.dynamic_slice_in_dim(x, i * block, block, axis=1)
        ys = jax.lax.dynamic_slice_in_dim(y, i * block, block, axis=1)
        scores = jnp.einsum("drk,kc->drc", xs, w[:-1]) + w[-1][None, None, :]
        wrong = jnp.abs((_binary if y.ndim == 3 else _multinomial)(scores, ys)[1])
        slopes = wrong * (1 - wrong)
        return total[0] + jnp.einsum("drk,drc->dkc", xs**2, slopes), total[1] + slopes.sum(axis=1)

    c = w.shape[1]
    weights, bias = jax.lax.fori_loop(
        0, rows // block, add, (jnp.zeros((devices, k, c), x.dtype), jnp.zeros((devices, c), x.dtype))
    )
    return jnp.concatenate([weights.sum(axis=0), bias.sum(axis=0)[None]])


def _multinomial(scores: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Losses and their gradients in the scores, softmax - one-hot, without 1 - p: f32 keeps the digits of a p close to 1."""
    own = y[..., None] == jnp.arange(scores.shape[-1])[None, None, :]
    others = jnp.where(own, -jnp.inf, scores - jnp.sum(jnp.where(own, scores, 0.0), axis=-1, keepdims=True))
    top = jnp.max(others, axis=-1, keepdims=True)
    powers = jnp.exp(others - top)
    total = jnp.sum(powers, axis=-1, keepdims=True)
    odds = top + jnp.log(total)  # log of (1 - p) / p of the own class
    wrong = jnp.where(y[..., None] >= 0, jax.nn.sigmoid(odds), 0.0)
    loss = jnp.where(y >= 0, jax.nn.softplus(odds[..., 0]), 0.0)
    return loss, jnp.where(own, -wrong, powers * (wrong / total))


def _binary(scores: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Losses, summed over classes, and their gradients in the scores, sigmoid - y."""
    sign = 1.0 - 2.0 * jnp.clip(y, 0, 1).astype(scores.dtype)
    real = y >= 0
    loss = jnp.where(real, jax.nn.softplus(sign * scores), 0.0).sum(axis=-1)
    return loss, jnp.where(real, sign * jax.nn.sigmoid(sign * scores), 0.0)
