"""Captions of `shapes`: templates with synonyms, sizes, positions, counts, and parts left unsaid."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from jclip.data.shapes_drawing import COLOURS, SHAPES

P_COLOUR_ONLY = 0.1
"""Probability that an object is named by its colour alone: "something red". Such captions tell the words apart."""

P_SHAPE_ONLY = 0.4
"""Probability that an object is named by its shape alone: "a circle"."""

P_SYNONYM = 0.15
"""Probability, for each word, that a synonym takes its place."""

P_SIZE = 0.15
"""Probability that a fully named object also gets its size: "a big red circle"."""

P_POSITION = 0.4
"""Probability that the caption of two objects says where they are to each other."""

P_COUNT = 0.2
"""Probability that the caption of several objects begins with their number."""

P_FIRST_ONLY = 0.1
"""Probability that the caption of several objects names the first alone."""

SYNONYMS = {
    "circle": "disc",
    "square": "box",
    "cross": "plus sign",
    "ring": "hoop",
    "diamond": "rhombus",
    "crescent": "moon",
    "red": "crimson",
    "cyan": "turquoise",
    "purple": "violet",
    "pink": "rose",
}

BIG, SMALL = 0.38, 0.19
"""Radii, in fractions of the image, from which an object is called big, and up to which it is called small."""

FRAMES = ("{}", "{}", "a picture of {}", "there is {}", "an image with {}")

WORDS = {name: name for name in (*SHAPES, *COLOURS)} | {synonym: word for word, synonym in SYNONYMS.items()}
"""The name of a shape or colour, of each word for it."""

FRAME = r"(a picture of|there is|an image with|(two|three) shapes :) "
SEPARATOR = r" (?:,|and|left of|right of|above|below) "
_SHAPE, _COLOUR = ("|".join(word for word, name in WORDS.items() if name in names) for names in (SHAPES, COLOURS))
PHRASE = rf"an? (?:(?P<size>big|small) )?(?P<colour>{_COLOUR}) (?P<shape>{_SHAPE})"


def caption(objects: Sequence[dict[str, Any]], rng: np.random.Generator, *, complete: bool = False) -> str:
    """A caption of a scene (see Shapes for its objects); true, but complete only if it is to be."""
    dice = iter(rng.random(32).tolist())
    if len(objects) > 1 and next(dice) < P_FIRST_ONLY and not complete:
        objects = objects[:1]
    phrases = [_phrase(item, dice, complete) for item in objects]
    if len(objects) == 1:
        return FRAMES[int(next(dice) * len(FRAMES))].format(phrases[0])
    if len(objects) == 2 and next(dice) < P_POSITION:
        return f"{phrases[0]} {_relation(objects[0], objects[1])} {phrases[1]}"
    listed = " and ".join([", ".join(phrases[:-1]), phrases[-1]])
    if next(dice) < P_COUNT:
        return f"{'two' if len(objects) == 2 else 'three'} shapes: {listed}"
    return FRAMES[int(next(dice) * len(FRAMES))].format(listed)


def count_captions(shape: str) -> tuple[str, str, str]:
    """Captions of one, two and three objects of a shape, their colours left out."""
    one = f"{_article(shape)} {shape}"
    return one, f"two shapes: {one} and {one}", f"three shapes: {one}, {one} and {one}"


def left_of(a: dict[str, Any], b: dict[str, Any]) -> str:
    """Captions of two objects of which `a` is the left one."""
    first, second = (f"{item['colour']} {item['shape']}" for item in (a, b))
    return f"{_article(first)} {first} left of {_article(second)} {second}"


def named_objects(caption: str) -> list[tuple[str, str, str]] | None:
    """(size, colour, shape) of each object that a complete caption names, in its order; size "" where it says none.

    None: it is not what `caption` says, or not complete.
    """
    words = re.sub(r"\s*([,:])\s*", r" \1 ", caption.lower())
    words = re.sub(FRAME, "", " ".join(words.split()))
    found = [re.fullmatch(PHRASE, phrase) for phrase in re.split(SEPARATOR, words)]
    known = [(match["size"] or "", WORDS[match["colour"]], WORDS[match["shape"]]) for match in found if match]
    return known if len(known) == len(found) else None


def names_exactly(caption: str, objects: Sequence[dict[str, Any]]) -> bool:
    """True if a caption names all the objects of a scene by colour and shape, nothing else, and no size that is not theirs."""
    named = named_objects(caption)
    if named is None:
        return False
    size_of = {(item["colour"], item["shape"]): _size(item) for item in objects}  # no two objects of a scene are alike
    right = sorted((colour, shape) for _, colour, shape in named) == sorted(size_of)
    return right and all(size in ("", size_of[colour, shape]) for size, colour, shape in named)


def _size(item: dict[str, Any]) -> str:
    return "big" if item["r"] >= BIG else "small" if item["r"] <= SMALL else ""


def _phrase(item: dict[str, Any], dice: Any, complete: bool) -> str:
    colour, shape = _word(item["colour"], next(dice)), _word(item["shape"], next(dice))
    part = 1.0 if complete else next(dice)
    if part < P_COLOUR_ONLY:
        return f"something {colour}"
    if part < P_COLOUR_ONLY + P_SHAPE_ONLY:
        return f"{_article(shape)} {shape}"
    size = _size(item) if next(dice) < P_SIZE else ""
    words = f"{size} {colour} {shape}".lstrip()
    return f"{_article(words)} {words}"


def _word(word: str, die: float) -> str:
    return SYNONYMS.get(word, word) if die < P_SYNONYM else word


def _article(words: str) -> str:
    return "an" if words[0] in "aeiou" else "a"


def _relation(a: dict[str, Any], b: dict[str, Any]) -> str:
    dx, dy = b["x"] - a["x"], b["y"] - a["y"]
    if abs(dx) >= abs(dy):
        return "left of" if dx > 0 else "right of"
    return "above" if dy > 0 else "below"
