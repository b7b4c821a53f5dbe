"""Few-shot samples: their size, that they contain each other, and what is refused."""

import itertools

import numpy as np
import pytest

from jclip.eval.few_shot import sample_few_shot

LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(5), [16, 40, 17, 100, 16]))
NAMES = ("ant", "bee", "cat", "dog", "elk")


@pytest.mark.parametrize("k", [1, 2, 16])
def test_every_class_has_k_different_examples_in_rising_order(k):
    indices = sample_few_shot(LABELS, NAMES, k, seed=3)
    np.testing.assert_array_equal(np.bincount(LABELS[indices]), [k] * 5)
    assert np.all(np.diff(indices) > 0)


def test_the_sets_of_one_seed_contain_each_other():
    sets = [set(sample_few_shot(LABELS, NAMES, k, seed=1).tolist()) for k in (1, 2, 4, 8, 16)]
    assert all(smaller < larger for smaller, larger in itertools.pairwise(sets))


def test_they_are_the_first_of_each_class_under_one_permutation():
    order = np.random.default_rng(9).permutation(len(LABELS)).tolist()
    expected = sorted(i for c in range(5) for i in [i for i in order if LABELS[i] == c][:3])
    np.testing.assert_array_equal(sample_few_shot(LABELS, NAMES, 3, seed=9), expected)


def test_seeds_differ_and_one_seed_does_not():
    first, again, other = (sample_few_shot(LABELS, NAMES, 4, seed=seed).tolist() for seed in (0, 0, 1))
    assert first == again != other


def test_samples_are_uniform_over_the_examples_of_a_class():
    labels = np.array([0, 1] * 4)
    counts = np.bincount(np.concatenate([sample_few_shot(labels, ("a", "b"), 1, seed) for seed in range(2000)]), minlength=8)
    assert np.all(np.abs(counts - 500) < 4 * np.sqrt(2000 * 0.25 * 0.75))


@pytest.mark.parametrize(
    ("labels", "k", "message"),
    [
        (
            [0, 0, 1, 0, 1, 2, 2, 2],
            3,
            r"1 of 3 classes have fewer than k=3 examples: 'b' has 2; use k up to 2, or `classes` without",
        ),
        ([0, 0, 1, 0, 1], 2, r"'c' has 0; use `classes` without these"),
        ([0, 1, 2], 0, "k is 0; use 1 or more"),
    ],
)
def test_a_class_with_too_few_is_named_with_what_to_do(labels, k, message):
    with pytest.raises(ValueError, match=message):
        sample_few_shot(np.array(labels), ("a", "b", "c"), k, seed=0)
