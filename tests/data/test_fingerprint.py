"""Fingerprints: what leaves them alone, what changes them, and that nothing is read twice or believed for too long."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from archives import write_benchmark, write_tar

from jclip.data import SourceError, fingerprint, open_source
from jclip.data.fingerprint import combine, file_digests, sample_fingerprint


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("JCLIP_CACHE", str(path))
    monkeypatch.setattr(fingerprint, "SETTLED_NS", 0)
    return path


def shards(root: Path) -> str:
    root.mkdir(exist_ok=True)
    for i in range(2):
        write_tar(root / f"{i}.tar", {f"{i}.jpg": b"image %d" % i, f"{i}.txt": b"text"})
    return f"webdataset:{root}/*.tar"


def benchmark(root: Path) -> str:
    return write_benchmark(root, [b"image 0", b"image 1"], [0, 1], classes=["cat", "dog"], templates=["a {c}"])


def folder(root: Path) -> str:
    for name in ("a/1.jpg", "a/1.txt", "b/2.jpg"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"image of " + name.encode())
    return f"folder:{root}"


def labelled(root: Path) -> str:
    return folder(root) + "?labels=folders"


def sugarcrepe(root: Path) -> str:
    folder(root / "images")
    rows = {"0": {"filename": "a/1.jpg", "caption": "a cat", "negative_caption": "a dog"}}
    (root / "swap.json").write_text(json.dumps(rows))
    return f"sugarcrepe:{root}/swap.json?images={root}/images"


def winoground(root: Path) -> str:
    folder(root / "images")
    row = {"id": 7, "image_0": "a/1", "image_1": "b/2", "caption_0": "a cat", "caption_1": "a dog", "tag": "Noun"}
    (root / "all.jsonl").write_text(json.dumps(row))
    return f"winoground:{root}/all.jsonl?images={root}/images"


KINDS = [shards, benchmark, folder, labelled, sugarcrepe, winoground]


def flip(path: Path, place: int = 0) -> None:
    """Changes one byte of a file in place, and sets its times back."""
    status, data = path.stat(), bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)


@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_in_another_place_has_the_same_fingerprint(tmp_path: Path, kind: Callable[[Path], str]) -> None:
    spec = kind(tmp_path / "here")
    value = open_source(spec).fingerprint()
    assert len(bytes.fromhex(value)) == 16
    shutil.copytree(tmp_path / "here", tmp_path / "else" / "where")
    shutil.rmtree(tmp_path / "here")
    assert open_source(spec.replace("/here", "/else/where")).fingerprint() == value


@pytest.mark.parametrize("kind", KINDS)
def test_a_changed_byte_of_an_equally_old_and_large_file_changes_it(tmp_path: Path, kind: Callable[[Path], str]) -> None:
    spec = kind(tmp_path / "x")
    data = sorted(path for path in (tmp_path / "x").rglob("*") if path.suffix in (".tar", ".jpg") or path.name == "1.txt")
    assert len(data) >= (1 if kind is benchmark else 2)
    seen = {open_source(spec).fingerprint()}
    for path in data:
        if kind in (sugarcrepe, winoground) and (path.suffix == ".txt" or (kind is sugarcrepe and path.name == "2.jpg")):
            continue  # neither is an example's
        time.sleep(0.02)  # the clock of the file system ticks
        flip(path, 512 if path.suffix == ".tar" else 0)
        value = open_source(spec).fingerprint()
        assert value not in seen, path
        seen.add(value)


@pytest.mark.parametrize(
    ("kind", "file", "content"),
    [
        (benchmark, "classnames.txt", "dog\ncat"),
        (benchmark, "dataset_type.txt", "multilabel"),
        (labelled, "classnames.txt", "dog\ncat"),
        (sugarcrepe, "swap.json", '{"0": {"filename": "a/1.jpg", "caption": "a dog", "negative_caption": "a cat"}}'),
        (sugarcrepe, "swap.json", '{"1": {"filename": "a/1.jpg", "caption": "a cat", "negative_caption": "a dog"}}'),
        (sugarcrepe, "swap.json", '{"0": {"filename": "b/2.jpg", "caption": "a cat", "negative_caption": "a dog"}}'),
        (folder, "a/0.jpg", "a third image"),
        (folder, "b/2.txt", "a second caption"),
        (labelled, "aa/.keep", "another class"),
    ],
)
def test_names_of_labels_and_texts_and_further_files_change_it(
    tmp_path: Path, kind: Callable[[Path], str], file: str, content: str
) -> None:
    spec = kind(tmp_path / "x")
    value = open_source(spec).fingerprint()
    (tmp_path / "x" / file).parent.mkdir(exist_ok=True)
    (tmp_path / "x" / file).write_text(content)
    assert open_source(spec).fingerprint() != value


def test_the_order_of_shards_and_the_labels_by_folders_change_it(tmp_path: Path) -> None:
    spec = shards(tmp_path / "x")
    value = open_source(spec).fingerprint()
    (tmp_path / "x" / "0.tar").rename(tmp_path / "x" / "2.tar")
    assert open_source(spec).fingerprint() != value
    spec = folder(tmp_path / "y")
    assert open_source(spec).fingerprint() != open_source(spec + "?labels=folders").fingerprint()


def test_a_class_without_images_that_shifts_the_labels_changes_it(tmp_path: Path) -> None:
    spec = labelled(tmp_path)
    (tmp_path / "c").mkdir()
    (tmp_path / "classnames.txt").write_text("x\ny\nz")
    value = open_source(spec).fingerprint()
    (tmp_path / "c").rename(tmp_path / "0")
    assert open_source(spec).fingerprint() != value


def test_what_is_no_part_of_the_examples_leaves_it_alone(tmp_path: Path) -> None:
    spec = benchmark(tmp_path / "x")
    value = open_source(spec).fingerprint()
    (tmp_path / "x" / "zeroshot_classification_templates.txt").write_text("a photo of a {c}")
    (tmp_path / "x" / "README.md").write_text("read me")
    os.utime(tmp_path / "x" / "test" / "0.tar", ns=(1, 1))
    assert open_source(spec).fingerprint() == value


def test_shapes_have_the_fingerprint_of_their_parameters_and_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    specs = [
        "train",
        "val",
        "train?size=32",
        "train?seed=1",
        "train?length=9",
        "test",
        "test?classes=seen",
        "counting",
        "left_right",
    ]
    values = [open_source(f"shapes:{spec}").fingerprint() for spec in specs]
    assert len(set(values)) == len(specs)
    assert [open_source(f"shapes:{spec}").fingerprint() for spec in specs] == values
    assert open_source("shapes:train?size=64&seed=0&length=50000").fingerprint() == values[0]

    from jclip.data import shapes

    shutil.copytree(Path(shapes.__file__).parent, tmp_path / "data")
    monkeypatch.setattr(shapes, "__file__", str(tmp_path / "data" / "shapes.py"))
    assert open_source("shapes:train").fingerprint() == values[0]
    (tmp_path / "data" / "folder.py").write_text("another source")
    assert open_source("shapes:train").fingerprint() == values[0]
    (tmp_path / "data" / "shapes_drawing.py").write_text("other colours")
    assert open_source("shapes:train").fingerprint() != values[0]


def test_combining_tells_parts_their_order_and_their_kinds_apart() -> None:
    parts: list[tuple[bytes | str, ...]] = [
        (), ("",), ("", ""), ("ab",), ("a", "b"), ("b", "a"), (b"ab",), (b"a", "b"), ("a", b"b"), ("2:ab",), ("a", "1:b"),
        ("at1:b",),
    ]  # fmt: skip
    assert len({combine(*each) for each in parts}) == len(parts)
    assert combine("ab", b"c") == hashlib.blake2b(b"t2:abb1:c", digest_size=16).hexdigest()


def test_a_digest_is_that_of_the_bytes(tmp_path: Path) -> None:
    big = os.urandom((4 << 20) + 17)
    for name, data in (("empty", b""), ("small", b"abc"), ("big", big)):
        (tmp_path / name).write_bytes(data)
        for _ in range(2):
            assert file_digests([tmp_path / name]) == [hashlib.blake2b(data, digest_size=16).digest()]


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths that are read to take a digest."""
    paths: list[str] = []
    read = fingerprint._digest
    monkeypatch.setattr(fingerprint, "_digest", lambda path, advance: paths.append(Path(path).name) or read(path, advance))
    return paths


@pytest.mark.parametrize("kind", KINDS)
def test_a_second_fingerprint_reads_no_file(tmp_path: Path, kind: Callable[[Path], str], reads: list[str]) -> None:
    spec = kind(tmp_path / "x")
    value = open_source(spec).fingerprint()
    assert len(reads) == len(set(reads)) > 0
    reads.clear()
    assert open_source(spec).fingerprint() == value
    assert reads == []


def test_only_the_file_that_changed_is_read_again(tmp_path: Path, reads: list[str]) -> None:
    spec = folder(tmp_path)
    open_source(spec).fingerprint()
    reads.clear()
    (tmp_path / "b" / "2.jpg").write_bytes(b"another image")
    (tmp_path / "b" / "3.jpg").write_bytes(b"a new image")
    open_source(spec).fingerprint()
    assert reads == ["2.jpg", "3.jpg"]


def test_files_of_one_folder_are_remembered_beside_one_another(tmp_path: Path, reads: list[str]) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
        file_digests([tmp_path / name])
    file_digests([tmp_path / "a", tmp_path / "b"])
    assert reads == ["a", "b"]


def test_another_file_under_the_same_name_is_read(tmp_path: Path) -> None:
    for name, data in (("a", b"one"), ("b", b"two")):
        (tmp_path / name).write_bytes(data)
        os.utime(tmp_path / name, ns=(10**18, 10**18))
    first = file_digests([tmp_path / "a"])
    os.replace(tmp_path / "b", tmp_path / "a")  # same size and mtime
    assert file_digests([tmp_path / "a"]) == [hashlib.blake2b(b"two", digest_size=16).digest()] != first


def test_a_symlink_that_is_turned_elsewhere_is_read(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).write_text(name)
        (tmp_path / "link").unlink(missing_ok=True)
        (tmp_path / "link").symlink_to(name)
        assert file_digests([tmp_path / "link"]) == [hashlib.blake2b(name.encode(), digest_size=16).digest()]


def test_a_file_changed_a_moment_ago_is_not_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reads: list[str]) -> None:
    monkeypatch.setattr(fingerprint, "SETTLED_NS", 2_000_000_000)
    (tmp_path / "new").write_bytes(b"one")
    for _ in range(2):
        file_digests([tmp_path / "new"])
    assert reads == ["new", "new"]
    monkeypatch.setattr(fingerprint.time, "time_ns", lambda: time.monotonic_ns() + 2**62)  # years later
    for _ in range(2):
        file_digests([tmp_path / "new"])
    assert reads == ["new", "new", "new"]


def test_a_file_that_changes_while_it_is_read_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, read = tmp_path / "x", fingerprint._digest

    def meanwhile(name: str, advance: fingerprint.Advance) -> bytes:
        digest = read(name, advance)
        path.write_bytes(b"longer than before")
        return digest

    path.write_bytes(b"before")
    monkeypatch.setattr(fingerprint, "_digest", meanwhile)
    with pytest.raises(SourceError, match="was changed while its fingerprint was taken; wait"):
        file_digests([path])


def test_a_file_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    spec = folder(tmp_path)
    source = open_source(spec)
    (tmp_path / "b" / "2.jpg").unlink()
    with pytest.raises(SourceError, match=r"b/2\.jpg cannot be read: No such file"):
        source.fingerprint()


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"folder": "/", "files": 1}', "rows"])
def test_a_damaged_memory_is_not_believed(tmp_path: Path, cache: Path, damage: str) -> None:
    (tmp_path / "x").write_bytes(b"one")
    right = file_digests([tmp_path / "x"])
    (memo,) = (cache / "digests").iterdir()
    content = json.loads(memo.read_text())
    assert content["files"]["x"][4] == right[0].hex()
    for wrong in ([1, 2], [*content["files"]["x"][:4], "no digest"], [*content["files"]["x"][:4], "ab"], None, 3):
        memo.write_text(damage if damage != "rows" else json.dumps({**content, "files": {"x": wrong}}))
        assert file_digests([tmp_path / "x"]) == right


def test_without_a_place_to_write_it_works_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("JCLIP_CACHE", str(tmp_path / "file"))
    assert file_digests([tmp_path / "file"]) == [hashlib.blake2b(b"", digest_size=16).digest()]


def test_digests_lie_in_the_users_cache_and_nothing_beside_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JCLIP_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    open_source(folder(tmp_path / "x")).fingerprint()
    assert len(list((tmp_path / "home" / "jclip" / "digests").iterdir())) == 2  # one for each folder
    assert sorted(path.name for path in (tmp_path / "x").rglob("*") if path.is_file()) == ["1.jpg", "1.txt", "2.jpg"]


def test_processes_may_take_fingerprints_at_once(tmp_path: Path, cache: Path) -> None:
    for i in range(300):
        (tmp_path / f"{i}").write_bytes(b"%d" % i)
    code = (
        "import sys, pathlib; from jclip.data import fingerprint as f; f.SETTLED_NS = 0\n"
        "print(f.combine(*f.file_digests(sorted(pathlib.Path(sys.argv[1]).iterdir()))))"
    )
    runs = [subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    values = {run.communicate()[0] for run in runs}
    assert values == {combine(*file_digests(sorted(tmp_path.iterdir()))) + "\n"}
    (memo,) = (cache / "digests").iterdir()
    assert len(json.loads(memo.read_text())["files"]) == 300


def test_a_bar_is_shown_on_a_terminal_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(fingerprint, "SHOWN_BYTES", 1)
    (tmp_path / "a").write_bytes(b"a")
    file_digests([tmp_path / "a"])
    assert capsys.readouterr() == ("", "")
    (tmp_path / "b").write_bytes(b"b")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    assert file_digests([tmp_path / "b"]) == [hashlib.blake2b(b"b", digest_size=16).digest()]
    out, err = capsys.readouterr()
    assert out == ""
    assert "taking fingerprints" in err


@pytest.mark.parametrize("length", [1, 2, 64, 65, 200])
def test_a_sample_spans_the_source_from_its_first_example_to_its_last(length: int) -> None:
    class Rows(list[dict[str, str]]):
        """A source that tells what is read."""

        def __getitem__(self, index: int) -> dict[str, str]:  # type: ignore[override]
            read.append(index)
            return super().__getitem__(index)

    found = []
    for last in ("a", "b"):
        read: list[int] = []
        found.append(sample_fingerprint(Rows([*({"text": str(i)} for i in range(length - 1)), {"text": last}])))  # type: ignore[arg-type]
        assert len(set(read)) == min(64, length)
        assert all(b - a <= -(-length // 63) for a, b in pairwise(read))
    assert found[0] != found[1]
