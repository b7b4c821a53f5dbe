"""Near duplicates against brute force, on vectors that are random and on vectors that are meant to be hard."""

import jax
import numpy as np
import pytest

from jclip.eval.duplicates import Nearest, as_near, nearest_before, nearest_of


def unit(z: np.ndarray) -> np.ndarray:
    return (z / np.linalg.norm(z, axis=1, keepdims=True)).astype(np.float32)


def random_rows(n: int) -> np.ndarray:
    return unit(np.random.default_rng(n).normal(size=(n, 8)))


def hard_rows(n: int) -> np.ndarray:
    """Rows of few directions with exact products, so that there are many ties, identical rows among them, and rows of NaN."""
    rng = np.random.default_rng(n)
    axes = np.eye(8, dtype=np.float32)
    halves = np.array([[0.5] * 4 + [0] * 4, [0] * 4 + [0.5] * 4, [0.5, -0.5] * 2 + [0] * 4], np.float32)
    rows = np.concatenate([axes, halves, -axes])[rng.integers(0, 19, n)]
    rows[rng.random(n) < 0.1] = np.nan
    return rows


def brute(z: np.ndarray, others: np.ndarray, before: bool) -> Nearest:
    cosine = z.astype(np.float64) @ others.astype(np.float64).T
    cosine[np.isnan(cosine)] = -np.inf
    if before:
        cosine[np.triu_indices(len(z))] = -np.inf
    best = cosine.max(axis=1, initial=-np.inf)
    return Nearest(best.astype(np.float32), np.where(np.isfinite(best), cosine.argmax(axis=1), -1))


@pytest.mark.parametrize("make", [random_rows, hard_rows])
@pytest.mark.parametrize(("n", "candidates", "block"), [(1, 7, 4), (53, 7, 4), (53, 100, None), (64, 16, 16), (101, 16, 3)])
def test_the_nearest_row_before_each_is_that_of_brute_force(make, n, candidates, block):
    z = make(n)
    found, expected = nearest_before(z, candidates=candidates, block=block), brute(z, z, True)
    np.testing.assert_array_equal(found.row, expected.row)
    np.testing.assert_allclose(found.cosine, expected.cosine, rtol=0, atol=1e-6)


@pytest.mark.parametrize("make", [random_rows, hard_rows])
@pytest.mark.parametrize(("n", "m", "candidates"), [(53, 31, 7), (7, 90, 100), (20, 1, 1), (5, 0, 3)])
def test_the_nearest_of_others_is_that_of_brute_force(make, n, m, candidates):
    z, others = make(n), make(m + 200)[:m]
    found = nearest_of(z, others, candidates=candidates)
    expected = brute(z, others, False) if m else Nearest(np.full(n, -np.inf, np.float32), np.full(n, -1))
    np.testing.assert_array_equal(found.row, expected.row)
    np.testing.assert_allclose(found.cosine, expected.cosine, rtol=0, atol=1e-6)


@pytest.mark.parametrize("make", [random_rows, hard_rows])
def test_one_two_and_eight_devices_find_the_same_bits(make):
    z = make(77)
    results = [nearest_before(z, candidates=32, block=5, devices=jax.devices()[:count]) for count in (1, 2, 8)]
    for one in results[1:]:
        np.testing.assert_array_equal(one.row, results[0].row)
        np.testing.assert_array_equal(one.cosine, results[0].cosine)


def test_a_row_of_nan_is_near_to_nothing_and_no_row_comes_before_the_first():
    z = random_rows(4)
    z[1], z[3] = np.nan, z[2]
    found = nearest_before(z)
    assert found.row.tolist() == [-1, -1, 0, 2]
    assert np.isneginf(found.cosine[:2]).all()
    assert not as_near(found.cosine[:2], -1.0).any()


def test_identical_rows_are_as_near_as_can_be_although_their_product_is_rounded():
    z = np.repeat(unit(np.random.default_rng(5).normal(size=(200, 33))), 2, axis=0)
    assert as_near(nearest_before(z).cosine[1::2], 1.0).all()
    assert not as_near(np.float32([0.9999]), 1.0).any()
