"""Contrastive losses between all views of one side and all of the other, with one logit scale."""

import itertools
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh

from jclip import config
from jclip.objectives.contrastive import ContrastiveObjective
from jclip.objectives.objective import Metrics, Objective, Params, Part, Setting


class MultiViewObjective(Objective):
    """See `config.MultiView`."""

    def __init__(self, name: str, how: config.MultiView, setting: Setting, mesh: Mesh | None) -> None:
        self.how = how
        same: dict[str, Any] = {"logit_scale": how.logit_scale, "decoupled": how.decoupled}
        where: dict[str, Any] = {"method": how.method, "dtype": how.dtype, "block": how.block}
        self.match = ContrastiveObjective(name, config.Contrastive(how.a[0], how.b[0], **same, **where), setting, mesh)

    def init(self, key: Array, part: Part) -> Params:
        """The logit scale of all pairs."""
        return self.match.init(key, part)

    def rows(self, params: Params, extra: Params, part: Part) -> tuple[Any, Metrics]:
        """The embeddings f32 [b, E] of each view, by side."""
        a, b = ([part.encoded[view].z for view in views] for views in (self.how.a, self.how.b))
        return {"a": a, "b": b}, {}

    def batch(self, params: Params, extra: Params, rows: Any, batch: Mapping[str, Array]) -> tuple[Array, Metrics]:
        """The loss of the first pair, and the mean of those of all others."""
        pairs = itertools.product(rows["a"], rows["b"])
        first, *others = (self.match.batch(params, {}, pair, batch)[0] for pair in pairs)
        further = jnp.stack(others).mean()
        loss = first + self.how.further * further
        return loss, {"loss": loss, "first": first, "further": further, "logit_scale": jnp.exp(params["logit_scale"])}

    def bound(self, old: Params, new: Params) -> Params:
        """The scale within its range."""
        return self.match.bound(old, new)

    def flops(self) -> int:
        """The contrastive loss of every pair."""
        return len(self.how.a) * len(self.how.b) * self.match.flops()
