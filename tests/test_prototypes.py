"""The cross-entropy of two distributions over prototypes: its formula and gradients in f64, and its memory."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jclip.losses import prototype_cross_entropy

HOW = {"temperature": 0.1, "teacher_temperature": 0.05}


def unit(x: np.ndarray, axis: int = -1) -> np.ndarray:
    return x / np.linalg.norm(x, axis=axis, keepdims=True)


@pytest.mark.parametrize("block", [1, 2, 3, 5, 9])
def test_value_and_gradients_are_those_of_the_formula_and_the_teacher_has_none(block: int) -> None:
    random = np.random.default_rng(0)
    s, t = (unit(random.normal(size=(3, 5, 4))) for _ in range(2))
    ours, theirs = (unit(random.normal(size=(4, 7)), 0) for _ in range(2))
    centre = 0.1 * random.normal(size=7)
    p, q = np.exp(s @ ours / 0.1), np.exp((t @ theirs - centre) / 0.05)
    p, q = (x / x.sum(-1, keepdims=True) for x in (p, q))
    slope = (p - q) / 0.1

    def loss(*inputs: Any) -> Any:
        return prototype_cross_entropy(*inputs, **HOW, block=block)

    inputs = [jnp.asarray(x, jnp.float32) for x in (s, t, ours, theirs, centre)]
    value, grads = jax.value_and_grad(loss, tuple(range(5)))(*inputs)
    assert float(value) == pytest.approx(-(q * np.log(p)).sum(), rel=1e-5)
    wanted = (slope @ ours.T, 0 * t, np.einsum("bmf,bmk->fk", s, slope), 0 * theirs, 0 * centre)
    for grad, want in zip(grads, wanted, strict=True):
        np.testing.assert_allclose(grad, want, atol=1e-5 * max(1.0, np.abs(want).max()))


def test_of_all_distributions_a_block_is_in_memory() -> None:
    images, patches, prototypes = 16, 64, 8192
    shapes = [(images, patches, 8), (images, patches, 8), (8, prototypes), (8, prototypes), (prototypes,)]
    inputs = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]

    def loss(*inputs: Any) -> Any:
        return prototype_cross_entropy(*inputs, **HOW, block=2)

    memory = jax.jit(jax.grad(loss, (0, 2))).lower(*inputs).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 8 * 4 * images * 2 * prototypes  # of all 64 patches it would be 32 times one block
