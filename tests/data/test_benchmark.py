"""Data sets in CLIP_benchmark's layout, and what is said where one is not as it should be."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from archives import npy, write_benchmark, write_tar

from jclip.data import BadExample, Source, SourceError, lookup, open_source

CLASSES = ("cat", "dog", "guinea pig")
TEMPLATES = ("a photo of a {c}.", "{c}, seen twice: {c}")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JCLIP_CACHE", str(tmp_path_factory.mktemp("cache")))


def images(count: int) -> list[bytes]:
    return [b"image %d" % i for i in range(count)]


def test_a_classification_set_has_images_labels_classes_and_templates(tmp_path: Path) -> None:
    labels = [2, 0, 1, 1, 0]
    source = open_source(write_benchmark(tmp_path, images(5), labels, classes=CLASSES, templates=TEMPLATES))
    assert source.classes == CLASSES
    assert source.templates == ("a photo of a {}.", "{}, seen twice: {}")
    assert [source[i]["label"] for i in range(len(source))] == labels
    assert [source[i]["image"] for i in range(5)] == images(5)
    assert source[4]["key"] == "2.tar:s0000004"
    assert set(source[0]) == {"key", "image", "label"}


def test_a_multilabel_set_has_a_row_of_truths_for_each_image(tmp_path: Path) -> None:
    rows = [[1, 0, 1], [0, 0, 0], [0, 1, 0]]
    for kind in (np.int64, np.float32, np.bool_, np.uint8):
        root = tmp_path / kind.__name__
        labels = [np.array(row, kind) for row in rows]
        source = open_source(write_benchmark(root, images(3), labels, kind="multilabel", classes=CLASSES, templates=TEMPLATES))
        read = np.stack([source[i]["label"] for i in range(3)])
        assert read.dtype == np.bool_
        np.testing.assert_array_equal(read, np.array(rows, bool))
        assert (source.classes, len(source.templates)) == (CLASSES, 2)


def test_a_retrieval_set_has_every_caption_of_an_image(tmp_path: Path) -> None:
    captions = [["a cat", "the cat\u2028again", "  ein Kater "], ["a dog"], ["x\r", "", "y"]]
    source = open_source(write_benchmark(tmp_path, images(3), captions, kind="retrieval", classes=CLASSES))
    assert [source[i]["captions"] for i in range(3)] == [("a cat", "the cat\u2028again", "ein Kater"), ("a dog",), ("x", "y")]
    assert [source[i]["text"] for i in range(3)] == ["a cat", "a dog", "x"]
    assert (source.classes, source.templates) == ((), ())


def test_shards_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    source = open_source(write_benchmark(tmp_path, images(12), list(range(12)), per_shard=1))
    assert [source[i]["label"] for i in range(12)] == list(range(12))


def test_each_split_is_a_folder_and_classes_are_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_benchmark(tmp_path, images(4), [0, 1, 2, 0], split="train", classes=CLASSES)
    write_benchmark(tmp_path, images(3), [2, 1, 0], split="test")
    monkeypatch.chdir(tmp_path / "test")
    for spec in (f"webdataset:{tmp_path}/test", f"webdataset:{tmp_path}/test/", "webdataset:../test", "webdataset:."):
        assert len(open_source(spec)) == 3
        assert open_source(spec).classes == CLASSES
    assert len(open_source("webdataset:../train")) == 4


def test_shards_named_by_a_pattern_have_no_classes_from_files_beside_them(tmp_path: Path) -> None:
    write_benchmark(tmp_path, images(4), [["a", "b"]] * 4, kind="retrieval")
    source = open_source(f"webdataset:{tmp_path}/test/*.tar")
    assert (source.classes, source.templates) == ((), ())
    assert dict(source[0]) == {"key": "0.tar:s0000000", "image": b"image 0", "text": "a\nb"}


def test_a_set_without_text_files_is_classification_without_names(tmp_path: Path) -> None:
    source = open_source(write_benchmark(tmp_path, images(2), [0, 70]))
    assert (source.classes, source.templates, source[1]["label"]) == ((), (), 70)


def test_sources_of_benchmarks_can_be_pickled(tmp_path: Path) -> None:
    spec = write_benchmark(tmp_path, images(2), [[1, 0, 1], [0, 1, 1]], kind="multilabel", classes=CLASSES)
    copy = pickle.loads(pickle.dumps(open_source(spec)))
    assert copy[1]["label"].tolist() == [False, True, True]


def shard(root: Path, members: dict[str, bytes], kind: str = "classification") -> Source:
    """A split of one shard, with three classes."""
    (root / "test").mkdir()
    write_tar(root / "test" / "0.tar", members)
    (root / "test" / "nshards.txt").write_text("1")
    (root / "classnames.txt").write_text("\ufeff" + "\r\n".join(CLASSES) + "\n\n", encoding="utf-8")
    (root / "dataset_type.txt").write_text(f"{kind}\n")
    return open_source(f"webdataset:{root}/test")


@pytest.mark.parametrize("label", [b"3", b"-1"])
def test_a_label_beyond_the_classes_stops_and_names_the_file(tmp_path: Path, label: bytes) -> None:
    source = shard(tmp_path, {"a.jpg": b"j", "a.cls": label})
    with pytest.raises(SourceError, match=r"0\.tar:a: its label is -?\d, but .*classnames\.txt has 3 lines.* mend that file"):
        source[0]["label"]
    assert source[0]["image"] == b"j"


def test_a_row_of_another_length_than_the_classes_stops_and_names_the_file(tmp_path: Path) -> None:
    source = shard(tmp_path, {"a.jpg": b"j", "a.npy": npy([1, 0])}, "multilabel")
    with pytest.raises(SourceError, match=r"0\.tar:a: its label has 2 numbers, but .*classnames\.txt has 3 lines"):
        source[0]["label"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "npy cannot be read"),
        (npy([1, 0, 1])[:-1], "npy cannot be read"),
        (npy(np.array([1, 0, "x"], object)), "npy cannot be read: Object arrays cannot be loaded"),
        (npy([1, 0, 1]).replace(b"(3,)", b"(9999999999999,)").replace(b" " * 10, b"", 1), "npy cannot be read"),
        (npy(["a", "b", "c"]), "not of numbers"),
        (npy([[1, 0, 1]]), r"shape \(1, 3\)"),
        (npy([1, 0, -1]), "other than 0 and 1"),
        (npy([1, 0, np.nan]), "other than 0 and 1"),
    ],
)
def test_a_row_that_cannot_be_read_is_a_bad_example(tmp_path: Path, data: bytes, message: str) -> None:
    source = shard(tmp_path, {"a.jpg": b"j", "a.npy": data}, "multilabel")
    with pytest.raises(BadExample, match=message):
        source[0]["label"]
    assert source[0]["image"] == b"j"


def test_random_bytes_in_a_row_never_raise_anything_but_bad_example(tmp_path: Path) -> None:
    rng, whole = np.random.default_rng(0), npy([1, 0, 1])
    members = {}
    for i in range(300):
        data = bytearray(whole)
        for place in rng.integers(0, 70, 3):
            data[place] = int(rng.integers(256))
        members[f"{i}.npy"] = bytes(data)
    source = shard(tmp_path, members, "multilabel")
    for i in range(300):
        try:
            assert source[i]["label"].shape == (3,)
        except BadExample:
            continue
        except SourceError as error:
            assert "numbers" in str(error)  # noqa: PT017


@pytest.mark.parametrize("text", [b"", b" \n\r\n", b"\xff"])
def test_an_image_without_a_caption_is_a_bad_example(tmp_path: Path, text: bytes) -> None:
    source = shard(tmp_path, {"a.jpg": b"j", "a.txt": text}, "retrieval")
    for field in ("captions", "text"):
        with pytest.raises(BadExample, match=r"no caption|not UTF-8"):
            source[0][field]


@pytest.mark.parametrize(("kind", "field"), [("classification", "label"), ("multilabel", "label"), ("retrieval", "captions")])
def test_a_sample_without_its_member_is_a_bad_example(tmp_path: Path, kind: str, field: str) -> None:
    with pytest.raises(BadExample, match=f"no {field}: fields are key, image"):
        lookup(shard(tmp_path, {"a.jpg": b"j"}, kind)[0], field)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("test/nshards.txt", "3", r"nshards\.txt says 3, but there is no 2\.tar"),
        ("test/nshards.txt", "1", r"nshards\.txt says 1, but 1\.tar is there as well"),
        ("test/nshards.txt", "999999999999", r"there is no 2\.tar"),
        ("test/nshards.txt", "0", r"nshards\.txt says '0'; write the number"),
        ("test/nshards.txt", "two", r"nshards\.txt says 'two'; write the number"),
        ("test/nshards.txt", "", r"nshards\.txt: line 1 is blank"),
        ("dataset_type.txt", "regression", "'regression' is unknown; use classification, multilabel, retrieval"),
        ("classnames.txt", "cat\n\ndog", r"classnames\.txt: line 2 is blank"),
        ("zeroshot_classification_templates.txt", "a {c}\na photo", r"templates\.txt: line 2 has no \{c\}"),
        ("zeroshot_classification_templates.txt", b"\xff{c}", r"templates\.txt is not UTF-8"),
        ("test/1.tar", "rubbish " * 500, r"1\.tar: it is not a tar.*; get this file again"),
        ("test/0.tar", None, r"0\.tar: cut short or corrupt after \d+ bytes; get this file again"),
    ],
)
def test_errors_name_the_file_and_what_to_do(tmp_path: Path, file: str, content: str | bytes | None, message: str) -> None:
    spec = write_benchmark(tmp_path, images(4), [0, 1, 2, 0], kind="classification", classes=CLASSES, templates=TEMPLATES)
    path = tmp_path / file
    path.write_bytes(path.read_bytes()[:2200] if content is None else content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SourceError, match=message):
        open_source(spec)


def test_a_folder_that_is_no_benchmark_says_how_to_name_shards(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"is a folder; name its files.*CLIP_benchmark's layout has nshards\.txt"):
        open_source(f"webdataset:{tmp_path}")
