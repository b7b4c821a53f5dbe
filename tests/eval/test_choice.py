"""Image-caption selection on scores made by hand, and against the comparisons written out."""

import numpy as np
import pytest

from jclip.eval.choice import choice_metrics, choose
from jclip.eval.ranks import TIE


def from_scores(scores):
    """Vectors [n, I, T] and [n, T, T] whose products are `scores`."""
    scores = np.asarray(scores, np.float32)
    return scores, np.tile(np.eye(scores.shape[2], dtype=np.float32), (len(scores), 1, 1))


def test_winoground_on_scores_made_by_hand():
    scores = [
        [[0.9, 0.1], [0.2, 0.8]],  # all right
        [[0.5, 0.4], [0.7, 0.8]],  # images choose right; caption 0 is nearer to image 1
        [[0.9, 0.1], [0.7, 0.6]],  # captions choose right; image 1 takes caption 0
        [[0.1, 0.9], [0.8, 0.2]],  # all wrong
        [[0.5, 0.5], [0.5, 0.5]],  # collapsed
    ]
    right = choose(*from_scores(scores))
    np.testing.assert_array_equal(right["text_score"], [True, True, False, False, False])
    np.testing.assert_array_equal(right["image_score"], [True, False, True, False, False])
    np.testing.assert_array_equal(right["group_score"], [True, False, False, False, False])
    assert choice_metrics(*from_scores(scores)) == {"text_score": 0.4, "image_score": 0.4, "group_score": 0.2}


def test_sugarcrepe_on_scores_made_by_hand():
    scores = [[[0.3, 0.2]], [[0.2, 0.3]], [[0.3, 0.3]], [[0.3, 0.3 - TIE / 2]], [[0.3, 0.3 - 3 * TIE]], [[np.nan, 0.1]]]
    assert choice_metrics(*from_scores(scores)) == {"text_score": 2 / 6}


@pytest.mark.parametrize(("images", "captions"), [(1, 2), (2, 2), (2, 5), (3, 4)])
def test_scores_equal_the_comparisons_written_out(images, captions):
    rng = np.random.default_rng(images + captions)
    za, zb = rng.integers(-2, 3, (300, images, 3)).astype(np.float32), rng.integers(-2, 3, (300, captions, 3)).astype(np.float32)
    zb[:, :images] += za  # so that some are right
    right = choose(za, zb)
    for n in range(300):
        s = za[n].astype(float) @ zb[n].T.astype(float)
        text = all(s[i, i] > s[i, j] for i in range(images) for j in range(captions) if j != i)
        image = all(s[i, i] > s[j, i] for i in range(images) for j in range(images) if j != i)
        assert right["text_score"][n] == text
        if images > 1:
            assert right["image_score"][n] == image
            assert right["group_score"][n] == (text and image)
    assert set(right) == {"text_score"} | ({"image_score", "group_score"} if images > 1 else set())
    assert 0 < np.mean(right["text_score"]) < 1


def test_nan_is_never_right():
    za, zb = np.full((3, 2, 4), np.nan, np.float32), np.ones((3, 2, 4), np.float32)
    assert choice_metrics(za, zb) == {"text_score": 0.0, "image_score": 0.0, "group_score": 0.0}


@pytest.mark.parametrize(("images", "captions"), [(1, 1), (3, 2)])
def test_examples_without_a_choice_are_refused(images, captions):
    with pytest.raises(ValueError, match="at least 2 captions, and one for each image"):
        choose(np.ones((2, images, 4), np.float32), np.ones((2, captions, 4), np.float32))
