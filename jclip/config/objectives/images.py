"""Objectives of images alone: two views of each through one tower."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from jclip.config.evals import Count
from jclip.config.objectives.family import Family
from jclip.config.ranges import Range, Size
from jclip.config.towers import TokenTower, Tower, VisionTower


@dataclass(frozen=True)
class TwoViews(Family):
    """Base of SimCLR, SimSiam and BYOL: two views of one tower, such as two augmentations of an image."""

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

    def sees_whole(self) -> tuple[str, ...]:
        """Both views."""
        return self.a, self.b


@dataclass(frozen=True)
class SelfDistillation(Family):
    """A teacher's output for a whole image, predicted from parts of it (Caron et al. 2021, DINO; beside CLIP: Naeem et al. 2023,
    SILC) and, patch by patch, from the image with patches hidden (Zhou et al. 2022, iBOT; Tschannen et al. 2025, SigLIP 2).

    The teacher is tower and heads as moving averages. What is predicted is a distribution over prototypes, from the pooled output
    and from each patch's token, through a head each.
    """

    whole: str = "image"
    """View that the teacher sees."""
    parts: tuple[str, ...] = ("image@1",)
    """Views of the same tower that the student sees, such as small crops; none leaves this part out."""
    hidden: Annotated[float, Range(least=0, most=1)] = 0.5
    """Share of the patches that are hidden from the student (SigLIP 2: 0.5); 0 leaves this part out."""
    hidden_weight: Annotated[float, Range(above=0, most=1e6)] = 1.0
    """Factor of the loss of hidden patches beside that of parts."""
    decay: Annotated[float, Range(least=0, most=1)] = 0.996
    """Decay of the teacher at the start (DINO: 0.996)."""
    final_decay: Annotated[float, Range(least=0, most=1)] = 1.0
    """Decay at the end of the run, reached along half a cosine (DINO: 1). SILC keeps it as it begins: a teacher that comes to
    rest learns no more from the texts."""
    prototypes: Size = 65536
    """Prototypes of each head (DINO: 65536)."""
    size: Size = 2048
    """Hidden size of the heads (DINO: 2048)."""
    features: Size = 256
    """Size of what is compared with the prototypes (DINO: 256)."""
    layers: Annotated[int, Range(least=1, most=8)] = 3
    """Dense layers of the heads (DINO: 3)."""
    temperature: Annotated[float, Range(least=0.01, most=1)] = 0.1
    """Divides the student's cosines with the prototypes (DINO: 0.1)."""
    teacher_temperature: Annotated[float, Range(least=0.01, most=1)] = 0.04
    """Divides those of the teacher (DINO: 0.04 at the start)."""
    centre_decay: Annotated[float, Range(least=0, most=1)] = 0.9
    """Decay of the mean of the teacher's cosines, which is taken from them so that no prototype wins always (DINO: 0.9)."""
    block: Count = 16
    """Parts or patches of each image whose distributions are computed at a time; memory, not the result, depends on it."""

    def views(self) -> tuple[str, ...]:
        """Names of the views that it reads."""
        return self.whole, *self.parts

    def encodes(self) -> tuple[str, ...]:
        """The parts; the teacher sees the whole."""
        return self.parts

    def sees_whole(self) -> tuple[str, ...]:
        """The teacher's view."""
        return (self.whole,)

    def makes(self, name: str) -> Mapping[str, str]:
        """The whole with patches hidden."""
        return {f"{self.whole.partition('@')[0]}@{name}": self.whole} if self.hidden > 0 else {}

    def problems(self) -> Iterator[str]:
        """Contradictions, each after the place of this dataclass."""
        if not self.parts and self.hidden == 0:
            yield ": without parts and without hidden patches there is nothing to predict"
        if len(set(self.parts)) < len(self.parts):
            yield f".parts {self.parts}: one is named twice"

    def misfits(self, tower_of: Mapping[str, str], towers: Mapping[str, Tower], batch_size: int) -> Iterator[str]:
        """Views of several towers, and towers without patches that could be hidden."""
        names = sorted({tower_of[view] for view in self.views()})
        if len(names) > 1:
            yield f": its views are of the towers {' and '.join(names)}; use views of one"
        elif isinstance(towers[names[0]], TokenTower) or (self.hidden > 0 and not isinstance(towers[names[0]], VisionTower)):
            what = "a vision transformer" if self.hidden > 0 else "a tower of images"
            yield f": {names[0]} is not {what}"
        elif self.hidden > 0 and getattr(towers[names[0]], "pool", None) == "queries":
            yield f".hidden {self.hidden}: {names[0]} returns queries, not patches; let hidden be 0, or pool otherwise"
