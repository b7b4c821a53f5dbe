"""Field expressions: their grammar, the shares of alternatives, templates, and batches that depend on the step alone."""

import io
import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from archives import write_benchmark, write_tar
from batches import assert_equal, batches
from PIL import Image
from tiny import tiny_config

from jclip import cli
from jclip.config import (
    Augment,
    Config,
    ConfigError,
    Contrastive,
    Data,
    Labels,
    Model,
    MultiView,
    Portion,
    TextTower,
    View,
    VisionTower,
    ZeroShot,
    check,
)
from jclip.config.fields import Alternative, Template, parse_field
from jclip.data import (
    BadExample,
    Mixture,
    SourceError,
    eval_transform,
    find,
    make_loader,
    make_run_loader,
    open_source,
    read_field,
    read_once,
)
from jclip.data.fields import is_blank
from jclip.data.source import Lacking
from jclip.data.survey import outline, survey

TOWERS = {"image": VisionTower(image_size=8, patch_size=4), "text": TextTower(context_length=16)}
CONFIG = Config(
    model=Model(towers=TOWERS),
    data=Data(source="shapes:train?size=12&length=50", augment=Augment(scale=(0.3, 1.0), flip=0.5)),
    batch_size=8,
    seed=3,
)
EITHER = "text*3 | json.synthetic | a drawing of a {label}*0.5"


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JCLIP_CACHE", str(tmp_path_factory.mktemp("cache")))


@dataclass(frozen=True)
class Captioned:
    """Pictures with two captions and a label, of which every third example has no text, and every fifth no other caption."""

    length: int = 30
    classes: tuple[str, ...] = ("hot_dog", "cat")
    templates: tuple[str, ...] = ()

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        example: dict[str, Any] = {"key": str(index), "image": np.full((12, 12, 3), index, np.uint8), "label": index % 2}
        if index % 3:
            example["text"] = f"caption {index}"
        return {**example, "json": {"synthetic": f"synthetic {index}" if index % 5 else "  "}}

    def fingerprint(self) -> str:
        return f"{self.length:032x}"


def with_text(text: str, config: Config = CONFIG, **data: Any) -> Config:
    return replace(config, data=replace(config.data, fields={"text": text}, **data))


def ids(text: str) -> tuple[int, ...]:
    return tuple(eval_transform(TOWERS["text"])(text).tolist())


# The grammar


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("json.title", [("json.title", 1)]),
        ("text*0.5 | json.synthetic*0.5", [("text", 0.5), ("json.synthetic", 0.5)]),
        ("text|json.synthetic *1e-2", [("text", 1), ("json.synthetic", 0.01)]),
        ("a photo of a {label}", [(Template(("a photo of a ", ""), ("label",)), 1)]),
        ("{json.title}. { text }", [(Template(("", ". ", ""), ("json.title", "text")), 1)]),
        (" {a}{b}*2|c*3", [(Template(("", "", ""), ("a", "b")), 2), ("c", 3)]),
        ("{{{a}}} is a \\| b | {a} *2 *1", [(Template(("{", "} is a | b"), ("a",)), 1), (Template(("", " *2"), ("a",)), 1)]),
        ("{a\\|b}\\\\|", [(Template(("", "\\|"), ("a|b",)), 1)]),
        ("odd{{name | v*2*1 | a*b | a b", [("odd{name", 1), ("v*2", 1), ("a*b", 1), ("a b", 1)]),
        ("{a} *not a weight* here", [(Template(("", " *not a weight* here"), ("a",)), 1)]),
    ],
)
def test_an_expression_has_one_meaning_and_its_text_has_the_same(text: str, meaning: list[Any]) -> None:
    expression = parse_field(text)
    assert expression.alternatives == tuple(Alternative(value, weight) for value, weight in meaning)
    assert parse_field(str(expression)).alternatives == expression.alternatives


def test_random_expressions_come_back_from_their_text() -> None:
    """Names and texts of the characters that mean something, in every order."""
    rng = np.random.default_rng(0)

    def word(letters: str) -> str:
        return "".join(rng.choice(list(letters), rng.integers(1, 7)))

    for _ in range(2000):
        alternatives = []
        for _ in range(rng.integers(1, 4)):
            weight = float(rng.choice([1.0, 0.5, 3.0, 1e-7, 1 / 3]))
            count = int(rng.integers(0, 3))
            words = [word("ab{}|*\\2. ") for _ in range(count + 1)]
            words[0], words[-1] = words[0].lstrip(), words[-1].rstrip()
            # A name in braces is what stands between them: it holds none, and no weight.
            paths = tuple(word("ab|\\.") for _ in range(count))
            if count or words[0].strip():
                alternatives.append(Alternative(Template(tuple(words), paths) if count else words[0].strip(), weight))
        text = " | ".join(map(str, alternatives))
        if alternatives:
            assert parse_field(text).alternatives == tuple(alternatives), text


@pytest.mark.parametrize(
    ("text", "place", "reason"),
    [
        ("text | ", 7, "an alternative is empty"),
        ("text || json.a", 7, "an alternative is empty"),
        (" ", 1, "an alternative is empty"),
        ("*2", 1, "an alternative is empty"),
        ("text*0 | json.a", 5, "the weight 0 is no number that is positive and finite"),
        ("text | json.a *-1", 15, "the weight -1 is no number"),
        ("text | json.a*nan", 14, "the weight nan is no number"),
        ("text*inf", 5, "the weight inf is no number"),
        ("text*1e999", 5, "the weight 1e999 is no number"),
        ("text*0,5 | json.a*0,5", 5, "the weight 0,5 is no number"),
        ("text*½", 5, ""),
        ("text* | json.a", 5, "no weight stands behind the star"),
        ("a*1e308 | b*1e308", 1, "the sum of its weights is not finite"),
        ("a photo of a {", 14, "nothing closes this brace"),
        ("a photo of a {}", 14, "these braces name no field; write {label}"),
        ("a photo of a label}", 19, "nothing opens this brace"),
        ("{text | json.a}", 1, "in braces stands one field"),
        ("{text*0.5}", 1, "in braces stands one field"),
        ("{a {b}}", 1, "in braces stands one field"),
    ],
)
def test_what_means_nothing_is_refused_at_its_place(text: str, place: int, reason: str) -> None:
    if not reason:
        assert parse_field(text).alternatives == (Alternative(text),)  # a star that no weight follows
        return
    with pytest.raises(ConfigError) as caught:
        parse_field(text)
    assert f"field {text!r}, at character {place} " in str(caught.value)
    assert reason in str(caught.value)


def test_a_configuration_with_a_wrong_field_is_refused_wherever_it_stands() -> None:
    check(with_text(EITHER))
    two = {"two": Contrastive("image", "text@2")}
    wrong: dict[str, Config] = {
        "data.fields.text": with_text("text*0"),
        "views.text@2.field": replace(CONFIG, views={"text@2": View("text", field="text*0")}, objectives=two),
        "evals.e.fields.image": replace(CONFIG, evals={"e": ZeroShot("shapes:val", fields={"image": "text*0"})}),
        "evals.e.labels.field": replace(CONFIG, evals={"e": ZeroShot("shapes:val", labels=Labels("text*0"))}),
    }
    for place, config in wrong.items():
        with pytest.raises(ConfigError, match=rf"{place}: field 'text\*0', at character 5 \('\*0'\)"):
            check(config)
    transforms = {"text": eval_transform(TOWERS["text"])}
    with pytest.raises(ConfigError, match=r"loader: fields.text: field 'a\|'"):
        make_loader(Captioned(), transforms, batch_size=2, fields={"text": "a|"})
    with pytest.raises(ConfigError, match=r"read_once: fields.text: field 'a\|'"):
        read_once(Captioned(), transforms, batch_size=2, fields={"text": "a|"})


@pytest.mark.parametrize("name", ["a | b", "text*0.5", "a {label}", "a b", "depth.png", '"a"', " a", "a||b*2", "{", "a*"])
def test_a_field_is_found_by_its_whole_name_whatever_else_that_means(name: str) -> None:
    """Names that are no expression are found by an escaped one."""
    example = {"key": "k", name: 1, "json": {name: 2, "deep": {name: 3}}, "label": 0, "text": "t", "a": "a", "b": "b"}
    escaped = str(Alternative(name))
    if name.strip() == name:
        assert find(example, escaped).value == 1
        assert find(example, f"nowhere | {escaped}").value == 1
        assert "." in name or find(example, str(Alternative(f"json.deep.{name}"))).value == 3
    try:
        parse_field(name)
    except ConfigError:
        assert name in ("{", "a*", "a||b*2")
        return
    assert find(example, name, ("x",)).value == 1
    assert "." in name or find(example, f"json.{name}", ("x",)).value == 2  # dots separate, but in a whole name


# The values


def test_a_template_has_texts_numbers_and_the_names_of_classes() -> None:
    example = {
        "key": "k",
        "label": 1,
        "text": b" a cat\n",
        "json": {"year": 2004, "score": 4.5, "title": "Tom", "tags": ["", "a", None, "b"], "ok": True, "none": None, "deep": {}},
        "size": np.int64(3),
        "part": np.array(0.1, np.float32),
        "captions": ("one", "two"),
        "nan": math.nan,
        "broken": b"\xff",
    }
    classes = ("cat", "hot_dog")
    assert find(example, "a photo of a {label}.", classes).value == "a photo of a hot_dog."  # as zero-shot prompts have it
    assert find(example, "{json.title}: {text}, {json.year}, {json.score}").value == "Tom: a cat, 2004, 4.5"
    assert find(example, "{{{size}}} {part}").value == "{3} 0.1"
    assert find(example, "{captions} {json.tags}").value == "one a"
    drawn = {find(example, "{captions} {json.tags}", (), np.random.default_rng(seed)).value for seed in range(40)}
    assert drawn == {"one a", "one b", "two a", "two b"}
    reasons = {
        "{nothing}": "no nothing",
        "{json.none}": "json.none is null",
        "{nan}": "nan is blank",
        "{json.ok}": "json.ok is a bool",
        "{json.deep}": "json.deep is a dict",
        "{broken}": "not UTF-8",
    }
    for text, reason in reasons.items():
        with pytest.raises(BadExample, match=reason):
            find(example, text, classes)


@pytest.mark.parametrize(
    ("label", "classes", "reason"),
    [
        (
            np.array([True, False]),
            ("a", "b"),
            "label says of each class whether it is there, and {label} is the name of one class",
        ),
        ([1, 0], ("a", "b"), "label is a list"),
        (True, ("a", "b"), "label is a bool"),
        (2, ("a", "b"), "label is 2, and the source names 2 classes"),
        (-1, ("a", "b"), "label is -1"),
        (0, (), "the source names no classes"),
    ],
)
def test_a_label_that_is_not_one_class_is_refused_with_the_reason(label: Any, classes: tuple[str, ...], reason: str) -> None:
    with pytest.raises(BadExample) as caught:
        find({"key": "k", "label": label}, "a {label}", classes)
    assert reason in str(caught.value)
    assert find({"key": "k", "label": label}, "label", classes).value is label  # a path is the value itself
    assert find({"key": "k", "label": "cat"}, "a {label}").value == "a cat"


def test_what_says_nothing_is_left_out() -> None:
    values = [None, "", " \n", b"", b" ", math.nan, np.float32("nan"), (), [], [" ", None], ("",)]
    assert all(map(is_blank, values))
    assert not any(map(is_blank, ["a", b"a", 0, 0.0, False, ["", "a"], np.zeros(2), {}]))
    for value in values:
        example = {"key": "k", "a": value, "b": "there"}
        assert find(example, "a | b").value == "there"
        assert find(example, "x {a} | b").value == "there"
        assert {find(example, "a*1000 | b", (), np.random.default_rng(seed)).value for seed in range(9)} == {"there"}
        with pytest.raises(BadExample, match=r"a is (null|blank); no c: fields are key, a, b"):
            find(example, "a | c")


def test_alternatives_have_the_shares_of_their_weights_among_those_that_are_there() -> None:
    """4,000 draws within 4 standard deviations; of an order that is drawn, the first that is there has just these shares."""
    weights = {"a": 1.0, "b": 2.5, "c": 0.5, "d": 6.0}
    text = " | ".join(f"{name}*{weight}" for name, weight in weights.items())
    for names in ("abcd", "abc", "bd", "c"):
        example = {"key": "k", **dict.fromkeys(names)} | {name: name for name in names}
        rng = np.random.default_rng(7)
        drawn = Counter(find(example, text, (), rng).value for _ in range(4000))
        total = sum(weights[name] for name in names)
        assert drawn.keys() == set(names)
        for name in names:
            p = weights[name] / total
            assert abs(drawn[name] - 4000 * p) <= 4 * math.sqrt(4000 * p * (1 - p))
    assert find({"key": "k", "d": "d", "b": "b"}, text).name == "b"  # without a generator the first that is there


def test_a_draw_takes_as_many_numbers_whatever_is_there() -> None:
    """And without alternatives none: what is drawn afterwards, a crop, is the same."""

    def after(example: Mapping[str, Any], text: str, seed: int = 5) -> float:
        rng = np.random.default_rng(seed)
        find(example, text, (), rng)
        return float(rng.random())

    full, half = {"key": "k", "a": "a", "b": "b"}, {"key": "k", "b": "b"}
    assert all(after(full, "a | b", seed) == after(half, "a | b", seed) for seed in range(9))
    untouched = float(np.random.default_rng(5).random())
    assert after(full, "a") == after(full, "a {b}*2") == untouched != after(full, "a | b")


# Batches


def test_an_expression_without_alternatives_changes_no_batch() -> None:
    assert_equal(batches(with_text("{text}"), 6), batches(CONFIG, 6))
    assert_equal(batches(with_text("text*2"), 2), batches(CONFIG, 2))


def test_batches_with_alternatives_do_not_depend_on_hosts_and_begin_at_any_step() -> None:
    config, source = with_text(EITHER), Captioned()
    whole = batches(config, 12, source=source)
    for hosts in (2, 4):
        assert_equal(batches(config, 6, hosts=hosts, source=source), whole[:6])
    assert_equal(batches(config, 5, start=7, source=source), whole[7:])
    seen = {(key, tuple(row)) for batch in whole for key, row in zip(batch.keys, batch.arrays["text"].tolist(), strict=True)}
    possible = {key: [ids(f"caption {key}"), ids(f"synthetic {key}"), ids(f"a drawing of a {('hot_dog', 'cat')[int(key) % 2]}")]
                for key in map(str, range(30))}  # fmt: skip
    assert all(row in possible[key] for key, row in seen)
    assert not any(row == possible[key][0] for key, row in seen if int(key) % 3 == 0)
    assert not any(row == possible[key][1] for key, row in seen if int(key) % 5 == 0)
    assert len(seen) > 40  # of 30 examples, in three epochs: most were drawn in two ways
    assert not any(batch.problems for batch in whole)


@pytest.mark.slow
def test_batches_with_alternatives_do_not_depend_on_workers() -> None:
    config = with_text(EITHER)
    whole = batches(config, 6, source=Captioned())
    for workers, hosts in ((1, 1), (3, 2)):
        assert_equal(batches(with_text(EITHER, workers=workers), 6, hosts=hosts, source=Captioned()), whole)


def test_an_example_without_any_alternative_has_another_in_its_place() -> None:
    config = with_text("text | json.nothing")
    for batch in batches(config, 4, source=Captioned()):
        assert all(int(key) % 3 for key in batch.keys)
        assert all("no text: fields are" in problem and "no json.nothing" in problem for problem in batch.problems)
    unnamed = replace(Captioned(), classes=())
    with make_run_loader(with_text("{label}"), unnamed) as loader, pytest.raises(SourceError) as caught:
        next(loader)
    assert "the source names no classes" in str(caught.value)


def test_alternatives_of_images_are_decoded_once_for_all_views_that_have_drawn_the_same() -> None:
    """Views draw for themselves, and one that repeats the draws of another has its picture."""

    class Pictures(Captioned):
        def __getitem__(self, index: int) -> dict[str, Any]:
            one, two = (np.full((12, 12, 3), 100 * i + index, np.uint8) for i in range(2))
            return {"key": str(index), "one": one, "two": two, "text": "a"}

    views = {"image@2": View("image"), "image@3": View("image", same_as="image")}
    objectives = {name: Contrastive(name, "text") for name in ("image", "image@2", "image@3")}
    config = replace(CONFIG, views=views, objectives=objectives, data=replace(CONFIG.data, fields={"image": "one | two"}))
    rows = [batch.arrays for batch in batches(config, 8, source=Pictures())]
    first, second, third = (np.concatenate([row[name] for row in rows])[:, 0, 0, 0] for name in ("image", "image@2", "image@3"))
    assert (first == third).all()
    assert 16 < (first == second).sum() < 48  # half of 64


def test_lists_lines_and_tuples_have_one_drawn_and_evaluations_take_the_first() -> None:
    transform = eval_transform(TOWERS["text"])
    several: list[Any] = ["", "a", None, "b"]
    for value, drawn in ((several, {"a", "b"}), (("a", "b"), {"a", "b"})):
        assert {tuple(transform(value, np.random.default_rng(i)).tolist()) for i in range(20)} == {ids(text) for text in drawn}
        assert tuple(transform(value).tolist()) == ids("a")
        for text in ("c", "c | n"):
            assert find({"key": "k", "c": value}, text).value is value
    assert list(read_field(Captioned(6), "text | json.synthetic"))[1:4] == ["caption 1", "caption 2", "synthetic 3"]
    first = [ids(text) for text in ("a hot_dog", "caption 1", "caption 2", "synthetic 3")]
    fields = {"text": "text | json.synthetic | a {label}"}
    batch = next(iter(read_once(Captioned(4), {"text": transform}, batch_size=4, fields=fields)))
    assert list(map(tuple, batch.arrays["text"].tolist())) == first
    assert batch.mask.all()


def test_two_captions_are_two_views_of_one_tower() -> None:
    """text and text@2 have fields of their own; a MultiView, or two objectives, read both."""
    views = {"text@2": View("text", field="json.synthetic")}
    objectives = {"image_text": MultiView(("image",), ("text", "text@2"), further=1.0)}
    for config in (
        replace(CONFIG, views=views, objectives=objectives),
        replace(CONFIG, views=views, objectives={"image_text": Contrastive(), "synthetic": Contrastive("image", "text@2")}),
    ):
        check(config)
        for batch in batches(config, 2, source=Captioned()):
            for key, one, two in zip(batch.keys, batch.arrays["text"].tolist(), batch.arrays["text@2"].tolist(), strict=True):
                assert (tuple(one), tuple(two)) == (ids(f"caption {key}"), ids(f"synthetic {key}"))


def test_each_source_of_a_mixture_has_fields_and_names_of_classes_of_its_own() -> None:
    """A mixture has no names for labels that mean something else in each of its sources."""
    ones, others = Captioned(10), replace(Captioned(10), classes=("cup", "spoon"))
    fields = {"others": {"text": "a drawing of a {label} | a photo of a {label}"}}
    mixture = Mixture({"ones": ones, "others": others}, fields=fields)
    rows = [
        (key, tuple(row))
        for batch in batches(with_text("a {label}"), 6, source=mixture)
        for key, row in zip(batch.keys, batch.arrays["text"].tolist(), strict=True)
    ]
    drawn = {row for key, row in rows if key.startswith("others/")}
    assert drawn == {ids(f"a {what} of a {name}") for what in ("drawing", "photo") for name in others.classes}
    assert {row for key, row in rows if key.startswith("ones/")} == {ids(f"a {name}") for name in ones.classes}
    wrong = Data(sources={"a": Portion("shapes:train", fields={"text": "text*0"})})
    with pytest.raises(ConfigError, match=r"data.sources.a.fields.text: field 'text\*0', at character 5"):
        check(replace(CONFIG, data=wrong))


# Sources
def picture(shade: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (12, 12), (shade, 9, 9)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def half_captioned(tmp_path: Path) -> str:
    """Ten samples: all with JSON, of which one has no synthetic caption, and half with a text; one has neither."""
    members: dict[str, bytes] = {}
    for i in range(10):
        members[f"{i}.png"] = picture(i)
        members[f"{i}.json"] = json.dumps({"synthetic": None if i == 9 else [f"synthetic {i}", ""], "title": f"T{i}"}).encode()
        if i % 2 == 0:
            members[f"{i}.txt"] = f"caption {i}".encode()
    write_tar(tmp_path / "s.tar", members)
    return f"webdataset:{tmp_path}/s.tar"


def test_a_survey_counts_each_alternative(half_captioned: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = "text*0.5 | json.synthetic*0.5"
    found, looks = survey(open_source(half_captioned), {"image": "image", "text": text})
    counts = found.alternatives["text"]
    assert found.alternatives.keys() == {"text"}
    assert counts.there == {"text*0.5": 5, "json.synthetic*0.5": 9}
    assert counts.none == 1
    assert sum(counts.drawn.values()) == 9
    assert counts.drawn["json.synthetic*0.5"] >= 4
    drawn = Counter("synthetic" in look.text for look in looks if look.text)
    assert drawn == {True: counts.drawn["json.synthetic*0.5"], False: counts.drawn["text*0.5"]}
    assert found.usable == 9
    assert cli.main(["data", half_captioned, "--text", text]) == 0
    printed = capsys.readouterr().out
    assert "text, one of: text*0.5 (there 50.0%, drawn " in printed
    assert ", none 10.0%" in printed
    assert cli.main(["data", half_captioned, "--text", text, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["alternatives"]["text"]["there"] == counts.there
    assert cli.main(["data", half_captioned, "--text", "text*0"]) == 1
    assert "data: fields.text: field 'text*0', at character 5" in capsys.readouterr().err


def test_the_start_of_a_run_says_what_alternatives_are_missing(half_captioned: str, tmp_path: Path) -> None:
    source = open_source(half_captioned)
    assert outline(source, {"text": "text | json.synthetic"})[1:] == [
        "of 10 examples 5 have no text for the tower text, and one of the others is drawn"
    ]
    assert outline(source, {"text": "{key}: {json.title}"})[1:] == []
    write_tar(tmp_path / "o.tar", {"0.jpg": b"j", "0.a|b": b"odd"})
    assert outline(open_source(f"webdataset:{tmp_path}/o.tar"), {"text": "a|b"})[1:] == []  # the field of this whole name
    nothing = outline(source, {"text": "text | caption | a {other}"})[1:]
    assert nothing[0] == (
        "5 of 10 examples have nothing of 'text | caption | a {other}' for the tower text, and others take their place"
    )
    assert (
        nothing[1] == "of 10 examples 10 have no caption, 10 have no a {other} for the tower text, and one of the others is drawn"
    )
    write_tar(tmp_path / "l.tar", {f"{i}.{kind}": b"a\nb" for i in range(4) for kind in ("jpg", "txt")})
    lines = open_source(f"webdataset:{tmp_path}/l.tar")
    assert "captions=lines" in outline(lines, {"image": "image", "text": "text | image"})[1]
    assert len(outline(lines, {"image": "image", "text": "image | key"})) == 1  # the texts are not read


def test_labels_of_a_multi_label_set_are_refused_after_their_reason(tmp_path: Path) -> None:
    images, labels = [picture(i) for i in range(4)], [[True, False], [True, True], [False, True], [False, False]]
    spec = write_benchmark(tmp_path, images, labels, kind="multilabel", classes=("a", "b"))
    with make_run_loader(with_text("a photo of a {label}", source=spec)) as loader, pytest.raises(SourceError) as caught:
        next(loader)
    assert "label says of each class whether it is there" in str(caught.value)


def test_the_page_of_inspect_says_the_shares(half_captioned: str) -> None:
    pytest.importorskip("matplotlib", reason="the extra report is not installed")
    from jclip.report.inspect import _alternatives

    config = with_text("text | json.synthetic", source=half_captioned)
    ((name, told),) = _alternatives(config, open_source(half_captioned))
    assert name == "text, one of"
    assert told.startswith("text (there 50.0%, drawn ")
    assert told.endswith(", none 10.0%")
    assert _alternatives(with_text("text"), open_source(half_captioned)) == []
    mixture = Mixture(
        {"one": Captioned(), "half": open_source(half_captioned)}, fields={"half": {"text": "text | json.synthetic"}}
    )
    assert _alternatives(with_text("text"), mixture) == [("text of half, one of", told)]


@pytest.mark.slow
def test_a_folder_with_labels_trains_on_templates(tmp_path: Path) -> None:
    """Pictures and texts of one class are right for each other, whatever template is drawn."""
    from jclip import train

    for i in range(32):
        folder = tmp_path / "data" / ("red", "blue")[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), ((250, 0, 0), (0, 0, 250))[i % 2]).save(folder / f"{i}.png")
    spec = f"folder:{tmp_path}/data?labels=folders"
    config = tiny_config(
        evals={"seen": ZeroShot(spec, templates=("a photo of a {}",))},
        **{
            "checkpoint.best": None,
            "data.source": spec,
            "data.fields": {"text": "a photo of a {label} | a drawing of a {label}*0.5"},
            "views": {"text@class": View("text", field="{label}")},
            "objectives.image_text": Contrastive(equal="positive", equal_by="text@class"),
            "duration": "20",
        },
    )
    train.main(config, tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["seen/top1"] for line in lines if "seen/top1" in line][-1] == 1.0


def test_one_of_several_texts_is_named_by_its_place() -> None:
    example = {"key": "k", "text": ("first", "second"), "json": {"c": ["a", "b"], "d": {"0": "named"}}}
    assert [find(example, field).value for field in ("text.0", "text.1", "json.c.1", "json.d.0")] == [
        "first",
        "second",
        "b",
        "named",
    ]
    assert find(example, "json.c.2 | json.c.0").value == "a"
    with pytest.raises(Lacking, match=r"no json\.c\.2: there are 2, and the first is 0"):
        find(example, "json.c.2")
    with pytest.raises(Lacking, match=r"no json\.c\.x: fields of json\.c are none, it is a list"):
        find(example, "json.c.x")
