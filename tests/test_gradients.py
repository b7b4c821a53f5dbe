"""Gradients that are written by hand, of layer normalisation, of products and of a bias, against float64 and exact sums."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jclip.models.compute import Compute
from jclip.models.layers import layer_norm
from jclip.models.products import broadcast, convolution, product

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
    y, back = jax.vjp(lambda bias: broadcast(bias, (63, 65), jnp.bfloat16), jnp.arange(3.0))
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(y[5, 7], [0, 1, 2])
    (dbias,) = back(jnp.full(y.shape, 1 + 1 / 128, jnp.bfloat16))
    assert dbias.dtype == jnp.float32
    np.testing.assert_allclose(dbias, 4095 * (1 + 1 / 128), rtol=1e-6)


def relative_error(found: jax.Array, want: np.ndarray) -> float:
    return float(np.linalg.norm(np.asarray(found, np.float64) - want) / np.linalg.norm(want))


def rounded(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Numbers that bfloat16 holds, f64."""
    return np.asarray(jnp.asarray(rng.normal(size=shape), jnp.bfloat16), np.float64)


@pytest.mark.parametrize("reduce", ["float32", "bfloat16"])
def test_the_gradient_of_a_kernel_has_the_digits_of_the_type_it_is_summed_in(reduce: str) -> None:
    rng = np.random.default_rng(2)
    x, kernel, dy = rounded(rng, 5, 7, 11), rounded(rng, 11, 13), rounded(rng, 5, 7, 13)
    how = Compute(jnp.bfloat16, reduce=jnp.dtype(reduce))
    y, back = jax.vjp(lambda *args: product(*args, how), jnp.asarray(x, jnp.bfloat16), jnp.asarray(kernel, jnp.float32))
    dx, dkernel = back(jnp.asarray(dy, jnp.bfloat16))
    assert (y.dtype, dx.dtype, dkernel.dtype) == (jnp.bfloat16, jnp.bfloat16, jnp.float32)
    assert relative_error(y, x @ kernel) < 4e-3
    assert relative_error(dx, dy @ kernel.T) < 4e-3
    error = relative_error(dkernel, np.einsum("bld,blf->df", x, dy))
    assert error < 1e-6 if reduce == "float32" else 1e-3 < error < 4e-3


@pytest.mark.parametrize(("size", "side", "stride", "padding"), [(4, 8, 2, 1), (3, 7, 1, 1), (3, 8, 2, 1), (1, 5, 1, 0)])
def test_the_gradient_of_a_windows_kernel_is_that_of_float32(size: int, side: int, stride: int, padding: int) -> None:
    rng = np.random.default_rng(3)
    x, kernel = jnp.asarray(rounded(rng, 2, side, side + 1, 3)), jnp.asarray(rounded(rng, size, size, 3, 5))
    y, back = jax.vjp(lambda *args: convolution(*args, stride, padding, Compute()), x, kernel)
    dy = jnp.asarray(rounded(rng, *y.shape), jnp.float32)
    how = Compute(jnp.bfloat16)
    again, narrow = jax.vjp(lambda *args: convolution(*args, stride, padding, how), x.astype(jnp.bfloat16), kernel)
    dx, dkernel = narrow(dy.astype(jnp.bfloat16))
    want_dx, want_dkernel = back(dy)
    assert relative_error(again, np.asarray(y)) < 4e-3
    assert relative_error(dx, np.asarray(want_dx)) < 4e-3
    assert dkernel.dtype == jnp.float32
    assert relative_error(dkernel, np.asarray(want_dkernel)) < 1e-6
