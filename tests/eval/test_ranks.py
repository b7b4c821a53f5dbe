"""Ranks against brute force in f64, and the cases that must not flatter a model: ties, copies, NaN."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jclip.eval import blocks
from jclip.eval.ranks import TIE, count_right, pad_groups, rank_answers, ranks


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


def positions_by_hand(queries, candidates, query_sets, candidate_sets):
    """Positions of all right answers of each query, best first, pair by pair in f64."""
    result = []
    for q, own in zip(queries.astype(float), query_sets, strict=True):
        right, wrong = [], []
        for c, theirs in zip(candidates.astype(float), candidate_sets, strict=True):
            (right if set(own) & set(theirs) else wrong).append(sum(q * c))
        right.sort(reverse=True)
        result.append([i + sum(score >= bar for score in wrong) for i, bar in enumerate(right, 1)])
    return result


def random_sets(rng, n, groups, size):
    return [rng.integers(0, groups, rng.integers(0, size + 1)).tolist() for _ in range(n)]  # empty ones and repeated members too


few = st.sampled_from((1, 5, 12))  # each shape is compiled


@settings(max_examples=30, deadline=None)
@given(few, few, st.integers(1, 6), st.integers(1, 4), st.sampled_from((1, 5)), st.integers(0, 2**32 - 1))
def test_positions_of_sets_of_right_answers_equal_brute_force(n, m, groups, size, block, seed):
    rng = np.random.default_rng(seed)
    queries, candidates = (rng.integers(-2, 3, (k, 3)).astype(np.float32) for k in (n, m))
    query_sets, candidate_sets = random_sets(rng, n, groups, size), random_sets(rng, m, groups, size)
    ranking = rank_answers(queries, candidates, pad_groups(query_sets), pad_groups(candidate_sets), k=4, block=block)
    expected = positions_by_hand(queries, candidates, query_sets, candidate_sets)
    np.testing.assert_array_equal(ranking.right, [len(positions) for positions in expected])
    np.testing.assert_array_equal(ranking.positions, [(positions + 4 * [m + 1])[:4] for positions in expected])
    np.testing.assert_array_equal(count_right(pad_groups(query_sets), pad_groups(candidate_sets)), ranking.right)


def test_average_precision_of_positions_made_by_hand():
    candidates = np.eye(6, dtype=np.float32)
    scores = np.array([[0.9, 0.8, 0.7, 0.6, 0.5, 0.4]] * 5, np.float32)
    sets = [[1, 2, 5], [0, 3], [4], [], [0, 1, 2, 3]]  # positions 2 3 6, 1 4, 5, none, 1 2 3 4
    ranking = rank_answers(scores, candidates, pad_groups(sets), np.arange(6), k=5)
    np.testing.assert_array_equal(ranking.rank, [2, 1, 5, 7, 1])
    of_5 = [(1 / 2 + 2 / 3) / 3, (1 + 2 / 4) / 2, 1 / 5, 0, 1]
    np.testing.assert_allclose(ranking.average_precision_at(5), of_5, rtol=1e-12)
    np.testing.assert_allclose(ranking.average_precision_at(2), [1 / 2 / 2, 1 / 2, 0, 0, 1], rtol=1e-12)
    np.testing.assert_allclose(ranking.average_precision_at(1), [0, 1, 0, 0, 1], rtol=1e-12)
    with pytest.raises(ValueError, match="k is 6, and this ranking has the positions of 5"):
        ranking.average_precision_at(6)


def test_average_precision_over_all_positions_is_that_of_scikit_learn():
    from sklearn.metrics import average_precision_score

    rng = np.random.default_rng(6)
    queries, candidates = unit(rng, 20, 16), unit(rng, 33, 16)
    sets = [rng.choice(33, rng.integers(1, 6), replace=False).tolist() for _ in range(20)]
    truth = np.array([[j in own for j in range(33)] for own in sets])
    scores = queries.astype(float) @ candidates.T.astype(float)
    expected = [average_precision_score(right, row) for right, row in zip(truth, scores, strict=True)]
    ranking = rank_answers(queries, candidates, pad_groups(sets), np.arange(33), k=33)
    np.testing.assert_allclose(ranking.average_precision_at(33), expected, rtol=1e-12)


def test_results_are_identical_on_1_2_and_8_devices():
    rng = np.random.default_rng(7)
    queries, candidates = unit(rng, 37, 64), unit(rng, 101, 64)  # neither divides by 2
    sets = pad_groups(random_sets(rng, 37, 101, 5))
    candidates[50:80] = candidates[:30] + 1e-6 * unit(rng, 30, 64)  # ties to within rounding
    found = [
        rank_answers(queries, candidates, sets, np.arange(101), k=10, block=3, devices=jax.devices()[:count])
        for count in (1, 2, 8)
    ]
    for other in found[1:]:
        np.testing.assert_array_equal(other.positions, found[0].positions)
        np.testing.assert_array_equal(other.right, found[0].right)


def test_every_device_takes_rows(monkeypatch):
    placed = []
    real = jax.device_put

    def watch(array, sharding):
        placed.append((array.shape, sharding.num_devices, sharding.is_fully_replicated))
        return real(array, sharding)

    monkeypatch.setattr(jax, "device_put", watch)
    z = unit(np.random.default_rng(8), 40, 8)
    ranks(z, z[:7], np.arange(40), np.arange(7), block=2)
    assert len(jax.local_devices()) == 8
    assert placed[0] == ((7, 8), 8, True)
    assert [(shape, devices, whole) for shape, devices, whole in placed[1:] if shape == (16, 8)] == [((16, 8), 8, False)] * 3


def test_a_device_holds_no_more_scores_than_its_share(monkeypatch):
    monkeypatch.setattr(blocks, "SCORES", 1000)
    assert blocks.rows_at_a_time(10**6, 100) == 10
    assert blocks.rows_at_a_time(10**6, 10**6) == 1
    assert blocks.rows_at_a_time(4, 100) == 4
    assert blocks.rows_at_a_time(10**6, 0) <= 1024


def test_a_right_answer_at_nan_comes_after_all_others_and_a_wrong_one_is_ahead():
    candidates = np.eye(5, dtype=np.float32)
    scores = np.array([[0.1, np.nan, 0.3, 0.2, 0.5]], np.float32)
    candidates = np.where(np.arange(5)[:, None] == np.arange(5)[None, :], scores, 0).astype(np.float32)  # diagonal of the scores
    ranking = rank_answers(np.ones((1, 5), np.float32), candidates, np.array([[0, 1, 2]]), np.arange(5), k=3)
    np.testing.assert_array_equal(ranking.positions, [[1 + 1, 2 + 2, 3 + 2]])  # 0.3, 0.1, NaN; 4 is ahead, then 3 as well
    ranking = rank_answers(np.ones((1, 5), np.float32), candidates, np.array([4]), np.arange(5))
    np.testing.assert_array_equal(ranking.rank, 2)


def test_a_bar_appears_only_when_it_lasts(monkeypatch, capsys):
    z = unit(np.random.default_rng(9), 40, 8)
    groups = np.arange(40)
    rank_answers(z, z, groups, groups, block=1, progress="quick")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(blocks, "_PATIENCE", -1.0)
    slow = rank_answers(z, z, groups, groups, block=1, progress="image_to_text")
    assert "image_to_text" in capsys.readouterr().err
    np.testing.assert_array_equal(slow.rank, 1)
    rank_answers(z, z, groups, groups, block=1)
    assert capsys.readouterr().err == ""


def test_sets_are_filled_up_with_minus_one():
    np.testing.assert_array_equal(pad_groups([[3], [], [4, 5]]), [[3, -1], [-1, -1], [4, 5]])
    np.testing.assert_array_equal(pad_groups([[], []]), [[-1], [-1]])


def test_long_lists_of_right_answers_make_the_blocks_smaller(monkeypatch):
    sizes = []
    monkeypatch.setattr(blocks, "SCORES", 6000)
    real = blocks.rows_at_a_time
    monkeypatch.setattr("jclip.eval.ranks.rows_at_a_time", lambda n, columns: sizes.append(real(n, columns)) or sizes[-1])
    z = unit(np.random.default_rng(10), 300, 4)
    same = np.zeros(300, int)
    np.testing.assert_array_equal(ranks(z, z, same, same), 1)
    assert sizes == [6000 // (300 + 4 * 300)]


def test_a_query_without_an_answer_is_never_found_however_few_the_candidates() -> None:
    """Its position is 1 + 3 candidates, which is among the first 10."""
    z = np.eye(3, dtype=np.float32)
    ranking = rank_answers(z, z, np.array([0, -1, 7]), np.array([0, 1, 2]), k=10)
    assert ranking.rank.tolist() == [1, 4, 4]
    assert ranking.found_at(10).tolist() == [True, False, False]
    assert ranking.average_precision_at(10).tolist() == [1.0, 0.0, 0.0]
