"""The program make_clipart: captions from metadata, safe XML, and the same shards every time."""

import io
import tarfile
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image
from programs import load_program

from jclip.data import open_source

SVG = """<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"><title>drawing</title><metadata><rdf:RDF
xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#" xmlns:cc="http://web.resource.org/cc/"
xmlns:dc="http://purl.org/dc/elements/1.1/"><cc:Work><dc:title>{title}</dc:title><dc:description>A  {title}</dc:description>
<dc:subject><rdf:Bag><rdf:li>{title}</rdf:li><rdf:li>bird_of prey</rdf:li><rdf:li>hash</rdf:li></rdf:Bag></dc:subject>
<dc:creator><cc:Agent><dc:title>Someone</dc:title></cc:Agent></dc:creator></cc:Work></rdf:RDF></metadata></svg>"""


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return load_program("make_clipart")


@pytest.fixture
def library(tmp_path: Path) -> Path:
    for i in range(30):
        for kind in ("png", "svg"):
            (tmp_path / "in" / kind / "animals").mkdir(parents=True, exist_ok=True)
        Image.new("RGBA", (300, 10 + i), (8 * i, 0, 0, 255)).save(tmp_path / "in" / "png" / "animals" / f"a{i:02}.png")
        (tmp_path / "in" / "svg" / "animals" / f"a{i:02}.svg").write_text(SVG.format(title=f"Animal {i}"))
    return tmp_path / "in"


def test_captions_are_title_and_up_to_four_new_tags(tool: ModuleType) -> None:
    assert tool.caption("Electric lighter", ["lighter", "tools", "fire"], "tools") == "Electric lighter, tools, fire"
    assert tool.caption("Dente", ["bodypart"], "people/bodypart") == "Dente, bodypart, people"
    assert tool.caption("x", list("abcdef"), "q") == "x, a, b, c, d"


def test_metadata_is_that_of_the_work_and_entities_are_refused(tool: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "x.svg"
    path.write_text(SVG.format(title="Falcon"))
    expected = {"title": "Falcon", "description": "A Falcon", "keywords": ["Falcon", "bird of prey"]}
    assert tool.read_metadata(path) == expected
    bomb = '<!DOCTYPE svg [<!ENTITY a "aaaaaaaaaa"><!ENTITY b SYSTEM "file:///etc/passwd">]>'
    path.write_text(SVG.format(title="&a;&b;").replace("<svg", bomb + "<svg", 1))
    assert tool.read_metadata(path) == {"title": "", "description": "", "keywords": []}
    assert tool.read_metadata(tmp_path / "missing.svg")["title"] == ""


def test_pictures_lie_on_white_and_fit(tool: ModuleType, tmp_path: Path) -> None:
    Image.new("RGBA", (300, 100), (0, 0, 0, 0)).save(tmp_path / "p.png")
    picture = Image.open(io.BytesIO(tool.shrink(tmp_path / "p.png", 112, 90)))
    assert (picture.size, picture.mode, picture.getpixel((50, 20))) == ((112, 37), "RGB", (255, 255, 255))


def test_the_shards_can_be_read_and_are_the_same_every_time(
    tool: ModuleType, library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JCLIP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tool, "VAL_PARTS", 4)
    monkeypatch.setattr(tool, "warnings", type("Quiet", (), {"simplefilter": staticmethod(lambda *a: None)}))
    for out in ("one", "two"):
        assert tool.main([str(library), str(tmp_path / out), "--shard-size", "8"]) == 0
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert [(tmp_path / "one" / name).read_bytes() for name in files] == [
        (tmp_path / "two" / name).read_bytes() for name in files
    ]
    keys: dict[str, set[str]] = {}
    for split in ("train", "val"):
        source = open_source(f"webdataset:{tmp_path}/one/clipart-{split}-*.tar")
        keys[split] = {source[i]["json"]["key"] for i in range(len(source))}
        example = source[0]
        assert example["text"] == f"{example['json']['title']}, bird of prey, animals"
        assert example["json"]["category"] == "animals"
    assert len(keys["train"] | keys["val"]) == 30
    assert not keys["train"] & keys["val"]
    with tarfile.open(tmp_path / "one" / files[0]) as shard:
        assert [(m.name, m.mtime) for m in shard][:3] == [("00000000.jpg", 0), ("00000000.txt", 0), ("00000000.json", 0)]


def test_a_wrong_folder_is_an_error_that_points_to_the_help(
    tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tool.main([str(tmp_path), str(tmp_path / "out")]) == 2
    assert "see --help" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
