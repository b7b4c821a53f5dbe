"""The evaluators that learn from labels, on words in place of pictures."""

import json
import logging

import numpy as np
import pytest
from eval_fakes import Listed, letters, on_hosts, word_model

from jclip.config import ConfigError, FewShot, Labels, LinearProbe, NearestNeighbours, VisionTower, architecture, from_json
from jclip.eval import Embedding, load_probe, make_evaluator
from jclip.eval.few_shot import sample_few_shot
from jclip.eval.logistic import fit_logistic, fit_prepared
from jclip.eval.probes import fit_probe
from jclip.eval.scores import SCORES

CLASSES = ("odd", "even")


@pytest.fixture
def measure(monkeypatch):
    """(config of sources t:train, t:test and t:validation) -> its result; every tower reads letters."""

    def run(config, train, test, validation=(), *, params=1.0, embed=word_model):
        sources = {"t:train": Listed(train), "t:test": Listed(test, CLASSES), "t:validation": Listed(validation)}
        monkeypatch.setattr("jclip.eval.embed.eval_transform", lambda tower, **options: letters)
        model = architecture("ViT-tiny-test")
        return on_hosts(
            1, 8, lambda functions: make_evaluator(config, model, functions, sources.__getitem__).run(params, details=True), embed
        )[0]

    return run


def words(n, start=0):
    return tuple({"image": "even" if i % 2 else "odd", "label": i % 2} for i in range(start, start + n))


def probe(protocol="logistic", **options):
    return LinearProbe("t:train", "t:test", protocol, l2=1e-4, **options)


def test_a_fit_that_did_not_converge_is_reported(measure, monkeypatch, caplog):
    monkeypatch.setattr("jclip.eval.probes.fit_prepared", lambda *a, **options: fit_prepared(*a, **options, iterations=1))
    with caplog.at_level(logging.WARNING):
        result = measure(probe(), words(20), words(6))
    assert "not converged after 1 iterations" in caplog.text
    assert result.counts["not_converged"] == 1


def test_a_diverged_model_scores_zero_and_says_so(measure, caplog):
    with caplog.at_level(logging.WARNING):
        result = measure(probe(), words(20), words(6), params=np.nan)
    assert result.metrics == {"top1": 0.0, "mean_per_class": 0.0}
    assert "features are not finite" in caplog.text


@pytest.mark.parametrize("protocol", ["logistic", "openai", "clip_benchmark", "ridge"])
def test_the_probe_learns_from_train_and_is_measured_on_test(measure, protocol):
    wrong = ({"image": "odd", "label": "even"},)  # a name, and a label that no classifier of words gets right
    result = measure(probe(protocol), words(20), words(4) + wrong)
    assert result.metrics["top1"] == pytest.approx(4 / 5)
    assert result.metrics["mean_per_class"] == pytest.approx((1 + 2 / 3) / 2)
    assert result.counts == {"examples": 5, "train_examples": 20, "classes": 2}
    assert result.details["per_class"] == [
        {"name": "odd", "examples": 2, "recall": 1.0},
        {"name": "even", "examples": 3, "recall": pytest.approx(2 / 3)},
    ]
    assert ("search" in result.details) == (protocol != "logistic")


@pytest.mark.parametrize(("protocol", "part"), [("openai", "pooled"), ("logistic", "pooled"), ("clip_benchmark", "z")])
def test_the_protocols_say_which_features_are_read(measure, protocol, part):
    def half_blind(params, arrays):
        blind = {"pooled": np.ones_like, "z": np.asarray} if part == "z" else {"pooled": np.asarray, "z": np.ones_like}
        return {name: Embedding(blind["pooled"](e.pooled), blind["z"](e.z)) for name, e in word_model(params, arrays).items()}

    assert measure(probe(protocol), words(20), words(6), embed=half_blind).metrics["top1"] == 1.0


def test_validation_examples_are_counted_and_a_probe_is_saved_for_use(measure, tmp_path):
    file = tmp_path / "probe.safetensors"
    config = probe("openai", validation="t:validation", save=str(file))
    result = measure(config, words(20), words(6), words(7))
    assert result.counts["validation_examples"] == 7
    saved, names, facts = load_probe(file)
    assert names == CLASSES
    tower = from_json(json.loads(facts.pop("configuration")), VisionTower)
    assert tower == architecture("ViT-tiny-test").towers["image"]
    assert facts == {"train": "t:train", "tower": "image", "features": "pooled", "labels": "one"}
    features = word_model(1.0, {"x": np.stack([letters(w) for w in CLASSES])})["x"].pooled
    assert saved.predict(features).tolist() == [0, 1]


def test_several_labels_an_example_are_measured_by_their_metrics(measure):
    several = tuple({"image": w, "label": [w != "even", w != "odd"]} for w in ("odd", "even", "both") * 5)
    result = measure(probe("openai", metric="map11"), several, several[:6])
    assert result.metrics["map11"] == 1
    assert "top1" not in result.metrics
    with pytest.raises(ConfigError, match="examples of train have several labels each"):
        measure(probe("openai"), several, several)


def test_few_shot_curves_rise_with_the_examples_and_name_a_class_that_has_too_few(measure):
    def pictures(n, start):
        rng = np.random.default_rng(start)
        return tuple({"image": f"{CLASSES[i % 2]}{rng.integers(10**9)}", "label": i % 2} for i in range(n))

    config = FewShot("t:train", "t:test", k=(1, 8), seeds=3)
    result = measure(config, pictures(60, 0), pictures(40, 1))
    curve = result.details["curve"]
    assert curve["x"] == [1, 8]
    assert curve["mean"] == [result.metrics["k1/top1"], result.metrics["k8/top1"]]
    assert curve["deviation"] == [result.metrics["k1/deviation"], result.metrics["k8/deviation"]]
    assert 0.5 < curve["mean"][0] < curve["mean"][1]
    assert result.counts["seeds"] == 3
    with pytest.raises(ValueError, match="odd"):
        measure(config, pictures(14, 0), pictures(4, 1))


@pytest.mark.parametrize("temperature", [0.07, None])
def test_neighbours_vote(measure, temperature):
    train = (*words(6), *({"image": "even", "label": "odd"},) * 2)  # "even": three of five say even
    config = NearestNeighbours("t:train", "t:test", k=5, temperature=temperature, labels=Labels())
    result = measure(config, train, words(4))
    assert result.metrics == {"top1": 1.0, "mean_per_class": 1.0}


def noisy(n, seed):
    """Pictures of words that differ by many letters that mean nothing, a quarter of them "even"."""
    rng = np.random.default_rng(seed)
    return tuple({"image": f"{'oe'[i % 4 == 0]}{rng.integers(10**9)}", "label": int(i % 4 == 0)} for i in range(n))


def features(examples):
    return word_model(1.0, {"x": np.stack([letters(example["image"]) for example in examples])})["x"]


def labels(examples):
    return np.array([example["label"] for example in examples])


def test_a_few_shot_curve_has_the_mean_and_deviation_of_fits_by_hand(measure):
    linear_model = pytest.importorskip("sklearn.linear_model", reason="scikit-learn is not installed")
    train, test = noisy(80, 0), noisy(60, 1)
    metrics = measure(FewShot("t:train", "t:test", k=(2, 8), seeds=4, l2=1e-2), train, test).metrics
    x, test_x = (features(part).pooled.astype(np.float64) for part in (train, test))
    for k in (2, 8):
        found = []
        for seed in range(4):
            chosen = sample_few_shot(labels(train), CLASSES, k, seed)
            fit = linear_model.LogisticRegression(C=1 / (1e-2 * 2 * k), tol=1e-8, max_iter=10_000)
            found.append(np.mean(fit.fit(x[chosen], labels(train)[chosen]).predict(test_x) == labels(test)))
        assert np.std(found) > 0
        assert metrics[f"k{k}/top1"] == pytest.approx(np.mean(found))
        assert metrics[f"k{k}/deviation"] == pytest.approx(np.std(found))


@pytest.mark.parametrize(
    ("protocol", "options"),
    [
        ("openai", {"seed": 4}),  # which draws what is held out
        ("clip_benchmark", {"seed": 5, "validation": "t:validation", "metric": "mean_per_class"}),
        ("ridge", {"metric": "mean_per_class"}),
    ],
)
def test_a_probe_is_fitted_with_every_option_of_the_configuration(measure, tmp_path, protocol, options):
    train, test, validation = noisy(60, 20), noisy(20, 2), noisy(40, 21)
    file = str(tmp_path / "probe.safetensors")
    measure(probe(protocol, save=file, **options), train, test, validation)
    part = "z" if protocol == "clip_benchmark" else "pooled"

    def by_hand(seed=0, metric="accuracy", validation=None):
        held = (getattr(features(noisy(40, 21)), part), labels(noisy(40, 21))) if validation else None
        return fit_probe(protocol, (getattr(features(train), part), labels(train)), held, 2, seed=seed, score=SCORES[metric])

    saved, want = load_probe(file)[0], by_hand(**options)
    np.testing.assert_allclose(saved.weights, want.weights, atol=1e-6)
    assert (saved.strength, saved.tried) == (want.strength, want.tried)
    for option in options:  # each of them matters
        other = by_hand(**{name: value for name, value in options.items() if name != option})
        same = other.tried == want.tried and np.allclose(other.weights, want.weights, atol=1e-5)
        assert not same, option


@pytest.mark.parametrize(("k", "temperature"), [(9, 0.01), (9, 10.0), (9, None), (1, 0.07)])
def test_neighbours_are_those_of_unit_vectors_and_vote_with_their_temperature(measure, k, temperature):
    train, test = noisy(60, 3), noisy(40, 4)
    result = measure(NearestNeighbours("t:train", "t:test", k=k, temperature=temperature), train, test)
    cosines = features(test).z.astype(np.float64) @ features(train).z.T.astype(np.float64)

    def by_hand(temperature):
        right = []
        for row, label in zip(cosines, labels(test), strict=True):
            near = np.argsort(-row)[:k]
            weight = np.ones(k) if temperature is None else np.exp((row[near] - row[near[0]]) / temperature)
            votes = [weight[labels(train)[near] == c].sum() for c in (0, 1)]
            right.append(int(np.argmax(votes)) == label)
        return np.mean(right)

    assert result.metrics["top1"] == pytest.approx(by_hand(temperature))
    if temperature == 0.01:
        assert by_hand(0.01) != by_hand(None) != by_hand(0.07)


def test_fits_of_a_curve_that_did_not_converge_are_counted(measure, monkeypatch, caplog):
    monkeypatch.setattr(
        "jclip.eval.evaluators.probes.fit_logistic", lambda *a, **options: fit_logistic(*a, **options, iterations=1)
    )
    with caplog.at_level(logging.WARNING):
        result = measure(FewShot("t:train", "t:test", k=(1, 2), seeds=2, l2=1e-6), words(20), words(4))
    assert result.counts["not_converged"] == 4
    assert "4 of 4 fits have not converged" in caplog.text
