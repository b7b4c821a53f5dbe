"""The splits `counting` and `left_right` of `shapes`: a scene, and captions of which only the first is true of it."""

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np

from jclip.data.shapes import SEEN, SPLITS, distinct, fingerprint_of, paint, place
from jclip.data.shapes_captions import count_captions, left_of
from jclip.data.shapes_drawing import SHAPES

Name = tuple[str, str]
"""(colour, shape)."""

Box = tuple[float, float, float, float]
"""(x0, y0, x1, y1) in fractions of the image."""

RADIUS = {"counting": (0.18, 0.23), "left_right": (0.18, 0.24)}
"""Smallest and largest radius, as a fraction of the image. Where objects are counted, it is the same for one, two and three, so
that their size does not give the number away: that of two or three in training, where one alone is larger."""

QUARTERS = ((0.0, 0.0, 0.5, 0.5), (0.5, 0.0, 1.0, 0.5), (0.0, 0.5, 0.5, 1.0), (0.5, 0.5, 1.0, 1.0))

HALVES = ((0.0, 0.25, 0.5, 0.75), (0.5, 0.25, 1.0, 0.75))
"""Places of the left object, and of the right one: never as far apart in height as they are in breadth, which would be
"above"."""

NUMBERS = ("one", "two", "three")

Scene = tuple[list[dict[str, Any]], str, list[str], dict[str, str]]
"""Objects, the right caption, the wrong ones, and further fields."""


@dataclass(frozen=True)
class ShapesSelection:
    """Scenes of the 56 seen classes, in words that the captions of training have.

    Example fields: key, images (one u8[size,size,3]), captions, objects as in jclip.data.shapes.
    counting: one to three objects, equally often, of one shape and different colours; three captions, for each number of that
    shape, and "tag", the true number: one, two or three. left_right: two different objects side by side, and two captions: which
    is left of the other.
    """

    split: str
    size: int
    length: int
    seed: int
    classes: tuple[str, ...] = ()
    templates: tuple[str, ...] = ()

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < self.length:
            raise IndexError(f"shapes:{self.split} has no example {index}; it has {self.length}")
        rng = np.random.default_rng((self.seed, SPLITS.index(self.split), index))
        objects, right, wrong, more = self._count(index % 3, rng) if self.split == "counting" else self._sides(rng)
        image = paint(objects, self.size, rng)
        key = f"shapes:{self.split}:{index}"
        return {"key": key, "images": (image,), "captions": (right, *wrong), "objects": objects, **more}

    def fingerprint(self) -> str:
        """See Source: over the parameters and the code that draws."""
        return fingerprint_of(*astuple(self))

    def _count(self, number: int, rng: np.random.Generator) -> Scene:
        shape = SHAPES[int(rng.random() * len(SHAPES))]
        boxes = [QUARTERS[i] for i in distinct(rng, len(QUARTERS), number + 1)]
        objects = self._placed([name for name in SEEN if name[1] == shape], boxes, rng)
        wrong = list(count_captions(shape))
        return objects, wrong.pop(number), wrong, {"tag": NUMBERS[number]}

    def _sides(self, rng: np.random.Generator) -> Scene:
        left, right = objects = self._placed(SEEN, HALVES, rng)
        return objects, left_of(left, right), [left_of(right, left)], {}

    def _placed(self, names: Sequence[Name], boxes: Sequence[Box], rng: np.random.Generator) -> list[dict[str, Any]]:
        """An object in each box, of different names among `names`."""
        low, high = RADIUS[self.split]
        chosen = [names[i] for i in distinct(rng, len(names), len(boxes))]
        u = rng.random((len(boxes), 3)).tolist()
        return [place(name, low + (high - low) * r, (a, b), box) for name, (r, a, b), box in zip(chosen, u, boxes, strict=True)]
