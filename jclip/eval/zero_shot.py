"""Zero-shot classification: an image belongs to the class whose prompts it is nearest to (Radford et al. 2021, section 3.1)."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jclip.eval.blocks import map_rows, rows_at_a_time
from jclip.eval.labels import mean_per_class
from jclip.eval.ranks import TIE, ranks

KS = (1, 5)
"""Places that the right class may have, where none are given."""


def class_embeddings(z: np.ndarray) -> np.ndarray:
    """One vector a class: each prompt's vector is normalised, then averaged over templates, then normalised again.

    The order matters: a long vector would otherwise outvote the others.

    Args:
        z: [C, T, E] float32, classes by templates.

    Returns:
        [C, E] float32 unit vectors.
    """
    return _normalise(_normalise(z).mean(axis=1))


def zero_shot_metrics(z: np.ndarray, classes: np.ndarray, labels: np.ndarray, ks: Sequence[int] = KS) -> dict[str, float]:
    """Fractions of examples whose class is nearest, or among the k nearest.

    An example whose class is tied with another counts as wrong (see `ranks`): a collapsed model scores 0. So do two classes with
    equal prompts, between which no model can choose.

    Args:
        z: [n, E] float32 unit vectors of the examples.
        classes: [C, E] float32 unit vectors of the classes.
        labels: [n] integers, 0 to C - 1.
        ks: rising, from 1 on.

    Returns:
        "topK" of each k, where there are at least k classes; "mean_per_class": top1 averaged over the classes present in
        `labels`; with 10 among `ks` "map@10": the mean of 1 / rank where that is at most 10, and of 0 elsewhere, which is the
        mean average precision at 10 of queries with one right answer.
    """
    return _metrics_of_ranks(ranks(z, classes, labels, np.arange(len(classes))), labels, len(classes), ks)


def score_metrics(scores: np.ndarray, labels: np.ndarray, ks: Sequence[int] = KS) -> dict[str, float]:
    """The metrics of `zero_shot_metrics`, of scores f32 [n, C] in cosines: of a head that is no list of vectors."""
    own = np.take_along_axis(scores, labels[:, None], axis=1)
    others = np.arange(scores.shape[1])[None, :] != labels[:, None]
    rank = 1 + np.sum(others & ~(scores < own - TIE), axis=1)
    return _metrics_of_ranks(rank, labels, scores.shape[1], ks)


def _metrics_of_ranks(rank: np.ndarray, labels: np.ndarray, classes: int, ks: Sequence[int]) -> dict[str, float]:
    metrics = {f"top{k}": float(np.mean(rank <= k)) for k in ks if k <= max(1, classes)}
    metrics["mean_per_class"] = mean_per_class(rank <= 1, labels)
    if 10 in ks:
        metrics["map@10"] = float(np.mean(np.where(rank <= 10, 1 / rank, 0)))
    return metrics


def predict_classes(z: np.ndarray, classes: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The class [n] int64 that each example is said to be of: its label exactly where `zero_shot_metrics` counts it right.

    That is its own class where no other is as near, to within the margin of a tie, and otherwise the nearest of the other classes
    (the first of equal ones; NaN is nearest). So an example tied between its class and another is predicted as the other.

    Args:
        z: [n, E] float32 unit vectors of the examples.
        classes: [C, E] float32 unit vectors of the classes.
        labels: [n] integers, 0 to C - 1.
    """
    z, labels = np.asarray(z, np.float32), np.asarray(labels, np.int32)
    block = rows_at_a_time(len(z), len(classes))
    (predictions,) = map_rows(_predict, lambda i: (z[i], labels[i]), len(z), (np.asarray(classes, np.float32),), block=block)
    return predictions.astype(np.int64)


def _predict(z: jax.Array, labels: jax.Array, classes: jax.Array) -> tuple[jax.Array]:
    scores = jnp.matmul(z, classes.T, precision="highest", preferred_element_type=jnp.float32)
    own = jnp.take_along_axis(scores, labels[:, None], axis=1)
    others = jnp.arange(len(classes))[None, :] != labels[:, None]
    ahead = jnp.any(others & ~(scores < own - TIE), axis=1)
    nearest = jnp.argmax(jnp.where(others, jnp.where(jnp.isnan(scores), jnp.inf, scores), -jnp.inf), axis=1)
    return (jnp.where(ahead, nearest, labels),)


def _normalise(x: np.ndarray) -> np.ndarray:
    """Unit vectors along the last axis; a zero vector stays zero, and so is near nothing."""
    norm = np.linalg.norm(x, axis=-1, keepdims=True)
    unit: np.ndarray = x / np.maximum(norm, np.finfo(np.float32).tiny)
    return unit
