"""The dataclasses of what is learned: views of each example, and the objectives that read them."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from jclip.config.augment import Augment
from jclip.config.evals import Count
from jclip.config.ranges import Range, Size
from jclip.config.towers import TextTower, Tower

Weight = Annotated[float, Range(above=0, most=1e6)]


@dataclass(frozen=True)
class View:
    """A further input of a tower, beside the one that bears the tower's own name; its augmentation is drawn by itself."""

    tower: str
    """Tower that encodes it."""
    field: str | None = None
    """Field of an example that it is made of; None: that of the tower's own view."""
    augment: Augment | None = None
    """Augmentation of an image; None: data.augment."""


class Family:
    """Base of the dataclasses of objectives."""

    def views(self) -> tuple[str, ...]:
        """Names of the views that it reads."""
        raise NotImplementedError

    def trains(self) -> tuple[str, ...]:
        """Those among them whose towers its gradient reaches."""
        return self.views()

    def misfits(self, tower_of: Mapping[str, str], towers: Mapping[str, Tower], batch_size: int) -> Iterator[str]:
        """Contradictions with the rest of the configuration, each after the place of this dataclass.

        Args:
            tower_of: names of the towers by view.
            towers: towers by name.
            batch_size: of the run.
        """
        return iter(())


class Sides(Family):
    """Families that match two views, and may tell equal examples by a third."""

    a: str
    """One view."""
    b: str
    """The other."""
    equal_by: str | None
    """View whose input tells which examples are equal; each family says what None is."""

    def views(self) -> tuple[str, ...]:
        """Names of the views that it reads."""
        return (self.a, self.b) if self.equal_by is None else (self.a, self.b, self.equal_by)

    def trains(self) -> tuple[str, ...]:
        """Both views."""
        return self.a, self.b


@dataclass(frozen=True)
class Contrastive(Sides):
    """Matching two views of each example against all others of the batch, with a logit scale of its own: CLIP, SigLIP, SupCon.

    The loss is `jclip.losses.contrastive`.
    """

    a: str = "image"
    """One view."""
    b: str = "text"
    """The other."""
    loss: Literal["softmax", "sigmoid"] = "softmax"
    """softmax: symmetric cross-entropy over the global batch (CLIP); sigmoid: every pair of the batch by itself (SigLIP)."""
    weight: Annotated[float, Range(above=0, most=1e6)] = 1.0
    """Factor in the total loss."""
    logit_scale: Annotated[float, Range(least=1, most=100)] | None = None
    """Initial factor on the cosines, learned as a logarithm, kept within 1 and 100. None: 1/0.07 (CLIP), sigmoid 10 (SigLIP)."""
    logit_bias: Annotated[float, Range(least=-1000, most=1000)] | Literal["batch"] | None = None
    """Initial bias of a sigmoid, learned. None: -10 (SigLIP); batch: -ln(batch_size - 1), a prior of one match in a batch."""
    label_smoothing: Annotated[float, Range(least=0, below=1)] = 0.0
    """Share of the target that is spread over all candidates."""
    decoupled: bool = False
    """Whether a softmax leaves the right answers out of its sum (Yeh et al. 2022, DCL). The loss may then be below 0; what bounds
    it is the bound of the scale."""
    equal: Literal["negative", "ignore", "positive"] = "negative"
    """What examples with equal input (see `equal_by`) are to each other: negatives like any, left out, or right answers too.
    Where equal inputs have equal embeddings, as captions have without dropout, a softmax without label smoothing is the same with
    right answers as with negatives."""
    equal_by: str | None = None
    """View whose input tells which examples are equal, by a 32-bit hash of it. None: `b`."""
    method: Literal["gather", "ring"] = "gather"
    """gather: every device holds one whole side (fastest); ring: it goes around the devices (least memory)."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type the embeddings are multiplied in; the logits and all after them are float32 always."""
    block: Count = 256
    """Columns of the logits computed at a time; memory, not the result, depends on it."""

    def problems(self) -> Iterator[str]:
        """Contradictions, each after the place of this dataclass."""
        if self.a == self.b:
            yield f": both sides are {self.a!r}"
        if self.logit_bias is not None and self.loss == "softmax":
            yield f".logit_bias {self.logit_bias}: a softmax does not depend on a bias; leave it None"
        if self.decoupled and self.loss == "sigmoid":
            yield ".decoupled: a sigmoid has no sum to leave the right answers out of; leave it False"
        if self.equal_by is not None and self.equal == "negative":
            yield f".equal_by {self.equal_by!r} has no effect with equal='negative'; use 'ignore' or 'positive'"


@dataclass(frozen=True)
class Triplet(Sides):
    """Two views of each example nearer to each other than to what is unrelated, by a margin; see `jclip.losses.triplet`."""

    a: str = "image"
    """One view."""
    b: str = "text"
    """The other."""
    weight: Weight = 1.0
    """Factor in the total loss."""
    margin: Annotated[float, Range(above=0, most=2)] = 0.2
    """How much nearer, in cosines or in Euclidean distance (VSE++: 0.2)."""
    mining: Literal["all", "hardest", "semi_hard"] = "hardest"
    """Which of the unrelated count: the sum over all, the nearest, or the nearest of those that are farther than the match. The
    nearest alone may collapse at the start of training; begin with all of them there."""
    distance: Literal["cosine", "euclidean"] = "cosine"
    """What is compared."""
    equal_by: str | None = None
    """View by whose input examples are told apart: those of an equal one are related. None: each example is its own."""
    block: Count = 256
    """Columns of the similarities computed at a time; memory, not the result, depends on it."""

    def problems(self) -> Iterator[str]:
        """Contradictions, each after the place of this dataclass."""
        if self.a == self.b:
            yield f": both sides are {self.a!r}"


@dataclass(frozen=True)
class TwoViews(Family):
    """What SimCLR, SimSiam and BYOL have in common: two views of one tower, such as two augmentations of an image."""

    a: str = "image@1"
    """One view."""
    b: str = "image@2"
    """The other, of the same tower."""
    weight: Weight = 1.0
    """Factor in the total loss."""

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


@dataclass(frozen=True)
class NearestNeighbour(Family):
    """A softmax whose right answer for `a` is the nearest neighbour of `b` among earlier embeddings (Li et al. 2022, DeCLIP)."""

    a: str = "image"
    """View that asks."""
    b: str = "text"
    """View whose neighbour is the answer; its embeddings fill the queue, first in, first out."""
    weight: Weight = 1.0
    """Factor in the total loss."""
    size: Size = 65536
    """Embeddings in the queue; a multiple of batch_size."""
    method: Literal["gather", "ring"] = "gather"
    """As of `Contrastive`."""
    block: Count = 256
    """As of `Contrastive`."""

    def views(self) -> tuple[str, ...]:
        """Names of the views that it reads."""
        return self.a, self.b

    def trains(self) -> tuple[str, ...]:
        """The view that asks."""
        return (self.a,)

    def problems(self) -> Iterator[str]:
        """Contradictions, each after the place of this dataclass."""
        if self.a == self.b:
            yield f": both sides are {self.a!r}"

    def misfits(self, tower_of: Mapping[str, str], towers: Mapping[str, Tower], batch_size: int) -> Iterator[str]:
        """A queue that batches do not fill evenly."""
        if self.size % batch_size:
            low = max(1, self.size // batch_size) * batch_size
            yield f".size {self.size} is no multiple of batch_size {batch_size}; use {low}"


@dataclass(frozen=True)
class Vocabulary(Family):
    """Which words the caption has, told from the mean patch: a soft cross-entropy over the vocabulary, each word weighed by its
    rarity, `objectives.vocabulary.rarity` (SuperCLIP)."""

    image: str = "image"
    """View that is classified."""
    text: str = "text"
    """View whose token ids are the classes."""
    weight: Weight = 1.0
    """Factor in the total loss."""

    def views(self) -> tuple[str, ...]:
        """Names of the views that it reads."""
        return self.image, self.text

    def trains(self) -> tuple[str, ...]:
        """The view that is classified."""
        return (self.image,)

    def misfits(self, tower_of: Mapping[str, str], towers: Mapping[str, Tower], batch_size: int) -> Iterator[str]:
        """Towers of other modalities."""
        if isinstance(towers[tower_of[self.image]], TextTower):
            yield f".image {self.image!r} is of a text tower; use a view of images"
        if not isinstance(towers[tower_of[self.text]], TextTower):
            yield f".text {self.text!r} is not of a text tower; use a view of texts"


Objective = Contrastive | Triplet | SimCLR | SimSiam | BYOL | NearestNeighbour | Vocabulary
"""What is learned, one dataclass a family; its key in `Config.objectives` names its parameters and metrics."""


def view_problems(views: Mapping[str, View], towers: Mapping[str, Tower]) -> Iterator[str]:
    """Problems of the names of views and of their towers."""
    for name, view in views.items():
        if not re.fullmatch(r"[a-z][a-z0-9_]*@[a-z0-9_]+", name):
            yield f".views.{name}: {name!r} cannot name a view; use the tower's name and a word, such as {view.tower}@2"
        if view.tower not in towers:
            yield f".views.{name}.tower: there is no tower {view.tower!r}; towers: {', '.join(towers)}"
        elif view.augment is not None and isinstance(towers[view.tower], TextTower):
            yield f".views.{name}.augment: {view.tower} is a text tower, which has none; leave it out"


def objective_problems(
    objectives: Mapping[str, Objective], views: Mapping[str, View], towers: Mapping[str, Tower], batch_size: int
) -> Iterator[str]:
    """Problems of the names of objectives, and of what they read."""
    if not objectives:
        yield ".objectives is empty: there is nothing to learn; use {'image_text': Contrastive('image', 'text')}"
    taken = {*towers, *(f"{tower}_projection" for tower in towers)}
    tower_of = {**{tower: tower for tower in towers}, **{name: view.tower for name, view in views.items()}}
    read, trained = set[str](), set[str | None]()
    for name, objective in objectives.items():
        at = f".objectives.{name}"
        if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or name in ("ema", "loss", "lr"):
            yield f"{at}: {name!r} cannot name an objective; use lower-case letters, other than ema, loss and lr"
        if name in taken:
            yield f"{at}: the name is that of a tower or of its projection; use another"
        unknown = [view for view in objective.views() if view not in tower_of]
        yield from (f"{at}: there is no view {view!r}; views: {', '.join(tower_of)}" for view in unknown)
        if not unknown:
            yield from (f"{at}{problem}" for problem in objective.misfits(tower_of, towers, batch_size))
        read.update(objective.views())
        trained.update(tower_of.get(view) for view in objective.trains())
    if unused := set(views) - read:
        yield f".views: no objective reads {', '.join(sorted(unused))}"
    if untrained := set(towers) - trained:
        yield f".objectives: none trains the tower {', '.join(sorted(untrained))}"
