"""Tables as sources: Parquet, CSV and JSON lines beside a folder and tar shards of the same pictures."""

import csv
import io
import json
import os
import pickle
import shutil
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jclip.config import VisionTower
from jclip.data import BadExample, SourceError, eval_transform, lookup, open_source

pa = pytest.importorskip("pyarrow", reason="the extra tables is not installed")
import pyarrow.parquet as pq  # noqa: E402

from jclip.data import parquet, row_index, rows  # noqa: E402

COUNT = 23
TEXTS = [f'a "{i}", café\nof two lines' if i % 3 else f"plain {i}" for i in range(COUNT)]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("JCLIP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def picture(i: int) -> bytes:
    file = io.BytesIO()
    values = np.random.default_rng(i).integers(0, 256, (6, 5, 3), np.uint8)
    Image.fromarray(values).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(COUNT):
        (folder / f"{i:03d}.png").write_bytes(picture(i))
        (folder / f"{i:03d}.txt").write_bytes(TEXTS[i].encode())
    return folder


def write_tar(folder: Path, path: Path) -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for file in sorted(folder.iterdir()):
            tar.add(file, file.name)


def write_csv(path: Path, separator: str = ",") -> None:
    import csv

    with open(path, "w", encoding="utf-8-sig" if separator == "," else "utf-8", newline="") as file:
        out = csv.writer(file, delimiter=separator, lineterminator="\r\n" if separator == "," else "\n")
        out.writerow(["", "filepath", "title", "label"])
        out.writerows([i, f"{i:03d}.png", TEXTS[i], i % 2] for i in range(COUNT))


def write_jsonl(path: Path) -> None:
    lines = [{"file_name": f"{i:03d}.png", "text": TEXTS[i], "label": i % 2, "meta": {"n": i}} for i in range(COUNT)]
    path.write_text("\n\n".join(map(json.dumps, lines)))


def hugging_face(folder: Path, rows_of_files: list[range], group: int = 4) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    features = {"image": {"_type": "Image"}, "label": {"names": ["even", "odd"], "_type": "ClassLabel"}}
    schema = pa.schema(
        {
            "image": pa.struct({"bytes": pa.binary(), "path": pa.string()}),
            "text": pa.string(),
            "label": pa.int64(),
            "meta": pa.struct({"size": pa.struct({"width": pa.int32()}), "url": pa.string()}),
            "embedding": pa.list_(pa.float64()),
            "grid": pa.list_(pa.list_(pa.uint8())),
            "tags": pa.list_(pa.string()),
        },
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    for number, indices in enumerate(rows_of_files):
        table = [
            {
                "image": {"bytes": picture(i), "path": f"{i:03d}.png"},
                "text": TEXTS[i],
                "label": i % 2,
                "meta": {"size": {"width": i}, "url": None},
                "embedding": [i, 0.5, -1.0],
                "grid": [[i, 1], [2, 3]],
                "tags": ["a", str(i)],
            }
            for i in indices
        ]
        path = folder / f"train-{number:05d}-of-{len(rows_of_files):05d}.parquet"
        pq.write_table(pa.Table.from_pylist(table, schema), path, row_group_size=group)


def write_parquet(path: Path, columns: dict[str, Any], **options: Any) -> str:
    pq.write_table(pa.table(columns), path, **options)
    return str(path)


def test_every_format_gives_the_pictures_and_texts_of_the_folder(tmp_path: Path, photos: Path) -> None:
    write_tar(photos, tmp_path / "a.tar")
    hugging_face(tmp_path / "hf" / "data", [range(9), range(9, COUNT)])
    write_csv(tmp_path / "a.csv")
    write_csv(tmp_path / "a.tsv", "\t")
    write_jsonl(photos / "metadata.jsonl")
    paths = [f"{i:03d}.png" for i in range(COUNT)]
    write_parquet(tmp_path / "paths.parquet", {"filepath": paths, "caption": TEXTS}, row_group_size=7)
    folder = open_source(f"folder:{photos}")
    read = eval_transform(VisionTower(image_size=4))
    expected = [(read(folder[i]["image"]), folder[i]["text"]) for i in range(COUNT)]
    keys = {
        f"webdataset:{tmp_path}/a.tar": "a.tar:020",
        f"parquet:{tmp_path}/hf": "train-00001-of-00002.parquet:11",
        f"parquet:{tmp_path}/hf/data/*.parquet": "train-00001-of-00002.parquet:11",
        f"parquet:{tmp_path}/paths.parquet?images={photos}": "paths.parquet:20",
        f"parquet:{tmp_path}/paths.parquet?images={photos}&key=filepath": "020.png",
        f"csv:{tmp_path}/a.csv?images={photos}": "a.csv:20",
        f"csv:{tmp_path}/a.tsv?images={photos}&image=filepath&text=title": "a.tsv:20",
        f"jsonl:{photos}/metadata.jsonl": "metadata.jsonl:20",
    }
    for spec, key in keys.items():
        source = open_source(spec)
        assert len(source) == COUNT, spec
        assert source[20]["key"] == key
        assert len({source[i]["key"] for i in range(COUNT)}) == COUNT
        for i in (*range(COUNT), 5, 0):
            np.testing.assert_array_equal(read(source[i]["image"]), expected[i][0])
            assert source[i]["text"] == expected[i][1], spec
            if "label" in source[i]:
                assert source[i]["label"] == i % 2
        with pytest.raises(IndexError, match=f"it has {COUNT}"):
            source[COUNT]


def test_cells_become_arrays_mappings_and_tuples(tmp_path: Path) -> None:
    hugging_face(tmp_path / "hf", [range(COUNT)])
    source = open_source(f"parquet:{tmp_path}/hf")
    assert source.classes == ("even", "odd")
    name = "train-00000-of-00001.parquet"
    assert source.shards == {name: (tmp_path / "hf" / name).stat().st_size}
    example = source[7]
    embedding = lookup(example, "embedding")
    assert embedding.dtype == np.float32
    assert embedding.tolist() == [7, 0.5, -1]
    assert example["grid"].dtype == np.uint8
    assert example["grid"].tolist() == [[7, 1], [2, 3]]
    assert example["tags"] == ("a", "7")
    assert lookup(example, "meta.size.width") == 7
    with pytest.raises(BadExample, match=r"no meta\.url: fields of meta are size"):
        lookup(example, "meta.url")
    (tmp_path / "a.jsonl").write_text(
        '\n{"e": [1, 0.5], "n": [1, 2], "t": ["x"], "d": {"a": {"b": 3}, "z": null}, "gone": null}\n'
    )
    example = open_source(f"jsonl:{tmp_path}/a.jsonl")[0]
    assert (example["e"].dtype, example["e"].tolist()) == (np.float32, [1, 0.5])
    assert (example["n"].dtype, example["n"].tolist(), example["t"]) == (np.int64, [1, 2], ("x",))
    assert lookup(example, "d.a.b") == 3
    for path in ("d.z", "gone"):
        with pytest.raises(BadExample, match="no "):
            lookup(example, path)


def test_lists_and_lines_are_several_captions(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", {"text": [["one", "two"], []]})
    source = open_source(f"parquet:{tmp_path}/a.parquet")
    assert source[0]["text"] == source[0]["captions"] == ("one", "two")
    with pytest.raises(BadExample, match="no caption"):
        source[1]["text"]
    (tmp_path / "a.csv").write_text('caption\n"one\n\ntwo"\n')
    example = open_source(f"csv:{tmp_path}/a.csv?captions=lines")[0]
    assert example["text"] == example["captions"] == ("one", "two")


def test_only_the_columns_that_are_asked_for_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hugging_face(tmp_path / "hf", [range(COUNT)])
    source = open_source(f"parquet:{tmp_path}/hf")
    asked = []
    read = pq.ParquetFile.read_row_group

    def spied(file: Any, group: int, columns: Any = None, **options: Any) -> Any:
        asked.append((group, columns))
        return read(file, group, columns, **options)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", spied)
    for i in (9, 10, 8):
        assert source[i]["text"] == TEXTS[i]
    assert asked == [(2, ["text"])]


def test_threads_that_need_the_same_row_group_decode_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hugging_face(tmp_path / "hf", [range(COUNT)])
    source = open_source(f"parquet:{tmp_path}/hf")
    asked = []
    read = parquet._OpenParquet.read

    def slow(file: Any, group: int, column: str) -> Any:
        asked.append(group)
        time.sleep(0.05)
        return read(file, group, column)

    monkeypatch.setattr(parquet._OpenParquet, "read", slow)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda i: source[i]["text"], range(4))) == TEXTS[:4]
    assert asked == [0]


def test_what_is_decoded_and_open_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hugging_face(tmp_path / "hf", [range(i, i + 1) for i in range(COUNT)])
    monkeypatch.setattr(parquet, "CACHE_BYTES", 600)
    monkeypatch.setattr(parquet, "OPEN_FILES", 3)
    source = open_source(f"parquet:{tmp_path}/hf")
    assert isinstance(source, parquet.Parquet)
    before = len(os.listdir("/proc/self/fd"))
    for i in [*range(COUNT), *reversed(range(COUNT))]:
        assert source[i]["image"] == picture(i)
        assert len(source._open) <= 3
        assert source._bytes == sum(values.nbytes for values in source._decoded.values())
        assert source._bytes <= 600 or len(source._decoded) == 1
    assert len(os.listdir("/proc/self/fd")) <= before + 3
    assert len(pickle.dumps(source)) == len(pickle.dumps(open_source(f"parquet:{tmp_path}/hf")))


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl"])
def test_threads_and_copies_read_the_same_in_any_order(kind: str, tmp_path: Path, photos: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(parquet, "CACHE_BYTES", 1500)
    monkeypatch.setattr(parquet, "OPEN_FILES", 1)
    hugging_face(tmp_path / "hf", [range(9), range(9, COUNT)], group=3)
    write_csv(photos / "a.csv")
    write_jsonl(photos / "a.jsonl")
    source = open_source(
        {"parquet": f"parquet:{tmp_path}/hf", "csv": f"csv:{photos}/a.csv", "jsonl": f"jsonl:{photos}/a.jsonl"}[kind]
    )
    copy = pickle.loads(pickle.dumps(source))
    wrong: list[Any] = []

    def work(seed: int) -> None:
        reader = (source, copy)[seed % 2]
        for i in np.random.default_rng(seed).integers(0, COUNT, 100).tolist():
            try:
                if (reader[i]["image"], reader[i]["text"]) != (picture(i), TEXTS[i]):
                    wrong.append(i)
            except BaseException as error:
                wrong.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_nulls_and_wrong_types_are_bad_examples_by_name(tmp_path: Path) -> None:
    image = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    columns = {
        "image": pa.array([{"bytes": None, "path": None}, {"bytes": None, "path": "no.png"}, None], image),
        "text": [None, "b", "c"],
        "label": [0.5, 1.0, None],
        "e": [[1.0, None], None, [1.0]],
        "ragged": [[[1], [1, 2]], [[1]], [[2]]],
        "count": [1, 2, 3],
    }
    path = write_parquet(tmp_path / "a.parquet", columns)
    source = open_source(f"parquet:{path}")
    for row, field, message in (
        (0, "text", "no text: its cell is empty"),
        (0, "image", "its bytes and its path are null"),
        (1, "image", r"image 'no\.png': file cannot be read: No such file"),
        (2, "image", "no image: its cell is empty"),
        (0, "label", "label is not a whole number"),
        (0, "e", "1 of its 2 numbers are null"),
        (0, "ragged", "several lengths"),
    ):
        with pytest.raises(BadExample, match=message):
            source[row][field]
    with pytest.raises(BadExample, match="text is no text: column count is a int"):
        open_source(f"parquet:{path}?text=count")[0]["text"]


def test_a_label_that_no_class_has_is_a_bad_example(tmp_path: Path) -> None:
    features = {"fine": {"names": ["a", "b"], "_type": "ClassLabel"}}
    table = pa.table({"fine": [1, -1]}).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, tmp_path / "a.parquet")
    source = open_source(f"parquet:{tmp_path}/a.parquet")
    assert (source.classes, source[0]["label"]) == (("a", "b"), 1)
    with pytest.raises(BadExample, match="label is -1, but there are 2 classes"):
        source[1]["label"]


@pytest.mark.parametrize(
    "path", ["../secret.png", "/etc/hostname", "a/../../secret.png", "..", ".", "", "https://x/y.png", "a\0b"]
)
def test_a_path_that_leads_out_of_the_folder_is_refused(path: str, tmp_path: Path, photos: Path) -> None:
    (tmp_path / "secret.png").write_bytes(picture(0))
    write_parquet(tmp_path / "a.parquet", {"path": [path, "001.png", str(photos / "002.png")]})
    (tmp_path / "a.jsonl").write_text(
        "\n".join(json.dumps({"path": name}) for name in (path, "001.png", str(photos / "002.png")))
    )
    for kind in ("parquet", "jsonl"):
        source = open_source(f"{kind}:{tmp_path}/a.{kind}?images={photos}")
        with pytest.raises(BadExample, match="image"):
            source[0]["image"]
        assert (source[1]["image"], source[2]["image"]) == (picture(1), picture(2))
        assert len(source.fingerprint()) == 32


def test_tables_that_are_none_are_refused_with_file_and_reason(tmp_path: Path) -> None:
    whole = Path(write_parquet(tmp_path / "a.parquet", {"text": ["a"] * 100, "n": list(range(100))})).read_bytes()
    write_parquet(tmp_path / "other.parquet", {"text": ["a"]})
    write_parquet(tmp_path / "empty.parquet", {"text": pa.array([], pa.string())})
    (tmp_path / "none").mkdir()
    for name, content in (("cut", whole[:-20]), ("short", b"PAR1"), ("zero", b""), ("text", b"hello, world")):
        (tmp_path / f"{name}.parquet").write_bytes(content)
        with pytest.raises(SourceError, match=rf"{name}\.parquet is no whole Parquet file: .*; get it again"):
            open_source(f"parquet:{tmp_path}/{name}.parquet")
    for spec, message in (
        ("{a,other}.parquet", r"other\.parquet has other columns than the first file: n"),
        ("empty.parquet", "no row in 1 files"),
        ("none", r"no \.parquet file"),
        ("b.parquet", "source 'parquet:.*no file"),
        ("a.parquet?image=n", "column n is int64; an image is bytes"),
        ("a.parquet?image=x", "no column 'x'; columns: text, n"),
        ("a.parquet?key=text", "the key 'a' comes twice"),
        ("a.parquet?images=/nowhere", "no folder '/nowhere'"),
        ("a.parquet?split=train", "split= chooses"),
        ("a.parquet?size=3", "option 'size' is unknown"),
    ):
        with pytest.raises(SourceError, match=message):
            open_source(f"parquet:{tmp_path}/{spec}")


def test_a_folder_of_several_splits_asks_for_one(tmp_path: Path) -> None:
    hugging_face(tmp_path / "data", [range(4)])
    write_parquet(tmp_path / "data" / "test-00000-of-00001.parquet", {"text": ["t"]})
    with pytest.raises(SourceError, match=r"several splits; add \?split= one of test, train"):
        open_source(f"parquet:{tmp_path}")
    assert len(open_source(f"parquet:{tmp_path}?split=train")) == 4
    assert open_source(f"parquet:{tmp_path}?split=test")[0]["text"] == "t"
    with pytest.raises(SourceError, match="no split 'dev'; splits: test, train"):
        open_source(f"parquet:{tmp_path}?split=dev")


def test_damaged_pages_and_changed_files_are_bad_examples(tmp_path: Path) -> None:
    texts = [f"{i} {'x' * (i % 7)}" for i in range(2000)]
    path = tmp_path / "a.parquet"
    write_parquet(path, {"text": texts}, row_group_size=1000, use_dictionary=False, compression="zstd")
    content = bytearray(path.read_bytes())
    content[200:260] = bytes(60)
    path.write_bytes(content)
    source = open_source(f"parquet:{path}")
    with pytest.raises(BadExample, match=r"row group 0 of .*a\.parquet cannot be read"):
        source[3]["text"]
    assert source[1500]["text"] == texts[1500]
    fresh = open_source(f"parquet:{path}")
    write_parquet(path, {"text": ["other"] * 2000})
    with pytest.raises(BadExample, match=r"a\.parquet was changed since it was opened"):
        fresh[1500]["text"]


def test_random_damage_is_a_source_error_or_a_bad_example(tmp_path: Path) -> None:
    hugging_face(tmp_path / "hf", [range(6)])
    whole = next((tmp_path / "hf").iterdir()).read_bytes()
    path = tmp_path / "a.parquet"
    refused, bad = 0, 0
    for seed in range(150):
        rng = np.random.default_rng(seed)
        content = bytearray(whole)
        for place in rng.integers(len(whole) - 2500 if seed % 2 else 4, len(whole), 1 + seed % 3).tolist():
            content[place] = int(rng.integers(256))
        path.write_bytes(content)
        try:
            source = open_source(f"parquet:{path}")
            source.fingerprint()
        except SourceError:
            refused += 1
            continue
        for row in range(min(len(source), 6)):
            for field in source[row]:
                try:
                    source[row][field]
                except BadExample:
                    bad += 1
    assert refused > 10
    assert bad > 10


def test_numbers_beyond_f32_are_bad_examples(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", {"e": [[1e300], [np.inf, 1.0]]})
    (tmp_path / "a.jsonl").write_text('{"e": [1e300, 1]}\n{"e": [Infinity, 1]}')
    for kind in ("parquet", "jsonl"):
        source = open_source(f"{kind}:{tmp_path}/a.{kind}")
        with pytest.raises(BadExample, match="too large for f32"):
            source[0]["e"]
        assert source[1]["e"].tolist() == [np.inf, 1]


def test_values_of_json_that_cannot_be_used_spoil_no_other(tmp_path: Path) -> None:
    deep = f"{'[' * 3000}{']' * 3000}"
    (tmp_path / "a.jsonl").write_text(f'{{"text": "a", "holes": [1.5, null]}}\n{{"deep": {deep}}}')
    source = open_source(f"jsonl:{tmp_path}/a.jsonl")
    assert source[0]["text"] == "a"
    with pytest.raises(BadExample, match="1 of its 2 numbers are null"):
        source[0]["holes"]
    with pytest.raises(BadExample, match=r"nested too deeply|its line is no JSON"):  # as deep as this Python's parser goes
        source[1]["deep"]


def test_without_pyarrow_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(SourceError, match=r'pip install "jclip\[tables\]"'):
        open_source("parquet:x.parquet")


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
def test_a_byte_order_mark_is_no_part_of_a_table(bom: bytes, tmp_path: Path) -> None:
    for kind, content in (("csv", b'text,n\n\n"a\rb",1\n'), ("jsonl", b'{"text": "a\\rb", "n": "1"}')):
        (tmp_path / f"a.{kind}").write_bytes(bom + content)
        for option in ("", "?key=n"):
            source = open_source(f"{kind}:{tmp_path}/a.{kind}{option}")
            assert list(source[0]) == ["key", "text", "n"]
            assert (source[0]["text"], source[0]["key"]) == ("a\rb", "1" if option else f"a.{kind}:0")


def test_a_key_that_comes_twice_or_is_none_is_refused(tmp_path: Path) -> None:
    for kind, content in (("csv", "text,id\na,1\nb\nc,{}\n"), ("jsonl", '{{"id": 1}}\n7\n{{"id": "{}"}}\n')):
        path = tmp_path / f"a.{kind}"
        for second, message in (("1", "the key '1' comes twice in column id"), ("", "key is no text or whole number")):
            path.write_text(content.format(second))
            with pytest.raises(SourceError, match=message):
                open_source(f"{kind}:{path}?key=id")
        path.write_text(content.format("2"))
        assert open_source(f"{kind}:{path}?key=id")[2]["key"] == "2"


def test_rows_of_other_lengths_and_lines_that_are_no_json_are_bad_examples(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('text,n\na,1\nb\nc,2,3\n\n"d\n",""\n')
    source = open_source(f"csv:{tmp_path}/a.csv")
    assert len(source) == 4
    assert source[3]["text"] == "d\n"
    for row, message in ((1, "its row has 1 cells, and the header 2"), (2, "its row has 3 cells")):
        with pytest.raises(BadExample, match=message):
            source[row]
    with pytest.raises(BadExample, match="no n: its cell is empty"):
        source[3]["n"]
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a"}\n{"text": \n[1]\n{"text": "\xff"}\n' + b"[" * 100_000 + b'\n{"text": "b"}')
    source = open_source(f"jsonl:{tmp_path}/a.jsonl")
    assert (len(source), source[5]["text"]) == (6, "b")
    for row, message in ((1, "no JSON"), (2, "but a list"), (3, "not UTF-8"), (4, "no JSON")):
        with pytest.raises(BadExample, match=message):
            source[row]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "tëxt\na".encode("utf-16"), "line 1 is not UTF-8"),
        ("a.csv", "text\ncafé".encode("latin-1"), "line 2 is not UTF-8"),
        ("a.csv", b'text,n\n"a,1\nb,2\n', "line 3: unexpected end of data; the row that begins at byte 7"),
        ("a.csv", b"", "no row in it"),
        ("a.csv", b"text,n\n", "no row in it"),
        ("a.csv", b"text,text\na,b\n", "several columns 'text'"),
        ("a.csv", b"text\tn\na\tb\n", "one column.*add separator=tab"),
        ("a.csv.gz", b"text", "compressed"),
        ("a.jsonl", b'[{"text": 1}]', "the first line: its line is no object of JSON, but a list"),
        ("a.jsonl", b"\n \n", "no row in it"),
    ],
)
def test_a_text_that_is_no_table_is_refused_by_name(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SourceError, match=f"(?s){message}"):
        open_source(f"{name.split('.')[1]}:{tmp_path}/{name}")
    with pytest.raises(SourceError, match="there is no file"):
        open_source(f"csv:{tmp_path}/none.csv")


def test_an_index_is_used_again_until_its_file_changes(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text,n\na,1\nb,2\n")
    scans = []
    scan = rows._csv_starts

    def counted(name: str, separator: str) -> Iterator[int]:
        scans.append(name)
        return scan(name, separator)

    monkeypatch.setattr(rows, "_csv_starts", counted)
    source = open_source(f"csv:{path}")
    assert open_source(f"csv:{path}")[1]["text"] == "b"
    assert len(scans) == 1
    (index,) = (cache / "rows").iterdir()
    content = bytearray(index.read_bytes())
    content[-8] ^= 1  # a damaged index is built again
    index.write_bytes(content)
    assert open_source(f"csv:{path}")[1]["text"] == "b"
    assert len(scans) == 2
    status = path.stat()
    path.write_text("text,n\nx,1\ny,2\n")  # as long, and as old as before: the inode's time of change tells
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert open_source(f"csv:{path}")[1]["text"] == "y"
    assert len(scans) == 3
    with pytest.raises(BadExample, match="was changed since it was opened"):
        source[1]
    index.write_bytes(b"")
    monkeypatch.setattr(row_index, "write_atomically", lambda *args: (_ for _ in ()).throw(OSError("read-only")))
    assert pickle.loads(pickle.dumps(open_source(f"csv:{path}")))[0]["text"] == "x"


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl"])
def test_a_copy_has_the_same_fingerprint_and_a_change_another(kind: str, tmp_path: Path, photos: Path) -> None:
    write_csv(photos / "a.csv")
    write_jsonl(photos / "a.jsonl")
    write_parquet(photos / "a.parquet", {"path": [f"{i:03d}.png" for i in range(COUNT)], "title": TEXTS})
    other = tmp_path / "copy"
    shutil.copytree(photos, other)
    found = open_source(f"{kind}:{photos}/a.{kind}").fingerprint()
    assert open_source(f"{kind}:{other}/a.{kind}").fingerprint() == found
    options = {"parquet": "text=path", "csv": "text=filepath", "jsonl": "text=file_name"}[kind]
    assert open_source(f"{kind}:{other}/a.{kind}?{options}").fingerprint() != found
    (other / "004.png").write_bytes(picture(5))
    changed = open_source(f"{kind}:{other}/a.{kind}").fingerprint()
    (other / "004.png").unlink()
    assert len({open_source(f"{kind}:{other}/a.{kind}").fingerprint(), changed, found}) == 3


def test_the_fingerprint_of_images_in_parquet_does_not_decode_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hugging_face(tmp_path / "hf", [range(4)])
    source = open_source(f"parquet:{tmp_path}/hf")
    monkeypatch.setattr(parquet._OpenParquet, "read", lambda *args: pytest.fail("it was read"))
    assert len(source.fingerprint()) == 32


def test_a_cell_may_be_long(tmp_path: Path) -> None:
    text = "word " * 30_000
    (tmp_path / "long.csv").write_text(f'image,text\na.jpg,"{text}"\n')
    assert open_source(f"csv:{tmp_path}/long.csv")[0]["text"] == text


FIVE = [("a.png", "one"), ("b.png", "two"), ("a.png", "three"), ("", "lost"), ("b.png", " "), ("a.png", "five"), ("", "too")]


def table_of_five(kind: str, folder: Path) -> str:
    """Three texts of an image, one and a blank one of another, and two rows without an image."""
    for i, name in enumerate("ab"):
        (folder / f"{name}.png").write_bytes(picture(i))
    path = folder / f"t.{kind}"
    if kind == "parquet":
        images, texts = zip(*FIVE, strict=True)
        number = [int(name.startswith("b")) if name else None for name in images]
        table = pa.table({"filepath": [name or None for name in images], "text": texts, "number": number})
        pq.write_table(table, path, row_group_size=2)
    elif kind == "csv":
        path.write_text("filepath,text,number\n" + "".join(f"{a},{b},{a[:1] and int(a[0] == 'b')}\n" for a, b in FIVE))
    else:
        lines = [{"filepath": a or None, "text": b, "number": int(a[0] == "b") if a else None} for a, b in FIVE]
        path.write_text("\n\n".join(map(json.dumps, lines)))
    return f"{kind}:{path}"


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_rows_of_the_same_image_are_one_example_if_that_is_said(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spec = table_of_five(kind, tmp_path)
    assert len(open_source(spec)) == 7
    assert f"source {spec!r}: 3 of its first 5 rows have the image of an earlier row" in caplog.text
    caplog.clear()
    source = open_source(f"{spec}?captions=rows")
    assert not caplog.text
    for copy in (source, pickle.loads(pickle.dumps(source))):
        assert len(copy) == 4
        assert [example["key"] for example in copy] == [f"t.{kind}:{row}" for row in (0, 1, 3, 6)]
        assert [copy[i]["captions"] for i in range(4)] == [("one", "three", "five"), ("two",), ("lost",), ("too",)]
        assert copy[0]["text"] == copy[0]["captions"]
        assert [copy[i]["image"] for i in range(2)] == [picture(0), picture(1)]
        with pytest.raises(BadExample, match="its cell is empty"):
            copy[2]["image"]
    by_key = open_source(f"{spec}?captions=rows&key=number")
    assert [by_key[i]["key"] for i in range(2)] == ["0", "1"]
    assert [by_key[i]["captions"] for i in range(2)] == [("one", "three", "five"), ("two",)]
    prints = [open_source(f"{spec}{options}").fingerprint() for options in ("", "?captions=rows", "?captions=rows")]
    assert prints[0] != prints[1] == prints[2]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_paths_of_sounds_are_identified_by_their_values(kind: str, tmp_path: Path) -> None:
    """Common Voice's table, whose column `path` would be an image's by its name; and tables in which it is one."""
    (tmp_path / "clips").mkdir()
    for name in ("a.mp3", "b.MP3", "c.png"):
        (tmp_path / "clips" / name).write_bytes(name.encode())

    def spec(name: str, column: str, values: list[str | None], *more: str) -> str:
        texts = ["one", "two", "three"][: len(values)]
        if kind == "csv":
            write_rows(
                tmp_path / f"{name}.csv", [[column, "sentence"], *([v or "", t] for v, t in zip(values, texts, strict=True))]
            )
        elif kind == "jsonl":
            rows = [{column: v, "sentence": t} for v, t in zip(values, texts, strict=True)]
            (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        else:
            pq.write_table(pa.table({column: values, "sentence": texts}), tmp_path / f"{name}.parquet")
        return "&".join([f"{kind}:{tmp_path}/{name}.{kind}?images={tmp_path}/clips&text=sentence", *more])

    voice = open_source(spec("voice", "path", [None, "a.mp3", "b.MP3"]))
    assert [voice[i]["sound"] for i in (1, 2)] == [b"a.mp3", b"b.MP3"]
    assert "image" not in voice[1]
    assert voice[2]["text"] == "three"
    assert open_source(spec("clips", "filename", ["a.mp3", "a.mp3"]))[1]["sound"] == b"a.mp3"
    pictures = open_source(spec("pictures", "path", ["c.png", "a.mp3"]))
    assert pictures[0]["image"] == b"c.png"
    assert "sound" not in pictures[0]
    assert open_source(spec("asked", "path", ["a.mp3"], "image=path"))[0]["image"] == b"a.mp3"
    assert (
        open_source(spec("voice", "path", ["a.mp3"])).fingerprint()
        == open_source(spec("voice", "path", ["a.mp3"], "sound=path")).fingerprint()
    )


def test_the_tables_of_clotho_and_audiocaps_are_sounds_with_several_captions(tmp_path: Path) -> None:
    (tmp_path / "audio").mkdir()
    for name in ("a b.wav", "Yx1.wav", "Yy2.wav"):
        (tmp_path / "audio" / name).write_bytes(name.encode())
    captions = [f"caption_{i}" for i in range(1, 6)]
    write_rows(tmp_path / "clotho.csv", [["file_name", *captions], ["a b.wav", "one", "two, three", "", "four", "five"]])
    clotho = f"csv:{tmp_path}/clotho.csv?sound=file_name&images={tmp_path}/audio"
    example = open_source(f"{clotho}&text={','.join(captions)}")[0]
    assert example["sound"] == b"a b.wav"
    assert example["captions"] == example["text"] == ("one", "two, three", "four", "five")
    rows = [("1", "x1", "0", "a dog"), ("2", "y2", "30", "rain"), ("3", "x1", "0", "a dog barks")]
    header = ("audiocap_id", "youtube_id", "start_time", "caption")
    write_rows(tmp_path / "audiocaps.csv", [header, *rows])
    spec = f"csv:{tmp_path}/audiocaps.csv?sound=Y{{youtube_id}}.wav&images={tmp_path}/audio&captions=rows"
    source = open_source(spec)
    assert [(e["sound"], e["captions"]) for e in map(source.__getitem__, range(2))] == [
        (b"Yx1.wav", ("a dog", "a dog barks")),
        (b"Yy2.wav", ("rain",)),
    ]
    prints = [source.fingerprint(), open_source(clotho + "&text=caption_1").fingerprint()]
    prints += [open_source(f"{clotho}&text={text}").fingerprint() for text in ("caption_1,caption_2", "caption_2,caption_1")]
    (tmp_path / "audio" / "Yy2.wav").write_bytes(b"other")
    prints.append(open_source(spec).fingerprint())
    assert len(set(prints)) == len(prints)
    write_rows(tmp_path / "none.csv", [["file_name", "a", "b"], ["a b.wav", " ", ""], ["a b.wav", "x", ""]])
    none = open_source(f"csv:{tmp_path}/none.csv?sound=file_name&text=a,b&images={tmp_path}/audio")
    with pytest.raises(BadExample, match="it has no caption"):
        none[0]["captions"]
    assert none[1]["captions"] == ("x",)
    numbers = tmp_path / "numbers.jsonl"
    (tmp_path / "audio" / "7.wav").write_bytes(b"seven")
    numbers.write_text('{"id": 7, "caption": "a"}\n')
    assert open_source(f"jsonl:{numbers}?sound={{id}}.wav&images={tmp_path}/audio")[0]["sound"] == b"seven"
    for option, message in (
        ("text=caption_1,caption_9", "text= has 'caption_9', which is no column, or is there twice"),
        ("text=caption_1,caption_1", "text= has 'caption_1', which is no column, or is there twice"),
        ("sound={name}.wav", "there is no column 'name'"),
    ):
        with pytest.raises(SourceError, match=message):
            open_source(f"csv:{tmp_path}/clotho.csv?{option}")


def write_rows(path: Path, rows: list[Any]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


def test_rows_cannot_be_joined_by_what_is_not_there(tmp_path: Path, photos: Path) -> None:
    (tmp_path / "a.csv").write_text("title\na\n")
    with pytest.raises(SourceError, match="captions=rows needs a column of texts and one of images"):
        open_source(f"csv:{tmp_path}/a.csv?captions=rows")
    pq.write_table(pa.table({"image": [b"1", b"2"], "text": ["a", "b"]}), tmp_path / "a.parquet")
    with pytest.raises(SourceError, match="column image holds the images; name a column that identifies them with key="):
        open_source(f"parquet:{tmp_path}/a.parquet?captions=rows")


def test_a_few_images_that_come_again_are_not_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows_ = [f"{max(i, 1)}.png,{i}" for i in range(200)]
    (tmp_path / "a.csv").write_text("\n".join(["image,text", *rows_]))
    open_source(f"csv:{tmp_path}/a.csv")
    assert not caplog.text
