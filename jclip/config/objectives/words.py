"""Objectives whose answers are words."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated

from jclip.config.evals import Count
from jclip.config.objectives.family import Family, Weight
from jclip.config.ranges import Range, Size
from jclip.config.towers import Layers, TextTower, Tower


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
        if getattr(towers[tower_of[self.image]], "pool", None) == "queries":
            yield f".image {self.image!r} is of a tower whose tokens are those of queries, not patches; use another pool"
        if not isinstance(towers[tower_of[self.text]], TextTower):
            yield f".text {self.text!r} is not of a text tower; use a view of texts"


@dataclass(frozen=True)
class Caption(Family):
    """The caption, each token told from those before it and from the image (Yu et al. 2022, CoCa).

    The text tower is the first half of the decoder, which does not see the image; the second, `models.CaptionDecoder`, attends to
    the tokens of the image too, and has the sizes of the text tower but for those below. The loss of a caption is the mean
    cross-entropy of its tokens, the end of text among them and padding not, and that of a batch the mean of its captions. In
    CoCa and open_clip long captions count more: there it is the mean of all tokens, in open_clip those of one device.
    """

    image: str = "image"
    """View that is described; the decoder sees all of its tower's tokens."""
    text: str = "text"
    """View that describes it, of a causal text tower."""
    weight: Weight = 2.0
    """Factor in the total loss (CoCa: 2, beside a contrastive loss of 1)."""
    depth: Layers | None = None
    """Blocks of the decoder; None: as many as the text tower (CoCa)."""
    heads: Size | None = None
    """Attention heads; None: as many as the text tower."""
    label_smoothing: Annotated[float, Range(least=0, below=1)] = 0.0
    """Share of the target that is spread over the whole vocabulary (CoCa: none)."""
    block: Count = 8
    """Tokens of each caption whose logits are computed at a time; memory, not the result, depends on it."""

    def views(self) -> tuple[str, ...]:
        """Names of the views that it reads."""
        return self.image, self.text

    def misfits(self, tower_of: Mapping[str, str], towers: Mapping[str, Tower], batch_size: int) -> Iterator[str]:
        """Towers of other modalities, and texts that cannot be told token by token."""
        image, text = towers[tower_of[self.image]], towers[tower_of[self.text]]
        if isinstance(image, TextTower):
            yield f".image {self.image!r} is of a text tower; use a view of images"
        if not isinstance(text, TextTower):
            yield f".text {self.text!r} is not of a text tower; use a view of texts"
            return
        if not text.causal:
            yield f".text {self.text!r} is of a tower whose tokens see those they are to tell; use causal=True"
        if text.width % (self.heads or text.heads):
            yield f".heads {self.heads} does not divide the text tower's width {text.width}"
        how = text.tokenizer
        if how.kind != "clip" and (how.bos_id is None or how.eos_id is None or how.eos_id != text.eot_id):
            ids = f"bos_id {how.bos_id}, eos_id {how.eos_id} and eot_id {text.eot_id}"
            yield f".text {self.text!r}: captions need a first and a last token; give its tokenizer and tower both ({ids})"
        if how.last_id is not None or how.strip_id is not None:
            yield f".text {self.text!r}: with last_id or strip_id a text does not end at its end; leave them out"
