"""Inputs of the towers of other sensors: maps of depth and of heat, and what inertial units measure."""

from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from jclip.config import DepthTower, ImuTower, PlaneTower, ThermalTower
from jclip.data.decoding import Decode
from jclip.data.reading import Compose, Generator, Reading, Transform
from jclip.data.source import BadExample
from jclip.data.transforms import CenterCrop, Flip, RandomResizedCrop, Resize

MAX_NUMBERS = 2**28
"""Larger arrays are refused: they are no single example."""


def plane_transform(tower: PlaneTower, reading: Reading) -> Compose:
    """f32 [H, W, 1] of a map of one channel: its middle, or in training a random crop, perhaps mirrored, as those of images are.

    With the same draws (`View.same_as`) a map is cropped where its image of the same size is.
    """
    assert isinstance(tower, DepthTower | ThermalTower)
    read = DepthMap(tower, reading.max_pixels) if isinstance(tower, DepthTower) else HeatMap(tower, reading.max_pixels)
    how = reading.augment
    if how is None:
        return Compose((read, Resize(tower.size, "shortest", "bilinear"), CenterCrop(tower.size), ToPlane()))
    flip = (Flip(how.flip),) if how.flip > 0 else ()
    return Compose((read, RandomResizedCrop(tower.size, how.scale, how.ratio, "bilinear"), *flip, ToPlane()))


def imu_transform(tower: ImuTower, reading: Reading) -> Transform:
    """f32 [channels, samples] of what an inertial unit has measured."""
    return Measurements(tower.channels, tower.samples)


@dataclass(frozen=True)
class DepthMap:
    """A map of distances, an encoded picture of one channel or an array [H, W], to one of disparities, 0 to 1.

    disparity = focal_baseline / distance / most, at most 1. A distance of 0, one that is not finite and one below 0 was not
    measured, and is 0.
    """

    tower: DepthTower
    max_pixels: int

    def __call__(self, value: Any, rng: Generator | None = None) -> Image.Image:
        metres = read_plane(value, "depth", self.max_pixels) * self.tower.unit
        measured = np.isfinite(metres) & (metres > 0)
        with np.errstate(over="ignore"):
            disparity = self.tower.focal_baseline / self.tower.most / np.where(measured, metres, np.inf)
        return Image.fromarray(np.minimum(disparity, 1).astype(np.float32))


@dataclass(frozen=True)
class HeatMap:
    """A picture of heat, encoded or an array [H, W], to values 0 to 1: `low` is 0 and `high` 1. Of three equal channels one."""

    tower: ThermalTower
    max_pixels: int

    def __call__(self, value: Any, rng: Generator | None = None) -> Image.Image:
        plane = read_plane(value, "heat", self.max_pixels)
        if not np.isfinite(plane).all():
            raise BadExample("heat has values that are not finite")
        low, high = self.tower.low, self.tower.high
        return Image.fromarray(np.clip((plane - low) / (high - low), 0, 1).astype(np.float32))


class ToPlane:
    """A picture of one channel to f32 [H, W, 1]."""

    def __call__(self, value: Image.Image, rng: Generator | None = None) -> NDArray[np.float32]:
        return np.asarray(value, np.float32)[:, :, None]


@dataclass(frozen=True)
class Measurements:
    """An array, or the bytes of a .npy, [channels, n] or [n, channels], to f32 [channels, samples]; see `ImuTower.samples`."""

    channels: int
    samples: int

    def __call__(self, value: Any, rng: Generator | None = None) -> NDArray[np.float32]:
        x = read_array(value, "motion")
        if x.ndim != 2 or self.channels not in x.shape:
            raise BadExample(f"motion is {list(x.shape)}, not [{self.channels}, n] or [n, {self.channels}]")
        x = x if x.shape[0] == self.channels else x.T
        if x.shape[1] == 0:
            raise BadExample("motion has no measurement")
        spare = x.shape[1] - self.samples
        if spare > 0:
            first = spare // 2 if rng is None else int(rng.integers(spare + 1))
            x = x[:, first : first + self.samples]
        with np.errstate(over="ignore"):
            x = x.astype(np.float32)
        if not np.isfinite(x).all():
            raise BadExample("motion has values that are not finite, or too large for f32")
        return np.pad(x, ((0, 0), (0, max(0, -spare))))


def read_plane(value: Any, what: str, max_pixels: int) -> NDArray[np.float64]:
    """f64 [H, W] of an encoded picture, a Pillow image, the bytes of a .npy, or an array [H, W] or [H, W, 1], as they are.

    Raises:
        BadExample: it is none of these, has several channels that differ, or more than `max_pixels`.
    """
    if isinstance(value, bytes) and not value.startswith(b"\x93NUMPY"):
        decode = Decode(max_pixels)
        value = decode.raw(decode.open(value))
    if isinstance(value, Image.Image):
        if value.mode == "P":
            raise BadExample(f"{what} is a picture with a palette, whose numbers are no measurements")
        value = np.asarray(value)
    x = read_array(value, what)
    if x.ndim == 3 and x.shape[2] > 1 and (x == x[:, :, :1]).all():
        x = x[:, :, :1]
    if x.ndim == 3 and x.shape[2] == 1:
        x = x[:, :, 0]
    if x.ndim != 2 or x.size == 0:
        raise BadExample(f"{what} is {list(x.shape)}, not one channel [H, W]")
    if x.size > max_pixels:
        raise BadExample(f"{what} has {x.shape[1]} x {x.shape[0]} pixels, more than {max_pixels}")
    return x.astype(np.float64)


def read_array(value: Any, what: str) -> NDArray[Any]:
    """An array of numbers, or that of the bytes of a .npy, of which nothing is run.

    Raises:
        BadExample: it is none, is damaged, or has more than MAX_NUMBERS numbers.
    """
    if isinstance(value, bytes):
        try:
            value = _npy(value)
        except Exception as problem:  # numpy's parser of headers raises nearly anything on foreign bytes
            raise BadExample(f"{what} cannot be read as .npy: {problem}") from None
    try:
        x = np.asarray(value)
    except ValueError:
        raise BadExample(f"{what} is no array: its rows differ in length") from None
    if x.dtype.kind not in "iufb" or x.ndim == 0:
        raise BadExample(f"{what} is a {type(value).__name__}, not an array of numbers")
    if x.size > MAX_NUMBERS:
        raise BadExample(f"{what} has {x.size:,} numbers, more than {MAX_NUMBERS:,}")
    return x


def _npy(data: bytes) -> NDArray[Any]:
    """The array of a .npy, whose header is believed only as far as there are bytes."""
    stream = BytesIO(data)
    version = np.lib.format.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"version {version}")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(stream)
    if dtype.hasobject or dtype.kind not in "iufb":
        raise ValueError(f"it holds {dtype}, not numbers")
    size = 1
    for side in shape:
        size *= int(side)
    if size > MAX_NUMBERS or size * dtype.itemsize > len(data) - stream.tell():
        raise ValueError(f"its header says {list(shape)} {dtype}, and {len(data) - stream.tell():,} bytes follow")
    array: NDArray[Any] = np.load(BytesIO(data), allow_pickle=False)
    return array
