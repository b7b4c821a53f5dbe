"""Views: the inputs of the towers."""

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace

from jclip.config.augment import Augment, SoundAugment, TextAugment
from jclip.config.clap import HtsatTower
from jclip.config.fields import field_problems
from jclip.config.ranges import Size
from jclip.config.sound import SoundTower
from jclip.config.towers import ImageSize, TokenTower, Tower, VisionTower


@dataclass(frozen=True)
class View:
    """A further input of a tower, beside the one that bears the tower's own name; its augmentation is drawn by itself."""

    tower: str
    """Tower that encodes it."""
    field: str | None = None
    """Field of an example that it is made of, as in data.fields; None: that of the tower's own view."""
    augment: Augment | None = None
    """Augmentation of an image; None: data.augment."""
    same_as: str | None = None
    """View whose random draws it repeats: the same crop and flip of an image, the same of several texts."""
    size: ImageSize | None = None
    """Side of a square image, or its height and width, in pixels, where it is another than the tower's; a vision transformer
    resizes its positions to it."""
    stored: str = ""
    """Folder in which `jclip embed` has written TOWER.npy: in place of the example's input its embedding there, found by its key.
    Augmentation does not change it."""
    stored_size: Size = 512
    """Size of these embeddings."""
    text_augment: TextAugment | None = None
    """Augmentation of a text; None: data.text_augment."""
    sound_augment: SoundAugment | None = None
    """Augmentation of a sound; None: data.sound_augment."""


def valid_name(view: str) -> str:
    """Name of the array of a batch, bool [B], that says which examples have a view; see `Data.optional`."""
    return f"{view}/valid"


def optional_problems(
    optional: Collection[str],
    read: Mapping[str, Collection[str]],
    may_lack: Mapping[str, Collection[str]],
) -> Iterator[str]:
    """Problems of the views that examples may lack.

    Args:
        optional: their names.
        read: views that each objective reads, by its name.
        may_lack: those of them that examples may lack.
    """
    for view in optional:
        readers = [name for name, views in read.items() if view in views]
        if not readers:
            known = ", ".join(sorted({name for views in read.values() for name in views}))
            yield f".data.optional: no objective reads a view {view!r}; views: {known}"
        for name in readers:
            if view not in may_lack[name]:
                which = "only the two sides of a Contrastive may be missing"
                yield f".data.optional: objectives.{name} needs {view!r} of every example; {which}"


def mix_problems(seen: Mapping[str, tuple[Tower, bool]], optional: Collection[str]) -> Iterator[str]:
    """Problems of mixtures of two examples.

    Args:
        seen: the tower of each view that is read, and whether its embeddings are stored.
        optional: views that examples may lack.
    """
    at = ".data.sound_mix.p"
    if not any(isinstance(tower, SoundTower) for tower, _ in seen.values()):
        yield f"{at}: no objective reads a sound; use 0"
    for name, (tower, stored) in seen.items():
        if stored or not isinstance(tower, SoundTower | TokenTower):
            yield f"{at}: sounds and texts are mixed, and {name!r} is neither; use 0, or leave out the objectives that read it"
        elif isinstance(tower, HtsatTower) and tower.fused_seconds is not None:
            yield f"{at}: sounds of different lengths are fused by {name!r} and cannot be mixed; use 0, or fused_seconds None"
    if optional:
        yield f"{at}: an example that lacks {' or '.join(optional)} cannot be mixed; use 0, or leave data.optional out"


def view_problems(views: Mapping[str, View], towers: Mapping[str, Tower]) -> Iterator[str]:
    """Problems of the names of views and of their towers."""
    for name, view in views.items():
        yield from field_problems(f".views.{name}", {} if view.field is None else {"field": view.field})
        if not re.fullmatch(r"[a-z][a-z0-9_]*@[a-z0-9_]+", name):
            yield f".views.{name}: {name!r} cannot name a view; use the tower's name and a word, such as {view.tower}@2"
        if view.tower not in towers:
            yield f".views.{name}.tower: there is no tower {view.tower!r}; towers: {', '.join(towers)}"
        elif view.stored and view != View(view.tower, stored=view.stored, stored_size=view.stored_size):
            yield f".views.{name}.stored: of an embedding that is stored nothing else can be said; leave the other fields out"
        elif view.augment is not None and isinstance(towers[view.tower], TokenTower):
            yield f".views.{name}.augment: {view.tower} is a text tower; use text_augment"
        elif view.text_augment is not None and not isinstance(towers[view.tower], TokenTower):
            yield f".views.{name}.text_augment: {view.tower} is no text tower; use augment"
        elif view.sound_augment is not None and not isinstance(towers[view.tower], SoundTower):
            yield f".views.{name}.sound_augment: {view.tower} is no tower of sounds; leave it out"
        elif view.augment is not None and isinstance(towers[view.tower], SoundTower):
            yield f".views.{name}.augment: {view.tower} is a tower of sounds; use sound_augment"
        elif view.size is not None:
            yield from _size_problems(f".views.{name}.size {view.size}", view.size, towers[view.tower])


def same_problems(views: Mapping[str, View], read: Collection[str]) -> Iterator[str]:
    """Views that repeat what nobody draws."""
    for name, view in views.items():
        source = view.same_as
        if source is not None and (source not in read or source == name or (source in views and views[source].same_as)):
            yield f".views.{name}.same_as {source!r} is no view that draws by itself and is read"


def _size_problems(at: str, size: ImageSize, tower: Tower) -> Iterator[str]:
    if not isinstance(tower, VisionTower):
        yield f"{at}: only a vision transformer sees images of several sizes; leave it out"
        return
    sides = replace(tower, image_size=size).size
    if any(side % tower.patch_size for side in sides):
        yield f"{at} is not divisible by the patch_size {tower.patch_size}"
