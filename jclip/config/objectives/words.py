"""Objectives whose answers are words."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated

from jclip.config.evals import Count
from jclip.config.objectives.family import Family
from jclip.config.ranges import Range, Size
from jclip.config.towers import Layers, TextTower, TokenTower, Tower


@dataclass(frozen=True)
class Vocabulary(Family):
    """Classification of the caption's words from the mean patch: a soft cross-entropy over the vocabulary, each word weighed by
    its rarity, `objectives.vocabulary.rarity` (SuperCLIP)."""

    image: str = "image"
    """View that is classified."""
    text: str = "text"
    """View whose token ids are the classes."""

    def views(self) -> tuple[str, ...]:
        """Names of the views that it reads."""
        return self.image, self.text

    def encodes(self) -> tuple[str, ...]:
        """The view that is classified."""
        return (self.image,)

    def trains(self) -> tuple[str, ...]:
        """The view that is classified."""
        return (self.image,)

    def misfits(self, tower_of: Mapping[str, str], towers: Mapping[str, Tower], batch_size: int) -> Iterator[str]:
        """Towers of other modalities."""
        if isinstance(towers[tower_of[self.image]], TokenTower):
            yield f".image {self.image!r} is of a text tower; use a view of images"
        if getattr(towers[tower_of[self.image]], "pool", None) == "queries":
            yield f".image {self.image!r} is of a tower whose tokens are those of queries, not patches; use another pool"
        if not isinstance(towers[tower_of[self.text]], TokenTower):
            yield f".text {self.text!r} is not of a text tower; use a view of texts"


Share = Annotated[float, Range(least=0, most=1)]


@dataclass(frozen=True)
class MaskedText(Family):
    """Prediction of hidden words from the rest of the text (Devlin et al. 2019, BERT, section 3.1; beside CLIP in
    Li et al. 2022, DeCLIP).

    What stands for a hidden word is an embedding of the objective's own, so that any tokenizer will do.
    """

    text: str = "text"
    """View whose words are hidden; its tower must see them in both directions."""
    share: Annotated[float, Range(above=0, most=1)] = 0.15
    """Share of the words of a text that are predicted, at least one (BERT: 0.15)."""
    hidden: Share = 0.8
    """Share of these that are hidden (BERT: 0.8)."""
    other: Share = 0.1
    """Share of these in whose place another id of the vocabulary stands (BERT: 0.1); the rest stays as it is."""
    block: Count = 8
    """Words of each text whose logits over the vocabulary are computed at a time; memory, not the result, depends on it."""

    def views(self) -> tuple[str, ...]:
        """Names of the views that it reads."""
        return (self.text,)

    def encodes(self) -> tuple[str, ...]:
        """None as it is."""
        return ()

    def makes(self, name: str) -> Mapping[str, str]:
        """The text with words hidden."""
        return {f"{self.text.partition('@')[0]}@{name}": self.text}

    def problems(self) -> Iterator[str]:
        """Contradictions, each after the place of this dataclass."""
        if self.hidden + self.other > 1:
            yield f".hidden {self.hidden} and other {self.other} are more than all"

    def misfits(self, tower_of: Mapping[str, str], towers: Mapping[str, Tower], batch_size: int) -> Iterator[str]:
        """Towers of other modalities, and those that never see what follows a word."""
        tower = towers[tower_of[self.text]]
        if not isinstance(tower, TokenTower):
            yield f".text {self.text!r} is not of a text tower; use a view of texts"
        elif tower.causal:
            yield f".text {self.text!r} is of a causal tower, which cannot predict a word from what follows it; use causal=False"


@dataclass(frozen=True)
class Caption(Family):
    """The caption, each token predicted from those before it and from the image (Yu et al. 2022, CoCa).

    The text tower is the first half of the decoder, which does not see the image; the second, `models.CaptionDecoder`, attends to
    the tokens of the image too, and has the sizes of the text tower but for those below. The loss of a caption is the mean
    cross-entropy of its tokens, the end of text among them and padding not, and that of a batch the mean of its captions. In
    CoCa and open_clip long captions count more: there it is the mean of all tokens, in open_clip those of one device.
    """

    image: str = "image"
    """View that is described; the decoder sees all of its tower's tokens."""
    text: str = "text"
    """View that describes it, of a causal text tower."""
    weight: Annotated[float, Range(above=0, most=1e6)] = field(default=2.0, kw_only=True)
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
        """Towers of other modalities, and texts that cannot be predicted token by token."""
        image, text = towers[tower_of[self.image]], towers[tower_of[self.text]]
        if isinstance(image, TokenTower):
            yield f".image {self.image!r} is of a text tower; use a view of images"
        if not isinstance(text, TextTower):
            known = isinstance(text, TokenTower)
            what = "of a tower that writes no texts; use a TextTower" if known else "not of a text tower; use a view of texts"
            yield f".text {self.text!r} is {what}"
            return
        if not text.causal:
            yield f".text {self.text!r} is of a tower whose tokens see those they are to predict; use causal=True"
        if text.width % (self.heads or text.heads):
            yield f".heads {self.heads} does not divide the text tower's width {text.width}"
        how = text.tokenizer
        if how.kind != "clip" and (how.bos_id is None or how.eos_id is None or how.eos_id != text.eot_id):
            ids = f"bos_id {how.bos_id}, eos_id {how.eos_id} and eot_id {text.eot_id}"
            yield f".text {self.text!r}: captions need a first and a last token; give its tokenizer and tower both ({ids})"
        if how.last_id is not None or how.strip_id is not None:
            yield f".text {self.text!r}: with last_id or strip_id a text does not end at its end; leave them out"
