"""Evaluators: each reads its sources, embeds them, and hands features and labels to the functions of jclip.eval."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from jclip.config import (
    Captioning,
    Choice,
    Evaluation,
    FewShot,
    LinearProbe,
    Model,
    NearestNeighbours,
    Overlap,
    Retrieval,
    Robustness,
    ZeroShot,
)
from jclip.data import Source, open_source
from jclip.eval.bench import Bench
from jclip.eval.embed import Functions
from jclip.eval.evaluators.captioning import make_captioning
from jclip.eval.evaluators.choice import ChoiceEvaluator
from jclip.eval.evaluators.overlap import make_overlap
from jclip.eval.evaluators.probes import make_few_shot, make_linear_probe, make_nearest_neighbours
from jclip.eval.evaluators.retrieval import RetrievalEvaluator
from jclip.eval.evaluators.zero_shot import make_robustness, make_zero_shot
from jclip.eval.result import Evaluator

__all__ = ["EVALUATORS", "make_evaluator", "run_evaluators"]

EVALUATORS: dict[type[Evaluation], Callable[[Any, Bench], Evaluator]] = {
    ZeroShot: make_zero_shot,
    Retrieval: RetrievalEvaluator,
    LinearProbe: make_linear_probe,
    FewShot: make_few_shot,
    NearestNeighbours: make_nearest_neighbours,
    Robustness: make_robustness,
    Choice: ChoiceEvaluator,
    Captioning: make_captioning,
    Overlap: make_overlap,
}
"""Makers of evaluators: (the dataclass, the model with its open sources) -> the evaluator."""


def make_evaluator(
    config: Evaluation, model: Model, functions: Functions, open: Callable[[str], Source] = open_source
) -> Evaluator:
    """The evaluator of a config, with its sources open.

    Args:
        config: what to measure.
        model: the towers it names, for their preprocessing.
        functions: how to embed.
        open: the source of a name, which is asked once for each.

    Raises:
        ValueError: a source cannot be opened, or has no classes where classes are needed.
    """
    specs = config.sources()
    opened = {spec: open(spec) for spec in dict.fromkeys(specs.values())}
    sources = {role: opened[spec] for role, spec in specs.items()}
    return EVALUATORS[type(config)](config, Bench(model, functions, sources, config.fields))


def run_evaluators(evaluators: Mapping[str, Evaluator], params: Any) -> Iterator[tuple[str, float]]:
    """Runs evaluators one after the other and yields ("clipart/top1", value), ..., prefixed with their names."""
    for name, evaluator in evaluators.items():
        result = evaluator.run(params)
        for metric, value in (result.metrics | result.counts).items():
            yield f"{name}/{metric}", value
