"""LoRA, fine-tuning with WiSE-FT and soups, and prompt search: identities, one step by hand, and what stays bit for bit."""

import dataclasses
import functools
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_adaptation import NAMES, adapted, protocol, write_pictures

import jclip
from jclip import adaptation, convert
from jclip.adapt import fit
from jclip.adapt.fine_tune import mixed, soup
from jclip.adapt.heads import linear_head
from jclip.adapt.lora import class_means, first_factors, merge, prompt_classifier
from jclip.adapt.prompt_search import forward
from jclip.adapt.task import Task
from jclip.config import Adapt, Augment, ConfigError, CoOp, FineTune, LoRA, PromptSearch, Views, load_adapt
from jclip.eval import class_embeddings
from jclip.inference import Encoder, load
from jclip.tree import flatten, unflatten

ROOT = Path(__file__).parents[1]
STILL = Augment(scale=(1.0, 1.0), ratio=(1.0, 1.0))
LORA = LoRA(steps_per_shot=1, batch_size=6, augment=STILL, remat=False)
TUNE = FineTune(epochs=1, batch_size=6, warmup=0.0, augment=STILL, alphas=(0.0, 0.5, 1.0), lr=(1e-3,), remat=False)


@functools.cache
def encoder() -> Encoder:
    return load("ViT-tiny-test")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Adapt:
    root = tmp_path_factory.mktemp("pictures")
    write_pictures(root, {"train": 3, "val": 4, "test": 4})
    return protocol(root, methods={"lora": LORA, "tune": TUNE}, shots=(2,), seeds=1)


@pytest.fixture(scope="module")
def task(config: Adapt) -> Task:
    return adaptation.make_data(config, encoder(), None, None).task(2, 0)[0]


def params() -> dict[str, Any]:
    return flatten(encoder().params)


def test_products_of_rank_zero_or_with_b_zero_change_nothing(task: Task) -> None:
    none = fit(dataclasses.replace(LORA, rank=0), task)
    assert (none.changed, none.parameters) == ({}, 0)
    np.testing.assert_array_equal(none.head.arrays["weights"], task.classifier)
    flat = params()
    start = first_factors({path: flat[path].shape for path in flat if path.endswith("attn/q/kernel")}, 2, 0)
    for path, array in merge(flat, start, 0.5).items():
        np.testing.assert_array_equal(array, flat[path])
    assert len(start) == 2
    assert all(np.any(pair["a"]) for pair in start.values())


@pytest.mark.slow
def test_the_first_step_of_lora_is_that_of_adamw_by_hand(task: Task) -> None:
    """B begins at zero, so A has no gradient: only B moves, by the sign of its gradient times the rate."""
    method = dataclasses.replace(LORA, steps_per_shot=1, lr=1e-2, rules=((r"image/blocks/attn/v/kernel", 1.0), (r".*", 0.0)))
    first = dataclasses.replace(task, shots=1)  # one step
    fitted, path = fit(method, first), "image/blocks/attn/v/kernel"
    start = first_factors({path: params()[path].shape}, 2, 0)[path]
    pixels = task.encode.pixels(STILL, np.arange(6), np.zeros(6, int))

    def loss(b: jax.Array) -> jax.Array:
        kernel = params()[path] + 0.5**0.5 * jnp.matmul(start["a"], b)
        z = encoder().encode_image(unflatten({**params(), path: kernel}), pixels)
        return -jnp.mean(jax.nn.log_softmax(task.scale * z @ task.classifier.T)[jnp.arange(6), task.labels])

    gradient = np.asarray(jax.grad(loss)(jnp.zeros_like(start["b"])))
    b = -1e-2 * gradient / (np.abs(gradient) + 1e-8)
    a = start["a"] * (1 - 1e-2 * 0.01)  # decayed
    assert list(fitted.changed) == [path]
    sure = np.abs(gradient) > 1e-5
    found = np.linalg.lstsq(
        np.asarray(a[0], np.float64), (fitted.changed[path][0] - np.asarray(params()[path][0])) / 0.5**0.5, rcond=None
    )[0]
    np.testing.assert_allclose(found[sure[0]], b[0][sure[0]], atol=2e-4)


def test_the_classifier_of_prompts_follows_the_tower_of_texts(task: Task) -> None:
    np.testing.assert_allclose(prompt_classifier(task, task.params), task.classifier, atol=2e-6)
    z = np.random.default_rng(0).normal(size=(7, 5)).astype(np.float32)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    means = class_means(jnp.asarray(z), np.array([0, 0, 1, 1, 2, 2, -1], np.int32), 3)
    np.testing.assert_allclose(means, class_embeddings(z[:6].reshape(3, 2, 5)), atol=1e-6)


@pytest.mark.slow
def test_ends_of_wise_ft_are_the_first_and_the_last_weights(task: Task) -> None:
    ends = {alpha: fit(dataclasses.replace(TUNE, alphas=(alpha,)), task) for alpha in (0.0, 0.5, 1.0)}
    flat = params()
    for path, array in ends[0.0].changed.items():
        np.testing.assert_array_equal(array, flat[path])
        middle = (array.astype(np.float64) + ends[1.0].changed[path]) / 2
        np.testing.assert_allclose(ends[0.5].changed[path], middle, atol=1e-6)
        assert path.startswith(("image/", "image_projection/"))
    np.testing.assert_array_equal(ends[0.0].head.arrays["weights"], task.classifier)
    plain = task.selection.score(linear_head(task.classifier, task.scale))
    assert adaptation._selected(ends[0.0], task) == plain
    assert any((array != flat[path]).any() for path, array in ends[1.0].changed.items())


def test_weights_between_and_soups_are_means() -> None:
    models = [{"w": np.full(2, value, np.float32)} for value in (1.0, 3.0, 8.0)]
    assert mixed(models[0], models[1], 0.25)["w"].tolist() == [1.5, 1.5]
    assert mixed(models[0], models[1], 1.0) is models[1]
    assert soup("uniform", models, lambda _: 0.0)[0]["w"].tolist() == [4.0, 4.0]

    def score(model: Any) -> float:
        return -abs(float(model["w"][0]) - 2.5)  # 3 is the best one, the mean of 1 and 3 no worse, that of all is

    assert soup("best", models, score)[1] == {"members": [1]}
    greedy, facts = soup("greedy", models, score)
    assert facts == {"members": [1, 0]}
    assert greedy["w"].tolist() == [2.0, 2.0]


def test_rules_that_choose_what_cannot_be_are_refused(task: Task) -> None:
    cases: list[tuple[Any, str]] = [
        (dataclasses.replace(LORA, rules=((r"image/norm/bias", 1.0), (r".*", 0.0))), "is no kernel"),
        (dataclasses.replace(LORA, rules=((r"image/nothing", 1.0), (r".*", 0.0))), "matches no parameter"),
        (dataclasses.replace(LORA, rules=((r".*", 0.0),)), "choose no parameter"),
        (dataclasses.replace(TUNE, rules=((r"text/norm/.*", 1.0), (r".*", 0.0))), "not of tower 'image'"),
    ]
    for method, message in cases:
        with pytest.raises(ConfigError, match=message):
            fit(method, task)


@pytest.mark.slow
def test_adapted_towers_are_models_that_convert_and_leave_the_others_bit_for_bit(
    config: Adapt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(adaptation, "load", lambda *_, **__: encoder())
    content = adapted(config, tmp_path / "out")
    for method in ("lora", "tune"):
        cell = tmp_path / "out" / method / "shots-2/seed-0"
        model = jclip.load(cell)
        files = sorted(Path(config.test).glob("*/*.png"))
        found = [model.classes[i] for i in np.argmax(model.classify(files), axis=1)]
        right = np.mean([file.parent.name == name for file, name in zip(files, found, strict=True)])
        assert right == content["cells"][f"{method}/shots-2/seed-0"]["test"]
        changed = {path for path, leaf in flatten(model.params).items() if (np.asarray(leaf) != np.asarray(params()[path])).any()}
        where = r"attn/(q|k|v)/kernel" if method == "lora" else r"^image"
        assert changed <= set(model.adapted.changed)  # type: ignore[union-attr]
        assert all(re.search(where, path) for path in changed)
        convert.main(cell, tmp_path / method)
        assert "Its classifier stays behind" in capsys.readouterr().err
        written = jclip.load(tmp_path / method)
        jax.tree.map(np.testing.assert_array_equal, written.params, model.params)
        convert.main(cell, tmp_path / f"{method}-open_clip", to="open_clip")
        back = jclip.load(tmp_path / f"{method}-open_clip")
        np.testing.assert_allclose(back.embed_image(files[:3]), model.embed_image(files[:3]), atol=1e-6)
    assert set(NAMES) == set(model.classes)


def test_forward_selection_adds_what_helps_most_and_stops() -> None:
    z = np.eye(6, dtype=np.float32)[None]  # one class, six templates that are told apart

    def score(chosen: np.ndarray) -> float:
        places = set(np.argmax(chosen[0], axis=1).tolist())
        return sum({4: 0.5, 1: 0.3, 2: 0.3, 0: -0.1}.get(i, 0.0) for i in places)

    assert forward(z, score, 6) == ([4, 1, 2], pytest.approx([0.5, 0.8, 1.1]))
    assert forward(z, score, 2)[0] == [4, 1]


def test_prompt_search_is_no_worse_on_validation_than_each_template(task: Task, tmp_path: Path) -> None:
    templates = ("a {}.", "the {}.", "a photo of a {}.")
    path = tmp_path / "names.json"
    path.write_text('{"red": ["scarlet", "red"], "green": ["grass"], "blue": ["sky"]}')
    fitted = fit(PromptSearch(templates, names=str(path)), task)
    single = [fit(PromptSearch((template,)), task).choice["accuracy"] for template in templates]
    assert fitted.choice["accuracy"] >= max(single)
    assert fitted.choice["accuracy"] == pytest.approx(task.selection.score(fitted.head))
    assert set(fitted.choice["templates"]) <= set(templates)
    assert set(fitted.choice["names"]) <= {"red", "green", "blue"}


@pytest.mark.exhaustive
def test_the_published_protocol_runs_on_the_real_rn50(tmp_path: Path) -> None:
    """Random weights of RN50's real configuration, through the recipe of a published data set with one view and few steps."""
    write_pictures(tmp_path / "data", {"train": 1, "val": 1, "test": 1}, ("red", "green"))
    short = ["--shots", "1", "--seeds", "1", "--batch-size", "8", "--save", "none"]
    config = load_adapt(
        ROOT / "configs/adapt_published.py", [], ["--dataset", "caltech101", "--root", f"{tmp_path}/data", *short]
    )
    assert isinstance(config.methods["coop"], CoOp)
    assert (config.methods["coop"].passes(1), config.methods["coop"].passes(16)) == (50, 200)
    once = Views(1, Augment(scale=(0.5, 1.0), flip=0.5))
    methods = {
        "coop": dataclasses.replace(config.methods["coop"], epochs=1, views=once),
        "tip": dataclasses.replace(config.methods["tip"], views=once),
        "tip_f": dataclasses.replace(config.methods["tip_f"], views=once, training_views=once, epochs=2),
    }
    content = adaptation.main("RN50", dataclasses.replace(config, methods=methods), tmp_path / "out")
    assert [row["parameters"] for row in content["cells"].values()] == [16 * 512, 0, 2 * 1024]
    assert content["cells"]["coop/shots-1/seed-0"]["choice"] == {"steps": 1, "contexts": 16}
