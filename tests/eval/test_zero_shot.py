"""Zero-shot classification on scores made by hand."""

import numpy as np
import pytest

from jclip.eval import class_embeddings, zero_shot_metrics
from jclip.eval.labels import mean_per_class
from jclip.eval.ranks import ranks
from jclip.eval.zero_shot import predict_classes


def test_class_embeddings_normalise_then_average_then_normalise():
    z = np.array([[[3, 0], [0, 4]], [[0, 5], [0, 0.1]], [[100, 0], [0.6, 0.8]]], np.float32)
    # class 0: (1, 0) and (0, 1); class 2: (1, 0) and (0.6, 0.8), whose mean (0.8, 0.4) has norm sqrt(0.8)
    expected = [[2**-0.5, 2**-0.5], [0, 1], [0.8 / 0.8**0.5, 0.4 / 0.8**0.5]]
    result = class_embeddings(z)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, expected, rtol=1e-6)


def test_class_embeddings_of_opposite_prompts_are_zero_without_a_warning():
    np.testing.assert_array_equal(class_embeddings(np.array([[[1, 0], [-1, 0]]], np.float32)), [[0, 0]])


def test_metrics_of_scores_made_by_hand():
    classes = np.eye(6, dtype=np.float32)  # so that an example's vector is its list of scores
    scores = np.array(
        [
            [0.9, 0.1, 0.0, 0.0, 0.0, 0.0],  # label 0: first
            [0.5, 0.4, 0.3, 0.2, 0.1, 0.0],  # label 1: second
            [0.5, 0.4, 0.3, 0.2, 0.1, 0.0],  # label 4: fifth
            [0.5, 0.4, 0.3, 0.2, 0.1, 0.0],  # label 5: sixth
            [0.7, 0.7, 0.0, 0.0, 0.0, 0.0],  # label 0: tied for the first place, which is the second
            [0.0, 0.8, 0.0, 0.0, 0.0, 0.0],  # label 1: first
        ],
        np.float32,
    )
    metrics = zero_shot_metrics(scores, classes, np.array([0, 1, 4, 5, 0, 1]))
    assert metrics == pytest.approx({"top1": 2 / 6, "top5": 5 / 6, "mean_per_class": (1 / 2 + 1 / 2 + 0 + 0) / 4})


def test_places_and_map_at_10_are_those_of_sorted_scores():
    rng = np.random.default_rng(3)
    z, classes, labels = rng.normal(size=(200, 8)), rng.normal(size=(30, 8)), rng.integers(0, 30, 200)
    z, classes = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (z, classes))
    place = 1 + np.argmax(np.argsort(-(z @ classes.T), axis=1) == labels[:, None], axis=1)
    metrics = zero_shot_metrics(z.astype(np.float32), classes.astype(np.float32), labels, (1, 3, 10, 40))
    assert metrics.keys() == {"top1", "top3", "top10", "mean_per_class", "map@10"}  # 40 are more than the classes
    for k in (1, 3, 10):
        assert metrics[f"top{k}"] == pytest.approx(np.mean(place <= k))
    assert metrics["map@10"] == pytest.approx(np.mean([1 / p if p <= 10 else 0 for p in place]))
    assert "map@10" not in zero_shot_metrics(z.astype(np.float32), classes.astype(np.float32), labels, (1, 5, 20))


def test_top5_is_undefined_below_5_classes():
    eye = np.eye(4, dtype=np.float32)
    assert zero_shot_metrics(eye, eye, np.arange(4)) == {"top1": 1.0, "mean_per_class": 1.0}


@pytest.mark.parametrize("value", [1.0, np.nan])
def test_a_collapsed_or_diverged_model_scores_zero(value):
    z = np.full((7, 3), value / 3**0.5, np.float32)
    metrics = zero_shot_metrics(z, z, np.arange(7))
    assert metrics == {"top1": 0.0, "top5": 0.0, "mean_per_class": 0.0}


def test_metrics_equal_argmax_and_argsort_in_f64():
    rng = np.random.default_rng(0)
    z, classes, labels = rng.normal(size=(97, 8)), rng.normal(size=(11, 8)), rng.integers(0, 9, 97)
    z, classes = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (z, classes))
    order = np.argsort(-(z @ classes.T), axis=1)
    recall = [np.mean(order[labels == c, 0] == c) for c in range(9)]
    expected = {"top1": np.mean(order[:, 0] == labels), "top5": np.mean((order[:, :5] == labels[:, None]).any(1))}
    metrics = zero_shot_metrics(z.astype(np.float32), classes.astype(np.float32), labels)
    assert metrics == pytest.approx(expected | {"mean_per_class": np.mean(recall)})


def test_predictions_made_by_hand():
    classes = np.eye(4, dtype=np.float32)
    scores = np.array(
        [
            [0.9, 0.1, 0.0, 0.0],  # label 0: right
            [0.5, 0.4, 0.3, 0.2],  # label 1: 0 is nearest
            [0.7, 0.7, 0.0, 0.0],  # label 0: tied with 1, which is said
            [0.7, 0.7, 0.0, 0.0],  # label 1: tied with 0
            [0.7, 0.7 - 1e-7, 0.0, 0.0],  # label 0: tied to within rounding
            [0.7, 0.7, 0.7, 0.0],  # label 3: 0, the first of equal ones
        ],
        np.float32,
    )
    np.testing.assert_array_equal(predict_classes(scores, classes, np.array([0, 1, 0, 1, 0, 3])), [0, 0, 1, 0, 1, 0])


@pytest.mark.parametrize("seed", range(3))
def test_a_prediction_is_the_label_exactly_where_its_rank_is_one(seed):
    rng = np.random.default_rng(seed)
    z, classes = rng.integers(-2, 3, (53, 3)).astype(np.float32), rng.integers(-2, 3, (7, 3)).astype(np.float32)
    z[5], classes[2, 1] = np.nan, np.nan if seed == 2 else 1
    labels = rng.integers(0, 7, 53)
    first = ranks(z, classes, labels, np.arange(7)) == 1
    np.testing.assert_array_equal(predict_classes(z, classes, labels) == labels, first)


def test_a_collapsed_model_predicts_another_class_and_the_only_class_is_right():
    z = np.full((4, 3), 3**-0.5, np.float32)
    np.testing.assert_array_equal(predict_classes(z, z, np.arange(4)), [1, 0, 0, 0])
    np.testing.assert_array_equal(predict_classes(z, z[:1], np.zeros(4, int)), 0)
    assert zero_shot_metrics(z, z[:1], np.zeros(4, int)) == {"top1": 1.0, "mean_per_class": 1.0}


def test_mean_per_class_leaves_out_absent_classes():
    assert mean_per_class(np.array([True, False, False, True]), np.array([2, 2, 2, 900])) == pytest.approx((1 / 3 + 1) / 2)
