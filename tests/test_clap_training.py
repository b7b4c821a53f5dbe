"""Towers of published CLAPs in training: the same loss and gradients on any mesh and in parts."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest
from test_bert import BERT, PAD
from test_htsat import CNN, FUSED, heard, noise
from test_objectives import gradients
from tiny import tiny_config

from jclip.config import Contrastive, MaskedText, Model, SpecAugment, check
from jclip.state import init_params, new_extra, param_shapes

ROWS = 8
MASKS = SpecAugment(1, 10, 1, 4)
TOWERS = {
    "sound": dataclasses.replace(FUSED, depths=(2, 1), spec_augment=MASKS),
    "other": dataclasses.replace(CNN, projection="residual", spec_augment=MASKS),
    "text": dataclasses.replace(BERT, projection="mlp", positions_from="pad_id"),
}
OBJECTIVES = {
    "sound_text": Contrastive("sound", "text"),
    "other_text": Contrastive("other", "text", "sigmoid"),
    "words": MaskedText("text"),
}


def batch() -> dict[str, np.ndarray]:
    """Sounds of which some are longer than the window, and texts of 4 to 9 tokens."""
    rng = np.random.default_rng(5)
    sounds = noise(*(6000 + 1500 * i for i in range(ROWS)))
    ids = rng.integers(4, 40, (ROWS, 9)).astype(np.int32)
    for i, row in enumerate(ids):
        row[(5, 9)[i % 2] - (i > 3) :] = PAD
    return {"sound": heard(TOWERS["sound"], *sounds), "other": heard(TOWERS["other"], *sounds), "text": ids}


@pytest.mark.slow
@pytest.mark.parametrize(("data", "fsdp", "parts"), [(2, 2, 1), pytest.param(1, 1, 2, marks=pytest.mark.exhaustive)])
def test_loss_and_gradients_are_those_of_one_device(data: int, fsdp: int, parts: int) -> None:
    changes: dict[str, Any] = {"model": Model(TOWERS, 16), "objectives": OBJECTIVES, "evals": {}, "batch_size": ROWS}
    config = tiny_config(**changes, **{"checkpoint.best": None})
    params = jax.device_get(init_params(config, jax.tree.map(lambda _: None, param_shapes(config))))
    for tower in ("sound", "other"):  # as weights have them: decibels are far from 0
        norm = params[tower]["mel"]["norm"]
        params[tower]["mel"]["norm"] = {**norm, "mean": norm["mean"] - 40, "var": norm["var"] * 100}
    extra, rows = new_extra(config, params), batch()
    loss, metrics, grads = gradients(config, 1, 1, params, extra, rows)
    assert np.isfinite(loss)
    spread = dataclasses.replace(config, accumulate=parts)
    got_loss, got_metrics, got = gradients(spread, data, fsdp, params, extra, rows)
    assert got_loss == pytest.approx(loss, rel=1e-6)
    assert got_metrics == pytest.approx(metrics, rel=1e-5, abs=1e-6)
    largest = max(np.abs(gradient).max() for gradient in grads.values())
    for path, gradient in grads.items():
        np.testing.assert_allclose(got[path], gradient, rtol=1e-5, atol=1e-5 * largest, err_msg=path)
    for path, gradient in grads.items():
        statistic = path.endswith(("/mean", "/var"))
        assert statistic == (not gradient.any()) or "pos_embed" in path or path.endswith("k/bias"), path


def test_the_configuration_is_one_of_a_run() -> None:
    config = tiny_config(model=Model(TOWERS, 16), objectives=OBJECTIVES, evals={}, **{"checkpoint.best": None})
    check(config)
