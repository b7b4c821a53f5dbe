"""Heads: what makes class logits of an example's embedding, as pure functions, and the accuracy of logits."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jclip.config import Model
from jclip.eval.blocks import map_rows, rows_at_a_time
from jclip.eval.ranks import TIE
from jclip.models.compute import Compute
from jclip.models.heads import make_projection
from jclip.tree import flatten


class Features(NamedTuple):
    """Embeddings of n examples: `z * norm[..., None]` is what a tower's projection gives."""

    z: np.ndarray
    """f32 [..., n, E] unit vectors."""
    norm: np.ndarray
    """f32 [..., n], their length before the norm."""

    def take(self, rows: Any) -> "Features":
        """Part of them, by an index of the first axis."""
        return Features(self.z[rows], self.norm[rows])


def linear(z: Array, norm: Array, weights: Array, scale: Array) -> Array:
    """scale z W^T: [n, C] of z [n, E] and W [C, E]."""
    return scale * _products(z, weights.T)


def cache(z: Array, norm: Array, classifier: Array, keys: Array, values: Array, alpha: Array, beta: Array, scale: Array) -> Array:
    """Tip-Adapter's logits (Zhang et al. 2022, equation 6): scale z W^T + alpha exp(-beta (1 - z K^T)) L.

    Args:
        z: [n, E] unit vectors.
        norm: [n]; not used.
        classifier: W [C, E].
        keys: K [m, E].
        values: L [m, C].
        alpha: weight of the cache.
        beta: its sharpness.
        scale: factor on cosines.
    """
    affinities = jnp.exp(-beta * (1 - _products(z, keys.T)))
    return scale * _products(z, classifier.T) + alpha * _products(affinities, values)


def adapter(z: Array, norm: Array, classifier: Array, down: Array, up: Array, ratio: Array, scale: Array) -> Array:
    """CLIP-Adapter's logits: scale unit(ratio ReLU(ReLU(x W1) W2) + (1 - ratio) x) W^T, with x = z norm.

    Args:
        z: [n, E] unit vectors.
        norm: [n], their length before the norm.
        classifier: W [C, E].
        down: W1 [E, M].
        up: W2 [M, E].
        ratio: share of the adapter; with 0 these are the classifier's own logits.
        scale: factor on cosines.
    """
    changed = jax.nn.relu(_products(jax.nn.relu(_products(z * norm[:, None], down)), up)) / norm[:, None]
    # Divided by the norm of x, which the norm of the sum takes out again: ratio 0 leaves z as it is, to the last bit.
    x = ratio * changed + (1 - ratio) * z
    length = jnp.sqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), 1e-24))
    return scale * _products(jnp.where(ratio > 0, x / length, z), classifier.T)


def _products(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision="highest", preferred_element_type=jnp.float32)


HEADS: dict[str, Callable[..., Array]] = {"linear": linear, "cache": cache, "adapter": adapter}
"""Functions (z [n, E], norm [n], the arrays by name) -> logits f32 [n, C], by the kind of head. Kinds are names in files."""

OF_MODELS = ("conditional",)
"""Kinds of heads that need the model's tower of texts: see `cocoop.bind`."""


@dataclass(frozen=True)
class Head:
    """A classifier of embeddings, with its arrays by the names of the arguments of its function."""

    kind: str
    """One of HEADS or OF_MODELS."""
    arrays: Mapping[str, np.ndarray] = field(repr=False)
    """Arrays f32; scalars are of shape []."""
    run: Callable[[Features], np.ndarray] | None = field(default=None, repr=False, compare=False)
    """Function of a head that needs the model."""

    def logits(self, features: Features) -> np.ndarray:
        """Logits f32 [n, C] of n >= 1 embeddings."""
        if self.run is not None:
            return self.run(features)
        names = tuple(sorted(self.arrays))
        widest = max(np.size(array) // max(1, array.shape[-1]) if array.ndim else 1 for array in self.arrays.values())
        block = rows_at_a_time(len(features.z), max(widest, features.z.shape[-1]))
        shared = [np.asarray(self.arrays[name], np.float32) for name in names]
        (found,) = map_rows(
            _logits,
            lambda rows: (features.z[rows], features.norm[rows]),
            len(features.z),
            shared,
            block=block,
            kind=self.kind,
            names=names,
        )
        return found

    @property
    def scale(self) -> float:
        """Factor on cosines."""
        return float(self.arrays["scale"])


def _logits(z: Array, norm: Array, *arrays: Array, kind: str, names: tuple[str, ...]) -> tuple[Array]:
    return (HEADS[kind](z, norm, **dict(zip(names, arrays, strict=True))),)


def linear_head(weights: np.ndarray, scale: float) -> Head:
    """The head of a classifier [C, E]."""
    return Head("linear", {"weights": np.asarray(weights, np.float32), "scale": scalar(scale)})


def scalar(value: float) -> np.ndarray:
    """Array f32 [] of a number."""
    return np.asarray(value, np.float32)


def right(logits: Any, labels: Any, scale: float | Array) -> Any:
    """True, bool [n], where the logit of the label is above all others, by more than cosines tie (see `ranks`) times `scale`.

    So a collapsed model is right nowhere, and the accuracy of a zero-shot head is that of the evaluation ZeroShot.

    Args:
        logits: [n, C], of numpy or jax; C >= 2.
        labels: [n] integers.
        scale: factor on cosines that is in the logits.
    """
    xp: Any = np if isinstance(logits, np.ndarray) else jnp
    own = xp.take_along_axis(logits, labels[:, None], axis=1)
    others = xp.arange(logits.shape[1])[None, :] != labels[:, None]
    return ~xp.any(others & ~(logits < own - scale * TIE), axis=1)


def accuracy(head: Head, features: Features, labels: np.ndarray) -> float:
    """Fraction of n >= 1 examples that `right` says."""
    return float(np.mean(right(head.logits(features), labels, head.scale)))


def projected_norm(model: Model, params: Mapping[str, Any], tower: str, pooled: np.ndarray) -> np.ndarray:
    """Length f32 [n] of the projection of what a tower pools, [n, d]: in f64 of one matrix, else in f32 by the model's module."""
    name, kind = f"{tower}_projection", model.towers[tower].projection
    projected = pooled.astype(np.float64)
    if kind in ("linear", "affine"):
        flat = flatten(params[name])
        projected = projected @ np.asarray(flat["kernel"], np.float64) + np.asarray(flat.get("bias", 0.0), np.float64)
    elif kind != "none":
        module = make_projection(model.towers[tower], model.embed_dim, Compute(), name)
        with jax.default_matmul_precision("highest"):
            projected = np.asarray(module.apply({"params": params[name]}, jnp.asarray(pooled, jnp.float32)), np.float64)
    return np.linalg.norm(projected, axis=-1).astype(np.float32)
