"""`jclip adapt`: one protocol for all methods, no sight of the test, resuming, and results that are models."""

import dataclasses
import functools
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from adapt_fakes import unit64
from PIL import Image
from test_cli import exit_status

import jclip
from jclip import adaptation, evaluate, inference, report
from jclip.adapt import saved
from jclip.adapt.contexts import nearest_words, reading_tower
from jclip.adapt.data import LabelledRows
from jclip.adapt.saved import read_adapted
from jclip.config import (
    Adapt,
    Augment,
    ClipAdapter,
    CoCoOp,
    ConfigError,
    CoOp,
    CrossModal,
    Evaluation,
    Labels,
    LinearHead,
    PromptSearch,
    Robustness,
    SpectrogramTower,
    Suite,
    TextTower,
    TipAdapter,
    TipAdapterF,
    TokenizerConfig,
    Views,
    ZeroShot,
    check_adapt,
    load_adapt,
)
from jclip.data.folder import open_folder
from jclip.eval.zero_shot import score_metrics, zero_shot_metrics
from jclip.inference import load

MODEL = "ViT-tiny-test"
NAMES = ("red", "green", "blue")
STILL = Views(0)
SHORT: dict[str, Any] = {"lr": (1e-2,), "weight_decay": (0.0,), "batches": (4,), "iterations": 20, "every": 10, "views": STILL}
QUICK = {
    "tip": TipAdapter(steps=(5, 5), views=Views(2, Augment(scale=(0.5, 1.0), flip=0.5))),
    "tip_f": TipAdapterF(steps=(5, 5), epochs=2, views=STILL, training_views=STILL),
    "clip_adapter": ClipAdapter(epochs=2, views=STILL),
    "linear": LinearHead(**SHORT),
    "cross_modal": CrossModal(**SHORT),
}


def write_pictures(root: Path, sizes: dict[str, int], names: tuple[str, ...] = NAMES) -> None:
    """Noisy pictures of a colour, in folders by role and class."""
    rng = np.random.default_rng(0)
    for role, count in sizes.items():
        for channel, name in enumerate(names):
            (root / role / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 120, (16, 16, 3))
                pixels[..., channel % 3] += rng.integers(0, 130)
                Image.fromarray(pixels.astype(np.uint8)).save(root / role / name / f"{i}.png")


@pytest.fixture(autouse=True, scope="module")
def _compiled_once() -> Iterator[None]:
    """The model is loaded, and its encoder compiled, once for all tests."""
    loaded, encoders = functools.cache(load), dict[Any, Any]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adaptation, "load", loaded)
        patch.setattr(inference, "load", loaded)
        real = evaluate.make_encode

        def make_encode(*how: Any) -> Any:
            return encoders.setdefault(repr(how[:2]), real(*how))

        patch.setattr(evaluate, "make_encode", make_encode)
        patch.setattr(inference, "make_encode", make_encode)
        yield


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pictures")
    write_pictures(root, {"train": 5, "val": 4, "test": 7})
    return root


def protocol(root: Path, **changes: Any) -> Adapt:
    places = {"source": str(root / "train"), "val": str(root / "val"), "test": str(root / "test")}
    return Adapt(**{"methods": QUICK, **places, "shots": (1, 4), "seeds": 2, "batch_size": 16, **changes})


def adapted(config: Adapt, out: Path, **how: Any) -> dict[str, Any]:
    return adaptation.main(MODEL, config, out, **how)


@pytest.fixture(scope="module")
def whole(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """All methods, with a cache of features."""
    out = tmp_path_factory.mktemp("out")
    return out, adapted(protocol(pictures), out, cache=out / "cache")


def test_every_cell_has_a_row_a_model_and_its_examples(whole: tuple[Path, dict[str, Any]]) -> None:
    out, content = whole
    assert list(content["cells"])[:2] == ["tip/shots-1/seed-0", "tip_f/shots-1/seed-0"]
    assert len(content["cells"]) == len(QUICK) * 2 * 2
    assert json.loads((out / "results.json").read_text())["cells"] == content["cells"]
    for key, row in content["cells"].items():
        assert 0 <= row["test"] <= 1
        assert len(row["examples"]) == 3 * row["shots"]
        assert read_adapted(out / key).facts["test"] == row["test"]
    few, many = (set(content["cells"][f"tip/shots-{k}/seed-0"]["examples"]) for k in (1, 4))
    assert few < many
    assert few != set(content["cells"]["tip/shots-1/seed-1"]["examples"])
    assert content["cells"]["linear/shots-1/seed-0"]["examples"] == content["cells"]["tip/shots-1/seed-0"]["examples"]
    page = (out / "page.html").read_text()
    assert all(method in page for method in QUICK)


def test_report_writes_the_page_of_an_adaptation(
    whole: tuple[Path, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, _ = whole
    for given in (out, out / "results.json"):
        assert report.main([given], tmp_path / "own.html").read_bytes() == (out / "page.html").read_bytes()
    content = json.loads((out / "results.json").read_text())
    words = {"class_words": {name: [[["warm", 0.5], ["cold", 1.0]], [["bright", 0.25]]] for name in NAMES}}
    content["cells"]["tip/shots-4/seed-0"]["details"] = words
    (tmp_path / "results.json").write_text(json.dumps(content))
    assert exit_status(["report", str(tmp_path)]) == 0
    assert "<bdi>warm</bdi> (0.50), <bdi>bright</bdi> (0.25)" in (tmp_path / "page.html").read_text()
    assert "one adaptation" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="has a page of its own; give it alone"):
        report.main([out, tmp_path / "other.json"])
    for change, message in (
        (lambda c: c.update(cells={}), "no finished cell yet"),
        (lambda c: c.pop("devices"), "a part is missing"),
        (lambda c: c["cells"]["tip/shots-1/seed-0"].pop("val"), "a row is damaged"),
        (lambda c: c["cells"]["tip/shots-1/seed-0"].update(test="x"), r"is damaged \(TypeError"),
        (lambda c: c.update(format="jclip adapt 1"), "this jclip reads 'jclip adapt 2'"),
    ):
        damaged = json.loads((out / "results.json").read_text())
        change(damaged)  # type: ignore[no-untyped-call]
        (tmp_path / "results.json").write_text(json.dumps(damaged))
        with pytest.raises(ConfigError, match=message):
            report.main([tmp_path])
    with pytest.raises(ConfigError, match="is no file of results"):
        adaptation.read_adaptation(tmp_path / "other.json")


def test_a_loaded_model_has_the_accuracy_that_was_measured(whole: tuple[Path, dict[str, Any]], pictures: Path) -> None:
    out, content = whole
    files = sorted((pictures / "test").glob("*/*.png"))
    for method in ("tip", "clip_adapter"):
        key = f"{method}/shots-4/seed-1"
        model = inference.load(out / key)
        assert model.classes == tuple(sorted(NAMES))
        predicted = [model.classes[i] for i in np.argmax(model.classify(files), axis=1)]
        assert (
            np.mean([file.parent.name == name for file, name in zip(files, predicted, strict=True)])
            == content["cells"][key]["test"]
        )
    assert model.embed_image(files[:2]).shape == (2, 16)
    assert model.classify([]).shape == (0, 3)


def test_an_adapted_model_classifies_without_labels(
    whole: tuple[Path, dict[str, Any]], pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, _ = whole
    model = str(out / "linear/shots-4/seed-0")
    assert exit_status(["classify", str(pictures / "test/red/0.png"), "--model", model, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert {name for name, _ in answer["classes"]} == set(NAMES)
    assert sum(score for _, score in answer["classes"]) == pytest.approx(1, abs=1e-5)
    with pytest.raises(ConfigError, match=r"20 adapted models; give one, such as .*seed-1"):
        jclip.load(out)
    with pytest.raises(ConfigError, match="says all itself"):
        jclip.load(model, image_size=32)
    with pytest.raises(ConfigError, match="no classes of its own"):
        jclip.load(MODEL).classify(pictures / "test/red/0.png")


def test_evaluations_of_prompts_are_of_the_head_where_a_model_is_adapted(
    whole: tuple[Path, dict[str, Any]], pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, content = whole
    test, train = (f"folder:{pictures}/{role}?labels=folders" for role in ("test", "train"))
    evals: dict[str, Evaluation] = {
        "own": ZeroShot(test),
        "shifted": Robustness(train, test, {"others": train}, templates=("a {}.",)),
    }
    results = {}
    for key in ("tip/shots-4/seed-0",):
        file = tmp_path / f"{key.partition('/')[0]}.json"
        results[key] = evaluate.main(out / key, suite=Suite(evals, 16), out=file)
        assert results[key]["own/top1"] == results[key]["shifted/clean/zero_shot"] == content["cells"][key]["test"]
    with pytest.raises(ConfigError, match="other weights"):  # another head is another model
        evaluate.main(out / "tip/shots-1/seed-0", suite=Suite(evals, 16), out=tmp_path / "tip.json")
    other = ZeroShot(test, labels=Labels(names=("crimson", "green", "blue")))
    with pytest.raises(ConfigError, match=r"adapted to 3 classes, and 1 of these 3 are none of them: 'crimson'"):
        evaluate.main(out / "tip/shots-1/seed-0", suite=Suite({"other": other}, 16))
    capsys.readouterr()


def test_scores_of_a_head_have_the_metrics_of_zero_shot() -> None:
    rng = np.random.default_rng(0)
    z, classes = (unit64(rng.normal(size=(n, 8))).astype(np.float32) for n in (40, 7))
    labels = rng.integers(0, 7, 40)
    assert score_metrics(z @ classes.T, labels) == zero_shot_metrics(z, classes, labels)


def resign(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Changes adapted.json as somebody does who knows how its digest is made."""
    content = json.loads((folder / "adapted.json").read_text())
    change(content)
    content["digest"] = saved._digest(content, (folder / "adapted.safetensors").read_bytes())
    (folder / "adapted.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(classes="abc"), "classes are no list"),
        (lambda c: c.update(classes=[1, 2, 3]), "classes are no list"),
        (lambda c: c["classes"].append("pink"), r"head's classifier of shape \(3, 16\) are of other than the 4 classes"),
        (lambda c: c.update(head="linear"), "linear head has the arrays"),
        (lambda c: c.update(head="other"), "its head is 'other'"),
        (lambda c: c.update(base=None), "base names no model"),
        (lambda c: c["base"].update(options={"pretrained": "x"}), "option 'pretrained'"),
        (lambda c: c["base"].pop("weights"), "'weights' is missing"),
        (lambda c: c["base"].update(towers=[]), "no towers of 'image'"),
        (lambda c: c.update(image=3), "image, text or digest are no text"),
    ],
)
def test_a_strange_description_is_refused_in_a_line(
    whole: tuple[Path, dict[str, Any]], tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    for name in ("adapted.json", "adapted.safetensors"):
        (tmp_path / name).write_bytes((whole[0] / "tip/shots-1/seed-0" / name).read_bytes())
    resign(tmp_path, change)
    with pytest.raises(ConfigError, match=message) as error:
        read_adapted(tmp_path)
    assert "\n" not in str(error.value)


def test_a_changed_array_or_word_is_seen(whole: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    for name in ("adapted.json", "adapted.safetensors"):
        (tmp_path / name).write_bytes((whole[0] / "tip/shots-1/seed-0" / name).read_bytes())
    data = bytearray((tmp_path / "adapted.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "adapted.safetensors").write_bytes(bytes(data))
    with pytest.raises(ConfigError, match="its digest is another one"):
        read_adapted(tmp_path)


def test_a_draft_of_a_killed_process_is_in_nobodys_way(whole: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """Also where the process has the same number again."""
    known = read_adapted(whole[0] / "tip/shots-1/seed-0")
    for number in (os.getpid(), 1):
        (tmp_path / f".seed-1-{number}").mkdir()
    (tmp_path / ".seed-10-1").mkdir()
    saved.write_adapted(tmp_path / "seed-1", known)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".seed-10-1", "seed-1"]
    assert read_adapted(tmp_path / "seed-1").digest() == known.digest()


def test_towers_of_another_vocabulary_are_others_and_those_of_a_moved_one_the_same(tmp_path: Path) -> None:
    model = inference.load(MODEL).config
    text = model.towers["text"]
    assert isinstance(text, TextTower)
    for name, words in (("a", "one"), ("b", "one"), ("c", "two")):
        (tmp_path / name).write_text(words)
    models = [
        dataclasses.replace(
            model,
            towers={
                **model.towers,
                "text": dataclasses.replace(text, tokenizer=TokenizerConfig("hugging_face", str(tmp_path / n))),
            },
        )
        for n in "abc"
    ]
    base = saved.base_towers(models[0])
    assert saved.other_towers(base, models[1]) == []
    assert "text has another vocabulary" in saved.other_towers(base, models[2])
    assert any("width" in found for found in saved.other_towers({**base, "image": {**base["image"], "width": 64}}, models[0]))


def test_a_base_is_found_from_any_folder_and_after_further_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    (tmp_path / "words.json").write_text("{}")
    monkeypatch.chdir(tmp_path)

    @contextmanager
    def open_run(workdir: str, step: int | None) -> Iterator[tuple[None, None, int]]:
        yield None, None, 7

    monkeypatch.setattr(adaptation, "open_run", open_run)
    assert adaptation._options("run", {"fsdp": 2, "tokenizer": "words.json"}) == {
        "step": 7,
        "tokenizer": str(tmp_path / "words.json"),
    }
    assert adaptation._options("run", {"step": 3, "kind": None}) == {"step": 3}
    assert adaptation._options(MODEL, {}) == {}
    (tmp_path / "adapted.json").write_text("{}")
    with pytest.raises(ConfigError, match="is adapted already"):
        adaptation.main(tmp_path, Adapt(QUICK, "a", "b", "c"), tmp_path)


def test_sounds_have_prompts_of_sounds(pictures: Path) -> None:
    data = adaptation.make_data(protocol(pictures), inference.load(MODEL), None, None)
    assert data.templates == ("a photo of a {}.",)
    towers = {**data.subject.model.towers, "image": SpectrogramTower()}
    model = dataclasses.replace(data.subject.model, towers=towers)
    of_sounds = dataclasses.replace(data, subject=dataclasses.replace(data.subject, model=model))
    assert of_sounds.templates == ("This is a sound of {}.",)


def test_methods_of_words_need_a_tower_of_words(pictures: Path) -> None:
    config = protocol(pictures, methods={"coop": CoOp()}, image="text", text="image")
    with pytest.raises(ConfigError, match=r"tower 'image', a VisionTower, reads no tokens"):
        adaptation.make_data(config, inference.load(MODEL), None, None)


def test_a_model_whose_base_has_changed_is_refused(whole: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    out, _ = whole
    for name in ("adapted.json", "adapted.safetensors"):
        (tmp_path / name).write_bytes((out / "tip/shots-1/seed-0" / name).read_bytes())
    towers = read_adapted(tmp_path).base["towers"]
    towers = {**towers, "image": {**towers["image"], "mlp_ratio": 3.0}}
    for content, message in (
        ({"options": {"seed": 1}}, "adapted from other weights"),
        ({"towers": {**towers, "image": [1]}}, f"{tmp_path}: "),
        ({"towers": towers}, "towers of ViT-tiny-test are others now: image.mlp_ratio"),
        ({"model": str(tmp_path / "gone")}, rf"{tmp_path}: the model that was adapted, .*gone, cannot be opened"),
        ({"model": str(tmp_path)}, "cannot be opened: it is an adapted model itself"),
    ):
        resign(tmp_path, lambda known, new=content: known["base"].update(new))  # type: ignore[misc]
        with pytest.raises(ConfigError, match=message):
            jclip.load(tmp_path)
        (tmp_path / "adapted.json").write_bytes((out / "tip/shots-1/seed-0" / "adapted.json").read_bytes())
    (tmp_path / "adapted.safetensors").write_bytes(b"torn")
    with pytest.raises(ConfigError, match="damaged"):
        jclip.load(tmp_path)


def test_an_interrupted_command_goes_on_behind_the_last_finished_cell(
    whole: tuple[Path, dict[str, Any]],
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, content = whole
    ran: list[str] = []

    def stopping(after: int) -> Callable[..., Any]:
        real = adaptation.fit

        def fit(method: Any, task: Any) -> Any:
            if len(ran) == after:
                raise KeyboardInterrupt
            ran.append(type(method).__name__)
            return real(method, task)

        return fit

    with monkeypatch.context() as patch:
        patch.setattr(adaptation, "fit", stopping(3))
        with pytest.raises(KeyboardInterrupt):
            adapted(protocol(pictures), tmp_path, cache=out / "cache")
    assert len(json.loads((tmp_path / "results.json").read_text())["cells"]) == 3
    again = adapted(protocol(pictures), tmp_path, cache=out / "cache")
    for key, row in content["cells"].items():
        assert {k: v for k, v in again["cells"][key].items() if k != "seconds"} == {
            k: v for k, v in row.items() if k != "seconds"
        }
    ran.clear()
    with monkeypatch.context() as patch:
        patch.setattr(adaptation, "fit", stopping(100))
        adapted(protocol(pictures), tmp_path)
        assert ran == []
        changed = {**QUICK, "tip": TipAdapter(steps=(5, 4), views=STILL)}
        few = adapted(protocol(pictures, methods=changed, shots=(1,)), tmp_path)
        assert ran == ["TipAdapter"] * 2
        assert {row["shots"] for row in few["cells"].values() if row["method"] == "tip"} == {1}  # no row of other settings stays
        assert adaptation.read_adaptation(tmp_path / "results.json")["cells"] == few["cells"]
        ran.clear()
        adapted(protocol(pictures, methods=QUICK, shots=(1,), save="none"), tmp_path)
        adapted(protocol(pictures, methods=QUICK, shots=(1,)), tmp_path)
        assert ran == ["TipAdapter"] * 4  # the second time for the models, as those that lie there have other settings
        assert "4 rows of tip had other settings" in capsys.readouterr().err.replace("\n", " ")
    with pytest.raises(ConfigError, match=r"is of something else: protocol.val_shots: 'few' -> 'all'"):
        adapted(protocol(pictures, val_shots="all"), tmp_path)


def test_nothing_of_the_test_reaches_a_method(pictures: Path, tmp_path: Path) -> None:
    """Another test changes no choice and no array of a model."""
    write_pictures(tmp_path, {"other": 6})
    one, two = tmp_path / "one", tmp_path / "two"
    config = protocol(pictures, shots=(4,), seeds=1)
    adapted(config, one)
    adapted(dataclasses.replace(config, test=str(tmp_path / "other")), two)
    for method in QUICK:
        a, b = (read_adapted(out / method / "shots-4/seed-0") for out in (one, two))
        assert a.facts["choice"] == b.facts["choice"]
        assert {name: array.tobytes() for name, array in a.head.arrays.items()} == {
            name: array.tobytes() for name, array in b.head.arrays.items()
        }


def test_choosing_on_the_test_stands_beside_the_honest_number(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    methods = {"tip": TipAdapter(steps=(20, 20), views=STILL, most=(50.0, 50.0))}
    content = adapted(protocol(pictures, methods=methods, shots=(1,), select="test"), tmp_path)
    for row in content["cells"].values():
        assert row["test_selected_on_test"] == row["choice_on_test"]["accuracy"] >= row["test"]
    assert "difference" in " ".join(capsys.readouterr().out.split())
    assert "Chosen on the test" in (tmp_path / "page.html").read_text()


def test_the_examples_to_choose_by_are_as_many_as_is_said(pictures: Path) -> None:
    source = open_folder(f"{pictures}/val?labels=folders")
    rows = LabelledRows(source, np.arange(12), np.repeat(np.arange(3), 4))
    drawn = rows.draw(NAMES, 2, 0)
    assert np.bincount(drawn.labels).tolist() == [2, 2, 2]
    assert set(rows.draw(NAMES, 1, 0).rows) < set(drawn.rows)
    assert (rows.draw(NAMES, 2, 1).rows != drawn.rows).any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shots": (1, 8)}, r"3 of 3 classes have fewer than k=8 examples: 'blue' has 5"),
        ({"shots": (4, 1)}, r"rising numbers"),
        ({"methods": {}}, r"methods is empty"),
        ({"test": ""}, r"test is empty"),
        ({"val": "{}/test"}, r"also what methods learn from"),
        ({"val": "{}/train"}, r"also what shots are drawn from"),
        ({"val": "folder:{}/train?labels=folders"}, r"val has the very examples of source"),
        ({"test": "folder:{}/train?labels=folders"}, r"test has the very examples of source"),
        ({"test": "folder:{}/val?labels=folders"}, r"test has the very examples of val"),
        (
            {"methods": {"m": CrossModal(**SHORT, extra="{}/test", tower="image")}},
            r"very examples of methods.m.extra",
        ),
        ({"shots": (5,), "source": "{}/val", "val": "{}/train"}, r"adapt: source: .*k=5 examples: 'blue' has 4"),
        ({"shots": (4,), "val": "{}/few"}, r"adapt: val: .*k=4 examples: 'blue' has 1"),
        ({"labels": Labels(classes=("blue", "green", "red"), names=("Sea_lion", "b", "sea lion"))}, r"'Sea_lion' or 'sea lion'"),
        ({"labels": Labels(only=("red",))}, r"there is one class, 'red'"),
        (
            {"labels": Labels(names=("n00000001", "n00000002", "red"))},
            r"'n00000001', \.\.\.: numbers of WordNet.*labels\.names file",
        ),
        ({"labels": Labels(classes=("blue", "green", "red"), names=("a", "b", "a"))}, r"2 classes are called 'a'"),
        ({"labels": Labels(classes=("blue", "green"))}, r"match none of the 2 classes: 'red'"),
        ({"text": "words"}, r"no tower 'words'"),
        ({"templates": ("a photo",)}, r"needs a \{\}"),
    ],
)
def test_what_cannot_be_is_said(pictures: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    if changes.get("val") == "{}/few":
        write_pictures(tmp_path, {"few": 1})
        changes = {**changes, "val": str(tmp_path / "few")}
    changes = {name: value.format(pictures) if isinstance(value, str) else value for name, value in changes.items()}
    for name, method in changes.get("methods", {}).items():
        changes["methods"] = {name: dataclasses.replace(method, extra=method.extra.format(pictures))}
    with pytest.raises(ConfigError, match=message):
        adapted(protocol(pictures, **changes), tmp_path)


def test_a_broken_shot_is_named(tmp_path: Path) -> None:
    write_pictures(tmp_path, {"train": 1, "val": 1, "test": 1})
    (tmp_path / "train/red/0.png").write_bytes(b"torn")
    with pytest.raises(ConfigError, match=r"'red/0.png' of source cannot be read"):
        adapted(protocol(tmp_path, shots=(1,), seeds=1), tmp_path / "out")


def test_files_of_a_method_count_as_settings(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names, templates = tmp_path / "names.json", tmp_path / "templates.txt"
    names.write_text(json.dumps({"red": ["scarlet"], "green": ["grass"], "blue": ["sky"]}))
    templates.write_text("a {}.\n")
    method = PromptSearch((f"file:{templates}",), names=str(names))
    config = protocol(pictures, methods={"prompts": method}, shots=(1,), seeds=1)
    said = []
    for change in (None, (names, '{"red": ["crimson"], "green": ["grass"], "blue": ["sky"]}'), (templates, "the {}.\n"), None):
        if change:
            change[0].write_text(change[1])
        adapted(config, tmp_path / "out")
        said.append("1 rows of prompts had other settings or files" in capsys.readouterr().err.replace("\n", " "))
    assert said == [False, True, True, False]


def test_examples_that_are_left_out_are_counted_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_pictures(tmp_path, {"train": 2, "val": 1, "test": 2})
    (tmp_path / "test/red/0.png").write_bytes(b"torn")
    methods = {"tip": TipAdapter(steps=(2, 2), views=STILL)}
    labels = Labels(only=("red", "green"), others="leave_out")
    config = protocol(tmp_path, methods=methods, shots=(1,), seeds=1, labels=labels, save="none")
    content = adapted(config, tmp_path / "out")
    expected = {
        "source": {"of other classes": 2},
        "val": {"of other classes": 1},
        "test": {"of other classes": 2, "unreadable": 1},
    }
    assert content["left_out"] == expected
    assert json.loads((tmp_path / "out/results.json").read_text())["left_out"] == expected
    assert "of test examples are left out: 2 of other classes, 1 unreadable" in capsys.readouterr().err.replace("\n", " ")


def test_descriptions_are_prompts(pictures: Path, tmp_path: Path) -> None:
    texts = {"Red": ["it is red", "warm"], "green": ["grass"], "blue": ["the sky"]}
    (tmp_path / "texts.json").write_text(json.dumps(texts))
    methods = {"cross_modal": QUICK["cross_modal"]}
    config = protocol(pictures, methods=methods, shots=(1,), seeds=1, descriptions=str(tmp_path / "texts.json"))
    adapted(config, tmp_path / "out")
    (tmp_path / "texts.json").write_text(json.dumps({**texts, "blue": ["the sea"]}))
    with pytest.raises(ConfigError, match=r"is of something else: data.prompts"):
        adapted(config, tmp_path / "out")
    (tmp_path / "texts.json").write_text(json.dumps({"red": ["it"]}))
    with pytest.raises(ConfigError, match=r"no texts of 2 of 3 classes: 'blue', 'green'"):
        adapted(config, tmp_path / "other")


def test_the_classifier_has_the_texts_and_the_names_that_are_given(pictures: Path, tmp_path: Path) -> None:
    """Means of unit vectors: descriptions alone, beside templates, and better names of classes."""
    texts = {"red": ["it is red", "warm"], "green": ["grass"], "blue": ["the sky"]}
    (tmp_path / "texts.json").write_text(json.dumps(texts))
    model = inference.load(MODEL)
    described, names = {"descriptions": str(tmp_path / "texts.json")}, ("azure", "grassy", "scarlet")
    cases: list[tuple[dict[str, Any], list[list[str]]]] = [
        (described, [["the sky"], ["grass"], ["it is red", "warm"]]),
        (
            {**described, "templates": ("a {}.",)},
            [["a blue.", "the sky"], ["a green.", "grass"], ["a red.", "it is red", "warm"]],
        ),
        ({"labels": Labels(classes=("blue", "green", "red"), names=names)}, [[f"a photo of a {name}."] for name in names]),
    ]
    for how, expected in cases:
        data = adaptation.make_data(protocol(pictures, **how), model, None, None)
        means = [np.mean(model.embed_text(of_class).astype(np.float64), axis=0) for of_class in expected]
        np.testing.assert_allclose(data.classifier, unit64(np.stack(means)), atol=1e-6)
        assert data.names == (names if "labels" in how else ("blue", "green", "red"))


@pytest.mark.slow
def test_models_of_learned_prompts_classify_as_measured_and_hold_the_contexts(pictures: Path, tmp_path: Path) -> None:
    methods = {
        "coop": CoOp(contexts=2, epochs=2, warmup_lr=0.1, views=STILL),
        "cocoop": CoCoOp(contexts=2, words="", epochs=1, batch_size=3, warmup_lr=0.1, reduction=4, views=STILL),
    }
    content = adapted(protocol(pictures, methods=methods, shots=(2,), seeds=1), tmp_path)
    files = sorted((pictures / "test").glob("*/*.png"))
    for method in methods:
        model = jclip.load(tmp_path / method / "shots-2/seed-0")
        predicted = [model.classes[i] for i in np.argmax(model.classify(files), axis=1)]
        right = [file.parent.name == name for file, name in zip(files, predicted, strict=True)]
        assert np.mean(right) == content["cells"][f"{method}/shots-2/seed-0"]["test"]
        assert [len(near) for near in content["cells"][f"{method}/shots-2/seed-0"]["details"]["words"]] == [3, 3]
    known = read_adapted(tmp_path / "coop/shots-2/seed-0")
    table, contexts = np.asarray(model.params["text"]["token_embed"]), known.arrays["contexts"]
    words = nearest_words(table, reading_tower(model.config, "text"), contexts)
    assert json.loads(json.dumps(words)) == known.facts["details"]["words"]
    ids = model.tokenize([f"X X {name}." for name in model.classes])
    whole = table[ids]
    whole[:, 1:3] = contexts
    z = model.encode_text(model.params, (jnp.asarray(whole), jnp.argmax(jnp.asarray(ids), axis=1)))
    np.testing.assert_allclose(known.head.arrays["weights"], z, atol=1e-5)


def test_methods_are_named_on_the_command_line_and_in_recipes(tmp_path: Path) -> None:
    config = load_adapt(None, ["tip", "coop"], ["--methods.coop.position", "middle", "--shots", "1", "16", "--select", "test"])
    assert list(config.methods) == ["tip", "coop"]
    assert vars(config.methods["coop"])["position"] == "middle"
    assert (config.shots, config.select) == ((1, 16), "test")
    with pytest.raises(ConfigError, match="no method 'tipp'; methods: tip, tip_f"):
        load_adapt(None, ["tipp"])
    recipe = tmp_path / "recipe.py"
    recipe.write_text(
        "from jclip.config import Adapt, TipAdapter\n\n\n"
        "def get_adapt():\n    return Adapt(methods={'sharp': TipAdapter(beta=9.0), 'plain': TipAdapter()})\n"
    )
    assert list(load_adapt(recipe).methods) == ["sharp", "plain"]
    assert list(load_adapt(recipe, ["sharp"]).methods) == ["sharp"]
    check_adapt(dataclasses.replace(load_adapt(recipe), source="a", val="b", test="c"))


def test_the_command(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    places = [
        word for role in ("source", "val", "test") for word in (f"--{role}", f"{pictures / role.replace('source', 'train')}")
    ]
    few = ["--methods.tip.steps", "3", "3", "--methods.tip.views.count", "0", "--shots", "1", "--seeds", "1"]
    command = ["adapt", MODEL, "--method", "tip", *places, *few, "--out", str(tmp_path), "--no-cache", "--json"]
    assert exit_status(command) == 0
    answer = json.loads(capsys.readouterr().out)
    assert [(line["method"], line["shots"], line["seeds"]) for line in answer["adapted"]] == [("tip", 1, 1)]
    assert exit_status(["adapt", "--method", "tip"]) == 2
