"""Transforms of images and texts, as small picklable objects: bytes to pixels, text to ids."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from jclip.config import Augment, ImageTower, TextAugment, TokenizerConfig, TokenTower
from jclip.data.augmentations import changes, needs_rng
from jclip.data.decoding import MAX_PIXELS, Decode, Jpeg, Open
from jclip.data.fields import is_blank
from jclip.data.reading import Compose, Reading, Transform
from jclip.data.resampling import Box, resize
from jclip.data.source import BadExample, decode_text
from jclip.data.text_augmentations import ChangeWords, read_synonyms
from jclip.data.tokenizer import check_vocabulary, get_tokenizer

Generator = np.random.Generator

Size = tuple[int, int]
"""Height and width in pixels, in the order of arrays; Pillow's own order is the other."""

MAX_CHARACTERS = 1_000_000
"""Longer texts are refused: they are no captions, and cleaning one takes a second."""


def image_transform(tower: ImageTower, reading: Reading) -> Compose:
    """u8[H,W,3] of an image: the whole of it, or in training a random crop."""
    how, size = tower.preprocess, tower.size
    if reading.augment is not None:
        return _augmented(tower, reading, reading.augment)
    resize = Resize(size, how.resize, how.interpolation)
    fit: tuple[Transform, ...]
    match how.resize:
        case "shortest":
            fit = (resize, CenterCrop(size))
        case "longest":
            fit = (resize, Pad(size, how.fill))
        case "squash":
            fit = (resize,)
    return Compose((Decode(reading.max_pixels, reading.upright), *fit, ToRgb(), ToArray()))


def _augmented(tower: ImageTower, reading: Reading, augment: Augment) -> Compose:
    how, (height, width), ratio = tower.preprocess, tower.size, augment.ratio
    pad = None
    if how.resize == "longest":
        pad, ratio = PadToShape(tower.size, how.fill), (ratio[0] * width / height, ratio[1] * width / height)
    crop = RandomResizedCrop(tower.size, augment.scale, ratio, how.interpolation)
    steps: list[Transform]
    if reading.decode == "fast":
        steps = [Open(Decode(reading.max_pixels)), ScaledCrop(crop, pad)]
    else:
        steps = [Decode(reading.max_pixels), ToRgb(), *([pad] if pad else []), crop]
    if augment.flip > 0:
        steps.append(Flip(augment.flip))
    return Compose((*steps, *changes(augment), ToArray()))


def text_transform(tower: TokenTower, reading: Reading) -> Compose:
    """i32[L] of a text."""
    check_vocabulary(tower)  # here, where the error reaches the user, and not in the first batch of a worker
    how = reading.text_augment
    change = ChangeWords(how) if how is not None and how != TextAugment() else None
    if change is not None and change.how.synonyms:
        read_synonyms(change.how.synonyms)
    return Compose((Tokenize(tower.tokenizer, tower.context_length, reading.empty_texts, change),))


@dataclass(frozen=True)
class Resize:
    """Resizes with antialiasing on uint8, to the sizes that open_clip computes.

    shortest: the least that covers `size`; longest: the largest that fits into it; squash: `size`. Where the result would exceed
    `max_pixels`, only what `CenterCrop` keeps is computed (1 x 10,000 pixels would become 224 x 2,240,000); it may differ
    by the rounding between Pillow's two passes.
    """

    size: Size
    mode: str = "shortest"
    interpolation: str = "bicubic"
    max_pixels: int = MAX_PIXELS

    def __call__(self, value: Image.Image, rng: Generator | None = None) -> Image.Image:
        width, height = self._size(value.width, value.height)
        if width * height <= self.max_pixels:
            return resize(value, (width, height), self.interpolation)
        kept_height, kept_width = self.size
        left, top = _center(width, kept_width), _center(height, kept_height)
        x, y = value.width / width, value.height / height
        right, bottom = min((left + kept_width) * x, value.width), min((top + kept_height) * y, value.height)
        return resize(value, (kept_width, kept_height), self.interpolation, (left * x, top * y, right, bottom))

    def _size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height of the result."""
        to_height, to_width = self.size
        if self.mode == "squash":
            return to_width, to_height
        if self.mode == "shortest" and to_width == to_height:  # torchvision's resize of the shorter side rounds down
            long = int(to_width * max(width, height) / min(width, height))
            return (to_width, long) if width <= height else (long, to_height)
        ratios = width / to_width, height / to_height
        ratio = min(ratios) if self.mode == "shortest" else max(ratios)
        return max(1, round(width / ratio)), max(1, round(height / ratio))


@dataclass(frozen=True)
class CenterCrop:
    """The central `size` of an image; half pixels are rounded to even, as in torchvision."""

    size: Size

    def __call__(self, value: Image.Image, rng: Generator | None = None) -> Image.Image:
        height, width = self.size
        left, top = _center(value.width, width), _center(value.height, height)
        return value.crop((left, top, left + width, top + height))


@dataclass(frozen=True)
class Pad:
    """Pads an image no larger than `size` to it; every band gets `fill`, an odd pixel goes right or below."""

    size: Size
    fill: int = 0

    def __call__(self, value: Image.Image, rng: Generator | None = None) -> Image.Image:
        wide, high = self.size[1] - value.width, self.size[0] - value.height
        bands = len(value.getbands())
        border = (wide // 2, high // 2, (wide + 1) // 2, (high + 1) // 2)
        padded = ImageOps.expand(value, border, fill=(self.fill,) * bands if bands > 1 else self.fill)
        if value.mode == "P":
            padded.putpalette(value.getpalette() or [])
        return padded


@dataclass(frozen=True)
class PadToShape:
    """Pads an RGB image to the least rectangle around it that has the shape of `size`, to the nearest pixel.

    An image whose rectangle has a side above `max_side` (16 M pixels) is made smaller first.
    """

    size: Size
    fill: int = 0
    max_side: int = 4096

    def __call__(self, value: Image.Image, rng: Generator | None = None) -> Image.Image:
        height, width = self.around(value.width, value.height)
        if max(height, width) > self.max_side:
            scale = self.max_side / max(self.size)
            value = Resize((max(1, round(self.size[0] * scale)), max(1, round(self.size[1] * scale))), "longest")(value)
            height, width = self.around(value.width, value.height)
        return Pad((height, width), self.fill)(value)

    def around(self, width: int, height: int) -> Size:
        """Height and width of the rectangle around an image of `width` x `height`."""
        scale = max(height / self.size[0], width / self.size[1])
        return max(height, round(self.size[0] * scale)), max(width, round(self.size[1] * scale))


@dataclass(frozen=True)
class RandomResizedCrop:
    """A crop of random area and shape, resized to `size` (Szegedy et al. 2015; torchvision's sampling).

    The area is uniform in `scale` (fractions of the image), the logarithm of width over height uniform in `ratio`; after
    ten crops that do not fit, the largest central one whose shape is allowed.
    """

    size: Size
    scale: tuple[float, float] = (0.9, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: str = "bicubic"

    def __call__(self, value: Image.Image, rng: Generator | None = None) -> Image.Image:
        left, top, width, height = self.sample(value.width, value.height, needs_rng(rng, self))
        return self.cut(value, (left, top, left + width, top + height))

    def cut(self, image: Image.Image, box: Box) -> Image.Image:
        """A part of an image, resized; nothing outside of the pixels that it touches counts."""
        left, top, right, bottom = math.floor(box[0]), math.floor(box[1]), math.ceil(box[2]), math.ceil(box[3])
        part = (box[0] - left, box[1] - top, box[2] - left, box[3] - top)
        return resize(image.crop((left, top, right, bottom)), (self.size[1], self.size[0]), self.interpolation, part)

    def sample(self, width: int, height: int, rng: Generator) -> tuple[int, int, int, int]:
        """Left, top, width and height of a crop of an image of `width` x `height`."""
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        for _ in range(10):
            area = width * height * rng.uniform(*self.scale)
            ratio = math.exp(rng.uniform(low, high))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                top = int(rng.integers(0, height - h + 1))
                left = int(rng.integers(0, width - w + 1))
                return left, top, w, h
        w = min(width, max(1, round(height * self.ratio[1])))
        h = min(height, max(1, round(width / self.ratio[0])))
        return (width - w) // 2, (height - h) // 2, w, h


@dataclass(frozen=True)
class ScaledCrop:
    """The crop of an image as RGB, padded before; of a `Jpeg`, decoded at the least size at which the crop covers `crop.size`.

    What is drawn, and which examples are broken, does not depend on that size.
    """

    crop: RandomResizedCrop
    pad: PadToShape | None = None

    def __call__(self, value: Image.Image | Jpeg, rng: Generator | None = None) -> Image.Image:
        rng = needs_rng(rng, self)
        if isinstance(value, Jpeg):
            height, width = self.pad.around(*value.size) if self.pad else value.size[::-1]
            if self.pad is None or max(height, width) <= self.pad.max_side:
                return self._scaled(value, (height, width), rng)
            value = value.decoded(1)
        value = ToRgb()(value)
        return self.crop(self.pad(value) if self.pad else value, rng)

    def _scaled(self, jpeg: Jpeg, padded: Size, rng: Generator) -> Image.Image:
        before = rng.bit_generator.state
        left, top, width, height = self.crop.sample(padded[1], padded[0], rng)
        to_height, to_width = self.crop.size
        part = max(part for part in (1, 2, 4, 8) if part == 1 or (width >= part * to_width and height >= part * to_height))
        try:
            small = ToRgb()(jpeg.decoded(part))
        except BadExample:
            rng.bit_generator.state = before  # exact decoding fails before the crop is drawn; the substitute is the same
            raise
        image = self.pad(small) if self.pad else small

        def place(x: int, axis: int) -> float:
            """Place in the padded small image of one in the padded image: both have the image in their middle."""
            margin, small_margin = (padded[1 - axis] - jpeg.size[axis]) // 2, (image.size[axis] - small.size[axis]) // 2
            return min(max((x - margin) / part + small_margin, 0), image.size[axis])

        box = (place(left, 0), place(top, 1), place(left + width, 0), place(top + height, 1))
        return self.crop.cut(image, box)


@dataclass(frozen=True)
class Flip:
    """Left becomes right with probability `p`."""

    p: float = 0.5

    def __call__(self, value: Image.Image, rng: Generator | None = None) -> Image.Image:
        if needs_rng(rng, self).random() < self.p:
            return value.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return value


@dataclass(frozen=True)
class ToRgb:
    """Any Pillow mode to RGB; transparency is dropped, not blended.

    Evaluation resizes before this step, as open_clip does, weighing colours by their opacity; transformers after it.
    """

    def __call__(self, value: Image.Image, rng: Generator | None = None) -> Image.Image:
        return value if value.mode == "RGB" else value.convert("RGB")


@dataclass(frozen=True)
class ToArray:
    """An RGB image to u8[H,W,3], 0 to 255."""

    def __call__(self, value: Image.Image, rng: Generator | None = None) -> NDArray[np.uint8]:
        return np.asarray(value, np.uint8)


@dataclass(frozen=True)
class Tokenize:
    """A text (str, or UTF-8 bytes) to i32[context_length]; of several texts one is drawn, or without `rng` the first.

    Several are a tuple, or a list, of which null and blank ones do not count. An empty or blank text is a BadExample, unless
    `empty`.
    """

    tokenizer: TokenizerConfig = TokenizerConfig()
    context_length: int = 77
    empty: bool = False
    change: ChangeWords | None = None

    def __call__(self, value: Any, rng: Generator | None = None) -> NDArray[np.int32]:
        return self.ids(self.words(value, rng))

    def ids(self, text: str) -> NDArray[np.int32]:
        """i32[context_length] of a text as it is."""
        return get_tokenizer(self.tokenizer)(text, self.context_length)

    def words(self, value: Any, rng: Generator | None = None) -> str:
        """The text whose ids are made: the one that is drawn, with its words changed. Raises BadExample."""
        if isinstance(value, list):
            value = tuple(text for text in value if not is_blank(text))
        if isinstance(value, tuple):
            if not value:
                raise BadExample("there is no caption")
            value = value[0 if rng is None else int(rng.integers(len(value)))]
        text = decode_text(value) if isinstance(value, bytes) else value
        if not isinstance(text, str):
            raise BadExample(f"caption is a {type(text).__name__}, not a text")
        if not text.strip() and not self.empty:
            raise BadExample("caption is empty")
        if len(text) > MAX_CHARACTERS:
            raise BadExample(f"caption has {len(text)} characters, more than {MAX_CHARACTERS}")
        if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
            raise BadExample("caption holds half a surrogate pair")
        return text if self.change is None else self.change(text, rng)


def _center(length: int, size: int) -> int:
    """First of the central `size` of `length` pixels."""
    return round((length - size) / 2)
