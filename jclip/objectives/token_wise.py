"""The token-wise objective: two views matched by the best match of each of their tokens, as FILIP does."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh

from jclip import config, losses
from jclip.models import Backend, Compute, Dense, class_tokens, token_count, unit
from jclip.objectives.contrastive import Contrastive
from jclip.objectives.objective import Metrics, Objective, Params, Part
from jclip.sharding import BATCH_AXES


class TokenWise(Objective):
    """See `config.TokenWise`."""

    def __init__(self, name: str, how: config.TokenWise, whole: config.Config, mesh: Mesh | None) -> None:
        self.how, self.whole, self.mesh = how, whole, mesh
        inputs = whole.inputs()
        self.towers = [whole.model.towers[inputs[view].tower] for view in (how.a, how.b)]
        backend = Backend() if mesh is None else Backend.of(mesh, whole.model.attention)
        compute = Compute(jnp.dtype(whole.model.dtype), backend=backend)
        self.projections = [
            Dense(how.features, nn.initializers.normal(tower.width**-0.5), False, compute) for tower in self.towers
        ]
        self.scale = Contrastive(name, config.Contrastive(how.a, how.b, logit_scale=how.logit_scale), whole, mesh)

    def init(self, key: Array, part: Part) -> Params:
        """The logit scale, and a projection of each view's tokens."""
        keys = jax.random.split(key)
        outputs = [part.encoded[view].output.tokens for view in self.how.views()]
        a, b = (p.init(k, x)["params"] for p, k, x in zip(self.projections, keys, outputs, strict=True))
        return {**self.scale.init(key, part), "a_projection": a, "b_projection": b}

    def rows(self, params: Params, extra: Params, part: Part) -> tuple[Any, Metrics]:
        """By side the projected tokens, f32 [b, K, features] unit vectors, and which are real, f32 [b, K] of 0 and 1."""
        rows = {}
        for side, view, tower, projection in zip("ab", self.how.views(), self.towers, self.projections, strict=True):
            output, first = part.encoded[view].output, _class_tokens(tower)
            tokens = projection.apply({"params": params[f"{side}_projection"]}, output.tokens[:, first:])
            # As numbers, because what the batch reads of rows is differentiated when it comes in parts.
            rows[side] = unit(tokens), output.mask[:, first:].astype(jnp.float32)
        return rows, {}

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
        batch, features = self.whole.batch_size, self.how.features
        a, b = (token_count(tower) - _class_tokens(tower) for tower in self.towers)
        projections = 3 * 2 * batch * features * (a * self.towers[0].width + b * self.towers[1].width)
        return projections + 8 * batch**2 * a * b * features


def _class_tokens(tower: config.Tower) -> int:
    return class_tokens(tower) if isinstance(tower, config.VisionTower) else 0
