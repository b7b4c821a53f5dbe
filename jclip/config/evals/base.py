"""Bases of the dataclasses of evaluations: where labels are, and which towers and sources one needs."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Literal

from jclip.config.durations import Duration
from jclip.config.fields import field_problems
from jclip.config.kinds import Kind
from jclip.config.ranges import Range
from jclip.config.towers import TokenTower, Tower

Penalty = Annotated[float, Range(least=0, most=1e6)]
Count = Annotated[int, Range(least=1)]
Seed = Annotated[int, Range(least=0, most=2**32 - 1)]
"""A seed: jax and numpy read no more than 32 bits of it."""


@dataclass(frozen=True)
class Labels:
    """Place of the labels in an example, and names of the classes.

    In a tuple of names, "file:PATH" stands for the lines of a file.
    """

    field: str = "label"
    """Field of an example that holds the label, as in data.fields: an index into `classes`, or one of them; for several labels an
    example, a 0 or 1 for each class."""
    classes: tuple[str, ...] = ()
    """The classes, in the order of the labels; empty: the source's own."""
    names: tuple[str, ...] = ()
    """Names of the classes in prompts and tables, in the same order; empty: those of `classes`."""
    only: tuple[str, ...] = ()
    """Label mask: the classes that are candidates (ImageNet-R: 200 of 1,000); empty: all. Examples of the others are left
    out, and counted."""
    match: Literal["name", "position"] = "name"
    """name: the classes of a source are those of `classes` with the same names, without regard to case, underscores and Unicode
    form; only where no name matches and there are equally many, they match by position, which is logged and counted. position:
    class i of every source is class i of `classes`."""
    others: Literal["error", "leave_out"] = "error"
    """Treatment of an example whose label is none of `classes`: an error, or left out, and counted."""

    def problems(self) -> Iterator[str]:
        """Contradictions, each after the place of this dataclass."""
        by_file = any(name.startswith("file:") for name in (*self.classes, *self.names))
        if self.names and self.classes and not by_file and len(self.names) != len(self.classes):
            yield f".names has {len(self.names)} names for {len(self.classes)} classes; give one each, or none"
        yield from field_problems("", {"field": self.field})


class Evaluation(Kind):
    """Base of the dataclasses of evaluations."""

    # Defaults for dataclasses from elsewhere that leave these out.
    fields: Mapping[str, str] = MappingProxyType({})
    """Fields of an example by tower, as in data.fields; of alternatives, the first that an example has."""
    every: Duration = "100%"
    """Time between evaluations in training."""

    def towers(self) -> tuple[str, ...]:
        """Names of the towers that it uses."""
        raise NotImplementedError

    def sources(self) -> Mapping[str, str]:
        """Names of the sources that it reads, by their roles."""
        raise NotImplementedError

    def captions(self) -> tuple[str, str] | None:
        """Towers of images and of the captions that the model is to write of them; None: it is to write none."""
        return None

    def misfits(self, towers: Mapping[str, Tower]) -> Iterator[str]:
        """Contradictions with the towers of the model, each after the place of this dataclass."""
        return iter(())


class OfPrompts(Evaluation):
    """Evaluations of images by texts, which one tower has to take."""

    image: str
    """Tower that embeds the examples."""
    text: str
    """Tower that embeds the prompts."""

    def towers(self) -> tuple[str, ...]:
        """Both."""
        return self.image, self.text

    def misfits(self, towers: Mapping[str, Tower]) -> Iterator[str]:
        """A tower of prompts that is none of texts."""
        if not isinstance(towers[self.text], TokenTower):
            what = "prompts" if self.captions() is None else "captions"
            yield f".text {self.text!r} is not a text tower; {what} need one"


class OfLabels(Evaluation):
    """Evaluations of one tower's features, fitted on labelled examples and tested on others."""

    train: str
    """Labelled examples to fit on."""
    source: str
    """Labelled examples to test on."""
    tower: str
    """Tower whose features are used."""

    def towers(self) -> tuple[str, ...]:
        """The tower."""
        return (self.tower,)

    def sources(self) -> Mapping[str, str]:
        """Both."""
        return {"train": self.train, "source": self.source}
