"""Spherical k-means against its formula in f64, on rows that are random, planted in groups, and all alike."""

from itertools import pairwise

import jax
import numpy as np
import pytest

from jclip.eval import clusters
from jclip.eval.clusters import centres_of


def unit(z: np.ndarray) -> np.ndarray:
    return (z / np.linalg.norm(z, axis=-1, keepdims=True)).astype(np.float32)


def random_rows(n: int, size: int = 8) -> np.ndarray:
    return unit(np.random.default_rng(n).normal(size=(n, size)))


def reference(z: np.ndarray, centres: np.ndarray, steps: int) -> np.ndarray:
    """The same steps in f64, a centre at a time."""
    z, centres = z.astype(np.float64), centres.astype(np.float64)
    for _ in range(steps):
        cosine = z @ centres.T
        own = cosine.argmax(1)
        far = iter(np.argsort(cosine.max(1), kind="stable"))
        centres = np.stack([z[own == i].sum(0) if (own == i).any() else z[next(far)] for i in range(len(centres))])
        centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    return centres


@pytest.mark.parametrize(("n", "count"), [(400, 20), (97, 13), (50, 50), (9, 1)])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_the_centres_are_those_of_the_formula(n: int, count: int, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clusters, "_SUMMED_AT_A_TIME", 64)
    z = random_rows(n)
    begin = centres_of(z, count, steps=0)
    assert {row.tobytes() for row in begin} <= {row.tobytes() for row in z}
    np.testing.assert_allclose(centres_of(z, count, steps=steps), reference(z, begin, steps), rtol=0, atol=1e-6)


def test_a_centre_without_rows_goes_to_the_farthest_row() -> None:
    z = unit(np.concatenate([np.tile([1.0, 0, 0], (40, 1)), [[0.9, 0.1, 0], [0, 1, 0], [0, 0.1, 1]]]))
    for seed in range(5):
        begin = centres_of(z, 6, seed=seed, steps=0)
        assert len(np.unique(begin, axis=0)) < 6  # of centres that are equal the first has all the rows
        np.testing.assert_allclose(centres_of(z, 6, seed=seed, steps=1), reference(z, begin, 1), rtol=0, atol=1e-6)
        assert (z @ centres_of(z, 6, seed=seed).T).max(1).min() > 1 - 1e-6


def test_no_step_makes_the_average_cosine_smaller_and_the_last_moves_nothing() -> None:
    z = random_rows(600)
    means = [(z.astype(np.float64) @ centres_of(z, 12, steps=steps).T).max(1).mean() for steps in range(40)]
    assert all(after >= before - 1e-7 for before, after in pairwise(means))
    assert means[10] > means[0] + 0.02
    last = centres_of(z, 12, steps=1000)
    np.testing.assert_allclose(reference(z, last, 1), last, rtol=0, atol=1e-6)


def test_groups_that_lie_apart_share_no_centre() -> None:
    rng = np.random.default_rng(0)
    group = rng.integers(0, 6, 900)
    z = unit(unit(rng.normal(size=(6, 32)))[group] + 0.05 * rng.normal(size=(900, 32)))
    nearest = (z @ centres_of(z, 30).T).argmax(1)
    assert all(len({*group[nearest == i]}) <= 1 for i in range(30))


def test_one_two_and_eight_devices_find_the_same_bits() -> None:
    z = random_rows(300)
    one, *others = [centres_of(z, 17, devices=jax.devices()[:count]) for count in (1, 2, 8)]
    for other in others:
        np.testing.assert_array_equal(one, other)


def test_of_many_rows_some_are_drawn_and_another_seed_draws_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clusters, "PER_CLUSTER", 3)
    seen = []
    nearest = clusters.nearest_of
    monkeypatch.setattr(clusters, "nearest_of", lambda rows, *args, **kw: (seen.append(rows), nearest(rows, *args, **kw))[1])
    z = random_rows(500)
    results = [centres_of(z, 10, seed=seed, steps=1) for seed in (0, 0, 1)]
    assert [rows.shape for rows in seen] == [(30, 8)] * 3
    assert len(np.unique(seen[0], axis=0)) == 30
    np.testing.assert_array_equal(results[0], results[1])
    assert not np.array_equal(results[0], results[2])


def test_more_clusters_than_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="5 clusters of 4 rows"):
        centres_of(random_rows(4), 5)
