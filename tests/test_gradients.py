"""Gradients that are written by hand, of layer normalisation and of a bias, against float64 differences and exact sums."""

import jax
import jax.numpy as jnp
import numpy as np

from jclip.models.layers import add_bias, layer_norm

EPSILON = 1e-3


def exact_norm(x: np.ndarray, scale: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Equation 4 of Ba et al. 2016, in f64."""
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + EPSILON) * scale + bias


def test_the_gradients_of_a_norm_are_the_differences_of_its_values() -> None:
    rng = np.random.default_rng(0)
    inputs = [rng.normal(size=(2, 3, 5)) * 3 + 1, rng.normal(size=5), rng.normal(size=5)]
    weights = rng.normal(size=(2, 3, 5))
    value, back = jax.vjp(lambda *args: layer_norm(*args, EPSILON), *(jnp.asarray(x, jnp.float32) for x in inputs))
    np.testing.assert_allclose(value, exact_norm(*inputs), atol=2e-6)
    for i, gradient in enumerate(back(jnp.asarray(weights, jnp.float32))):
        for place in np.ndindex(inputs[i].shape):
            above, below = ([x.copy() for x in inputs] for _ in range(2))
            above[i][place] += 1e-6
            below[i][place] -= 1e-6
            slope = (weights * (exact_norm(*above) - exact_norm(*below))).sum() / 2e-6
            np.testing.assert_allclose(gradient[place], slope, atol=2e-5)


def test_a_norm_in_bfloat16_computes_in_float32_with_its_gradients() -> None:
    rng = np.random.default_rng(1)
    x = jnp.asarray(rng.normal(size=(64, 96)) + 30, jnp.bfloat16)  # far from 0: squares in bfloat16 would leave no digit
    scale, bias, g = (jnp.asarray(rng.normal(size=shape), jnp.bfloat16) for shape in ((96,), (96,), (64, 96)))
    wide = [y.astype(jnp.float32) for y in (x, scale, bias, g)]

    def run(x, scale, bias, g, dtype):
        y, back = jax.vjp(lambda *args: layer_norm(*args, EPSILON, dtype), x, scale, bias)
        return y, *back(g.astype(dtype))

    narrow = run(x, *wide[1:3], g, jnp.bfloat16)
    for ours, want in zip(narrow, run(*wide, jnp.float32), strict=True):
        np.testing.assert_allclose(np.asarray(ours, np.float32), want, atol=0.01 * np.abs(want).max())


def test_the_gradient_of_a_bias_is_summed_in_float32() -> None:
    """4,095 tokens of 1 + 1/128, a sum that bfloat16 does not hold."""
    y, bias = jnp.zeros((63, 65, 3), jnp.bfloat16), jnp.zeros(3)
    _, back = jax.vjp(add_bias, y, bias)
    dy, dbias = back(jnp.full(y.shape, 1 + 1 / 128, jnp.bfloat16))
    assert dy.dtype == jnp.bfloat16
    assert dbias.dtype == jnp.float32
    np.testing.assert_allclose(dbias, 4095 * (1 + 1 / 128), rtol=1e-6)
