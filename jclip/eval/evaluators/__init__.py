"""Evaluators: each reads its sources, embeds them, and hands features and labels to the functions of jclip.eval."""

from collections.abc import Iterator, Mapping
from typing import Any

from jclip.config import Captioning, Choice, Eval, FewShot, LinearProbe, Model, NearestNeighbours, Retrieval, Robustness, ZeroShot
from jclip.eval.embed import Functions
from jclip.eval.evaluators.captioning import make_captioning
from jclip.eval.evaluators.choice import make_choice
from jclip.eval.evaluators.probes import make_few_shot, make_linear_probe, make_nearest_neighbours
from jclip.eval.evaluators.retrieval import make_retrieval
from jclip.eval.evaluators.zero_shot import make_robustness, make_zero_shot
from jclip.eval.result import Evaluator

__all__ = ["make_evaluator", "run_evaluators"]


def make_evaluator(config: Eval, model: Model, functions: Functions) -> Evaluator:
    """The evaluator of a config, with its sources open.

    Args:
        config: what to measure.
        model: the towers it names, for their preprocessing.
        functions: how to embed.

    Raises:
        ValueError: a source cannot be opened, or has no classes where classes are needed.
    """
    match config:
        case ZeroShot():
            return make_zero_shot(config, model, functions)
        case Retrieval():
            return make_retrieval(config, model, functions)
        case LinearProbe():
            return make_linear_probe(config, model, functions)
        case FewShot():
            return make_few_shot(config, model, functions)
        case NearestNeighbours():
            return make_nearest_neighbours(config, model, functions)
        case Robustness():
            return make_robustness(config, model, functions)
        case Choice():
            return make_choice(config, model, functions)
        case Captioning():
            return make_captioning(config, model, functions)


def run_evaluators(evaluators: Mapping[str, Evaluator], params: Any) -> Iterator[tuple[str, float]]:
    """Runs evaluators one after the other and yields ("clipart/top1", value), ..., prefixed with their names."""
    for name, evaluator in evaluators.items():
        result = evaluator.run(params)
        for metric, value in (result.metrics | result.counts).items():
            yield f"{name}/{metric}", value
