"""k nearest neighbours against brute force and scikit-learn."""

import jax
import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from jclip.eval import knn
from jclip.eval.knn import knn_predict, nearest


def clusters(seed, n, classes=6, e=8):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    z = 0.8 * np.random.default_rng(99).normal(size=(classes, e))[labels] + rng.normal(size=(n, e))
    return (z / np.linalg.norm(z, axis=1, keepdims=True)).astype(np.float32), labels


@pytest.mark.parametrize("k", [1, 5, 20])
def test_the_majority_equals_scikit_learn(k):
    (train, labels), (test, _) = clusters(0, 203), clusters(1, 71)
    expected = (
        KNeighborsClassifier(k, metric="cosine", algorithm="brute").fit(train.astype(float), labels).predict(test.astype(float))
    )
    np.testing.assert_array_equal(knn_predict(train, labels, test, 6, k, temperature=None), expected)


@pytest.mark.parametrize("temperature", [0.07, 1.0, 1e-4])
def test_the_weighted_vote_equals_brute_force(temperature):
    (train, labels), (test, _) = clusters(2, 150), clusters(3, 47)
    found = knn_predict(train, labels, test, 6, 20, temperature=temperature)
    for row, z in zip(found, test.astype(float), strict=True):
        scores = train.astype(float) @ z
        votes = np.zeros(6)
        for i in np.argsort(-scores)[:20]:
            votes[labels[i]] += np.exp((scores[i] - scores.max()) / temperature)
        assert row == np.argmax(votes)


def test_weights_and_majority_may_disagree():
    test = np.array([[1, 0]], np.float32)
    angles = np.array([0.01, 1.0, 1.1])
    train = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    assert knn_predict(train, np.array([1, 0, 0]), test, 2, 3) == [1]
    assert knn_predict(train, np.array([1, 0, 0]), test, 2, 3, temperature=None) == [0]


def test_of_equal_votes_the_first_class_wins_and_of_equal_neighbours_the_first():
    z = np.tile(np.array([[0.6, 0.8]], np.float32), (4, 1))
    assert knn_predict(z, np.array([2, 1, 1, 2]), z[:1], 3, 4, temperature=None) == [1]
    assert knn_predict(z, np.array([2, 1, 1, 2]), z[:1], 3, 1) == [2]


def test_nan_has_no_vote_and_an_example_without_a_vote_has_no_class():
    (train, labels), (test, _) = clusters(4, 30), clusters(5, 40)
    test[1] = np.nan
    spoiled = np.concatenate([np.full((5, 8), np.nan, np.float32), train])
    for k in (10, 30, 35):  # the last has to take those at NaN too
        found = knn_predict(spoiled, np.concatenate([np.zeros(5, int), labels]), test, 6, k)
        assert found[1] == -1
        np.testing.assert_array_equal(np.delete(found, 1), np.delete(knn_predict(train, labels, test, 6, min(k, 30)), 1))


def test_one_class_and_classes_without_training_examples():
    (train, _), (test, _) = clusters(6, 12), clusters(7, 5)
    np.testing.assert_array_equal(knn_predict(train, np.zeros(12, int), test, 1, 3), 0)
    np.testing.assert_array_equal(knn_predict(train, np.full(12, 3), test, 9, 12), 3)


def test_neighbours_are_sorted_and_identical_on_1_2_and_8_devices():
    (train, _), (test, _) = clusters(8, 101), clusters(9, 37)
    found = [nearest(test, train, 7, block=3, devices=jax.devices()[:count]) for count in (1, 2, 8)]
    for other in found[1:]:
        np.testing.assert_array_equal(other[0], found[0][0])
        np.testing.assert_array_equal(other[1], found[0][1])
    scores = test.astype(float) @ train.T.astype(float)
    np.testing.assert_array_equal(found[0][1], np.argsort(-scores, axis=1)[:, :7])
    np.testing.assert_allclose(found[0][0], -np.sort(-scores, axis=1)[:, :7], atol=1e-6)


def test_votes_are_counted_in_parts(monkeypatch):
    (train, labels), (test, _) = clusters(10, 60), clusters(11, 23)
    whole = knn_predict(train, labels, test, 6, 9)
    monkeypatch.setattr(knn, "SCORES", 40)  # two rows at a time
    np.testing.assert_array_equal(knn_predict(train, labels, test, 6, 9), whole)


@pytest.mark.parametrize(
    ("k", "temperature", "message"),
    [
        (0, 0.07, "k is 0, and there are 12 training examples; use 1 to 12"),
        (13, None, "k is 13"),
        (3, 0.0, "temperature is 0.0; use a positive number, or None"),
    ],
)
def test_a_k_or_temperature_out_of_range_is_refused(k, temperature, message):
    train, labels = clusters(6, 12)
    with pytest.raises(ValueError, match=message):
        knn_predict(train, labels, train, 6, k, temperature=temperature)


@pytest.mark.parametrize("temperature", [0.07, None])
def test_a_neighbour_that_is_no_number_has_no_vote(temperature):
    train = np.array([[1, 0], [np.nan, np.nan], [np.nan, np.nan]], np.float32)
    test = np.array([[0.6, 0.8]], np.float32)
    assert knn_predict(train, np.array([0, 1, 1]), test, 2, 3, temperature=temperature).tolist() == [0]
