"""The base of objectives: two pure functions, of which one sees rows and the other the batch."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from jclip.config import Caption, Config, Input, MeshConfig, Model
from jclip.config.buckets import Bucket
from jclip.models import Encoded

Params = dict[str, Any]
Metrics = dict[str, Array]


class Part(NamedTuple):
    """Some rows of a global batch, and what the towers make of them.

    Attributes:
        batch: inputs by view, arrays [b, ...].
        encoded: by view.
        encode: (parameters of towers, views) -> these views encoded by other towers than those in training: by a teacher.
        rows: i32 [b], the index of each in the global batch. With `key`, all that randomness may depend on.
        key: one for the step.
    """

    batch: Mapping[str, Array]
    encoded: Mapping[str, Encoded]
    encode: Callable[[Params, Sequence[str]], Mapping[str, Encoded]]
    rows: Array
    key: Array


class Setting(NamedTuple):
    """The parts of a run's configuration that its objectives know.

    Attributes:
        model: the towers.
        inputs: the views that objectives read, by name.
        batch_size: examples in the global batch.
        placement: rules by which parameters lie on the mesh.
        buckets: those of text towers.
        captioners: the objectives that write captions, by name, with the names of towers in place of those of their views.
    """

    model: Model
    inputs: Mapping[str, Input]
    batch_size: int
    placement: MeshConfig
    buckets: tuple[Bucket, ...]
    captioners: Mapping[str, Caption]

    @classmethod
    def of(cls, config: Config) -> "Setting":
        """Facts of a run, of its configuration."""
        return cls(config.model, config.inputs(), config.batch_size, config.mesh, config.buckets, config.captioners())


class Objective:
    """Something to learn. What a family does not need it leaves as it is here: no parameters, no state, no bounds.

    `rows` never looks at other rows than those it is given, so a batch may come to it in parts: that is all that gradient
    accumulation has to know. `batch` is where rows meet. `extra` is state that no gradient reaches, such as a teacher or a
    queue; it is sharded by the rules of parameters, saved and restored with them.
    """

    def init(self, key: Array, part: Part) -> Params:
        """Parameters of its own, which lie under its name in the tree of all; their shapes follow from those of `part`."""
        return {}

    def init_extra(self, key: Array, params: Params) -> Params:
        """State of the objective at step 0; `params` are those of all, at the start or as they were loaded."""
        return {}

    def views(self, params: Params, batch: Mapping[str, Array], rows: Array, key: Array) -> Mapping[str, Any]:
        """The views that it makes of some rows of the batch, as `MultiTower` takes them: those of `Family.makes`."""
        return {}

    def rows(self, params: Params, extra: Params, part: Part) -> tuple[Any, Metrics]:
        """The part of an objective that sees rows: what the batch needs of each, and the losses of rows by themselves.

        Args:
            params: its own parameters.
            extra: its own state.
            part: some rows.

        Returns:
            A tree of arrays [b, ...], of floating-point numbers, for the loss of the batch is differentiated in them, or of none;
            sums f32 [] over the rows by name, whose means over the batch are metrics, and that of
            "loss" a part of the loss.
        """
        raise NotImplementedError

    def batch(self, params: Params, extra: Params, rows: Any, batch: Mapping[str, Array]) -> tuple[Array, Metrics]:
        """The loss f32 [] of a global batch, without the losses of rows by themselves; and metrics f32 [].

        Args:
            params: its own parameters.
            extra: its own state.
            rows: what `rows` has returned, arrays [B, ...] sharded on B.
            batch: inputs of the global batch by view.
        """
        return jnp.zeros(()), {}

    def update(self, extra: Params, params: Params, rows: Any, batch: Mapping[str, Array], progress: Array) -> Params:
        """State of the objective after a step.

        Args:
            extra: its own state.
            params: those of all, updated.
            rows: as above.
            batch: as above.
            progress: f32 [], from 0, where it begins, to 1.
        """
        return extra

    def bound(self, old: Params, new: Params) -> Params:
        """Parameters of the objective after an update, kept where they have to stay; `old` are those before it."""
        return new

    def flops(self) -> int:
        """Floating-point operations of a train step in its matrix products, forward and backward, beside those of the towers."""
        return 0
