"""The linear probe: multinomial logistic regression on `pooled`, fitted by L-BFGS (Radford et al. 2021, appendix A.3)."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize

from jclip.config import LinearProbe, Model
from jclip.data import Source, Transform, eval_transform, open_source
from jclip.eval.embed import Embedded, Functions, embed_source
from jclip.eval.labels import class_names, label_reader, mean_per_class

log = logging.getLogger(__name__)

_GRADIENT = 1e-4  # scikit-learn's `tol`; below it, f32 gradients are noise
_ITERATIONS = 1000  # CLIP's limit


class LogisticFit(NamedTuple):
    """A classifier: the scores of features x [n, D] are x @ weights + bias."""

    weights: np.ndarray
    """[D, C] float64."""
    bias: np.ndarray
    """[C] float64; -inf for a class without an example to fit on, which is never predicted."""
    loss: float
    """The objective at the end."""
    gradient: float
    """Largest absolute entry of the gradient at the end, in the scaled coordinates of `fit_logistic`."""
    iterations: int
    """Of L-BFGS."""

    @property
    def converged(self) -> bool:
        """Whether the gradient vanishes."""
        return self.gradient <= _GRADIENT

    def predict(self, features: np.ndarray) -> np.ndarray:
        """The classes [n] of features [n, D]."""
        classes: np.ndarray = np.argmax(features @ self.weights + self.bias, axis=1)
        return classes


def fit_logistic(features: np.ndarray, labels: np.ndarray, classes: int, *, l2: float, block: int = 4096) -> LogisticFit:
    """Minimises mean_i -log softmax(x_i W + b)[y_i] + l2/2 |W|^2 from zero; the bias is free of the penalty.

    This is scikit-learn's LogisticRegression with C = 1 / (l2 n). Features are neither normalised nor standardised, as in CLIP.
    L-BFGS works in other coordinates, which change its speed and nothing else: x' = (x - mean) / s with one number for all
    features, s^2 = mean variance + C l2. The free bias takes up the mean and the penalty becomes l2/2 |W' / s|^2, so the optimum
    is the same, while loss (curvature about variance / C) and penalty (l2) are as steep in W' as the loss is in the bias (1 / C).
    The cross-entropy is in f32 on one device, in blocks that bound the memory of the logits; sums over blocks and the penalty
    are in f64.

    Args:
        features: [n, D] float32, finite.
        labels: [n] integers, 0 to `classes` - 1.
        classes: number of classes C.
        l2: penalty, at least 0.
        block: rows at a time; the result does not depend on it, but for rounding.
    """
    present, targets = np.unique(labels, return_inverse=True)
    (n, d), c = features.shape, len(present)
    mean = features.mean(axis=0, dtype=np.float64)
    s = float(np.sqrt(features.var(axis=0, dtype=np.float64).mean() + c * l2)) or 1.0
    cross_entropy = _cross_entropy_of(((features - mean) / s).astype(np.float32), targets.astype(np.int32), c, min(block, n))

    def objective(theta: np.ndarray) -> tuple[float, np.ndarray]:
        weights = theta.reshape(d + 1, c)
        value, gradient = cross_entropy(weights)
        gradient[:d] += l2 / s**2 * weights[:d]
        return value + l2 / 2 * float(np.sum(np.square(weights[:d] / s))), gradient.ravel()

    # ftol 0: in f32 the loss stops changing before the gradient does; the line search then ends the search.
    options = {"maxiter": _ITERATIONS, "maxfun": 2 * _ITERATIONS, "gtol": _GRADIENT / 100, "ftol": 0.0}
    found = scipy.optimize.minimize(objective, np.zeros((d + 1) * c), jac=True, method="L-BFGS-B", options=options)
    theta = found.x.reshape(d + 1, c)
    weights, bias = np.zeros((d, classes)), np.full(classes, -np.inf)
    weights[:, present] = theta[:d] / s
    bias[present] = theta[d] - mean @ weights[:, present]
    return LogisticFit(weights, bias, float(found.fun), float(np.max(np.abs(found.jac))), int(found.nit))


@dataclass(frozen=True)
class LinearProbeEvaluator:
    """Yields top1 and mean_per_class on the test source, examples, and broken (of both sources) where there are any."""

    config: LinearProbe
    functions: Functions
    train: Source
    test: Source
    classes: tuple[str, ...]
    transform: Transform

    def run(self, params: Any) -> Iterator[tuple[str, float]]:
        train, test = self._embed(params, self.train), self._embed(params, self.test)
        x_train, x_test = train.features[self.config.tower], test.features[self.config.tower]
        y_train, y_test = train.extra[self.config.label], test.extra[self.config.label]
        correct = self._correct(x_train, y_train, x_test, y_test)
        yield "top1", float(np.mean(correct))
        yield "mean_per_class", mean_per_class(correct, y_test)
        yield "examples", len(y_test)
        if train.broken + test.broken:
            yield "broken", train.broken + test.broken

    def _embed(self, params: Any, source: Source) -> Embedded:
        extra = {self.config.label: label_reader(self.classes)}
        transforms = {self.config.tower: self.transform}
        return embed_source(self.functions, params, source, transforms, fields=self.config.fields, extra=extra, part="pooled")

    def _correct(self, x_train: np.ndarray, y_train: np.ndarray, x_test: np.ndarray, y_test: np.ndarray) -> np.ndarray:
        if not (np.isfinite(x_train).all() and np.isfinite(x_test).all()):
            log.warning("linear probe on %s: features are not finite; every prediction counts as wrong", self.config.source)
            return np.zeros(len(y_test), bool)
        fit = fit_logistic(x_train, y_train, len(self.classes), l2=self.config.l2)
        if not fit.converged:
            log.warning(
                "linear probe on %s: not converged after %d iterations, gradient %.1e (limit %.0e); l2 %g may be too small",
                self.config.source,
                fit.iterations,
                fit.gradient,
                _GRADIENT,
                self.config.l2,
            )
        correct: np.ndarray = fit.predict(x_test) == y_test
        return correct


def make_linear_probe(config: LinearProbe, model: Model, functions: Functions) -> LinearProbeEvaluator:
    """Opens both sources.

    Raises:
        ValueError: no class names are given and the test source has none.
    """
    train, test = open_source(config.train), open_source(config.source)
    classes = class_names(config.classes, test, config.source)
    return LinearProbeEvaluator(config, functions, train, test, classes, eval_transform(model.towers[config.tower]))


def _cross_entropy_of(
    x: np.ndarray, targets: np.ndarray, classes: int, block: int
) -> Callable[[np.ndarray], tuple[float, np.ndarray]]:
    """A function from weights [D+1, C] (the last row is the bias) to the mean cross-entropy and its gradient, in f64."""
    n, d = x.shape
    blocks = -(-n // block)
    padding = blocks * block - n
    xs = jnp.asarray(np.pad(x, ((0, padding), (0, 0))).reshape(blocks, block, d))
    ys = jnp.asarray(np.pad(targets, (0, padding), constant_values=-1).reshape(blocks, block))  # -1: no class, so no loss

    def block_loss(theta: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
        logits = jnp.matmul(x, theta[:d], precision="highest") + theta[d][None, :]
        own = jnp.sum(jnp.where(y[:, None] == jnp.arange(classes)[None, :], logits, 0.0), axis=1)
        return jnp.sum(jnp.where(y >= 0, jax.nn.logsumexp(logits, axis=1) - own, 0.0))

    @jax.jit
    def losses_and_gradient(theta: jax.Array, xs: jax.Array, ys: jax.Array) -> tuple[jax.Array, jax.Array]:
        def add(total: jax.Array, xy: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            loss, gradient = jax.value_and_grad(block_loss)(theta, *xy)
            return total + gradient, loss

        gradient, losses = jax.lax.scan(add, jnp.zeros_like(theta), (xs, ys))
        return losses, gradient

    def cross_entropy(weights: np.ndarray) -> tuple[float, np.ndarray]:
        losses, gradient = losses_and_gradient(jnp.asarray(weights, jnp.float32), xs, ys)
        return float(np.asarray(losses, np.float64).sum()) / n, np.asarray(gradient, np.float64) / n

    return cross_entropy
