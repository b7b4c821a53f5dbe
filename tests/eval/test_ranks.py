"""Ranks against brute force in f64, and the cases that must not flatter a model: ties, copies, NaN."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jclip.eval.ranks import TIE, ranks


def brute_force(queries, candidates, query_groups, candidate_groups):
    result = []
    for q, own in zip(queries.astype(float), query_groups, strict=True):
        scored = [(sum(q * c), group == own) for c, group in zip(candidates.astype(float), candidate_groups, strict=True)]
        best = max((score for score, right in scored if right), default=-np.inf)
        result.append(1 + sum(score >= best for score, right in scored if not right))
    return result


def unit(rng, *shape):
    x = rng.normal(size=shape)
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 4), st.integers(1, 5), st.integers(1, 10), st.integers(0, 2**32 - 1))
def test_ranks_equal_brute_force_with_ties_and_duplicates_and_for_any_block(n, m, e, groups, block, seed):
    rng = np.random.default_rng(seed)
    queries, candidates = (rng.integers(-2, 3, (k, e)).astype(np.float32) for k in (n, m))  # integers: exact, and full of ties
    query_groups, candidate_groups = rng.integers(0, groups, n), rng.integers(0, groups, m)
    expected = brute_force(queries, candidates, query_groups, candidate_groups)
    np.testing.assert_array_equal(ranks(queries, candidates, query_groups, candidate_groups, block=block), expected)


def test_rank_within_k_is_the_top_k_definition_when_nothing_is_tied():
    rng = np.random.default_rng(0)
    queries, candidates, groups = unit(rng, 61, 16), unit(rng, 61, 16), rng.integers(0, 20, 61)
    order = np.argsort(-(queries.astype(float) @ candidates.T.astype(float)), axis=1)
    rank = ranks(queries, candidates, groups, groups)
    for k in (1, 2, 5, 10):
        np.testing.assert_array_equal(rank <= k, (groups[order[:, :k]] == groups[:, None]).any(axis=1))


@pytest.mark.parametrize("n", [2, 33, 200])
@pytest.mark.parametrize("noise", [0.0, 1e-7])
def test_a_collapsed_model_has_the_worst_rank_even_when_rounding_tells_its_vectors_apart(n, noise):
    rng = np.random.default_rng(n)
    z = (np.tile(unit(rng, 384), (n, 1)) + noise * unit(rng, n, 384)).astype(np.float32)
    np.testing.assert_array_equal(ranks(z, z, np.arange(n), np.arange(n), block=16), n)


def test_copies_of_the_right_answer_under_another_group_are_ahead_of_it():
    z = unit(np.random.default_rng(1), 300, 512)
    candidates = np.concatenate([z, z])  # each right answer has a copy far away in the matrix
    rank = ranks(z, candidates, np.arange(300), np.concatenate([np.arange(300), -1 - np.arange(300)]))
    np.testing.assert_array_equal(rank, 2)


def test_a_difference_well_above_the_margin_decides():
    angle = np.arccos(1 - 10 * TIE)
    candidates = np.array([[1, 0], [np.cos(angle), np.sin(angle)]], np.float32)
    np.testing.assert_array_equal(ranks(candidates, candidates, np.arange(2), np.arange(2)), 1)


def test_nan_has_the_worst_rank():
    z = unit(np.random.default_rng(2), 6, 8)
    groups = np.arange(6)
    np.testing.assert_array_equal(ranks(np.full_like(z, np.nan), z, groups, groups), 6)
    broken = z.copy()
    broken[3] = np.nan
    np.testing.assert_array_equal(ranks(z, broken, groups, groups), [2, 2, 2, 6, 2, 2])


def test_right_answers_are_not_in_each_others_way():
    z = unit(np.random.default_rng(3), 5, 8)
    np.testing.assert_array_equal(ranks(z, z, np.zeros(5, int), np.zeros(5, int)), 1)


def test_a_query_without_a_right_answer_comes_after_every_candidate():
    z = unit(np.random.default_rng(4), 4, 8)
    np.testing.assert_array_equal(ranks(z, z[:3], np.arange(4), np.arange(3))[3], 4)


def test_groups_that_differ_only_above_32_bits_are_different():
    z = unit(np.random.default_rng(5), 2, 8)
    groups = np.array([7, 7 + 2**32])
    np.testing.assert_array_equal(ranks(z, z[::-1].copy(), groups, groups), 2)
