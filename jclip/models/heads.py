"""Small networks on a tower's pooled output: its projection to the shared space, and the heads of objectives."""

import itertools
from typing import Literal

import flax.linen as nn
import jax
from jax import Array

from jclip.config import Tower
from jclip.models.compute import Compute
from jclip.models.layers import ACTIVATIONS, Dense, LayerNorm


class ProjectionHead(nn.Module):
    """Dense layers with a norm and a ReLU between them: [b, d] -> [b, features] (Chen et al. 2020, SimCLR, section 4.2).

    The norm is LayerNorm, where the papers take batch normalisation: it sees one row, so that the result depends neither on the
    other rows nor on how a batch is spread or parted.
    """

    hidden: int
    features: int
    layers: int
    how: Compute = Compute()

    @nn.compact
    def __call__(self, x: Array) -> Array:
        init = nn.initializers.lecun_normal()
        for i in range(1, self.layers):
            x = Dense(self.hidden, init, False, self.how, name=f"fc{i}")(x)
            x = jax.nn.relu(LayerNorm(1e-5, self.how, name=f"norm{i}")(x))
        return Dense(self.features, init, True, self.how, name=f"fc{self.layers}")(x)

    def flops(self, width: int) -> int:
        """Floating-point operations of one example of `width` numbers, forward."""
        sizes = [width, *[self.hidden] * (self.layers - 1), self.features]
        return sum(2 * a * b for a, b in itertools.pairwise(sizes))


class WordHead(nn.Module):
    """Features of words and the vocabulary they are compared with; their products are logits (Devlin et al. 2019, BERT).

    A dense layer, a GELU and a norm make the features: [..., d] -> ([..., d], f32 [d, V]).
    """

    words: int
    norm_eps: float
    how: Compute = Compute()

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Array]:
        width = x.shape[-1]
        x = Dense(width, nn.initializers.lecun_normal(), True, self.how, name="fc")(x)
        vocabulary = self.param("vocabulary", nn.initializers.normal(width**-0.5), (width, self.words))
        return LayerNorm(self.norm_eps, self.how, name="norm")(ACTIVATIONS["gelu"](x)), vocabulary

    def flops(self, width: int) -> int:
        """Floating-point operations of one word, forward, logits too."""
        return 2 * width * (width + self.words)


def make_projection(tower: Tower, features: int, how: Compute, name: str) -> nn.Module:
    """The module of a tower's `config.Projection`, other than none: [b, tower.pooled_width] -> [b, features]."""
    kind = tower.projection
    if kind == "mlp":
        return MlpProjection(features, features, "relu", True, how, name=name)
    if kind == "mlp_gelu":
        return MlpProjection((tower.pooled_width + features) // 2, features, "gelu", False, how, name=name)
    if kind == "residual":
        return ResidualProjection(features, how, name=name)
    return Dense(features, nn.initializers.normal(tower.width**-0.5), kind == "affine", how, name=name)


class MlpProjection(nn.Module):
    """Two dense layers with an activation between them: [b, d] -> [b, features].

    With ReLU and biases as in LAION-CLAP (Wu et al. 2023, section 3.1), with GELU and without as in open_clip's `HFTextEncoder`.
    """

    hidden: int
    features: int
    activation: Literal["relu", "gelu"]
    use_bias: bool
    how: Compute = Compute()

    @nn.compact
    def __call__(self, x: Array) -> Array:
        init = nn.initializers.lecun_normal()
        x = Dense(self.hidden, init, self.use_bias, self.how, name="fc1")(x)
        x = jax.nn.relu(x) if self.activation == "relu" else ACTIVATIONS[self.activation](x)
        return Dense(self.features, init, self.use_bias, self.how, name="fc2")(x)


class ResidualProjection(nn.Module):
    """LayerNorm(y + W gelu(y)) of a linear map y of the input (Elizalde et al. 2023, MS-CLAP): [b, d] -> [b, features].

    In training MS-CLAP zeroes half of what W makes; that is left out.
    """

    features: int
    how: Compute = Compute()

    @nn.compact
    def __call__(self, x: Array) -> Array:
        init = nn.initializers.lecun_normal()
        y = Dense(self.features, init, False, self.how, name="fc1")(x)
        y = y + Dense(self.features, init, False, self.how, name="fc2")(ACTIVATIONS["gelu"](y))
        return LayerNorm(1e-5, self.how, name="norm")(y)
