"""Retrieval on scores made by hand and against brute force."""

import numpy as np
import pytest

from jclip.eval import recall_at
from jclip.eval.retrieval import retrieval_metrics, stable_hash


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
    metrics = retrieval_metrics({"image": za, "text": zb}, "image", "text", np.arange(2))
    assert metrics == {
        "image_to_text/recall@1": 0.0,
        "image_to_text/recall@5": 1.0,
        "image_to_text/recall@10": 1.0,
        "image_to_text/median_rank": 2.0,
        "text_to_image/recall@1": 0.5,
        "text_to_image/recall@5": 1.0,
        "text_to_image/recall@10": 1.0,
        "text_to_image/median_rank": 1.5,
        "mean/recall@1": 0.25,
        "mean/recall@5": 1.0,
        "mean/recall@10": 1.0,
    }


@pytest.mark.parametrize("value", [1.0, np.nan])
def test_a_collapsed_or_diverged_model_retrieves_nothing(value):
    z = np.full((37, 5), value / 5**0.5, np.float32)
    metrics = retrieval_metrics({"a": z, "b": z}, "a", "b", np.arange(37))
    assert {name: v for name, v in metrics.items() if "recall" in name and v} == {}
    assert metrics["a_to_b/median_rank"] == 37


def test_the_hash_is_blake2b_of_8_bytes():
    # b2sum -l 64, read as a little-endian signed integer
    assert stable_hash("abc") == int.from_bytes(bytes.fromhex("d8bb14d833d59559"), "little", signed=True)
    assert stable_hash("abc") == stable_hash(b"abc") != stable_hash("abd")
    assert -(2**63) <= stable_hash("é") < 2**63
