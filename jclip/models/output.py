"""The output of every tower."""

from typing import NamedTuple

from jax import Array


class TowerOutput(NamedTuple):
    """The output of a tower of any modality, before projection.

    Attributes:
        pooled: [b, d] one vector an example, in the tower's compute type. The linear probe reads it.
        tokens: [b, l, d] after the final norm. Token-wise losses, captioning and dense heads read them.
        mask: bool [b, l], True where a token is real and not padding.
    """

    pooled: Array
    tokens: Array
    mask: Array
