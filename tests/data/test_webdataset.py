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
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from archives import write_tar as write

from jclip.data import BadExample, Source, SourceError, lookup, open_source
from jclip.data.patterns import expand
from jclip.data.samples import AMBIGUOUS
from jclip.data.tar_headers import CompressedTar, NotTar, list_members


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
    listing = list_members(str(path))
    assert [(m.name, m.offset, m.size) for m in listing.members] == [*expected, ("other.jpg", *expected[0][1:])]
    assert len(expected) == len(names)
    assert listing.left_out == {"symbolic links": 1}


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
    for i in range(len(source)):
        name = source[i]["key"].split(":")[1]
        whole = {"key": source[i]["key"], "image": f"jpg of {name}".encode(), "text": f"txt of {name}"}
        assert dict(source[i]) in (whole, {kind: whole[kind] for kind in ("key", "image")})  # cut before the header of its text


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


def used_pairs(source: Source) -> list[tuple[bytes, str]]:
    return [(e["image"], e["text"]) for e in map(source.__getitem__, range(len(source))) if {"image", "text"} <= set(e)]


def members(*names: str) -> list[tuple[str, bytes]]:
    """(name, number of the member) each."""
    return [(name, str(i).encode()) for i, name in enumerate(names)]


@pytest.mark.parametrize(
    ("names", "expected", "ambiguous"),
    [
        # Two folders flattened: the pictures of both, then the captions of both. Which caption is whose cannot be told.
        (("1.jpg", "1.jpg", "2.jpg", "2.jpg", "1.txt", "1.txt", "2.txt", "2.txt"), [], 2),
        (("1.jpg", "2.jpg", "1.jpg", "2.jpg", "1.txt", "2.txt", "1.txt", "2.txt"), [], 2),
        # A picture of one folder and a caption of another may be all that there is of a name: two pictures, one caption.
        (("1.jpg", "2.jpg", "1.png", "2.png", "1.txt", "2.txt"), [], 2),
        # A first pass without the pictures, then a second one.
        (("1.txt", "2.txt", "1.jpg", "1.txt", "2.jpg", "2.txt"), [(b"2", "3"), (b"4", "5")], 2),
        # Corrected captions, appended: by one rule the old one counts, by another the new one.
        (("1.jpg", "1.txt", "2.jpg", "2.txt", "1.txt"), [(b"2", "3")], 1),
        (("1.jpg", "1.txt", "1.txt", "2.jpg", "2.txt"), [(b"3", "4")], 1),
        # The same shard twice in one file; samples of one name after each other; extensions in order, each once.
        (("1.jpg", "1.txt", "2.jpg", "2.txt", "1.jpg", "1.txt"), [(b"0", "1"), (b"2", "3"), (b"4", "5")], 0),
        (("1.jpg", "1.txt", "1.jpg", "1.txt", "1.jpg", "1.txt"), [(b"0", "1"), (b"2", "3"), (b"4", "5")], 0),
        (("1.txt", "1.png", "2.jpg", "2.txt", "1.jpg", "1.txt"), [(b"1", "0"), (b"2", "3"), (b"4", "5")], 0),
        (("1.jpg", "2.jpg", "1.txt", "2.txt"), [(b"0", "2"), (b"1", "3")], 0),
    ],
)
def test_a_picture_never_gets_the_caption_of_another(
    tmp_path: Path, names: tuple[str, ...], expected: list[tuple[bytes, str]], ambiguous: int, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path / "s.tar", members(*names, "last.jpg", "last.txt"))
    source = open_source(f"webdataset:{tmp_path}/s.tar")
    assert used_pairs(source) == [*expected, (str(len(names)).encode(), str(len(names) + 1))]
    assert source.left_out == ({AMBIGUOUS: ambiguous} if ambiguous else {})
    assert (f"left out of the shards: {ambiguous} names that occur several times" in caplog.text) == bool(ambiguous)


def test_of_several_images_of_a_sample_the_first_counts_and_rare_formats_only_where_there_is_no_other(tmp_path: Path) -> None:
    write(tmp_path / "s.tar", members("1.png", "1.jpg", "2.tif", "2.jpg", "3.tif", "3.avif", "4.seg.png"))
    source = open_source(f"webdataset:{tmp_path}/s.tar")
    assert [dict(source[i]) for i in range(4)] == [
        {"key": "s.tar:1", "image": b"0"},
        {"key": "s.tar:2", "image": b"3", "tif": b"2"},
        {"key": "s.tar:3", "image": b"4", "tif": b"4", "avif": b"5"},
        {"key": "s.tar:4", "seg.png": b"6"},
    ]
    assert source.fields == {"image": 3, "seg.png": 1}


def test_hard_links_are_the_files_that_they_link_to_and_other_links_are_counted(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "s.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        for name, kind, target in (
            ("d" * 120 + "/1.jpg", tarfile.REGTYPE, ""),
            ("2.jpg", tarfile.LNKTYPE, "d" * 120 + "/1.jpg"),
            ("2.txt", tarfile.REGTYPE, ""),
            ("3.jpg", tarfile.LNKTYPE, "2.jpg"),
            ("4.jpg", tarfile.LNKTYPE, "nowhere.jpg"),
            ("5.jpg", tarfile.SYMTYPE, "2.jpg"),
            ("6.jpg", tarfile.FIFOTYPE, ""),
            ("folder", tarfile.DIRTYPE, ""),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.size = kind, target, len(name) if kind == tarfile.REGTYPE else 0
            tar.addfile(info, io.BytesIO(name.encode()))
    source = open_source(f"webdataset:{tmp_path}/s.tar")
    target = ("d" * 120 + "/1.jpg").encode()
    assert [dict(source[i]) for i in range(1, 3)] == [
        {"key": "s.tar:2", "image": target, "text": "2.txt"},
        {"key": "s.tar:3", "image": target},
    ]
    assert len(source) == 3
    assert source.left_out == {"hard links to files that are not in the shard": 1, "symbolic links": 1, "pipes": 1}


def test_a_shard_replaced_with_its_size_and_times_kept_is_indexed_anew(tmp_path: Path) -> None:
    path = write(tmp_path / "s.tar", {"1.jpg": b"a", "1.txt": b"A", "22.jpg": b"b", "22.txt": b"B"})
    before = path.stat()
    assert used_pairs(open_source(f"webdataset:{path}")) == [(b"a", "A"), (b"b", "B")]
    write(tmp_path / "new.tar", {"1.txt": b"C", "1.jpg": b"c", "22.txt": b"D", "22.jpg": b"d"})
    os.replace(tmp_path / "new.tar", path)  # another inode
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert used_pairs(open_source(f"webdataset:{path}")) == [(b"c", "C"), (b"d", "D")]
    write(tmp_path / "new.tar", {"1.jpg": b"e", "1.txt": b"E", "22.jpg": b"f", "22.txt": b"F"})
    path.write_bytes((tmp_path / "new.tar").read_bytes())  # the same inode: its ctime alone tells
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    assert used_pairs(open_source(f"webdataset:{path}")) == [(b"e", "E"), (b"f", "F")]


@pytest.mark.parametrize("place", [8 * i + 3 for i in range(12)] + [-200, -60, -3])
def test_an_index_with_one_wrong_bit_is_rebuilt(tmp_path: Path, cache: Path, place: int) -> None:
    path = shard(tmp_path / "s.tar", ["1", "2", "3"])
    whole = [dict(example) for example in map(open_source(f"webdataset:{path}").__getitem__, range(3))]
    (file,) = (cache / "index").iterdir()
    data = bytearray(file.read_bytes())
    start = 10 + int.from_bytes(data[8:10], "little")
    data[place if place < 0 else start + place] ^= 1
    file.write_bytes(data)
    source = open_source(f"webdataset:{path}")
    assert [dict(source[i]) for i in range(len(source))] == whole
    assert file.read_bytes() != bytes(data)


def test_a_shard_that_changes_while_it_is_used_gives_bad_examples(tmp_path: Path) -> None:
    path = shard(tmp_path / "s.tar", ["1", "2"])
    source = open_source(f"webdataset:{path}")
    shard(tmp_path / "new.tar", ["1"])
    os.replace(tmp_path / "new.tar", path)
    with pytest.raises(BadExample, match="was changed: it had 2 samples, and has 1"):
        source[0]
    path.unlink()
    with pytest.raises(BadExample, match="cannot be read"):
        source[0]


def test_many_shards_are_opened_from_one_file_and_with_few_descriptors(tmp_path: Path, cache: Path) -> None:
    resource = pytest.importorskip("resource")
    for i in range(200):
        shard(tmp_path / f"{i:03}.tar", [f"{i}"])
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    spec = f"webdataset:{tmp_path}/{{000..199}}.tar"
    busy = [os.open(os.devnull, os.O_RDONLY) for _ in range(150)]  # of others in the process, as in one that has done much
    used = len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else 210
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + 48, hard))
        open_source(spec)
        indexes = {path: path.stat().st_mtime_ns for path in (cache / "index").iterdir()}
        assert len(indexes) == 200
        for path in indexes:
            path.chmod(0)
        source = open_source(spec)
        assert len(source) == 200
        for path in indexes:
            path.chmod(0o600)
        order = [*range(200), *range(199, -1, -1)]
        assert [source[i]["text"] for i in order] == [f"txt of {i}" for i in order]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for descriptor in busy:
            os.close(descriptor)
    assert {path: path.stat().st_mtime_ns for path in indexes} == indexes, "no index was built twice"
    (counts,) = (cache / "shards").iterdir()
    shard(tmp_path / "007.tar", ["7", "extra"])
    assert len(open_source(spec)) == 201, "the counts of a changed shard are taken again"
    counts.write_text(counts.read_text().replace("1, -1,", "9, -1,"))
    assert len(open_source(spec)) == 201, "damaged counts are not believed"


def pax(*records: bytes, kind: bytes = b"x", claim: int | None = None) -> bytes:
    """A pax header of raw records, padded."""
    body = b"".join(records)
    info = tarfile.TarInfo("pax")
    info.type, info.size = kind, len(body) if claim is None else claim
    return info.tobuf(tarfile.USTAR_FORMAT) + body + bytes(-len(body) % 512)


def file(name: str, data: bytes = b"x") -> bytes:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    return info.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % 512)


@pytest.mark.parametrize(
    "record",
    [
        b"14 size=-1536\n",
        b"13 size=-512\n",
        b"10 size=\n",
        b"12 size=1_0\n",
        b"30 size=99999999999999999999\n",
        b"12 size=0x1\n",
        b"-5 path=a\n",
        b"0 path=a\n",
        b"999999 path=a\n",
        b"9 path a\n",
        b"x path=a\n",
        b"99999999999999999999999999999999 path=a\n",
    ],
)
def test_a_pax_record_out_of_range_ends_a_shard_there(tmp_path: Path, record: bytes) -> None:
    path = tmp_path / "s.tar"
    path.write_bytes(file("1.jpg") + pax(record) + file("2.jpg") + bytes(1024))
    listing = list_members(str(path))
    assert [member.name for member in listing.members] == ["1.jpg"]
    assert listing.cut in (1024, 2048)


def test_headers_of_any_size_are_read_in_linear_time_and_little_memory(tmp_path: Path) -> None:
    """Quadratic time would be minutes, and a copy of the global header for each member gigabytes."""
    records = b"".join(b"12 k%05d=a\n" % i for i in range(80_000))
    path = tmp_path / "s.tar"
    path.write_bytes(pax(records, kind=b"g") + b"".join(pax(records[: 12 * 500]) + file(f"{i}.jpg") for i in range(200)))
    tracemalloc.start()
    listing = list_members(str(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(listing.members) == 200
    assert peak < 8 << 20
    path.write_bytes(file("1.jpg") + pax(b"", claim=(1 << 20) + 1) + bytes((1 << 20) + 2048))
    assert list_members(str(path)).cut == 1024


def test_mutated_headers_neither_hang_nor_grow_nor_raise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jclip.data.storage.TICK_NS", 0)
    rng = np.random.default_rng(0)
    long = "d" * 200
    whole = pax(b"17 comment=hello\n", kind=b"g") + b"".join(
        pax(b"%d path=%s/%d.jpg\n" % (len(long) + 16, long.encode(), i), b"10 size=4\n") + file(f"{i}.jpg", b"abcd")
        for i in range(6)
    )
    headers = [i for i in range(0, len(whole), 512) if whole[i + 257 : i + 262] == b"ustar"]
    for number in range(200):
        data = bytearray(whole)
        for _ in range(rng.integers(1, 4)):
            header = int(rng.choice(headers))
            place = header + int(rng.choice([124 + rng.integers(12), 156, rng.integers(512), 512 + rng.integers(40)]))
            data[place] = int(rng.choice(list(b"0123456789-= \n\0xgLK1S\xff")))
            block = data[header : header + 512]
            block[148:156] = b" " * 8
            data[header + 148 : header + 156] = b"%06o\0 " % sum(block)
        path = tmp_path / f"{number}.tar"
        path.write_bytes(data)
        try:
            source = open_source(f"webdataset:{path}")
        except SourceError:
            continue
        for i in range(len(source)):
            assert set(source[i]) >= {"key"}
            for field in source[i]:
                assert len(source[i][field]) <= len(data)


def test_folders_with_brackets_and_braces_in_their_names_are_read_as_they_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for folder in ("set [v1]", "set {v1}", "{a,b}", "50%", "a,b", "my data"):
        (tmp_path / folder).mkdir()
        shard(tmp_path / folder / "00.tar", ["1"])
        for pattern in ("00.tar", "*.tar", "{00..00}.tar", "0[0-9].tar"):
            assert expand(f"~/{folder}/{pattern}") == [f"{tmp_path}/{folder}/00.tar"]
    (tmp_path / "{x}.tar").touch()
    assert expand(f"{tmp_path}/{{x}}.*") == [f"{tmp_path}/{{x}}.tar"]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("webdataset:pipe:cat x.tar", "commands are not run"),
        ("webdataset:azure://bucket/{00..99}.tar", "azure:// is not read, but https://, http://, s3://, gs://, hf://; mount it"),
        ("s3://bucket/x.tar", "an address has its scheme before it, 'webdataset:s3://bucket/x.tar'"),
        ("https://host/x.csv?sig=word", r"an address has its scheme before it, 'csv:https://host/x.csv\?...'"),
        ("ftp://host/x.tar", "no such store is read; webdataset, parquet, csv and jsonl read addresses of https://"),
        ("pipe:aws s3 cp x -", "commands are not run"),
        ("webdataset:a.tar::b.tar", r"name several patterns in braces: \{a.tar,b.tar\}"),
        ("/data/{00..99}.tar", "'webdataset:/data/{00..99}.tar', in quotes"),
        ("webdataset:{0..99999999}.tar", "the braces name 100,000,000 files or more; at most 1,000,000"),
        ("webdataset:{0..999}{0..999}{0..999}.tar", "at most 1,000,000"),
        ("webdataset:{0..999999}.tar", "there is no file '0.tar'"),
        ("webdataset:x.tar?captions=words", "captions=words is unknown; use captions=lines"),
        ("webdataset:x.tar?lines=1", "lines=1 is unknown; use captions=lines"),
    ],
)
def test_what_is_no_pattern_of_files_is_refused_at_once_with_the_way_on(spec: str, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        open_source(spec)


def test_lines_are_captions_where_that_is_asked_for(tmp_path: Path) -> None:
    write(tmp_path / "s1.tar", {"1.jpg": b"j", "1.txt": b"a\n\n b \n", "2.jpg": b"j", "2.txt": b" \n"})
    assert open_source(f"webdataset:{tmp_path}/s?.tar")[0]["text"] == "a\n\n b \n"
    source = open_source(f"webdataset:{tmp_path}/s?.tar?captions=lines")
    assert source[0]["text"] == source[0]["captions"] == pickle.loads(pickle.dumps(source))[0]["text"] == ("a", "b")
    with pytest.raises(BadExample, match="no caption"):
        source[1]["text"]


def test_sizes_in_binary_are_those_in_octal(tmp_path: Path) -> None:
    """GNU writes what octal digits cannot hold (8 GiB) with the first bit set; here a small size is written so."""
    path = tmp_path / "s.tar"
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for name, data in (("0.jpg", b"picture"), ("0.txt", b"a caption")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    octal = list_members(str(path))
    assert [member.size for member in octal.members] == [7, 9]
    raw = bytearray(path.read_bytes())
    raw[124:136] = b"\x80" + (7).to_bytes(11, "big")
    raw[148:156] = b" " * 8
    raw[148:156] = f"{sum(raw[:512]):06o}\0 ".encode()
    path.write_bytes(raw)
    assert list_members(str(path)) == octal
    raw[124:136] = b"\xff" * 12  # -1
    raw[148:156] = b" " * 8
    raw[148:156] = f"{sum(raw[:512]):06o}\0 ".encode()
    path.write_bytes(raw)
    assert list_members(str(path)).cut == 0
