"""`jclip report`: the page has what the files have, nothing in them becomes markup, and it needs nothing but itself."""

import base64
import copy
import io
import json
import math
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from PIL import Image

from jclip.config import ConfigError
from jclip.report import main, numbers

VOID = {"meta", "img", "br", "link", "input", "hr"}
EVIL = "<script>alert(\"1\")</script>&amp; 'x' $\\alpha$ 猫 \x00\ud800"
SHOWN_EVIL = EVIL.replace("\x00", "\ufffd").replace("\ud800", "\ufffd")


def picture(kind: str = "JPEG", color: int = 0) -> str:
    written = io.BytesIO()
    Image.new("RGB", (8, 6), (color, 100, 200)).save(written, kind)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(written.getvalue()).decode()}"


def evaluation(**details: Any) -> dict[str, Any]:
    return {
        "protocol": "zero_shot",
        "settings": {"source": "shapes:test", "templates": ["a {c}.", "the {c}.", "some {c}.", "one {c}."]},
        "dtype": "float32",
        "seconds": 3.25,
        "key": "feed",
        "data": {"source": {"spec": "shapes:test", "fingerprint": "cafe"}},
        "counts": {"examples": 654, "classes": 3, "broken": 0},
        "metrics": {"top1": 0.51234, "median_rank": 7.0, "l2": 0.125},
        "details": details,
    }


def results(name: str = "runs/one", **evaluations: dict[str, Any]) -> dict[str, Any]:
    return {
        "format": "jclip results 1",
        "model": {"name": name, "step": 1380, "weights": "0123456789abcdef", "towers": {"image": {"width": 256}}},
        "versions": {"jclip": "0.1"},
        "devices": "1 cpu",
        "suite": "configs/suites/clipart.py",
        "training": [],
        "results": evaluations,
    }


def everything(name: str = "runs/one") -> dict[str, Any]:
    """All kinds of details, with unpleasant names in every place for text."""
    names = ["cat", EVIL, "crane", "crane"]
    whole = evaluation(
        per_class=[{"name": n, "examples": 11 + i, "recall": 0.111 * (i + 1)} for i, n in enumerate(names)],
        confusion={"names": names, "matrix": [[5, 1, 0, 2], [0, 71, 0, 0], [0, 0, 0, 0], [3, 0, 0, 1234]]},
        mistakes=[
            {"image": picture("PNG"), "key": EVIL, "truth": EVIL, "predictions": [["cat", 0.3125], [EVIL, 0.25]], "rank": 2}
        ],
        heat_map={
            "images": [picture(), picture("WEBP")],
            "texts": [EVIL, "b", "c"],
            "cosines": [[0.1, 0.2, 0.3], [0.25, -0.1, 0]],
        },
        grids={
            "text_to_image": [{"query": EVIL, "answers": [{"image": picture(), "right": True, "score": 0.4375}], "rank": 1}],
            "image_to_text": [{"query": picture(), "answers": [{"text": EVIL, "right": False, "score": 0.5625}], "rank": 13}],
        },
        curve={"x_name": EVIL, "y_name": "top1", "x": [1, 2, 4], "mean": [0.3, 0.45, 0.6], "deviation": [0.015, 0.012, 0.011]},
        search={"x_name": "l2 strength", "x": [0.01, 100, 1], "scores": [0.701, 0.702, 0.803], "best": 1},
        table={"columns": ["set", "zero-shot", "difference", "n"], "rows": [[EVIL, 0.7, -0.057, 50000], ["b", 0.625, 0.1, 2]]},
        anything={"else": EVIL},
    )
    whole["settings"][EVIL] = EVIL
    found = results(name, **{EVIL: whole, "second": evaluation()})
    found["training"] = [{"step": s, "loss": 5 / s, "lr": 1e-4, f"{EVIL}/top1": 0.1 * s} for s in (1, 2, 3)]
    found["training"].append({"step": 3, "second/top1": 0.875, "second/examples": 654})
    return found


class Page(HTMLParser):
    """A page read strictly: every tag closed in order; ids, links, addresses and text collected."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.addresses: list[str] = []
        self.values: list[float] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.parts: list[str] = []
        self.headings: list[int] = []
        self.feed(html)
        self.close()
        assert self.open == []
        self.text = " ".join("".join(self.parts).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.parts.append(" " if tag in ("td", "th", "li") else "")
        if tag not in VOID:
            self.open.append(tag)
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names))
        for name, value in attrs:
            self.attributes.append((tag, name, value or ""))
            if name == "id":
                self.ids.append(value or "")
            elif name == "href":
                self.links.append(value or "")
            elif name in ("src", "srcset", "action", "data", "poster", "background", "xlink:href"):
                self.addresses.append(value or "")
            elif name == "value":
                self.values.append(float(value or ""))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.parts.append(data)


def page_of(tmp_path: Path, *found: dict[str, Any]) -> tuple[str, Page]:
    paths = []
    for i, one in enumerate(found):
        paths.append(tmp_path / f"{i}.json")
        paths[-1].write_text(json.dumps(one))
    html = main(paths).read_text(encoding="utf-8")
    return html, Page(html)


def svgs(page: Page) -> list[str]:
    start = "data:image/svg+xml;base64,"
    return [base64.b64decode(one.removeprefix(start)).decode() for one in page.addresses if one.startswith(start)]


def numbers_in(value: Any) -> list[int | float]:
    if isinstance(value, dict):
        return [n for item in value.values() for n in numbers_in(item)]
    if isinstance(value, list):
        return [n for item in value for n in numbers_in(item)]
    return [value] if isinstance(value, (int, float)) and not isinstance(value, bool) else []


@pytest.fixture(scope="module")
def one_model(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Page]:
    return page_of(tmp_path_factory.mktemp("one"), everything())


@pytest.fixture(scope="module")
def two_models(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Page]:
    return page_of(tmp_path_factory.mktemp("two"), everything(EVIL), everything(EVIL))


def test_every_number_of_metrics_and_details_is_on_the_page(one_model: tuple[str, Page]) -> None:
    found, (_, page) = everything(), one_model
    for result in found["results"].values():
        details = copy.deepcopy(result["details"])
        confusion, heat = details.pop("confusion", {"matrix": []}), details.pop("heat_map", {"cosines": []})
        ranks = [one.pop("rank") for kind in (details.get("mistakes", []), *details.get("grids", {}).values()) for one in kind]
        examples = [one.pop("examples") for one in details.get("per_class", [])]
        assert set(numbers_in(result["metrics"]) + numbers_in(details)) <= set(page.values)
        titles = " ".join(value for _, name, value in page.attributes if name == "title")
        for count in (n for row in confusion["matrix"] for n in row if n):
            assert f": {count} of {sum(next(row for row in confusion['matrix'] if count in row))}" in titles
        for cosine in numbers_in(heat["cosines"]):
            assert f": {cosine:.4f}" in titles
            assert f"{cosine:.2f}" in page.text
        for whole in ranks + examples + numbers_in(result["counts"]):
            assert f"{whole:,}" in page.text
    assert {"51.2%", "7", "0.125"} <= set(page.text.split())
    assert "rank 2 of 3" in page.text
    assert "−5.7%" in page.text
    assert "+10.0%" in page.text


def test_training_is_drawn_and_its_last_and_best_values_are_written(tmp_path: Path, one_model: tuple[str, Page]) -> None:
    _, page = one_model
    titles = [re.findall(r">([^<>]*)</text>", svg)[-1] for svg in svgs(page)]
    assert "loss" in titles
    assert "second/top1 (%)" not in titles  # it was measured once
    assert {5 / 3, 0.875} <= set(page.values)
    assert "second/examples" not in page.text
    one = results(a=evaluation())
    assert "Training" not in page_of(tmp_path, one)[1].text


def test_a_long_training_is_drawn_with_few_points_whose_means_are_its_own(tmp_path: Path) -> None:
    found = results()
    found["training"] = [{"step": s, "loss": 1.0 if s % 2 else 3.0} for s in range(4000)]
    (svg,) = svgs(page_of(tmp_path, found)[1])
    assert len(svg) < 60_000
    ticks = [float(text) for text in re.findall(r">([\d.]+)</text>", svg.replace("−", "-"))]
    assert 2.0 in ticks
    assert not {1.0, 3.0} & set(ticks)


def test_names_from_outside_stay_text(two_models: tuple[str, Page]) -> None:
    html, page = two_models
    assert "script" not in page.tags
    assert not [attribute for attribute in page.attributes if attribute[1].startswith("on")]
    assert page.text.count(SHOWN_EVIL) > 20
    assert "<script" not in html.lower()
    drawn = svgs(page)
    assert not any("<script" in svg for svg in drawn)
    written = [text for svg in drawn for text in re.findall(r">([^<>]*)</text>", svg)]
    assert any("&lt;script&gt;" in text and "$\\alpha$" in text for text in written)


def test_the_page_fetches_nothing(two_models: tuple[str, Page]) -> None:
    html, page = two_models
    assert page.addresses
    assert all(re.match(r"data:image/(jpeg|png|webp|svg\+xml);base64,", address) for address in page.addresses)
    assert all(link.startswith("#") for link in page.links)
    assert not {"link", "iframe", "object", "embed", "base", "form"} & set(page.tags)
    assert "url(" not in html
    assert "@import" not in html
    assert ("meta", "http-equiv", "Content-Security-Policy") in page.attributes
    for svg in svgs(page):
        assert all(address.startswith("#") for address in re.findall(r'href="([^"]*)"', svg) + re.findall(r"url\(([^)]*)\)", svg))


def test_it_is_well_formed_and_every_anchor_has_its_target(two_models: tuple[str, Page]) -> None:
    html, page = two_models
    assert len(page.ids) == len(set(page.ids))
    assert {link[1:] for link in page.links} <= set(page.ids)
    assert {value for _, name, value in page.attributes if name == "aria-labelledby"} <= set(page.ids)
    assert page.tags.count("img") == len([1 for tag, name, value in page.attributes if (tag, name) == ("img", "alt") and value])
    assert page.headings.count(1) == 1
    assert html.startswith("<!doctype html>")
    assert all(after - before <= 1 for before, after in zip(page.headings, page.headings[1:], strict=False))


def test_the_same_files_give_the_same_bytes(tmp_path: Path) -> None:
    first, _ = page_of(tmp_path, everything())
    with matplotlib.rc_context({"font.size": 30, "svg.fonttype": "path", "axes.grid": False}):
        assert page_of(tmp_path, everything())[0] == first
    assert main([tmp_path / "0.json"], tmp_path / "new" / "page.html").read_text(encoding="utf-8") == first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.json", "new", "report.html"]


def best_marks(page: Page) -> int:
    return page.attributes.count(("span", "title", "the best"))


def test_the_best_is_marked_where_the_data_are_the_same(tmp_path: Path) -> None:
    one, two = (results(name, a=evaluation()) for name in ("one", "two"))
    two["results"]["a"]["metrics"] = {"top1": 0.4, "median_rank": 6.0, "l2": 9.0}
    html, page = page_of(tmp_path, one, two)
    assert best_marks(page) == 2
    marked = re.findall(r'<td class="n best">.*?<data value="([^"]*)"', html)
    assert marked == ["0.51234", "6.0"]
    two["results"]["a"]["data"]["source"] = {"spec": "elsewhere", "fingerprint": "cafe"}
    assert best_marks(page_of(tmp_path, one, two)[1]) == 2
    two["results"]["a"]["data"]["source"]["fingerprint"] = "beef"
    html, page = page_of(tmp_path, one, two)
    assert best_marks(page) == 0
    assert "Not compared, because models differ in: data." in page.text
    assert best_marks(page_of(tmp_path, one)[1]) == 0


def test_suites_may_differ_and_the_page_says_so(tmp_path: Path) -> None:
    one, two = results("one", a=evaluation()), results("two", b=evaluation())
    assert "different suites" not in page_of(tmp_path, one, two)[1].text
    two["suite"] = "mine.py"
    text = page_of(tmp_path, one, two)[1].text
    assert "different suites (configs/suites/clipart.py, mine.py)" in text


def test_models_of_one_name_are_distinguished(tmp_path: Path) -> None:
    one, two = results("same"), results("same")
    two["model"]["step"] = 20
    assert "same, step 1,380" in page_of(tmp_path, one, two)[1].text
    two["model"]["step"], two["model"]["weights"] = 1380, "f" * 16
    assert "same, step 1,380, weights ffffffff" in page_of(tmp_path, one, two)[1].text


def test_many_classes_are_folded_and_the_most_confused_are_shown(tmp_path: Path) -> None:
    n = 60
    matrix = 9 * np.eye(n, dtype=int)
    confused = list(range(1, 60, 2))
    matrix[confused, np.roll(confused, 1)] += 1
    matrix[41, 43] = 77
    names = [f"class-{i:02}" for i in range(n)]
    per_class = [{"name": name, "examples": 9, "recall": i / n} for i, name in enumerate(names)]
    html, page = page_of(
        tmp_path, results(a=evaluation(per_class=per_class, confusion={"names": names, "matrix": matrix.tolist()}))
    )
    shown = re.findall(r'<th scope="col" title="(class-\d\d)">', html)
    assert shown == [names[i] for i in confused]
    assert "The 30 most often confused of 60 classes" in page.text
    assert "40 more classes" in page.text
    assert page.text.index("class-00") < page.text.index("class-59")
    frequent = page.text[page.text.index("Most frequent confusions") :]
    assert re.search(r"class-\d\d", frequent).group() == "class-41"  # type: ignore[union-attr]
    assert f"{100 * 77 / (9 + 77 + 1):.1f}%" in frequent


def test_both_classes_of_the_most_frequent_confusions_are_in_the_matrix_and_a_row_has_examples(tmp_path: Path) -> None:
    n = 60
    matrix = 9 * np.eye(n, dtype=int)
    matrix[:40] += 1  # each of many classes is confused with all, a little
    matrix[50, 55] = matrix[57, 58] = 5
    matrix[58] = 0
    names = [f"class-{i:02}" for i in range(n)]
    html, _ = page_of(tmp_path, results(a=evaluation(confusion={"names": names, "matrix": matrix.tolist()})))
    assert {"class-50", "class-55", "class-57", "class-58"} <= set(re.findall(r'<th scope="col" title="(class-\d\d)">', html))
    rows = re.findall(r'<th scope="row" title="(class-\d\d)">', html)
    assert "class-57" in rows
    assert "class-58" not in rows


def test_an_evaluation_without_details_shows_its_metrics(tmp_path: Path) -> None:
    bare = {**evaluation(), "details": {}, "metrics": {"text_score": 0.375}}
    html, _ = page_of(tmp_path, results(bare=bare))
    (shown,) = re.findall(r'aria-label="metrics of bare">.*?</table>', html, re.DOTALL)
    assert "text_score" in shown
    assert "37.5%" in shown
    assert (
        'aria-label="metrics of full"'
        not in page_of(tmp_path, results(full=evaluation(per_class=[{"name": "a", "examples": 1, "recall": 1.0}])))[0]
    )


def test_a_loss_that_is_all_of_the_loss_is_drawn_once_and_metrics_are_in_the_order_of_evaluations(tmp_path: Path) -> None:
    found = results(second=evaluation(), first=evaluation())
    numbers = {"first/top1": 0.25, "second/top1": 0.5}
    found["training"] = [
        {"step": s, "loss": 3.0 / s, "image_text/loss": 3.0 / s, **{name: value / s for name, value in numbers.items()}}
        for s in (1, 2, 3)
    ]
    titles = [re.findall(r">([^<>]*)</text>", svg)[-1] for svg in svgs(page_of(tmp_path, found)[1])]
    assert titles == ["loss", "second/top1 (%)", "first/top1 (%)"]
    found["training"][0] |= {"first/image_without_answer": 0, "first/templates": 3}
    found["training"][1] |= {"first/image_without_answer": 1, "first/templates": 3}
    text = page_of(tmp_path, found)[1].text
    assert re.search(r"first/image_without_answer\s*1\s", text), "a count: no share, and none is the best"
    assert not re.search(r"first/templates\s*3 \(best", text)
    found["training"][1]["image_text/loss"] = 2.0
    assert "image_text/loss" in page_of(tmp_path, found)[1].text


def test_what_is_no_number_is_a_dash(tmp_path: Path) -> None:
    one = results(a=evaluation(per_class=[{"name": "empty", "examples": 0, "recall": None}]))
    one["results"]["a"]["metrics"] = {"top5": math.nan, "top1": None}
    _, page = page_of(tmp_path, one)
    assert page.text.count("–") >= 3
    assert "nan" not in page.text


@pytest.mark.parametrize(
    "image",
    [
        "https://example.org/x.png",
        "data:image/svg+xml;base64,PHN2Zz4=",
        "data:text/html;base64,PHN2Zz4=",
        'data:image/png;base64,AAAA" onerror="x',
        "data:image/png;base64,AAAA\n",
        "javascript:alert(1)",
        "cat.jpg",
    ],
)
@pytest.mark.parametrize("place", ["mistakes", "heat_map", "text_to_image", "image_to_text"])
def test_a_picture_that_is_no_data_url_of_a_picture_is_refused(tmp_path: Path, image: str, place: str) -> None:
    found = everything()
    details = found["results"][EVIL]["details"]
    match place:
        case "mistakes":
            details["mistakes"][0]["image"] = image
        case "heat_map":
            details["heat_map"]["images"][1] = image
        case "text_to_image":
            details["grids"][place][0]["answers"][0]["image"] = image
        case "image_to_text":
            details["grids"][place][0]["query"] = image
    with pytest.raises(ConfigError, match=f"{place}.*not a picture: data:image/jpeg;base64"):
        page_of(tmp_path, found)
    assert not (tmp_path / "report.html").exists()


def changed(path: str, value: Any) -> dict[str, Any]:
    """`everything`, with one value replaced, or removed where it is `...`."""
    found = everything()
    found["results"]["a"] = found["results"].pop(EVIL)
    *parents, last = path.split(".")
    place: Any = found
    for key in parents:
        place = place[int(key)] if isinstance(place, list) else place[key]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return found


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (
            "format",
            "other 2",
            r"it has the format 'other 2', where \"jclip results 1\" is read; write one with: jclip eval",
        ),
        ("format", ..., r"has the format None"),
        ("model.weights", ..., r"0\.json: model\.weights is missing; it has 'name', 'step', 'towers'"),
        ("model.name", 3, r"model\.name is 3, not text"),
        ("model.step", True, r"model\.step is True, not a whole number"),
        ("results", [], r"results is \[\], not an object"),
        ("results.a.protocol", ..., r"results\.a\.protocol is missing"),
        ("results.a.metrics.top1", "0.5", r"results\.a\.metrics\.top1 is '0\.5', not a number"),
        ("results.a.counts.examples", 0.5, r"counts\.examples is 0\.5, not a whole number"),
        ("results.a.details.per_class", {}, r"per_class is {}, not a list"),
        ("results.a.details.confusion.matrix", [[1]], r"confusion\.matrix has 1 items, where 4 are needed"),
        ("results.a.details.heat_map.cosines", [[1, 2, 3], [1]], r"heat_map\.cosines\[1\] has 1 items, where 3 are needed"),
        ("results.a.details.curve.mean", [0.5], r"curve\.mean has 1 items, where 3 are needed"),
        ("results.a.details.mistakes.0.predictions", [["cat"]], r"mistakes\[0\]\.predictions\[0\] has 1 items, not 2"),
        ("results.a.details.table.rows", [[1]], r"table\.rows\[0\] has 1 items, where 4 are needed"),
        ("training", [{"loss": 1.0}], r"training\[0\]\.step is missing"),
    ],
)
def test_an_error_says_which_value_of_which_file_is_wrong(tmp_path: Path, path: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        page_of(tmp_path, changed(path, value))


def test_files_that_cannot_be_read_or_written_are_explained(tmp_path: Path) -> None:
    bad = tmp_path / "bad.json"
    with pytest.raises(ConfigError, match=r"there is no file .*bad\.json; write one with: jclip eval"):
        main([bad])
    for content in (b"{", b"\xff\xfe\x00", b"[" * 100_000):
        bad.write_bytes(content)
        with pytest.raises(ConfigError, match=r"bad\.json is no file of results, it is not JSON"):
            main([bad])
    bad.write_text("[1]")
    with pytest.raises(ConfigError, match="format 'list'"):
        main([bad])
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"is a training run, not a results file; .* after: jclip eval .*/run --json OUT\.json"):
        main([tmp_path / "run"])
    with pytest.raises(ConfigError, match="is a folder, not a file of results"):
        main([tmp_path], tmp_path / "x.html")
    with pytest.raises(ConfigError, match="no results file is given"):
        main([])
    bad.write_text(json.dumps(results()))
    with pytest.raises(ConfigError, match=r"the page would replace it; name another with --html"):
        main([bad], bad)
    with pytest.raises(ConfigError, match=r"is a folder; name a file, such as .*report\.html"):
        main([bad], tmp_path)


def test_a_page_that_cannot_be_finished_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, _ = page_of(tmp_path, results("old"))

    def full(*_: Any, **__: Any) -> int:
        raise OSError("no space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_text", full)
        with pytest.raises(OSError, match="no space"):
            main([tmp_path / "0.json"])
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == old
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.json", "report.html"]


@pytest.mark.parametrize("module", ["matplotlib", "jinja2"])
def test_a_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    (tmp_path / "0.json").write_text(json.dumps(results()))
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=rf'{module} is not installed; pip install "jclip\[report\]"'):
        main([tmp_path / "0.json"])


def test_names_of_metrics_say_whether_more_is_better_and_whether_they_are_fractions() -> None:
    assert [numbers.better(name) for name in ("e/top1", "image_text/loss", "r/median_rank", "perplexity", "probe/strength")] == [
        *(1, -1, -1, -1, 0)
    ]
    assert numbers.is_fraction("top1", [0.0, 0.5, 1.0])
    assert numbers.is_fraction("difference", [-0.5, 1])
    assert not numbers.is_fraction("top1", [0.5, 1.5])  # one is enough
    assert not numbers.is_fraction("loss", [0.5])
    assert not numbers.is_fraction("top1", [None, "x", True])
