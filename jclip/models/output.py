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


class Tap(NamedTuple):
    """The output of one block inside of a tower.

    Attributes:
        tokens: [b, l, d] after the block and before any norm, in the tower's compute type, class token and padding too.
        attention: f32 [b, heads, l, l], how much of each token (the last axis) each token takes in; None where not asked for.
    """

    tokens: Array
    attention: Array | None
