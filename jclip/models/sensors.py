"""The transformer over patches of what a sensor measures: maps of depth and heat, and motion over time, to TowerOutput."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from jclip.config import ImuTower, PlaneTower, SensorTower
from jclip.models.layers import Block, Dense, Hidden, LayerNorm
from jclip.models.output import TowerOutput
from jclip.models.vit import VisionTransformer, patchify

PATCH_NORM_EPS = 1e-5


class SensorTransformer(VisionTransformer):
    """A ViT with the options of `SensorTower`."""

    config: Any
    """A SensorTower."""

    @nn.compact
    def __call__(self, values: Array, *, rows: Array | None = None, hidden: Hidden | None = None) -> TowerOutput:
        """Encodes what a sensor has measured.

        Args:
            values: f32 [b, H, W, 1] of a `PlaneTower`, as `input` says; or [b, channels, samples] of an `ImuTower`.
            rows: in training, the index of each example in the global batch, for dropout.
            hidden: as in `VisionTransformer`.

        Raises:
            ValueError: they have another shape.
        """
        c = self.config
        if values.shape[1:] != c.input()[0]:
            raise ValueError(f"{self.name}: shape {values.shape} is not [b, {', '.join(map(str, c.input()[0]))}]")
        return self.encode_patches(patches_of(values.astype(jnp.float32), c).astype(self.how.dtype), rows, hidden)

    def encode_patches(self, patches: Array, rows: Array | None, hidden: Hidden | None) -> TowerOutput:
        """The output of patches [b, l, values of a patch]."""
        c = self.config
        x = Dense(c.width, nn.initializers.lecun_normal(), c.patch_bias, self.how, name="patch_embed")(patches)
        if c.patch_norm:
            x = LayerNorm(PATCH_NORM_EPS, self.how, name="patch_norm")(x)
        return self.encode(x, c, rows, hidden)

    def block(self, causal: bool) -> Block:
        """One of the stack, without parameters."""
        return super().block(causal).clone(extra_key=self.config.extra_key)


def patches_of(values: Array, tower: SensorTower) -> Array:
    """[b, l, values of a patch]: pixels of a square in row-major order, or of each channel its measurements."""
    if isinstance(tower, PlaneTower):
        return patchify((values - tower.mean) / tower.std, tower.patch_size)
    assert isinstance(tower, ImuTower)
    b, channels, samples = values.shape
    x = values.reshape(b, channels, samples // tower.patch_size, tower.patch_size)
    return x.swapaxes(1, 2).reshape(b, -1, tower.patch_values)
