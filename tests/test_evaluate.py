"""`jclip eval` with a suite, its file of results, `jclip report` of it, and `jclip classify`."""

import csv
import json
import math
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny import tiny_config

import jclip
from jclip import classify, cli, evaluate, train
from jclip.config import ConfigError, LinearProbe, Retrieval, Suite, load_suite
from jclip.data import SourceError, open_source
from jclip.eval import FeatureCache, Functions, load_probe, make_evaluator
from jclip.results import kept_results, training_curves
from jclip.sharding import make_mesh
from jclip.weights import write_weights

SUITE = str(Path(__file__).parent / "suite_tiny.py")
MODEL = "ViT-tiny-test"


@pytest.fixture
def embedded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The towers whose features are computed, batch by batch."""
    found: list[str] = []
    make = evaluate.make_functions

    def counting(*args: Any, **options: Any) -> Functions:
        functions = make(*args, **options)

        def embed(params: Any, rows: Any) -> Any:
            found.extend(rows)
            return functions.embed(params, rows)

        return Functions(**{**vars(functions), "embed": embed})

    monkeypatch.setattr(evaluate, "make_functions", counting)
    return found


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of weights, which is loaded faster than random ones are drawn."""
    folder = tmp_path_factory.mktemp("weights") / "tiny"
    model = jclip.load(MODEL)
    write_weights(folder, "jclip", model.config, model.params)
    return folder


def read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def test_a_suite_from_the_command_line_to_the_page(tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.json"
    command = ["eval", str(weights), "--suite", SUITE, "--length", "20", "--json", str(out), "--cache", str(tmp_path / "cache")]
    assert cli.main(command) == 0
    assert "retrieval/text_to_image/recall@1" in capsys.readouterr().out
    content = read(out)
    assert list(content["results"]) == list(load_suite(SUITE).evals)
    assert content["model"]["name"] == str(weights)
    assert content["versions"]["jclip"] == jclip.__version__
    result = content["results"]["zero_shot"]
    assert result["protocol"] == "ZeroShot"
    assert result["settings"]["templates"] == ["a {}"]
    assert len(result["settings"]["labels"]["classes"]) == 64
    assert result["data"]["source"]["spec"] == "shapes:test?size=16&length=20"
    assert result["dtype"] == "float32"
    assert result["counts"] == {"examples": 20, "classes": 64, "templates": 1}
    assert result["details"]["mistakes"][0]["image"].startswith("data:image/jpeg;base64,")
    assert cli.main(["report", str(out), "--html", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    assert all(name in page for name in content["results"])


def test_a_suite_goes_on_where_it_was_interrupted(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch, embedded: list[str]
) -> None:
    suite, out = load_suite(SUITE), tmp_path / "out.json"
    whole = evaluate.main(weights, suite=suite)
    options: dict[str, Any] = {"suite": suite, "out": out, "cache": tmp_path / "cache"}

    class Interrupted(Exception):
        pass

    def interrupting(config: Any, *args: Any) -> Any:
        if isinstance(config, LinearProbe):
            raise Interrupted
        return make_evaluator(config, *args)

    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "make_evaluator", interrupting)
        with pytest.raises(Interrupted):
            evaluate.main(weights, **options)
    first = read(out)["results"]
    assert list(first) == ["zero_shot", "retrieval"]
    embedded.clear()
    assert evaluate.main(weights, **options) == whole
    again = read(out)["results"]
    assert {name: again[name] for name in first} == first  # seconds included: not computed again
    # 192 training pictures, 24 of each split that is new, in batches of 16, and no test picture a second time; 3 captions each.
    assert embedded.count("image") == 192 // 16 + 2 + 2
    embedded.clear()
    assert evaluate.main(weights, **options) == whole
    assert embedded == []


def test_another_weight_template_or_datum_never_meets_what_was_kept(tmp_path: Path, weights: Path, embedded: list[str]) -> None:
    out, cache = tmp_path / "out.json", tmp_path / "cache"

    def run(model: Path = weights, **changes: Any) -> tuple[set[str], str]:
        """The towers that something is computed of, and the key of the result."""
        suite = load_suite(SUITE, [f"--{key}={value}" for key, value in changes.items()])
        embedded.clear()
        evaluate.main(model, suite=suite, names=["zero_shot"], out=out, cache=cache)
        return set(embedded), read(out)["results"]["zero_shot"]["key"]

    towers, keys = zip(run(), run(), run(template="the {} there"), run(length=23), run(), strict=True)
    assert towers == ({"image", "text"}, set(), {"text"}, {"image"}, set())
    assert len(set(keys)) == 3
    assert keys[0] == keys[1] == keys[4]
    content = out.read_text()
    with pytest.raises(ConfigError, match=r"out\.json: holds results of other weights .* give another --json, or remove it"):
        run(others(weights, tmp_path))
    assert out.read_text() == content
    out.unlink()
    towers, key = run(tmp_path / "other")
    assert towers == {"image"}  # the text tower's weights are the same
    assert key not in keys


def others(weights: Path, folder: Path) -> Path:
    """A model whose image tower differs."""
    model = jclip.load(weights)
    image = {**model.params["image"], "pos_embed": model.params["image"]["pos_embed"] + 0.1}
    write_weights(folder / "other", "jclip", model.config, {**model.params, "image": image})
    return folder / "other"


def squashed(weights: Path, folder: Path) -> Path:
    """The same weights under another preprocessing."""
    shutil.copytree(weights, folder / "squashed")
    file = folder / "squashed" / "jclip.json"
    config = json.loads(file.read_text())
    config["model"]["towers"]["image"]["preprocess"]["resize"] = "squash"
    file.write_text(json.dumps(config))
    return folder / "squashed"


def test_results_of_the_same_weights_under_other_pixels_do_not_mix(tmp_path: Path, weights: Path) -> None:
    test, out = "shapes:test?size=16&length=24", tmp_path / "out.json"
    pairs = {"pairs": Retrieval("shapes:val?size=16&length=8")}
    evaluate.main(weights, suite=Suite(pairs, batch_size=8), out=out)
    before, other = read(out), squashed(weights, tmp_path)
    with pytest.raises(ConfigError, match=r"the same weights under another configuration: image.preprocess is .*, not .*squash"):
        evaluate.main(other, suite=Suite(pairs, batch_size=8), out=out)
    assert read(out) == before

    saved = tmp_path / "probe.safetensors"
    suite = Suite({"probe": LinearProbe(test, test, "ridge", save=str(saved))}, batch_size=8)
    evaluate.main(weights, suite=suite, out=out)
    facts = load_probe(saved)[2]
    evaluate.main(other, suite=suite, out=tmp_path / "other.json")
    assert load_probe(saved)[2] != facts
    evaluate.main(weights, suite=suite, out=out)  # the result is there, and the probe is of other pixels: it is made again
    assert load_probe(saved)[2] == facts


def test_the_largest_image_of_evaluations_is_said_by_suite_command_and_run(
    tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs, out, refused = {"pairs": Retrieval("shapes:val?size=16&length=8")}, tmp_path / "out.json", "more than 255"
    assert evaluate.main(weights, suite=Suite(pairs, 8, max_pixels=256), out=out)["pairs/image"] == 8
    with pytest.raises(SourceError, match=refused):  # and the result that is there is another one
        evaluate.main(weights, suite=Suite(pairs, 8, max_pixels=255), out=out)
    with pytest.raises(SourceError, match=refused):
        evaluate.main(weights, suite=Suite(pairs, 8), max_pixels=255)
    with pytest.raises(ConfigError, match="max_pixels 0 must be at least 1"):
        evaluate.main(weights, suite=Suite(pairs, 8), max_pixels=0)
    assert cli.main(["eval", str(weights), "--suite", SUITE, "--length", "20", "--no-cache", "--max-pixels", "255"]) == 1
    assert refused in capsys.readouterr().err

    config = tiny_config(**{"data.max_pixels": 255, "evals": pairs})
    mesh = make_mesh(config.mesh)
    (evaluator,) = evaluate.make_evaluators(config, mesh, None, lambda: None).values()
    with pytest.raises(SourceError, match=refused):
        evaluator.run(jclip.load(weights).params)


def test_the_recipes_own_evaluations_need_no_suite(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train.main(tiny_config(**{"duration": "4", "checkpoint.every": "4", "evals": tiny_config().evals}), tmp_path)
    capsys.readouterr()
    found = evaluate.main(tmp_path, as_json=True)
    assert json.loads(capsys.readouterr().out) == {"step": 4, **found}
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert {**lines[-1], **found} == lines[-1]
    out = tmp_path / "out.json"
    evaluate.main(tmp_path, suite=load_suite(SUITE), names=["zero_shot"], out=out)
    assert [line["step"] for line in read(out)["training"]][:4] == [1, 2, 3, 4]


def test_errors(tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match=r"is no workdir, whose configuration has evaluations; give a suite: --suite FILE\.py"):
        evaluate.main(weights)
    with pytest.raises(ConfigError, match="there is no evaluation 'x'; evaluations: zero_shot, retrieval"):
        evaluate.main(weights, suite=load_suite(SUITE), names=["x"])
    with pytest.raises(ConfigError, match=r"evals\.probe: there is no tower 'audio'; towers: image, text"):
        evaluate.main(weights, suite=Suite({"probe": LinearProbe("s", "s", tower="audio")}))
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0, "key": "x"}\n{"step": 2, "lo')
    assert training_curves(tmp_path) == [{"step": 1, "loss": 2.0}]  # half a line, as a killed run leaves it
    assert cli.main(["eval", str(weights), "--suite", SUITE, "--json", str(tmp_path / "metrics.jsonl" / "x.json")]) == 1
    assert "jclip: " in capsys.readouterr().err
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"other\.json is no file of results"):
        evaluate.main(weights, suite=load_suite(SUITE), out=tmp_path / "other.json")
    with pytest.raises(ConfigError, match=r"does not define get_suite\(\) -> Suite"):
        load_suite(str(Path(__file__).parent / "recipe_tiny.py"))
    assert cli.main(["eval", MODEL, "--length", "3"]) == 2
    assert "options of a suite need --suite" in capsys.readouterr().err


def test_classify_names_the_nearest_class_and_the_rank_of_the_truth(
    tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [tmp_path / f"{i}.png" for i in range(3)]
    for i, file in enumerate(files):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (20, 30, 3)).astype(np.uint8)).save(file)
    names, model = ("cat", "dog", "owl"), jclip.load(weights)
    cosines = model.embed_image(files) @ model.embed_text([f"a photo of a {name}." for name in names]).T
    command = ["classify", *map(str, files), "--model", str(weights), "--labels", *names, "--truth", "dog", "--json"]
    assert cli.main(command) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    for line, row, file in zip(lines, cosines, files, strict=True):
        assert line["image"] == str(file)
        assert [name for name, _ in line["classes"]] == [names[i] for i in np.argsort(-row)]
        np.testing.assert_allclose([score for _, score in line["classes"]], np.sort(row)[::-1], atol=2e-6)
        assert sum(line["probabilities"]) == pytest.approx(1, abs=1e-5)
        assert line["by"] == "softmax"
        assert (line["rank"], line["of"]) == (1 + np.sum(row > row[1]), 3)
    assert cli.main(command[:-1]) == 0
    assert "dog: rank" in capsys.readouterr().out


def test_classify_takes_folders_and_patterns_in_batches_and_writes_a_line_an_image(
    tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = tmp_path / "photos"
    (photos / "more").mkdir(parents=True)
    for i in range(11):
        pixels = np.random.default_rng(i).integers(0, 256, (9, 8, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(photos / ("more" if i % 2 else "") / f"{i:02d}.png")
    (photos / "00.txt").write_text("a caption")
    (photos / "05.png").write_bytes(b"none")
    asked = ["--model", str(weights), "--labels", "cat", "dog", "owl", "--batch-size", "4"]
    lines = {}
    for suffix in ("jsonl", "csv"):
        command = ["classify", str(photos), *asked, "--top", "2", "--output", str(tmp_path / f"out.{suffix}")]
        assert cli.main(command) == 0
        said = capsys.readouterr()
        assert "11 of 12 images classified, written to" in said.err
        assert "05.png: image cannot be decoded" in said.err
        assert said.out == ""
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    model, good = jclip.load(weights), [line["image"] for line in lines if "problem" not in line]
    assert len(good) == len(lines) - 1 == 11
    cosines = model.embed_image(good) @ model.embed_text([f"a photo of a {name}." for name in ("cat", "dog", "owl")]).T
    best = [line["classes"] for line in lines if "problem" not in line]
    np.testing.assert_allclose([[score for _, score in two] for two in best], -np.sort(-cosines)[:, :2], atol=2e-6)
    with (tmp_path / "out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    told = ["class_1", "cosine_1", "probability_1", "class_2", "cosine_2", "probability_2"]
    assert list(rows[0]) == ["image", "problem", "hint", *told]
    assert [(row["image"], row["problem"] != "", row["class_1"]) for row in rows] == [
        (line["image"], "problem" in line, line["classes"][0][0] if "classes" in line else "") for line in lines
    ]
    odd = photos / os.fsdecode(b"caf\xe9.png")  # no UTF-8
    odd.write_bytes((photos / "00.png").read_bytes())
    assert cli.main(["classify", str(odd), *asked, "--output", str(tmp_path / "odd.csv")]) == 0
    assert "caf\\udce9.png" in (tmp_path / "odd.csv").read_text()
    odd.unlink()
    capsys.readouterr()
    assert cli.main(["classify", f"{photos}/**/*", *asked]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 11
    assert cli.main(["classify", f"{photos}/0[05].*", *asked, "--json"]) == 0
    assert [json.loads(line).get("problem") is None for line in capsys.readouterr().out.splitlines()] == [True, False]
    assert cli.main(["classify", f"{photos}/05.png", f"{photos}/no.png", *asked]) == 1
    assert "none of 2 images can be read, such as" in capsys.readouterr().err
    assert cli.main(["classify", f"{photos}/*.txt", *asked]) == 1
    assert "no image or sound matches; 1 files or folders do; images end in .jpg" in capsys.readouterr().err


SUBJECT = {"format": "jclip results 1", "model": {"weights": "", "name": "a", "step": 1}}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff",
        b"[" * 100_000,
        b"[]",
        b'{"format": "jclip results 1"}',
        json.dumps({"format": "jclip results 1", "model": [], "results": {}}).encode(),
        json.dumps({"format": "jclip results 1", "model": {"weights": 1, "name": "a"}, "results": {}}).encode(),
        json.dumps({**SUBJECT, "results": {"a": 3}}).encode(),
    ],
)
def test_a_damaged_file_of_results_is_refused_in_a_line_that_names_it(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "out.json").write_bytes(content)
    with pytest.raises(ConfigError, match=r"^[^\n]*out\.json is no file of results[^\n]*give another --json, or remove it$"):
        kept_results(tmp_path / "out.json")


def test_curves_of_a_run_leave_out_lines_that_are_none(tmp_path: Path) -> None:
    lines = [b'{"step": 1, "loss": 2.0}', b"\xff\xfe", b"[1]", b"[" * 100_000, b"3", b'{"step": 2, "loss"']
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join(lines))
    assert training_curves(tmp_path) == [{"step": 1, "loss": 2.0}]


class Unit:
    """Stand-in for an encoder: texts and images are angles on the unit circle."""

    def __init__(self, objective: dict[str, float], **angles: float) -> None:
        self.params, self.angles = {"image": {}, "image_text": objective}, angles
        self.objectives, self.image_tower, self.text_tower = dict[str, Any](), "image", "text"

    def embed_text(self, texts: Sequence[str]) -> np.ndarray:
        return np.array([(math.cos(a), math.sin(a)) for a in (self.angles.get(text, 1.0) for text in texts)])

    def features(self, tower: str, images: Sequence[float], max_pixels: int) -> Any:
        assert tower == "image"
        return SimpleNamespace(z=np.array([(math.cos(a), math.sin(a)) for a in images]))


def inputs(encoder: Any) -> classify.Inputs:
    return classify.Inputs("image", encoder, 10)


def test_probabilities_of_a_softmax_model_are_among_the_classes_and_a_hint_says_where_what_says_nothing_fits_better() -> None:
    encoder = Unit({"logit_scale": math.log(5.0)}, cat=0.0, dog=0.4)  # "a photo." and the like: 1.0
    classifier = classify._by_prompts(inputs(encoder), ["cat", "dog"], ["{}"])
    found = classifier.score([0.1, 0.9])  # type: ignore[list-item]
    assert classifier.by == "softmax"
    for row, angle in zip(found.probabilities, (0.1, 0.9), strict=True):
        a, b = math.exp(5 * math.cos(angle)), math.exp(5 * math.cos(angle - 0.4))
        assert row == pytest.approx([a / (a + b), b / (a + b)], rel=1e-6)
    assert found.hints[0] == ""
    assert found.hints[1].startswith(f"perhaps none fits: the highest cosine is {math.cos(0.5):.4f}, and ")
    assert f"have {math.cos(0.1):.4f}" in found.hints[1]


def test_probabilities_of_a_sigmoid_model_are_of_each_class_alone_and_a_hint_says_where_all_are_below_one_half() -> None:
    encoder = Unit({"logit_scale": math.log(20.0), "logit_bias": -18.0}, cat=0.0, dog=0.2)
    classifier = classify._by_prompts(inputs(encoder), ["cat", "dog"], ["{}"])
    found = classifier.score([0.1, 0.9])  # type: ignore[list-item]
    assert classifier.by == "sigmoid"
    for row, angle in zip(found.probabilities, (0.1, 0.9), strict=True):
        assert row == pytest.approx([1 / (1 + math.exp(18 - 20 * math.cos(angle - other))) for other in (0.0, 0.2)], rel=1e-6)
    assert found.hints[0] == ""
    assert found.hints[1] == f"perhaps none fits: the highest probability is {found.probabilities[1].max():.2g}, below 0.5"


def test_a_model_of_two_objectives_has_no_probabilities() -> None:
    encoder = Unit({"logit_scale": 0.0})
    encoder.params["image_other"] = {"logit_scale": 0.0}
    classifier = classify._by_prompts(inputs(encoder), ["cat", "dog"], ["{}"])
    assert classifier.by == ""
    assert classifier.score([0.1]).probabilities.size == 0  # type: ignore[list-item]


def test_scores_of_a_probe_of_several_labels_are_of_each_class_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    towers = SimpleNamespace(towers={"image": None}, embed_dim=2)
    z = np.array([[2.0, 1.0]])
    monkeypatch.setattr(classify, "tower_digest", lambda *_: "")
    encoder: Any = SimpleNamespace(config=towers, params={}, mesh=None, features=lambda *_, **__: SimpleNamespace(z=z))
    probe = SimpleNamespace(weights=np.eye(2), protocol="logistic", scores=lambda features: features)
    for labels, want in (("several", 1 / (1 + np.exp(-z))), ("one", np.exp(z) / np.exp(z).sum())):
        facts = {"features": "z", "labels": labels}
        monkeypatch.setattr(classify, "load_probe", lambda path, facts=facts: (probe, ("cat", "dog"), facts))
        classifier = classify._by_probe(inputs(encoder), "probe.safetensors")
        assert classifier.unit == "probability"
        np.testing.assert_allclose(classifier.score([b""]).scores, want, rtol=1e-6)


def test_classify_with_a_saved_probe(tmp_path: Path, weights: Path) -> None:
    test = "shapes:test?size=16&length=24"
    probe, picture = tmp_path / "probe.safetensors", tmp_path / "picture.png"
    suite = Suite({"probe": LinearProbe(test, test, "ridge", save=str(probe))}, batch_size=8)
    evaluate.main(weights, suite=suite)
    example = open_source(test)[3]
    Image.fromarray(example["image"]).save(picture)
    (answer,) = classify.main([picture], str(weights), probe=probe)
    model = jclip.load(weights)
    saved, names, facts = load_probe(probe)
    assert facts["features"] == "pooled"
    scores = saved.scores(model.features("image", [example["image"]]).pooled)[0]
    assert answer["classes"][0] == [names[int(np.argmax(scores))], pytest.approx(scores.max(), abs=1e-5)]
    with pytest.raises(ConfigError, match="was fitted to features of other weights than those of this model; fit it again"):
        classify.main([picture], str(others(weights, tmp_path)), probe=probe)
    with pytest.raises(
        ConfigError, match=r"of another configuration: image.preprocess is .*shortest.*, not .*squash.*; fit it ag"
    ):
        classify.main([picture], str(squashed(weights, tmp_path)), probe=probe)
    out = tmp_path / "out.json"
    evaluate.main(weights, suite=suite, out=out)
    probe.unlink()
    evaluate.main(weights, suite=suite, out=out)  # the result is there, but the probe has to be made again
    assert load_probe(probe)[2] == facts


def test_classify_says_what_is_wrong(tmp_path: Path) -> None:
    for options in ({}, {"labels": ["a"], "probe": "p"}):
        with pytest.raises(ConfigError, match=r"give the classes, --labels NAME \.\.\., or a probe, --probe FILE, and not both"):
            classify.main(["x.png"], MODEL, **options)  # type: ignore[arg-type]
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    with pytest.raises(ConfigError, match="the class 'a' is given twice"):
        classify.main([tmp_path / "x.png"], MODEL, labels=["a", "a"])
    with pytest.raises(
        ConfigError, match=r"'n02123045', \.\.\.: numbers of WordNet, which no text tower knows; give their names"
    ):
        classify.main([tmp_path / "x.png"], MODEL, labels=["n02123045", "n02084071"])
    (tmp_path / "bad.png").write_bytes(b"none")
    with pytest.raises(ConfigError, match=r"bad\.png: image cannot be decoded"):
        classify.main([tmp_path / "bad.png"], MODEL, labels=["a", "b"])
    with pytest.raises(ConfigError, match="--truth 'c' is none of the 2 classes: a, b"):
        classify.main([tmp_path / "x.png"], MODEL, labels=["a", "b"], truth="c")
    with pytest.raises(ConfigError, match=r"the template 'a photo' has no \{\}"):
        classify.main([tmp_path / "x.png"], MODEL, labels=["a", "b"], templates=["a photo"])


def test_arrays_are_found_under_the_facts_that_they_were_kept_with(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path)
    cache.save({"a": 1}, {"x": np.arange(3)})
    np.testing.assert_array_equal((cache.load({"a": 1}) or {})["x"], np.arange(3))
    assert cache.load({"a": 2}) is None


def test_data_of_an_evaluation_that_are_not_there_are_reported_with_its_name(tmp_path: Path) -> None:
    config = tiny_config(evals={"mine": Retrieval("webdataset:none.tar")}, **{"checkpoint.best": None})
    message = r"evaluation mine: source 'webdataset:none.tar'.*no file.*--evals\.mine\.FIELD.*--evals none"
    with pytest.raises(SourceError, match=message):
        train.main(config, tmp_path / "run")
    config = tiny_config(evals={}, **{"checkpoint.best": None, "duration": "1", "optim.warmup": "0"})
    train.main(config, tmp_path / "run")
    with pytest.raises(ConfigError, match=r"run has no evaluations of its own; give a suite: --suite FILE\.py"):
        evaluate.main(tmp_path / "run", names=["seen"])
