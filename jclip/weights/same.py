"""Comparison of another library's model with ours."""

from jclip.config import Model
from jclip.config.same import tower_changes
from jclip.weights.errors import WeightsError


def require_same(problem: str, ours: Model, theirs: Model) -> None:
    """Raises WeightsError, `problem` and every field that differs, where `theirs` computes otherwise than `ours`."""
    obstacles = [problem for name, tower in ours.towers.items() for problem in tower_changes(name, tower, theirs.towers[name])]
    if obstacles:
        raise WeightsError(f"{problem}: {'; '.join(obstacles)}")
