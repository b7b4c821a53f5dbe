"""The protocols of linear probes against scikit-learn, searches by hand and optimizers written out, and their file."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from jclip.config import ConfigError
from jclip.eval import probes
from jclip.eval.probe_file import Probe, load_probe, save_probe
from jclip.eval.probes import CLIP_BENCHMARK_GRID, OPENAI_GRID, RIDGE_GRID, fit_probe, held_out, search
from jclip.eval.scores import mean_average_precision_11


def problem(n=150, d=6, classes=3, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, n)
    x = 1.2 * rng.normal(size=(classes, d))[y] + rng.normal(size=(n, d))
    return x.astype(np.float32), y


@pytest.fixture
def train():
    x, y = problem()
    return x[:90], y[:90]


@pytest.fixture
def validation():
    x, y = problem()
    return x[90:], y[90:]


def test_the_grids_are_those_of_the_protocols():
    assert len(OPENAI_GRID) == len(CLIP_BENCHMARK_GRID) == 97
    np.testing.assert_allclose(OPENAI_GRID[::16], [1e-6, 1e-4, 1e-2, 1, 1e2, 1e4, 1e6])
    np.testing.assert_allclose(OPENAI_GRID[8:17] / OPENAI_GRID[8], 10 ** (np.arange(9) / 8))
    np.testing.assert_allclose(CLIP_BENCHMARK_GRID[[0, 48, 96]], [1e-6, 1e-2, 1e2])


@pytest.mark.parametrize("peak", range(0, 97, 3))
def test_a_search_finds_the_peak_in_11_to_15_fits(peak):
    best, scores = search(lambda i: -abs(i - peak))
    assert best == peak
    assert 11 <= len(scores) <= 15
    assert set(range(0, 97, 16)) <= set(scores)


def test_of_equal_scores_the_smallest_strength_wins():
    assert search(lambda i: 0.5)[0] == 0
    assert search(lambda i: float(i >= 40))[0] == 40


def test_openai_chooses_the_strength_that_scikit_learn_would_and_ends_at_its_probabilities(train, validation):
    linear_model = pytest.importorskip("sklearn.linear_model", reason="scikit-learn is not installed")

    def theirs(strength, x, y):
        made = linear_model.LogisticRegression(C=1 / strength, tol=1e-10, max_iter=10_000, solver="newton-cholesky")
        return made.fit(x.astype(np.float64), y)

    best, scores = search(lambda i: theirs(OPENAI_GRID[i], *train).score(*validation))
    probe = fit_probe("openai", train, validation, 3)
    assert probe.strength == OPENAI_GRID[best]
    assert probe.tried == tuple((OPENAI_GRID[i], pytest.approx(scores[i])) for i in sorted(scores))
    x, y = (np.concatenate(both) for both in zip(train, validation, strict=True))
    final = theirs(probe.strength, x, y)
    np.testing.assert_allclose(probe.scores(x), final.decision_function(x) + (probe.bias - final.intercept_).mean(), atol=1e-3)
    assert probe.converged
    assert not probe.normalised


def test_openai_with_a_strength_searches_nothing(train, validation):
    probe = fit_probe("openai", train, validation, 3, strength=2.0)
    logistic = fit_probe("logistic", train, validation, 3, strength=2.0 / 150)
    assert (probe.strength, probe.tried) == (2.0, ())
    np.testing.assert_allclose(probe.weights, logistic.weights, atol=1e-4)


def test_the_metric_of_the_data_set_chooses_and_labels_may_be_several(train):
    x, y = train
    labels = np.stack([y == 0, y > 0, y < 2], axis=1)
    probe = fit_probe("openai", (x, labels), (x, labels), 3, score=mean_average_precision_11)
    assert max(score for _, score in probe.tried) == mean_average_precision_11(
        fit_probe("openai", (x, labels), None, 3, strength=probe.strength).scores(x), labels
    )


def adamw_by_hand(x, y, classes, decay, seed):
    """AdamW in f64, a batch at a time."""
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    x = np.hstack([x, np.ones((len(x), 1))])
    theta = np.zeros((x.shape[1], classes))
    first, second = np.zeros_like(theta), np.zeros_like(theta)
    rng = np.random.default_rng(seed)
    batches = [order[i : i + 64] for order in [rng.permutation(len(x)) for _ in range(10)] for i in range(0, len(x), 64)]
    for t, rows in enumerate(batches):
        p = np.exp(x[rows] @ theta)
        gradient = x[rows].T @ (p / p.sum(1, keepdims=True) - np.eye(classes)[y[rows]]) / len(rows)
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        adam = first / (1 - 0.9 ** (t + 1)) / (np.sqrt(second / (1 - 0.999 ** (t + 1))) + 1e-8)
        theta -= 0.1 * (1 + np.cos(np.pi * t / len(batches))) / 2 * (adam + decay * theta)
    return theta


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_clip_benchmark_is_adamw_on_normalised_features_with_a_smaller_last_batch(train, decay):
    theta = adamw_by_hand(*train, 3, decay, seed=4)
    probe = fit_probe("clip_benchmark", train, None, 3, strength=decay, seed=4)
    np.testing.assert_allclose(np.vstack([probe.weights, probe.bias]), theta, atol=1e-4)
    assert probe.normalised
    np.testing.assert_allclose(probe.scores(7 * train[0]), probe.scores(train[0]), rtol=1e-4)


def test_clip_benchmark_searches_compiles_once_and_is_repeatable(train, validation):
    before = probes._adamw._cache_size()
    probe = fit_probe("clip_benchmark", train, validation, 3)
    assert probes._adamw._cache_size() <= before + 2  # for train, and for train and validation
    assert set(CLIP_BENCHMARK_GRID[::16]) <= {strength for strength, _ in probe.tried}
    best = max(score for _, score in probe.tried)
    assert best > 0.6
    assert probe.strength in {strength for strength, score in probe.tried if score == best}
    again = fit_probe("clip_benchmark", train, validation, 3)
    np.testing.assert_array_equal(again.weights, probe.weights)
    assert again.tried == probe.tried


def test_a_decay_that_diverges_scores_nothing(train):
    x, y = (np.repeat(a, 20, axis=0) for a in train)
    probe = fit_probe("clip_benchmark", (x, y), None, 3, strength=100.0)
    assert not probe.converged


def test_ridge_is_scikit_learns_and_its_strength_the_best_by_leaving_one_out(train):
    linear_model = pytest.importorskip("sklearn.linear_model", reason="scikit-learn is not installed")
    x, y = train
    x, y = x[:40], y[:40]
    targets = 2.0 * np.eye(3)[y] - 1

    def left_out(alpha):
        right = 0
        for i in range(len(x)):
            others = np.arange(len(x)) != i
            model = linear_model.Ridge(alpha=alpha).fit(x[others].astype(np.float64), targets[others])
            right += model.predict(x[i : i + 1])[0].argmax() == y[i]
        return right / len(x)

    probe = fit_probe("ridge", (x, y), None, 3)
    for i in (0, 12, 14, 24):
        assert probe.tried[i] == (RIDGE_GRID[i], pytest.approx(left_out(RIDGE_GRID[i])))
    assert probe.strength == max(probe.tried, key=lambda t: t[1])[0]
    theirs = linear_model.Ridge(alpha=probe.strength).fit(x.astype(np.float64), targets)
    np.testing.assert_allclose(probe.scores(x), theirs.predict(x), atol=1e-6)


def test_a_part_of_each_class_is_held_out():
    labels = np.repeat([0, 1, 2, 3], [50, 10, 2, 1])
    held = held_out(labels, seed=1)
    np.testing.assert_array_equal(np.bincount(labels[held], minlength=4), [10, 2, 1, 0])
    assert not np.array_equal(held, held_out(labels, seed=2))
    assert held_out(np.zeros((40, 3), bool), seed=0).sum() == 8


def test_without_validation_the_final_fit_is_of_all_of_train(train):
    probe = fit_probe("openai", train, None, 3)
    whole = fit_probe("openai", train, None, 3, strength=probe.strength)
    assert len(probe.tried) >= 11
    np.testing.assert_allclose(probe.weights, whole.weights, atol=1e-3)


@pytest.mark.parametrize("protocol", ["openai", "clip_benchmark", "ridge"])
def test_a_class_without_examples_and_one_class_alone_do_no_harm(train, protocol):
    x, y = train
    assert set(fit_probe(protocol, (x, 2 * y), None, 6, strength=1e-2).predict(x)) <= {0, 2, 4}
    assert set(fit_probe(protocol, (x, 0 * y), None, 2, strength=1e-2).predict(x)) == {0}


@pytest.mark.parametrize(
    ("protocol", "several", "message"),
    [
        ("lbfgs", False, "'lbfgs' is unknown; use openai"),
        ("logistic", False, "give its strength"),
        ("clip_benchmark", True, "one label"),
    ],
)
def test_what_a_protocol_cannot_do_is_refused(train, protocol, several, message):
    x, y = train
    with pytest.raises(ValueError, match=message):
        fit_probe(protocol, (x, np.eye(3, dtype=bool)[y] if several else y), None, 3)


def test_a_probe_is_loaded_as_it_was_saved(tmp_path, train):
    probe = fit_probe("openai", train, None, 5)
    names, facts = ("a", "ü", "c", "d", "e"), {"model": "ViT-B/32", "data": "abc"}
    path = tmp_path / "deep" / "probe.safetensors"
    save_probe(path, probe, names, facts)
    save_probe(path, probe, names, facts)
    loaded, *rest = load_probe(path)
    assert rest == [names, facts]
    np.testing.assert_array_equal(loaded.scores(train[0]), probe.scores(train[0]))
    for name in ("protocol", "strength", "tried", "converged", "iterations", "normalised"):
        assert getattr(loaded, name) == getattr(probe, name)
    assert list(path.parent.iterdir()) == [path], "no drafts are left"


def test_files_that_are_no_probes_are_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    with pytest.raises(ConfigError, match="no such file"):
        load_probe(path)
    path.write_bytes(b"nothing")
    with pytest.raises(ConfigError, match="cut short"):
        load_probe(path)
    save_file({"weights": np.zeros((2, 2))}, path, {"format": "pt"})
    with pytest.raises(ConfigError, match="'pt' in the metadata"):
        load_probe(path)
    save_file({"weights": np.zeros((2, 2))}, path, {"format": "jclip probe 1", "probe": json.dumps({"tried": []})})
    with pytest.raises(ConfigError, match="cut short"):
        load_probe(path)
    with pytest.raises(ValueError, match="1 names for 2 classes"):
        save_probe(path, Probe(np.zeros((3, 2)), np.zeros(2), "ridge", 1.0), ("a",), {})


@pytest.mark.parametrize("protocol", ["openai", "logistic", "clip_benchmark", "ridge"])
def test_the_last_fit_of_every_protocol_is_of_train_and_validation_together(protocol, train, validation):
    both = tuple(np.concatenate(parts) for parts in zip(train, validation, strict=True))
    found = fit_probe(protocol, train, validation, 3, strength=0.5, seed=4)
    whole, alone = (fit_probe(protocol, examples, None, 3, strength=0.5, seed=4) for examples in (both, train))
    np.testing.assert_allclose(found.weights, whole.weights, atol=1e-6)
    assert np.abs(found.weights - alone.weights).max() > 1e-3
    if protocol in ("openai", "clip_benchmark"):  # which search, and fit once more
        searched = fit_probe(protocol, train, validation, 3, seed=4)
        again = fit_probe(protocol, both, None, 3, strength=searched.strength, seed=4)
        np.testing.assert_allclose(searched.weights, again.weights, atol=1e-3 * np.abs(again.weights).max())
