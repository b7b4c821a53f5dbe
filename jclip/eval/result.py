"""What an evaluation finds, and the protocol every evaluator follows."""

from dataclasses import dataclass, field
from typing import Any, Protocol

from jclip.config import Eval
from jclip.eval.bench import Bench, LabelledBench


@dataclass(frozen=True)
class Result:
    """The numbers of one evaluation; equal on every host."""

    metrics: dict[str, float]
    """By name, such as "top1" or "image_to_text/recall@10"."""
    counts: dict[str, int]
    """How many examples, classes, captions, ...; "broken" and "left_out" where there are any."""
    details: dict[str, Any] = field(default_factory=dict)
    """What a report shows beside them, as JSON: tables, curves, pictures. Empty unless asked for."""


class Evaluator(Protocol):
    """What measures a model; it can be run many times, and opens its sources once."""

    @property
    def config(self) -> Eval:
        """What it does, with the names of classes and the templates that it found in files and sources."""
        ...

    @property
    def bench(self) -> Bench | LabelledBench:
        """What it measures with: the model, and the open sources by the field of the config that names each."""
        ...

    def run(self, params: Any, *, details: bool = False) -> Result:
        """Measures these parameters. Every host has to call it.

        Args:
            params: of the model.
            details: whether to collect what a report shows; only the first host's are complete.
        """
        ...
