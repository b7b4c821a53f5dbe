"""Linear projections of two views, of an objective's own."""

from typing import Any

import flax.linen as nn
import jax
from jax import Array
from jax.sharding import Mesh

from jclip.models import Compute, Dense, unit
from jclip.objectives.objective import Params, Setting


class Projections:
    """Maps of what the towers of two views make, [..., width], to unit vectors f32 [..., features].

    Their parameters are `a_projection/kernel` and `b_projection/kernel`.
    """

    def __init__(self, a: str, b: str, features: int, setting: Setting, mesh: Mesh | None) -> None:
        inputs = setting.inputs
        compute = Compute.of(setting.model, mesh)
        self.features, self.widths = features, [setting.model.towers[inputs[view].tower].pooled_width for view in (a, b)]
        self.maps = [Dense(features, nn.initializers.normal(width**-0.5), False, compute) for width in self.widths]

    def init(self, key: Array, a: Array, b: Array) -> Params:
        """Parameters for arrays like these."""
        made: Any = zip("ab", self.maps, jax.random.split(key), (a, b), strict=True)
        return {f"{side}_projection": dense.init(key, x)["params"] for side, dense, key, x in made}

    def apply(self, params: Params, a: Array, b: Array) -> tuple[Array, Array]:
        """Both sides projected."""
        one, other = self.maps
        za = unit(one.apply({"params": params["a_projection"]}, a))
        return za, unit(other.apply({"params": params["b_projection"]}, b))

    def flops(self, rows_a: int, rows_b: int) -> int:
        """Floating-point operations of so many vectors of each side, forward and backward."""
        return 3 * 2 * self.features * (rows_a * self.widths[0] + rows_b * self.widths[1])
