"""The dataclasses of evaluations: what is measured, on which data, by which protocol."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from jclip.config.evals.base import Count, Evaluation, Labels, OfLabels, OfPrompts, Penalty, Seed
from jclip.config.evals.labels import FewShot, LinearProbe, NearestNeighbours
from jclip.config.evals.overlap import Overlap
from jclip.config.evals.prompts import Captioning, Choice, Retrieval, Robustness, ZeroShot, template_problems
from jclip.config.ranges import Range

__all__ = [
    "Captioning",
    "Choice",
    "Count",
    "Evaluation",
    "FewShot",
    "Labels",
    "LinearProbe",
    "NearestNeighbours",
    "OfLabels",
    "OfPrompts",
    "Overlap",
    "Penalty",
    "Retrieval",
    "Robustness",
    "Seed",
    "Suite",
    "ZeroShot",
    "template_problems",
]


@dataclass(frozen=True)
class Suite:
    """Evaluations of one model, as `jclip eval MODEL --suite FILE.py` runs them."""

    evals: Mapping[str, Evaluation]
    """Evaluations by name, in order; the name is the prefix of the metrics."""
    batch_size: Count = 256
    """Examples in the global batch; no result depends on it."""
    max_pixels: Annotated[int, Range(least=1)] = 64_000_000
    """Larger images are broken examples, as in training; see `Data`."""
