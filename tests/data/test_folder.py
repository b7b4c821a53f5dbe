"""The source `folder`."""

from pathlib import Path

import pytest
from PIL import Image

from jclip.data import BadExample, SourceError, lookup, open_source


def test_images_come_in_the_order_of_their_paths_with_captions_where_there_are(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("b.PNG", "a.jpg", "sub/c.webp"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    (tmp_path / "a.txt").write_text("a caption")
    (tmp_path / "notes.md").write_text("no image")
    source = open_source(f"folder:{tmp_path}")
    assert [source[i]["key"] for i in range(len(source))] == ["a.jpg", "b.PNG", "sub/c.webp"]
    assert source[0]["text"] == "a caption"
    assert source[1]["image"] == (tmp_path / "b.PNG").read_bytes()
    with pytest.raises(BadExample, match="no text"):
        lookup(source[1], "text")


def test_a_missing_or_empty_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no such folder"):
        open_source(f"folder:{tmp_path}/none")
    with pytest.raises(SourceError, match=r"no image in it; images end in \.jpg"):
        open_source(f"folder:{tmp_path}")


def classes(root: Path) -> str:
    for name in ("dog/1.jpg", "cat/deep/2.png", "cat/0.jpg", "Zebra/3.webp", ".hidden/4.jpg"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    (root / "emu").mkdir()
    (root / "cat" / "0.txt").write_text("a cat")
    return f"folder:{root}?labels=folders"


def test_folders_are_labels_in_the_order_of_their_names_where_that_is_asked_for(tmp_path: Path) -> None:
    source = open_source(classes(tmp_path))
    assert source.classes == ("Zebra", "cat", "dog", "emu")
    assert [(source[i]["key"], source[i]["label"]) for i in range(len(source))] == [
        ("Zebra/3.webp", 0), ("cat/0.jpg", 1), ("cat/deep/2.png", 1), ("dog/1.jpg", 2)
    ]  # fmt: skip
    assert source[1]["text"] == "a cat"
    assert source[3]["image"] == b"dog/1.jpg"
    assert source.templates == ()


def test_without_being_asked_for_folders_are_no_labels(tmp_path: Path) -> None:
    classes(tmp_path)
    (tmp_path / "classnames.txt").write_text("one name")
    source = open_source(f"folder:{tmp_path}")
    assert source.classes == ()
    assert [source[i]["key"] for i in range(2)] == [".hidden/4.jpg", "Zebra/3.webp"]
    with pytest.raises(BadExample, match="no label"):
        lookup(source[1], "label")


def test_classnames_are_shown_for_the_sorted_folders(tmp_path: Path) -> None:
    spec = classes(tmp_path)
    (tmp_path / "classnames.txt").write_text("plains zebra\nhouse cat\nwild dog\nbig emu\n")
    source = open_source(spec)
    assert [source.classes[source[i]["label"]] for i in range(4)] == ["plains zebra", "house cat", "house cat", "wild dog"]


def test_folders_that_are_numbers_are_ordered_by_value(tmp_path: Path) -> None:
    names = ["0", "1", "2", "9", "10", "100", "a", "b10", "b2"]
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.jpg").write_bytes(b"j")
    source = open_source(f"folder:{tmp_path}?labels=folders")
    assert source.classes == tuple(names)
    labels = {source[i]["key"].split("/")[0]: source[i]["label"] for i in range(len(source))}
    assert labels == {name: i for i, name in enumerate(names)}


def test_classnames_that_are_the_folders_own_are_matched_by_name(tmp_path: Path) -> None:
    spec = classes(tmp_path)
    (tmp_path / "classnames.txt").write_text("Zebra\nDog\ncat\nemu\n")
    source = open_source(spec)
    assert [source.classes[source[i]["label"]] for i in range(4)] == ["Zebra", "cat", "cat", "Dog"]
    (tmp_path / "classnames.txt").write_text("zebra\nwolf\ncat\nemu\n")
    with pytest.raises(SourceError, match="in another order, and not all of them: no folder is 'wolf'"):
        open_source(spec)


def test_errors_of_labels_say_what_to_do(tmp_path: Path) -> None:
    spec = classes(tmp_path)
    for other, message in (
        (spec.replace("folders", "files"), "labels=files is unknown; use labels=folders"),
        (spec.replace("labels", "label"), "option 'label' is unknown; use labels"),
        (f"folder:{tmp_path}/emu?labels=folders", "no image in it"),
        (f"folder:{tmp_path}/cat?labels=folders", r"0\.jpg lies in no folder of its class; move it"),
    ):
        with pytest.raises(SourceError, match=message):
            open_source(other)
    (tmp_path / "classnames.txt").write_text("a\nb\nc\n")
    with pytest.raises(
        SourceError, match=r"classnames\.txt names 3 classes, but there are 4 folders, Zebra to emu; write one line"
    ):
        open_source(spec)


def test_a_folder_with_a_question_mark_in_its_name_can_be_opened(tmp_path: Path) -> None:
    folder = tmp_path / "which?labels=none"
    folder.mkdir()
    (folder / "1.jpg").write_bytes(b"j")
    assert open_source(f"folder:{folder}")[0]["image"] == b"j"
