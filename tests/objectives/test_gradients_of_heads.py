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
from scipy.special import erf
from test_objectives import EACH, VIEWS, config_of, head, unit

from jclip.config import Config, SelfDistillation, SimCLR
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


def test_the_embedding_of_a_teacher_through_a_linear_map() -> None:
    _, objective = of("like")
    student, kernel, teacher = unit(normal(11, BATCH, SIZE)), normal(12, SIZE, 5), normal(13, BATCH, 5)
    target = unit(teacher.astype(np.float64))

    def by_hand(student: np.ndarray, kernel: np.ndarray, _: np.ndarray) -> float:
        return float(((unit(student @ kernel) - target) ** 2).sum(1).mean())

    def ours(student: jax.Array, kernel: jax.Array, teacher: jax.Array) -> jax.Array:
        given = part({"image": student}, batch={"image@teacher": teacher})
        return loss_of(objective, {"projection": {"kernel": kernel}}, {}, given)

    assert_same(ours, by_hand, [student.astype(np.float32), kernel, teacher])


@pytest.mark.slow
def test_hidden_words_through_a_dense_layer_a_gelu_and_a_norm() -> None:
    config, objective = of("masked")
    begin, end, words = 49406, 49407, 12
    ids = np.full((BATCH, config.model.towers["text"].context_length), 0, np.int32)
    for row, length in enumerate((1, 3, 5, 2, 4)):
        ids[row, : length + 2] = [begin, *np.random.default_rng(row).integers(1, words, length), end]
    given = part({"text@masked": np.zeros((*ids.shape, WIDTH))}, batch={"text": jnp.asarray(ids)})
    chosen = jax.device_get(objective._choose(given.batch["text"], given.rows, given.key))
    rows = np.arange(BATCH)[:, None]
    assert chosen.real.any(1).all()
    assert not chosen.real.all()  # short texts have fewer
    x, kernel, vocabulary = (
        normal(14, BATCH, chosen.places.shape[1], WIDTH),
        normal(15, WIDTH, WIDTH) / 6,
        normal(16, WIDTH, words),
    )
    bias, scale, shift = (normal(seed, WIDTH) for seed in (17, 18, 19))

    def by_hand(x: np.ndarray, bias: np.ndarray, scale: np.ndarray, shift: np.ndarray, vocabulary: np.ndarray) -> float:
        h = x @ kernel + bias
        h = h * 0.5 * (1 + erf(h / np.sqrt(2)))
        h = (h - h.mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + config.model.towers["text"].norm_eps)
        logits = (h * scale + shift) @ vocabulary
        logits -= np.log(np.exp(logits).sum(-1, keepdims=True) + 49408 - words)
        right = np.take_along_axis(logits, ids[rows, chosen.places][:, :, None] % words, axis=2)[:, :, 0]
        return float(-((right * chosen.real).sum(1) / chosen.real.sum(1)).mean())

    def ours(x: jax.Array, bias: jax.Array, scale: jax.Array, shift: jax.Array, vocabulary: jax.Array) -> jax.Array:
        """Our loss, of a vocabulary whose other words all have the logit 0."""
        tokens = jnp.zeros((*ids.shape, WIDTH)).at[rows, chosen.places].set(x)
        head = {
            "fc": {"kernel": kernel, "bias": bias},
            "norm": {"scale": scale, "bias": shift},
            "vocabulary": jnp.pad(vocabulary, ((0, 0), (0, 49408 - words))),
        }
        seen = given._replace(encoded=part({"text@masked": tokens}).encoded)
        return loss_of(objective, {"head": head}, {}, seen)

    assert_same(ours, by_hand, [x, bias, scale, shift, vocabulary])


@pytest.mark.slow
def test_parts_and_hidden_patches_without_a_gradient_through_the_teacher() -> None:
    config, objective = of("taught")
    how, tower = EACH["taught"], config.model.towers["image"]
    assert isinstance(how, SelfDistillation)
    first = int(tower.pool == "cls")
    length = first + 4
    tokens = [normal(seed, BATCH, length, WIDTH) for seed in (21, 22)]
    parts = outputs()
    given = part({"image@1": parts[0], "image@3": parts[1]})
    params = jax.tree.map(lambda x: x + 0.1 * normal(x.size, *x.shape), jax.device_get(objective.init(jax.random.key(1), given)))
    heads = jax.tree.map(lambda x: x + 0.2 * normal(x.size + 1, *x.shape), {name: params[name] for name in ("parts", "hidden")})
    centres = {name: 0.1 * normal(seed, how.prototypes) for seed, name in ((23, "parts"), (24, "hidden"))}
    made = objective.views(params, {"image": jnp.zeros((BATCH, 16, 16, 3))}, given.rows, given.key)["image@taught"]
    hidden = np.pad(np.asarray(made.hidden), ((0, 0), (first, 0)))

    def cosines(one: Any, x: np.ndarray, kernel: np.ndarray | None = None) -> np.ndarray:
        prototypes = np.asarray(one["prototypes"]["kernel"] if kernel is None else kernel, np.float64)
        return unit(head(one["head"], x, 2)) @ (prototypes / np.linalg.norm(prototypes, axis=0))

    def cross_entropy(name: str, student: np.ndarray, seen: np.ndarray, kernel: np.ndarray | None = None) -> np.ndarray:
        p = cosines(params[name], student, kernel) / how.temperature
        q = np.exp((cosines(heads[name], seen) - centres[name]) / how.teacher_temperature)
        return -(q / q.sum(-1, keepdims=True) * (p - np.log(np.exp(p).sum(-1, keepdims=True)))).sum(-1)

    whole = tokens[1].astype(np.float64)

    def by_hand(a: np.ndarray, b: np.ndarray, masked: np.ndarray, kernel: np.ndarray, _: np.ndarray) -> float:
        pooled = whole.mean(1)
        of_parts = np.mean([cross_entropy("parts", x, pooled, kernel).mean() for x in (a, b)])
        return float(of_parts + how.hidden_weight * cross_entropy("hidden", masked[hidden], whole[hidden]).mean())

    def ours(a: jax.Array, b: jax.Array, masked: jax.Array, kernel: jax.Array, seen: jax.Array) -> jax.Array:
        mine = {**params, "parts": {**params["parts"], "prototypes": {"kernel": kernel}}}
        extra = {"towers": {}, "heads": heads, "centres": centres}
        return loss_of(objective, mine, extra, part({"image@1": a, "image@3": b, "image@taught": masked}, {"image": seen}))

    assert_same(ours, by_hand, [*parts, tokens[0], np.asarray(params["parts"]["prototypes"]["kernel"]), tokens[1]])
