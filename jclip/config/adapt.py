"""The adaptation of a model to a few examples a class: the protocol, whose methods are in `jclip.config.adapt_methods`."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from jclip.config.evals.base import Count, Labels
from jclip.config.evals.prompts import template_problems
from jclip.config.fields import field_problems
from jclip.config.kinds import Kind
from jclip.config.ranges import Range

Choose = Literal["val", "test"]


class Method(Kind):
    """Base of the dataclasses of methods."""


@dataclass(frozen=True)
class Adapt:
    """The protocol of an adaptation: the same examples, classes and choices for all methods.

    The shots of a seed are the first k examples of each class under one permutation of the source, so that those of 1, 2, 4, ...
    contain each other; published codes draw those of each k anew.
    """

    methods: Mapping[str, Method] = field(default_factory=dict)
    """Methods by name."""
    source: str = ""
    """Labelled examples that shots are drawn from."""
    val: str = ""
    """Labelled examples by which methods choose: strengths, epochs, prompts, weights of an interpolation."""
    test: str = ""
    """Labelled examples on which the result is measured, and by which nothing is chosen."""
    labels: Labels = Labels()
    """Labels of all three; classes that it does not name are those of `source`."""
    templates: tuple[str, ...] = ()
    """Prompts of the zero-shot classifier, as in ZeroShot; empty: the source's own, or else "a photo of a {}.", of
    sounds "This is a sound of {}."."""
    descriptions: str = ""
    """JSON file of texts by class, {"class": ["text", ...]}, as CuPL publishes them (Pratt et al. 2023): prompts of the
    classifier, beside `templates` where these are given, and in their place where not."""
    shots: tuple[Count, ...] = (1, 2, 4, 8, 16)
    """Examples of each class, rising."""
    seeds: Count = 3
    """Number of draws for each number of shots, with seeds 0, 1, ..."""
    val_shots: Literal["few", "all"] = "few"
    """Examples of `val` that methods see. few: min(shots, 4) of each class, drawn by the seed, as CoOp and cross-modal adaptation
    have it; all: as in Tip-Adapter, whose choices then rest on more labels than its shots have."""
    select: Choose = "val"
    """test: every cell is adapted a second time, choosing by `test`, as some published codes do; the result stands beside the
    honest one, with the difference, and is never the model that is saved."""
    scale: Annotated[float, Range(above=0)] | None = None
    """Factor that makes logits of cosines; None: the model's own, which is 100 in OpenAI's."""
    image: str = "image"
    """Tower of the examples."""
    text: str = "text"
    """Tower of the prompts."""
    fields: Mapping[str, str] = field(default_factory=dict)
    """Like data.fields, for these sources."""
    save: Literal["all", "none"] = "all"
    """Adapted models that are kept; of fully fine-tuned towers each has the size of these."""
    batch_size: Count = 64
    """Examples a batch where features are encoded; changes no result beyond rounding."""
    max_pixels: Count = 64_000_000
    """Larger images cannot be read."""

    def sources(self) -> Mapping[str, str]:
        """Names of the sources by their roles."""
        return {"source": self.source, "val": self.val, "test": self.test}

    def problems(self) -> Iterator[str]:
        """Contradictions, each after the place of this dataclass."""
        yield from (f".{role} is empty; give labelled examples" for role, name in self.sources().items() if not name)
        if self.source and self.val == self.source:
            yield f".val {self.val!r} is also what shots are drawn from; choose by examples of their own"
        if self.source and self.test in (self.source, self.val):
            yield f".test {self.test!r} is also what methods learn from, or choose by; give examples of its own"
        if not self.methods:
            yield ".methods is empty; give --method NAME, or a recipe"
        if not self.shots or list(self.shots) != sorted(set(self.shots)):
            yield f".shots {self.shots} must be rising numbers of examples, such as 1 2 4 8 16"
        if self.image == self.text:
            yield f".image and .text are both {self.image!r}; use two towers"
        for name in self.methods:
            if not name or not name.replace("_", "").replace("-", "").isalnum():
                yield f".methods: {name!r} is no name of a folder; use letters, digits, - and _"
        yield from template_problems(self.templates)
        yield from field_problems("", self.fields)
