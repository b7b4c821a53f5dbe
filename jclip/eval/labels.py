"""Classes and labels: what the classes are called, which of them are candidates, and the labels of a source's examples."""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jclip.config import ConfigError, Labels
from jclip.data import BadExample, Source, read_field
from jclip.data.names import NameIndex, match_names
from jclip.files import read_whole

log = logging.getLogger(__name__)

LEFT_OUT, BROKEN = -1, -2
"""Mark in place of a label: of a class that is no candidate, or not to be read."""

_SHOWN = 20


class Labelled(NamedTuple):
    """The labels of a source; row i belongs to example i."""

    labels: np.ndarray
    """int64 [n]: an index into the candidates, LEFT_OUT or BROKEN."""
    several: np.ndarray | None
    """Labels where examples have several: bool [n, C], for each candidate; `labels` is then 0, LEFT_OUT or BROKEN."""
    by_position: bool = False
    """True: the source's own classes have other names, and were matched by their place in the list."""


class Own(NamedTuple):
    """Meaning of the labels of a source."""

    names: tuple[str, ...]
    """The classes as the source calls them; () where it calls them nothing."""
    places: list[int | None]
    """Class of each index that the source has as a label; None: a class that is left out."""
    by_position: bool = False
    """True: `names` are others than the classes', and were matched by position."""

    def find(self, name: str) -> int | None:
        """The class of a name of the source's own, where classes are matched by position."""
        return self.places[self.names.index(name)] if self.by_position and name in self.names else None


@dataclass(frozen=True)
class Classes:
    """The classes of an evaluation."""

    labels: tuple[str, ...]
    """Classes as the data call them, in the order of the indices."""
    names: tuple[str, ...]
    """Classes as prompts and tables call them."""
    candidates: tuple[int, ...]
    """Indices of those that an example may be given."""
    leave_out: bool
    """True: an example of another class is left out; else it is an error."""
    given: bool = False
    """True: the config names the classes, and not a source."""
    by_position: bool = False
    """True: the config says that classes match by position."""

    @property
    def candidate_names(self) -> tuple[str, ...]:
        """Names of the candidates, in their order."""
        return tuple(self.names[i] for i in self.candidates)

    def read(self, source: Source, field: str) -> Labelled:
        """The labels of all examples.

        Raises:
            ConfigError: a label is none, or a name that several classes share; or no example has one.
        """
        place = {index: i for i, index in enumerate(self.candidates)}
        index_of, own = NameIndex(self.labels), self.own(source)
        labels, marks = np.full(len(source), BROKEN, np.int64), {}
        problem = BadExample("there is none")
        for i, value in enumerate(read_field(source, field)):
            if isinstance(value, BadExample):
                problem = value
                continue
            if isinstance(value, (list, tuple)) or (isinstance(value, np.ndarray) and value.ndim == 1):
                labels[i], marks[i] = 0, self._marks(value, own.places)
            else:
                index = self._index(value, index_of, own)
                labels[i] = LEFT_OUT if index is None else place.get(index, LEFT_OUT)
        if np.all(labels == BROKEN):
            raise ConfigError(f"evaluation: no example has a label: {problem}; labels.field says which field holds it")
        if not marks:
            return Labelled(labels, None, own.by_position)
        if len(marks) != np.sum(labels != BROKEN):
            raise ConfigError(f"evaluation: field {field!r} holds one label in some examples and several in others")
        several = np.zeros((len(source), len(self.labels)), bool)
        several[list(marks)] = list(marks.values())
        return Labelled(labels, several[:, list(self.candidates)], own.by_position)

    def own(self, source: Source) -> Own:
        """Meaning of the labels of a source here.

        A source that names its classes has them in an order of its own, and perhaps not all of them (ImageNet-R: 200 of 1,000).

        Raises:
            ConfigError: some of its classes match by name, and others match none.
        """
        names, count = source.classes, len(self.labels)
        if not names:
            return Own((), list(range(count)))
        found = match_names(names, self.labels)
        if found.places == list(range(count)) or not (self.by_position or found.unmatched):
            return Own(names, found.places)
        if self.by_position and len(names) != count:
            raise ConfigError(
                "evaluation: labels.match='position' needs as many classes in a source as in labels.classes; "
                f"it has {len(names)}, {names[0]!r} to {names[-1]!r}, for {count}; leave it out, or name the missing ones"
            )
        unlike = len(found.unmatched) == len(names) == count
        if self.by_position or (self.given and unlike):
            log.warning(
                "labels: the classes of a source are matched by position with %d others: %r is %r, ..., %r is %r%s",
                *(count, names[0], self.labels[0], names[-1], self.labels[-1]),
                "" if self.by_position else "; no name matches, and labels.match='position' would say that this is right",
            )
            return Own(names, list(range(count)), True)
        few = f"{len(found.unmatched)} of the {len(names)} classes of a source"
        problem = f"{few} match none of the {count} classes: {found.describe()}"
        if not self.leave_out:
            raise ConfigError(
                f"evaluation: {problem}. Names are compared without regard to case, underscores and Unicode form. Rename them, "
                "set labels.classes to those of all sources, labels.others='leave_out' to leave their examples out, or "
                "labels.match='position' where both lists have the same classes in the same order"
            )
        log.warning("labels: %s; the examples of the former are left out, as labels.others says", problem)
        return Own(names, found.places)

    def _marks(self, value: Any, own: Sequence[int | None]) -> np.ndarray:
        marks = np.asarray(value)
        if marks.shape != (len(own),) or not np.isin(marks, (0, 1)).all():
            raise ConfigError(
                f"evaluation: several labels are a 0 or 1 for each of the {len(own)} classes; got {str(value)[:80]}"
            )
        ours = np.zeros(len(self.labels), bool)
        ours[[index for index, mark in zip(own, marks, strict=True) if mark and index is not None]] = True
        return ours

    def _index(self, label: Any, index_of: NameIndex, own: Own) -> int | None:
        """The index of a label; None for one that is left out."""
        if isinstance(label, np.ndarray) and label.ndim == 0:
            label = label.item()
        if isinstance(label, bytes):
            label = label.decode()
        if isinstance(label, str):
            found = self._named(label, index_of, own)
            if found is not None:
                return found
        whole = isinstance(label, (int, np.integer)) and not isinstance(label, bool)
        if whole and 0 <= label < len(own.places):
            return own.places[int(label)]
        if self.leave_out and (whole or isinstance(label, str)):
            return None
        shown = ", ".join(self.labels[:_SHOWN]) + (", ..." if len(self.labels) > _SHOWN else "")
        raise ConfigError(
            f"evaluation: {label!r} is no label; use 0 to {len(own.places) - 1} or one of the {len(self.labels)} classes: "
            f"{shown}; labels.field says which field holds it, labels.classes the names; labels.others='leave_out' drops others"
        )

    def _named(self, label: str, index_of: NameIndex, own: Own) -> int | None:
        """The index of a label that is a name, as the source calls its classes or as the evaluation does."""
        found = own.find(label)
        found = index_of.find(label) if found is None else found
        if found is None and label in self.labels:
            raise ConfigError(
                f"evaluation: {self.labels.count(label)} classes are called {label!r}; label by index, or rename them"
            )
        return found


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
    chosen = {find_class(name, labels, "labels.only") for name in only}
    candidates = tuple(sorted(chosen)) if only else tuple(range(len(labels)))
    return Classes(
        labels, names, candidates, config.others == "leave_out", bool(config.classes), by_position=config.match == "position"
    )


def find_class(name: str, labels: Sequence[str], field: str) -> int:
    """The class that an entry of a mask names, or whose index it is. Raises ConfigError where there is none."""
    found = NameIndex(labels).find(name)
    if found is not None:
        return found
    if name in labels:  # several times: the index can be given instead
        raise ConfigError(f"evaluation: {labels.count(name)} classes are called {name!r}; give their indices in {field}")
    if name.isdecimal() and int(name) < len(labels):
        return int(name)
    raise ConfigError(f"evaluation: {field} has {name!r}, which is no class; classes: {', '.join(labels[:_SHOWN])}")


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
        try:
            text = read_whole(path).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise ConfigError(f"evaluation: {field} names the file {str(path)!r}, which is not UTF-8: {error}") from None
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        if not lines:
            raise ConfigError(f"evaluation: {field} names the file {str(path)!r}, which is empty")
        found += lines
    return tuple(found)


def require_words(names: Sequence[str], what: str, advice: str) -> None:
    """Raises ConfigError where prompts would be made of numbers of WordNet, as the folders of ImageNet are called."""
    numbers = [name for name in names if re.fullmatch(r"n\d{8}", name)]
    if len(numbers) > len(names) / 2:
        raise ConfigError(
            f"{what}: the classes are called {numbers[0]!r}, ...: numbers of WordNet, which no text tower knows; {advice}"
        )


def mean_per_class(correct: np.ndarray, labels: np.ndarray) -> float:
    """The mean over the classes present of the fraction of their examples that is correct.

    Args:
        correct: [n] bool.
        labels: [n] integers.
    """
    _, ids = np.unique(labels, return_inverse=True)
    return float(np.mean(np.bincount(ids, weights=correct) / np.bincount(ids)))
