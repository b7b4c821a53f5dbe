"""The result of an evaluation, and the base of every evaluator."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Result:
    """The numbers of one evaluation; equal on every host."""

    metrics: dict[str, float]
    """Numbers by name, such as "top1" or "image_to_text/recall@10"."""
    counts: dict[str, int]
    """Numbers of examples, classes, captions, ...; "broken" and "left_out" where there are any."""
    details: dict[str, Any] = field(default_factory=dict)
    """Details that a report shows beside them, as JSON: tables, curves, pictures. Empty unless asked for."""


class Evaluator:
    """Base of what measures a model, many times. What an evaluation does not need it leaves as it is here."""

    config: Any
    """Dataclass of the evaluation, with the names of classes and the templates that it found in files and sources."""
    bench: Any
    """Bench or LabelledBench that it measures with: the model, and the open sources by their roles."""

    def run(self, params: Any, *, details: bool = False) -> Result:
        """Measures these parameters. Every host has to call it.

        Args:
            params: of the model.
            details: whether to collect what a report shows; only the first host's are complete.
        """
        raise NotImplementedError

    def is_saved(self, weights: Callable[[str], str]) -> bool:
        """True where the files that it writes are there, of parameters with these digests by tower. True where it writes none."""
        return True
