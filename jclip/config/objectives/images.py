"""Objectives of images alone: two views of each through one tower."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from jclip.config.evals import Count
from jclip.config.objectives.family import Family
from jclip.config.ranges import Range, Size
from jclip.config.towers import Tower


@dataclass(frozen=True)
class TwoViews(Family):
    """What SimCLR, SimSiam and BYOL have in common: two views of one tower, such as two augmentations of an image."""

    a: str = "image@1"
    """One view."""
    b: str = "image@2"
    """The other, of the same tower."""

    def views(self) -> tuple[str, ...]:
        """Names of the views that it reads."""
        return self.a, self.b

    def problems(self) -> Iterator[str]:
        """Contradictions, each after the place of this dataclass."""
        if self.a == self.b:
            yield f": both views are {self.a!r}"

    def misfits(self, tower_of: Mapping[str, str], towers: Mapping[str, Tower], batch_size: int) -> Iterator[str]:
        """Views of two towers."""
        if tower_of[self.a] != tower_of[self.b]:
            yield f": its views are of the towers {tower_of[self.a]} and {tower_of[self.b]}; use two views of one"


@dataclass(frozen=True)
class SimCLR(TwoViews):
    """Each view is to find the other one among all views of the batch (Chen et al. 2020; beside CLIP it is SLIP, Mu et al. 2022).

    The loss is NT-Xent of the tower's pooled output through a head, `models.ProjectionHead`.
    """

    temperature: Annotated[float, Range(least=0.01, most=1)] = 0.1
    """Divides the cosines (SLIP: 0.1)."""
    hidden: Size = 4096
    """Hidden size of the head."""
    features: Size = 256
    """Size of its output."""
    layers: Annotated[int, Range(least=1, most=8)] = 3
    """Dense layers of the head (SLIP: 3)."""
    method: Literal["gather", "ring"] = "gather"
    """gather: every device holds all views of one side; ring: they go around the devices."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type the views are multiplied in."""
    block: Count = 256
    """Columns of the logits computed at a time; memory, not the result, depends on it."""


@dataclass(frozen=True)
class SimSiam(TwoViews):
    """Each view's prediction is to be like the other view, which no gradient reaches (Chen and He 2021)."""

    features: Size = 2048
    """Size of the head's layers."""
    layers: Annotated[int, Range(least=1, most=8)] = 3
    """Dense layers of the head."""
    hidden: Size = 512
    """Hidden size of the predictor, which has two layers."""


@dataclass(frozen=True)
class BYOL(TwoViews):
    """Each view's prediction is to be like the other view as the target sees it: tower and head as moving averages (Grill et al.
    2020)."""

    decay: Annotated[float, Range(least=0, most=1)] = 0.996
    """Decay of the target at the start, which goes to 1 along half a cosine."""
    hidden: Size = 4096
    """Hidden size of head and predictor, which have two layers."""
    features: Size = 256
    """Size of their outputs."""
