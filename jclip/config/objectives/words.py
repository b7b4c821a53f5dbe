"""Objectives whose answers are words."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated

from jclip.config.objectives.family import Family
from jclip.config.ranges import Range
from jclip.config.towers import TextTower, Tower


@dataclass(frozen=True)
class Vocabulary(Family):
    """Which words the caption has, told from the mean patch: a soft cross-entropy over the vocabulary, each word weighed by its
    rarity, `objectives.vocabulary.rarity` (SuperCLIP)."""

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
        if isinstance(towers[tower_of[self.image]], TextTower):
            yield f".image {self.image!r} is of a text tower; use a view of images"
        if not isinstance(towers[tower_of[self.text]], TextTower):
            yield f".text {self.text!r} is not of a text tower; use a view of texts"


Share = Annotated[float, Range(least=0, most=1)]


@dataclass(frozen=True)
class MaskedText(Family):
    """Which words were there, told from the text with some of them hidden (Devlin et al. 2019, BERT, section 3.1; beside CLIP in
    Li et al. 2022, DeCLIP).

    What stands for a hidden word is an embedding of the objective's own, so that any tokenizer will do.
    """

    text: str = "text"
    """View whose words are hidden; its tower must see them in both directions."""
    share: Annotated[float, Range(above=0, most=1)] = 0.15
    """Share of the words of a text that are to be told, at least one (BERT: 0.15)."""
    hidden: Share = 0.8
    """Share of these that are hidden (BERT: 0.8)."""
    other: Share = 0.1
    """Share of these in whose place another id of the vocabulary stands (BERT: 0.1); the rest stays as it is."""
    block: Annotated[int, Range(least=1)] = 4096
    """Words whose logits over the vocabulary are computed at a time; memory, not the result, depends on it."""

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
        if not isinstance(tower, TextTower):
            yield f".text {self.text!r} is not of a text tower; use a view of texts"
        elif tower.causal:
            yield f".text {self.text!r} is of a causal tower, which cannot tell a word from what follows it; use causal=False"
