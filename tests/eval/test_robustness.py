"""The robustness table against published differences, lines known beforehand, and a fit by scikit-learn."""

import numpy as np
import pytest
from sklearn.linear_model import LinearRegression

from jclip.eval.robustness import robustness_table

# Radford et al. 2021, figure 13: zero-shot CLIP ViT-L/14@336 and the ResNet-101 of equal accuracy on ImageNet.
CLIP = {"imagenet": 0.762, "v2": 0.701, "r": 0.889, "objectnet": 0.723, "sketch": 0.602, "a": 0.771}
RESNET = {"imagenet": 0.762, "v2": 0.643, "r": 0.377, "objectnet": 0.326, "sketch": 0.252, "a": 0.027}


def logit(p):
    return np.log(p / (1 - p))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_the_published_differences():
    rows = robustness_table(CLIP, [RESNET], "imagenet")
    assert [row.set for row in rows] == list(CLIP)
    assert [round(100 * row.difference, 1) for row in rows] == [0.0, 5.8, 51.2, 39.7, 35.0, 74.4]
    for row in rows:  # at equal clean accuracy the baseline is the prediction itself
        assert (row.model, row.baseline) == (CLIP[row.set], RESNET[row.set])
        assert row.effective == pytest.approx(row.difference, abs=1e-12)


def test_one_baseline_is_moved_with_slope_one_in_logits():
    model, baseline = {"clean": 0.8, "shift": 0.6}, {"clean": 0.7, "shift": 0.4}
    (clean, shift) = robustness_table(model, [baseline], "clean")
    expected = sigmoid(logit(0.4) + logit(0.8) - logit(0.7))
    assert shift.effective == pytest.approx(0.6 - expected)
    assert shift.difference == pytest.approx(0.2)
    assert (clean.effective, clean.set) == (0.0, "clean")


def test_models_on_the_line_of_the_baselines_have_no_effective_robustness():
    line = [{"clean": c, "shift": sigmoid(1.3 * logit(c) - 0.9)} for c in (0.3, 0.5, 0.62, 0.9)]
    rows = robustness_table(line[2], [line[0], line[1], line[3]], "clean")
    assert rows[1].effective == pytest.approx(0, abs=1e-12)
    assert rows[1].baseline == line[1]["shift"]  # of the three, the nearest in clean accuracy


def test_the_line_is_that_of_least_squares():
    rng = np.random.default_rng(0)
    baselines = [{"clean": c, "shift": s} for c, s in zip(rng.uniform(0.2, 0.9, 9), rng.uniform(0.1, 0.8, 9), strict=True)]
    x, y = (logit(np.array([b[name] for b in baselines])) for name in ("clean", "shift"))
    expected = 0.55 - sigmoid(LinearRegression().fit(x[:, None], y).predict([[logit(0.66)]])[0])
    rows = robustness_table({"shift": 0.55, "clean": 0.66}, baselines, "clean")
    assert [row.set for row in rows] == ["clean", "shift"]
    assert rows[1].effective == pytest.approx(expected)


def test_baselines_of_equal_clean_accuracy_have_slope_one_through_their_mean():
    baselines = [{"clean": 0.7, "shift": 0.3}, {"clean": 0.7, "shift": 0.5}]
    rows = robustness_table({"clean": 0.8, "shift": 0.6}, baselines, "clean")
    expected = sigmoid((logit(0.3) + logit(0.5)) / 2 + logit(0.8) - logit(0.7))
    assert rows[1].effective == pytest.approx(0.6 - expected)


def test_accuracies_of_zero_and_one_are_half_an_example_away():
    rows = robustness_table({"clean": 1.0, "shift": 1.0}, [{"clean": 1.0, "shift": 0.0}], "clean", examples={"shift": 50})
    assert rows[1].difference == 1.0
    assert rows[1].effective == pytest.approx(1.0 - 1 / 100)
    rows = robustness_table({"clean": 0.0, "shift": 0.0}, [{"clean": 0.5, "shift": 0.5}], "clean")
    assert rows[1].effective == pytest.approx(-1 / 20000)


@pytest.mark.parametrize(
    ("model", "baselines", "message"),
    [
        ({"clean": 0.5}, [], "there is no baseline"),
        ({"shift": 0.5}, [{"clean": 0.5, "shift": 0.5}], "the model has no accuracy on clean; it has shift"),
        ({"clean": 0.5, "shift": 0.5}, [{"clean": 0.5}], "baseline 0 has no accuracy on shift; it has clean"),
        ({"clean": 76.2}, [{"clean": 0.5}], r"the model has the accuracy 76.2 on clean; give fractions"),
        ({"clean": 0.5}, [{"clean": float("nan")}], "baseline 0 has the accuracy nan on clean"),
    ],
)
def test_tables_that_cannot_be_made_are_refused(model, baselines, message):
    with pytest.raises(ValueError, match=message):
        robustness_table(model, baselines, "clean")
