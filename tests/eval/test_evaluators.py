"""The evaluators from config to metrics: known answers for any batch size and number of hosts, and the real data room."""

import numpy as np
import pytest
from eval_fakes import Listed, letters, on_hosts

from jclip.config import LinearProbe, Retrieval, ZeroShot, architecture
from jclip.eval import Embedding, Functions, make_evaluator, run_evaluators

WORLDS = [(1, 1), (1, 3), (1, 100), (2, 4), (3, 6), (4, 4)]
MODEL = architecture("ViT-tiny-test")


@pytest.fixture
def sources(monkeypatch):
    """Sources in memory by name, in place of `open_source`; every tower reads letters."""
    table: dict[str, Listed] = {}
    for room in ("zero_shot", "retrieval", "linear_probe"):
        monkeypatch.setattr(f"jclip.eval.{room}.open_source", table.__getitem__)
        monkeypatch.setattr(f"jclip.eval.{room}.eval_transform", lambda tower: letters)
    return table


def run(config, hosts, batch_size, params=1.0):
    """The metrics, which have to be equal on every host."""

    def program(functions):
        return dict(run_evaluators({"name": make_evaluator(config, MODEL, functions)}, params))

    first, *others = on_hosts(hosts, batch_size, program)
    assert all(other == first for other in others)
    return first


@pytest.mark.parametrize(("hosts", "batch_size"), WORLDS)
def test_zero_shot(sources, hosts, batch_size):
    names = ("cat", "dog", "owl", "fox", "ant", "bee", "elk")
    pictures = [("cat", 0), ("dog", "dog"), ("owl", 2), ("owl", 2), ("fox", 0), ("broken", 1), ("bee", 5)]
    sources["s"] = Listed(tuple({"photo": p, "y": y} for p, y in pictures), names)
    metrics = run(ZeroShot("s", templates=("{}",), label="y", fields={"image": "photo"}), hosts, batch_size)
    top5 = metrics.pop("name/top5")
    assert 5 / 6 <= top5 <= 1
    expected = {"top1": 5 / 6, "mean_per_class": (1 / 2 + 1 + 1 + 1) / 4, "examples": 6, "broken": 1}
    assert metrics == pytest.approx({f"name/{name}": value for name, value in expected.items()})


@pytest.mark.parametrize(("hosts", "batch_size"), WORLDS)
def test_retrieval_with_equal_texts(sources, hosts, batch_size):
    # Pictures look like their texts, apart from the last two, which look like each other's; two texts are the same.
    texts = [f"scene {i}" for i in range(9)] + ["scene 3", "left", "right"]
    pictures = [*texts[:10], "right", "left"]
    sources["s"] = Listed(tuple({"image": p, "caption": t} for p, t in zip(pictures, texts, strict=True)))
    metrics = run(Retrieval("s", fields={"text": "caption"}), hosts, batch_size)
    assert metrics["name/image_to_text/recall@1"] == metrics["name/text_to_image/recall@1"] == pytest.approx(10 / 12)
    assert metrics["name/mean/recall@1"] == pytest.approx(10 / 12)
    assert metrics["name/image_to_text/median_rank"] == 1
    assert metrics["name/examples"] == 12
    assert "name/broken" not in metrics


def test_retrieval_from_text_to_image_has_the_same_right_answers(sources):
    sources["s"] = Listed(tuple({"image": f"{i % 4}", "text": f"{i % 4}"} for i in range(8)))
    metrics = run(Retrieval("s", a="text", b="image"), 1, 4)
    assert metrics["name/text_to_image/recall@1"] == metrics["name/image_to_text/recall@1"] == 1


@pytest.mark.parametrize(("hosts", "batch_size"), WORLDS)
def test_linear_probe(sources, hosts, batch_size):
    def examples(n, shift):
        return tuple({"image": ("cat", "dog", "owl")[i % 3], "label": (i + shift * (i == 0)) % 3} for i in range(n))

    sources["train"] = Listed((*examples(20, 0), {"image": "broken", "label": 0}))
    sources["test"] = Listed((*examples(9, 1), {"image": "broken", "label": 0}), ("a", "b", "c"))
    metrics = run(LinearProbe("train", "test"), hosts, batch_size)
    expected = {"top1": 8 / 9, "mean_per_class": (1 + 3 / 4 + 1) / 3, "examples": 9, "broken": 2}
    assert metrics == pytest.approx({f"name/{name}": value for name, value in expected.items()})


@pytest.mark.parametrize("collapse", [0.0, np.nan])
def test_a_collapsed_or_diverged_model_scores_zero(sources, collapse):
    names = tuple(f"class {i}" for i in range(20))
    sources["s"] = Listed(tuple({"image": name, "text": name, "label": name} for name in names), names)
    for config in (ZeroShot("s"), Retrieval("s")):
        metrics = run(config, 2, 6, collapse)
        assert {name: v for name, v in metrics.items() if "rank" not in name and "examples" not in name and v} == {}


def test_a_label_that_is_no_class_stops_the_evaluation(sources):
    sources["s"] = Listed(({"image": "cat", "label": 2},), ("cat", "dog"))
    with pytest.raises(ValueError, match="2 is no label; use 0 to 1 or one of the 2 classes: cat, dog"):
        run(ZeroShot("s"), 1, 1)


def test_classes_that_nobody_names_are_an_error_before_anything_is_embedded(sources):
    sources["s"] = Listed(({"image": "cat", "label": 0},))
    for config in (ZeroShot("s"), LinearProbe("s", "s")):
        with pytest.raises(ValueError, match="'s' has no classes of its own"):
            make_evaluator(config, MODEL, Functions(lambda params, arrays: {}, 1))


def test_the_metrics_carry_the_names_of_their_evaluators():
    class Constant:
        def __init__(self, value):
            self.value = value

        def run(self, params):
            yield "top1", self.value + params

    result = list(run_evaluators({"one": Constant(1.0), "two": Constant(2.0)}, 10.0))
    assert result == [("one/top1", 11.0), ("two/top1", 12.0)]


def test_every_evaluator_runs_on_the_drawn_shapes_with_the_real_transforms():
    rng = np.random.default_rng(0)
    tables: dict[int, np.ndarray] = {}

    def embed(params, arrays):
        result = {}
        for name, rows in arrays.items():
            flat = rows.reshape(len(rows), -1).astype(np.float32) / 255
            if flat.shape[1] not in tables:
                tables[flat.shape[1]] = rng.normal(size=(flat.shape[1], 16)).astype(np.float32)
            pooled = flat @ tables[flat.shape[1]] + 1  # no zero vector, of padding
            result[name] = Embedding(pooled, pooled / np.linalg.norm(pooled, axis=1, keepdims=True))
        return result

    train, test = "shapes:train?length=40&size=16", "shapes:test?length=21&size=16"
    configs = {"zero": ZeroShot(test), "pairs": Retrieval(test), "probe": LinearProbe(train, test, l2=1.0)}

    def program(functions):
        return dict(run_evaluators({name: make_evaluator(c, MODEL, functions) for name, c in configs.items()}, None))

    small, large = (on_hosts(*world, program, embed)[0] for world in ((1, 4), (1, 21)))
    assert small == large
    assert small["zero/examples"] == small["pairs/examples"] == small["probe/examples"] == 21
    assert all(0 <= value <= 1 for name, value in small.items() if "recall" in name or "top" in name)
