"""The dataclasses of towers for other sensors than camera and microphone: depth, heat and motion, as in ImageBind."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from jclip.config.ranges import Range, Size
from jclip.config.towers import (
    MAX_TOKENS,
    Activation,
    ImageSize,
    Layers,
    Projection,
    Tower,
    head_problems,
    height_and_width,
    hidden_problems,
    named_sides,
    square_problems,
)


@dataclass(frozen=True)
class SensorTower(Tower):
    """Base of these towers: a vision transformer whose tokens are patches of what a sensor measures (Girdhar et al. 2023)."""

    width: Size = 384
    """Size of a token."""
    depth: Layers = 12
    """Number of blocks."""
    heads: Size = 8
    """Attention heads; divides width."""
    mlp_ratio: Annotated[float, Range(above=0, most=1000)] = 4.0
    """Hidden size of the MLP, in widths."""
    activation: Activation = "gelu"
    """gelu is the exact (erf) form."""
    pool: Literal["cls", "avg"] = "cls"
    """Pooling: class token, or mean of the patches."""
    patch_norm: bool = True
    """LayerNorm of the embeddings of patches, before positions are added (ImageBind)."""
    extra_key: bool = False
    """A learned key and value in each attention, which all tokens see beside each other's (ImageBind); fused attention has none,
    and the plain one is taken."""
    norm_eps: Annotated[float, Range(above=0, most=1)] = 1e-6
    """Epsilon of every LayerNorm, but for `patch_norm`, whose is 1e-5."""
    patch_dropout: Annotated[float, Range(least=0, below=1)] = 0.0
    """Fraction of the patches left out in training; the number kept is an integer, at least 1."""
    dropout: Annotated[float, Range(least=0, below=1)] = 0.0
    """Probability that training zeroes a number that attention or MLP adds to a token (Vaswani et al. 2017, section 5.4)."""
    layer_scale: Annotated[float, Range(least=0, most=1000)] | None = None
    """Initial value of learned factors on what attention and MLP add to a token; None: there are none."""
    projection: Projection = "linear"
    """Projection to the shared space."""

    positions: ClassVar[str] = "learned"
    class_token: ClassVar[bool] = False
    norm_after_pool: ClassVar[bool] = False
    pre_norm: ClassVar[bool] = False
    patch_bias: ClassVar[bool] = False

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        raise NotImplementedError

    @property
    def patch_values(self) -> int:
        """Measured values of a patch."""
        raise NotImplementedError

    def problems(self) -> Iterator[str]:
        """Contradictions, each after the place of this dataclass."""
        yield from head_problems(self)
        yield from hidden_problems(self)
        if math.prod(self.grid) > MAX_TOKENS:
            yield f": {math.prod(self.grid):,} patches; {MAX_TOKENS:,} at most"


@dataclass(frozen=True)
class PlaneTower(SensorTower):
    """Base of the towers of pictures with one channel."""

    image_size: ImageSize = 224
    """Side of the square input, or its height and width, in pixels."""
    patch_size: Size = 16
    """Side of a square patch, in pixels; divides image_size."""
    mean: Annotated[float, Range(least=-1000, most=1000)] = 0.0
    """Mean of the values, which is taken out."""
    std: Annotated[float, Range(least=1e-3, most=1000)] = 1.0
    """Standard deviation, by which they are divided."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the input, in pixels."""
        return height_and_width(self.image_size)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        height, width = self.size
        return height // self.patch_size, width // self.patch_size

    @property
    def patch_values(self) -> int:
        """Pixels of a patch."""
        return self.patch_size**2

    def input(self) -> tuple[tuple[int, ...], str]:
        """Values of one channel, 0 to 1 before `mean` and `std`."""
        return (*self.size, 1), "float32"

    def summary(self) -> Mapping[str, Any]:
        """Mean and standard deviation."""
        return {"mean": self.mean, "std": self.std}

    def problems(self) -> Iterator[str]:
        """Contradictions, each after the place of this dataclass."""
        yield from super().problems()
        yield from square_problems(self.image_size)
        for name, side in named_sides(self.image_size):
            if side % self.patch_size:
                low = max(1, side // self.patch_size) * self.patch_size
                yield f".{name} is not divisible by patch_size {self.patch_size}; use {low} or {low + self.patch_size}"


@dataclass(frozen=True)
class DepthTower(PlaneTower):
    """A transformer over maps of distances, seen as disparities: near things are large, and what was not measured is 0."""

    unit: Annotated[float, Range(above=0, most=1e6)] = 0.001
    """Metres of one step of the values: 0.001 where they are millimetres, as PNGs of 16 bits mostly are."""
    focal_baseline: Annotated[float, Range(above=0, most=1e9)] = 38.9
    """Focal length in pixels times distance of the two eyes in metres: disparity = focal_baseline / distance. Of the first Kinect
    about 519 x 0.075."""
    most: Annotated[float, Range(above=0, most=1e9)] = 75.0
    """Disparity, in pixels, that becomes 1; larger ones do too."""
    mean: Annotated[float, Range(least=-1000, most=1000)] = 0.0418
    """Mean of disparity / most, which is taken out (Girdhar et al. 2022, Omnivore; ImageBind has not published its own)."""
    std: Annotated[float, Range(least=1e-3, most=1000)] = 0.0295
    """Standard deviation, by which they are divided; of Omnivore too."""


@dataclass(frozen=True)
class ThermalTower(PlaneTower):
    """A transformer over pictures of heat."""

    width: Size = 768
    """Size of a token."""
    heads: Size = 12
    """Attention heads; divides width."""
    low: Annotated[float, Range(least=-1e9, most=1e9)] = 0.0
    """Value that becomes 0, as smaller ones do."""
    high: Annotated[float, Range(least=-1e9, most=1e9)] = 255.0
    """Value that becomes 1, as larger ones do; 255 of pictures of 8 bits, of 14 or 16 bits what the camera's range is."""

    def problems(self) -> Iterator[str]:
        """Contradictions, each after the place of this dataclass."""
        yield from super().problems()
        if self.low >= self.high:
            yield f".low {self.low} is not below high {self.high}"


@dataclass(frozen=True)
class ImuTower(SensorTower):
    """A transformer over what an inertial unit measures: accelerations and rates of rotation over time."""

    width: Size = 512
    """Size of a token."""
    depth: Layers = 6
    """Number of blocks."""
    channels: Annotated[int, Range(least=1, most=4096)] = 6
    """Numbers that are measured at a time."""
    samples: Annotated[int, Range(least=1, most=2**24)] = 2000
    """Measurements of an input (ImageBind: 5 seconds at 400 Hz). Of a longer one a part is seen, in training at random and in
    evaluations the middle; zeros follow a shorter one."""
    patch_size: Size = 8
    """Measurements of a patch; divides samples."""

    @property
    def grid(self) -> tuple[int, int]:
        """One row, and columns of patches."""
        return 1, self.samples // self.patch_size

    @property
    def patch_values(self) -> int:
        """Numbers of a patch."""
        return self.channels * self.patch_size

    def input(self) -> tuple[tuple[int, ...], str]:
        """Measurements as they are."""
        return (self.channels, self.samples), "float32"

    def problems(self) -> Iterator[str]:
        """Contradictions, each after the place of this dataclass."""
        yield from super().problems()
        if self.samples % self.patch_size:
            low = max(1, self.samples // self.patch_size) * self.patch_size
            use = f"use {low} or {low + self.patch_size}"
            yield f".samples {self.samples} is not divisible by patch_size {self.patch_size}; {use}"
