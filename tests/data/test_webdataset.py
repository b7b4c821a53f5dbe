"""The source webdataset: shards with everything that is wrong with shards."""

import gzip
import io
import json
import logging
import os
import pickle
import subprocess
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from archives import write_tar as write

from jclip.data import BadExample, SourceError, lookup, open_source
from jclip.data.tar_headers import CompressedTar, NotTar, list_members
from jclip.data.tar_index import read_index
from jclip.data.webdataset import expand


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("JCLIP_CACHE", str(path))
    return path


def shard(path: Path, names: list[str]) -> Path:
    return write(path, {f"{name}.{kind}": f"{kind} of {name}".encode() for name in names for kind in ("jpg", "txt")})


def test_members_become_fields_of_samples(tmp_path: Path) -> None:
    members = {
        "a/1.jpg": b"j",
        "a/1.txt": "é".encode(),
        "a/1.json": b'{"x": {"y": 2}}',
        "a/1.cls": b" 7\n",
        "a/1.depth.PNG": b"d",
    }
    write(tmp_path / "s.tar", {**members, "b/1.png": b"p", "README": b"none", ".hidden": b"none"})
    source = open_source(f"webdataset:{tmp_path}/s.tar")
    assert len(source) == 2
    assert dict(source[0]) == {
        "key": "s.tar:a/1", "image": b"j", "text": "é", "json": {"x": {"y": 2}}, "label": 7, "depth.png": b"d"
    }  # fmt: skip
    assert lookup(source[0], "json.x.y") == 2
    assert lookup(source[0], "depth.png") == b"d"
    assert dict(source[1]) == {"key": "s.tar:b/1", "image": b"p"}
    assert source.classes == ()


def test_members_of_a_sample_need_not_be_neighbours(tmp_path: Path) -> None:
    write(tmp_path / "s.tar", {"1.jpg": b"a", "2.jpg": b"b", "1.txt": b"A", "2.txt": b"B"})
    source = open_source(f"webdataset:{tmp_path}/s.tar")
    assert [(e["image"], e["text"]) for e in map(source.__getitem__, range(2))] == [(b"a", "A"), (b"b", "B")]


def test_a_name_that_comes_twice_is_two_samples_with_two_keys(tmp_path: Path) -> None:
    write(
        tmp_path / "s.tar", [("1.jpg", b"a"), ("1.txt", b"A"), ("1.jpg", b"b"), ("1.txt", b"B"), ("1.jpg", b"c"), ("1.txt", b"C")]
    )
    source = open_source(f"webdataset:{tmp_path}/s.tar")
    assert [(e["key"], e["image"], e["text"]) for e in map(source.__getitem__, range(3))] == [
        ("s.tar:1", b"a", "A"), ("s.tar:1#2", b"b", "B"), ("s.tar:1#3", b"c", "C")
    ]  # fmt: skip


def test_a_broken_field_does_not_spoil_the_others(tmp_path: Path) -> None:
    write(tmp_path / "s.tar", {"1.jpg": b"j", "1.txt": b"\xff", "1.json": b"{", "1.cls": b"cat"})
    example = open_source(f"webdataset:{tmp_path}/s.tar")[0]
    assert example["image"] == b"j"
    for field, message in (("text", "not UTF-8"), ("json", "cannot be parsed"), ("label", "not a whole number: b'cat'")):
        with pytest.raises(BadExample, match=message):
            example[field]


def test_json_nested_too_deep_is_a_bad_example(tmp_path: Path) -> None:
    write(tmp_path / "s.tar", {"1.json": b"[" * 1_000_000})
    with pytest.raises(BadExample, match="cannot be parsed"):
        open_source(f"webdataset:{tmp_path}/s.tar")[0]["json"]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_tar_format_is_listed_as_tarfile_lists_it(tmp_path: Path, form: int) -> None:
    names = ["a.jpg", "dir/b.jpg", "d" * 90 + "/" + "e" * 90 + ".jpg"]
    if form != tarfile.USTAR_FORMAT:
        names += ["ü" * 60 + "日本.jpg", "x" * 300 + ".jpg", "y" * 4000 + "/z.jpg"]
    path = tmp_path / "s.tar"
    with tarfile.open(path, "w", format=form, pax_headers={"comment": "ä"}) as tar:
        for i, name in enumerate(names):
            info = tarfile.TarInfo(name)
            info.size = 400 * i + 1
            tar.addfile(info, io.BytesIO(bytes(info.size)))
        for kind in (tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE):
            info = tarfile.TarInfo("other.jpg")
            info.type, info.linkname = kind, "a.jpg"
            tar.addfile(info)
    with tarfile.open(path) as tar:
        expected = [(member.name, member.offset_data, member.size) for member in tar if member.isreg()]
    assert [(m.name, m.offset, m.size) for m in list_members(str(path)).members] == expected
    assert len(expected) == len(names)


def test_sparse_members_are_left_out(tmp_path: Path) -> None:
    done = subprocess.run(
        "truncate -s 3M sparse.jpg && echo x >> sparse.jpg && echo y > after.jpg && "
        "tar -S --format=gnu -cf gnu.tar sparse.jpg after.jpg && tar -S --format=pax -cf pax.tar sparse.jpg after.jpg",
        shell=True, cwd=tmp_path, capture_output=True, check=False,
    )  # fmt: skip
    if done.returncode:
        pytest.skip("needs GNU tar")
    for name in ("gnu.tar", "pax.tar"):
        listing = list_members(str(tmp_path / name))
        assert [member.name for member in listing.members] == ["after.jpg"]
        assert listing.cut == -1


@pytest.mark.parametrize("length", range(0, 5121, 333))
def test_samples_before_a_cut_are_used_and_the_cut_is_reported(
    tmp_path: Path, length: int, caplog: pytest.LogCaptureFixture
) -> None:
    whole = shard(tmp_path / "whole.tar", ["1", "2"]).read_bytes()
    shard(tmp_path / "a.tar", ["0"])
    (tmp_path / "b.tar").write_bytes(whole[:length])
    with caplog.at_level(logging.WARNING, "jclip.data"):
        source = open_source(f"webdataset:{tmp_path}/[ab].tar")
    ends = [512 * 4 * sample for sample in (1, 2)]  # each member is a header and a block
    assert len(source) >= 1 + sum(length >= end for end in ends)
    for i in range(1 + sum(length >= end for end in ends)):
        assert source[i]["text"] == f"txt of {i}"
    if length < 4096 + 512:
        assert [text.split(":")[0] for text in (*source.cut_shards, *source.skipped_shards)] == [f"{tmp_path}/b.tar"]
        assert "b.tar" in caplog.text
    assert all(len(dict(source[i])) > 0 for i in range(len(source)))


def test_the_sample_within_which_a_shard_is_cut_is_lost_whole(tmp_path: Path) -> None:
    path = shard(tmp_path / "s.tar", ["1", "2"])
    path.write_bytes(path.read_bytes()[: 2048 + 1024 + 512 + 4])  # within the text of 2
    source = open_source(f"webdataset:{path}")
    assert [source[i]["key"] for i in range(len(source))] == ["s.tar:1"]
    assert "3072 bytes" in source.cut_shards[0]


def test_a_corrupt_header_ends_a_shard(tmp_path: Path) -> None:
    data = bytearray(shard(tmp_path / "s.tar", ["1", "2", "3"]).read_bytes())
    data[4096 + 20] ^= 0xFF
    (tmp_path / "s.tar").write_bytes(data)
    source = open_source(f"webdataset:{tmp_path}/s.tar")
    assert [source[i]["key"] for i in range(len(source))] == ["s.tar:1", "s.tar:2"]
    assert "4096 bytes" in source.cut_shards[0]


def test_random_bytes_never_raise_anything_but_not_tar(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    whole = shard(tmp_path / "whole.tar", ["1", "2", "x" * 200]).read_bytes()[:8192]
    for _ in range(300):
        data = bytearray(whole)
        for place in rng.integers(0, len(data), 3):
            data[place] = int(rng.integers(256))
        header = bytearray(data[:512])
        header[148:156] = b" " * 8
        data[148:156] = b"%06o\0 " % sum(header)
        (tmp_path / "r.tar").write_bytes(data[: int(rng.integers(1, len(data)))])
        try:
            listing = list_members(str(tmp_path / "r.tar"))
        except NotTar:
            continue
        size = (tmp_path / "r.tar").stat().st_size
        assert all(member.offset + member.size <= size for member in listing.members)


def test_shards_that_are_no_tar_are_skipped_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shard(tmp_path / "1.tar", ["a"])
    (tmp_path / "2.tar").write_text("no tar " * 500)
    write(tmp_path / "3.tar", {})
    with caplog.at_level(logging.WARNING, "jclip.data"):
        source = open_source(f"webdataset:{tmp_path}/{{1..3}}.tar")
    assert len(source) == 1
    assert len(source.skipped_shards) == 1
    assert "2.tar: it is not a tar" in source.skipped_shards[0]
    assert "3.tar has no samples" in caplog.text


def test_errors_say_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "text.tar").write_text("no tar " * 500)
    write(tmp_path / "empty.tar", {})
    whole = shard(tmp_path / "whole.tar", ["a"]).read_bytes()
    (tmp_path / "packed.tar.gz").write_bytes(gzip.compress(whole))
    for pattern, message in (
        ("text.tar", "no sample in 1 files: .*text.tar: it is not a tar"),
        ("empty.tar", "no sample in 1 files: all are empty"),
        ("packed.tar.gz", r"packed.tar.gz: it is compressed \(gzip\).*unpack"),
        ("missing.tar", "there is no file '.*missing.tar'"),
        ("missing-*.tar", "no file matches"),
        ("whole{0..3}.tar", "there is no file '.*whole0.tar'"),
        ("{3..1}.tar", r"write \{1\.\.3\}"),
        ("", "there is no file"),
        (".", "is a folder"),
    ):
        with pytest.raises(SourceError, match=message):
            open_source(f"webdataset:{tmp_path}/{pattern}" if pattern else "webdataset:")
    with pytest.raises(CompressedTar):
        list_members(str(tmp_path / "packed.tar.gz"))


def test_patterns_name_sorted_files_once(tmp_path: Path) -> None:
    for name in ("a-08.tar", "a-09.tar", "a-10.tar", "b.tar", "a{1}.tar"):
        (tmp_path / name).touch()
    names = lambda pattern: [os.path.basename(path) for path in expand(f"{tmp_path}/{pattern}")]  # noqa: E731
    assert names("a-{08..10}.tar") == ["a-08.tar", "a-09.tar", "a-10.tar"]
    assert names("{b,a-08}.tar") == ["a-08.tar", "b.tar"]
    assert names("a-*.tar") == ["a-08.tar", "a-09.tar", "a-10.tar"]
    assert names("{a-0*,a-*}.tar") == ["a-08.tar", "a-09.tar", "a-10.tar"]
    assert names("a-[01][89].tar") == ["a-08.tar", "a-09.tar"]


def test_shards_of_one_name_in_two_folders_have_different_keys(tmp_path: Path) -> None:
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        shard(tmp_path / folder / "s.tar", ["1"])
    source = open_source(f"webdataset:{tmp_path}/*/s.tar")
    assert [source[i]["key"] for i in range(2)] == ["x/s.tar:1", "y/s.tar:1"]


def test_the_index_is_read_again_and_rebuilt_when_the_shard_changes(tmp_path: Path, cache: Path) -> None:
    path = shard(tmp_path / "s.tar", ["1", "2"])
    assert len(open_source(f"webdataset:{path}")) == 2
    (file,) = (cache / "index").iterdir()
    written = file.stat().st_mtime_ns
    source = open_source(f"webdataset:{path}")
    assert source[1]["text"] == "txt of 2"
    assert file.stat().st_mtime_ns == written
    assert isinstance(read_index(str(path)).data.base, np.memmap)
    shard(path, ["3", "4"])  # of the same size
    os.utime(path, ns=(written + 10**9, written + 10**9))
    assert open_source(f"webdataset:{path}")[1]["text"] == "txt of 4"
    assert file.stat().st_mtime_ns != written


@pytest.mark.parametrize("damage", [b"", b"\x93NUMPY", b"rubbish" * 100])
def test_a_damaged_index_is_rebuilt(tmp_path: Path, cache: Path, damage: bytes) -> None:
    path = shard(tmp_path / "s.tar", ["1"])
    open_source(f"webdataset:{path}")
    (file,) = (cache / "index").iterdir()
    file.write_bytes(damage or file.read_bytes()[:-64])
    assert open_source(f"webdataset:{path}")[0]["text"] == "txt of 1"


def test_the_index_lies_beside_the_shard_unless_that_is_read_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JCLIP_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    for mode in (0o755, 0o555):
        folder = tmp_path / f"{mode:o}"
        folder.mkdir()
        shard(folder / "s.tar", ["1"])
        folder.chmod(mode)
        assert len(open_source(f"webdataset:{folder}/s.tar")) == 1
    assert sorted(path.name for path in (tmp_path / "755").iterdir()) == [".s.tar.jclip.npy", "s.tar"]
    assert [path.name for path in (tmp_path / "555").iterdir()] == ["s.tar"]
    assert len(list((tmp_path / "home" / "jclip" / "index").iterdir())) == 1


def test_nothing_can_be_written_and_reading_works_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("JCLIP_CACHE", str(tmp_path / "file"))
    assert open_source(f"webdataset:{shard(tmp_path / 's.tar', ['1'])}")[0]["text"] == "txt of 1"


def test_processes_may_build_an_index_at_once(tmp_path: Path, cache: Path) -> None:
    names = [f"{i:05}" for i in range(2000)]
    path = shard(tmp_path / "s.tar", names)
    code = "import sys, jclip.data; s = jclip.data.open_source(sys.argv[1]); print(len(s), s[1999]['text'])"
    runs = [
        subprocess.Popen([sys.executable, "-c", code, f"webdataset:{path}"], stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]
    assert [run.communicate()[0] for run in runs] == ["2000 txt of 01999\n"] * 3
    assert len(list((cache / "index").iterdir())) == 1


def test_sources_can_be_pickled_while_files_are_open(tmp_path: Path) -> None:
    source = open_source(f"webdataset:{shard(tmp_path / 's.tar', ['1', '2'])}")
    example = source[0]
    data = pickle.dumps(source)
    assert len(data) < 1000
    copy = pickle.loads(data)
    assert copy[1]["text"] == source[1]["text"] == "txt of 2"
    assert example["text"] == "txt of 1"


def test_few_files_are_open_at_a_time_whatever_the_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jclip.data.webdataset.OPEN_SHARDS", 3)
    for i in range(20):
        shard(tmp_path / f"{i:02}.tar", [f"{i}"])
    source = open_source(f"webdataset:{tmp_path}/{{00..19}}.tar")
    before = len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else 0
    order = np.random.default_rng(0).integers(0, 20, 2000).tolist()
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda i: source[i]["text"], order)) == [f"txt of {i}" for i in order]
    if before:
        assert len(os.listdir("/proc/self/fd")) <= before + 2 * 3  # a file and the map of its index each


def test_hostile_names_are_only_text(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    names = ["../../escape", "/etc/absolute", "a/b/../c", "café", "new\nline", "x" * 3000, "nul\0cut"]
    shard(tmp_path / "data" / "s.tar", names)
    source = open_source(f"webdataset:{tmp_path}/data/s.tar")
    keys = [source[i]["key"].removeprefix("s.tar:") for i in range(len(source))]
    assert keys[:6] == [name.replace("\n", r"\n") for name in names[:6]]
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["data", "s.tar"]


def test_there_is_no_example_beyond_the_end(tmp_path: Path) -> None:
    source = open_source(f"webdataset:{shard(tmp_path / 's.tar', ['1'])}")
    for index in (-1, 1):
        with pytest.raises(IndexError):
            source[index]


def test_json_of_a_real_shard_is_found_by_its_path(tmp_path: Path) -> None:
    write(tmp_path / "s.tar", {"1.json": json.dumps({"category": "animals/birds"}).encode()})
    assert lookup(open_source(f"webdataset:{tmp_path}/s.tar")[0], "json.category") == "animals/birds"
