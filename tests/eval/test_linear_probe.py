"""The linear probe against Newton's method in f64 and against what can be computed by hand."""

import numpy as np
import pytest

from jclip.eval import fit_logistic


def problem(n, d, classes, seed, *, scale=1.0, offset=0.0):
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(classes), rng.integers(0, classes, n - classes)])
    centres = rng.normal(size=(classes, d))
    features = (centres[labels] + 1.5 * rng.normal(size=(n, d))) * np.exp(rng.normal(size=d)) * scale + offset
    return features.astype(np.float32), labels


def objective_of(features, labels, classes, l2, weights, bias):
    logits = features.astype(np.float64) @ weights + bias
    top = logits.max(1)
    own = logits[np.arange(len(labels)), labels]
    return np.mean(top + np.log(np.exp(logits - top[:, None]).sum(1)) - own) + l2 / 2 * np.sum(weights**2)


def newton(features, labels, classes, l2):
    """The optimum (weights, bias) by Newton's method with the full Hessian, step halved until the objective falls."""
    n, d = features.shape
    x = np.hstack([features.astype(np.float64), np.ones((n, 1))])
    y, theta = np.eye(classes)[labels], np.zeros((d + 1, classes))
    penalty = l2 * np.vstack([np.ones((d, classes)), np.zeros((1, classes))])
    for _ in range(100):
        logits = x @ theta
        p = np.exp(logits - logits.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        gradient = x.T @ (p - y) / n + penalty * theta
        curvature = np.einsum("nc,ck->nck", p, np.eye(classes)) - np.einsum("nc,nk->nck", p, p)
        hessian = np.einsum("na,nck,nb->acbk", x, curvature, x).reshape(x.shape[1] * classes, -1) / n + np.diag(penalty.ravel())
        step = np.linalg.lstsq(hessian, gradient.ravel(), rcond=1e-14)[0].reshape(theta.shape)
        before, size = objective_of(features, labels, classes, l2, theta[:d], theta[d]), 1.0
        while size > 1e-6 and objective_of(features, labels, classes, l2, *np.split(theta - size * step, [d])) > before:
            size /= 2
        theta = theta - size * step
        if np.abs(gradient).max() < 1e-12:
            break
    assert np.abs(gradient).max() < 1e-8, "the reference itself has not converged"
    return theta[:d], theta[d]


@pytest.mark.parametrize("l2", [1e-4, 1e-2, 1.0])
@pytest.mark.parametrize(("scale", "offset"), [(1.0, 0.0), (0.02, 0.5), (30.0, -100.0)])
def test_the_fit_is_the_optimum_that_newton_finds_in_f64(l2, scale, offset):
    features, labels = problem(180, 5, 4, 0, scale=scale, offset=offset)
    weights, bias = newton(features, labels, 4, l2)
    fit = fit_logistic(features, labels, 4, l2=l2)
    best = objective_of(features, labels, 4, l2, weights, bias)
    assert fit.converged
    assert objective_of(features, labels, 4, l2, fit.weights, fit.bias) == pytest.approx(best, rel=1e-4)
    assert fit.loss == pytest.approx(best, rel=1e-4)
    spread = np.abs(features - features.mean(0)) @ np.abs(weights)
    np.testing.assert_allclose(
        features @ (fit.weights - weights) + (fit.bias - fit.bias.mean()) - (bias - bias.mean()),
        0,
        atol=5e-3 * (1 + spread.max()),
    )


def test_the_fit_is_scikit_learns():
    linear_model = pytest.importorskip("sklearn.linear_model", reason="scikit-learn is not installed")
    features, labels = problem(150, 6, 3, 1)
    l2 = 1e-2
    theirs = linear_model.LogisticRegression(C=1 / (l2 * 150), tol=1e-9, max_iter=5000).fit(features.astype(np.float64), labels)
    fit = fit_logistic(features, labels, 3, l2=l2)
    np.testing.assert_allclose(fit.weights.T, theirs.coef_, atol=2e-3)
    np.testing.assert_array_equal(fit.predict(features), theirs.predict(features))


@pytest.mark.parametrize(("n", "d", "block"), [(39, 2, 1), (60, 5, 7), (17, 3, 16), (5, 1, 70)])
def test_the_block_does_not_change_the_fit(n, d, block):
    features, labels = problem(n, d, 3, n + d)
    whole, parts = (fit_logistic(features, labels, 3, l2=0.1, block=b) for b in (n, block))
    # Where the loss is flat: it rises by l2/2 |dW|^2, so that its rounding, 1e-7, hides 1.4e-3 of the weights.
    np.testing.assert_allclose(parts.weights, whole.weights, atol=4e-3)
    assert parts.loss == pytest.approx(whole.loss, rel=1e-5)


def test_the_bias_is_not_penalised():
    features, labels = problem(100, 3, 3, 2)
    frequency = np.bincount(labels) / 100
    fit = fit_logistic(features, labels, 3, l2=1e9)  # no weights are left: the best constant is the classes' frequencies
    assert fit.loss == pytest.approx(-np.sum(frequency * np.log(frequency)), rel=1e-5)
    np.testing.assert_allclose(np.exp(fit.bias) / np.exp(fit.bias).sum(), frequency, rtol=1e-3)


def test_constant_features_predict_the_commonest_class():
    fit = fit_logistic(np.ones((9, 4), np.float32), np.array([0, 1, 1, 2, 1, 0, 1, 1, 0]), 3, l2=1e-3)
    np.testing.assert_array_equal(fit.predict(np.ones((2, 4), np.float32)), 1)


def test_a_class_without_examples_is_never_predicted_and_one_class_always():
    features, labels = problem(60, 3, 2, 3)
    fit = fit_logistic(features, labels * 4, 6, l2=1e-2)
    assert set(fit.predict(100 * features)) == {0, 4}
    np.testing.assert_array_equal(fit_logistic(features, np.full(60, 5), 7, l2=1e-2).predict(features), 5)
