"""Learning from two views of one example through a tower: SimCLR, SimSiam and BYOL."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh

from jclip import config, losses
from jclip.models import Compute, ProjectionHead, apart, together, tower_flops, unit, without_dropout
from jclip.objectives.objective import Metrics, Objective, Params, Part, Setting
from jclip.optim import moving_average
from jclip.sharding import BATCH_AXES


class SimCLRObjective(Objective):
    """See `config.SimCLR`."""

    def __init__(self, name: str, how: config.SimCLR, setting: Setting, mesh: Mesh | None) -> None:
        self.how, self.setting, self.mesh = how, setting, mesh
        self.head = ProjectionHead(how.hidden, how.features, how.layers, Compute.of(setting.model, mesh))

    def init(self, key: Array, part: Part) -> Params:
        return {"head": self.head.init(key, part.encoded[self.how.a].output.pooled)["params"]}

    def rows(self, params: Params, extra: Params, part: Part) -> tuple[Any, Metrics]:
        """f32 [b, features] unit vectors of both views."""
        pooled = together([part.encoded[view].output.pooled for view in (self.how.a, self.how.b)])
        return tuple(apart(unit(self.head.apply({"params": params["head"]}, pooled)), 2)), {}

    def batch(self, params: Params, extra: Params, rows: Any, batch: Mapping[str, Array]) -> tuple[Array, Metrics]:
        """NT-Xent, and how spread out the views are."""
        a, b = (z.astype(self.how.dtype) for z in rows)
        where: dict[str, Any] = {"mesh": self.mesh, "axes": BATCH_AXES, "method": self.how.method, "block": self.how.block}
        loss = losses.nt_xent(a, b, self.how.temperature, **where)
        return loss, {"loss": loss, "spread": spread(rows[0])}

    def flops(self) -> int:
        """The head forward and backward of both views, and the products of 2B rows."""
        rows = 2 * self.setting.batch_size
        return rows * 3 * self.head.flops(_width(self.setting, self.how.a)) + 8 * rows**2 * self.how.features


class SimSiamObjective(Objective):
    """See `config.SimSiam`."""

    def __init__(self, name: str, how: config.SimSiam, setting: Setting, mesh: Mesh | None) -> None:
        self.how, self.setting = how, setting
        compute = Compute.of(setting.model, mesh)
        self.head = ProjectionHead(how.features, how.features, how.layers, compute)
        self.predictor = ProjectionHead(how.hidden, how.features, 2, compute)

    def init(self, key: Array, part: Part) -> Params:
        return _init_heads(key, self.head, self.predictor, part.encoded[self.how.a].output.pooled)

    def rows(self, params: Params, extra: Params, part: Part) -> tuple[Any, Metrics]:
        """The negative cosine of each view's prediction and the other view, which no gradient reaches."""
        pooled = together([part.encoded[view].output.pooled for view in (self.how.a, self.how.b)])
        z = self.head.apply({"params": params["head"]}, pooled)
        p = unit(self.predictor.apply({"params": params["predictor"]}, z))
        (pa, pb), (za, zb) = apart(p, 2), apart(unit(z), 2)
        both = losses.negative_cosines(pa, zb) + losses.negative_cosines(pb, za)
        return jax.lax.stop_gradient(za), {"loss": 0.5 * both.sum()}

    def batch(self, params: Params, extra: Params, rows: Any, batch: Mapping[str, Array]) -> tuple[Array, Metrics]:
        """Spread of the views; the loss is of each row by itself."""
        return jnp.zeros(()), {"spread": spread(rows)}

    def flops(self) -> int:
        """Both heads forward and backward of both views."""
        one = self.head.flops(_width(self.setting, self.how.a)) + self.predictor.flops(self.how.features)
        return 2 * self.setting.batch_size * 3 * one


class BYOLObjective(Objective):
    """See `config.BYOL`. Its state is the target: the tower and the head as moving averages."""

    def __init__(self, name: str, how: config.BYOL, setting: Setting, mesh: Mesh | None) -> None:
        self.name, self.how, self.setting = name, how, setting
        self.tower = setting.inputs[how.a].tower
        compute = Compute.of(setting.model, mesh)
        self.head = ProjectionHead(how.hidden, how.features, 2, compute)
        self.predictor = ProjectionHead(how.hidden, how.features, 2, compute)

    def init(self, key: Array, part: Part) -> Params:
        return _init_heads(key, self.head, self.predictor, part.encoded[self.how.a].output.pooled)

    def init_extra(self, key: Array, params: Params) -> Params:
        return self._target(params)

    def _target(self, params: Params) -> Params:
        """The parameters that the target is a moving average of."""
        projection = f"{self.tower}_projection"
        tower = {name: params[name] for name in (self.tower, projection) if name in params}
        return {**tower, "head": params[self.name]["head"]}

    def rows(self, params: Params, extra: Params, part: Part) -> tuple[Any, Metrics]:
        """|p - z|^2 = 2 - 2 cos of each view's prediction and the target's other view (Grill et al. 2020, equation 2)."""
        views = (self.how.a, self.how.b)
        z = self.head.apply({"params": params["head"]}, together([part.encoded[view].output.pooled for view in views]))
        pa, pb = apart(unit(self.predictor.apply({"params": params["predictor"]}, z)), 2)
        target = {name: tree for name, tree in extra.items() if name != "head"}
        seen = part.encode(target, views)
        pooled = together([seen[view].output.pooled for view in views])
        ta, tb = apart(jax.lax.stop_gradient(unit(self.head.apply({"params": extra["head"]}, pooled))), 2)
        cosines = (pa * tb).sum() + (pb * ta).sum()
        return ta, {"loss": 4.0 * len(pa) - 2 * cosines}

    def batch(self, params: Params, extra: Params, rows: Any, batch: Mapping[str, Array]) -> tuple[Array, Metrics]:
        """Spread of the target's views; the loss is of each row by itself."""
        return jnp.zeros(()), {"spread": spread(rows)}

    def update(self, extra: Params, params: Params, rows: Any, batch: Mapping[str, Array], progress: Array) -> Params:
        """The target follows: its decay goes from `decay` to 1 along half a cosine (Grill et al. 2020, section 3.3)."""
        decay = 1 - (1 - self.how.decay) * (jnp.cos(jnp.pi * progress) + 1) / 2
        return moving_average(extra, self._target(params), decay)

    def flops(self) -> int:
        """Both heads forward and backward, and the target's forward, of both views."""
        tower = self.setting.model.towers[self.tower]
        head, predictor = self.head.flops(tower.pooled_width), self.predictor.flops(self.how.features)
        return 2 * self.setting.batch_size * (4 * head + 3 * predictor + tower_flops(without_dropout(tower)))


def spread(z: Array) -> Array:
    """Standard deviation over the rows of unit vectors [B, F], mean of the dimensions, times sqrt(F), f32 []: 1 where they lie
    evenly, 0 where all have become one (Chen and He 2021, SimSiam, section 4.1)."""
    deviation = jnp.sqrt(jnp.maximum(jnp.var(jax.lax.stop_gradient(z), axis=0), 0))
    return deviation.mean() * z.shape[1] ** 0.5


def _init_heads(key: Array, head: ProjectionHead, predictor: ProjectionHead, pooled: Array) -> Params:
    one, other = jax.random.split(key)
    z, variables = head.init_with_output(one, pooled)
    return {"head": variables["params"], "predictor": predictor.init(other, z)["params"]}


def _width(setting: Setting, view: str) -> int:
    return setting.model.towers[setting.inputs[view].tower].pooled_width
