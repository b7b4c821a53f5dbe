"""k nearest neighbours: an example is of the class that its nearest training examples vote for."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jclip.config import ConfigError
from jclip.eval.blocks import SCORES, map_rows, rows_at_a_time


def nearest(
    queries: np.ndarray,
    candidates: np.ndarray,
    k: int,
    *,
    block: int | None = None,
    devices: Sequence[jax.Device] | None = None,
    progress: str | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest candidates of each query by cosine, nearest first; of equal ones, those that come first.

    NaN is the farthest, and reported as -inf. Scores are never held whole; see `rank_answers`, also for the arguments.

    Returns:
        cosines [n, k] float32, and indices [n, k] int64 of candidates.
    """
    n, m = len(queries), len(candidates)
    queries, candidates = np.asarray(queries, np.float32), np.asarray(candidates, np.float32)
    block = min(n, block) if block else rows_at_a_time(n, m)
    scores, indices = map_rows(
        _block_nearest, lambda i: (queries[i],), n, (candidates,), block=block, devices=devices, progress=progress, k=k
    )
    return scores, indices.astype(np.int64)


def knn_predict(
    train_z: np.ndarray,
    train_labels: np.ndarray,
    test_z: np.ndarray,
    classes: int,
    k: int,
    *,
    temperature: float | None = 0.07,
    devices: Sequence[jax.Device] | None = None,
    progress: str | None = None,
) -> np.ndarray:
    """The class [n] int64 that most of the k nearest training examples are of, with the weights exp(cosine / temperature).

    Weighted as in Wu et al. 2018 (section 3.4), who use k = 200 and 0.07, and Caron et al. 2021 (DINO), k = 20. Of classes with
    equal votes the first wins, as in scikit-learn's KNeighborsClassifier. A neighbour at NaN has no vote; an example without a
    vote is of class -1, and so counts as wrong.

    Args:
        train_z: [m, E] float32 unit vectors.
        train_labels: [m] integers, 0 to C - 1.
        test_z: [n, E] float32 unit vectors.
        classes: C.
        k: neighbours, 1 to m.
        temperature: of the weights; None: every neighbour has one vote.
        devices: where to compute; by default on every device of this process.
        progress: what a progress bar on stderr is called, which appears when this lasts; None: no bar.

    Raises:
        ConfigError: k or the temperature is out of range.
    """
    if not 1 <= k <= len(train_z):
        raise ConfigError(f"k-NN: k is {k}, and there are {len(train_z)} training examples; use 1 to {len(train_z)}")
    if temperature is not None and not temperature > 0:
        raise ConfigError(f"k-NN: the temperature is {temperature}; use a positive number, or None for a plain majority")
    scores, neighbours = nearest(test_z, train_z, k, devices=devices, progress=progress)
    labels = np.asarray(train_labels, np.int64)[neighbours]
    predictions = np.empty(len(scores), np.int64)
    step = max(1, SCORES // 2 // max(k, classes))
    for start in range(0, len(scores), step):
        part = slice(start, start + step)
        predictions[part] = _vote(scores[part].astype(np.float64), labels[part], classes, temperature)
    return predictions


def _vote(scores: np.ndarray, labels: np.ndarray, classes: int, temperature: float | None) -> np.ndarray:
    """Classes [b] of cosines and labels [b, k]; -1 where there is no vote."""
    real = np.isfinite(scores)
    # Relative to the nearest, which changes no vote and cannot overflow.
    top = np.where(real[:, :1], scores[:, :1], 0.0)
    weights = np.where(real, 1.0 if temperature is None else np.exp((scores - top) / temperature), 0.0)
    cells = np.arange(len(scores))[:, None] * classes + labels
    votes = np.bincount(cells.ravel(), weights=weights.ravel(), minlength=len(scores) * classes).reshape(-1, classes)
    return np.where(real.any(axis=1), np.argmax(votes, axis=1), -1)


def _block_nearest(queries: jax.Array, candidates: jax.Array, *, k: int) -> tuple[jax.Array, jax.Array]:
    scores = jnp.matmul(queries, candidates.T, precision="highest", preferred_element_type=jnp.float32)
    found, indices = jax.lax.top_k(jnp.where(jnp.isnan(scores), -jnp.inf, scores), k)
    return found, indices
