"""Tables of predictions and multi-label mAP, against scikit-learn and values made by hand."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, recall_score
from sklearn.metrics import confusion_matrix as sklearn_confusion

from jclip.eval.classification import (
    average_precisions,
    confusion_matrix,
    multi_label_metrics,
    per_class_recall,
)
from jclip.eval.labels import mean_per_class
from jclip.eval.ranks import TIE


@pytest.mark.parametrize(("n", "classes"), [(200, 7), (30, 40), (1, 2)])
def test_confusion_and_recall_equal_scikit_learn(n, classes):
    rng = np.random.default_rng(n)
    predictions, labels = rng.integers(0, classes, n), rng.integers(0, classes, n)
    matrix = confusion_matrix(predictions, labels, classes)
    assert matrix.dtype == np.int64
    np.testing.assert_array_equal(matrix, sklearn_confusion(labels, predictions, labels=np.arange(classes)))
    recalls = per_class_recall(predictions, labels, classes)
    assert [count for count, _ in recalls] == matrix.sum(axis=1).tolist()
    expected = recall_score(labels, predictions, labels=np.unique(labels), average=None)
    np.testing.assert_allclose([recall for _, recall in recalls if recall is not None], expected)
    present = [recall for count, recall in recalls if count]
    assert mean_per_class(predictions == labels, labels) == pytest.approx(np.mean(present))


def test_one_class():
    zeros = np.zeros(3, int)
    np.testing.assert_array_equal(confusion_matrix(zeros, zeros, 1), [[3]])
    assert per_class_recall(zeros, zeros, 1) == [(3, 1.0)]


def test_a_class_without_examples_has_no_recall_and_no_prediction_is_wrong():
    assert per_class_recall(np.array([0, 0, -1]), np.array([0, 2, 2]), 4) == [(1, 1.0), (0, None), (2, 0.0), (0, None)]


def test_numbers_that_are_no_class_are_refused():
    with pytest.raises(ValueError, match="label 3 is not one of 3 classes, which are 0 to 2"):
        confusion_matrix(np.array([0, 1]), np.array([0, 3]), 3)
    with pytest.raises(ValueError, match="prediction -1 is not one of 3"):
        confusion_matrix(np.array([0, -1]), np.array([0, 1]), 3)


@pytest.mark.parametrize(("n", "classes", "seed"), [(60, 5, 0), (7, 1, 1), (200, 20, 2)])
def test_average_precision_equals_scikit_learn_when_nothing_is_tied(n, classes, seed):
    rng = np.random.default_rng(seed)
    scores, labels = rng.normal(size=(n, classes)), rng.random((n, classes)) < 0.2
    labels[0] = True
    expected = [average_precision_score(labels[:, c], scores[:, c]) for c in range(classes)]
    np.testing.assert_allclose(average_precisions(scores, labels), expected, rtol=1e-12)
    assert multi_label_metrics(scores, labels) == pytest.approx({"map": np.mean(expected)})


def test_average_precision_under_ties_equals_the_worst_order_and_is_at_most_scikit_learn():
    rng = np.random.default_rng(3)
    scores, labels = rng.integers(0, 4, (40, 6)).astype(float), rng.random((40, 6)) < 0.3
    worst = scores + np.where(labels, 0, 0.5)  # negatives ahead of the positives they are tied with
    worst += 1e-3 * rng.random((40, 6))  # and all different
    expected = [average_precision_score(labels[:, c], worst[:, c]) for c in range(6)]
    found = average_precisions(scores, labels)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    theirs = np.array([average_precision_score(labels[:, c], scores[:, c]) for c in range(6)])
    assert np.all(found <= theirs + 1e-12)
    assert np.any(found < theirs - 0.01)


def test_scores_within_the_margin_are_tied():
    labels = np.array([[True], [False]])
    assert average_precisions(np.array([[0.5], [0.5 - TIE / 2]]), labels) == [0.5]
    assert average_precisions(np.array([[0.5], [0.5 - 2 * TIE]]), labels) == [1.0]
    assert average_precisions(np.array([[0.5], [0.5 - 2 * TIE]]), labels, tie=0.1) == [0.5]
    assert average_precisions(np.array([[0.5], [0.5]]), labels, tie=0.0) == [0.5]


def test_classes_without_a_positive_are_left_out_and_one_without_a_negative_is_perfect():
    labels = np.array([[True, False, True], [True, False, False]])
    scores = np.array([[0.1, 0.2, 0.3], [0.1, 0.2, 0.9]])
    np.testing.assert_array_equal(average_precisions(scores, labels), [1.0, np.nan, 0.5])
    assert multi_label_metrics(scores, labels) == {"map": 0.75}
    with pytest.raises(ValueError, match="none of 2 examples has any of 3 classes"):
        multi_label_metrics(scores, np.zeros_like(labels))


def test_nan_is_the_worst_and_a_collapsed_model_gets_the_worst_order():
    labels = np.array([[True], [False], [True], [False]])
    worst = (1 / 3 + 2 / 4) / 2
    assert average_precisions(np.full((4, 1), np.nan), labels) == worst
    assert average_precisions(np.full((4, 1), 0.3), labels) == worst
    assert average_precisions(np.array([[0.9], [np.nan], [0.8], [0.1]]), labels) == (1 / 2 + 2 / 3) / 2
    assert average_precisions(np.array([[np.nan], [0.2], [0.8], [0.1]]), labels) == (1 + 2 / 4) / 2
