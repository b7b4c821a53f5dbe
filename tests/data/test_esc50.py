"""The source esc50, and the program that makes a set of its layout."""

import csv
import pickle
from collections import Counter
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from programs import load_program

from jclip.data import BadExample, SourceError, open_source

HEADER = "filename,fold,target,category,esc10,src_file,take"
ROWS = (
    "1-10-A-7.wav,1,7,crying_baby,False,10,A",
    "2-11-A-0.wav,2,0,dog,True,11,A",
    "2-11-B-0.wav,2,0,dog,True,11,B",
    "3-12-A-40.wav,3,40,hand_saw,True,12,A",
)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JCLIP_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return load_program("make_sounds")


def write(root: Path, *rows: str, header: str = HEADER) -> Path:
    for folder in ("meta", "audio"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "meta" / "esc50.csv").write_text("\n".join((header, *rows)) + "\n")
    for row in rows:
        name = row.partition(",")[0]
        if name and "/" not in name:
            (root / "audio" / name).write_bytes(name.encode())
    return root


def test_clips_have_their_class_fold_and_recording(tmp_path: Path) -> None:
    source = open_source(f"esc50:{write(tmp_path, *ROWS)}")
    assert source.classes == ("dog", "crying baby", "hand saw")  # by their targets, of which there are but three
    assert [
        (e["key"], e["label"], e["text"], e["fold"], e["src_file"], e["take"]) for e in map(source.__getitem__, range(4))
    ] == [
        ("1-10-A-7.wav", 1, "crying baby", 1, "10", "A"),
        ("2-11-A-0.wav", 0, "dog", 2, "11", "A"),
        ("2-11-B-0.wav", 0, "dog", 2, "11", "B"),
        ("3-12-A-40.wav", 2, "hand saw", 3, "12", "A"),
    ]
    assert source[2]["sound"] == b"2-11-B-0.wav"
    assert dict(pickle.loads(pickle.dumps(source))[1]) == dict(source[1])
    with pytest.raises(IndexError, match="no clip 4"):
        source[4]


def test_folds_and_esc10_choose_clips_and_esc10_its_classes(tmp_path: Path) -> None:
    root = write(tmp_path, *ROWS)
    some = open_source(f"esc50:{root}?folds=3,1")
    assert ([e["fold"] for e in map(some.__getitem__, range(2))], some.classes) == ([1, 3], ("dog", "crying baby", "hand saw"))
    assert [e["label"] for e in map(some.__getitem__, range(2))] == [1, 2]
    ten = open_source(f"esc50:{root}?esc10=1&folds=2,3")
    assert (ten.classes, [e["label"] for e in map(ten.__getitem__, range(3))]) == (("dog", "hand saw"), [0, 0, 1])


def test_columns_that_a_copy_lacks_are_no_fields(tmp_path: Path) -> None:
    source = open_source(f"esc50:{write(tmp_path, 'a.wav,1,0,dog', header='filename,fold,target,category')}")
    assert set(source[0]) == {"key", "sound", "label", "text", "fold"}
    with pytest.raises(SourceError, match=r"no row of the table is of ESC-10; leave out esc10=1"):
        open_source(f"esc50:{tmp_path}?esc10=1")


def test_a_file_that_is_missing_is_a_bad_example_and_the_fingerprint_sees_every_change(tmp_path: Path) -> None:
    root = write(tmp_path / "a", *ROWS)
    copy, spec = write(tmp_path / "b", *ROWS), f"esc50:{root}"
    prints = [open_source(spec).fingerprint(), open_source(f"esc50:{copy}").fingerprint()]
    assert prints[0] == prints[1]
    prints += [open_source(spec + option).fingerprint() for option in ("?folds=2", "?esc10=1")]
    (root / "audio" / "2-11-B-0.wav").write_bytes(b"other")
    prints.append(open_source(spec).fingerprint())
    (root / "audio" / "2-11-B-0.wav").unlink()
    prints.append(open_source(spec).fingerprint())
    write(copy, *ROWS[:-1], ROWS[-1].replace(",3,", ",4,"))
    prints.append(open_source(f"esc50:{copy}").fingerprint())
    assert len(set(prints)) == len(prints) - 1
    with pytest.raises(BadExample, match="cannot be read"):
        open_source(spec)[2]["sound"]


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (ROWS, "?folds=6", r"folds=6 has to name folds of the table: 1, 2, 3; as in folds=1,2$"),
        (ROWS, "?folds=1,one", "has to name folds"),
        (ROWS, "?folds=1,1", "names 1 twice"),
        (ROWS, "?esc10=yes", "esc10=yes is unknown"),
        (ROWS, "?fold=1", "the option 'fold' is unknown; use folds, esc10"),
        ((), "", "has no row"),
        ((ROWS[0], ROWS[0]), "", r"several rows of the file '1-10-A-7\.wav'"),
        ((ROWS[0], "b.wav,1,7,cat,False,1,A"), "", r"target 7 is 'crying_baby' in one row and 'cat' in another"),
        ((ROWS[0], "b.wav,1,8,crying_baby,False,1,A"), "", "the category 'crying_baby' has several targets"),
        (("../b.wav,1,8,dog,False,1,A",), "", r"row 0 needs the name of a file in audio/ and a category; it has '\.\./b\.wav'"),
        (("b.wav,1,8, ,False,1,A",), "", "needs the name of a file"),
        (("b.wav,one,8,dog,False,1,A",), "", "fold 'one' and target '8' have to be whole numbers"),
        (("b.wav,1,-8,dog,False,1,A",), "", "have to be whole numbers"),
        (("b.wav,1,8,dog",), "", "row 0 has more or fewer cells than the header"),
        (("b.wav,1,8,dog,False,1,A,more",), "", "row 0 has more or fewer cells"),
        (('"b.wav,1,8,dog',), "", "unexpected end of data"),
    ],
)
def test_a_table_that_is_wrong_is_refused_with_its_place(
    rows: tuple[str, ...], options: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(SourceError, match=message):
        open_source(f"esc50:{write(tmp_path, *rows)}{options}")


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"has no meta/esc50\.csv; name the folder of the set as it is unpacked"):
        open_source(f"esc50:{tmp_path}")
    write(tmp_path, "1,0", header="fold,target")
    with pytest.raises(SourceError, match="has no column 'filename'; columns: fold, target"):
        open_source(f"esc50:{tmp_path}")
    (tmp_path / "meta" / "esc50.csv").write_bytes(b"\xff\xfe")
    with pytest.raises(SourceError, match="is not UTF-8"):
        open_source(f"esc50:{tmp_path}")


def test_the_made_set_has_the_layout_of_esc50_and_the_same_bytes_each_time(tmp_path: Path, tool: ModuleType) -> None:
    for name in "ab":
        assert tool.main([str(tmp_path / name), "--rate", "4000", "--seconds", "0.5", "--clips", "10"]) == 0
    source = open_source(f"esc50:{tmp_path / 'a'}")
    assert (len(source), len(source.classes)) == (500, 50)
    assert source.fingerprint() == open_source(f"esc50:{tmp_path / 'b'}").fingerprint()
    with (tmp_path / "a" / "meta" / "esc50.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert set(Counter((row["fold"], row["category"]) for row in rows).values()) == {2}
    assert all(len({row["fold"] for row in rows if row["src_file"] == one}) == 1 for one in {row["src_file"] for row in rows})
    assert len({e["sound"] for e in map(source.__getitem__, range(500))}) == 500
    assert len(open_source(f"esc50:{tmp_path / 'a'}?esc10=1")) == 100
    assert tool.main([str(tmp_path), "--clips", "15"]) == 2
    assert tool.main([str(tmp_path), "--rate", "10"]) == 2


def test_made_sounds_have_the_pitch_of_their_class(tool: ModuleType) -> None:
    for target, name in enumerate(tool.CLASSES):
        if name.endswith(("_sine", "_noise", "_tremolo", "_clicks")):
            samples = tool.synthesise(target, 8000, 4.0, np.random.default_rng([1, target]), 0)
            spectrum = np.abs(np.fft.rfft(samples)) ** 2
            loudest = np.argmax(spectrum) * 8000 / len(samples)
            pitch = next(hz for pitch, hz in tool.PITCHES.items() if name.startswith(f"{pitch}_"))
            assert 0.85 < loudest / pitch < 1.18, name
