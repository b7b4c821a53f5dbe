"""Gradients of formulas, for what no formula of a gradient is written."""

from collections.abc import Callable, Sequence

import numpy as np


def slopes_by_differences(f: Callable[..., float], arrays: Sequence[np.ndarray], step: float = 1e-6) -> list[np.ndarray]:
    """Gradients of f in f64 by central differences."""
    slopes = [np.zeros_like(a) for a in arrays]
    for array, slope in zip(arrays, slopes, strict=True):
        for at in np.ndindex(array.shape):
            old, ends = array[at], []
            for move in (step, -step):
                array[at] = old + move
                ends.append(f(*arrays))
            array[at] = old
            slope[at] = (ends[0] - ends[1]) / (2 * step)
    return slopes
