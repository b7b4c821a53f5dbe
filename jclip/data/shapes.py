"""The source `shapes`: drawn scenes of one to three coloured shapes with captions and sounds, computed from their index."""

import math
from collections.abc import Callable
from dataclasses import astuple, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jclip.data.fingerprint import combine, file_digests
from jclip.data.shapes_captions import caption
from jclip.data.shapes_drawing import COLOURS, SHAPES, background, draw
from jclip.data.source import LazyExample, Source, SourceError, split_options

CLASSES = tuple((colour, shape) for shape in SHAPES for colour in COLOURS)
"""All 64 (colour, shape) classes, in the order of the labels."""

HELD_OUT = tuple((COLOURS[(3 * i + 2) % 8], shape) for i, shape in enumerate(SHAPES))
"""Eight classes that no scene of the splits train, val and test contains: a transversal of the 8 x 8 square, so that every
shape and every colour loses exactly one. Naming them is composition: both words are known, never together."""

SEEN = tuple(name for name in CLASSES if name not in HELD_OUT)
"""The other 56 classes."""

LENGTHS = {"train": 50_000, "val": 2_000, "test": 2_000, "heldout": 800, "counting": 900, "left_right": 900}
"""Default number of examples of each split; the last two are of jclip.data.shapes_selection."""

SPLITS = tuple(LENGTHS)
"""The place of a split among these is part of its random numbers: a new one goes to the end."""

P_OBJECTS = (0.6, 0.3, 0.1)
"""Probability that a scene of train or val has 1, 2 or 3 objects."""

P_NOISE = 0.5
"""Probability that the background is noise around a grey, not the plain grey."""

RADIUS = ((0.3, 0.46), (0.18, 0.24), (0.16, 0.23))
"""Smallest and largest radius of an object among 1, 2 or 3, as a fraction of the image."""


@dataclass(frozen=True)
class Shapes:
    """Scenes of one split. Example fields: key, image u8[size,size,3], text, label, objects; and sound, not listed, which is made
    for who asks, see jclip.data.shapes_sounds.

    `label` is the class of the first object, `objects` has a dict of colour, shape, x, y, r for each (fractions of the
    image; r is the radius). train and val have one to three objects of the 56 seen classes; test has one of them; heldout has
    one of the eight others.
    """

    split: str
    size: int = 64
    length: int = 50_000
    seed: int = 0
    seen_only: bool = False
    """True: `classes` are the 56 seen ones and labels index into these."""

    complete: bool = False
    """True: captions name every object by its colour and shape."""

    templates: tuple[str, ...] = ()

    @property
    def classes(self) -> tuple[str, ...]:
        """Names such as "red circle", in the order of the labels."""
        return tuple(" ".join(name) for name in (SEEN if self.seen_only else CLASSES))

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> LazyExample:
        if not 0 <= index < self.length:
            raise IndexError(f"shapes:{self.split} has no example {index}; it has {self.length}")
        rng = np.random.default_rng((self.seed, SPLITS.index(self.split), index))
        objects = self._objects(rng)
        first = (objects[0]["colour"], objects[0]["shape"])
        text = caption(objects, rng, complete=self.complete) if self.split in ("train", "val") else f"a {first[0]} {first[1]}"
        label = (SEEN if self.seen_only else CLASSES).index(first)
        readers: dict[str, Callable[[], Any]] = {
            "image": cache(lambda: paint(objects, self.size, rng)),  # the rng goes on: it is painted once
            "text": lambda: text,
            "label": lambda: label,
            "objects": lambda: objects,
        }
        return LazyExample(f"shapes:{self.split}:{index}", readers, {"sound": partial(self._sound, index, objects)})

    def _sound(self, index: int, objects: list[dict[str, Any]]) -> Any:
        from jclip.data.shapes_sounds import sound

        return sound(objects, np.random.default_rng((self.seed, SPLITS.index(self.split), index, 1)))

    def _objects(self, rng: np.random.Generator) -> list[dict[str, Any]]:
        several = self.split in ("train", "val")
        count = 1 + int(np.searchsorted(np.cumsum(P_OBJECTS)[:-1], rng.random(), side="right")) if several else 1
        pool = HELD_OUT if self.split == "heldout" else SEEN
        names = [pool[i] for i in distinct(rng, len(pool), count)]
        u = rng.random((count, 3)).tolist()
        low, high = RADIUS[count - 1]
        radii = [low + (high - low) * a for a, _, _ in u]
        centers = _cells(count, rng)
        return [place(*row) for row in zip(names, radii, [(a, b) for _, a, b in u], centers, strict=True)]

    def fingerprint(self) -> str:
        """See Source: over the parameters and the code that draws."""
        return fingerprint_of(*astuple(self))


def place(name: tuple[str, str], r: float, at: tuple[float, float], box: tuple[float, float, float, float]) -> dict[str, Any]:
    """An object of radius r within a box (x0, y0, x1, y1), as far from its left and top as the two numbers in 0 to 1 say."""
    x0, y0, x1, y1 = box
    x = x0 + r + max(0.0, x1 - x0 - 2 * r) * at[0]
    y = y0 + r + max(0.0, y1 - y0 - 2 * r) * at[1]
    return {"colour": name[0], "shape": name[1], "x": round(x, 4), "y": round(y, 4), "r": round(r, 4)}


def paint(objects: list[dict[str, Any]], size: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """u8[size,size,3]: the objects before a background."""
    image = background(size, rng.random() < P_NOISE, rng)
    for item in objects:
        draw(image, item["colour"], item["shape"], item["x"], item["y"], item["r"], rng)
    pixels: NDArray[np.uint8] = np.clip(image + 0.5, 0, 255).astype(np.uint8)
    return pixels


def fingerprint_of(*parameters: object) -> str:
    """The fingerprint of what this code draws with these parameters."""
    code = sorted(Path(__file__).parent.glob("shapes*.py"))
    return combine("shapes", repr(parameters), *(path.name for path in code), *file_digests(code))


def open_shapes(spec: str) -> Source:
    """Opens "SPLIT[?size=64&length=N&seed=0&classes=seen&captions=complete]".

    size: side of the images in pixels, 8 to 1024 (64). length: number of examples (train 50,000, val and test 2,000,
    heldout 800, counting and left_right 900). seed: another seed is another data set. classes=seen: labels among the 56 seen
    classes only, for train, val and test; classes=all is the default. captions=complete: those of train and val name every object
    by its colour and shape, in the same images; captions=all, of which some leave out words and objects, is the default.

    Raises:
        SourceError: no such split or option, or a value out of range.
    """
    split, options = split_options(spec, ("size", "length", "seed", "classes", "captions"))
    if split not in SPLITS:
        raise SourceError(f"source 'shapes:{spec}': the split {split!r} is unknown; use {', '.join(SPLITS)}")
    classes = options.get("classes", "all")
    if classes not in ("all", "seen"):
        raise SourceError(f"source 'shapes:{spec}': classes={classes} is unknown; use all or seen")
    if classes == "seen" and split == "heldout":
        raise SourceError(f"source 'shapes:{spec}': every object of heldout is of an unseen class; leave out classes=seen")
    captions = options.get("captions", "all")
    if captions not in ("all", "complete"):
        raise SourceError(f"source 'shapes:{spec}': captions={captions} is unknown; use all or complete")
    if captions == "complete" and split not in ("train", "val"):
        raise SourceError(f"source 'shapes:{spec}': captions of {split} are complete anyway; leave out captions=complete")
    size = _number(spec, options, "size", 64, 8, 1024)
    length = _number(spec, options, "length", LENGTHS[split], 1, 2**31)
    seed = _number(spec, options, "seed", 0, 0, 2**32 - 1)
    if split in ("counting", "left_right"):
        from jclip.data.shapes_selection import ShapesSelection

        if "classes" in options:
            raise SourceError(f"source 'shapes:{spec}': {split} has captions to choose from, no labels; leave out classes")
        return ShapesSelection(split, size, length, seed)
    return Shapes(split, size, length, seed, classes == "seen", captions == "complete")


def _number(spec: str, options: dict[str, str], name: str, default: int, low: int, high: int) -> int:
    text = options.get(name, str(default))
    if not text.isascii() or not text.isdigit() or not low <= int(text) <= high:
        raise SourceError(f"source 'shapes:{spec}': {name}={text} is not a whole number from {low} to {high}")
    return int(text)


def distinct(rng: np.random.Generator, n: int, count: int) -> list[int]:
    """`count` different numbers below n; `rng.choice` without replacement is ten times slower."""
    chosen: list[int] = []
    for i in range(count):
        draw = math.floor(rng.random() * (n - i))
        for other in sorted(chosen):
            draw += draw >= other
        chosen.append(draw)
    return chosen


def _cells(count: int, rng: np.random.Generator) -> list[tuple[float, float, float, float]]:
    """Disjoint boxes (x0, y0, x1, y1), one an object: the whole image, two halves, or three quarters of it."""
    if count == 1:
        return [(0.0, 0.0, 1.0, 1.0)]
    if count == 2:
        halves = [(0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)]
        halves = halves if rng.random() < 0.5 else [(y0, x0, y1, x1) for x0, y0, x1, y1 in halves]
        return halves if rng.random() < 0.5 else halves[::-1]
    quarters = [(0.0, 0.0, 0.5, 0.5), (0.5, 0.0, 1.0, 0.5), (0.0, 0.5, 0.5, 1.0), (0.5, 0.5, 1.0, 1.0)]
    return [quarters[i] for i in distinct(rng, 4, 3)]
