"""Objectives whose answers are words."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from jclip.config.objectives.family import Family
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
