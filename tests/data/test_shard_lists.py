"""Lists of shards of wids and Energon: the examples of a pattern, in the list's order, and no lie of a list goes through."""

import json
from pathlib import Path
from typing import Any

import pytest
from archives import write_tar

from jclip.data import SourceError, open_source
from jclip.data.webdataset import WebDataset

NAMES = [f"shards/{i}.tar" for i in range(3)]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three shards of 2, 3 and 4 samples in a folder, and another beside it."""
    (tmp_path / "set/shards").mkdir(parents=True)
    for i, name in enumerate(NAMES):
        write_tar(tmp_path / "set" / name, {f"{i}{j}.txt": f"{i}{j}\nmore".encode() for j in range(2 + i)})
    write_tar(tmp_path / "other.tar", {"a.txt": b"a"})
    return tmp_path / "set"


def wids(root: Path, rows: Any, **more: Any) -> str:
    (root / "index.json").write_text(json.dumps({"wids_version": 1, "shardlist": rows, **more}))
    return f"webdataset:{root}/index.json"


def rows(*numbers: int) -> list[dict[str, Any]]:
    return [{"url": NAMES[i], "nsamples": 2 + i} for i in numbers]


def energon(root: Path, split: str = "", counts: Any = None, yaml: bool = True) -> str:
    """The files that `energon prepare` writes, as YAML of its older versions or as JSON."""
    meta = root / ".nv-meta"
    meta.mkdir(exist_ok=True)
    counts = {name: 2 + i for i, name in enumerate(NAMES)} if counts is None else counts
    if yaml:
        lines = "".join(f"  {name}: {count}\n" for name, count in counts.items())
        (meta / ".info.yaml").write_text(f"shard_counts:\n{lines}")
    else:
        (meta / ".info.json").write_text(json.dumps({"energon_version": "7.0", "shard_counts": counts}))
    usual = "exclude: []\nsplit_parts:\n  train:\n  - shards/{1..2}.tar\n  val:\n  - shards/0.tar\n  test: []\n"
    (meta / "split.yaml").write_text(split or usual)
    return f"webdataset:{root}"


def texts(spec: str) -> list[str]:
    source = open_source(spec)
    return [source[i]["text"].split("\n")[0] for i in range(len(source))]


def test_a_list_of_wids_gives_its_shards_in_its_order(root: Path) -> None:
    spec = wids(root, rows(2, 0))
    assert texts(spec) == ["20", "21", "22", "23", "00", "01"]
    assert open_source(f"{spec}?captions=lines")[0]["captions"] == ("20", "more")
    based = wids(root, [{"url": "1.tar", "nsamples": 3}], base_path="shards", name="mine", description="ours")
    assert texts(based) == ["10", "11", "12"]
    assert texts(wids(root, [{"url": f"{root}/shards/1.tar", "nsamples": 3, "filesize": 1}])) == ["10", "11", "12"]
    whole = open_source(wids(root, rows(0, 1, 2)))
    pattern = open_source(f"webdataset:{root}/shards/*.tar")
    assert [whole[i]["key"] for i in range(9)] == [pattern[i]["key"] for i in range(9)]
    assert whole.fingerprint() == pattern.fingerprint()


@pytest.mark.parametrize("yaml", [True, False])
def test_energons_files_give_the_shards_of_a_split(root: Path, yaml: bool) -> None:
    spec = energon(root, yaml=yaml)
    assert texts(f"{spec}?split=train") == ["10", "11", "12", "20", "21", "22", "23"]
    assert texts(f"{spec}/.nv-meta?split=val") == ["00", "01"]
    assert open_source(f"{spec}/?split=val&captions=lines")[1]["captions"] == ("01", "more")
    excluded = energon(root, "split_parts: {train: ['shards/{0..2}.tar']}\nexclude: ['shards/{0,2}.tar']", yaml=yaml)
    assert texts(excluded) == ["10", "11", "12"]  # the only split needs no name


def test_a_file_of_splits_as_json_is_read(root: Path) -> None:
    spec = energon(root, yaml=False)
    (root / ".nv-meta/split.yaml").unlink()
    (root / ".nv-meta/split.json").write_text(json.dumps({"split_parts": {"train": [NAMES[0]]}}))
    assert texts(spec) == ["00", "01"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([{"url": "../other.tar", "nsamples": 1}], r"its shard '\.\./other\.tar' lies outside .*/set"),
        ([{"url": "/etc/passwd", "nsamples": 1}], r"'/etc/passwd' lies outside"),
        ([{"url": "shards/../../set2/a.tar", "nsamples": 1}], "lies outside"),
        ([{"url": "https://u:secret@h/a.tar", "nsamples": 1}], r"names 'https://h/a\.tar'; paths below its folder are read"),
        ([{"url": "pipe:cat /etc/passwd", "nsamples": 1}], "names 'pipe:cat"),
        ([{"url": "shards/0.tar\0", "nsamples": 1}], "lies outside"),
        ([{"url": "shards/9.tar", "nsamples": 1}], r"there is no file '.*shards/9\.tar'"),
        ([{"url": "index.json", "nsamples": 1}], r"names 'index\.json', which is no \.tar"),
        ([{"url": "shards/0.tar", "nsamples": -2}], r"'shards/0\.tar' has '-2' samples"),
        ([{"url": "shards/0.tar", "nsamples": True}], "has 'True' samples"),
        ([{"url": "shards/0.tar", "nsamples": 2.0}], r"has '2\.0' samples"),
        ([{"url": "shards/0.tar"}], "has 'None' samples"),
        ([{"url": "shards/0.tar", "nsamples": 3}], r"0\.tar has 2 samples, and the list says 3; write the list anew"),
        ([*rows(0), *rows(0)], r"names 'shards/0\.tar' 2 times"),
        ([*rows(0), {"url": "shards/./0.tar", "nsamples": 2}], "two of its names are those of one file"),
        ([], "it names no shard"),
        (["shards/0.tar"], "entry 0 of its shardlist has no url"),
        ({"a": 1}, "its shardlist has to be a list"),
    ],
)
def test_what_a_list_must_not_say_is_refused(root: Path, content: Any, message: str) -> None:
    with pytest.raises(SourceError, match=message) as refused:
        open_source(wids(root, content))
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"wids_version": 2}, "its wids_version is 2, and 1 is read"),
        ({"datasets": [{"source_url": "http://h/x.json"}]}, r"it lists data sets, .* make a mixture"),
        ({"base_path": "/"}, "lies outside"),
        ({"base_path": 3}, "base_path a path"),
    ],
)
def test_what_is_not_done_with_a_list_of_wids_is_said(root: Path, more: dict[str, Any], message: str) -> None:
    with pytest.raises(SourceError, match=message):
        open_source(wids(root, rows(0), **more))


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("split_parts: {train: [shards/0.tar], val: [shards/1.tar]}", r"add \?split=NAME; split\.yaml has train, val"),
        ("split_parts: {train: []}", r"split\.yaml has none"),
        ("split_parts: {train: [shards/9.tar]}", r"names 'shards/9\.tar', which \.info\.yaml does not count"),
        ("split_parts: {train: [shards/0.tar]}\nexclude: [shards/0.tar/00]", "excludes 'shards/0.tar/00', which is no shard"),
        ("split_parts: {train: [shards/0.tar]}\nexclude: [shards/0.tar]", "it names no shard"),
        ("split_parts: {train: 'shards/{0..999999999}.tar'}", "where a list of shards belongs"),
        ("split_parts: {train: ['shards/{0..999999999}.tar']}", "at most 1,000,000 can be"),
        ("split_parts: [train]", r"split\.yaml has .* where names and their values belong"),
        ("split_parts: {train: [!!python/object/apply:os.system ['touch /tmp/owned']]}", "cannot be parsed: could not determine"),
        ("split_parts: {train: [", "cannot be parsed"),
        ("[" * 100_000, "cannot be parsed"),
        ("\0", "cannot be parsed"),
        ("a: &a [x, x]\nb: &b [*a, *a]\nsplit_parts: {train: *b}", "cannot be parsed: it has aliases"),
    ],
)
def test_what_energons_files_must_not_say_is_refused(root: Path, split: str, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        open_source(energon(root, split))


def test_missing_files_and_other_splits_are_named(root: Path) -> None:
    spec = energon(root)
    with pytest.raises(SourceError, match=r"there is no split 'dev' with shards; split\.yaml has train, val"):
        open_source(f"{spec}?split=dev")
    with pytest.raises(SourceError, match="there is no split 'test' with shards"):
        open_source(f"{spec}?split=test")
    with pytest.raises(SourceError, match=r"the option 'part' is unknown; use split, captions"):
        open_source(f"{spec}?part=train")
    with pytest.raises(SourceError, match="captions=rows is unknown"):
        open_source(f"{spec}?split=val&captions=rows")
    (root / ".nv-meta/.info.yaml").unlink()
    with pytest.raises(SourceError, match=r"\.nv-meta has no \.info\.json or \.info\.yaml; run `energon prepare`"):
        open_source(f"{spec}?split=val")
    with pytest.raises(SourceError, match=r"none\.json cannot be read: No such file"):
        open_source(f"webdataset:{root}/none.json")
    with pytest.raises(SourceError, match="a list of wids has no splits"):
        open_source(f"{wids(root, rows(0))}?split=train")
    with pytest.raises(SourceError, match="lists of shards are read from files"):
        open_source("webdataset:https://localhost:1/index.json")


def test_counts_of_a_split_are_checked_and_a_shard_that_was_cut_is_refused(root: Path) -> None:
    spec = energon(root, counts=dict.fromkeys(NAMES, 2))
    assert texts(f"{spec}?split=val") == ["00", "01"]
    with pytest.raises(SourceError, match=r"1\.tar has 3 samples, and the list says 2; .*2\.tar has 4 samples"):
        open_source(f"{spec}?split=train")
    path = root / NAMES[1]
    path.write_bytes(path.read_bytes()[:1500])
    with pytest.raises(SourceError, match=r"1\.tar: cut short or corrupt .*; get this file again"):
        open_source(f"{energon(root)}?split=train")
    path.write_bytes(b"no tar" * 1000)
    with pytest.raises(SourceError, match=r"1\.tar: .*; get this file again"):
        open_source(f"{energon(root)}?split=train")


def test_folders_of_shards_without_a_list_are_reported_as_before(root: Path) -> None:
    with pytest.raises(SourceError, match="is a folder; name its files"):
        open_source(f"webdataset:{root}/shards")
    assert isinstance(open_source(f"webdataset:{root}/shards/?.tar"), WebDataset)


def test_a_small_list_that_would_be_a_huge_one_is_refused_at_once(root: Path) -> None:
    spec = energon(root)
    info, split = root / ".nv-meta/.info.yaml", root / ".nv-meta/split.yaml"
    bomb = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 11))
    info.write_text(f"{bomb}shard_counts: *a10\n")
    with pytest.raises(SourceError, match="cannot be parsed: it has aliases"):
        open_source(spec)
    info.write_text(f"shard_counts:\n  a.tar: 0x1{'0' * 6000}\n")
    with pytest.raises(SourceError, match=r"'a\.tar' has something of type int samples; write a number from 0 on"):
        open_source(spec)
    energon(root)
    split.write_text("split_parts:\n  train:\n" + "".join(f"  - s{i}-{{000000..999999}}.tar\n" for i in range(40)))
    with pytest.raises(SourceError, match=r"split\.yaml names more than 1,000,000 shards"):
        open_source(spec)
