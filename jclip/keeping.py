"""Which checkpoints stay."""

import math
from collections.abc import Iterable, Mapping

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
