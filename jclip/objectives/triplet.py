"""The triplet objective: each match nearer than what is unrelated, by a margin."""

from collections.abc import Mapping
from typing import Any

from jax import Array
from jax.sharding import Mesh

from jclip import config, losses
from jclip.objectives.contrastive import hash_rows
from jclip.objectives.objective import Metrics, Objective, Params, Part, Setting
from jclip.sharding import BATCH_AXES


class TripletObjective(Objective):
    """See `config.Triplet`."""

    def __init__(self, name: str, how: config.Triplet, setting: Setting, mesh: Mesh | None) -> None:
        self.how, self.setting, self.mesh = how, setting, mesh

    def rows(self, params: Params, extra: Params, part: Part) -> tuple[Any, Metrics]:
        """The embeddings, f32 [b, E] of both views."""
        return (part.encoded[self.how.a].z, part.encoded[self.how.b].z), {}

    def batch(self, params: Params, extra: Params, rows: Any, batch: Mapping[str, Array]) -> tuple[Array, Metrics]:
        """The loss of `losses.triplet`."""
        how = self.how
        ids = None if how.equal_by is None else hash_rows(batch[how.equal_by])
        what: dict[str, Any] = {"margin": how.margin, "mining": how.mining, "distance": how.distance, "block": how.block}
        loss = losses.triplet(*rows, ids=ids, mesh=self.mesh, axes=BATCH_AXES, **what)
        return loss, {"loss": loss}

    def flops(self) -> int:
        """Each direction computes the similarities; for "all", again for the backward pass, and the gradients of both sides."""
        products = 4 if self.how.mining == "all" else 1
        return 2 * 2 * products * self.setting.batch_size**2 * self.setting.model.embed_dim
