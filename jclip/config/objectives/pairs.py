"""Objectives that match two views of each example, such as an image and its text."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from jclip.config.evals import Count
from jclip.config.objectives.family import Family
from jclip.config.ranges import Range, Size
from jclip.config.towers import Tower


class Pair(Family):
    """Families that match two views."""

    a: str
    """One view."""
    b: str
    """The other."""

    def views(self) -> tuple[str, ...]:
        """Names of the views that it reads."""
        return self.a, self.b

    def problems(self) -> Iterator[str]:
        """Contradictions, each after the place of this dataclass."""
        if self.a == self.b:
            yield f": both sides are {self.a!r}"


class Sides(Pair):
    """Pairs whose equal examples a third view may identify."""

    equal_by: str | None
    """View whose input decides which examples are equal; each family says what None means."""

    def views(self) -> tuple[str, ...]:
        """Names of the views that it reads."""
        return (self.a, self.b) if self.equal_by is None else (self.a, self.b, self.equal_by)

    def encodes(self) -> tuple[str, ...]:
        """Both views."""
        return self.a, self.b

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
    logit_scale: Annotated[float, Range(least=1, most=100)] | None = None
    """Initial factor on the cosines, learned as a logarithm, kept within 1 and 100. None: 1/0.07 (CLIP), sigmoid 10 (SigLIP)."""
    logit_bias: Annotated[float, Range(least=-1000, most=1000)] | Literal["batch"] | None = None
    """Initial bias of a sigmoid, learned. None: -10 (SigLIP); batch: -ln(batch_size - 1), a prior of one match in a batch."""
    label_smoothing: Annotated[float, Range(least=0, below=1)] = 0.0
    """Share of the target that is spread over all candidates."""
    decoupled: bool = False
    """Decoupled softmax: the right answers are left out of its sum (Yeh et al. 2022, DCL). The loss may then be below 0; what
    bounds it is the bound of the scale."""
    extra_projections: bool = False
    """Extra projections: `a` asks with embeddings of a second pair, of this objective's own, and only `b` asks with those
    that evaluations read (x-clip's extra_latent_projection; nothing published shows that it helps)."""
    equal: Literal["negative", "ignore", "positive"] = "negative"
    """Role of examples with equal input (see `equal_by`) for each other: negatives like any, left out, or right answers too.
    Where equal inputs have equal embeddings, as captions have without dropout, a softmax without label smoothing is the same with
    right answers as with negatives."""
    equal_by: str | None = None
    """View whose input decides which examples are equal, by a 32-bit hash of it. None: `b`."""
    method: Literal["gather", "ring"] = "gather"
    """gather: every device holds one whole side (fastest); ring: it goes around the devices (least memory)."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type the embeddings are multiplied in; the logits and all after them are float32 always."""
    block: Count = 256
    """Columns of the logits computed at a time; memory, not the result, depends on it."""

    def may_lack(self) -> tuple[str, ...]:
        """Both views: a pair of which one is missing is left out."""
        return self.a, self.b

    def problems(self) -> Iterator[str]:
        """Contradictions, each after the place of this dataclass."""
        yield from super().problems()
        if self.logit_bias is not None and self.loss == "softmax":
            yield f".logit_bias {self.logit_bias}: a softmax does not depend on a bias; leave it None"
        if self.decoupled and self.loss == "sigmoid":
            yield ".decoupled: a sigmoid has no sum to leave the right answers out of; leave it False"
        if self.extra_projections and self.loss == "sigmoid":
            yield ".extra_projections: the pairs of a sigmoid are asked by neither side; leave it False"
        if self.equal_by is not None and self.equal == "negative":
            yield f".equal_by {self.equal_by!r} has no effect with equal='negative'; use 'ignore' or 'positive'"


@dataclass(frozen=True)
class MultiView(Family):
    """A softmax between every view of one side and every view of the other, all with one logit scale (Li et al. 2022, DeCLIP)."""

    a: tuple[str, ...] = ("image", "image@2")
    """Views of one side."""
    b: tuple[str, ...] = ("text",)
    """Views of the other."""
    further: Annotated[float, Range(above=0, most=1e6)] = 1 / 9
    """Factor on the mean over all pairs but that of the first views, beside 1 for that one (x-clip: 0.1 beside 0.9; DeCLIP: the
    mean of 2 x 2 pairs, which is 3, with a quarter of the weight)."""
    logit_scale: Annotated[float, Range(least=1, most=100)] | None = None
    """See `Contrastive`."""
    decoupled: bool = False
    """See `Contrastive`."""
    method: Literal["gather", "ring"] = "gather"
    """See `Contrastive`."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """See `Contrastive`."""
    block: Count = 256
    """See `Contrastive`."""

    def views(self) -> tuple[str, ...]:
        """Names of the views that it reads."""
        return *self.a, *self.b

    def problems(self) -> Iterator[str]:
        """Contradictions, each after the place of this dataclass."""
        names = self.views()
        if twice := sorted({name for name in names if names.count(name) > 1}):
            yield f": {', '.join(twice)} is there twice"
        if len(self.a) * len(self.b) < 2:
            yield ": it needs a view of each side and one more; use Contrastive for one pair"


@dataclass(frozen=True)
class SimReg(Pair):
    """Two views whose embeddings agree on which examples are alike: the mean squared difference of their similarities to all
    other examples, `jclip.losses.sim_reg` (x-clip's sim_reg_loss; nothing published shows that it helps)."""

    a: str = "image"
    """One view."""
    b: str = "text"
    """The other."""


@dataclass(frozen=True)
class Triplet(Sides):
    """Two views of each example nearer to each other than to what is unrelated, by a margin; see `jclip.losses.triplet`."""

    a: str = "image"
    """One view."""
    b: str = "text"
    """The other."""
    margin: Annotated[float, Range(above=0, most=2)] = 0.2
    """Margin by which a match has to be nearer, in cosines or in Euclidean distance (VSE++: 0.2)."""
    mining: Literal["all", "hardest", "semi_hard"] = "hardest"
    """Negatives that count: the sum over all, the nearest, or the nearest of those that are farther than the match. The
    nearest alone may collapse at the start of training; begin with all of them there."""
    distance: Literal["cosine", "euclidean"] = "cosine"
    """Similarity that is compared."""
    equal_by: str | None = None
    """View whose input decides which examples are related: those where it is equal. None: each example is its own."""
    block: Count = 256
    """Columns of the similarities computed at a time; memory, not the result, depends on it."""


@dataclass(frozen=True)
class TokenWise(Pair):
    """A softmax over late interaction: each token finds its best match among those of the other view (Yao et al. 2022, FILIP).

    The loss is `jclip.losses.token_wise`, of patches without the class token, and of words up to the end of the text. Tokens have
    projections of this objective's own: towers without one can have it, and the embeddings that evaluations read stay as they
    are; let a `Contrastive` beside it train those.
    """

    a: str = "image"
    """One view; the one with more tokens."""
    b: str = "text"
    """The other, whose tokens travel between the devices."""
    features: Size = 256
    """Size of the projected tokens (FILIP: 256)."""
    logit_scale: Annotated[float, Range(least=1, most=100)] | None = None
    """See `Contrastive`."""
    decoupled: bool = False
    """See `Contrastive`."""
    method: Literal["gather", "ring"] = "gather"
    """gather: every device holds all tokens of `b` (fastest); ring: they go around the devices (least memory)."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type the tokens are multiplied in."""
    block: Count = 16
    """Examples of either side that are compared at a time; memory, not the result, depends on it."""


@dataclass(frozen=True)
class CLOOB(Pair):
    """InfoLOOB, a softmax without its right answers, between what both views retrieve from the batch (Fuerst et al. 2022).

    Both views ask a modern Hopfield network that stores all embeddings of `a`, and one that stores those of `b`
    (`jclip.losses.retrieve`); the answers of each are matched, and the loss is divided by its scale. It may be below 0.
    """

    a: str = "image"
    """One view."""
    b: str = "text"
    """The other."""
    beta: Annotated[float, Range(least=0, most=40)] = 8.0
    """Inverse temperature of the retrieval (CLOOB on Conceptual Captions: 8)."""
    logit_scale: Annotated[float, Range(least=1, most=100)] = 30.0
    """Factor on the cosines, which is not learned (CLOOB on Conceptual Captions: 30)."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type the embeddings are multiplied in."""
    block: Count = 256
    """Columns computed at a time; memory, not the result, depends on it."""


@dataclass(frozen=True)
class NearestNeighbour(Pair):
    """A softmax whose right answer for `a` is the nearest neighbour of `b` among earlier embeddings (Li et al. 2022, DeCLIP)."""

    a: str = "image"
    """View that asks."""
    b: str = "text"
    """View whose neighbour is the answer; its embeddings fill the queue, first in, first out."""
    size: Size = 65536
    """Embeddings in the queue; a multiple of batch_size."""
    method: Literal["gather", "ring"] = "gather"
    """See `Contrastive`."""
    block: Count = 256
    """See `Contrastive`."""

    def trains(self) -> tuple[str, ...]:
        """The view that asks."""
        return (self.a,)

    def misfits(self, tower_of: Mapping[str, str], towers: Mapping[str, Tower], batch_size: int) -> Iterator[str]:
        """A queue that batches do not fill evenly."""
        if self.size % batch_size:
            low = max(1, self.size // batch_size) * batch_size
            yield f".size {self.size} is no multiple of batch_size {batch_size}; use {low}"
