"""The survey of a source: in short from its index, in full from its examples."""

import io
import json
import tarfile
from pathlib import Path

import pytest
from archives import write_tar
from PIL import Image

from jclip import cli
from jclip.data import open_source
from jclip.data.survey import outline, survey

FIELDS = {"image": "image", "text": "text"}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JCLIP_CACHE", str(tmp_path_factory.mktemp("cache")))


def picture(width: int, height: int, kind: str = "JPEG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), (width, height, 9)).save(file, kind)
    return file.getvalue()


@pytest.fixture
def spec(tmp_path: Path) -> str:
    """Ten samples: seven usable, one without an image, one that is none, one without a text."""
    members = {f"{i}.jpg": picture(10 + i, 20) for i in range(6)} | {"6.png": picture(30, 40, "PNG"), "8.jpg": b"none"}
    texts = {f"{i}.txt": b"a cat" if i < 3 else f"{'cat ' * 100}{i}".encode() for i in range(9)}
    members = {name: {**members, **texts}[name] for name in sorted({**members, **texts})}
    write_tar(tmp_path / "s.tar", {**members, "9.jpg": picture(8, 8)})
    return f"webdataset:{tmp_path}/s.tar"


def test_a_survey_counts_what_is_there(spec: str) -> None:
    found, looks = survey(open_source(spec), FIELDS, context_length=77)
    assert (found.examples, found.shards, found.looked_at, found.usable) == (10, 1, 10, 7)
    assert found.fields == {"image text": 8, "text": 1, "image": 1}
    assert found.formats == {"JPEG": 7, "PNG": 1}
    assert (found.widths, found.heights) == ([8, 12.5, 30], [8, 20, 40])
    assert (found.cut, found.duplicates) == (6, 2)
    assert found.within == dict.fromkeys((8, 16, 24, 32, 48, 64), 0.3333)  # three of nine
    assert found.tokens == [4, 103, 103]  # a start, two words and an end; or a hundred words and a number
    assert sorted(found.unusable.values()) == [1, 1, 1]
    assert [look.index for look in looks if look.problems] == [7, 8, 9]
    assert found.images_per_second > 0


def test_the_outline_says_what_training_will_miss(spec: str, tmp_path: Path) -> None:
    lines = outline(open_source(spec), FIELDS, batch_size=64)
    assert lines[0] == "10 examples in 1 shards"
    assert "1 of 10 examples have no image for the tower image" in lines[1]
    assert "1 of 10 examples have no text for the tower text" in lines[2]
    assert lines[3] == (
        "only 10 examples for a batch of 64: one is in it up to 7 times, each a negative of the others; --batch-size 10 or less "
        "is better"
    )
    assert len(lines) == 4
    write_tar(tmp_path / "l.tar", {f"{i}.{kind}": b"a\nb" for i in range(4) for kind in ("jpg", "txt")})
    lines = outline(open_source(f"webdataset:{tmp_path}/l.tar"), FIELDS, batch_size=4)
    assert lines[1].startswith("4 of 4 texts that were looked at have several lines")
    assert len(outline(open_source(f"webdataset:{tmp_path}/l.tar?captions=lines"), FIELDS, batch_size=4)) == 1


def test_the_outline_says_why_names_with_dots_and_links_have_no_image(tmp_path: Path) -> None:
    write_tar(tmp_path / "d.tar", {f"{name}.{kind}": b"x" for name in ("a.1", "a.2") for kind in ("jpg", "txt")})
    assert "a.b.jpg is the field b.jpg of a: rename" in outline(open_source(f"webdataset:{tmp_path}/d.tar"), FIELDS)[1]
    with tarfile.open(tmp_path / "l.tar", "w") as tar:
        for i in range(4):
            link = tarfile.TarInfo(f"{i}.jpg")
            link.type, link.linkname = tarfile.SYMTYPE, "elsewhere.jpg"
            tar.addfile(link)
            tar.addfile(tarfile.TarInfo(f"{i}.txt"))
    line = outline(open_source(f"webdataset:{tmp_path}/l.tar"), FIELDS)[1]
    assert line.startswith("4 of 4 examples have no image for the tower image")
    assert line.endswith("left out of the source: 4 symbolic links")


def test_the_command_prints_text_json_and_a_page(spec: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["data", spec, "--html", str(tmp_path / "page.html")]) == 0
    text = capsys.readouterr().out
    assert "looked at 10: 8 images that can be read, 7 usable as pairs of image and text (70.0%)" in text
    assert "captions cut at 77 tokens: 6; equal to an earlier one: 2" in text
    page = (tmp_path / "page.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 8
    assert "<script" not in page
    assert cli.main(["data", spec, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["usable"] == 7
    assert cli.main(["data", spec, "--most", "0"]) == 1
    assert "--most 0" in capsys.readouterr().err
    assert survey(open_source(spec), FIELDS, most=1)[0].looked_at == 1


def test_a_source_of_labels_says_what_it_is_good_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i, name in enumerate(("cat", "cat", "dog", "owl")):
        (tmp_path / "photos" / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name / f"{i}.png").write_bytes(picture(8, 9, "PNG") if name != "owl" else b"none")
    folder = f"folder:{tmp_path}/photos"
    assert cli.main(["data", f"{folder}?labels=folders"]) == 0
    text = capsys.readouterr().out
    assert "looked at 4: 3 images that can be read, 0 usable as pairs of image and text" in text
    assert "labels: 4, of 3 classes, such as cat, dog, owl; 1 to 2 of each" in text
    assert text.splitlines()[-1].startswith("examples have labels and no text: evaluations of labels (ZeroShot, ")
    assert 'training with the option --data.fields text "a photo of a {label}"' in text
    assert cli.main(["data", folder]) == 0
    assert "have no text and no labels" in (text := capsys.readouterr().out)
    assert "labels=folders makes labels of folders" in text
    assert cli.main(["data", f"{folder}?labels=folders", "--text", "a photo of a {label}", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["usable"], found["images"], found["classes"], found["labels"]) == (3, 3, 3, {"cat": 2, "dog": 1, "owl": 1})
    (tmp_path / "photos" / "cat" / "0.txt").write_text("a cat")  # a text that is not everywhere is listed elsewhere
    assert outline(open_source(folder), FIELDS) == ["4 examples"]


def test_the_rate_is_that_of_both_ways_of_decoding(spec: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["data", spec, "--rate", "--seconds", "0.05", "--size", "16x24", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["size"], found["workers"], [rate["decode"] for rate in found["rates"]]) == ([16, 24], 0, ["exact", "fast"])
    assert all(rate["core"] > 0 and rate["host"] > 0 for rate in found["rates"])
    assert 0 < found["broken"] < found["looked_at"]  # two of ten: one without an image, and one that is none
    assert cli.main(["data", spec, "--rate", "--seconds", "0.05"]) == 0
    text = capsys.readouterr().out
    assert "resized to 224 x 224" in text
    assert "broken:" in text
    assert text.index("exact ") < text.index("fast ")


@pytest.mark.parametrize("wrong", [["--seconds", "0"], ["--size", "0"], ["--workers", "-1"]])
def test_a_rate_of_nothing_is_refused(spec: str, wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["data", spec, "--rate", *wrong]) == 1
    assert "must be" in capsys.readouterr().err


def test_a_source_without_pictures_has_no_rate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tar(tmp_path / "t.tar", {"0.jpg": b"none", "0.txt": b"a"})
    assert cli.main(["data", f"webdataset:{tmp_path}/t.tar", "--rate"]) == 1
    assert "1,000 of 1,000 pictures cannot be read, such as: image cannot be decoded" in capsys.readouterr().err
