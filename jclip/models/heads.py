"""Heads: small networks on a tower's pooled output, that an objective trains for itself."""

import itertools

import flax.linen as nn
import jax
from jax import Array

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
