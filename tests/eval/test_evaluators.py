"""The evaluators from config to metrics: known answers for any batch size and number of hosts, and the real data room."""

import dataclasses
import io
import re
from dataclasses import replace

import numpy as np
import pytest
from archives import write_benchmark
from eval_fakes import LENGTH, Listed, letters, on_hosts, word_model
from PIL import Image

from jclip.config import (
    Choice,
    ConfigError,
    FewShot,
    Labels,
    LinearProbe,
    NearestNeighbours,
    Retrieval,
    Robustness,
    Suite,
    ZeroShot,
    architecture,
    check_suite,
)
from jclip.data import eval_transform
from jclip.eval import Embedding, Functions, Result, make_evaluator, run_evaluators

WORLDS = [(1, 1), (1, 3), (1, 100), (2, 4), (3, 6), (4, 4)]
MODEL = architecture("ViT-tiny-test")
SOURCES: dict[str, Listed] = {}
"""Sources that evaluators of these tests open, by name."""


@pytest.fixture
def sources(monkeypatch):
    """Sources in memory by name; every tower reads letters."""
    monkeypatch.setattr("jclip.eval.embed.eval_transform", lambda tower, **options: letters)
    SOURCES.clear()
    return SOURCES


def run(config, hosts, batch_size, params=1.0):
    """The metrics, which have to be equal on every host."""

    def program(functions):
        return dict(run_evaluators({"name": make_evaluator(config, MODEL, functions, SOURCES.__getitem__)}, params))

    first, *others = on_hosts(hosts, batch_size, program)
    assert all(other == first for other in others)
    return first


@pytest.mark.parametrize(("hosts", "batch_size"), WORLDS)
def test_zero_shot(sources, hosts, batch_size):
    names = ("cat", "dog", "owl", "fox", "ant", "bee", "elk")
    pictures = [("cat", 0), ("dog", "dog"), ("owl", 2), ("owl", 2), ("fox", 0), ("broken", 1), ("bee", 5)]
    sources["s"] = Listed(tuple({"photo": p, "y": y} for p, y in pictures), names)
    metrics = run(ZeroShot("s", Labels(field="y"), templates=("{}",), fields={"image": "photo"}), hosts, batch_size)
    top5 = metrics.pop("name/top5")
    assert 5 / 6 <= top5 <= 1
    expected = {"top1": 5 / 6, "mean_per_class": (1 / 2 + 1 + 1 + 1) / 4}
    expected |= {"examples": 6, "broken": 1, "classes": 7, "templates": 1}
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
    expected = {"top1": 8 / 9, "mean_per_class": (1 + 3 / 4 + 1) / 3, "strength": 1e-3}
    expected |= {"examples": 9, "broken": 1, "train_examples": 20, "train_broken": 1, "classes": 3}
    assert metrics == pytest.approx({f"name/{name}": value for name, value in expected.items()})


@pytest.mark.parametrize("collapse", [0.0, np.nan])
def test_a_collapsed_or_diverged_model_scores_zero(sources, collapse):
    names = tuple(f"class {i}" for i in range(20))
    sources["s"] = Listed(tuple({"image": name, "text": name, "label": name} for name in names), names)
    for config in (ZeroShot("s"), Retrieval("s")):
        metrics = run(config, 2, 6, collapse)
        found = {name: v for name, v in metrics.items() if re.search("top|per_class|recall|map", name)}
        assert found
        assert not any(found.values())


def test_a_label_that_is_no_class_stops_the_evaluation(sources):
    sources["s"] = Listed(({"image": "cat", "label": 2},), ("cat", "dog"))
    with pytest.raises(ValueError, match="2 is no label; use 0 to 1 or one of the 2 classes: cat, dog"):
        run(ZeroShot("s"), 1, 1)


def test_classes_that_nobody_names_are_an_error_before_anything_is_embedded(sources):
    sources["s"] = Listed(({"image": "cat", "label": 0},))
    for config in (ZeroShot("s"), LinearProbe("s", "s")):
        with pytest.raises(ValueError, match="'s' has no classes of its own"):
            make_evaluator(config, MODEL, Functions(lambda params, arrays: {}, 1), SOURCES.__getitem__)


def test_the_metrics_carry_the_names_of_their_evaluators():
    class Constant:
        def __init__(self, value):
            self.value = value

        def run(self, params):
            return Result({"top1": self.value + params}, {"examples": 3})

    result = list(run_evaluators({"one": Constant(1.0), "two": Constant(2.0)}, 10.0))
    assert result == [("one/top1", 11.0), ("one/examples", 3), ("two/top1", 12.0), ("two/examples", 3)]


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


@pytest.mark.parametrize(("hosts", "batch_size"), WORLDS)
def test_retrieval_with_several_captions_an_image(sources, hosts, batch_size):
    # Image 0 looks like its second caption; image 1 like a caption that it shares with image 2, which looks like nothing.
    pictures, captions = ["b", "c", "zzzzzzzz", "broken"], [("a", "b"), ("c",), ("c", "d"), ("e",)]
    sources["s"] = Listed(tuple({"image": p, "captions": c} for p, c in zip(pictures, captions, strict=True)))
    metrics = run(Retrieval("s"), hosts, batch_size)
    counts = {"examples": 3, "broken": 1, "image": 3, "text": 5, "right_pairs": 2 + 2 + 3}
    assert {name: metrics[f"name/{name}"] for name in counts} == counts
    # Both "c" of the texts find image 1; of image 2 nothing is sure.
    assert metrics["name/text_to_image/recall@1"] >= 3 / 5
    assert metrics["name/image_to_text/recall@1"] >= 2 / 3


def test_images_that_come_again_are_counted_and_reported_because_their_recall_is_too_low(sources, caplog):
    captions = {f"scene {i}": tuple(f"scene {i}{letter}" for letter in "abcde") for i in range(4)}
    sources["joined"] = Listed(tuple({"image": image, "captions": texts} for image, texts in captions.items()))
    joined = run(Retrieval("joined"), 1, 4)
    assert joined["name/text_to_image/recall@1"] == joined["name/image_to_text/recall@1"] == 1
    assert "name/repeated_images" not in joined
    assert not caplog.text
    sources["rows"] = Listed(tuple({"image": image, "text": text} for image, texts in captions.items() for text in texts))
    rows = run(Retrieval("rows"), 1, 4)
    assert rows["name/repeated_images"] == 16
    assert rows["name/text_to_image/recall@1"] == 0
    assert "16 of 20 images of 'rows' are the same to the model as an earlier one" in caplog.text


def test_equal_texts_of_other_images_are_wrong_if_that_is_said(sources):
    sources["s"] = Listed(tuple({"image": p, "text": t} for p, t in (("a", "a"), ("b", "b"), ("zz", "b"))))
    either, strict = (run(Retrieval("s", equal=equal), 1, 4) for equal in ("right", "wrong"))
    assert either["name/right_pairs"] == 1 + 2 * 2
    assert strict["name/right_pairs"] == 3
    assert either["name/image_to_text/recall@1"] >= 2 / 3
    assert strict["name/image_to_text/recall@1"] <= 1 / 3  # the two equal texts are tied

    # Of a text whose picture is another's, the picture that it equals comes first.
    assert strict["name/text_to_image/recall@1"] == pytest.approx(2 / 3)
    assert either["name/text_to_image/recall@1"] == 1


def test_a_retrieval_whose_examples_have_no_texts_says_so(sources):
    sources["s"] = Listed(({"image": "a"}, {"image": "b"}))
    with pytest.raises(ValueError, match="no example of 's' has a text for tower 'text'"):
        run(Retrieval("s"), 1, 2)


def test_a_sum_of_towers_retrieves_what_neither_tells_alone(sources):
    """Four places in two colours and two pitches: the picture has the colour, the sound the pitch."""
    model = replace(MODEL, towers={**MODEL.towers, "sound": MODEL.towers["image"], "place": MODEL.towers["image"]})
    colours, pitches = ("red\0", "blue"), ("low", "high")
    rows = [{"image": colour, "sound": "\0" * 4 + pitch, "place": colour + pitch} for colour in colours for pitch in pitches]
    sources["s"] = Listed((*rows, {**rows[0], "sound": "broken"}))
    nothing = word_model(1.0, {"": np.zeros((1, LENGTH), np.int32)})[""].pooled

    def sums_of_letters(params, arrays):
        pooled = {name: word_model(params, {name: rows})[name].pooled - nothing for name, rows in arrays.items()}
        return {name: Embedding(x, x / np.linalg.norm(x + 1e-9, axis=1, keepdims=True)) for name, x in pooled.items()}

    def metrics(a):
        def program(functions):
            return make_evaluator(Retrieval("s", a=a, b="place"), model, functions, SOURCES.__getitem__).run(1.0)

        (result,) = on_hosts(1, 2, program, sums_of_letters)
        assert result.counts["broken" if "sound" in a else "examples"] == (1 if "sound" in a else 5)
        return result.metrics

    assert metrics("image+sound")["image+sound_to_place/recall@1"] == 1
    assert metrics("image")["image_to_place/recall@1"] <= 0.6
    assert metrics("sound")["sound_to_place/recall@1"] <= 0.5


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (Retrieval("s", a="image+sound", b="sound"), r"sound is there twice, in 'image\+sound' and 'sound'"),
        (Retrieval("s", a="image+text", b="sound"), r"a 'image\+text' adds texts, of which .* several; leave out text"),
        (Retrieval("s", a="image+smell", b="text"), "there is no tower 'smell'"),
    ],
)
def test_sums_that_mean_nothing_are_refused(config, said):
    model = replace(MODEL, towers={**MODEL.towers, "sound": MODEL.towers["image"]})
    with pytest.raises(ConfigError, match=said):
        check_suite(Suite({"name": config}), model)


@pytest.mark.parametrize(("hosts", "batch_size"), WORLDS)
def test_a_choice_is_right_when_every_wrong_caption_is_farther(sources, hosts, batch_size):
    pairs = [("red", "blue"), ("one", "two"), ("up", "up"), ("broken", "x")]  # the third's captions are tied
    sources["crepe"] = Listed(tuple({"images": (a,), "captions": (a, b)} for a, b in pairs))
    metrics = run(Choice("crepe"), hosts, batch_size)
    expected = {"text_score": 2 / 3, "examples": 3, "images": 1, "captions": 2, "broken": 1}
    assert metrics == pytest.approx({f"name/{name}": value for name, value in expected.items()})
    both = [(("a", "b"), ("a", "b")), (("a", "b"), ("b", "a")), (("a", "a"), ("a", "b"))]
    sources["wino"] = Listed(tuple({"images": i, "captions": c} for i, c in both))
    metrics = run(Choice("wino"), hosts, batch_size)
    assert metrics["name/text_score"] == metrics["name/group_score"] == metrics["name/image_score"] == pytest.approx(1 / 3)


def test_robustness_compares_shifted_sets_with_a_probe(sources):
    names = ("cat", "dog", "owl")

    def pictures(look):
        return Listed(tuple({"image": look(name), "label": i} for i, name in enumerate(names)), names)

    sources["train"] = sources["clean"] = pictures(lambda name: name)
    sources["drawn"] = pictures(lambda name: {"cat": "dog", "dog": "dog", "owl": "owl"}[name])
    config = Robustness("train", "clean", {"drawings": "drawn"}, templates=("{}",))
    metrics = run(config, 2, 4)
    assert metrics["name/clean/zero_shot"] == metrics["name/clean/probe"] == 1
    assert metrics["name/drawings/zero_shot"] == metrics["name/drawings/probe"] == pytest.approx(2 / 3)
    assert metrics["name/drawings/difference"] == 0
    # A set that names its own classes, fewer and in another order, as ImageNet-R does, is scored among these.
    sources["drawn"] = Listed(({"image": "owl", "label": 0}, {"image": "dog", "label": 1}), ("owl", "cat"))
    metrics = run(config, 1, 4)
    assert metrics["name/drawings/candidates"] == 2
    assert metrics["name/drawings/probe"] >= 1 / 2
    masked = dataclasses.replace(config, masks={"drawings": ("owl",)}, baselines={"resnet": {"clean": 1.0, "drawings": 0.25}})
    metrics = run(masked, 1, 4)
    assert metrics["name/drawings/zero_shot"] == metrics["name/drawings/probe"] == 1
    assert metrics["name/drawings/masked"] == 1
    (result,) = on_hosts(1, 3, lambda functions: make_evaluator(config, MODEL, functions, SOURCES.__getitem__).run(1.0))
    assert [row[0] for row in result.details["table"]["rows"]] == ["clean", "drawings"]


def test_the_candidates_of_a_mask_keep_their_own_prompts(sources):
    """A mask of the last classes: with the prompts of the first, "cat" would be nearest to "cot" and "dog" to "dot"."""
    names = ("dot", "cot", "cat", "dog")
    sources["train"] = sources["clean"] = Listed(tuple({"image": name, "label": i} for i, name in enumerate(names)), names)
    sources["drawn"] = Listed(tuple({"image": name, "label": name} for name in ("cat", "dog", "dog")), names)
    metrics = run(Robustness("train", "clean", {"d": "drawn"}, masks={"d": ("dog", "cat")}, templates=("{}",)), 1, 4)
    assert metrics["name/d/zero_shot"] == metrics["name/d/probe"] == 1
    assert metrics["name/d/candidates"] == 2


def test_clip_benchmarks_layout_gives_the_numbers_computed_by_hand(tmp_path, monkeypatch):
    """Pictures of one grey and a model whose towers know greys and their names: every score is known."""
    greys = {"black": 0, "grey": 120, "white": 250}

    def picture(grey):
        file = io.BytesIO()
        Image.fromarray(np.full((16, 16, 3), grey, np.uint8)).save(file, "WEBP", lossless=True)
        return file.getvalue()

    def vector(grey):  # cosines fall with the distance of greys
        angle = np.pi / 2 * grey / 255
        return np.array([np.cos(angle), np.sin(angle)], np.float32)

    def embed(params, arrays):
        found = {}
        for tower, rows in arrays.items():
            words = [bytes(row[row > 0].astype(np.uint8)).decode().removeprefix("so ") for row in rows if tower == "text"]
            means = [greys[word] for word in words] if tower == "text" else rows.mean(axis=(1, 2, 3))
            z = np.stack([vector(mean) for mean in means])
            found[tower] = Embedding(z, z)
        return found

    def transform(tower, **options):
        return letters if tower == MODEL.towers["text"] else eval_transform(tower)

    monkeypatch.setattr("jclip.eval.embed.eval_transform", transform)

    def measure(config):
        return on_hosts(1, 4, lambda functions: make_evaluator(config, MODEL, functions).run(None), embed)[0]

    # Multi-class: of black, black, grey, white, and a white that is labelled grey, four are right, and one of two greys.
    images = [picture(grey) for grey in (0, 10, 130, 240, 250)]
    spec = write_benchmark(tmp_path / "a", images, [0, 0, 1, 2, 1], classes=list(greys), templates=["so {c}"])
    result = measure(ZeroShot(spec))
    assert result.metrics == pytest.approx({"top1": 4 / 5, "mean_per_class": (1 + 1 / 2 + 1) / 3})
    assert result.counts == {"examples": 5, "classes": 3, "templates": 1}
    # Several labels: from black on, the first and the third are right, AP (1/1 + 2/3) / 2; from white on the first, AP 1; grey is
    # in none and counts for nothing.
    labels = [[1, 0, 0], [0, 0, 0], [1, 0, 0], [0, 0, 1]]
    images = [picture(grey) for grey in (0, 10, 130, 240)]
    spec = write_benchmark(tmp_path / "b", images, labels, kind="multilabel", classes=list(greys), templates=["so {c}"])
    assert measure(ZeroShot(spec)).metrics == pytest.approx({"map": ((1 + 2 / 3) / 2 + 1) / 2})
    # Retrieval: the black picture has the texts black and grey, the grey one white, which is the last it would choose.
    spec = write_benchmark(tmp_path / "c", [picture(0), picture(120)], [["black", "grey"], ["white"]], kind="retrieval")
    result = measure(Retrieval(spec))
    assert {name: result.counts[name] for name in ("image", "text", "right_pairs")} == {"image": 2, "text": 3, "right_pairs": 3}
    expected = {"recall@1": 1 / 2, "recall@5": 1, "mean_rank": (1 + 3) / 2, "median_rank": 2, "map@10": (1 + 1 / 3) / 2}
    assert {name: result.metrics[f"image_to_text/{name}"] for name in expected} == pytest.approx(expected)
    expected = {"recall@1": 2 / 3, "recall@5": 1, "mean_rank": (1 + 2 + 1) / 3, "median_rank": 1, "map@10": (1 + 1 / 2 + 1) / 3}
    assert {name: result.metrics[f"text_to_image/{name}"] for name in expected} == pytest.approx(expected)


def test_labels_of_sources_with_other_orders_of_classes_are_matched_by_name(sources):
    sources["train"] = Listed(tuple({"image": name, "label": i} for i, name in enumerate(("cat", "dog"))), ("cat", "dog"))
    test = tuple({"image": name, "label": i} for i, name in enumerate(("bird", "cat", "dog")) if i)
    sources["test"] = Listed(test, ("bird", "cat", "dog"))
    metrics = run(LinearProbe("train", "test", "ridge"), 1, 4)
    assert metrics["name/top1"] == 1
    sources["train"] = Listed(({"image": "cat", "label": 0},), ("lion", "dog"))
    with pytest.raises(
        ConfigError, match="1 of the 2 classes of a source match none of the 3 classes: 'lion'; on the other side"
    ):
        run(LinearProbe("train", "test", "ridge"), 1, 4)


FOLDERS = ("cat", "dog", "fox")


def labelled_by_folder():
    """Examples whose label is the index of their name in FOLDERS."""
    return Listed(tuple({"image": name, "label": i} for i, name in enumerate(FOLDERS)), FOLDERS)


@pytest.mark.parametrize(
    "config",
    [
        ZeroShot("x", templates=("{}",)),
        LinearProbe("x", "x", "ridge"),
        FewShot("x", "x", k=(1,), seeds=1),
        NearestNeighbours("x", "x", k=1),
        Robustness("x", "x", {"y": "x"}, templates=("{}",), masks={"y": ("FOX", "dog")}),
    ],
    ids=lambda config: type(config).__name__,
)
def test_every_labelled_evaluation_matches_names_and_refuses_half_a_match(sources, config):
    sources["x"] = labelled_by_folder()
    metrics = run(replace(config, labels=Labels(classes=("Fox", "dog", "\ufeffcat"), names=("fox", "dog", "cat"))), 1, 4)
    found = {name: value for name, value in metrics.items() if re.search("top1$|zero_shot$|/probe$", name)}
    assert found
    assert set(found.values()) == {1.0}
    assert not any(name.endswith("by_position") for name in metrics)
    with pytest.raises(ConfigError, match=r"'dog' \(nearest: 'dogs'\); on the other side nothing matches 'dogs'"):
        run(replace(config, labels=Labels(classes=("fox", "dogs", "cat"))), 1, 4)


def test_classes_of_other_names_match_by_position_and_the_result_says_so(sources, caplog):
    sources["x"] = labelled_by_folder()
    config = ZeroShot("x", labels=Labels(classes=("n1", "n2", "n3"), names=FOLDERS), templates=("{}",))
    metrics = run(config, 1, 4)
    assert metrics["name/top1"] == 1
    assert metrics["name/labelled_by_position"] == metrics["name/examples"] == 3
    assert "matched by position with 3 others: 'cat' is 'n1', ..., 'fox' is 'n3'; no name matches" in caplog.text


def test_classes_that_are_numbers_of_wordnet_are_no_words_for_prompts(sources):
    sources["x"] = labelled_by_folder()
    numbers = ("n02123045", "n02084071", "n02118333")
    with pytest.raises(
        ConfigError, match=r"'n02123045', \.\.\.: numbers of WordNet.*DIR/classnames\.txt, or labels\.names file:PATH"
    ):
        on_hosts(1, 4, lambda f: make_evaluator(ZeroShot("x", Labels(classes=numbers)), MODEL, f, SOURCES.__getitem__))  # not run
    assert run(ZeroShot("x", Labels(classes=numbers, names=FOLDERS), templates=("{}",)), 1, 4)["name/top1"] == 1
    assert run(ZeroShot("x", Labels(names=FOLDERS), templates=("{}",)), 1, 4)["name/top1"] == 1, "of the source's own classes"


def test_position_is_used_against_names_only_where_that_is_said(sources):
    sources["x"] = labelled_by_folder()
    turned = ZeroShot("x", labels=Labels(classes=("fox", "dog", "cat")), templates=("{}",))
    assert run(turned, 1, 4)["name/top1"] == 1
    metrics = run(replace(turned, labels=replace(turned.labels, match="position")), 1, 4)
    assert metrics["name/top1"] == pytest.approx(1 / 3)
    assert metrics["name/labelled_by_position"] == 3
    with pytest.raises(ConfigError, match="needs as many classes in a source"):
        run(replace(turned, labels=Labels(classes=("fox", "dog"), match="position")), 1, 4)
