"""Few-shot training sets: k examples of every class."""

from collections.abc import Sequence

import numpy as np

from jclip.config import ConfigError

_SHOWN = 5


def sample_few_shot(labels: np.ndarray, classes: Sequence[str], k: int, seed: int) -> np.ndarray:
    """The first k examples of each class under one permutation of all: [k * C] int64 indices, in rising order.

    The permutation depends on `seed` alone, so the sets of k = 1, 2, 4, ... contain each other; a curve over k adds examples, and
    does not change them.

    Args:
        labels: [n] integers, 0 to C - 1.
        classes: names of the C classes.
        k: examples a class, at least 1.
        seed: of the permutation.

    Raises:
        ConfigError: a class has fewer than k examples.
    """
    if k < 1:
        raise ConfigError(f"few-shot: k is {k}; use 1 or more")
    counts = np.bincount(labels, minlength=len(classes))
    few = np.flatnonzero(counts < k)
    if len(few):
        named = ", ".join(f"{classes[c]!r} has {counts[c]}" for c in few[:_SHOWN]) + (", ..." if len(few) > _SHOWN else "")
        smaller = f"use k up to {counts.min()}, or" if counts.min() else "use"
        raise ConfigError(
            f"few-shot: {len(few)} of {len(classes)} classes have fewer than k={k} examples: {named}; "
            f"{smaller} `classes` without these, or more training examples"
        )
    order = np.random.default_rng(seed).permutation(len(labels))
    grouped = order[np.argsort(labels[order], kind="stable")]  # class after class, each in the order of the permutation
    starts = np.cumsum(counts) - counts
    return np.sort(grouped[(starts[:, None] + np.arange(k)[None, :]).ravel()])
