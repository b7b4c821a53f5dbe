"""CLOOB: a softmax without its right answers, between what two views of an example retrieve from the batch."""

from collections.abc import Mapping
from typing import Any

from jax import Array
from jax.sharding import Mesh

from jclip import config, losses
from jclip.models import apart, together
from jclip.objectives.objective import Metrics, Objective, Params, Part, Setting
from jclip.sharding import BATCH_AXES


class CLOOBObjective(Objective):
    """See `config.CLOOB`."""

    def __init__(self, name: str, how: config.CLOOB, setting: Setting, mesh: Mesh | None) -> None:
        self.how, self.setting, self.mesh = how, setting, mesh

    def rows(self, params: Params, extra: Params, part: Part) -> tuple[Any, Metrics]:
        """The embeddings, f32 [b, E] of both views."""
        return (part.encoded[self.how.a].z, part.encoded[self.how.b].z), {}

    def batch(self, params: Params, extra: Params, rows: Any, batch: Mapping[str, Array]) -> tuple[Array, Metrics]:
        """InfoLOOB of what both views retrieve from all embeddings of `a`, and of what they retrieve from those of `b`."""
        how = self.how
        where: dict[str, Any] = {"mesh": self.mesh, "axes": BATCH_AXES, "block": how.block}
        a, b = (z.astype(how.dtype) for z in rows)

        def retrieved(patterns: Array) -> list[Array]:
            return apart(losses.retrieve(together([a, b]), patterns, how.beta, **where).astype(how.dtype), 2)

        (a_of_a, b_of_a), (a_of_b, b_of_b) = retrieved(a), retrieved(b)
        what: dict[str, Any] = {"decoupled": True, "direction": "a_to_b", **where}
        of_a = losses.contrastive(a_of_a, b_of_a, how.logit_scale, **what)
        of_b = losses.contrastive(b_of_b, a_of_b, how.logit_scale, **what)
        loss = (of_a + of_b) / how.logit_scale
        return loss, {"loss": loss}

    def flops(self) -> int:
        """Four retrievals of 14 B^2 E, two products forward, one of them again and four backward; two softmaxes of 8 B^2 E."""
        return (4 * 14 + 2 * 8) * self.setting.batch_size**2 * self.setting.model.embed_dim
