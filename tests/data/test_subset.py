"""Parts of a source: what keys, a condition and a score keep, and what is said of the rest."""

import dataclasses
import math
import os
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from archives import write_tar
from hypothesis import given
from hypothesis import strategies as st
from tiny import tiny_config

from jclip import cli
from jclip.config import Config, ConfigError, Data, Portion, Subset, check, from_json, to_saved
from jclip.config.conditions import CannotSay, parse_condition
from jclip.data import BadExample, SelectedExamples, SourceError, make_loader, open_source, select
from jclip.data.keys import KeyIndex
from jclip.data.source import Unreachable
from jclip.data.subset import highest
from jclip.data.survey import shortcomings
from jclip.parts import prepare

SHAPES = "shapes:train?size=16&length=200"


class Numbered:
    """Examples with metadata: every 10th is torn, every 7th has no width, every 3rd no score."""

    classes = ("even", "odd")
    templates: tuple[str, ...] = ()

    def __init__(self, size: int = 5000) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index % 10 == 9:
            raise BadExample("torn")
        facts: dict[str, Any] = {"uid": f"{index:032x}", "wide": index % 2 == 0}
        if index % 7:
            facts["width"] = index
        score = {} if index % 3 == 0 else {"score": (index * 37 % 101) / 101}
        return {"key": f"a:{index}", "text": f"number {index}", "label": index % 2, "json": facts, **score}

    def fingerprint(self) -> str:
        return f"{self.size:032x}"


def kept(subset: Subset, source: Any = None) -> list[int]:
    selected = select(Numbered() if source is None else source, subset)
    assert isinstance(selected, SelectedExamples)
    return selected.rows.tolist()


def write(path: Path, keys: list[str]) -> Path:
    match path.suffix:
        case ".txt":
            path.write_text("".join(f"{key}\n" for key in keys))
        case ".jsonl":
            path.write_text("".join(f'"{key}"\n' for key in keys))
        case ".npy":
            np.save(path, np.array(keys))
        case ".parquet":
            pq.write_table(pa.table({"other": [1] * len(keys), "key": keys}), path)
    return path


@pytest.mark.parametrize("ending", ["txt", "jsonl", "npy", "parquet"])
def test_keys_keep_the_examples_they_name_in_the_order_of_the_source(ending: str, tmp_path: Path) -> None:
    rows = [4321, 17, 0, 250, 17]
    file = write(tmp_path / f"keys.{ending}", [f"a:{row}" for row in rows])
    assert kept(Subset(keys=str(file))) == [0, 17, 250, 4321]


def test_uids_of_datacomp_are_pairs_of_u64(tmp_path: Path) -> None:
    uids = [f"{row:032x}" for row in (3, 4, 2500)] + ["f" * 32]
    pairs = [(int(uid[:16], 16), int(uid[16:], 16)) for uid in uids]
    np.save(tmp_path / "uids.npy", np.array(pairs, dtype="u8,u8"))
    selected = select(Numbered(), Subset(keys=str(tmp_path / "uids.npy"), by="json.uid"))
    assert isinstance(selected, SelectedExamples)
    assert selected.rows.tolist() == [3, 4, 2500]
    assert any("1 of 4 keys in" in note for note in selected.notes)


@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=4)), st.lists(st.text(max_size=4)))
def test_a_key_is_found_where_it_stands_first(keys: list[str], others: list[str]) -> None:
    index = KeyIndex(keys)
    assert [index.find(key) for key in keys + others] == [keys.index(key) if key in keys else -1 for key in keys + others]
    assert index.distinct == len(set(keys))


def test_a_condition_keeps_what_it_holds_for_and_counts_the_rest() -> None:
    selected = select(Numbered(), Subset(where="json.width > 100 and not json.wide and label in (1, 3)"))
    assert isinstance(selected, SelectedExamples)
    assert selected.rows.tolist() == [i for i in range(101, 5000) if i % 10 != 9 and i % 7 and i % 2]
    told = "\n".join(selected.notes)
    assert f"{len(selected):,} of 5,000 examples are in the subset" in told
    assert "500 are left out: torn" in told
    assert f"{len([i for i in range(0, 5000, 7) if i % 10 != 9]):,} are left out: no json.width" in told
    left = [int(line.split(" ")[0].replace(",", "")) for line in selected.notes[1:]]
    assert sum(left) + len(selected) == 5000


def test_the_best_by_a_field_are_a_share_of_the_whole_source() -> None:
    rows = kept(Subset(best=("score", 0.1)))
    scores = {i: (i * 37 % 101) / 101 for i in range(5000) if i % 10 != 9 and i % 3}
    assert len(rows) == 500
    assert min(scores[i] for i in rows) >= max(scores[i] for i in scores.keys() - set(rows))
    both = kept(Subset(best=("score", 0.1), where="label == 1"))
    assert both == [i for i in rows if i % 2]


@given(st.lists(st.sampled_from([0.0, 1.0, 2.0, math.nan, -math.inf]), min_size=1), st.floats(0.01, 1))
def test_of_equal_scores_the_first_are_the_best_and_nan_is_none(scores: list[float], share: float) -> None:
    best = highest(np.array(scores), share)
    numbers = [i for i, score in enumerate(scores) if not math.isnan(score)]
    assert np.flatnonzero(best).tolist() == sorted(sorted(numbers, key=lambda i: -scores[i])[: round(share * len(scores))])


def test_a_table_gives_further_fields_by_key(tmp_path: Path) -> None:
    rows = list(range(0, 5000, 2))
    table = pa.table({"key": [f"a:{row}" for row in reversed(rows)], "good": [row / 5000 for row in reversed(rows)]})
    pq.write_table(table, tmp_path / "t.parquet")
    subset = Subset(table=str(tmp_path / "t.parquet"), where="good >= 0.5 and label == 0")
    assert kept(subset) == [row for row in range(2500, 5000, 2) if row % 10 != 9]
    assert len(kept(Subset(table=subset.table, best=("good", 0.01)))) == 50


FIELDS = {"a": 3, "b": 0.5, "flag": True, "name": "red cat", "inner": SimpleNamespace(n=7)}
NUMBERS = st.sampled_from(["a", "b", "inner.n", "2", "-1", "0.25", "len(name)", "words(name)", "abs(-a)", "max(a, inner.n)"])
TERMS = st.recursive(
    NUMBERS,
    lambda inner: st.tuples(inner, st.sampled_from(["+", "-", "*", "/", "//", "%"]), inner).map(lambda t: f"({' '.join(t)})"),
)
TRUTHS = st.recursive(
    st.one_of(
        st.tuples(TERMS, st.sampled_from(["<", "<=", ">", ">=", "==", "!="]), TERMS).map(" ".join),
        st.tuples(TERMS, TERMS, TERMS).map("{0[0]} < {0[1]} <= {0[2]}".format),
        st.sampled_from(["flag", "not flag", "'cat' in name", "name == 'red'", "a in (1, 3)", "'x' not in lower(name)"]),
    ),
    lambda inner: st.tuples(inner, st.sampled_from(["and", "or"]), inner).map(lambda t: f"({' '.join(t)})"),
)


@given(TRUTHS)
def test_a_condition_means_what_python_means(text: str) -> None:
    def get(path: str) -> Any:
        return getattr(FIELDS["inner"], "n") if path == "inner.n" else FIELDS[path]  # noqa: B009

    names = {**FIELDS, "words": lambda value: len(value.split()), "lower": str.lower}
    condition = parse_condition(f"has(a) and ({text})")
    try:
        expected = eval(text, {}, names)
    except ZeroDivisionError:
        with pytest.raises(CannotSay):
            condition(get)
    else:
        assert condition(get) == expected


@pytest.mark.parametrize(
    "text",
    ["", "3 > 2", "x is 3", "x **3 > 1", "open('f')", "a[0] > 1", "lambda: a", "(a := 3)", "f'{a}' == 'b'", "a if b else c",
     "min(a) > 1", "len(a, b) > 1", "has(3)", "field(a) > 1", "a >", "a > 1; b", "[x for x in a]", "a.b().c > 1", "x" * 20_000,
     "(" * 500 + "a" + ")" * 500, "len(*a) > 1", "a == None", "b'x' == a"],
)  # fmt: skip
def test_what_is_no_condition_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_condition(text)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize(
    ("text", "why"),
    [("json.height > 3", "no json.height"), ("json.width > 'x'", "not supported"), ("json.width", "neither true nor false"),
     ("json.wide and label", "neither true nor false"), ("text * 2 == 'aa'", "no number"), ("len(label) > 2", "no len")],
)  # fmt: skip
def test_a_condition_that_says_nothing_of_any_example_is_refused(text: str, why: str) -> None:
    with pytest.raises(SourceError, match=why):
        select(Numbered(), Subset(where=text))


def test_a_text_is_never_compared_with_a_number_and_nan_is_missing() -> None:
    values = {"text": "3", "nan": math.nan, "list": [1, 2], "flag": True}
    for text in ("text != 3", "text == 3", "3 in (text, 4)", "list == 3", "flag == 1", "list != 1", "not nan < 3", "nan == nan"):
        with pytest.raises(CannotSay):
            parse_condition(text)(values.__getitem__)
    assert parse_condition("number(text) == 3 and 2 in list and not has(nan)")(values.__getitem__)


def test_what_cannot_be_read_for_now_decides_no_subset() -> None:
    class Away(Numbered):
        def __getitem__(self, index: int) -> dict[str, Any]:
            if index == 70:
                raise Unreachable("its shard does not answer")
            return super().__getitem__(index)

    for subset in (Subset(where="label == 1"), Subset(best=("score", 0.5))):
        with pytest.raises(SourceError, match="not all examples can be read: its shard does not answer"):
            select(Away(), subset)


def test_a_score_beyond_all_numbers_is_none() -> None:
    class Huge(Numbered):
        def __getitem__(self, index: int) -> dict[str, Any]:
            return {"key": str(index), "score": 10**400 if index == 2 else index}

    assert kept(Subset(best=("score", 0.4)), Huge(5)) == [3, 4]


def test_what_a_part_lacks_is_reported_as_that_of_its_source(tmp_path: Path) -> None:
    samples = {f"{i:03}": {"txt": b"a", **({"jpg": b"x"} if i % 2 else {})} for i in range(30)}
    members = [(f"{key}.{ending}", content) for key, fields in samples.items() for ending, content in fields.items()]
    write_tar(tmp_path / "a.tar", members)
    selected = select(open_source(f"webdataset:{tmp_path}/a.tar"), Subset(where="text == 'a'"))
    assert isinstance(selected, SelectedExamples)
    assert selected.fields == {"text": 15, "text image": 15}
    assert any("15 of 30 examples have no image" in line for line in shortcomings(selected, {"image": "image"}))


def test_has_asks_whether_a_field_is_there_and_field_names_one_that_is_no_word() -> None:
    assert kept(Subset(where="not has(json.width)")) == [i for i in range(0, 5000, 7) if i % 10 != 9]
    get = {"clip-score": 0.4}.__getitem__
    assert parse_condition('field("clip-score") > 0.3')(get)
    assert parse_condition('field("clip-score") > 0.3').paths == ("clip-score",)


def refuse(path: Path, content: bytes | None, **more: str) -> str:
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SourceError) as error:
        select(Numbered(), Subset(**{"keys": str(path), **more}))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_files_of_keys_that_are_none_are_refused_by_name(tmp_path: Path) -> None:
    assert "cannot be read" in refuse(tmp_path / "none.txt", None)
    assert "nothing is left" in refuse(tmp_path / "other.txt", b"b:1\nb:2\n")
    assert "blank" in refuse(tmp_path / "hole.txt", b"a:1\n\na:2\n")
    assert "no text: 3" in refuse(tmp_path / "number.jsonl", b'"a:1"\n3\n')
    assert "cannot be read" in refuse(tmp_path / "torn.jsonl", b'"a:1"\n"a')
    assert "cannot be read" in refuse(tmp_path / "torn.npy", b"\x93NUMPY")
    assert "cannot be read" in refuse(tmp_path / "torn.parquet", b"PAR1 PAR1")
    np.save(tmp_path / "floats.npy", np.zeros(3))
    assert "neither texts nor uids" in refuse(tmp_path / "floats.npy", None)
    np.save(tmp_path / "objects.npy", np.array(["a:1", None], object), allow_pickle=True)
    assert "cannot be read" in refuse(tmp_path / "objects.npy", None)
    pq.write_table(pa.table({"key": ["a:1", None]}), tmp_path / "null.parquet")
    assert "no text: None" in refuse(tmp_path / "null.parquet", None)
    pq.write_table(pa.table({"uid": ["a:1"]}), tmp_path / "uid.parquet")
    assert "no column key" in refuse(tmp_path / "uid.parquet", None)
    os.mkfifo(tmp_path / "pipe.npy")
    assert "no regular file" in refuse(tmp_path / "pipe.npy", None)


def test_tables_that_are_none_are_refused_by_name(tmp_path: Path) -> None:
    def why(columns: dict[str, Any], where: str = "good > 0") -> str:
        pq.write_table(pa.table(columns), tmp_path / "t.parquet")
        with pytest.raises(SourceError) as error:
            select(Numbered(), Subset(table=str(tmp_path / "t.parquet"), where=where))
        return str(error.value)

    assert "no column key" in why({"good": [1]})
    assert "none of the columns good" in why({"key": ["a:1"], "bad": [1]})
    assert "a key twice" in why({"key": ["a:1", "a:1"], "good": [1, 2]})
    assert "has no row of it" in why({"key": ["b:1"], "good": [1]})
    assert "a field is null" in why({"key": [f"a:{i}" for i in range(5000)], "good": pa.nulls(5000, pa.int64())})


@pytest.mark.parametrize(
    ("subset", "why"),
    [
        (Subset(keys="a.csv"), ".keys"),
        (Subset(by="json.uid"), ".by"),
        (Subset(table="t.parquet"), ".table"),
        (Subset(table="t.csv", where="a > 1"), ".table"),
        (Subset(where="a >"), ".where"),
        (Subset(best=("", 0.5)), ".best"),
        (Subset(best=("a", 1.5)), "best"),
    ],
)
def test_contradictions_are_refused(subset: Subset, why: str) -> None:
    with pytest.raises(ConfigError, match=f"data.subset{why}" if why[0] == "." else why):
        check(tiny_config(**{"data.subset": subset}), devices=8)
    with pytest.raises(ConfigError, match="sources\\.a\\.subset"):
        check(tiny_config(**{"data": Data(sources={"a": Portion(SHAPES, subset=subset)})}), devices=8)


def test_a_subset_beside_sources_is_refused() -> None:
    data = Data(sources={"a": Portion(SHAPES)}, subset=Subset(where="label > 1"))
    with pytest.raises(ConfigError, match="give each its own"):
        check(tiny_config(data=data), devices=8)


def test_a_saved_configuration_keeps_its_subset() -> None:
    config = tiny_config(**{"data.subset": Subset(keys="a.npy", by="json.uid", where="a > 1", best=("s", 0.3))})
    assert from_json(to_saved(config)) == config
    old = to_saved(tiny_config())
    del old["data"]["subset"]
    assert isinstance(upgraded := from_json(old), Config)
    assert upgraded.data.subset == Subset()


def test_fingerprints_differ_as_the_chosen_examples_do() -> None:
    digests = {
        select(Numbered(), subset).fingerprint() for subset in (Subset(), Subset(where="label == 1"), Subset(where="label == 0"))
    }
    assert len(digests) == 3
    assert select(Numbered(), Subset(where="label == 1")).fingerprint() in digests


def test_batches_of_a_subset_are_the_same_on_several_hosts() -> None:
    selected = select(open_source(SHAPES), Subset(where="label < 20"))
    assert isinstance(selected, SelectedExamples)
    assert pickle.loads(pickle.dumps(selected)).rows.tolist() == selected.rows.tolist()
    assert selected.classes == open_source(SHAPES).classes
    assert not selected.waits
    distant = Numbered()
    distant.waits = True  # type: ignore[attr-defined]
    assert select(distant, Subset(where="label == 1")).waits  # type: ignore[attr-defined]

    def keys(hosts: int) -> list[list[str]]:
        steps: list[list[str]] = [[], [], []]
        for host in range(hosts):
            loader = make_loader(selected, {"label": number}, batch_size=8, seed=1, host=host, hosts=hosts)
            with loader:
                for step in steps:
                    step += next(loader).keys
        return steps

    assert [sorted(step) for step in keys(1)] == [sorted(step) for step in keys(2)] == [sorted(step) for step in keys(4)]


def number(value: int, rng: Any = None) -> np.ndarray[Any, Any]:
    return np.array(value)


def test_a_run_has_its_subset_and_says_so() -> None:
    config = tiny_config(**{"data.subset": Subset(where="label < 20"), "evals": {}, "checkpoint.best": None})
    (part,) = prepare(config, devices=8)
    source = part.data.source
    assert len(source) == sum(open_source(SHAPES)[i]["label"] < 20 for i in range(200)) == part.record["data"]["examples"]
    assert shortcomings(source, {"text": "text"})[0] == f"{len(source)} of 200 examples are in the subset"
    sources = {"a": Portion(SHAPES, subset=config.data.subset)}
    mixed = prepare(dataclasses.replace(config, data=Data(sources=sources)), devices=8)[0].data.source
    assert len(mixed) == len(source)
    assert shortcomings(mixed, {"text": "text"})[0] == f"a: {len(source)} of 200 examples are in the subset"


def test_commands_take_a_part_of_a_source(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["data", SHAPES, "--where", "label >= 20", "--best", "label", "0.5"]) == 0
    told = capsys.readouterr().out
    assert "of 200 examples are in the subset" in told
    part = ["--where", "label < 20", "--per-shard", "50"]
    assert cli.main(["pack", SHAPES, str(tmp_path / "packed"), *part]) == 0
    packed = open_source(capsys.readouterr().out.strip())
    assert 0 < len(packed) < 200
    assert cli.main(["data", str(tmp_path / "packed" / "train")]) == 0  # by the name of the folder
    assert f"{len(packed)} examples" in capsys.readouterr().out
    assert cli.main(["data", SHAPES, "--where", "label <"]) == 1
    assert "data: --where: condition" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["data", SHAPES, "--best", "label", "2"])
    assert "above 0 and at most 1" in capsys.readouterr().err
