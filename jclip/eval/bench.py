"""Parts that evaluators share: a model with open sources, and the examples of a source as features with labels."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from jclip.config import ConfigError, Labels, Model
from jclip.data import Source
from jclip.eval.embed import Embedded, EmbeddedTexts, Functions, embed_source, embed_texts
from jclip.eval.labels import BROKEN, LEFT_OUT, Classes, Labelled, find_class, make_classes, read_entries


@dataclass(frozen=True)
class Bench:
    """A model, how to embed with it, and what is embedded."""

    model: Model
    functions: Functions
    sources: Mapping[str, Source]
    """Open sources by their roles; see `Evaluation.sources`."""
    fields: Mapping[str, str]
    """Fields of the inputs by tower, where they are not the tower's name."""

    def embed(self, params: Any, source: str, tower: str) -> Embedded:
        """The examples of a source as a tower sees them."""
        config = self.model.towers[tower]
        return embed_source(self.functions, params, self.sources[source], tower, config, self.fields.get(tower))

    def embed_texts(self, params: Any, texts: list[str], tower: str) -> EmbeddedTexts:
        """Texts as a tower sees them."""
        return embed_texts(self.functions, params, texts, tower, self.model.towers[tower])


class Examples(NamedTuple):
    """The examples of a source that count."""

    features: np.ndarray
    """[n, D or E] float32."""
    labels: np.ndarray
    """int64 [n], indices into the candidates; or bool [n, C], where an example has several."""
    place: np.ndarray
    """int64 [n]: where they are in the source."""
    counts: dict[str, int]
    """"examples", and "broken", "left_out" and "labelled_by_position" where there are any."""


@dataclass(frozen=True)
class LabelledBench:
    """A bench whose sources have labels, each read once."""

    bench: Bench
    classes: Classes
    field: str
    """Field of an example that holds the label."""
    _read: dict[str, Labelled] = dataclasses.field(default_factory=dict)

    @property
    def model(self) -> Model:
        """See Bench."""
        return self.bench.model

    @property
    def functions(self) -> Functions:
        """See Bench."""
        return self.bench.functions

    @property
    def sources(self) -> Mapping[str, Source]:
        """See Bench."""
        return self.bench.sources

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the candidates in prompts and tables."""
        return self.classes.candidate_names

    def resolved(self, labels: Labels) -> Labels:
        """A config with what files and the source have said."""
        only = tuple(self.classes.labels[i] for i in self.classes.candidates) if labels.only else ()
        return replace(labels, classes=self.classes.labels, names=self.classes.names, only=only)

    def candidates(self, source: str, only: tuple[str, ...]) -> np.ndarray:
        """Indices of the classes that examples of a source may be given, ascending: of a mask, or else those that it names."""
        indices = [find_class(name, self.classes.labels, f"the mask of {source}") for name in read_entries(only, "masks")]
        if not only:
            indices = [index for index in self.classes.own(self.sources[source]).places if index is not None]
        place = {index: i for i, index in enumerate(self.classes.candidates)}
        if strange := [index for index in indices if only and index not in place]:
            name = self.classes.labels[strange[0]]
            raise ConfigError(f"evaluation: the mask of {source} has {name!r}, which labels.only leaves out; see masks")
        return np.array(sorted({place[index] for index in indices if index in place}))

    def examples(self, params: Any, source: str, tower: str, *, pooled: bool) -> Examples:
        """Examples of a source that can be read and whose class is a candidate.

        Args:
            params: of the model.
            source: its role.
            tower: which tower's features.
            pooled: whether these are `pooled`, or else unit vectors.

        Raises:
            ConfigError: none is left.
        """
        if source not in self._read:
            self._read[source] = self.classes.read(self.sources[source], self.field)
        label, several, by_position = self._read[source]
        embedded = self.bench.embed(params, source, tower)
        used = embedded.read & (label >= 0)
        counts = {"examples": int(used.sum())}
        if broken := int(np.sum(~embedded.read | (label == BROKEN))):
            counts["broken"] = broken
        if by_position:
            counts["labelled_by_position"] = counts["examples"]
        if left_out := int(np.sum(embedded.read & (label == LEFT_OUT))):
            counts["left_out"] = left_out
        if not used.any():
            what = ", ".join(f"{name} {count}" for name, count in counts.items())
            raise ConfigError(f"evaluation: no example of {source} is left ({what}); see labels.only and labels.others")
        features = embedded.pooled if pooled else embedded.z
        labels = label[used] if several is None else several[used]
        return Examples(features[used], labels, np.flatnonzero(used), counts)


def labelled(bench: Bench, labels: Labels, source: str, spec: str) -> LabelledBench:
    """A bench with the classes of a config, or else of one of its sources."""
    return LabelledBench(bench, make_classes(labels, bench.sources[source], spec), labels.field)
