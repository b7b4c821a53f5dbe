"""The model: any number of named towers, a projection each, one logit scale."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from jclip.config import Model, TextTower, Tower, VisionTower
from jclip.models.layers import Dense
from jclip.models.output import TowerOutput
from jclip.models.text import TextTransformer
from jclip.models.vit import VisionTransformer

TOWERS: dict[type, Any] = {VisionTower: VisionTransformer, TextTower: TextTransformer}


class Encoded(NamedTuple):
    """A tower's output and its embedding.

    Attributes:
        z: f32 [b, E] unit vectors.
        output: what the tower returned.
    """

    z: Array
    output: TowerOutput


class MultiTower(nn.Module):
    """Towers of any modality that map into one embedding space."""

    config: Model

    @nn.compact
    def __call__(self, batch: Mapping[str, Any], *, train: bool = False) -> dict[str, Encoded]:
        """Encodes the towers that the batch has inputs for.

        Args:
            batch: inputs by tower name, an array each, or for a text tower the tuple (input embeddings, eot); with `init`, of
                every tower.
            train: whether patch dropout is on; it draws from the key "patches".
        """
        c = self.config
        dtype = jnp.dtype(c.dtype)
        self.param("logit_scale", nn.initializers.constant(math.log(c.logit_scale)), ())
        encoded = {}
        for name in sorted(batch):
            tower = TOWERS[type(c.towers[name])](c.towers[name], dtype, c.scan, c.remat, name=name)
            inputs = batch[name] if isinstance(batch[name], tuple) else (batch[name],)
            output = tower(*inputs, train=train)
            width = output.pooled.shape[-1]
            project = Dense(
                c.embed_dim, nn.initializers.normal(width**-0.5), use_bias=False, dtype=dtype, name=f"{name}_projection"
            )
            encoded[name] = Encoded(unit(project(output.pooled)), output)
        return encoded


def unit(x: Array) -> Array:
    """x / max(|x|, 1e-12) along the last axis, in float32."""
    x = x.astype(jnp.float32)
    norm = jnp.sqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), 1e-24))
    return x / norm


def example_inputs(config: Model, batch_size: int) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and dtype of each tower's input, by tower name."""

    def one(tower: Tower) -> tuple[tuple[int, ...], str]:
        if isinstance(tower, VisionTower):
            return (batch_size, tower.image_size, tower.image_size, 3), "uint8"
        return (batch_size, tower.context_length), "int32"

    return {name: one(tower) for name, tower in config.towers.items()}
