"""The source shapes: which scenes there are, what is never drawn, and that captions are true."""

import hashlib
import re
from collections import Counter
from itertools import combinations, pairwise

import numpy as np
import pytest

from jclip.data import SourceError, open_source
from jclip.data.shapes import CLASSES, HELD_OUT, P_OBJECTS, SEEN
from jclip.data.shapes_captions import P_COLOUR_ONLY, P_SHAPE_ONLY, SYNONYMS
from jclip.data.shapes_drawing import COLOURS, JITTER, RGB, SHAPES, signed_distance

SAMPLES = 3000


@pytest.fixture(scope="module")
def scenes() -> list[dict]:
    source = open_source("shapes:train?size=16")
    return [dict(source[i]) for i in range(SAMPLES)]


def test_the_held_out_classes_take_one_from_each_shape_and_each_colour() -> None:
    assert len(CLASSES) == len(set(CLASSES)) == 64
    assert sorted(colour for colour, _ in HELD_OUT) == sorted(COLOURS)
    assert sorted(shape for _, shape in HELD_OUT) == sorted(SHAPES)
    assert set(SEEN) | set(HELD_OUT) == set(CLASSES)
    assert not set(SEEN) & set(HELD_OUT)


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_no_scene_of_a_seen_split_has_a_held_out_object(split: str) -> None:
    source = open_source(f"shapes:{split}?size=8&length=2000")
    drawn = Counter((o["colour"], o["shape"]) for i in range(2000) for o in source[i]["objects"])
    assert set(drawn) == set(SEEN)
    assert not set(drawn) & set(HELD_OUT)
    assert max(drawn.values()) < 2.2 * min(drawn.values())


def test_heldout_and_test_have_one_labelled_object_each() -> None:
    for split, names in (("heldout", HELD_OUT), ("test", SEEN)):
        source = open_source(f"shapes:{split}?size=8")
        seen = set()
        for i in range(400):
            example = source[i]
            (item,) = example["objects"]
            name = f"{item['colour']} {item['shape']}"
            assert source.classes[example["label"]] == name
            assert example["text"] == f"a {name}"
            seen.add((item["colour"], item["shape"]))
        assert seen == set(names)


def test_labels_among_the_seen_classes_name_the_same_objects() -> None:
    every, seen = open_source("shapes:test?size=8"), open_source("shapes:test?size=8&classes=seen")
    assert (len(every.classes), len(seen.classes)) == (64, 56)
    for i in range(100):
        assert every.classes[every[i]["label"]] == seen.classes[seen[i]["label"]]


def test_scenes_depend_on_seed_split_and_index_alone() -> None:
    a, b = open_source("shapes:train?size=16"), open_source("shapes:train?size=16&length=10")
    forwards = [a[i] for i in range(10)]
    for i in reversed(range(10)):
        np.testing.assert_array_equal(b[i]["image"], forwards[i]["image"])
        assert b[i]["text"] == forwards[i]["text"]
    for other in ("shapes:train?size=16&seed=1", "shapes:val?size=16"):
        assert all((open_source(other)[i]["image"] != forwards[i]["image"]).any() for i in range(10))


def test_scenes_stay_the_same_from_version_to_version() -> None:
    # What was drawn when this was written; another value is another data set, and no result can be compared with older ones.
    digest = hashlib.sha256()
    for split in ("train", "val", "test", "heldout"):
        source = open_source(f"shapes:{split}?size=24")
        for i in range(20):
            digest.update(repr((source[i]["text"], source[i]["label"])).encode())
    assert digest.hexdigest()[:16] == "01180f5ce6f7deb3"


@pytest.mark.parametrize(("split", "total"), [("train", 10731756), ("val", 10937823), ("test", 11521206), ("heldout", 11304785)])
def test_pixels_stay_the_same_from_version_to_version(split: str, total: int) -> None:
    # The sum of 50 images, as they were drawn when this was written. Another machine may round a few pixels otherwise.
    source = open_source(f"shapes:{split}?size=24")
    assert abs(sum(int(source[i]["image"].sum(dtype=np.int64)) for i in range(50)) - total) < 100


def test_images_are_u8_of_the_size_asked_for() -> None:
    for size in (8, 33, 64):
        image = open_source(f"shapes:train?size={size}")[0]["image"]
        assert (image.shape, image.dtype) == ((size, size, 3), np.uint8)


def test_scenes_of_another_size_show_the_same_objects() -> None:
    small, large = open_source("shapes:val?size=16"), open_source("shapes:val?size=64")
    for i in range(20):
        assert small[i]["objects"] == large[i]["objects"]
        assert small[i]["text"] == large[i]["text"]


def test_no_shade_is_nearer_to_another_colour() -> None:
    """Euclidean distances: jitter moves a colour by JITTER sum |d| / |d| towards another at most, with d their difference."""
    for a, b in combinations(RGB, 2):
        d = np.subtract(RGB[a], RGB[b]).astype(float)
        assert JITTER * np.abs(d).sum() / np.linalg.norm(d) < np.linalg.norm(d) / 2, (a, b)


def test_the_pixel_inside_an_object_has_its_colour() -> None:
    inside = {"ring": (0.7, 0.0), "crescent": (-0.6, 0.0)}
    source, wrong = open_source("shapes:val?size=64&length=300"), 0
    for i in range(300):
        example = source[i]
        for item in example["objects"]:
            dx, dy = inside.get(item["shape"], (0.0, 0.0))
            x, y = (round((item[a] + d * item["r"]) * 64 - 0.5) for a, d in (("x", dx), ("y", dy)))
            nearest = min(RGB, key=lambda name: np.square(np.subtract(RGB[name], example["image"][y, x].astype(int))).sum())
            wrong += nearest != item["colour"]
    assert wrong == 0


def test_objects_lie_within_the_image_and_do_not_overlap(scenes: list[dict]) -> None:
    for scene in scenes:
        items = scene["objects"]
        for item in items:
            assert item["x"] - item["r"] >= -1e-3
            assert item["x"] + item["r"] <= 1.001
            assert item["y"] - item["r"] >= -1e-3
            assert item["y"] + item["r"] <= 1.001
        for a in items:
            for b in items:
                if a is not b:
                    assert max(abs(a["x"] - b["x"]), abs(a["y"] - b["y"])) >= a["r"] + b["r"] - 1e-3


def test_the_numbers_of_objects_have_their_probabilities(scenes: list[dict]) -> None:
    counts = Counter(len(scene["objects"]) for scene in scenes)
    for number, p in enumerate(P_OBJECTS, 1):
        assert abs(counts[number] / SAMPLES - p) < 4 * (p * (1 - p) / SAMPLES) ** 0.5


def test_every_word_of_a_caption_is_true_of_its_scene(scenes: list[dict]) -> None:
    meaning = {other: word for word, other in SYNONYMS.items()}
    for scene in scenes:
        text, items = scene["text"], scene["objects"]
        for other, word in meaning.items():
            text = re.sub(rf"\b{other}\b", word, text)
        words = text.replace(",", "").replace(":", "").split()
        assert {w for w in words if w in COLOURS} <= {item["colour"] for item in items}, scene["text"]
        assert {w for w in words if w in SHAPES} <= {item["shape"] for item in items}, scene["text"]
        pairs = {f"{a} {b}" for a, b in pairwise(words) if a in COLOURS and b in SHAPES}
        assert pairs <= {f"{item['colour']} {item['shape']}" for item in items}, scene["text"]
        if "two shapes" in text or "three shapes" in text:
            assert len(items) == (2 if "two" in text else 3)
        for relation, test in {
            "left of": lambda a, b: a["x"] < b["x"],
            "right of": lambda a, b: a["x"] > b["x"],
            "above": lambda a, b: a["y"] < b["y"],
            "below": lambda a, b: a["y"] > b["y"],
        }.items():
            if relation in text:
                assert test(items[0], items[1]), scene["text"]


def test_captions_say_a_part_with_their_probabilities(scenes: list[dict]) -> None:
    single = [scene["text"] for scene in scenes if len(scene["objects"]) == 1]
    colour_only = np.mean(["something" in text for text in single])
    assert abs(colour_only - P_COLOUR_ONLY) < 0.03
    words = set(COLOURS) | {SYNONYMS.get(colour, colour) for colour in COLOURS}
    shape_only = np.mean([not words & set(text.split()) for text in single])
    assert abs(shape_only - P_SHAPE_ONLY) < 0.03


def test_a_and_an_are_right(scenes: list[dict]) -> None:
    for scene in scenes:
        assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", scene["text"]), scene["text"]


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_lie_within_the_unit_circle_and_differ(shape: str) -> None:
    v, u = np.mgrid[-1.2:1.2:97j, -1.2:1.2:97j].astype(np.float32)
    inside = signed_distance(shape, u, v) < 0
    assert 0.15 < inside[np.hypot(u, v) <= 1].mean() < 0.9
    assert not inside[np.hypot(u, v) > 1.01].any()
    for other in SHAPES:
        if other != shape:
            apart = inside ^ (signed_distance(other, u, v) < 0)
            assert apart.sum() > 0.2 * inside.sum()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("shapes:dev", "use train, val, test, heldout, counting, left_right"),
        ("shapes:train?sizes=3", "use size, length, seed, classes"),
        ("shapes:train?size=7", "from 8 to 1024"),
        ("shapes:train?size=1e2", "from 8 to 1024"),
        ("shapes:train?length=0", "from 1 to"),
        ("shapes:train?seed=-1", "from 0 to"),
        ("shapes:train?classes=some", "use all or seen"),
        ("shapes:heldout?classes=seen", "unseen class"),
        ("shapes:counting?classes=all", "captions to choose from, no labels; leave out classes"),
    ],
)
def test_errors_say_what_is_allowed(spec: str, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        open_source(spec)


def test_there_is_no_example_beyond_the_length() -> None:
    source = open_source("shapes:train?length=3")
    assert len(source) == 3
    for index in (-1, 3):
        with pytest.raises(IndexError):
            source[index]
