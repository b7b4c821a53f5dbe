"""Choice of the checkpoints that stay."""

import json
import math
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from jclip.files import read_whole

Scores = Mapping[int, Mapping[str, float]]
"""Results of the evaluations at a step, by step."""


def kept(steps: Iterable[int], scores: Scores, *, keep: int, best: str | None) -> list[int]:
    """The steps whose checkpoints stay, in order: the latest `keep`, and the one where `best` is highest.

    Where two are equal, the later one stays. A step without that metric, or where it is no number, ranks last: its checkpoint is
    never the best one.
    """
    steps = sorted(steps)
    ranked = [(scores[step][best], step) for step in steps if best is not None and best in scores.get(step, {})]
    ranked = [rank for rank in ranked if math.isfinite(rank[0])]
    return sorted({*steps[-keep:], *(step for _, step in sorted(ranked)[-1:])})


def old_scores(directory: Path, steps: Iterable[int]) -> dict[int, dict[str, float]]:
    """Results of evaluations as jclip kept them until November 2026: in each checkpoint, beside its arrays."""
    found = {}
    for step in steps:
        with suppress(OSError, ValueError, AttributeError, TypeError):
            content = json.loads(read_whole(directory / str(step) / "metrics" / "metrics"))
            found[step] = {name: float(value) for name, value in content.items()}
    return found
