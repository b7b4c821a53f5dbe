"""Sources of images beside right and wrong captions: SugarCrepe's and Winoground's layouts, and those that shapes draws."""

import json
import pickle
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jclip.data import BadExample, SourceError, open_source
from jclip.data.shapes import SEEN
from jclip.data.shapes_drawing import COLOURS, RGB, SHAPES


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for name in ("1.jpg", "deep/2.png", "ex_0_img_0.png", "ex_0_img_1.JPG", "ex_1_img_0"):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    return tmp_path / "images"


def sugarcrepe(images: Path, rows: Any) -> str:
    path = images.parent / "swap_obj.json"
    path.write_text(rows if isinstance(rows, str) else json.dumps(rows))
    return f"sugarcrepe:{path}?images={images}"


def winoground(images: Path, *rows: Any) -> str:
    path = images.parent / "examples.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return f"winoground:{path}?images={images}"


def crepe(image: Any = "1.jpg", right: Any = "a cat", wrong: Any = "a dog") -> dict[str, Any]:
    return {"filename": image, "caption": right, "negative_caption": wrong}


def wino(a: str = "ex_0_img_0.png", b: str = "ex_0_img_1.JPG", **more: Any) -> dict[str, Any]:
    return {"image_0": a, "image_1": b, "caption_0": "x left of y", "caption_1": "y left of x", **more}


def test_sugarcrepe_has_an_image_and_two_captions_the_right_one_first(images: Path) -> None:
    source = open_source(sugarcrepe(images, {"7": crepe(), "3": crepe("deep/2.png", "two dogs", "two cats")}))
    assert dict(source[0]) == {"key": "7", "images": (b"1.jpg",), "captions": ("a cat", "a dog")}
    assert dict(source[1]) == {"key": "3", "images": (b"deep/2.png",), "captions": ("two dogs", "two cats")}
    assert (len(source), source.classes, source.templates) == (2, (), ())
    assert dict(pickle.loads(pickle.dumps(source))[1]) == dict(source[1])
    with pytest.raises(IndexError):
        source[2]


def test_winoground_has_two_images_two_captions_and_a_tag(images: Path) -> None:
    rows = (wino(id=4, tag="Object", num_main_preds=1), "", wino("ex_1_img_0", "ex_0_img_0"), "")
    source = open_source(winoground(images, *rows))
    captions = ("x left of y", "y left of x")
    assert dict(source[0]) == {
        "key": "4", "images": (b"ex_0_img_0.png", b"ex_0_img_1.JPG"), "captions": captions, "tag": "Object"
    }  # fmt: skip
    # A name without a suffix is that of a file without one, or of one with the suffix of an image.
    assert dict(source[1]) == {"key": "2", "images": (b"ex_1_img_0", b"ex_0_img_0.png"), "captions": captions}
    assert len(source) == 2


def outside(images: Path) -> list[str]:
    """Names of images that exist, and lie outside."""
    (images / "link.jpg").symlink_to(images.parent / "secret.jpg")
    (images / "up").symlink_to(images.parent)
    (images.parent / "images2").mkdir()
    (images.parent / "images2" / "3.jpg").write_bytes(b"a neighbour")
    secret = images.parent / "secret.jpg"
    return [
        "../secret.jpg",
        "deep/../../secret.jpg",
        str(secret),
        "link.jpg",
        "up/secret.jpg",
        "../images2/3.jpg",
        "../secret",
        "up/secret",
    ]


def test_no_name_leads_to_a_file_outside_the_folder(images: Path) -> None:
    for name in outside(images):
        for spec in (
            sugarcrepe(images, {"0": crepe(name)}),
            winoground(images, wino("1.jpg", name)),
            winoground(images, wino(name)),
        ):
            with pytest.raises(SourceError, match=r"lies outside .*images; images= must be a folder that holds them all"):
                open_source(spec)


def test_a_folder_that_is_a_symlink_itself_is_entered(images: Path) -> None:
    (images.parent / "link").symlink_to(images)
    (images / "inner.jpg").symlink_to(images / "1.jpg")
    spec = sugarcrepe(images, {"0": crepe("inner.jpg")}).replace("images=" + str(images), f"images={images.parent}/link")
    assert spec.endswith("/link")
    assert open_source(spec)[0]["images"] == (b"1.jpg",)


@pytest.mark.parametrize("name", ["2.jpg", "deep", ".", "x\0.jpg", "y" * 5000, "loop.jpg"])
def test_a_name_of_no_image_is_an_error(images: Path, name: str) -> None:
    (images / "loop.jpg").symlink_to("loop.jpg")
    with pytest.raises(SourceError, match=r"there is no image .* in .*images; check images=, or get the image"):
        open_source(sugarcrepe(images, {"0": crepe(name)}))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("{", r"swap_obj\.json is no JSON"),
        ("[" * 100_000, r"swap_obj\.json is no JSON"),
        ([crepe()], "is no JSON object"),
        ({}, "has no example"),
        ({"9": crepe(right=3)}, "'9' needs a text for each of filename, caption, negative_caption; it is"),
        ({"9": {"filename": "1.jpg", "caption": "x"}}, "'9' needs a text"),
        ({"9": crepe(wrong=" ")}, "'9' needs a text"),
        ({"9": "1.jpg"}, "'9' needs a text"),
    ],
)
def test_errors_of_sugarcrepe_name_the_file_and_the_example(images: Path, rows: Any, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        open_source(sugarcrepe(images, rows))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([wino(), "{"], r"examples\.jsonl, line 2 is no JSON"),
        (
            [wino(), {"image_0": "1.jpg"}],
            r"examples\.jsonl, line 2 needs a text for each of image_0, image_1, caption_0, caption_1",
        ),
        ([wino(id=1), wino(id=1)], "several examples of the id '1'"),
        (["", " "], "has no example"),
    ],
)
def test_errors_of_winoground_name_the_line(images: Path, rows: list[Any], message: str) -> None:
    with pytest.raises(SourceError, match=message):
        open_source(winoground(images, *rows))


def test_errors_of_the_spec_say_what_to_write(images: Path) -> None:
    for spec, message in (
        ("sugarcrepe:x.json", r"say where the images are: sugarcrepe:x\.json\?images=DIR"),
        ("winoground:", r"winoground:FILE\?images=DIR"),
        (f"sugarcrepe:{images}/none.json?images={images}", "there is no file '.*none.json'"),
        (sugarcrepe(images, {"0": crepe()}) + "2", "there is no folder '.*images2'"),
        (f"winoground:x?image={images}", "option 'image' is unknown; use images"),
    ):
        with pytest.raises(SourceError, match=message):
            open_source(spec)


def test_an_image_that_has_gone_is_a_bad_example(images: Path) -> None:
    source = open_source(sugarcrepe(images, {"0": crepe()}))
    (images / "1.jpg").unlink()
    assert source[0]["captions"] == ("a cat", "a dog")
    with pytest.raises(BadExample, match="file cannot be read"):
        source[0]["images"]


def words_of(split: str, count: int) -> set[str]:
    source = open_source(f"shapes:{split}?size=8")
    captions = (text for i in range(count) for text in source[i].get("captions", (source[i].get("text"),)))
    return {word for text in captions for word in re.findall(r"[a-z]+", text)}


@pytest.mark.parametrize("split", ["counting", "left_right"])
def test_captions_to_choose_from_have_the_words_of_training_alone(split: str) -> None:
    assert words_of(split, 200) <= words_of("train", 2000)


@pytest.mark.parametrize("split", ["counting", "left_right"])
def test_scenes_to_choose_for_depend_on_seed_split_and_index_alone(split: str) -> None:
    a, b = open_source(f"shapes:{split}?size=16"), open_source(f"shapes:{split}?size=16&length=9")
    forwards = [a[i] for i in range(9)]
    for i in reversed(range(9)):
        (image,), (expected,) = b[i]["images"], forwards[i]["images"]
        np.testing.assert_array_equal(image, expected)
        assert (image.shape, image.dtype) == ((16, 16, 3), np.uint8)
        assert (b[i]["captions"], b[i]["objects"]) == (forwards[i]["captions"], forwards[i]["objects"])
    other = open_source(f"shapes:{split}?size=16&seed=1")
    assert all((other[i]["images"][0] != forwards[i]["images"][0]).any() for i in range(9))
    assert len({example["key"] for example in forwards}) == 9
    for index in (-1, 9):
        with pytest.raises(IndexError):
            b[index]


def seen(image: np.ndarray, items: list[dict]) -> list[str]:
    """The nearest of the colours at a place inside each object."""
    inside, size, names = {"ring": (0.7, 0.0), "crescent": (-0.6, 0.0)}, image.shape[0], []
    for item in items:
        dx, dy = inside.get(item["shape"], (0.0, 0.0))
        x, y = (round((item[a] + d * item["r"]) * size - 0.5) for a, d in (("x", dx), ("y", dy)))
        names.append(min(RGB, key=lambda name: np.square(np.subtract(RGB[name], image[y, x].astype(int))).sum()))
    return names


def test_counted_scenes_have_one_to_three_objects_of_a_shape_equally_often() -> None:
    source = open_source("shapes:counting?length=300")
    counts: Counter[int] = Counter()
    radii: dict[int, list[float]] = {1: [], 2: [], 3: []}
    for i in range(300):
        example = source[i]
        items = example["objects"]
        (shape,) = {item["shape"] for item in items}
        assert seen(example["images"][0], items) == [item["colour"] for item in items]
        assert len({item["colour"] for item in items}) == len(items)
        assert {(item["colour"], item["shape"]) for item in items} <= set(SEEN)
        a = f"{'an' if shape[0] in 'aeiou' else 'a'} {shape}"
        texts = {1: a, 2: f"two shapes: {a} and {a}", 3: f"three shapes: {a}, {a} and {a}"}
        assert example["captions"][0] == texts[len(items)]
        assert sorted(example["captions"]) == sorted(texts.values())
        assert example["tag"] == {1: "one", 2: "two", 3: "three"}[len(items)]
        counts[len(items)] += 1
        radii[len(items)] += [item["r"] for item in items]
        for one in items:
            assert all(abs(one[axis] - 0.5) + one["r"] <= 0.501 for axis in "xy")
            assert all(
                max(abs(one["x"] - b["x"]), abs(one["y"] - b["y"])) >= one["r"] + b["r"] - 1e-3 for b in items if b is not one
            )
    assert counts == {1: 100, 2: 100, 3: 100}
    means = [np.mean(radii[count]) for count in radii]
    assert max(means) - min(means) < 0.005  # the size says nothing about the number


def test_left_is_left_and_each_word_is_as_often_right_as_wrong() -> None:
    source = open_source("shapes:left_right?length=300")
    first: Counter[str] = Counter()
    for i in range(300):
        example = source[i]
        left, right = sorted(example["objects"], key=lambda item: item["x"])
        assert seen(example["images"][0], [left, right]) == [left["colour"], right["colour"]]
        assert right["x"] - left["x"] >= max(abs(right["y"] - left["y"]), left["r"] + right["r"] - 1e-3)
        names = [f"{item['colour']} {item['shape']}" for item in (left, right)]
        assert names[0] != names[1]
        a, b = (f"{'an' if name[0] in 'aeiou' else 'a'} {name}" for name in names)
        assert example["captions"] == (f"{a} left of {b}", f"{b} left of {a}")
        assert {(item["colour"], item["shape"]) for item in (left, right)} <= set(SEEN)
        first.update([left["colour"], left["shape"]])
    assert set(first) == {*COLOURS, *SHAPES}


def test_scenes_to_choose_for_stay_the_same_from_version_to_version() -> None:
    # What was drawn when this was written; another value is another data set, and no result can be compared with older ones.
    for split, total in (("counting", 10937158), ("left_right", 10591761)):
        source = open_source(f"shapes:{split}?size=24")
        assert abs(sum(int(source[i]["images"][0].sum(dtype=np.int64)) for i in range(50)) - total) < 100
