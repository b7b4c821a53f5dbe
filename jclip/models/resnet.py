"""CLIP's modified ResNet: images to TowerOutput."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from jclip.config import ResNetTower
from jclip.models.attention import attend
from jclip.models.compute import Compute
from jclip.models.layers import Dense
from jclip.models.output import TowerOutput
from jclip.models.pixels import as_pixels
from jclip.models.products import broadcast, convolution

EPSILON = 1e-5
"""Epsilon of batch normalisation, as in torch."""


class ModifiedResNet(nn.Module):
    """A ResNet with three convolutions at first, antialiased strides and attention pooling (Radford et al. 2021, section 2.4)."""

    config: ResNetTower
    how: Compute = Compute()

    @nn.compact
    def __call__(self, images: Array, *, rows: Array | None = None, normalised: bool = False) -> TowerOutput:
        """Encodes images.

        Args:
            images: u8 [b, H, W, 3], or floats that are normalised already, if `normalised`.
            rows: not used: nothing in it is random.

        Returns:
            The features of the last stage as tokens [b, (H/32)(W/32), width], and what attention pools of them.
        """
        c, dtype = self.config, self.how.dtype
        x = as_pixels(images, c.size, c.preprocess, normalised).astype(dtype)
        for i, (channels, stride) in enumerate(((c.stem_width // 2, 2), (c.stem_width // 2, 1), (c.stem_width, 1)), 1):
            x = nn.relu(ConvNorm(channels, 3, stride, self.how, name=f"stem{i}")(x))
        x = average(x, 2)
        block = Bottleneck if self.how.remat == "none" else nn.remat(Bottleneck, policy=self.how.policy)
        for stage, blocks in enumerate(c.layers):
            for i in range(blocks):
                stride = 2 if stage > 0 and i == 0 else 1
                x = block(c.stem_width * 2**stage, stride, self.how, name=f"stage{stage + 1}_{i}")(x)
        tokens = x.reshape(len(x), -1, c.width)
        return TowerOutput(AttentionPool(c.heads, self.how, name="pool")(tokens), tokens, jnp.ones(tokens.shape[:2], bool))


class Bottleneck(nn.Module):
    """Three convolutions added to their input (He et al. 2016), [b, h, w, d] -> [b, h/stride, w/stride, 4 channels].

    A stride is an average over squares before the last convolution, and before the one of the shortcut (Zhang 2019).
    """

    channels: int
    stride: int
    how: Compute

    @nn.compact
    def __call__(self, x: Array) -> Array:
        conv = partial(ConvNorm, stride=1, how=self.how)
        y = nn.relu(conv(self.channels, 1, name="conv1")(x))
        y = nn.relu(conv(self.channels, 3, name="conv2")(y))
        y = conv(4 * self.channels, 1, name="conv3")(average(y, self.stride))
        if self.stride > 1 or x.shape[-1] != y.shape[-1]:
            x = conv(4 * self.channels, 1, name="shortcut")(average(x, self.stride))
        return nn.relu(x + y)


class ConvNorm(nn.Module):
    """A convolution without bias, then batch normalisation (Ioffe and Szegedy 2015) with means and variances that are given."""

    features: int
    size: int
    stride: int
    how: Compute

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (self.size, self.size, x.shape[-1], self.features)
        y = convolution(x, self.param("kernel", nn.initializers.he_normal(), shape), self.stride, self.size // 2, self.how)

        def of_channel(name: str, init: Any) -> Array:
            return self.param(name, init, (self.features,))[None, None, None]

        zeros, ones = nn.initializers.zeros, nn.initializers.ones
        mean, var = (jax.lax.stop_gradient(of_channel(*part)) for part in (("mean", zeros), ("var", ones)))
        factor = of_channel("scale", ones) * jax.lax.rsqrt(var + EPSILON)
        return ((y.astype(jnp.float32) - mean) * factor + of_channel("bias", zeros)).astype(self.how.dtype)


class AttentionPool(nn.Module):
    """Multi-head attention of the mean of the tokens to it and them (Radford et al. 2021, section 2.4): [b, l, d] -> [b, d].

    The affine map that follows the heads is the tower's projection.
    """

    heads: int
    how: Compute

    @nn.compact
    def __call__(self, tokens: Array) -> Array:
        b, length, width = tokens.shape
        init = nn.initializers.normal(width**-0.5)
        x = jnp.concatenate([tokens.mean(axis=1, keepdims=True), tokens], axis=1)
        x = x + broadcast(self.param("pos_embed", init, (length + 1, width)), (b,), self.how.dtype)
        project = partial(Dense, width, init, how=self.how)
        q, k, v = project(name="q")(x[:, :1]), project(name="k")(x), project(name="v")(x)
        return attend(*(y.reshape(b, -1, self.heads, width // self.heads) for y in (q, k, v))).reshape(b, width)


def average(x: Array, size: int) -> Array:
    """The mean of each square of `size`: [b, h, w, d] -> [b, h/size, w/size, d]; an odd row or column at the end is left out."""
    if size == 1:
        return x
    b, h, w, d = x.shape
    x = x[:, : h // size * size, : w // size * size]
    return x.reshape(b, h // size, size, w // size, size, d).mean(axis=(2, 4))
