"""Views: the inputs of the towers."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from jclip.config.augment import Augment, TextAugment
from jclip.config.towers import TextTower, Tower


@dataclass(frozen=True)
class View:
    """A further input of a tower, beside the one that bears the tower's own name; its augmentation is drawn by itself."""

    tower: str
    """Tower that encodes it."""
    field: str | None = None
    """Field of an example that it is made of; None: that of the tower's own view."""
    augment: Augment | None = None
    """Augmentation of an image; None: data.augment."""
    text_augment: TextAugment | None = None
    """Augmentation of a text; None: data.text_augment."""


def view_problems(views: Mapping[str, View], towers: Mapping[str, Tower]) -> Iterator[str]:
    """Problems of the names of views and of their towers."""
    for name, view in views.items():
        if not re.fullmatch(r"[a-z][a-z0-9_]*@[a-z0-9_]+", name):
            yield f".views.{name}: {name!r} cannot name a view; use the tower's name and a word, such as {view.tower}@2"
        if view.tower not in towers:
            yield f".views.{name}.tower: there is no tower {view.tower!r}; towers: {', '.join(towers)}"
        elif view.augment is not None and isinstance(towers[view.tower], TextTower):
            yield f".views.{name}.augment: {view.tower} is a text tower; use text_augment"
        elif view.text_augment is not None and not isinstance(towers[view.tower], TextTower):
            yield f".views.{name}.text_augment: {view.tower} is no text tower; use augment"
