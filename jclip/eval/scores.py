"""Metrics of data sets: numbers from scores and labels. Higher is better for all of them, and the best is 1."""

from collections.abc import Callable, Mapping

import numpy as np
from scipy.stats import rankdata

from jclip.config import ConfigError
from jclip.eval import labels as by_label

Score = Callable[[np.ndarray, np.ndarray], float]
"""Metric: scores [n, C] and labels, [n] integers or [n, C] bool, to the metric."""


def accuracy(scores: np.ndarray, labels: np.ndarray) -> float:
    """Fraction of examples whose own class has the highest score; a class that shares it is right only if it comes first.

    Args:
        scores: [n, C].
        labels: [n] integers.
    """
    return float(np.mean(np.argmax(scores, axis=1) == labels))


def mean_per_class(scores: np.ndarray, labels: np.ndarray) -> float:
    """`accuracy` of the examples of each class, averaged over the classes that have any."""
    return by_label.mean_per_class(np.argmax(scores, axis=1) == labels, labels)


def mean_average_precision_11(scores: np.ndarray, labels: np.ndarray) -> float:
    """Mean over classes of the 11-point interpolated average precision, as Pascal VOC had it up to 2007 (Everingham et al. 2010).

    The average over recalls 0, 0.1, ..., 1 of the highest precision at that recall or more. Among equal scores, examples that
    do not have the class come first, so that a constant score earns nothing. Classes that no example has are left out.

    Args:
        scores: [n, C].
        labels: [n, C] bool, or [n] integers where each example has one class.

    Raises:
        ConfigError: no example has any class.
    """
    values = []
    for score, positive in _by_class(scores, labels):
        if not positive.any():
            continue
        hits = positive[np.lexsort((positive, -score))]
        found = np.cumsum(hits)
        precisions = found / np.arange(1, len(hits) + 1)
        best_from_here = np.maximum.accumulate(precisions[::-1])[::-1]
        needed = -(-np.arange(11) * found[-1] // 10)  # positives for a recall of 0, 0.1, ..., in integers, exactly
        values.append(np.mean(best_from_here[np.searchsorted(found, needed)]))
    if not values:
        raise ConfigError("average precision: no example has any of the classes; give labels with at least one positive")
    return float(np.mean(values))


def roc_auc(scores: np.ndarray, labels: np.ndarray) -> float:
    """Area under the ROC curve: how often an example of a class has a higher score than one without, ties as half.

    The mean over the classes that some examples have and others have not; of two exclusive classes the one area there is, by the
    difference of the two scores.

    Args:
        scores: [n, C].
        labels: [n] integers, or [n, C] bool.

    Raises:
        ConfigError: no class has examples both with and without it.
    """
    if labels.ndim == 1 and scores.shape[1] == 2:
        scores, labels = (scores[:, 1] - scores[:, 0])[:, None], (labels == 1)[:, None]
    values = []
    for score, positive in _by_class(scores, labels):
        p = int(positive.sum())
        if 0 < p < len(positive):
            values.append((rankdata(score)[positive].sum() - p * (p + 1) / 2) / (p * (len(positive) - p)))
    if not values:
        raise ConfigError("ROC-AUC: no class has examples both with and without it; give labels that have")
    return float(np.mean(values))


SCORES: Mapping[str, Score] = {
    "accuracy": accuracy,
    "mean_per_class": mean_per_class,
    "map11": mean_average_precision_11,
    "roc_auc": roc_auc,
}
"""Scores by the names that configs have for them."""


def _by_class(scores: np.ndarray, labels: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Scores [n] and labels [n] bool, for each class."""
    several = labels.astype(bool) if labels.ndim == 2 else labels[:, None] == np.arange(scores.shape[1])
    return list(zip(scores.T, several.T, strict=True))
