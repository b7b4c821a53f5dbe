"""`jclip filter`: every example is counted once, by the first rule that drops it, and what is kept trains."""

import dataclasses
import functools
import json
import shlex
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from test_cli import exit_status
from tiny import tiny_config

from jclip import filter
from jclip.config import ConfigError, Filter, Subset, check_filter, load_filter
from jclip.data import SourceError, open_source
from jclip.data.findings import RULES, read_findings
from jclip.eval.clusters import centres_of
from jclip.inference import load
from jclip.parts import prepare

MODEL = "ViT-tiny-test"
ENGLISH = "a small red circle stands beside a large blue square and there is number {} written below the two of them"
GERMAN = "ein kleiner roter Kreis steht neben einem großen blauen Quadrat und darunter steht die Zahl {} geschrieben"


LOADED = functools.cache(load)


@pytest.fixture(autouse=True)
def _loaded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model is compiled once for all tests."""
    monkeypatch.setattr(filter, "load", LOADED)


def write(folder: Path, name: str, pixels: np.ndarray | bytes, text: str | None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(pixels, bytes):
        (folder / f"{name}.png").write_bytes(pixels)
    else:
        Image.fromarray(pixels).save(folder / f"{name}.png")
    if text is not None:
        (folder / f"{name}.txt").write_text(text, encoding="utf-8")


@pytest.fixture
def data(tmp_path: Path) -> str:
    """Pictures a00 to a39: a05 and a06 are broken, a07 lacks a caption, 10, 20 and 30 are German, 15 to 17 repeat 11 to 13, and
    25 to 27 are those of an evaluation set, which has a broken one, too."""
    drawn = open_source("shapes:train?size=16&length=200")
    for i in range(40):
        pixels = drawn[i - 4 if i in (15, 16, 17) else i]["image"] if i not in (5, 6) else b"torn"
        text = (GERMAN if i in (10, 20, 30) else ENGLISH).format(i) if i != 7 else None
        write(tmp_path / "train", f"a{i:02}", pixels, text)
    for i in (26, 25, 100, 27, 101):
        write(tmp_path / "test", f"b{i}", drawn[i]["image"] if i != 101 else b"torn", None)
    return f"folder:{tmp_path}/train"


def filtered(source: str, out: Path, rules: Filter) -> tuple[list[str], dict[str, dict[str, Any]], dict[str, Any]]:
    """Keys kept, rows of the table by key, and the record."""
    path = filter.main(source, out, rules)
    rows = pq.read_table(out / "table.parquet").to_pylist()
    record = json.loads((out / "filter.json").read_text())
    return [json.loads(line) for line in path.read_text().splitlines()], {row["key"]: row for row in rows}, record


def check_counts(kept: list[str], rows: Mapping[str, dict[str, Any]], record: dict[str, Any], total: int = 40) -> None:
    """Each example is counted once, the same in all files."""
    assert sum(record["counts"].values()) == total == record["examples"]
    assert [key for key, row in rows.items() if not row["dropped"]] == kept
    for rule in RULES:
        assert sum(row["dropped"] == rule for row in rows.values()) == record["counts"][rule]


def test_every_rule_drops_what_is_planted_for_it(data: str, tmp_path: Path) -> None:
    (tmp_path / "entries.txt").write_text("red circle\n\nnumber 33\n")
    write(tmp_path / "train", "a40", np.zeros((16, 16, 3), np.uint8), "this one does not have any entry of the list in its words")
    rules = Filter(
        Subset(where="not text in ('left out')"),
        languages=("en", "fr"),
        language_least=0.9,
        model=MODEL,
        score_least=-1.0,
        against=(f"folder:{tmp_path}/test",),
        contaminated=1.0,
        duplicates=1.0,
        balance=str(tmp_path / "entries.txt"),
        batch_size=16,
    )
    kept, rows, record = filtered(data, tmp_path / "out", rules)
    check_counts(kept, rows, record, 41)
    by_rule = {rule: {key[:3] for key, row in rows.items() if row["dropped"] == rule} for rule in RULES}
    assert by_rule["subset"] == {"a07"}  # without a caption the condition says nothing of it
    assert by_rule["language"] == {"a10", "a20", "a30"}
    assert by_rule["unreadable"] == {"a05", "a06"}
    assert by_rule["contaminated"] == {"a25", "a26", "a27"}
    assert len(by_rule["duplicate"]) == 3  # one of each pair, the one with the lower score, or that comes later
    for late in (15, 16, 17):
        pair = [rows[next(key for key in rows if key.startswith(f"a{i}"))] for i in (late - 4, late)]
        first, second = sorted(pair, key=lambda row: (-row["score"], row["index"]))
        assert (first["dropped"], second["dropped"], second["before"]) == ("", "duplicate", first["key"])
        assert second["before_cosine"] == pytest.approx(1, abs=1e-6)
    assert by_rule["balance"] == {"a40"}
    assert [rows[key]["entries"] for key in kept if key.startswith(("a32", "a33"))] == [
        ["red circle"],
        ["red circle", "number 33"],
    ]
    gone = next(row for key, row in rows.items() if key.startswith("a25"))
    assert (gone["against"][:3], gone["against_source"]) == ("b25", rules.against[0])
    assert record["reasons"] == {
        "image: image cannot be decoded: N bytes that are no JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF": 2
    } or (list(record["reasons"].values()) == [2])


def test_scores_are_the_cosines_of_the_model_and_the_best_share_is_kept(data: str, tmp_path: Path) -> None:
    rules = Filter(model=MODEL, score_best=0.3, batch_size=16)
    kept, rows, record = filtered(data, tmp_path / "out", rules)
    check_counts(kept, rows, record)
    source, model = open_source(data), LOADED(MODEL)
    good = [i for i in range(40) if i not in (5, 6, 7)]
    images = model.embed_image([str(tmp_path / f"train/a{i:02}.png") for i in good])
    texts = model.embed_text([source[i]["text"] for i in good])
    expected = np.sum(images.astype(float) * texts, axis=1)
    scores = [rows[source[i]["key"]]["score"] for i in good]
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-6)
    best = sorted(np.argsort(-np.array(scores), kind="stable")[: round(0.3 * 37)])
    assert kept == [source[good[i]]["key"] for i in best]
    assert record["counts"]["unreadable"] == 3
    rest = dataclasses.replace(rules, subset=Subset(where="text < 'b'"))  # no German
    kept, rows, record = filtered(data, tmp_path / "some", rest)
    assert len(kept) == round(0.3 * 34)
    kept, rows, record = filtered(data, tmp_path / "whole", dataclasses.replace(rest, score_among="source"))
    check_counts(kept, rows, record)
    best = sorted(np.argsort(-np.array(scores), kind="stable")[: round(0.3 * 40)])  # of all, the Germans among them
    assert kept == [source[good[i]]["key"] for i in best if good[i] not in (10, 20, 30)]
    assert {row["dropped"] for row in rows.values() if row["score"] is not None} == {"", "score", "subset"}


def test_clusters_stay_in_which_an_image_is_that_shows_what_is_wanted(data: str, tmp_path: Path) -> None:
    like = f"folder:{tmp_path}/test"  # copies of a25, a26 and a27, of one that is not there, and a broken one
    rules = Filter(languages=("en",), model=MODEL, like=(like,), clusters=6, batch_size=16)
    kept, rows, record = filtered(data, tmp_path / "out", rules)
    check_counts(kept, rows, record)
    asked = {key: row for key, row in rows.items() if row["dropped"] in ("", "unlike")}
    assert {key[:3] for key in rows.keys() - asked.keys()} == {"a05", "a06", "a07", "a10", "a20", "a30"}
    assert all(rows[key]["cluster"] is None for key in rows.keys() - asked.keys())

    images = [str(tmp_path / f"test/b{i}.png") for i in (25, 26, 27, 100)]
    z = LOADED(MODEL).embed_image([str(tmp_path / f"train/{key[:3]}.png") for key in asked])
    centres = centres_of(z, 6)
    liked = {*(LOADED(MODEL).embed_image(images) @ centres.T).argmax(1).tolist()}
    assert [row["cluster"] for row in asked.values()] == (z @ centres.T).argmax(1).tolist()
    assert kept == [key for key, row in asked.items() if row["cluster"] in liked]
    assert 3 <= len(kept) < len(asked)
    assert record["notes"][-2] == f"{len(liked)} of 6 clusters have an image of --like"

    each = dataclasses.replace(rules, clusters=len(asked))  # of one picture each: copies stay, and what b100 is near
    kept, rows, _ = filtered(data, tmp_path / "each", each)
    assert {key[:3] for key in kept} >= {"a25", "a26", "a27"}
    assert len(kept) <= 5
    of_seed = filtered(data, tmp_path / "seed", dataclasses.replace(rules, seed=1))[1]
    assert [of_seed[key]["cluster"] for key in asked] == (z @ centres_of(z, 6, seed=1).T).argmax(1).tolist()
    shown = next(note for note in record["notes"] if "cannot" in note)
    assert shown == f"1 of 5 images of --like {like} cannot be read"


def test_clusters_that_cannot_be_are_refused_before_anything_is_embedded(data: str, tmp_path: Path) -> None:
    like = f"folder:{tmp_path}/test"
    rules = Filter(languages=("en",), model=MODEL, like=(like,), batch_size=16)
    for clusters, said in ((40, "40 clusters of 36 images that are left; give fewer"), (None, "36 images are left, too few for")):
        with pytest.raises(SourceError, match=said):
            filter.main(data, tmp_path / "none", dataclasses.replace(rules, clusters=clusters))
        assert not (tmp_path / "none/embeddings").exists()
        shutil.rmtree(tmp_path / "none")
    with pytest.raises(SourceError, match="36 clusters of 34 images that can be read"):  # two of them are torn
        filter.main(data, tmp_path / "torn", dataclasses.replace(rules, clusters=36))
    write(tmp_path / "broken", "c0", b"torn", None)
    with pytest.raises(SourceError, match=r"filter: like folder:.*broken: "):
        filter.main(data, tmp_path / "broken_like", dataclasses.replace(rules, like=(f"folder:{tmp_path}/broken",), clusters=3))
    assert not (tmp_path / "broken_like/embeddings/image.npy").exists()  # it is looked at first


def test_the_clusters_are_those_of_what_is_left_where_scores_need_the_whole_source(data: str, tmp_path: Path) -> None:
    like = f"folder:{tmp_path}/test"
    rules = Filter(languages=("en",), model=MODEL, like=(like,), clusters=6, batch_size=16)
    alone = filtered(data, tmp_path / "alone", rules)[1]
    whole = dataclasses.replace(rules, score_best=0.5, score_among="source")
    kept, rows, record = filtered(data, tmp_path / "whole", whole)
    check_counts(kept, rows, record)
    assert {key: row["cluster"] for key, row in rows.items()} == {key: row["cluster"] for key, row in alone.items()}
    scores = np.array([-np.inf if row["score"] is None else row["score"] for row in rows.values()])
    best = {[*rows][i] for i in np.argsort(-scores, kind="stable")[:20]}
    assert kept == [key for key, row in alone.items() if not row["dropped"] and key in best]


def test_a_folder_of_a_jclip_that_had_fewer_rules_is_read(data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rules = Filter(model=MODEL, score_best=0.5, batch_size=16)
    kept = filtered(data, tmp_path / "out", rules)[0]
    record = json.loads((tmp_path / "out/filter.json").read_text())
    for name in ("like", "clusters"):
        del record["rules"][name]
    del record["like"], record["counts"]["unlike"]
    (tmp_path / "out/filter.json").write_text(json.dumps(record))
    monkeypatch.setattr(filter, "_ask", None)
    for counts in ({"kept": 1}, {**record["counts"], "kept": record["counts"]["kept"] + 1}):
        (tmp_path / "out/filter.json").write_text(json.dumps({**record, "counts": counts}))
        with pytest.raises(ConfigError, match="its counts are not those of the rules"):
            filter.main(data, tmp_path / "out", rules)
    (tmp_path / "out/filter.json").write_text(json.dumps(record))
    assert [json.loads(line) for line in filter.main(data, tmp_path / "out", rules).read_text().splitlines()] == kept
    with pytest.raises(ConfigError, match=r"out is of something else: rules\.like"):
        filter.main(data, tmp_path / "out", dataclasses.replace(rules, like=("shapes:val?size=16&length=20",)))


def test_a_chain_of_likenesses_loses_all_but_its_first() -> None:
    """b is near a, c near b but not a, and e near c: b is dropped, and by it c all the same, in the order of the source, or of
    falling score."""
    angles = np.array([0.0, 0.1, 0.2, 1.5, 0.3])
    z = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    found = filter.Findings(5, Filter(duplicates=0.99))
    filter._drop_duplicates(found, found.rules, lambda rows: z[rows])
    assert found.kept().tolist() == [0, 3]
    found = filter.Findings(5, Filter(duplicates=0.99, score_least=-1.0))
    found.score[:] = [0, 0, 5, 0, 0]
    filter._drop_duplicates(found, found.rules, lambda rows: z[rows])
    assert found.kept().tolist() == [0, 2, 3]
    assert found.before_row[[0, 2, 3, 4]].tolist() == [2, -1, 2, 2]


def test_the_same_call_says_that_all_is_done_and_another_is_refused(
    data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, rules = tmp_path / "out", Filter(Subset(where="text > 'a'"), model=MODEL, duplicates=0.9999, batch_size=16)
    kept = filtered(data, out, rules)[0]
    said, files = capsys.readouterr().err, {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    monkeypatch.setattr(filter, "_ask", None)
    assert filtered(data, out, rules)[0] == kept
    again = capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == files
    assert f"{len(kept)} of 40 examples are kept" in said
    assert again in said
    with pytest.raises(ConfigError, match=r"out is of something else: rules\.duplicates: 0\.9999 -> 0\.5; give another folder"):
        filter.main(data, out, dataclasses.replace(rules, duplicates=0.5))
    with pytest.raises(ConfigError, match=r"data: .* -> "):
        filter.main("shapes:train?size=16&length=40", out, rules)
    with pytest.raises(ConfigError, match=r"rules\.model: 'ViT-tiny-test' -> 'ViT-mini-test'; weights: "):
        filter.main(data, out, dataclasses.replace(rules, model="ViT-mini-test"))
    (out / "filter.json").write_text('{"format": "jclip filter 1"}')
    with pytest.raises(ConfigError, match=r"filter\.json is damaged \('rules'\)"):
        filter.main(data, out, rules)
    (out / "filter.json").unlink()
    with pytest.raises(ConfigError, match=r"out has .*, and no filter\.json that says of what"):
        filter.main(data, out, rules)


def test_a_call_that_was_stopped_goes_on_with_what_is_embedded(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rules = Filter(model=MODEL, score_least=-0.5, duplicates=0.9999, batch_size=16)
    expected = filtered(data, tmp_path / "whole", rules)
    with monkeypatch.context() as patch:
        patch.setattr(filter, "_cosines", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(SystemExit) as stopped:
            filter.main(data, tmp_path / "out", rules)
    assert stopped.value.code == 130
    assert not (tmp_path / "out/kept.jsonl").exists()
    before = (tmp_path / "out/embeddings/image.npy").stat().st_mtime_ns
    found = filtered(data, tmp_path / "out", rules)
    assert (tmp_path / "out/embeddings/image.npy").stat().st_mtime_ns == before
    assert found == expected
    assert (tmp_path / "out/index.html").read_bytes() == (tmp_path / "whole/index.html").read_bytes()


def test_what_is_kept_is_a_subset_that_trains(data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [data, str(tmp_path / "out"), "--languages", "en", "--subset.where", "text != 'x'"]
    assert exit_status(["filter", *arguments]) == 0
    command = shlex.split(capsys.readouterr().out)
    assert command[:3] == ["jclip", "train", "CONFIG.py"]
    options = dict(zip(command[3::2], command[4::2], strict=True))
    named = {"data.source": options["--data.source"], "data.subset.keys": options["--data.subset.keys"]}
    source = prepare(tiny_config(**named))[0].data.source
    assert source is not None
    table = Filter(Subset(where="dropped == '' and language_probability > 0.5", table=str(tmp_path / "out/table.parquet")))
    kept, _, record = filtered(data, tmp_path / "again", table)
    assert len(kept) == len((tmp_path / "out/kept.jsonl").read_text().splitlines()) == 36
    check_counts(kept, *filtered(data, tmp_path / "again", table)[1:])
    assert record["counts"]["subset"] == 4


def test_the_page_shows_some_of_each_and_escapes_what_comes_from_outside(data: str, tmp_path: Path) -> None:
    write(
        tmp_path / "train",
        "a41",
        np.zeros((16, 16, 3), np.uint8),
        "<script>alert(1)</script> ein kleiner Kreis steht neben dem Haus",
    )
    filtered(data, tmp_path / "out", Filter(languages=("en",), model=MODEL, score_best=0.5, duplicates=1.0, batch_size=16))
    page = (tmp_path / "out/index.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    for rule in ("unreadable", "language", "score"):
        assert f"<h2>Dropped: {rule}</h2>" in page
    assert "Histogram of the scores" in page
    assert "data:image/jpeg;base64," in page


def test_without_the_extras_the_keys_are_written_all_the_same(
    data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "jclip.report.template", raising=False)  # it may have been imported before
    for module in ("pyarrow", "pyarrow.parquet", "jinja2"):
        monkeypatch.setitem(sys.modules, module, None)
    kept = filter.main(data, tmp_path / "out", Filter())
    assert len(kept.read_text().splitlines()) == 40
    said = " ".join(capsys.readouterr().err.split())
    assert 'pip install "jclip[tables]"' in said
    assert 'pip install "jclip[report]"' in said
    assert not (tmp_path / "out/table.parquet").exists()


def test_nothing_that_is_left_is_an_error_after_all_is_written(data: str, tmp_path: Path) -> None:
    (tmp_path / "entries.txt").write_text("unicorn")
    with pytest.raises(SourceError, match=r"nothing of folder:.* is kept; .*filter\.json says why"):
        filter.main(data, tmp_path / "out", Filter(balance=str(tmp_path / "entries.txt")))
    record = json.loads((tmp_path / "out/filter.json").read_text())
    assert record["counts"] == {"kept": 0, **dict.fromkeys(RULES, 0), "unreadable": 1, "balance": 39}
    shutil.rmtree(tmp_path / "out")
    with pytest.raises(SourceError, match="filter: subset: nothing is left"):
        filter.main(data, tmp_path / "out", Filter(Subset(where="len(text) > 999")))


class Twice:
    """Three examples, two of which have one key; the second has several captions, and the last none."""

    classes: tuple[str, ...] = ()
    templates: tuple[str, ...] = ()

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> dict[str, Any]:
        text = (ENGLISH.format(0), (" ", GERMAN.format(1), ENGLISH.format(2)), 3)[index]
        return {"key": ("a", "b", "a")[index], "text": text}

    def fingerprint(self) -> str:
        return "0" * 32


def test_of_several_captions_the_first_counts_and_keys_that_are_there_twice_are_reported() -> None:
    found = read_findings(Twice(), Filter(languages=("en",)), None)
    assert found.counts() == {"kept": 1, **dict.fromkeys(RULES, 0), "language": 1, "unreadable": 1}
    assert found.language[1] is not None
    assert found.language[1].code == "de"
    assert dict(found.reasons) == {"its caption is a int, not a text": 1}
    assert found.notes == ["1 examples have the key of another before them: a file of keys keeps both or none"]


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (Filter(score_best=0.3), r"model is empty, and a score needs one"),
        (Filter(duplicates=0.9), r"model is empty, and duplicates needs one"),
        (Filter(like=("x",)), r"model is empty, and like needs one"),
        (Filter(clusters=3), r"clusters 3: give like"),
        (Filter(model="x"), r"model 'x': no rule asks it"),
        (Filter(model="x", score_best=0.3, score_least=0.2), r"score_least and \.score_best: give one of them"),
        (Filter(model="x", score_least=0.3, score_among="source"), r"score_among source: there is no score_best"),
        (Filter(language_least=0.3), r"language_least 0\.3: give languages"),
        (Filter(languages=("english",)), r"languages: 'english' is no code of two or three letters"),
        (Filter(Subset(where="1 <")), r"subset\.where: condition"),
        (Filter(image="{"), r"image: "),
        (Filter(model="x", duplicates=1.5), r"duplicates 1\.5 must be"),
        (Filter(balance_most=0), r"balance_most 0 must be at least 1"),
    ],
)
def test_rules_that_contradict_each_other_are_refused(rules: Filter, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_filter(rules)


def test_text_based_filtering_keeps_all_captions_that_have_a_name(data: str, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("number 12\nbelow the two\nkreis\nzebra\n")
    write(tmp_path / "train", "a40", np.zeros((16, 16, 3), np.uint8), "this one has none of the names in all of its words")
    recipe = Path(__file__).parents[1] / "configs" / "filter_text_based.py"
    kept, rows, _ = filtered(data, tmp_path / "out", load_filter(recipe, ["--classes", str(tmp_path / "names.txt")]))
    assert len(kept) == 36  # of 41 without three in German, one without a caption and one without a name
    assert rows[next(key for key in rows if key.startswith("a40"))]["dropped"] == "balance"


@pytest.mark.parametrize("name", ["image_based", "image_based_and_clip_score"])
def test_image_based_filtering_takes_other_sources_by_an_option(name: str) -> None:
    recipe = Path(__file__).parents[1] / "configs" / f"filter_{name}.py"
    rules = load_filter(recipe)
    check_filter(rules)
    assert (rules.like, rules.clusters) == (("tfds:imagenet2012:train",), 100_000)
    assert load_filter(recipe, ["--like", "folder:a", "folder:b", "--clusters", "9"]) == dataclasses.replace(
        rules, like=("folder:a", "folder:b"), clusters=9
    )


def test_an_unknown_language_is_refused_with_those_that_are_known(data: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--languages xx: known are .*\ben\b"):
        filter.main(data, tmp_path / "out", Filter(languages=("en", "xx")))


def test_a_recipe_gives_rules_and_options_change_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "rules.py"
    recipe.write_text(
        '"""Some rules."""\nfrom jclip.config import Filter, Subset\n\ndef get_filter(least: int = 2) -> Filter:\n'
        '    return Filter(Subset(where=f"words(text) > {least}"), languages=("en",))\n'
    )
    assert load_filter(recipe) == Filter(Subset(where="words(text) > 2"), languages=("en",))
    found = load_filter(
        recipe, ["--least", "5", "--languages", "de", "fr", "--subset.best", "score", "0.3", "--balance-most", "7"]
    )
    assert found == Filter(Subset(where="words(text) > 5", best=("score", 0.3)), languages=("de", "fr"), balance_most=7)
    assert load_filter() == Filter()
    with pytest.raises(SystemExit):
        load_filter(recipe, ["--leest", "5"])
    recipe.write_text("def get_filter():\n    return 3\n")
    with pytest.raises(ConfigError, match=r"get_filter\(\) returns a int, not a Filter"):
        load_filter(recipe)
    assert exit_status(["filter", "--help"]) == 0
    said = capsys.readouterr().out
    assert "--score-best" in said
    assert "SOURCE and DIR come first" in said
    assert exit_status(["filter", "shapes:val"]) == 2
