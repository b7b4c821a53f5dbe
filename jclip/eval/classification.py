"""Quality of predicted classes: the confusion matrix, recall class by class, masks of classes, and multi-label mAP."""

from collections.abc import Sequence

import numpy as np

from jclip.config import ConfigError
from jclip.eval.ranks import TIE


def confusion_matrix(predictions: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """Confusion matrix, how often examples of each class were said to be of each: [C, C] int64, rows the truth, columns the
    prediction.

    Args:
        predictions: [n] integers, 0 to C - 1; see `zero_shot.predict_classes` for those under ties.
        labels: [n] integers, 0 to C - 1.
        classes: C.

    Raises:
        ConfigError: a number is not a class.
    """
    predictions, labels = _checked(predictions, classes, "prediction"), _checked(labels, classes, "label")
    return np.bincount(labels * classes + predictions, minlength=classes**2).reshape(classes, classes)


def per_class_recall(predictions: np.ndarray, labels: np.ndarray, classes: int) -> list[tuple[int, float | None]]:
    """(examples, the fraction of them that is predicted right) of each class; None for a class without examples.

    The mean of these fractions is `mean_per_class`. The arguments are those of `confusion_matrix`, but a prediction may be any
    number, such as -1 for none.

    Raises:
        ConfigError: a label is not a class.
    """
    labels = _checked(labels, classes, "label")
    examples = np.bincount(labels, minlength=classes).tolist()
    right = np.bincount(labels[np.asarray(predictions) == labels], minlength=classes).tolist()
    return [(n, r / n if n else None) for n, r in zip(examples, right, strict=True)]


def average_precisions(scores: np.ndarray, labels: np.ndarray, *, tie: float = TIE) -> np.ndarray:
    """The average precision of each class over the examples, without interpolation: [C] float64, NaN for one without a positive.

    With the positives of a class in falling order of their scores, the i-th stands at position p_i = i + the number of negatives
    that are not clearly below it, by more than `tie`; the average precision is the mean of i / p_i. Without ties this is
    scikit-learn's `average_precision_score`. That counts positives tied with each other as found together, and this one after the
    other, behind all negatives tied with them: never more. NaN is the worst: below all as a positive, above all as a negative.

    Args:
        scores: [n, C], the larger the likelier.
        labels: [n, C] bool.
        tie: scores closer than this are equal; the default is for cosines.
    """
    result = np.full(labels.shape[1], np.nan)
    for c in np.flatnonzero(labels.any(axis=0)):
        column, positive = scores[:, c].astype(np.float64), labels[:, c]
        found = np.sort(np.where(np.isnan(column), -np.inf, column)[positive])[::-1]
        negatives = np.sort(np.where(np.isnan(column), np.inf, column)[~positive])
        ahead = len(negatives) - np.searchsorted(negatives, found - tie, side="left")
        i = np.arange(1, len(found) + 1)
        result[c] = np.mean(i / (i + ahead))
    return result


def multi_label_metrics(scores: np.ndarray, labels: np.ndarray, *, tie: float = TIE) -> dict[str, float]:
    """ "map": the mean of `average_precisions` over the classes that have a positive.

    Args:
        scores: [n, C], cosines of examples and classes, or anything else that grows with likelihood.
        labels: [n, C] bool.
        tie: scores closer than this are equal.

    Raises:
        ConfigError: no class has a positive.
    """
    if not labels.any():
        raise ConfigError(f"evaluation: none of {len(labels)} examples has any of {labels.shape[1]} classes; check the labels")
    return {"map": float(np.nanmean(average_precisions(scores, labels, tie=tie)))}


def _checked(numbers: Sequence[int] | np.ndarray, classes: int, what: str) -> np.ndarray:
    array = np.asarray(numbers, np.int64)
    wrong = array[(array < 0) | (array >= classes)]
    if wrong.size:
        raise ConfigError(f"evaluation: {what} {wrong[0]} is not one of {classes} classes, which are 0 to {classes - 1}")
    return array
