"""Values and gradients of the objectives with heads and state, in what the towers give them, against formulas in f64.

The gradients of a formula are central differences in f64, whose error is some 1e-10 of a loss.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from differences import slopes_by_differences
from test_objectives import EACH, VIEWS, config_of, head, unit

from jclip.config import Config, SimCLR
from jclip.models import Encoded, TowerOutput
from jclip.objectives import OBJECTIVES, Objective, Part, Setting

BATCH, WIDTH, SIZE = 5, 32, 32
"""Examples, and the sizes of the tiny model's tokens and embeddings."""


def of(name: str) -> tuple[Config, Objective]:
    config = dataclasses.replace(config_of("contrastive"), objectives={name: EACH[name]}, views=dict(VIEWS))
    return config, OBJECTIVES[type(EACH[name])](name, EACH[name], Setting.of(config), None)


def part(views: Mapping[str, Any], teacher: Mapping[str, Any] | None = None, batch: Mapping[str, Any] | None = None) -> Part:
    """A part of whose views the towers make these: pooled outputs [b, d], tokens [b, l, d] or, without a tower, embeddings."""

    def encoded(x: Any) -> Encoded:
        x = jnp.asarray(x, jnp.float32)
        tokens = x if x.ndim == 3 else x[:, None]
        return Encoded(x, TowerOutput(tokens.mean(axis=1), tokens, jnp.ones(tokens.shape[:2], bool)))

    def encode(params: Any, names: Sequence[str]) -> Mapping[str, Encoded]:
        return {name: encoded((teacher or {})[name]) for name in names}

    seen = {name: encoded(x) for name, x in views.items()}
    return Part(batch or {}, seen, encode, jnp.arange(BATCH), jax.random.key(0))


def loss_of(objective: Objective, params: Any, extra: Any, given: Part) -> jax.Array:
    """The whole loss of a batch in one part."""
    rows, sums = objective.rows(params, extra, given)
    return objective.batch(params, extra, rows, given.batch)[0] + sums.get("loss", 0.0) / BATCH


def assert_same(ours: Callable[..., jax.Array], by_hand: Callable[..., float], arrays: Sequence[np.ndarray]) -> None:
    value, slopes = jax.jit(jax.value_and_grad(ours, argnums=tuple(range(len(arrays)))))(*arrays)
    wide = [np.asarray(x, np.float64) for x in arrays]
    assert value == pytest.approx(by_hand(*wide), rel=1e-5)
    for slope, want in zip(slopes, slopes_by_differences(by_hand, wide), strict=True):
        np.testing.assert_allclose(slope, want, rtol=0, atol=1e-5 * max(1e-2, np.abs(want).max()))


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


VIEW_NAMES = ("image@1", "image@2")


def outputs() -> list[np.ndarray]:
    """The pooled outputs of two views that are alike."""
    one = normal(1, BATCH, WIDTH)
    return [one, one + normal(2, BATCH, WIDTH)]


def params_of(objective: Objective) -> Any:
    params = jax.device_get(objective.init(jax.random.key(1), part(dict(zip(VIEW_NAMES, outputs(), strict=True)))))
    return jax.tree.map(lambda x: x + 0.1 * normal(x.size, *x.shape), params)  # biases and scales are no zeros and ones


@pytest.mark.slow
def test_simclr() -> None:
    _, objective = of("simclr")
    params = params_of(objective)
    assert isinstance(EACH["simclr"], SimCLR)

    def by_hand(a: np.ndarray, b: np.ndarray) -> float:
        z = np.concatenate([unit(head(params["head"], x, 3)) for x in (a, b)])
        logits = z @ z.T / 0.1
        right = np.roll(np.arange(2 * BATCH), BATCH)
        others = np.where(np.eye(2 * BATCH, dtype=bool), -np.inf, logits)
        return float((np.log(np.exp(others).sum(1)) - logits[np.arange(2 * BATCH), right]).mean())

    def ours(a: jax.Array, b: jax.Array) -> jax.Array:
        return loss_of(objective, params, {}, part(dict(zip(VIEW_NAMES, (a, b), strict=True))))

    assert_same(ours, by_hand, outputs())


def test_simsiam_has_no_gradient_through_the_other_view() -> None:
    _, objective = of("simsiam")
    params = params_of(objective)
    fixed = [unit(head(params["head"], x.astype(np.float64), 3)) for x in outputs()]

    def by_hand(a: np.ndarray, b: np.ndarray) -> float:
        pa, pb = (unit(head(params["predictor"], head(params["head"], x, 3), 2)) for x in (a, b))
        return float(-0.5 * ((pa * fixed[1]).sum(1) + (pb * fixed[0]).sum(1)).mean())

    def ours(a: jax.Array, b: jax.Array) -> jax.Array:
        return loss_of(objective, params, {}, part(dict(zip(VIEW_NAMES, (a, b), strict=True))))

    assert_same(ours, by_hand, outputs())


@pytest.mark.slow
def test_byol_has_no_gradient_through_the_target() -> None:
    _, objective = of("byol")
    params, teacher = params_of(objective), [normal(seed, BATCH, WIDTH) for seed in (3, 4)]
    extra = {"head": jax.tree.map(lambda x: 0.5 * x + 0.01, params["head"])}
    targets = [unit(head(extra["head"], x.astype(np.float64), 2)) for x in teacher]

    def by_hand(a: np.ndarray, b: np.ndarray, *_: np.ndarray) -> float:
        pa, pb = (unit(head(params["predictor"], head(params["head"], x, 2), 2)) for x in (a, b))
        return float((((pa - targets[1]) ** 2).sum(1) + ((pb - targets[0]) ** 2).sum(1)).mean())

    def ours(a: jax.Array, b: jax.Array, *seen: jax.Array) -> jax.Array:
        views, target = (dict(zip(VIEW_NAMES, arrays, strict=True)) for arrays in ((a, b), seen))
        return loss_of(objective, params, extra, part(views, target))

    assert_same(ours, by_hand, [*outputs(), *teacher])


@pytest.mark.slow
def test_a_nearest_neighbour_is_an_answer_without_a_gradient() -> None:
    _, objective = of("neighbours")
    queue = unit(normal(5, 32, SIZE).astype(np.float64))
    extra = {"queue": jnp.asarray(queue, jnp.float32), "seen": jnp.int32(20)}
    a, b = (unit(normal(seed, BATCH, SIZE)).astype(np.float32) for seed in (6, 7))
    answers = queue[(b.astype(np.float64) @ queue[:20].T).argmax(1)]

    def by_hand(a: np.ndarray, b: np.ndarray, log_scale: np.ndarray) -> float:
        logits = np.exp(log_scale) * a @ answers.T
        sums = [np.log(np.exp(x).sum(1)) for x in (logits, logits.T)]
        return float((sums[0] + sums[1] - 2 * np.diag(logits)).mean() / 2)

    def ours(a: jax.Array, b: jax.Array, log_scale: jax.Array) -> jax.Array:
        return loss_of(objective, {"logit_scale": log_scale}, extra, part({"image": a, "text": b}))

    assert_same(ours, by_hand, [a, b, np.float32(np.log(7.0))])


def test_words_of_the_mean_patch() -> None:
    config, objective = of("words")
    begin, end = 49406, 49407
    texts = [[begin, 3, 5, 5, end, 0], [begin, 7, end, 0, 0, 0], [begin, 3, end, 9, 9, 9], [begin, 4, 6, 8, 3, end]]
    ids = np.array([*texts, texts[3]])
    tokens, kernel, bias = normal(8, BATCH, 4, WIDTH), 0.1 * normal(9, WIDTH, 10), normal(10, 10)
    captions, having = 6.0, np.array([0, 0, 0, 4, 1, 2, 0, 3, 1, 5.0])
    wide = np.pad(having, (0, 49408 - 10)).astype(np.float32)
    first = int(config.model.towers["image"].pool == "cls")
    words = [{3, 5}, {7}, {3}, {3, 4, 6, 8}, {3, 4, 6, 8}]

    def by_hand(tokens: np.ndarray, kernel: np.ndarray, bias: np.ndarray) -> float:
        logits = tokens[:, first:].mean(1) @ kernel + bias
        log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        rarity = np.log((1 + captions) / (1 + having)) + 1
        shares = [np.array([rarity[c] * (c in of_row) for c in range(10)]) for of_row in words]
        return float(np.mean([-(share * row).sum() / share.sum() for share, row in zip(shares, log_p, strict=True)]))

    def ours(tokens: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
        """Our loss, of a vocabulary whose other ids have no chance."""
        many = ((0, 0), (0, 49408 - 10))
        params = {"head": {"kernel": jnp.pad(kernel, many), "bias": jnp.pad(bias, many[1], constant_values=-1e9)}}
        given = part({"image@2": tokens}, batch={"text": jnp.asarray(ids, jnp.int32)})
        return loss_of(objective, params, {"captions": jnp.float32(captions), "having": jnp.asarray(wide)}, given)

    assert_same(ours, by_hand, [tokens, kernel, bias])
