"""Metrics against scikit-learn, loops over pairs and thresholds, and numbers computed by hand."""

import numpy as np
import pytest

from jclip.eval.scores import accuracy, mean_average_precision_11, mean_per_class, roc_auc


def problem(seed, n=60, classes=4, decimals=1):
    rng = np.random.default_rng(seed)
    return np.round(rng.normal(size=(n, classes)), decimals), rng.integers(0, classes, n), rng.random((n, classes)) < 0.3


def brute_force_11_points(score, positive):
    """Every threshold in turn; of equal scores the negatives come first."""
    ranked = sorted(zip(-score, positive, strict=True))
    best = [0.0] * 11
    for k in range(1, len(ranked) + 1):
        hits = sum(own for _, own in ranked[:k])
        for t in range(11):
            if 10 * hits >= t * int(positive.sum()):
                best[t] = max(best[t], hits / k)
    return sum(best) / 11


@pytest.mark.parametrize("seed", range(3))
def test_accuracies_are_scikit_learns(seed):
    metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
    scores, labels, _ = problem(seed, decimals=9)
    assert accuracy(scores, labels) == pytest.approx(metrics.accuracy_score(labels, scores.argmax(1)))
    assert mean_per_class(scores, labels) == pytest.approx(metrics.balanced_accuracy_score(labels, scores.argmax(1)))


def test_mean_per_class_leaves_out_classes_without_examples():
    scores = np.eye(4)[[0, 0, 1, 0]]
    assert mean_per_class(scores, np.array([0, 0, 1, 1])) == pytest.approx((1 + 0.5) / 2)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("decimals", [0, 9])
def test_11_point_precision_is_that_of_every_threshold(seed, decimals):
    scores, _, labels = problem(seed, n=37, decimals=decimals)
    expected = np.mean([brute_force_11_points(scores[:, i], labels[:, i]) for i in range(4)])
    assert mean_average_precision_11(scores, labels) == pytest.approx(expected)


def test_11_point_precision_by_hand():
    # ranked: yes, no, yes. Precision 1 up to recall 0.5 (6 points), then 2/3 (5 points).
    scores, labels = np.array([[3.0], [2.0], [1.0]]), np.array([[True], [False], [True]])
    assert mean_average_precision_11(scores, labels) == pytest.approx((6 + 5 * 2 / 3) / 11)
    assert mean_average_precision_11(np.zeros((4, 1)), np.array([[True], [False], [False], [False]])) == pytest.approx(1 / 4)


def test_11_point_precision_leaves_out_classes_without_positives():
    scores, labels = np.array([[3.0, 1.0], [2.0, 2.0]]), np.array([[True, False], [False, False]])
    assert mean_average_precision_11(scores, labels) == 1.0
    with pytest.raises(ValueError, match="no example has any"):
        mean_average_precision_11(scores, np.zeros_like(labels))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("decimals", [0, 9])
def test_roc_auc_is_scikit_learns_ties_included(seed, decimals):
    metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
    scores, labels, several = problem(seed, decimals=decimals)
    assert roc_auc(scores, several) == pytest.approx(metrics.roc_auc_score(several, scores, average="macro"))
    two = labels % 2
    assert roc_auc(scores[:, :2], two) == pytest.approx(metrics.roc_auc_score(two, scores[:, 1] - scores[:, 0]))


def test_roc_auc_needs_examples_on_both_sides():
    with pytest.raises(ValueError, match="both with and without"):
        roc_auc(np.zeros((3, 2)), np.ones(3, np.int64))
