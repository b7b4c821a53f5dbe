"""What `shapes` says about a scene: templates with synonyms, sizes, positions, counts, and parts left unsaid."""

from collections.abc import Sequence
from typing import Any

import numpy as np

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


def caption(objects: Sequence[dict[str, Any]], rng: np.random.Generator) -> str:
    """A caption of a scene (see Shapes for its objects); true, but not always complete."""
    dice = iter(rng.random(32).tolist())
    if len(objects) > 1 and next(dice) < P_FIRST_ONLY:
        objects = objects[:1]
    phrases = [_phrase(item, dice) for item in objects]
    if len(objects) == 1:
        return FRAMES[int(next(dice) * len(FRAMES))].format(phrases[0])
    if len(objects) == 2 and next(dice) < P_POSITION:
        return f"{phrases[0]} {_relation(objects[0], objects[1])} {phrases[1]}"
    listed = " and ".join([", ".join(phrases[:-1]), phrases[-1]])
    if next(dice) < P_COUNT:
        return f"{'two' if len(objects) == 2 else 'three'} shapes: {listed}"
    return FRAMES[int(next(dice) * len(FRAMES))].format(listed)


def count_captions(shape: str) -> tuple[str, str, str]:
    """What `caption` may say of one, two and three objects of a shape, their colours left out."""
    one = f"{_article(shape)} {shape}"
    return one, f"two shapes: {one} and {one}", f"three shapes: {one}, {one} and {one}"


def left_of(a: dict[str, Any], b: dict[str, Any]) -> str:
    """What `caption` may say of two objects of which `a` is the left one."""
    first, second = (f"{item['colour']} {item['shape']}" for item in (a, b))
    return f"{_article(first)} {first} left of {_article(second)} {second}"


def _phrase(item: dict[str, Any], dice: Any) -> str:
    colour, shape = _word(item["colour"], next(dice)), _word(item["shape"], next(dice))
    part = next(dice)
    if part < P_COLOUR_ONLY:
        return f"something {colour}"
    if part < P_COLOUR_ONLY + P_SHAPE_ONLY:
        return f"{_article(shape)} {shape}"
    size = "big " if item["r"] >= BIG else "small " if item["r"] <= SMALL else ""
    words = f"{size if next(dice) < P_SIZE else ''}{colour} {shape}"
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
