"""The optimizer against its formulas in f64."""

import math

import jax
import numpy as np
import pytest

from jclip.config import Optim
from jclip.optim import make_optimizer, make_schedule


def test_the_schedule_is_linear_then_half_a_cosine() -> None:
    schedule = make_schedule(Optim(lr=2.0, final_lr=0.1), warmup_steps=4, total_steps=12)
    want = [2.0 * (k + 1) / 4 for k in range(4)]
    want += [2.0 * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * k / 8))) for k in range(9)]
    assert [float(schedule(k)) for k in range(13)] == pytest.approx(want, rel=1e-6)


def adamw(config: Optim, p: float, gradients: list[float], decay: float, lr: float) -> float:
    """Loshchilov and Hutter 2019, algorithm 2, in Python's f64."""
    m = v = 0.0
    for t, g in enumerate(gradients, 1):
        m, v = config.b1 * m + (1 - config.b1) * g, config.b2 * v + (1 - config.b2) * g * g
        m_hat, v_hat = m / (1 - config.b1**t), v / (1 - config.b2**t)
        p -= lr * (m_hat / (math.sqrt(v_hat) + config.eps) + decay * p)
    return p


def test_updates_are_adamw_with_decay_by_rule() -> None:
    config = Optim(lr=0.1, weight_decay=0.5, weight_decay_rules=((r".*/bias", 0.0), (r"text/.*", 0.5), (r".*", 1.0)))
    params = {"image": {"kernel": np.float32(2.0), "bias": np.float32(2.0)}, "text": {"kernel": np.float32(2.0)}}
    tx = make_optimizer(config, lambda step: 0.1, params)
    state, gradients = tx.init(params), [0.3, -0.2, 1.5]
    for g in gradients:
        updates, state = tx.update(jax.tree.map(lambda _, g=g: np.float32(g), params), state, params)
        params = jax.tree.map(lambda p, u: p + u, params, updates)
    assert params["image"]["kernel"] == pytest.approx(adamw(config, 2.0, gradients, 0.5, 0.1), rel=1e-5)
    assert params["image"]["bias"] == pytest.approx(adamw(config, 2.0, gradients, 0.0, 0.1), rel=1e-5)
    assert params["text"]["kernel"] == pytest.approx(adamw(config, 2.0, gradients, 0.25, 0.1), rel=1e-5)


def test_clipping_bounds_the_global_norm() -> None:
    params = {"a": np.zeros(2, np.float32), "b": np.zeros(1, np.float32)}
    config = Optim(weight_decay=0.0, b1=0.0, b2=0.0, eps=1.0, clip_norm=1.0)
    tx = make_optimizer(config, lambda step: 1.0, params)
    gradients = {"a": np.float32([3.0, 0.0]), "b": np.float32([4.0])}
    updates, _ = tx.update(gradients, tx.init(params), params)
    clipped = np.array([0.6, 0.0, 0.8])  # then g / (|g| + eps), since both decays are 0
    np.testing.assert_allclose(np.concatenate([updates["a"], updates["b"]]), -clipped / (clipped + 1), rtol=1e-5)


def test_default_rules_leave_vectors_and_the_scale_undecayed() -> None:
    from jclip.config import Config, architecture
    from jclip.step import param_shapes
    from jclip.tree import flatten, match_rules

    factors = flatten(match_rules(param_shapes(Config(model=architecture("ViT-tiny-test"))), Optim().weight_decay_rules))
    undecayed = {path for path, factor in factors.items() if factor == 0}
    ends = ("bias", "scale", "image/cls")
    assert undecayed == {path for path in factors if path.endswith(ends)}
    assert {"image_text/logit_scale", "image/cls", "text/norm/scale"} <= undecayed
    assert "text/token_embed" not in undecayed
