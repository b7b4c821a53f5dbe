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
