"""Evaluators: built from a config and functions, called with parameters, they yield (name, value)."""

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from jclip.config import Eval, LinearProbe, Model, Retrieval, ZeroShot
from jclip.eval.embed import Embedding, Functions, embed_source, embed_texts
from jclip.eval.linear_probe import fit_logistic, make_linear_probe
from jclip.eval.retrieval import make_retrieval, recall_at
from jclip.eval.zero_shot import class_embeddings, make_zero_shot, zero_shot_metrics

__all__ = [
    "Embedding",
    "Evaluator",
    "Functions",
    "class_embeddings",
    "embed_source",
    "embed_texts",
    "fit_logistic",
    "make_evaluator",
    "recall_at",
    "run_evaluators",
    "zero_shot_metrics",
]


class Evaluator(Protocol):
    """What measures a model; it can be run many times, and opens its sources once."""

    def run(self, params: Any) -> Iterator[tuple[str, float]]:
        """The metrics of these parameters, the same on every host; every host has to call it."""
        ...


def make_evaluator(config: Eval, model: Model, functions: Functions) -> Evaluator:
    """The evaluator of a config.

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


def run_evaluators(evaluators: Mapping[str, Evaluator], params: Any) -> Iterator[tuple[str, float]]:
    """Runs evaluators one after the other and yields ("clipart/top1", value), ..., prefixed with their names."""
    for name, evaluator in evaluators.items():
        for metric, value in evaluator.run(params):
            yield f"{name}/{metric}", value
