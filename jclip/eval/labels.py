"""Classes and labels: what the classes are called, which of them are candidates, and the labels of a source's examples."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jclip.config import ConfigError, Labels
from jclip.data import BadExample, Source, read_field

log = logging.getLogger(__name__)

LEFT_OUT, BROKEN = -1, -2
"""In place of a label: of a class that is no candidate, or not to be read."""

_SHOWN = 20


class Labelled(NamedTuple):
    """The labels of a source; row i belongs to example i."""

    labels: np.ndarray
    """int64 [n]: an index into the candidates, LEFT_OUT or BROKEN."""
    several: np.ndarray | None
    """Where examples have several labels: bool [n, C], for each candidate; `labels` is then 0, LEFT_OUT or BROKEN."""


@dataclass(frozen=True)
class Classes:
    """The classes of an evaluation."""

    labels: tuple[str, ...]
    """As the data call them, in the order of the indices."""
    names: tuple[str, ...]
    """As prompts and tables call them."""
    candidates: tuple[int, ...]
    """Indices of those that an example may be given."""
    leave_out: bool
    """Whether an example of another class is left out; or else an error."""
    given: bool = False
    """Whether the config names the classes, or else a source."""

    @property
    def candidate_names(self) -> tuple[str, ...]:
        """What the candidates are called, in their order."""
        return tuple(self.names[i] for i in self.candidates)

    def read(self, source: Source, field: str) -> Labelled:
        """The labels of all examples.

        Raises:
            ConfigError: a label is none, or a name that several classes share; or no example has one.
        """
        place = {index: i for i, index in enumerate(self.candidates)}
        index_of, own = {name: i for i, name in enumerate(self.labels)}, self._own_indices(source)
        labels, marks = np.full(len(source), BROKEN, np.int64), {}
        problem = BadExample("there is none")
        for i, value in enumerate(read_field(source, field)):
            if isinstance(value, BadExample):
                problem = value
                continue
            if isinstance(value, (list, tuple)) or (isinstance(value, np.ndarray) and value.ndim == 1):
                labels[i], marks[i] = 0, self._marks(value, own)
            else:
                index = self._index(value, index_of, own)
                labels[i] = LEFT_OUT if index is None else place.get(index, LEFT_OUT)
        if np.all(labels == BROKEN):
            raise ConfigError(f"evaluation: no example has a label: {problem}; labels.field says which field holds it")
        if not marks:
            return Labelled(labels, None)
        if len(marks) != np.sum(labels != BROKEN):
            raise ConfigError(f"evaluation: field {field!r} holds one label in some examples and several in others")
        several = np.zeros((len(source), len(self.labels)), bool)
        several[list(marks)] = list(marks.values())
        return Labelled(labels, several[:, list(self.candidates)])

    def _own_indices(self, source: Source) -> list[int | None]:
        """What the indices that a source has as labels mean here; None: a class that is left out.

        A source that names its classes has them in an order of its own, and perhaps not all of them (ImageNet-R: 200 of 1,000).
        """
        own = source.classes
        known = [self.labels.index(name) if name in self.labels else None for name in own]
        renamed = self.given and len(own) == len(self.labels) and None in known
        if own in ((), self.labels) or renamed:
            return list(range(len(self.labels)))
        if None in known and not self.leave_out:
            strange = own[known.index(None)]
            raise ConfigError(
                f"evaluation: a source has the class {strange!r}, which is none of the {len(self.labels)} classes: "
                f"{', '.join(self.labels[:_SHOWN])}; set labels.classes to those of all sources, or labels.others='leave_out'"
            )
        return known

    def _marks(self, value: Any, own: Sequence[int | None]) -> np.ndarray:
        marks = np.asarray(value)
        if marks.shape != (len(own),) or not np.isin(marks, (0, 1)).all():
            raise ConfigError(
                f"evaluation: several labels are a 0 or 1 for each of the {len(own)} classes; got {str(value)[:80]}"
            )
        ours = np.zeros(len(self.labels), bool)
        ours[[index for index, mark in zip(own, marks, strict=True) if mark and index is not None]] = True
        return ours

    def _index(self, label: Any, index_of: Mapping[str, int], own: Sequence[int | None]) -> int | None:
        """The index of a label; None for one that is left out."""
        if isinstance(label, np.ndarray) and label.ndim == 0:
            label = label.item()
        if isinstance(label, bytes):
            label = label.decode()
        if isinstance(label, str) and label in index_of:
            if self.labels.count(label) > 1:
                raise ConfigError(
                    f"evaluation: {self.labels.count(label)} classes are called {label!r}; label by index, or rename them"
                )
            return index_of[label]
        whole = isinstance(label, (int, np.integer)) and not isinstance(label, bool)
        if whole and 0 <= label < len(own):
            return own[int(label)]
        if self.leave_out and (whole or isinstance(label, str)):
            return None
        shown = ", ".join(self.labels[:_SHOWN]) + (", ..." if len(self.labels) > _SHOWN else "")
        raise ConfigError(
            f"evaluation: {label!r} is no label; use 0 to {len(own) - 1} or one of the {len(self.labels)} classes: "
            f"{shown}; labels.field says which field holds it, labels.classes the names; labels.others='leave_out' drops others"
        )


def make_classes(config: Labels, source: Source, spec: str) -> Classes:
    """The classes of a config, or else of the source.

    Raises:
        ConfigError: neither has any, names and classes differ in number, or the mask names none of them.
    """
    labels = read_entries(config.classes, "labels.classes") or source.classes
    if not labels:
        raise ConfigError(
            f"evaluation: the source {spec!r} has no classes of its own; set labels.classes, in the order of the labels"
        )
    names = read_entries(config.names, "labels.names") or labels
    if len(names) != len(labels):
        raise ConfigError(f"evaluation: labels.names has {len(names)} names for {len(labels)} classes; give one each, or none")
    only = read_entries(config.only, "labels.only")
    if unknown := [name for name in only if name not in labels and not (name.isdigit() and int(name) < len(labels))]:
        raise ConfigError(f"evaluation: labels.only has {unknown[0]!r}, which is no class; classes: {', '.join(labels[:_SHOWN])}")
    chosen = {labels.index(name) if name in labels else int(name) for name in only}
    candidates = tuple(sorted(chosen)) if only else tuple(range(len(labels)))
    return Classes(labels, names, candidates, config.others == "leave_out", bool(config.classes))


def read_entries(entries: Sequence[str], field: str) -> tuple[str, ...]:
    """A tuple of a config, in which "file:PATH" stands for the lines of a file.

    Raises:
        ConfigError: there is no such file, or it is empty.
    """
    found: list[str] = []
    for entry in entries:
        if not entry.startswith("file:"):
            found.append(entry)
            continue
        path = Path(entry.removeprefix("file:"))
        if not path.is_file():
            raise ConfigError(f"evaluation: {field} names the file {str(path)!r}, which does not exist")
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        if not lines:
            raise ConfigError(f"evaluation: {field} names the file {str(path)!r}, which is empty")
        found += lines
    return tuple(found)


def mean_per_class(correct: np.ndarray, labels: np.ndarray) -> float:
    """The mean over the classes present of the fraction of their examples that is correct.

    Args:
        correct: [n] bool.
        labels: [n] integers.
    """
    _, ids = np.unique(labels, return_inverse=True)
    return float(np.mean(np.bincount(ids, weights=correct) / np.bincount(ids)))
