"""Comparison of what two towers compute: one answer for results, probes, and other libraries' models."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jclip.config.io import from_json
from jclip.config.towers import TextTower, TokenTower, Tower

TRAINING = {"dropout", "patch_dropout"}
"""Fields that change training alone."""


def changed_towers(saved: Mapping[str, Any], towers: Mapping[str, Tower]) -> list[str]:
    """Fields in words in which towers differ from those that a file of results or of a probe was made with.

    Args:
        saved: towers by name, as `to_json` writes them.
        towers: those that are compared, which are among them.

    Raises:
        ConfigError: what is saved is no tower.
    """
    found = []
    for name, tower in towers.items():
        before: Tower = from_json(saved[name], Tower, f"towers.{name}")
        found += differences(name, with_moved_file(before, tower), tower)
    return found


def with_moved_file(before: Tower, now: Tower) -> Tower:
    """The tower of before, with the path of the vocabulary of now where both are the same file, by its SHA-256."""
    if not isinstance(before, TokenTower) or not isinstance(now, TokenTower):
        return before
    if before.tokenizer.sha256 != now.tokenizer.sha256 or not now.tokenizer.sha256:
        return before
    return dataclasses.replace(before, tokenizer=dataclasses.replace(before.tokenizer, file=now.tokenizer.file))


def differences(name: str, ours: Tower, theirs: Tower) -> list[str]:
    """Fields in words in which towers of that name differ, as far as embeddings depend on them."""
    if type(ours) is not type(theirs):
        return [f"{name} is a {type(ours).__name__}, not a {type(theirs).__name__}"]
    ignored = TRAINING
    if isinstance(ours, TextTower) and ours.pool in ("last", "first") and not ours.mask_padding:
        ignored = ignored | {"eot_id"}  # it says nothing then but which tokens are padding
    return [
        f"{name}.{field.name} is {getattr(ours, field.name)!r}, not {getattr(theirs, field.name)!r}"
        for field in dataclasses.fields(ours)
        if field.name not in ignored and getattr(ours, field.name) != getattr(theirs, field.name)
    ]
