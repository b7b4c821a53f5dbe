"""The vision transformer: images to TowerOutput."""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jclip.config import SensorTower, SpectrogramTower, Tower, VisionTower
from jclip.models.compute import Compute
from jclip.models.layers import ACTIVATIONS, AttentionalPool, Dense, Hidden, LayerNorm, hide, uniform_of_rows
from jclip.models.output import TowerOutput
from jclip.models.pixels import as_pixels
from jclip.models.products import broadcast, convolution
from jclip.models.transformer import Transformer

PatchTower = VisionTower | SpectrogramTower | SensorTower
"""Towers whose tokens are patches."""


class VisionTransformer(Transformer):
    """A ViT (Dosovitskiy et al. 2021) with the options of `VisionTower`."""

    config: Any
    """A VisionTower."""

    @nn.compact
    def __call__(
        self, images: Array, *, rows: Array | None = None, normalised: bool = False, hidden: Hidden | None = None
    ) -> TowerOutput:
        """Encodes images.

        Args:
            images: u8 [b, H, W, 3], or floats that are normalised already, if `normalised`. In training they may have another
                size than the tower's, to which the positions are then resized.
            rows: in training, the index of each image in the global batch, for dropout.
            normalised: whether they are.
            hidden: the patches that are hidden, bool [b, l], and what stands for their embeddings, f32 [b, width]. Then no patch
                is dropped.
        """
        c, dtype = self.config, self.how.dtype
        if rows is not None:
            c = dataclasses.replace(c, image_size=(images.shape[1], images.shape[2]))
        x = as_pixels(images, c.size, c.preprocess, normalised).astype(dtype)
        for i, channels in enumerate(c.stem, 1):
            x = StemConv(channels, c.activation, self.how, name=f"stem{i}")(x)
        x = patchify(x, c.patch_size // 2 ** len(c.stem))
        x = Dense(c.width, nn.initializers.lecun_normal(), c.patch_bias, self.how, name="patch_embed")(x)
        return self.encode(x, c, rows, hidden)

    def encode(self, x: Array, c: Any, rows: Array | None, hidden: Hidden | None) -> TowerOutput:
        """The output of embeddings of patches [b, l, width], to which positions are added; `c` says their grid."""
        dtype = self.how.dtype
        x = hide(x, hidden)
        cls, positions = self._cls_and_positions(c.grid)
        x = x + broadcast(positions, x.shape[:1], dtype)
        if rows is not None and c.patch_dropout > 0 and hidden is None:
            x = drop_patches(self.make_rng("dropout"), rows, x, kept_patches(c))
        if cls is not None:
            x = jnp.concatenate([broadcast(cls, (x.shape[0], 1), dtype), x], axis=1)
        if c.pre_norm:
            x = LayerNorm(c.norm_eps, self.how, name="norm_pre")(x)
        x, first = self.run_blocks(x, None, rows, causal=False, at=0 if c.pool == "cls" else None)
        norm = LayerNorm(c.norm_eps, self.how, name="norm")
        if c.pool == "queries":
            x = AttentionalPool(c.queries, c.pooled_width, c.query_heads, c.norm_eps, self.how, name="pool")(x)
        tokens = norm(x)
        if c.pool == "queries":
            pooled, tokens = tokens[:, 0], tokens[:, 1:]
        elif first is not None:
            pooled = norm(first)
        elif c.norm_after_pool:
            pooled = norm(self._pool(x))
        else:
            pooled = self._pool(tokens)
        return TowerOutput(pooled, tokens, jnp.ones(tokens.shape[:2], bool))

    def _pool(self, tokens: Array) -> Array:
        if self.config.pool == "map":
            return self.map_pool(tokens, None)
        return tokens[:, 1 if self.config.class_token else 0 :].mean(axis=1)

    def _cls_and_positions(self, grid: tuple[int, int]) -> tuple[Array | None, Array]:
        """The class token with its position, [width] or None without one, and the positions [l, width] of a grid's patches."""
        c = self.config
        extra = class_tokens(c)
        if c.positions == "learned":
            positions = self.param("pos_embed", nn.initializers.normal(c.width**-0.5), (extra + math.prod(c.grid), c.width))
        else:
            positions = jnp.concatenate([jnp.zeros((extra, c.width)), sincos_positions(c.grid[0], c.grid[1], c.width)])
        places = resized(positions[extra:], c.grid, grid)
        if not extra:
            return None, places
        return self.param("cls", nn.initializers.normal(c.width**-0.5), (c.width,)) + positions[0], places


class StemConv(nn.Module):
    """A convolution of 4 x 4 with stride 2, and the activation: [b, h, w, c] -> [b, h/2, w/2, features]."""

    features: int
    activation: str
    how: Compute

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel = self.param("kernel", nn.initializers.he_normal(), (4, 4, x.shape[-1], self.features))
        y = convolution(x, kernel, 2, 1, self.how)
        y = y + broadcast(self.param("bias", nn.initializers.zeros, (self.features,)), y.shape[:-1], y.dtype)
        return self.how.backend.recomputed(ACTIVATIONS[self.activation])(y)  # kept is nothing, as in Mlp


def resized(positions: Array, old: tuple[int, int], new: tuple[int, int]) -> Array:
    """Positions [l, width] of a grid as those of another one, bicubic; as they are where it is the same."""
    if old == new:
        return positions
    width = positions.shape[1]
    return jax.image.resize(positions.reshape(*old, width), (*new, width), "bicubic").reshape(-1, width)


def class_tokens(config: PatchTower) -> int:
    """Number of tokens before those of the patches: 1 or 0."""
    return int(config.class_token or config.pool == "cls")


def first_patch(tower: Tower) -> int:
    """The place, in a tower's output, of the first token of a patch, word or query: behind a class token."""
    if isinstance(tower, VisionTower):
        return class_tokens(tower) if tower.pool != "queries" else 0
    return class_tokens(tower) if isinstance(tower, PatchTower) else 0


def patchify(images: Array, patch_size: int) -> Array:
    """[b, H, W, C] -> [b, (H/p)(W/p), p*p*C], patches and pixels in row-major order; what fills no patch is left out."""
    b, height, width, channels = images.shape
    rows, columns = height // patch_size, width // patch_size
    x = images[:, : rows * patch_size, : columns * patch_size].reshape(b, rows, patch_size, columns, patch_size, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, rows * columns, patch_size * patch_size * channels)


def kept_patches(config: PatchTower) -> int:
    """Number of patches that training keeps: the fraction rounded down, at least 1."""
    return max(1, int(math.prod(config.grid) * (1 - config.patch_dropout)))


def drop_patches(key: Array, rows: Array, x: Array, kept: int) -> Array:
    """A random subset of `kept` patches of each example (Li et al. 2023): [b, l, d] -> [b, kept, d]."""
    order = jnp.argsort(uniform_of_rows(key, rows, x.shape[1:2]), axis=1)[:, :kept]
    return jnp.take_along_axis(x, order[:, :, None], axis=1)


def sincos_positions(rows: int, columns: int, width: int) -> Array:
    """Fixed 2-D position embedding f32 [rows * columns, width] (MoCo v3): sines and cosines of column, then of row."""
    frequencies = 1.0 / 10000 ** np.linspace(0, 1, width // 4)
    row, column = np.mgrid[:rows, :columns]
    angles = [position.reshape(-1, 1) * frequencies for position in (column, row)]
    return jnp.asarray(np.concatenate([f(a) for a in angles for f in (np.sin, np.cos)], axis=1), jnp.float32)
