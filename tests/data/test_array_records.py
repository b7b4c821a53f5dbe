"""The source `arrayrecord`: what `jclip pack` writes is the source again, other people's records are read, and damage is told."""

import dataclasses
import io
import json
import pickle
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from archives import write_tar
from PIL import Image
from test_cli import exit_status
from tiny import tiny_config

from jclip import pack
from jclip.config import ConfigError
from jclip.data import BadExample, SourceError, array_records, open_source
from jclip.data.array_records import count, writing
from jclip.data.decoding import Decode
from jclip.data.tf_example import decode, encode
from jclip.parts import prepare

RECORDS = pack.Options(per_shard=3, shards="arrayrecord")


def picture(seed: int, size: int = 40) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size + seed, 3)).astype(np.uint8)
    written = io.BytesIO()
    Image.fromarray(pixels).save(written, "PNG")
    return written.getvalue()


@pytest.fixture
def tars(tmp_path: Path) -> str:
    """Seven samples, of which number 3 has no image that can be read."""
    members: dict[str, bytes] = {}
    for i in range(7):
        members |= {f"a{i}.png": picture(i) if i != 3 else b"torn", f"a{i}.txt": f"caption {i}\nand more".encode()}
        members |= {f"a{i}.json": json.dumps({"uid": i}).encode(), f"a{i}.depth.png": picture(i, 4), f"a{i}.wav": b"sound"}
    write_tar(tmp_path / "in.tar", members)
    return f"webdataset:{tmp_path}/in.tar"


def everything(spec: str) -> list[dict[str, Any]]:
    source = open_source(spec)
    return [{name: example[name] for name in example if name != "key"} for example in map(source.__getitem__, range(len(source)))]


def test_what_is_packed_is_what_tars_would_hold(tars: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_status(["pack", tars, str(tmp_path / "out"), "--per-shard", "3", "--shards", "arrayrecord"]) == 0
    said = capsys.readouterr()
    spec = said.out.strip()
    assert spec == f"arrayrecord:{tmp_path}/out"
    assert "6 examples in 3 shards" in said.err
    tarred = pack.main(tars, tmp_path / "tars", pack.Options(per_shard=3))
    assert everything(spec) == everything(tarred)
    assert everything(f"{spec}?captions=lines")[1]["captions"] == ("caption 1", "and more")
    source, other = open_source(spec), open_source(tarred)
    for i in range(6):
        assert source[i]["key"].replace(".array_record:", ".tar:") == other[i]["key"]
        assert source[i]["sound"] == b"sound"
    assert source.fingerprint() != other.fingerprint()
    again = pickle.loads(pickle.dumps(source))
    assert again[5]["image"] == source[5]["image"]
    assert list(source.shards.values()) == [path.stat().st_size for path in sorted((tmp_path / "out").glob("*.array_record"))]
    assert source.shard_ends == [3, 5, 6]
    files = open_source(f"arrayrecord:{tmp_path}/out/0000{{0,2}}.array_record")
    assert [files[i]["json"]["uid"] for i in range(len(files))] == [0, 1, 2, 6]


def test_pictures_are_made_as_small_as_in_tars(tars: str, tmp_path: Path) -> None:
    options = pack.Options(shorter_side=24, format="png", shards="arrayrecord")
    small = everything(pack.main(tars, tmp_path / "out", options))
    assert small == everything(pack.main(tars, tmp_path / "tars", dataclasses.replace(options, shards="webdataset")))
    assert min(Decode()(small[0]["image"]).size) == 24


def test_the_same_source_gives_the_same_bytes_and_a_stopped_call_is_gone_on_from(tars: str, tmp_path: Path) -> None:
    for folder in ("one", "two"):
        spec = pack.main(tars, tmp_path / folder, RECORDS)
    names = sorted(path.name for path in (tmp_path / "one").glob("*.array_record"))
    assert names == [f"0000{i}.array_record" for i in range(3)]
    assert all((tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes() for name in names)
    manifest = json.loads((tmp_path / "two/manifest.json").read_text())
    whole, time = (tmp_path / "two" / names[1]).read_bytes(), (tmp_path / "two" / names[0]).stat().st_mtime_ns
    del manifest["shards"][names[1]]  # as a call that was stopped has left it
    (tmp_path / "two/manifest.json").write_text(json.dumps(manifest))
    (tmp_path / "two" / names[1]).unlink()
    with pytest.raises(SourceError, match=r"some of 7 examples are not packed yet; go on with `jclip pack`"):
        open_source(spec)
    pack.main(tars, tmp_path / "two", RECORDS)
    assert (tmp_path / "two" / names[1]).read_bytes() == whole
    assert (tmp_path / "two" / names[0]).stat().st_mtime_ns == time
    with pytest.raises(ConfigError, match="holds shards of another form"):
        pack.main(tars, tmp_path / "two", dataclasses.replace(RECORDS, shards="webdataset"))
    (tmp_path / "two/manifest.json").unlink()
    with pytest.raises(ConfigError, match=r"two has 00000\.array_record, and no manifest\.json"):
        pack.main(tars, tmp_path / "two")


def test_a_manifest_from_before_there_were_two_formats_is_one_of_tars(tars: str, tmp_path: Path) -> None:
    pack.main(tars, tmp_path / "out")
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    del manifest["options"]["shards"]
    (tmp_path / "out/manifest.json").write_text(json.dumps(manifest))
    assert pack.main(tars, tmp_path / "out") == f"webdataset:{tmp_path}/out/00000.tar"


def test_a_labelled_set_keeps_its_classes_and_trains(tmp_path: Path) -> None:
    drawn = open_source("shapes:val?size=16&length=5")
    name = pack.main("shapes:val?size=16&length=5", tmp_path / "out", RECORDS)
    assert name == f"arrayrecord:{tmp_path}/out/train"
    packed = open_source(name)
    assert packed.classes == drawn.classes
    assert packed.templates == drawn.templates
    for i in range(5):
        assert packed[i]["label"] == drawn[i]["label"]
        assert packed[i]["text"] == drawn[i]["text"]
        np.testing.assert_array_equal(np.asarray(Decode()(packed[i]["image"])), drawn[i]["image"])
    (part,) = prepare(tiny_config(**{"data.source": name, "batch_size": 8, "evals": {}, "checkpoint.best": None}))
    assert len(part.data.source) == 5


def test_records_of_others_are_read_by_their_features(tmp_path: Path) -> None:
    """Made with the protocol buffer itself, which encodes numbers packed."""
    proto = pytest.importorskip("tensorflow_datasets.proto.tf_example_generated_pb2")
    example = proto.Example()
    feature = example.features.feature
    feature["image"].bytes_list.value.append(b"pixels")
    feature["txt"].bytes_list.value.append("grün".encode())
    feature["tags"].bytes_list.value.extend([b"a", b"b"])
    feature["label"].int64_list.value.append(-3)
    feature["ids"].int64_list.value.extend([2**62, -1, 0])
    feature["score"].float_list.value.append(0.5)
    feature["vector"].float_list.value.extend([1.5, -2.0])
    feature["nothing"].bytes_list.SetInParent()
    write_records(tmp_path / "theirs.array_record-00000-of-00001", [example.SerializeToString()])
    one = open_source(f"arrayrecord:{tmp_path}/theirs*")[0]
    assert one["key"] == "theirs.array_record-00000-of-00001:0"
    assert (one["image"], one["text"], one["tags"], one["label"], one["score"]) == (b"pixels", "grün", (b"a", b"b"), -3, 0.5)
    np.testing.assert_array_equal(one["ids"], np.array([2**62, -1, 0]))
    np.testing.assert_array_equal(one["vector"], np.float32([1.5, -2.0]))
    with pytest.raises(BadExample, match=r"its \.nothing has no value"):
        one["nothing"]
    parsed = proto.Example.FromString(encode({"txt": b"x" * 300, "jpg": b""}))
    found = {name: list(value.bytes_list.value) for name, value in parsed.features.feature.items()}
    assert found == {"txt": [b"x" * 300], "jpg": [b""]}


def write_records(path: Path, records: list[bytes]) -> None:
    writer = array_records._module().ArrayRecordWriter(str(path), "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()


def test_what_is_no_example_is_a_broken_one_and_never_another_error(tmp_path: Path) -> None:
    whole = encode({"__key__": b"k", "txt": b"a text", "jpg": bytes(range(256))})
    assert decode(whole) == {"__key__": [b"k"], "txt": [b"a text"], "jpg": [bytes(range(256))]}
    rng = np.random.default_rng(0)
    records = [whole, b"\xff" * 40, b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7f", *(whole[:n] for n in range(1, 40, 3))]
    for _ in range(300):
        flipped = bytearray(whole)
        flipped[rng.integers(40)] = rng.integers(256)
        records.append(bytes(flipped))
    write_records(tmp_path / "a.array_record", records)
    source, broken = open_source(f"arrayrecord:{tmp_path}"), 0
    for i in range(len(records)):
        try:
            example = source[i]
            for name in example:
                example[name]
        except BadExample:
            broken += 1
    assert source[0]["key"] == "a.array_record:k"
    assert 100 < broken < len(records)


def test_files_that_are_cut_or_none_are_refused(tars: str, tmp_path: Path) -> None:
    spec = pack.main(tars, tmp_path / "out", RECORDS)
    path = tmp_path / "out/00001.array_record"
    whole = path.read_bytes()
    assert (count(path), count(tmp_path / "none")) == (2, -1)
    path.write_bytes(whole[:-1])
    with pytest.raises(SourceError, match=r"00001\.array_record is not of [\d,]+ bytes, as manifest\.json says"):
        open_source(spec)
    (tmp_path / "out/manifest.json").unlink()
    for damage in (whole[: len(whole) // 2], b"", b"no record" * 10_000):
        path.write_bytes(damage)
        with pytest.raises(SourceError, match=r"00001\.array_record is cut short, or no array_record"):
            open_source(spec)
    path.write_bytes(whole[:70_000] + bytes(30) + whole[70_030:] if len(whole) > 80_000 else whole)
    source = open_source(spec)
    (tmp_path / "out/00002.array_record").write_bytes(whole)
    with pytest.raises(BadExample, match="was changed since it was opened"):
        source[len(source) - 1]
    with pytest.raises(IndexError):
        source[len(source)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shards": {"../x.array_record": {"bytes": 1, "examples": 7, "broken": 0}}}, r"names '\.\./x\.array_record'"),
        ({"shards": {"0.tar": {"bytes": 1, "examples": 7, "broken": 0}}}, r"names '0\.tar', which is no \*\.array_record"),
        ({"shards": {"0.array_record": {"bytes": "many"}}}, "is damaged"),
        ({"shards": []}, "is damaged"),
        ({"classes": 3}, "is damaged"),
    ],
)
def test_a_manifest_is_not_trusted(tars: str, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    spec = pack.main(tars, tmp_path / "out", RECORDS)
    path = tmp_path / "out/manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(SourceError, match=message):
        open_source(spec)


def test_threads_read_at_once_with_few_files_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(array_records, "most_open", lambda held: 2)
    for shard in range(6):
        write_records(tmp_path / f"{shard}.array_record", [encode({"txt": f"{shard} {i}".encode() * 50}) for i in range(20)])
    source, wrong = open_source(f"arrayrecord:{tmp_path}"), list[int]()

    def read(seed: int) -> None:
        for i in np.random.default_rng(seed).integers(0, 120, 300).tolist():
            if source[i]["text"] != f"{i // 20} {i % 20}" * 50:
                wrong.append(i)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(source._open) <= 2


def test_what_is_not_done_is_said(tmp_path: Path, tars: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SourceError, match="addresses are not read by array_record"):
        open_source("arrayrecord:s3://bucket/a.array_record")
    with pytest.raises(SourceError, match=r"there is no \*\.array_record in it"):
        open_source(f"arrayrecord:{tmp_path}")
    with pytest.raises(SourceError, match="captions=rows is unknown"):
        open_source(f"arrayrecord:{tmp_path}?captions=rows")
    with writing(tmp_path / "empty.array_record"):
        pass
    with pytest.raises(SourceError, match="no record in 1 files"):
        open_source(f"arrayrecord:{tmp_path}")
    monkeypatch.setitem(__import__("sys").modules, "array_record.python", None)
    with pytest.raises(SourceError, match=r'array_record cannot be imported .*; pip install "jclip\[tfds\]"'):
        pack.main(tars, tmp_path / "out", RECORDS)


def test_a_disk_that_is_full_is_an_error_of_the_disk() -> None:
    with pytest.raises(OSError, match="array_record cannot write /dev/full"), writing(Path("/dev/full")) as add:
        add([("0.txt", b"text" * 100_000)])
    with pytest.raises(OSError, match=r"array_record cannot write /none/a: .*No such file"), writing(Path("/none/a")) as add:
        add([("0.txt", b"text")])


def test_features_of_several_kinds_are_refused() -> None:
    both = b"\x0a\x03\x0a\x01a" + b"\x1a\x02\x08\x01"  # a list of bytes, and one of numbers
    with pytest.raises(ValueError, match="a field of 4 bytes ends beyond its message"):
        decode(b"\x0a\x04\x0a\x00")
    entry = b"\x0a\x01f\x12" + bytes([len(both)]) + both
    features = b"\x0a" + bytes([len(entry)]) + entry
    with pytest.raises(ValueError, match="feature 'f' has values of several kinds"):
        decode(b"\x0a" + bytes([len(features)]) + features)


def test_several_labels_an_example_are_refused(tmp_path: Path) -> None:
    class Several:
        classes = ("a", "b")
        templates: tuple[str, ...] = ()

        def __len__(self) -> int:
            return 1

        def __getitem__(self, index: int) -> dict[str, Any]:
            return {"key": "0", "image": np.zeros((4, 4, 3), np.uint8), "label": np.array([True, False])}

        def fingerprint(self) -> str:
            return "0" * 32

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pack, "open_part", lambda *_: Several())
        with pytest.raises(ConfigError, match="several labels an example, which webdataset shards hold"):
            pack.main("several", tmp_path / "out", RECORDS)
