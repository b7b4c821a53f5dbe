"""The source `folder`."""

import os
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
    assert [source[i]["key"] for i in range(2)] == ["Zebra/3.webp", "cat/0.jpg"]
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


def test_links_are_followed_and_a_loop_is_refused(tmp_path: Path) -> None:
    real, root = tmp_path / "real", tmp_path / "root"
    (real / "cats").mkdir(parents=True)
    root.mkdir()
    (real / "cats" / "1.jpg").write_bytes(b"j")
    (root / "cat").symlink_to(real / "cats", target_is_directory=True)
    (root / "kitten").symlink_to(real / "cats", target_is_directory=True)
    (root / "dog").mkdir()
    (root / "dog" / "2.jpg").symlink_to(real / "cats" / "1.jpg")
    (root / "dog" / "3.jpg").symlink_to(tmp_path / "nowhere")
    source = open_source(f"folder:{root}?labels=folders")
    assert source.classes == ("cat", "dog", "kitten")
    assert [(source[i]["key"], source[i]["label"], source[i]["image"]) for i in range(3)] == [
        ("cat/1.jpg", 0, b"j"), ("dog/2.jpg", 1, b"j"), ("kitten/1.jpg", 2, b"j")
    ]  # fmt: skip
    assert source.left_out == {"links to nothing": 1}
    (real / "cats" / "again").symlink_to(real, target_is_directory=True)
    with pytest.raises(SourceError, match="leads back to a folder that it lies in"):
        open_source(f"folder:{root}")


def test_debris_and_other_files_are_left_out_and_counted_by_reason(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in (
        "1.jpg", "2.JFIF", "3.jpe", "4.tif", "5.TIFF", "6.avif", "1.txt", "._1.jpg", "._1.txt", "__MACOSX/._1.jpg",
        ".ipynb_checkpoints/1-checkpoint.jpg", "@eaDir/1.jpg/THUMB.jpg", ".thumbnails/1.png", "7.heic", "8.heic",
        "notes.csv", "LICENSE",
    ):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    source = open_source(f"folder:{tmp_path}")
    assert [source[i]["key"] for i in range(len(source))] == ["1.jpg", "2.JFIF", "3.jpe", "4.tif", "5.TIFF", "6.avif"]
    assert source.left_out == {
        "hidden or debris of a system": 6,
        "images of a format that is not read (.heic)": 2,
        "files that are no images (.csv)": 1,
        "files that are no images (without a suffix)": 1,
    }
    assert "left out: 6 hidden or debris of a system; 2 images of a format that is not read (.heic); 1 files" in caplog.text


def test_a_pipe_in_the_place_of_an_image_or_caption_stops_nobody(tmp_path: Path) -> None:
    (tmp_path / "1.jpg").write_bytes(b"j")
    source = open_source(f"folder:{tmp_path}")
    (tmp_path / "1.jpg").unlink()
    os.mkfifo(tmp_path / "1.jpg")
    os.mkfifo(tmp_path / "2.jpg")
    with pytest.raises(BadExample, match="no regular file"):
        source[0]["image"]
    with pytest.raises(SourceError, match=r"no image in it.*left out: 2 no regular files"):
        open_source(f"folder:{tmp_path}")


def test_lines_are_captions_where_that_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "1.jpg").write_bytes(b"j")
    (tmp_path / "1.txt").write_bytes(b"a cat\r\n\n a dog \n")
    assert open_source(f"folder:{tmp_path}")[0]["text"] == "a cat\r\n\n a dog \n"
    example = open_source(f"folder:{tmp_path}?captions=lines")[0]
    assert example["text"] == example["captions"] == ("a cat", "a dog")
    with pytest.raises(SourceError, match="captions=words is unknown; use captions=lines"):
        open_source(f"folder:{tmp_path}?captions=words")
