"""The optimizer against its formulas in f64."""

import math

import jax
import numpy as np
import pytest
from tiny import tiny_config

from jclip.config import Config, ConfigError, Model, Optim, ResNetTower, TextTower, architecture, replace
from jclip.optim import lr_factors, make_optimizer, make_schedule, split
from jclip.program import make_program
from jclip.sharding import make_mesh
from jclip.state import param_shapes
from jclip.tree import flatten, match_rules


def test_the_schedule_is_linear_then_half_a_cosine() -> None:
    schedule = make_schedule(Optim(lr=2.0, final_lr=0.1), warmup_steps=4, total_steps=12)
    want = [2.0 * (k + 1) / 4 for k in range(4)]
    want += [2.0 * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * k / 8))) for k in range(9)]
    assert [float(schedule(k)) for k in range(13)] == pytest.approx(want, rel=1e-6)
    assert float(schedule(20)) == pytest.approx(0.2, rel=1e-6)  # and stays there


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
    factors = flatten(match_rules(param_shapes(Config(model=architecture("ViT-tiny-test"))), Optim().weight_decay_rules))
    undecayed = {path for path, factor in factors.items() if factor == 0}
    ends = ("bias", "scale", "image/cls")
    assert undecayed == {path for path in factors if path.endswith(ends)}
    assert {"image_text/logit_scale", "image/cls", "text/norm/scale"} <= undecayed
    assert "text/token_embed" not in undecayed


def test_the_query_of_a_pooling_by_attention_is_not_decayed_as_in_big_vision() -> None:
    tree = {"image": {"map": {"probe": 0, "attn": {"q": {"kernel": 0, "bias": 0}}}}, "text_image": {"logit_bias": 0}}
    factors = flatten(match_rules(tree, Optim().weight_decay_rules))
    assert {path for path, factor in factors.items() if factor == 0} == {
        "image/map/probe",
        "image/map/attn/q/bias",
        "text_image/logit_bias",
    }
    assert factors["image/map/attn/q/kernel"] == 1


TINY = param_shapes(Config(model=replace(architecture("ViT-tiny-test"), "towers.image.stem", (4,))))
BEFORE = ("image/stem1", "image/patch_embed", "image/norm_pre", "image/cls", "image/pos_embed")
DECAYED = Optim(lr=0.1, b1=0.9, eps=1e-12, weight_decay=0.0, lr_rules=(("text/.*", 3.0), (".*", 1.0)), layer_decay={"image": 0.5})


def factor_by_hand(path: str) -> list[float]:
    """Factors of the image tower's two blocks, or of another parameter: 0.5^(2 - i), 0.5^3 before the blocks, 1 behind them."""
    if path.startswith("text/"):
        return [3.0]
    if path.startswith("image/blocks/"):
        return [0.25, 0.5]
    return [0.125] if path.startswith(BEFORE) else [1.0]


def test_learning_rates_fall_from_block_to_block() -> None:
    for path, factor in flatten(lr_factors(DECAYED, TINY)).items():
        assert np.ravel(factor).tolist() == factor_by_hand(path), path
    assert factor_by_hand("image/norm/scale") == factor_by_hand("image_projection/kernel") == [1.0]


def test_the_first_update_is_as_long_as_the_learning_rate_of_its_block() -> None:
    """Adam's first update is lr times the sign of the gradient, whatever its size (Kingma and Ba 2015, section 2.1)."""
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), TINY)
    tx = make_optimizer(DECAYED, lambda step: 0.1, params)
    updates, _ = tx.update(params, tx.init(params), params)
    signs = flatten(jax.tree.map(np.sign, params))
    for path, update in flatten(updates).items():
        for of_block, sign, factor in zip(*blocks(path, update, signs[path]), factor_by_hand(path), strict=True):
            np.testing.assert_allclose(of_block, -0.1 * factor * sign, rtol=1e-5, err_msg=path)


def blocks(path: str, *arrays: np.ndarray) -> list[np.ndarray]:
    return [array if path.startswith("image/blocks/") else array[None] for array in arrays]


def test_frozen_is_what_a_rule_gives_no_learning_rate() -> None:
    trained, frozen = split(Optim(lr_rules=(("image/blocks/.*", 1.0), ("image/.*", 0.0), (".*", 0.5))), TINY)
    assert flatten(trained).keys() | flatten(frozen).keys() == flatten(TINY).keys()
    assert {path.split("/")[0] for path in flatten(frozen)} == {"image"}
    assert {"image/cls", "image/norm/scale"} <= flatten(frozen).keys()
    assert "image/blocks/attn/q/kernel" in flatten(trained)


def test_statistics_of_batch_normalisation_are_frozen_without_a_rule() -> None:
    resnet = ResNetTower(image_size=32, layers=(1, 1, 1, 1), stem_width=4, heads=2)
    towers = {"image": resnet, "text": TextTower(context_length=8, width=32, depth=1, heads=2)}
    _, frozen = split(Optim(), param_shapes(Config(model=Model(towers, 16))))
    assert {path.rpartition("/")[2] for path in flatten(frozen)} == {"mean", "var"}
    assert len(flatten(frozen)) == 2 * (3 + 4 * 4)  # a stem of three, and in each stage three convolutions and a shortcut


@pytest.mark.parametrize("field", ["optim.lr_rules", "optim.weight_decay_rules", "mesh.rules"])
def test_rules_that_match_nothing_are_refused(field: str) -> None:
    values = ("replicate", "fsdp") if field == "mesh.rules" else (0.0, 1.0)
    config = tiny_config(**{field: (("img/.*", values[0]), (".*", values[1]))})
    with pytest.raises(ConfigError, match=rf"config: {field}: 'img/\.\*' matches no parameter; paths are like \w+/"):
        make_program(config, make_mesh(config.mesh), warmup_steps=1, total_steps=2)


def test_rules_that_freeze_all_are_refused() -> None:
    with pytest.raises(ConfigError, match="freeze every parameter"):
        split(Optim(lr_rules=(("image.*", 0.0), ("text.*", 0.0))), TINY)
    with pytest.raises(ValueError, match="no rule covers parameter text"):
        split(Optim(lr_rules=(("image.*", 1.0),)), TINY)
