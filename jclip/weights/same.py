"""Whether another library's model computes what ours does."""

import dataclasses

from jclip.config import Model, TextTower, Tower
from jclip.weights.errors import WeightsError

TRAINING = {"dropout", "patch_dropout"}
"""Fields that change training alone."""


def require_same(problem: str, ours: Model, theirs: Model) -> None:
    """Raises WeightsError, `problem` and every field that differs, where `theirs` computes otherwise than `ours`."""
    obstacles = [problem for name, tower in ours.towers.items() for problem in differences(name, tower, theirs.towers[name])]
    if obstacles:
        raise WeightsError(f"{problem}: {'; '.join(obstacles)}")


def differences(name: str, ours: Tower, theirs: Tower) -> list[str]:
    """In words, the fields in which towers of that name differ, as far as embeddings depend on them."""
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
