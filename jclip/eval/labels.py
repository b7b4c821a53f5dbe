"""Labels of examples: their names, their indices, and the mean of per-class recall."""

from collections.abc import Callable
from typing import Any

import numpy as np

from jclip.config import ConfigError
from jclip.data import Source

_SHOWN = 20


def class_names(given: tuple[str, ...], source: Source, spec: str) -> tuple[str, ...]:
    """The classes of an evaluation: those of its config, else those of its source.

    Raises:
        ConfigError: neither has any.
    """
    classes = given or source.classes
    if not classes:
        raise ConfigError(f"evaluation: the source {spec!r} has no classes of its own; set `classes`, in the order of the labels")
    return classes


def label_reader(classes: tuple[str, ...]) -> Callable[[Any], int]:
    """A function from an example's label, an index into `classes` or one of them, to the index.

    The function raises ValueError for any other label, and for a name that several classes share.
    """
    index = {name: i for i, name in enumerate(classes)}

    def read(label: Any) -> int:
        if isinstance(label, bytes):
            label = label.decode()
        if isinstance(label, str) and label in index:
            if classes.count(label) > 1:
                raise ConfigError(
                    f"evaluation: {classes.count(label)} classes are called {label!r}; label by index, or rename them"
                )
            return index[label]
        if isinstance(label, (int, np.integer)) and not isinstance(label, bool) and 0 <= label < len(classes):
            return int(label)
        if isinstance(label, np.ndarray) and label.ndim == 0:
            return read(label.item())
        names = ", ".join(classes[:_SHOWN]) + (", ..." if len(classes) > _SHOWN else "")
        raise ConfigError(
            f"evaluation: {label!r} is no label; use 0 to {len(classes) - 1} or one of the {len(classes)} classes: {names}; "
            "set `label` to the field that holds it, and `classes` to their names"
        )

    return read


def mean_per_class(correct: np.ndarray, labels: np.ndarray) -> float:
    """The mean over the classes present of the fraction of their examples that is correct.

    Args:
        correct: [n] bool.
        labels: [n] integers.
    """
    _, ids = np.unique(labels, return_inverse=True)
    return float(np.mean(np.bincount(ids, weights=correct) / np.bincount(ids)))
