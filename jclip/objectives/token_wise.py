"""The token-wise objective: two views matched by the best match of each of their tokens, as FILIP does."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh

from jclip import config, losses
from jclip.models import first_patch, output_tokens
from jclip.objectives.contrastive import ContrastiveObjective
from jclip.objectives.objective import Metrics, Objective, Params, Part, Setting
from jclip.objectives.projections import Projections
from jclip.sharding import BATCH_AXES


class TokenWiseObjective(Objective):
    """See `config.TokenWise`."""

    def __init__(self, name: str, how: config.TokenWise, setting: Setting, mesh: Mesh | None) -> None:
        self.how, self.setting, self.mesh = how, setting, mesh
        inputs = setting.inputs
        self.towers = [setting.model.towers[inputs[view].tower] for view in (how.a, how.b)]
        self.projections = Projections(how.a, how.b, how.features, setting, mesh)
        self.scale = ContrastiveObjective(name, config.Contrastive(how.a, how.b, logit_scale=how.logit_scale), setting, mesh)

    def init(self, key: Array, part: Part) -> Params:
        """The logit scale, and a projection of each view's tokens."""
        a, b = (part.encoded[view].output.tokens for view in self.how.views())
        return {**self.scale.init(key, part), **self.projections.init(key, a, b)}

    def rows(self, params: Params, extra: Params, part: Part) -> tuple[Any, Metrics]:
        """The projected tokens by side, f32 [b, K, features] unit vectors, and which are real, f32 [b, K] of 0 and 1."""
        tokens, masks = [], {}
        for side, view, tower in zip("ab", self.how.views(), self.towers, strict=True):
            output, first = part.encoded[view].output, first_patch(tower)
            tokens.append(output.tokens[:, first:])
            # As numbers, because what the batch reads of rows is differentiated when it comes in parts.
            masks[side] = output.mask[:, first:].astype(jnp.float32)
        a, b = self.projections.apply(params, *tokens)
        return {"a": (a, masks["a"]), "b": (b, masks["b"])}, {}

    def batch(self, params: Params, extra: Params, rows: Any, batch: Mapping[str, Array]) -> tuple[Array, Metrics]:
        """The loss of `losses.token_wise`, and the scale."""
        how, scale = self.how, jnp.exp(params["logit_scale"])
        (ta, mask_a), (tb, mask_b) = ((tokens.astype(how.dtype), mask) for tokens, mask in (rows["a"], rows["b"]))
        what: dict[str, Any] = {"method": how.method, "block": how.block, "decoupled": how.decoupled}
        loss = losses.token_wise(ta, tb, mask_a, mask_b, scale, mesh=self.mesh, axes=BATCH_AXES, **what)
        return loss, {"loss": loss, "logit_scale": scale}

    def bound(self, old: Params, new: Params) -> Params:
        """The scale within its range."""
        return self.scale.bound(old, new)

    def flops(self) -> int:
        """The projections, and 4 B^2 K L F multiply-adds of both directions and both passes."""
        batch = self.setting.batch_size
        a, b = (output_tokens(tower) - first_patch(tower) for tower in self.towers)
        return self.projections.flops(batch * a, batch * b) + 8 * batch**2 * a * b * self.how.features
