"""Two views that are to agree on which examples are alike."""

from collections.abc import Mapping
from typing import Any

from jax import Array
from jax.sharding import Mesh

from jclip import config, losses
from jclip.objectives.objective import Metrics, Objective, Params, Part, Setting


class SimRegObjective(Objective):
    """See `config.SimReg`."""

    def __init__(self, name: str, how: config.SimReg, setting: Setting, mesh: Mesh | None) -> None:
        self.how, self.setting = how, setting

    def rows(self, params: Params, extra: Params, part: Part) -> tuple[Any, Metrics]:
        """The embeddings, f32 [b, E] of both views."""
        return (part.encoded[self.how.a].z, part.encoded[self.how.b].z), {}

    def batch(self, params: Params, extra: Params, rows: Any, batch: Mapping[str, Array]) -> tuple[Array, Metrics]:
        """The loss of `losses.sim_reg`."""
        loss = losses.sim_reg(*rows)
        return loss, {"loss": loss}

    def flops(self) -> int:
        """Three products of E x B and B x E, forward and backward."""
        return 3 * 3 * 2 * self.setting.batch_size * self.setting.model.embed_dim**2
