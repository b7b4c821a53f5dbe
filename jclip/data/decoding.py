"""Encoded bytes, arrays and Pillow images to Pillow images of 8 bits a band; JPEGs also at a fraction of their size."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile

from jclip.data.source import BadExample

MAX_PIXELS = 64_000_000
"""Larger images are refused before they are decoded, unless more is asked for: 64 M pixels take 256 MB. The largest photographs
of crawls fit."""

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
"""Image formats that are decoded; Pillow's other decoders are never given foreign bytes."""

FULL_RANGES: Mapping[str, tuple[int, ...]] = {"I": (65535,), "F": (1, 255, 65535)}
"""White in Pillow's modes of one band of 32 bits, integers and floats: the least of these that no pixel exceeds."""


@dataclass(frozen=True)
class Decode:
    """Encoded bytes, u8[H,W], u8[H,W,1], u8[H,W,3] or u8[H,W,4], or a Pillow image, to a Pillow image of 8 bits a band.

    The first frame of an animation; EXIF rotation is applied to encoded bytes if `upright`, and otherwise not, as in open_clip.
    One band of more bits is scaled by its full range, where Pillow and open_clip clip it to white: 16 bits (I;16) by 65535; 32
    bits (I, F) by the least of FULL_RANGES that no pixel exceeds, and where there is none or a pixel is negative, its darkest
    pixel becomes 0 and its brightest 255.

    Raises BadExample for bytes that are no image, are cut short or corrupt, or hold more than `max_pixels` (which is found before
    decoding), and for pixels that are not finite.
    """

    max_pixels: int = MAX_PIXELS
    upright: bool = False

    def __call__(self, value: Any, rng: np.random.Generator | None = None) -> Image.Image:
        if isinstance(value, np.ndarray):
            return self._from_array(value)
        if isinstance(value, Image.Image):
            self._check_size(value.width, value.height)
            return _eight_bits(value)
        if not isinstance(value, bytes):
            raise BadExample(f"image is a {type(value).__name__}, not encoded bytes or an array")
        return self.load(self.open(value))

    def open(self, data: bytes) -> ImageFile:
        """The image of encoded bytes, its pixels not decoded yet."""
        if Image.MAX_IMAGE_PIXELS is not None and self.max_pixels > Image.MAX_IMAGE_PIXELS:
            Image.MAX_IMAGE_PIXELS = self.max_pixels  # Pillow's own limit, of the whole process, warns and then refuses
        with _explained(len(data)):
            image = Image.open(BytesIO(data), formats=FORMATS)
            self._check_size(image.width, image.height)
            if image.format == "PNG":
                Image.open(BytesIO(data), formats=("PNG",)).verify()  # `load` does not look at the checksums of pixels
        return image

    def load(self, image: ImageFile) -> Image.Image:
        """The image that `open` has opened, with its pixels."""
        self.raw(image)
        # A transparent colour means nothing in RGB, but Pillow would warn about it at each conversion.
        if image.mode in ("1", "L", "P", "RGB"):
            image.info.pop("transparency", None)
        return _eight_bits(_turned(image) if self.upright else image)

    def raw(self, image: ImageFile) -> Image.Image:
        """The same, whatever its bits: measurements are as they are."""
        with _explained():
            image.load()
        return image

    def _from_array(self, value: NDArray[Any]) -> Image.Image:
        if value.dtype != np.uint8 or value.ndim not in (2, 3) or (value.ndim == 3 and value.shape[2] not in (1, 3, 4)):
            raise BadExample(f"image is {value.dtype}{list(value.shape)}, not u8[H,W], u8[H,W,1], u8[H,W,3] or u8[H,W,4]")
        self._check_size(value.shape[1], value.shape[0])
        return Image.fromarray(value[:, :, 0] if value.shape[2:] == (1,) else value)

    def _check_size(self, width: int, height: int) -> None:
        if width < 1 or height < 1:
            raise BadExample(f"image has {width} x {height} pixels")
        if width * height > self.max_pixels:
            raise BadExample(f"image has {width} x {height} pixels, more than {self.max_pixels}")


@contextmanager
def _explained(size: int = 0) -> Iterator[None]:
    """Pillow's decoders raise nearly anything on foreign bytes, MemoryError too; it becomes a BadExample."""
    try:
        yield
    except BadExample:
        raise
    except Exception as error:
        what = f"{size} bytes that are no {', '.join(FORMATS)}"
        why = what if isinstance(error, UnidentifiedImageError) else f"{type(error).__name__}: {error}"
        raise BadExample(f"image cannot be decoded: {why}") from None


@dataclass(frozen=True)
class Open:
    """`Decode`, but of a JPEG only the header: it is decoded once its crop is known."""

    decode: Decode

    def __call__(self, value: Any, rng: np.random.Generator | None = None) -> "Image.Image | Jpeg":
        if not isinstance(value, bytes):
            return self.decode(value)
        image = self.decode.open(value)
        return Jpeg(self.decode, value, image) if isinstance(image, JpegImageFile) else self.decode.load(image)


class Jpeg:
    """A JPEG that libjpeg decodes at 1/1, 1/2, 1/4 or 1/8 of its size, each at most once."""

    def __init__(self, decode: Decode, data: bytes, opened: JpegImageFile) -> None:
        self._decode, self._data, self._opened = decode, data, [opened]
        self._decoded: dict[int, Image.Image] = {}
        self.size = opened.size
        """Width and height at 1/1."""

    def decoded(self, part: int) -> Image.Image:
        """The image at 1/`part` of its width and height, rounded up: each pixel is the mean of those it stands for.

        A broken one is found at any size, with the same error: its whole code is read. Raises BadExample for it, as `Decode`.
        """
        if part not in self._decoded:
            image = self._opened.pop() if self._opened else self._decode.open(self._data)
            if part > 1:
                image.draft(None, (self.size[0] // part, self.size[1] // part))  # the least that covers it
            self._decoded[part] = self._decode.load(image)
        return self._decoded[part]


def _turned(image: Image.Image) -> Image.Image:
    """An image as its EXIF data say it is held; as it is where these cannot be read."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF data raise nearly anything, and the pixels are sound
        return image


def _eight_bits(image: Image.Image) -> Image.Image:
    """One band of 16 or 32 bits as one of 8, scaled as `Decode` says; other modes as they are."""
    if image.mode.startswith("I;16"):
        return Image.fromarray(_scaled(np.asarray(image), 0, 65535))
    if image.mode not in FULL_RANGES:
        return image
    values = np.asarray(image)
    low, high = float(values.min()), float(values.max())
    if not math.isfinite(low) or not math.isfinite(high):
        raise BadExample("image has pixels that are not finite")
    white = next((white for white in FULL_RANGES[image.mode] if low >= 0 and high <= white), None)
    return Image.fromarray(_scaled(values, low, high) if white is None else _scaled(values, 0, white))


def _scaled(values: NDArray[Any], low: float, high: float) -> NDArray[np.uint8]:
    """`low` to 0 and `high` to 255, rounded. Band by band of rows: whole copies as floats would take a gigabyte."""
    scaled = np.empty(values.shape, np.uint8)
    factor = np.float32(255 / max(high - low, 1e-30))
    for top in range(0, len(values), 64):
        rows = values[top : top + 64].astype(np.float32)
        scaled[top : top + 64] = np.rint((rows - np.float32(low)) * factor)
    return scaled
