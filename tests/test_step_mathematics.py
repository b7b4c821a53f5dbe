"""The train step against mathematics: AdamW by hand with every option on, the key of dropout, equal ids, the logged rate."""

import dataclasses
import math
from typing import Any

import jax
import numpy as np
import pytest
from dense import dense
from tiny import tiny_config

from jclip import losses
from jclip.config import Config, Contrastive, MeshConfig
from jclip.data import make_run_loader
from jclip.models import MultiTower
from jclip.program import make_program
from jclip.sharding import make_mesh, to_global
from jclip.step import make_loss_and_grads
from jclip.tree import flatten, unflatten

B1, B2, EPS, DECAY, CLIP, LR, WARMUP, TOTAL = 0.8, 0.9, 1e-3, 0.3, 0.05, 0.02, 2, 10


def everything_on() -> Config:
    return tiny_config(
        **{
            "optim.lr": LR,
            "optim.b1": B1,
            "optim.b2": B2,
            "optim.eps": EPS,
            "optim.weight_decay": DECAY,
            "optim.weight_decay_rules": ((r".*/bias", 0.0), (r"text/.*", 0.5), (r".*", 1.0)),
            "optim.lr_rules": ((r"image/patch_embed/.*", 0.0), (r"text/.*", 0.25), (r".*", 1.0)),
            "optim.layer_decay": {"text": 0.5},
            "optim.clip_norm": CLIP,
            "model.towers.text.dropout": 0.3,
            "seed": 3,
        }
    )


def rate_by_hand(step: int) -> float:
    if step < WARMUP:
        return LR * (step + 1) / WARMUP
    return LR * 0.5 * (1 + math.cos(math.pi * (step - WARMUP) / (TOTAL - WARMUP)))


def factors_by_hand(path: str, shape: tuple[int, ...]) -> tuple[Any, float]:
    """Rate and decay of a parameter, as the rules above and BEiT's layer decay of two blocks say."""
    decay = 0.0 if path.endswith("/bias") else 0.5 if path.startswith("text/") else 1.0
    if not path.startswith("text/"):
        return 1.0, decay
    if path.startswith("text/blocks/"):
        return 0.25 * np.array([0.25, 0.5]).reshape(2, *(1,) * (len(shape) - 1)), decay  # 0.5^2 of the first, 0.5 of the last
    before = path.startswith(("text/pos_embed", "text/token_embed"))
    return 0.25 * (0.125 if before else 1.0), decay


def test_three_steps_are_adamw_by_hand_with_every_option_on() -> None:
    config, mesh = everything_on(), make_mesh(MeshConfig(2, 1), jax.devices()[:2])
    program = make_program(config, mesh, warmup_steps=WARMUP, total_steps=TOTAL)
    state, gradient = program.init(), jax.jit(make_loss_and_grads(config, mesh))
    assert flatten(state.params)["text/blocks/attn/q/kernel"].shape[0] == 2
    want = {path: np.asarray(leaf, np.float64) for path, leaf in flatten(state.params).items()}
    frozen = {path for path in want if path.startswith("image/patch_embed/")}
    m = {path: np.zeros_like(leaf) for path, leaf in want.items() if path not in frozen}
    v = {path: np.zeros_like(leaf) for path, leaf in m.items()}
    clipped = 0
    with make_run_loader(config) as loader:
        for step, batch in zip(range(3), loader, strict=False):
            arrays = to_global(batch.arrays, mesh)
            params = unflatten({path: jax.numpy.asarray(leaf, jax.numpy.float32) for path, leaf in want.items()})
            key = jax.random.fold_in(jax.random.key(3), step)  # dropout's, by seed and step
            grads = {path: np.asarray(leaf, np.float64) for path, leaf in flatten(gradient(params, arrays, key)[2]).items()}
            assert grads.keys() == m.keys()
            norm = math.sqrt(sum((g**2).sum() for g in grads.values()))
            clipped += norm > CLIP
            for path, g in grads.items():
                g = g * min(1.0, CLIP / norm)
                m[path] = B1 * m[path] + (1 - B1) * g
                v[path] = B2 * v[path] + (1 - B2) * g**2
                adam = m[path] / (1 - B1 ** (step + 1)) / (np.sqrt(v[path] / (1 - B2 ** (step + 1))) + EPS)
                rate, decay = factors_by_hand(path, g.shape)
                want[path] = want[path] - rate_by_hand(step) * rate * (adam + DECAY * decay * want[path])
            state, metrics = program.train_step(state, arrays)
            assert float(metrics["lr"]) == pytest.approx(rate_by_hand(step), rel=1e-6)
            assert float(metrics["grad_norm"]) == pytest.approx(norm, rel=1e-3)
    assert clipped == 3
    for path, leaf in flatten(jax.device_get(state.params)).items():
        np.testing.assert_allclose(leaf, want[path], atol=2e-5, err_msg=path)


@pytest.mark.parametrize(("by", "ids"), [("image", [0, 0, 1, 2, 3, 4, 5, 6]), ("text", [0, 1, 2, 2, 3, 4, 5, 6])])
def test_equal_examples_are_identified_by_the_named_tower(by: str, ids: list[int]) -> None:
    config = tiny_config(
        batch_size=8,
        objectives={"image_text": Contrastive(equal="ignore", equal_by=by)},
        **{"model.towers.image.patch_dropout": 0.0, "model.towers.image.depth": 1, "model.towers.text.depth": 1},
    )
    mesh = make_mesh(MeshConfig(1, 1), jax.devices()[:1])
    params = make_program(config, mesh, warmup_steps=1, total_steps=2).init().params
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (8, 16, 16, 3)).astype(np.uint8)
    length = config.model.towers["text"].context_length  # type: ignore[union-attr]
    texts = random.integers(1, 400, (8, length)).astype(np.int32)
    images[1], texts[3] = images[0], texts[2]
    batch = to_global({"image": images, "text": texts}, mesh)
    loss = jax.jit(make_loss_and_grads(config, mesh))(params, batch, jax.random.key(0))[0]
    encoded = jax.jit(MultiTower(config.model).apply)({"params": params}, batch)
    scale = jax.numpy.exp(params["image_text"]["logit_scale"])
    z = [encoded[tower].z for tower in ("image", "text")]
    want = losses.contrastive(*z, scale, ids=jax.numpy.array(ids, jax.numpy.int32), equal="ignore")
    assert float(loss) == pytest.approx(float(want), rel=1e-5)
    other = losses.contrastive(*z, scale)
    assert abs(float(want) - float(other)) > 1e-4


def test_every_loss_is_the_dense_one_of_its_pair_and_options() -> None:
    """Smoothing, bias, type and equal rows (those of `b`, where no tower is named), and the weighted sum, in f64."""
    objectives = {
        "image_text": Contrastive(label_smoothing=0.2, equal="positive", equal_by="image", weight=2.0, block=3),
        "image_again": Contrastive("image", "again", loss="sigmoid", logit_bias=-3.0, label_smoothing=0.1, weight=0.5),
        "text_again": Contrastive("text", "again", dtype="bfloat16", logit_scale=5.0, equal="ignore", method="ring"),
    }
    small = {"model.towers.image.patch_dropout": 0.0, "model.towers.image.depth": 1, "model.towers.text.depth": 1}
    tiny = tiny_config(**small).model
    model = dataclasses.replace(tiny, towers={**tiny.towers, "again": tiny.towers["text"]})
    config = tiny_config(model=model, objectives=objectives, batch_size=8, **{"data.fields": {"again": "text"}})
    mesh = make_mesh(MeshConfig(1, 1), jax.devices()[:1])
    params = make_program(config, mesh, warmup_steps=1, total_steps=2).init().params
    random = np.random.default_rng(0)
    length = model.towers["text"].context_length  # type: ignore[union-attr]
    batch = {name: random.integers(1, 400, (8, length)).astype(np.int32) for name in ("text", "again")}
    batch["image"] = random.integers(0, 256, (8, 16, 16, 3)).astype(np.uint8)
    batch["image"][1], batch["again"][3] = batch["image"][0], batch["again"][2]
    loss, metrics, *_ = jax.jit(make_loss_and_grads(config, mesh))(params, to_global(batch, mesh), jax.random.key(0))
    encoded = jax.jit(MultiTower(model).apply)({"params": params}, batch)
    z = {name: np.asarray(one.z) for name, one in encoded.items()}
    rounded = {name: np.asarray(jax.numpy.asarray(rows, jax.numpy.bfloat16), np.float32) for name, rows in z.items()}
    by_image, by_again = np.array([0, 0, 2, 3, 4, 5, 6, 7]), np.array([0, 1, 2, 2, 4, 5, 6, 7])
    want = [
        dense(z["image"], z["text"], 1 / 0.07, label_smoothing=0.2, ids=by_image, equal="positive").loss,
        dense(z["image"], z["again"], 10.0, -3.0, kind="sigmoid", label_smoothing=0.1).loss,
        dense(rounded["text"], rounded["again"], 5.0, ids=by_again, equal="ignore").loss,
    ]
    assert [float(metrics[f"{name}/loss"]) for name in objectives] == pytest.approx(want, rel=2e-5)
    assert float(loss) == pytest.approx(2 * want[0] + 0.5 * want[1] + want[2], rel=2e-5)
    exact = dense(z["text"], z["again"], 5.0, ids=by_again, equal="ignore").loss
    assert want[2] != pytest.approx(exact, rel=1e-4)  # so that the type tells
