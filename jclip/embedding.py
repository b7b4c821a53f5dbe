"""The embedding of n inputs, as towers make it and evaluations read it."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Embedding(NamedTuple):
    """The output of a tower for n inputs, on the host."""

    pooled: NDArray[np.float32]
    """[n, D] before the projection: what a linear probe reads."""
    z: NDArray[np.float32]
    """[n, E] of unit norm: what zero-shot classification and retrieval read."""
