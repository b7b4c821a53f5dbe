"""The kinds of towers: one row for each, with its module, its operations and its tokens; and sums over towers."""

import dataclasses
import importlib
from collections.abc import Callable, Collection
from typing import Any, NamedTuple, Protocol

from jclip.config import (
    BertTower,
    Cnn14Tower,
    Config,
    ConfigError,
    DepthTower,
    Groups,
    HtsatTower,
    ImuTower,
    ResNetTower,
    SpectrogramTower,
    TextTower,
    ThermalTower,
    TokenTower,
    Tower,
    VisionTower,
    groups_of,
)
from jclip.models.flops import (
    bert_flops,
    cnn14_flops,
    cnn14_tokens,
    htsat_flops,
    htsat_tokens,
    projection_flops,
    resnet_flops,
    resnet_tokens,
    sensor_flops,
    sensor_tokens,
    spectrogram_flops,
    spectrogram_tokens,
    text_flops,
    text_tokens,
    vision_flops,
    vision_tokens,
)
from jclip.models.spectrogram import SpectrogramTransformer
from jclip.models.text import TextTransformer
from jclip.models.transformer import Transformer
from jclip.models.vit import PatchTower, VisionTransformer


class Flops(Protocol):
    """Counter of the operations of one example forward."""

    def __call__(self, tower: Any, /, *, tokens: bool = True) -> int:
        """Operations of a tower, as in training: patches dropped are not counted. Without `tokens` those of the pooled output
        alone: of the last block one token and the keys and values of all, where one is pooled."""
        ...


class TowerKind(NamedTuple):
    """All that the model needs to know of a kind of tower, beside the dataclass of its sizes."""

    module: Callable[..., Any]
    """Maker of the module that computes it: (the dataclass, Compute, name=...) -> a module whose `__call__(input, rows=...)`
    returns a TowerOutput; see `MultiTower.__call__` for `rows`."""
    flops: Flops
    """Floating-point operations of one example forward."""
    output_tokens: Callable[[Any], int]
    """Tokens that it returns in training, class token and padding too."""


@dataclasses.dataclass(frozen=True)
class Later:
    """A module of this room, imported when a tower is first made: models without such a tower start without it."""

    file: str
    """Its file in this room."""
    name: str
    """Its name there."""

    def load(self) -> type:
        """The module itself."""
        loaded: type = getattr(importlib.import_module(f"jclip.models.{self.file}"), self.name)
        return loaded

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The module made of what it takes."""
        return self.load()(*args, **kwargs)


TOWERS: dict[type[Tower], TowerKind] = {
    VisionTower: TowerKind(VisionTransformer, vision_flops, vision_tokens),
    ResNetTower: TowerKind(Later("resnet", "ModifiedResNet"), resnet_flops, resnet_tokens),
    DepthTower: TowerKind(Later("sensors", "SensorTransformer"), sensor_flops, sensor_tokens),
    ThermalTower: TowerKind(Later("sensors", "SensorTransformer"), sensor_flops, sensor_tokens),
    ImuTower: TowerKind(Later("sensors", "SensorTransformer"), sensor_flops, sensor_tokens),
    SpectrogramTower: TowerKind(SpectrogramTransformer, spectrogram_flops, spectrogram_tokens),
    TextTower: TowerKind(TextTransformer, text_flops, text_tokens),
    BertTower: TowerKind(Later("bert", "BertTransformer"), bert_flops, text_tokens),
    HtsatTower: TowerKind(Later("htsat", "Htsat"), htsat_flops, htsat_tokens),
    Cnn14Tower: TowerKind(Later("cnn14", "Cnn14"), cnn14_flops, cnn14_tokens),
}
"""The kinds of towers by their dataclass."""


def kind_of(tower: Tower) -> TowerKind:
    """The row of a tower. Raises ConfigError where its type has none."""
    if type(tower) not in TOWERS:
        name = type(tower).__name__
        raise ConfigError(f"towers: {name} has no row in jclip.models.TOWERS; add TOWERS[{name}] = TowerKind(...)")
    return TOWERS[type(tower)]


def depth_of(tower: Tower) -> int:
    """Number of blocks of a tower of transformer blocks, which can be tapped; 0 of other kinds."""
    module = kind_of(tower).module
    module = module.load() if isinstance(module, Later) else module
    return int(vars(tower)["depth"]) if isinstance(module, type) and issubclass(module, Transformer) else 0


def tower_flops(tower: Tower, *, tokens: bool = True) -> int:
    """Operations of one example forward; see `Flops`."""
    return kind_of(tower).flops(tower, tokens=tokens)


def output_tokens(tower: Tower) -> int:
    """Tokens that a tower returns in training, class token and padding too."""
    return kind_of(tower).output_tokens(tower)


def towers_flops(config: Config, locked: Collection[str] = ()) -> int:
    """Operations of the towers in a train step, without what is computed again to save memory ("model FLOPs").

    Backward takes twice as many as forward (Kaplan et al. 2020, section 2.1). The `locked` towers, which nothing trains, have no
    backward.
    """
    loop = config.model.scan or config.mesh.fsdp > 1
    total, groups = 0.0, groups_of(config.buckets)
    views, inputs, teachers = config.all_views(), config.inputs(), config.teachers()
    for name in config.encoded_views():
        view = views[name]
        tower = without_dropout(view.seen_by) if name not in inputs or view.tower in teachers else view.seen_by
        forward = sum(share * tower_flops(seen, tokens=loop) for seen, share in in_groups(tower, groups.get(view.tower, ())))
        forward += projection_flops(tower, config.model.embed_dim)
        total += forward * (1 if view.tower in locked else 3)
    return round(config.batch_size * total)


def in_groups(tower: Tower, groups: Groups) -> list[tuple[Tower, float]]:
    """The tower as each group of texts sees it, and the group's share of them."""
    if not isinstance(tower, TokenTower):
        return [(tower, 1.0)]
    parts: list[tuple[Tower, float]] = [(dataclasses.replace(tower, context_length=tokens), share) for tokens, share in groups]
    return [*parts, (tower, 1 - sum(share for _, share in parts))]


def without_dropout(tower: Tower) -> Tower:
    """The tower as a teacher, or with patches hidden: no patch is dropped."""
    return dataclasses.replace(tower, patch_dropout=0.0) if isinstance(tower, PatchTower) else tower
