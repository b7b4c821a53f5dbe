"""Comparison of what two towers or models compute from the same parameters: one answer for resuming, fine-tuning, results,
probes and other libraries' models."""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from jclip.config.io import differences, from_json
from jclip.config.towers import Model, TextTower, TokenTower, Tower

TRAINING = ("dropout", "patch_dropout")
"""Fields of a tower that change training alone."""

COMPUTING = ("dtype", "reduce_dtype", "scan", "remat", "attention")
"""Fields of a model that say how it is computed, not what."""


def changed_towers(saved: Mapping[str, Any], towers: Mapping[str, Tower]) -> list[str]:
    """Fields in words in which towers differ from those that a file of results or of a probe was made with.

    Args:
        saved: towers by name, as `to_json` writes them.
        towers: those that are compared, which are among them.

    Raises:
        ConfigError: what is saved is no tower.
    """
    return [
        change
        for name, tower in towers.items()
        for change in tower_changes(name, from_json(saved[name], Tower, f"towers.{name}"), tower)
    ]


def tower_changes(name: str, there: Tower, here: Tower) -> list[str]:
    """Fields in words in which towers of that name differ, as far as embeddings depend on them."""
    if type(there) is not type(here):
        return [f"{name} is a {type(there).__name__}, not a {type(here).__name__}"]
    # Where no token of the text's end is looked for, eot_id says but which tokens are padding.
    no_end = isinstance(there, TextTower) and there.pool in ("last", "first") and not there.mask_padding
    there = _aligned(there, here, ("eot_id",) if no_end else ())
    return [
        f"{name}.{field.name} is {getattr(there, field.name)!r}, not {getattr(here, field.name)!r}"
        for field in dataclasses.fields(there)
        if getattr(there, field.name) != getattr(here, field.name)
    ]


def model_changes(there: Model, here: Model) -> list[str]:
    """Fields that make another model of one with the same parameters, as "model.embed_dim: 64 -> 128"."""
    found = []
    for name in dict.fromkeys((*there.towers, *here.towers)):
        found += parameter_changes(f"model.towers.{name}", there.towers.get(name), here.towers.get(name))
    free = {field: getattr(here, field) for field in COMPUTING}
    return found + differences(dataclasses.replace(there, towers=here.towers, **free), here, "model")


def parameter_changes(at: str, there: Tower | None, here: Tower | None, free: Collection[str] = ()) -> list[str]:
    """Fields that give a tower's parameters another meaning, or none, as "AT.width: 64 -> 128"; those in `free` may differ."""
    if there is None or here is None or type(there) is not type(here):
        names = [None if tower is None else type(tower).__name__ for tower in (there, here)]
        return [] if names[0] == names[1] else [f"{at}: {names[0]} -> {names[1]}"]
    return differences(_aligned(there, here, free), here, at)


def _aligned(there: Tower, here: Tower, free: Collection[str] = ()) -> Tower:
    """The tower of there with the values of here in every field that may differ: those that change nothing that is computed from
    the same parameters, and the ones named in `free`."""
    names = {field.name for field in dataclasses.fields(there)}
    same: dict[str, Any] = {name: getattr(here, name) for name in (*TRAINING, *free) if name in names}
    if "layer_scale" in names and None not in (getattr(there, "layer_scale"), getattr(here, "layer_scale")):  # noqa: B009
        same["layer_scale"] = getattr(here, "layer_scale")  # noqa: B009  # where factors began says nothing of where they are
    if isinstance(there, TokenTower) and isinstance(here, TokenTower):
        before, now = there.tokenizer, here.tokenizer
        if before.sha256 and before.sha256 == now.sha256:  # the same file, which has moved
            same["tokenizer"] = dataclasses.replace(before, file=now.file)
    return dataclasses.replace(there, **same)
