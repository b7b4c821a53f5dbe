"""Methods on features: their identities, exactly, and the published formulas and optimizers in f64 numpy."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
import pytest
from adapt_fakes import CLASSES, SCALE, features, make_task, unit64
from scipy.special import log_softmax, softmax

from jclip.adapt import METHODS, fit, linear
from jclip.adapt.clip_adapter import first_weights
from jclip.adapt.heads import Features, Head, accuracy, linear_head, projected_norm, right, scalar
from jclip.adapt.linear import batch_sizes
from jclip.adapt.tip import cached_head, fit_tip, fit_tip_f, grids, mean_keys, search
from jclip.adapt.training import draws, epochs_of, whole_epochs
from jclip.config import BertTower, ClipAdapter, ConfigError, CrossModal, LinearHead, Model, TipAdapter, TipAdapterF, Views
from jclip.config.adapt import Method
from jclip.eval import zero_shot_metrics
from jclip.models.compute import Compute
from jclip.models.heads import make_projection

STILL = Views(0)


def cache_logits64(arrays: dict[str, np.ndarray], z: np.ndarray) -> np.ndarray:
    """Tip-Adapter's logits as its code has them: exp(-(beta - beta f F^T)) L alpha + scale f W^T."""
    a = {name: np.asarray(array, np.float64) for name, array in arrays.items()}
    affinity = z.astype(np.float64) @ a["keys"].T
    cached = np.exp(-(a["beta"] - a["beta"] * affinity)) @ a["values"]
    return a["scale"] * z.astype(np.float64) @ a["classifier"].T + a["alpha"] * cached


def test_a_cache_of_weight_zero_is_the_zero_shot_classifier_to_the_last_bit() -> None:
    task = make_task()
    head = fit_tip(TipAdapter(alpha=0.0, steps=(0, 0)), task).head
    plain = linear_head(task.classifier, task.scale)
    np.testing.assert_array_equal(head.logits(task.selection.features), plain.logits(task.selection.features))


def test_a_sharp_cache_votes_as_the_nearest_shot() -> None:
    task = make_task(noise=0.5)
    z = task.selection.features.z
    head = fit_tip(TipAdapter(alpha=1e6, beta=100.0, steps=(0, 0), views=STILL), task).head
    logits = head.logits(task.selection.features)
    cached = logits - SCALE * (z @ task.classifier.T)
    keys = head.arrays["keys"]
    cosines = z.astype(np.float64) @ keys.T.astype(np.float64)
    nearest = task.labels[np.argmax(cosines, axis=1)]
    clear = np.ptp(np.sort(cosines, axis=1)[:, -2:], axis=1) > 0.03  # nearer by so much outvotes e^3 = 20 others
    seen = clear & (np.max(cached, axis=1) > 1.0)  # beyond rounding
    assert seen.sum() >= 5
    np.testing.assert_array_equal(np.argmax(cached, axis=1)[seen], nearest[seen])


def test_logits_of_the_cache_are_the_published_ones() -> None:
    task = make_task()
    for alpha, beta in ((1.17, 1.0), (5.0, 12.0)):
        head = cached_head(TipAdapter(alpha=alpha, beta=beta), task)
        found = head.logits(task.selection.features)
        np.testing.assert_allclose(found, cache_logits64(dict(head.arrays), task.selection.features.z), atol=1e-5, rtol=1e-5)


def test_keys_are_means_of_views_before_the_norm() -> None:
    rng = np.random.default_rng(0)
    views = Features(unit64(rng.normal(size=(3, 4, 8))).astype(np.float32), rng.uniform(1, 9, (3, 4)).astype(np.float32))
    whole = (views.z.astype(np.float64) * views.norm[..., None]).sum(axis=0)
    np.testing.assert_allclose(mean_keys(views), unit64(whole), atol=1e-6)
    assert np.abs(mean_keys(views) - unit64(views.z.astype(np.float64).sum(axis=0))).max() > 1e-2


def test_the_grids_of_the_search_are_the_published_ones() -> None:
    beta, alpha = grids(TipAdapter())
    assert (len(beta), len(alpha)) == (200, 20)
    np.testing.assert_allclose(beta[[0, 1, 199]], [0.1, 0.1345, 6.9655])
    np.testing.assert_allclose(alpha[[0, 1, 19]], [0.1, 0.245, 2.855])


def test_the_search_finds_the_first_best_pair_of_all() -> None:
    task = make_task(noise=1.2, text_noise=2.0)
    method = TipAdapter(steps=(7, 5), most=(20.0, 9.0))
    head, z, labels = cached_head(method, task), task.selection.features.z, task.selection.labels
    betas, alphas = grids(method)
    expected = np.array(
        [
            [np.mean(right(cache_logits64({**head.arrays, "alpha": a, "beta": b}, z), labels, SCALE)) for a in alphas]
            for b in betas
        ]
    )
    assert len(np.unique(expected)) > 3
    np.testing.assert_allclose(search(head, task.selection, betas, alphas), expected)
    fitted, (i, j) = fit_tip(method, task), np.unravel_index(np.argmax(expected), expected.shape)
    assert (fitted.choice["beta"], fitted.choice["alpha"]) == (betas[i], alphas[j])
    assert fitted.choice["accuracy"] == pytest.approx(expected.max()) == task.selection.score(fitted.head)


def test_a_search_without_any_hit_keeps_alpha_and_beta() -> None:
    task = make_task()
    nowhere = task.selection._replace(
        features=Features(np.full_like(task.selection.features.z, np.nan), task.selection.features.norm)
    )
    fitted = fit_tip(TipAdapter(steps=(3, 3)), dataclasses.replace(task, selection=nowhere))
    assert (fitted.choice["alpha"], fitted.choice["beta"], fitted.choice["accuracy"]) == (1.17, 1.0, 0.0)


def test_a_search_keeps_a_better_pair_of_before_but_where_the_published_choice_is_asked_for() -> None:
    """Every pair of the grids drowns the classifier, which alone is right."""
    task = make_task(noise=0.05, text_noise=0.05)
    wrong = dataclasses.replace(task, labels=np.where(task.labels == 0, 0, (task.labels + 1) % CLASSES))
    method = TipAdapter(alpha=0.0, beta=0.1, steps=(1, 2), most=(50.0, 1e7))
    wrong = dataclasses.replace(wrong, scale=1e-4)  # so that every alpha of the grid is large beside it
    honest, leaky = (fit_tip(method, dataclasses.replace(wrong, select=select)).choice for select in ("val", "test"))
    assert (honest["alpha"], honest["beta"], honest["accuracy"]) == (0.0, 0.1, 1.0)
    assert leaky["alpha"] >= 0.1
    assert 0 < leaky["accuracy"] < leaky["before"] == 1.0


def adamw64(
    gradient: Callable[[np.ndarray, int], np.ndarray],
    x: np.ndarray,
    rates: Sequence[float] | np.ndarray,
    *,
    decay: float,
    eps: float,
) -> Iterator[np.ndarray]:
    """torch's AdamW in f64; yields x after each step."""
    m, v = np.zeros_like(x), np.zeros_like(x)
    for t, rate in enumerate(rates, 1):
        g = gradient(x, t - 1)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        x = x * (1 - rate * decay) - rate * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + eps)
        yield x


def test_keys_are_trained_as_published_and_those_of_step_zero_are_the_cache() -> None:
    task = make_task()
    method = TipAdapterF(epochs=3, batch_size=8, steps=(0, 0), alpha=2.0, beta=3.0, lr=0.01)
    head = cached_head(method, task)
    views, rows = task.encode.views(method.training_views, 3), epochs_of(len(task.labels), 20, 3, 0)
    parts = [part for epoch in rows.reshape(3, 20) for part in (epoch[:8], epoch[8:16], epoch[16:])]  # the last is of 4
    each = 3

    def gradient(keys: np.ndarray, t: int) -> np.ndarray:
        z, labels = views.z[t // each, parts[t]].astype(np.float64), task.labels[parts[t]]
        logits = cache_logits64({**head.arrays, "keys": keys}, z)
        d = (softmax(logits, axis=1) - np.eye(CLASSES)[labels]) / len(z)
        weights = np.exp(-3.0 * (1 - z @ keys.T)) * 3.0 * 2.0
        return (weights * (d @ head.arrays["values"].T.astype(np.float64))).T @ z

    rates = 0.5 * 0.01 * (1 + np.cos(np.pi * np.arange(len(parts)) / len(parts)))
    expected = list(adamw64(gradient, head.arrays["keys"].astype(np.float64), rates, decay=0.01, eps=1e-4))
    scores = [accuracy(with_keys(head, expected[each * (e + 1) - 1]), *task.selection) for e in range(3)]
    fitted = fit_tip_f(method, task)
    best = int(np.argmax(scores))
    assert fitted.choice["epoch"] == best + 1
    assert fitted.details["curve"]["y"] == pytest.approx(scores)
    np.testing.assert_allclose(fitted.head.arrays["keys"], expected[each * (best + 1) - 1], atol=2e-5)
    still = fit_tip_f(dataclasses.replace(method, lr=1e-12, weight_decay=0.0), task)
    np.testing.assert_array_equal(still.head.arrays["keys"], head.arrays["keys"])


def with_keys(head: Head, keys: np.ndarray) -> Head:
    return Head("cache", {**head.arrays, "keys": keys.astype(np.float32)})


def adapter_logits64(arrays: dict[str, np.ndarray], features: Features) -> np.ndarray:
    """CLIP-Adapter's logits as its code has them."""
    a = {name: np.asarray(array, np.float64) for name, array in arrays.items()}
    x = features.z.astype(np.float64) * features.norm[:, None]
    changed = np.maximum(np.maximum(x @ a["down"], 0) @ a["up"], 0)
    return a["scale"] * unit64(a["ratio"] * changed + (1 - a["ratio"]) * x) @ a["classifier"].T


def test_logits_of_the_adapter_are_the_published_ones_and_ratio_zero_is_zero_shot_to_the_last_bit() -> None:
    task = make_task()
    fixed = {"classifier": task.classifier, "scale": scalar(SCALE), **first_weights(16, 4, 0)}
    for ratio in (0.2, 0.7):
        head = Head("adapter", {**fixed, "ratio": scalar(ratio)})
        expected = adapter_logits64(dict(head.arrays), task.selection.features)
        np.testing.assert_allclose(head.logits(task.selection.features), expected, atol=1e-5, rtol=1e-5)
    none = Head("adapter", {**fixed, "ratio": scalar(0.0)}).logits(task.selection.features)
    np.testing.assert_array_equal(none, linear_head(task.classifier, SCALE).logits(task.selection.features))


def test_the_adapter_is_trained_by_the_sgd_of_coop() -> None:
    task = make_task(noise=1.0, text_noise=1.0)
    method = ClipAdapter(epochs=3, batch_size=8, lr=0.5, warmup_lr=0.1)
    rows, views = epochs_of(len(task.labels), 8, 3, 0), task.encode.views(method.views, 3)
    weights = {name: array.astype(np.float64) for name, array in first_weights(16, 4, 0).items()}
    momentum = {name: np.zeros_like(array) for name, array in weights.items()}
    fixed = {"classifier": task.classifier, "ratio": scalar(0.2), "scale": scalar(SCALE)}

    def loss(weights: dict[str, np.ndarray], view: int, batch: np.ndarray) -> float:
        part = Features(views.z[view, batch], views.norm[view, batch])
        logits = adapter_logits64({**fixed, **weights}, part)
        return -np.mean(log_softmax(logits, axis=1)[np.arange(len(batch)), task.labels[batch]])

    for epoch in range(3):
        rate = 0.1 if epoch == 0 else 0.5 * 0.5 * (1 + np.cos(np.pi * (epoch - 1) / 3))
        for batch in rows[epoch]:
            gradients = {name: np.zeros_like(array) for name, array in weights.items()}
            for name, gradient in gradients.items():  # by differences
                for index in np.ndindex(gradient.shape):
                    both = []
                    for sign in (1, -1):
                        moved = {**weights, name: weights[name].copy()}
                        moved[name][index] += sign * 1e-6
                        both.append(loss(moved, epoch, batch))
                    gradient[index] = (both[0] - both[1]) / 2e-6
            for name, gradient in gradients.items():
                momentum[name] = 0.9 * momentum[name] + gradient + 5e-4 * weights[name]
                weights[name] = weights[name] - rate * momentum[name]
    head = fit(method, task).head
    for name, array in weights.items():
        np.testing.assert_allclose(head.arrays[name], array, atol=2e-5)
        assert np.abs(array - first_weights(16, 4, 0)[name]).max() > 1e-2


def test_a_linear_head_is_trained_as_published() -> None:
    task = make_task()
    method = LinearHead(
        lr=(0.01,), weight_decay=(0.1,), batches=(8,), iterations=20, every=10, warmup=3, wise=(0.0,), views=STILL
    )
    rows = draws(len(task.labels), 8, 20, 0)
    z = task.images.z.astype(np.float64)

    def gradient(weights: np.ndarray, t: int) -> np.ndarray:
        x, labels = z[rows[t]], task.labels[rows[t]]
        return SCALE * ((softmax(SCALE * x @ weights.T, axis=1) - np.eye(CLASSES)[labels]) / len(x)).T @ x

    rates = [1e-5, 0.01 / 3, 0.02 / 3, *(0.005 * (1 + np.cos(np.pi * np.arange(17) / 20)))]
    path = list(adamw64(gradient, task.classifier.astype(np.float64), rates, decay=0.1, eps=1e-8))
    scores = [np.mean(right(SCALE * task.selection.features.z @ path[t].T, task.selection.labels, SCALE)) for t in (0, 10)]
    fitted = fit(method, task)
    best = (0, 10)[int(np.argmax(scores))]
    assert fitted.choice["iteration"] == best + 1
    np.testing.assert_allclose(fitted.head.arrays["weights"], path[best], atol=2e-5)


def test_of_equally_good_combinations_the_published_order_takes_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rates, then decays, then batch sizes."""
    scores = {8: [0.5, 1.0, 1.0, 0.5], 16: [0.5, 1.0, 1.0, 1.0]}  # by batch size, of each rate with each decay

    def train_each(method: Any, lr: Any, decay: Any, first: Any, examples: Any, rows: Any, *_: Any) -> Any:
        return np.stack([first] * 4), np.array(scores[rows.shape[2]]), np.ones(4, int)

    monkeypatch.setattr(linear, "_train_each", train_each)
    method = LinearHead(lr=(1e-3, 1e-4), weight_decay=(0.01, 0.0), batches=(8, 16), iterations=10, every=10, views=STILL)
    found = []
    for given in ([0.5, 1.0, 1.0, 0.5], [0.5, 0.0, 1.0, 1.0]):
        scores[8] = given
        choice = fit(method, make_task()).choice
        found.append((choice["lr"], choice["weight_decay"], choice["batch_size"]))
    assert found == [(1e-3, 0.0, 8), (1e-3, 0.0, 16)]


def test_a_head_that_begins_at_random_is_as_torch_makes_it_and_knows_no_texts() -> None:
    task = make_task()
    still: dict[str, Any] = {"lr": (1e-30,), "weight_decay": (0.0,), "warmup": 0, "views": STILL}
    method = LinearHead(start="random", batches=(8,), iterations=10, every=10, wise=(0.0,), **still)
    weights = fit(method, task).head.arrays["weights"]
    assert np.abs(weights).max() <= 16**-0.5
    assert weights.std() == pytest.approx(16**-0.5 / 3**0.5, rel=0.15)
    other = dataclasses.replace(task, classifier=-task.classifier)
    np.testing.assert_array_equal(fit(method, other).head.arrays["weights"], weights)
    again = fit(method, dataclasses.replace(task, seed=1)).head.arrays["weights"]
    assert (again != weights).all()


def test_texts_are_examples_of_a_cross_modal_head() -> None:
    """Trained on texts alone, so to say, with images that say the same, the head keeps the direction of the text classifier."""
    task = make_task(shots=1)
    as_texts = dataclasses.replace(task, images=Features(task.classifier, np.ones(CLASSES, np.float32)))
    method = CrossModal(lr=(1e-3,), weight_decay=(0.0,), batches=(4,), iterations=200, every=100, wise=(0.0,), views=STILL)
    weights = fit(method, as_texts).head.arrays["weights"]
    cosines = unit64(weights.astype(np.float64)) @ task.classifier.T
    assert (np.argmax(cosines, axis=1) == np.arange(CLASSES)).all()
    assert np.diag(cosines).min() > 0.9
    for share in (0.0, 1.0):
        mixed = fit(dataclasses.replace(method, wise=(share,)), as_texts).head.arrays["weights"]
        np.testing.assert_array_equal(mixed, task.classifier if share else weights)


def test_texts_help_where_there_is_one_image_a_class() -> None:
    """The paired mean over 10 seeds, on clouds; of a real model it is in docs/log.md."""
    how = {
        "lr": (1e-2,),
        "weight_decay": (0.0,),
        "batches": (8,),
        "iterations": 200,
        "every": 100,
        "views": STILL,
        "wise": (0.0,),
    }
    gains = []
    for seed in range(10):
        task = make_task(shots=1, seed=seed, noise=1.0, text_noise=1.0)
        rng = np.random.default_rng([seed, 1])  # the centres, again
        centres = rng.normal(size=(CLASSES, 16))
        labels = np.repeat(np.arange(CLASSES), 100)
        test = features(np.random.default_rng(99), centres, labels, 1.0)
        both = [accuracy(fit(kind(start="zero", **how), task).head, test, labels) for kind in (CrossModal, LinearHead)]
        gains.append(both[0] - both[1])
    assert np.mean(gains) > 0.02


def test_batch_sizes_that_leave_nothing_out_are_left_out() -> None:
    assert batch_sizes(LinearHead(), 100, None) == [8, 32]
    assert batch_sizes(LinearHead(), 20, None) == [8]
    assert batch_sizes(LinearHead(), 5, None) == [8]
    assert batch_sizes(CrossModal(), 20, 17) == [8, 32]
    assert batch_sizes(CrossModal(), 20, 16) == [8]


def test_an_epoch_has_every_example_at_most_once_and_depends_on_the_seed_alone() -> None:
    rows = epochs_of(20, 8, 4, 3)
    assert rows.shape == (4, 2, 8)
    assert all(len(np.unique(epoch)) == 16 for epoch in rows)
    np.testing.assert_array_equal(rows, epochs_of(20, 8, 4, 3))
    assert (rows != epochs_of(20, 8, 4, 4)).any()
    assert epochs_of(5, 8, 2, 0).shape == (2, 1, 5)
    rows, weights = whole_epochs(20, 8, 4, 3)
    assert rows.shape == weights.shape == (4, 3, 8)
    for each, weight in zip(rows, weights, strict=True):
        assert sorted(each[weight > 0].tolist()) == list(range(20))
        assert [np.unique(w[w > 0]).tolist() for w in weight] == [[0.125], [0.125], [0.25]]
    steps = draws(20, 8, 5, 0)
    assert steps.shape == (5, 8)
    assert len(np.unique(steps[:2])) == 16


@pytest.mark.parametrize("kind", ["none", "linear", "affine", "mlp", "mlp_gelu", "residual"])
def test_the_length_before_the_norm_is_that_of_every_projection(kind: Any) -> None:
    tower = BertTower(context_length=4, vocab_size=9, width=8, depth=1, heads=2, max_positions=8, projection=kind)
    model = Model(embed_dim=8, towers={"text": tower})
    pooled = np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)
    params, expected = {}, pooled
    if kind != "none":
        module = make_projection(tower, 8, Compute(), "text_projection")
        made = jax.tree.map(lambda x: x + 0.3, module.init(jax.random.key(0), pooled)["params"])
        params, expected = {"text_projection": made}, np.asarray(module.apply({"params": made}, pooled))
    found = projected_norm(model, params, "text", pooled)
    np.testing.assert_allclose(found, np.linalg.norm(expected, axis=1), rtol=1e-5)
    assert kind == "none" or np.abs(found - np.linalg.norm(pooled, axis=1)).max() > 1e-2


def test_accuracy_is_that_of_the_evaluation_zero_shot() -> None:
    task = make_task(noise=1.5)
    twice = np.concatenate([task.classifier, task.classifier[:1]])  # two classes that nothing tells apart
    z, labels = task.selection.features.z, task.selection.labels
    expected = zero_shot_metrics(z, twice, labels)["top1"]
    assert 0 < expected < 1
    assert accuracy(linear_head(twice, SCALE), task.selection.features, labels) == expected
    assert not right(np.zeros((3, 4), np.float32), np.zeros(3, int), 1.0).any()
    assert not right(np.full((3, 4), np.nan, np.float32), np.zeros(3, int), 1.0).any()


def test_a_method_without_a_row_is_refused() -> None:
    @dataclasses.dataclass(frozen=True)
    class Unknown(Method):
        pass

    with pytest.raises(ConfigError, match="METHODS a row"):
        fit(Unknown(), make_task())
    assert TipAdapter in METHODS
