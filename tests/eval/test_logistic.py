"""Logistic regression against scikit-learn's two solvers in f64, and on 1, 2 and 8 devices."""

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from scipy.special import expit, softmax

from jclip.eval.logistic import components, fit_logistic, fit_prepared, prepare

STRENGTHS = (1e-4, 1e-2, 1.0, 1e2, 1e4)
"""scikit-learn's C."""


def place_on(devices):
    sharding = NamedSharding(Mesh(np.array(jax.devices()[:devices]), ("data",)), PartitionSpec("data"))
    return lambda array: jax.device_put(array, sharding)


def digits():
    datasets = pytest.importorskip("sklearn.datasets", reason="scikit-learn is not installed")
    x, y = datasets.load_digits(return_X_y=True)
    x = x.astype(np.float32)
    return x[::2], y[::2], x[1::2], 10


def gaussians(n=400, d=64, classes=5):
    """Correlated, with deviations from 0.03 to 30."""
    rng = np.random.default_rng(0)
    y, turn = rng.integers(0, classes, 2 * n), np.linalg.qr(rng.normal(size=(d, d)))[0]
    x = (0.5 * rng.normal(size=(classes, d))[y] + rng.normal(size=(2 * n, d))) * 10 ** rng.uniform(-1.5, 1.5, d) @ turn
    x = x.astype(np.float32)
    return x[:n], y[:n], x[n:], classes


def theirs(x, y, c, **settings):
    linear_model = pytest.importorskip("sklearn.linear_model", reason="scikit-learn is not installed")
    with pytest.importorskip("threadpoolctl").threadpool_limits(1):  # for arrays this small, threads only wait for each other
        return linear_model.LogisticRegression(C=c, max_iter=100_000, **settings).fit(x.astype(np.float64), y)


def assert_same(fit, reference, x, atol=1e-4):
    x = x.astype(np.float64)
    np.testing.assert_allclose(softmax(fit.scores(x), axis=1), reference.predict_proba(x), atol=atol)
    np.testing.assert_array_equal(fit.predict(x), reference.predict(x))


@pytest.mark.parametrize("c", STRENGTHS)
def test_probabilities_on_gaussians_are_scikit_learns_for_every_strength(c):
    x, y, unseen, classes = gaussians()
    fit = fit_logistic(x, y, classes, l2=1 / (c * len(x)), precise=True)
    optimum = theirs(x, y, c, solver="newton-cholesky", tol=1e-11)
    assert fit.converged
    assert_same(fit, optimum, x, atol=1e-5)
    assert_same(fit, optimum, unseen, atol=1e-5)


@pytest.mark.parametrize("c", STRENGTHS)
def test_probabilities_on_digits_are_scikit_learns_where_its_lbfgs_has_converged(c):
    x, y, unseen, classes = digits()
    fit = fit_logistic(x, y, classes, l2=1 / (c * len(x)))
    lbfgs = theirs(x, y, c, tol=1e-9)
    assert fit.converged
    assert_same(fit, lbfgs, x)
    if c <= 1e-2:  # above, theirs ends too early for unseen examples: test_..._optimum_on_digits
        assert_same(fit, lbfgs, unseen)


@pytest.mark.slow
@pytest.mark.parametrize("c", [pytest.param(c, marks=[] if c == 1e4 else pytest.mark.exhaustive) for c in STRENGTHS])
def test_probabilities_are_those_of_the_optimum_on_digits(c):
    x, y, unseen, classes = digits()
    optimum = theirs(x, y, c, solver="newton-cholesky", tol=1e-11)
    fit = fit_logistic(x, y, classes, l2=1 / (c * len(x)))
    assert_same(fit, optimum, x)
    assert_same(fit, optimum, unseen)


def test_f32_is_within_1e4_of_scikit_learn_at_the_strengths_that_searches_choose():
    x, y, unseen, classes = gaussians()
    prepared = prepare(x, y, classes)
    for c in (1e-4, 1e-2, 1.0):
        assert_same(fit_prepared(prepared, l2=1 / (c * len(x))), theirs(x, y, c, solver="newton-cholesky", tol=1e-11), unseen)


@pytest.mark.parametrize(("precise", "counts"), [(False, (1, 2, 8)), pytest.param(True, (1, 8), marks=pytest.mark.exhaustive)])
def test_the_fit_is_the_same_on_1_2_and_8_devices(precise, counts):
    x, y, unseen, classes = gaussians()
    x, y = x[:101], y[:101]
    how = {"l2": 0.01, "precise": precise, "block": 16}
    fits = [fit_logistic(x, y, classes, place=place_on(count), devices=count, **how) for count in counts]
    # In f32, 101 examples of 64 features leave 2e-5 open for examples far from them.
    for features, atol in ((x, 1e-5), (unseen, 1e-5 if precise else 1e-4)):
        for other in fits[1:]:
            np.testing.assert_allclose(softmax(other.scores(features), 1), softmax(fits[0].scores(features), 1), atol=atol)
            np.testing.assert_array_equal(other.predict(features), fits[0].predict(features))


def test_rows_are_spread_over_the_devices():
    x, y, _, classes = gaussians()
    prepared = prepare(x[:101], y[:101], classes, place=place_on(8), devices=8, block=16)
    assert {shard.data.shape for shard in prepared.x.addressable_shards} == {(1, 13, 64)}
    assert {shard.data.shape for shard in prepared.y.addressable_shards} == {(1, 13)}


def test_a_warm_start_ends_at_the_same_optimum_after_fewer_iterations():
    x, y, unseen, classes = gaussians()
    prepared = prepare(x, y, classes)
    near, cold = fit_prepared(prepared, l2=2e-3), fit_prepared(prepared, l2=1e-3)
    warm = fit_prepared(prepared, l2=1e-3, start=near)
    np.testing.assert_allclose(softmax(warm.scores(unseen), axis=1), softmax(cold.scores(unseen), axis=1), atol=1e-4)
    assert warm.iterations < cold.iterations
    assert fit_prepared(prepared, l2=1e-3, start=cold).iterations <= 2


def test_a_path_of_strengths_compiles_once():
    from jclip.eval.logistic import _minimize

    x, y, _, classes = gaussians()
    prepared = prepare(x[:77], y[:77], classes)
    before = _minimize._cache_size()
    for l2 in (1.0, 0.1, 0.01):
        fit_prepared(prepared, l2=l2)
    assert _minimize._cache_size() == before + 1


def test_more_features_than_examples_is_scikit_learns():
    x, y, unseen, classes = gaussians()
    x, y = x[:30], y[:30]
    assert set(y) == set(range(classes))
    assert_same(fit_logistic(x, y, classes, l2=1 / 30), theirs(x, y, 1.0, solver="newton-cholesky", tol=1e-11), unseen)


def test_constant_and_repeated_features_do_not_matter():
    x, y, _, classes = gaussians(n=100, d=6)
    wide = np.hstack([x, np.full((len(x), 2), 7, np.float32), x[:, :1]])
    assert components(wide, wide.mean(0, dtype=np.float64))[0].shape == (6,)
    assert_same(fit_logistic(wide, y, classes, l2=1e-2), theirs(wide, y, 1.0, solver="newton-cholesky", tol=1e-11), wide)


def test_several_labels_are_a_binary_regression_for_each_class():
    x, y, unseen, _ = gaussians(n=200, d=16)
    labels = np.stack([y == 0, y <= 1, y % 2 == 0, np.zeros(len(y), bool)], axis=1)
    fit = fit_logistic(x, labels, 4, l2=1 / len(x))
    for i in range(3):
        binary = theirs(x, labels[:, i], 1.0, solver="newton-cholesky", tol=1e-11)
        np.testing.assert_allclose(expit(fit.scores(unseen)[:, i]), binary.predict_proba(unseen)[:, 1], atol=1e-4)
    assert np.all(fit.scores(unseen)[:, 3] == -np.inf), "a class without examples"


def test_too_few_iterations_are_said():
    x, y, _, classes = gaussians()
    fit = fit_logistic(x, y, classes, l2=1e-6, iterations=3)
    assert (fit.iterations, fit.converged) == (3, False)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.array([0, 3]), "labels from 0 to 3; use 0 to 2"),
        (np.array([0]), r"labels \(1,\)"),
        (np.zeros((2, 2), bool), r"\(2, 2\)"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        prepare(np.zeros((2, 4), np.float32), labels, 3)
