"""`jclip pack`: what is packed is what the source holds, the same bytes every time, and nothing is lost without a word."""

import hashlib
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from archives import write_benchmark, write_tar
from PIL import Image
from test_cli import exit_status
from tiny import tiny_config

from jclip import pack
from jclip.config import ConfigError
from jclip.data import SourceError, open_source
from jclip.data.decoding import Decode
from jclip.parts import prepare


def photo(width: int, height: int, seed: int, form: str = "JPEG") -> bytes:
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (4, 4, 3)).astype(np.uint8))
    written = io.BytesIO()
    small.resize((width, height), Image.Resampling.BICUBIC).save(written, form)
    return written.getvalue()


@pytest.fixture
def shards(tmp_path: Path) -> str:
    """Seven samples in two tars, of which one has no image that can be read."""
    members = {}
    for i in range(7):
        name = f"a{i}"
        members[f"{name}.jpg"] = photo(60 + 10 * i, 40, i) if i != 3 else b"no image"
        members[f"{name}.txt"] = f"caption {i}\nand more".encode()
        members[f"{name}.json"] = json.dumps({"uid": i, "key": "theirs"}).encode()
        members[f"{name}.depth.png"] = photo(8, 8, i, "PNG")
    rows = list(members.items())
    write_tar(tmp_path / "in-0.tar", rows[:16])
    write_tar(tmp_path / "in-1.tar", rows[16:])
    return f"webdataset:{tmp_path}/in-{{0..1}}.tar"


def test_what_is_packed_is_what_the_source_holds(shards: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_status(["pack", shards, str(tmp_path / "out"), "--per-shard", "3"]) == 0
    said = capsys.readouterr()
    name = said.out.strip()
    assert name == f"webdataset:{tmp_path}/out/{{00000..00002}}.tar"
    assert "6 examples in 3 shards" in said.err
    assert "left out: 1 (1 image cannot be decoded: N bytes that are no" in said.err
    before, after = open_source(shards), open_source(name)
    kept = [i for i in range(7) if i != 3]
    assert len(after) == len(kept)
    for i, example in zip(kept, map(after.__getitem__, range(len(after))), strict=True):
        for field in ("image", "text", "depth.png"):
            assert example[field] == before[i][field]
        assert example["json"] == {"uid": i, "key": "theirs", "source_key": before[i]["key"]}
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    for shard, facts in manifest["shards"].items():
        assert hashlib.sha256((tmp_path / "out" / shard).read_bytes()).hexdigest() == facts["sha256"]
    assert [facts["examples"] for facts in manifest["shards"].values()] == [3, 2, 1]
    assert manifest["shards"]["00001.tar"]["problems"][0].startswith("in-0.tar:a3: image cannot be decoded")


def test_a_picture_that_is_cut_short_is_left_out(tmp_path: Path) -> None:
    whole = photo(200, 150, 0)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/whole.jpg").write_bytes(whole)
    (tmp_path / "photos/cut.jpg").write_bytes(whole[: len(whole) // 2])
    packed = open_source(pack.main(str(tmp_path / "photos"), tmp_path / "out"))
    assert [example["image"] for example in map(packed.__getitem__, range(len(packed)))] == [whole]


@pytest.mark.parametrize("form", ["jpeg", "png", "webp"])
def test_pictures_are_made_smaller_by_their_shorter_side(form: str, shards: str, tmp_path: Path) -> None:
    options = pack.Options(shorter_side=24, format=form, per_shard=100)  # type: ignore[arg-type]
    source, packed = open_source(shards), open_source(pack.main(shards, tmp_path / "out", options))
    for i, j in enumerate((0, 1, 2, 4, 5, 6)):
        picture = Image.open(io.BytesIO(packed[i]["image"]))
        assert (picture.format, min(picture.size)) == (form.upper(), 24)
        whole = Decode()(source[j]["image"])
        assert picture.size == (round(whole.width * 24 / 40), 24)
        small = np.asarray(whole.convert("RGB").resize(picture.size, Image.Resampling.BICUBIC), float)
        error = np.abs(np.asarray(picture.convert("RGB"), float) - small).mean()
        assert error == 0 if form == "png" else error < 4
    unchanged = pack.Options(shorter_side=40, format=form)  # type: ignore[arg-type]
    as_they_are = open_source(pack.main(shards, tmp_path / "same", unchanged))
    assert as_they_are[0]["image"] == source[0]["image"]  # none is made larger, or encoded again


def test_the_same_source_gives_the_same_bytes_and_a_stopped_call_is_gone_on_from(shards: str, tmp_path: Path) -> None:
    options = pack.Options(shorter_side=24, per_shard=2)
    for folder in ("one", "two"):
        pack.main(shards, tmp_path / folder, options)
    names = sorted(path.name for path in (tmp_path / "one").glob("*.tar"))
    assert len(names) == 4
    before = {name: (tmp_path / "one" / name).stat().st_mtime_ns for name in names}
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    (tmp_path / "one/00002.tar").write_bytes(b"half")  # as a copy that was cut off
    pack.main(shards, tmp_path / "one", options)
    written = [name for name in names if (tmp_path / "one" / name).stat().st_mtime_ns != before[name]]
    assert written == ["00002.tar"]
    assert (tmp_path / "one/00002.tar").read_bytes() == (tmp_path / "two/00002.tar").read_bytes()


def test_a_folder_takes_one_source_in_one_form(shards: str, tmp_path: Path) -> None:
    other = tmp_path / "photos"
    other.mkdir()
    (other / "one.jpg").write_bytes(photo(20, 20, 0))
    pack.main(shards, tmp_path / "out", pack.Options(per_shard=3))
    with pytest.raises(ConfigError, match=r"holds shards of another form: options \{.*'per_shard': 3"):
        pack.main(shards, tmp_path / "out", pack.Options(per_shard=4))
    with pytest.raises(ConfigError, match=r"holds shards of another source \('webdataset:"):
        pack.main(str(other), tmp_path / "out", pack.Options(per_shard=3))
    (tmp_path / "out/manifest.json").write_text('{"shards": []}')
    with pytest.raises(ConfigError, match=r"manifest.json is damaged"):
        pack.main(shards, tmp_path / "out", pack.Options(per_shard=3))
    (tmp_path / "out/manifest.json").unlink()
    with pytest.raises(ConfigError, match=r"has 00000.tar, and no manifest.json"):
        pack.main(shards, tmp_path / "out")
    with pytest.raises(ConfigError, match=r"--quality 101 must be 1 to 100"):
        pack.Options(quality=101)
    with pytest.raises(SourceError, match="there is no such folder"):
        pack.main("nowhere", tmp_path / "new")


def test_drawn_pictures_are_packed_without_loss(tmp_path: Path) -> None:
    source = open_source("shapes:val?size=16&length=5")
    packed = open_source(pack.main("shapes:val?size=16&length=5", tmp_path / "out"))
    assert packed.classes == source.classes  # of a labelled source the classes come along
    assert packed.templates == source.templates
    for i in range(5):
        np.testing.assert_array_equal(np.asarray(Decode()(packed[i]["image"])), source[i]["image"])
        assert (packed[i]["text"], packed[i]["label"]) == (source[i]["text"], source[i]["label"])
        assert packed[i]["json"]["source_key"] == source[i]["key"]


@pytest.mark.parametrize(("kind", "labels"), [(None, [1, 0, 1]), ("multilabel", [[1, 0], [1, 1], [0, 0]])])
def test_a_labelled_source_keeps_its_layout(kind: str | None, labels: list[object], tmp_path: Path) -> None:
    images = [photo(20, 20, i, "WEBP") for i in range(3)]
    classes, templates = ("red fox", "hare"), ("a {c}.", "the {c}")
    write_benchmark(tmp_path / "in", images, labels, kind=kind, classes=classes, templates=templates)
    source = open_source(f"webdataset:{tmp_path}/in/test")
    options = pack.Options(per_shard=2)
    name = pack.main(f"webdataset:{tmp_path}/in/test", tmp_path / "out", options, split="test")
    packed = open_source(name)
    assert name == f"webdataset:{tmp_path}/out/test"
    assert (packed.classes, packed.templates) == (source.classes, source.templates)
    for i in range(3):
        np.testing.assert_array_equal(packed[i]["label"], source[i]["label"])
        assert packed[i]["image"] == images[i]
    write_benchmark(tmp_path / "other", images, labels, kind=kind, classes=("a", "b"))
    with pytest.raises(ConfigError, match=r"classnames.txt has other names than the source"):
        pack.main(f"webdataset:{tmp_path}/other/test", tmp_path / "out", options, split="train")


def table(folder: Path, rows: list[dict[str, object]], name: str = "t.jsonl") -> str:
    folder.mkdir(exist_ok=True)
    (folder / "a.jpg").write_bytes(photo(20, 20, 0))
    (folder / name).write_text("".join(json.dumps({"image": "a.jpg", **row}) + "\n" for row in rows))
    return f"jsonl:{folder / name}"


def test_several_captions_stay_several(tmp_path: Path) -> None:
    source = table(tmp_path / "in", [{"text": ["a cat", "two\ncats"]}, {"text": ["one"]}])
    name = pack.main(source, tmp_path / "out")
    assert name.endswith("/00000.tar?captions=lines")
    assert [example["captions"] for example in map(open_source(name).__getitem__, range(2))] == [("a cat", "two cats"), ("one",)]


def test_texts_labels_and_fields_of_any_kind_are_packed_or_reported(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"text": "half \ud83d of a letter", "label": "cat", "emb": [1.5, 2.0], "n": 3},
        {"text": "a dog", "label": "dog", "../../evil": [1.0, 2.0]},
        {"text": "a cow", "label": "cow", "emb/clip": [1.0]},
        {"text": 7},
    ]
    packed = open_source(pack.main(table(tmp_path / "in", rows), tmp_path / "out"))
    assert [example["text"] for example in map(packed.__getitem__, range(len(packed)))] == ["half \\ud83d of a letter"]
    assert packed[0]["json"]["label"] == "cat"  # without names of classes it is no number
    np.testing.assert_array_equal(np.load(io.BytesIO(packed[0]["emb.npy"])), np.float32([1.5, 2.0]))
    (shard,) = json.loads((tmp_path / "out/manifest.json").read_text())["shards"].values()
    assert (shard["examples"], shard["broken"]) == (1, 3)
    assert sorted(shard["reasons"]) == [
        "its field '../../evil' cannot be the name of a member; use letters a to z, digits, _ and dots",
        "its field 'emb/clip' cannot be the name of a member; use letters a to z, digits, _ and dots",
        "text is no text: column text is a int",
    ]
    with pytest.raises(SourceError, match=r"nothing of .* can be used; .*manifest.json says why"):
        pack.main(table(tmp_path / "bad", [{"text": 7}]), tmp_path / "none")


def test_a_smaller_picture_is_held_as_the_large_one(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    written = io.BytesIO()
    Image.open(io.BytesIO(photo(80, 40, 0))).save(written, "JPEG", exif=exif)
    (tmp_path / "in/turned.jpg").write_bytes(written.getvalue())
    packed = open_source(pack.main(str(tmp_path / "in"), tmp_path / "out", pack.Options(shorter_side=20)))
    assert Decode(upright=True)(packed[0]["image"]).size == (20, 40)
    assert Decode()(packed[0]["image"]).size == (40, 20)


def test_pictures_of_cameras_with_several_in_a_file_are_packed(tmp_path: Path) -> None:
    first, second = (Image.open(io.BytesIO(photo(40, 30, i))) for i in (0, 1))
    (tmp_path / "in").mkdir()
    first.save(tmp_path / "in/two.jpg", "MPO", save_all=True, append_images=[second])
    packed = open_source(pack.main(str(tmp_path / "in"), tmp_path / "out"))
    assert packed[0]["image"] == (tmp_path / "in/two.jpg").read_bytes()


def test_a_labelled_set_that_was_packed_can_be_trained_on(tmp_path: Path) -> None:
    name = pack.main("shapes:val?size=16&length=5", tmp_path / "out")
    (part,) = prepare(tiny_config(**{"data.source": name, "batch_size": 8, "evals": {}, "checkpoint.best": None}))
    assert (len(part.data.source), part.record["data"]["shards"]) == (5, 1)


def test_a_shard_whose_bytes_are_others_is_written_again(shards: str, tmp_path: Path) -> None:
    pack.main(shards, tmp_path / "out")
    path = tmp_path / "out/00000.tar"
    whole = path.read_bytes()
    path.write_bytes(b"\0" * 2000 + whole[2000:])
    pack.main(shards, tmp_path / "out")
    assert path.read_bytes() == whole


def test_several_captions_of_a_labelled_set_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "in" / name).mkdir(parents=True)
        (tmp_path / "in" / name / "a.jpg").write_bytes(photo(20, 20, 0))
        (tmp_path / "in" / name / "a.txt").write_text(f"one {name}\nanother {name}")
    name = pack.main(f"folder:{tmp_path}/in?labels=folders&captions=lines", tmp_path / "out")
    assert open_source(name).classes == ("cat", "dog")
    said = re.search(r"several captions each, which (\S+) reads", capsys.readouterr().err)
    assert said is not None
    assert open_source(said[1])[0]["captions"] == ("one cat", "another cat")


def test_odd_labels_and_names_that_occur_twice_are_reported(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"label": 1}, {"label": [1, 2.5, "x"]}, {"label": 0, "json": {"n": 1}, "n": 2}]
    packed = open_source(pack.main(table(tmp_path / "in", rows), tmp_path / "out"))
    assert [packed[i]["label"] for i in range(len(packed))] == [1]
    (shard,) = json.loads((tmp_path / "out/manifest.json").read_text())["shards"].values()
    assert shard["broken"] == 2
    assert "its field 'n' is in its JSON as well" in shard["reasons"]


def test_a_manifest_of_another_format_is_refused(shards: str, tmp_path: Path) -> None:
    pack.main(shards, tmp_path / "out")
    path = tmp_path / "out/manifest.json"
    path.write_text(path.read_text().replace("jclip pack 1", "jclip pack 2"))
    with pytest.raises(ConfigError, match=r"its format is 'jclip pack 2', and this jclip reads 'jclip pack 1'"):
        pack.main(shards, tmp_path / "out")
