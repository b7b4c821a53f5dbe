"""Retrieval on scores made by hand and against brute force."""

import jax
import numpy as np
import pytest

from jclip.eval import recall_at
from jclip.eval.ranks import pad_groups
from jclip.eval.retrieval import retrieval_counts, retrieval_metrics


def test_recall_of_scores_made_by_hand():
    zb = np.eye(4, dtype=np.float32)
    scores = np.array(
        [
            [0.9, 0.1, 0.0, 0.0],  # rank 1
            [0.5, 0.4, 0.3, 0.2],  # rank 2
            [0.5, 0.4, 0.3, 0.3],  # tied for the third place: rank 4
            [0.5, 0.4, 0.3, 0.2],  # rank 4
        ],
        np.float32,
    )
    assert recall_at(scores, zb, np.arange(4), (1, 2, 3, 4)) == {1: 0.25, 2: 0.5, 3: 0.5, 4: 1.0}
    # Rows 0 and 3 say the same: 0 is right for 3, and its own copy is not in the way.
    assert recall_at(scores, zb, np.array([5, 6, 7, 5]), (1, 2, 3)) == {1: 0.5, 2: 0.75, 3: 0.75}


def test_metrics_of_both_directions_and_their_mean():
    za, zb = np.array([[3, 5], [2, 1]], np.float32), np.eye(2, dtype=np.float32)  # s = za: rows lose both, columns too
    metrics = retrieval_metrics(za, zb, np.arange(2), np.arange(2), a="image", b="text")
    assert metrics == {
        "image_to_text/recall@1": 0.0,
        "image_to_text/recall@5": 1.0,
        "image_to_text/recall@10": 1.0,
        "image_to_text/median_rank": 2.0,
        "image_to_text/mean_rank": 2.0,
        "image_to_text/map@10": 0.5,
        "text_to_image/recall@1": 0.5,
        "text_to_image/recall@5": 1.0,
        "text_to_image/recall@10": 1.0,
        "text_to_image/median_rank": 1.5,
        "text_to_image/mean_rank": 1.5,
        "text_to_image/map@10": 0.75,
        "mean/recall@1": 0.25,
        "mean/recall@5": 1.0,
        "mean/recall@10": 1.0,
    }


@pytest.mark.parametrize("value", [1.0, np.nan])
def test_a_collapsed_or_diverged_model_retrieves_nothing(value):
    z = np.full((37, 5), value / 5**0.5, np.float32)
    metrics = retrieval_metrics(z, z, np.arange(37), np.arange(37), a="a", b="b")
    assert {name: v for name, v in metrics.items() if ("recall" in name or "map" in name) and v} == {}
    assert metrics["a_to_b/median_rank"] == metrics["b_to_a/mean_rank"] == 37


def captioned(seed, images=23, most=6):
    """Images with 1 to `most` captions, some of which other images share: vectors, and sets of groups of both sides."""
    rng = np.random.default_rng(seed)
    of_images = [rng.choice(40, rng.integers(1, most + 1), replace=False).tolist() for _ in range(images)]
    of_captions = [caption for captions in of_images for caption in captions]
    za, zb = (rng.normal(size=(n, 16)) for n in (images, len(of_captions)))
    za, zb = ((z / np.linalg.norm(z, axis=1, keepdims=True)).astype(np.float32) for z in (za, zb))
    return za, zb, of_images, of_captions


def test_images_with_several_captions_and_shared_ones_equal_top_k_of_the_whole_matrix():
    za, zb, of_images, of_captions = captioned(0)
    right = np.array([[caption in own for caption in of_captions] for own in of_images])
    scores = za.astype(float) @ zb.T.astype(float)
    metrics = retrieval_metrics(za, zb, pad_groups(of_images), np.array(of_captions), a="image", b="text")
    for name, s, truth in (("image_to_text", scores, right), ("text_to_image", scores.T, right.T)):
        hits = np.take_along_axis(truth, np.argsort(-s, axis=1), axis=1)
        first = np.argmax(hits, axis=1) + 1
        precision = np.cumsum(hits, axis=1) / np.arange(1, hits.shape[1] + 1)
        # A copy of a right answer's group is itself right, so positions are those of the sorted list.
        expected = np.sum((precision * hits)[:, :10], axis=1) / np.minimum(10, truth.sum(axis=1))
        for k in (1, 5, 10):
            assert metrics[f"{name}/recall@{k}"] == pytest.approx(np.mean(first <= k))
        assert metrics[f"{name}/median_rank"] == np.median(first)
        assert metrics[f"{name}/mean_rank"] == pytest.approx(np.mean(first))
        assert metrics[f"{name}/map@10"] == pytest.approx(np.mean(expected))


def test_recall_equals_the_formula_of_clip_benchmark_where_no_two_captions_are_equal():
    """CLIP_benchmark takes the recall over all positives and compares it with 0; it knows one image a caption."""
    rng = np.random.default_rng(1)
    image_of = np.repeat(np.arange(20), 5)
    za, zb = (rng.normal(size=(n, 8)) for n in (20, 100))
    za, zb = ((z / np.linalg.norm(z, axis=1, keepdims=True)).astype(np.float32) for z in (za, zb))
    metrics = retrieval_metrics(za, zb, np.arange(20), image_of, a="image", b="text")
    scores = zb.astype(float) @ za.T.astype(float)  # texts by images
    positive = image_of[:, None] == np.arange(20)[None, :]
    for name, s, truth in (("text_to_image", scores, positive), ("image_to_text", scores.T, positive.T)):
        for k in (1, 5, 10):
            top = np.argsort(-s, axis=1)[:, :k]
            recall = np.take_along_axis(truth, top, axis=1).sum(axis=1) / truth.sum(axis=1)
            assert metrics[f"{name}/recall@{k}"] == pytest.approx(np.mean(recall > 0))


def test_counts_of_both_sides_and_of_right_answers():
    images = np.array([[0, 1], [1, -1], [5, -1], [-1, -1]])
    counts = retrieval_counts(images, np.array([0, 1, 1, 9]), a="image", b="text")
    expected = {"image": 4, "text": 4, "right_pairs": 5, "image_without_answer": 2, "text_without_answer": 1}
    assert counts == expected


def test_a_query_without_a_right_answer_counts_as_not_found():
    z = np.eye(4, dtype=np.float32)
    metrics = retrieval_metrics(z, z, np.arange(4), np.array([0, 1, 2, -1]), a="a", b="b")
    assert metrics["a_to_b/recall@10"] == metrics["a_to_b/map@10"] == 0.75  # though there are but 4 candidates
    assert metrics["a_to_b/mean_rank"] == (1 + 1 + 1 + 5) / 4


def test_the_metrics_are_identical_on_1_2_and_8_devices():
    za, zb, of_images, of_captions = captioned(2)
    found = [
        retrieval_metrics(za, zb, pad_groups(of_images), np.array(of_captions), a="a", b="b", devices=jax.devices()[:count])
        for count in (1, 2, 8)
    ]
    assert found[0] == found[1] == found[2]
