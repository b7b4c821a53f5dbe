"""The model: any number of named towers, with a projection each."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from jclip.config import Model, ResNetTower, TextTower, Tower, VisionTower
from jclip.models.compute import Backend, Compute, Params
from jclip.models.layers import Dense
from jclip.models.output import TowerOutput
from jclip.models.resnet import ModifiedResNet
from jclip.models.text import TextTransformer
from jclip.models.vit import VisionTransformer

TOWERS: dict[type, Any] = {VisionTower: VisionTransformer, ResNetTower: ModifiedResNet, TextTower: TextTransformer}


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
    gather: Callable[[str, Params], Params] | None = None
    """As in Compute, with the path of the stack of blocks."""
    backend: Backend = Backend()
    """The device that the program is compiled for."""
    views: Mapping[str, str] | None = None
    """Towers of inputs that do not bear their tower's name."""

    @nn.compact
    def __call__(self, batch: Mapping[str, Any], *, rows: Array | None = None, normalised: bool = False) -> dict[str, Encoded]:
        """Encodes the views that the batch has, those of one tower in one call of it.

        Args:
            batch: inputs by view, an array each, or for a text tower the tuple (input embeddings, eot); with `init`, of every
                tower.
            rows: in training, the index i32 [b] of each example in the global batch. Dropout is a function of it, of the view and
                of the key "dropout", so that an example loses the same whatever the devices and the parts of the batch.
            normalised: whether images are floats that are normalised already, instead of u8.

        Returns:
            The encoded views by name.
        """
        of = self.views or {}
        by_tower: dict[str, list[str]] = {}
        for view in sorted(batch):
            by_tower.setdefault(of.get(view, view), []).append(view)
        encoded: dict[str, Encoded] = {}
        for tower, views in sorted(by_tower.items()):
            inputs = [batch[view] if isinstance(batch[view], tuple) else (batch[view],) for view in views]
            outputs = self._encode(tower, tuple(map(together, zip(*inputs, strict=True))), rows, len(views), normalised)
            encoded |= dict(zip(views, apart(outputs, len(views)), strict=True))
        return encoded

    def _encode(self, name: str, inputs: tuple[Array, ...], rows: Array | None, views: int, normalised: bool) -> Encoded:
        """Inputs [b * views, ...] of one tower; see `together`."""
        c = self.config
        gather = None if self.gather is None else partial(self.gather, f"{name}/blocks")
        how = Compute(jnp.dtype(c.dtype), c.scan, c.remat, gather, self.backend)
        tower = TOWERS[type(c.towers[name])](c.towers[name], how, name=name)
        pixels = {} if isinstance(c.towers[name], TextTower) or not normalised else {"normalised": True}
        if rows is not None:
            rows = together([rows * views + i for i in range(views)])
        output = tower(*inputs, rows=rows, **pixels)
        return Encoded(unit(self._project(name, output.pooled)), output)

    def _project(self, name: str, pooled: Array) -> Array:
        """To the shared space: [b, d] -> [b, E]."""
        c = self.config
        kind, init = c.towers[name].projection, nn.initializers.normal(pooled.shape[-1] ** -0.5)
        if kind == "none":
            return pooled
        how = Compute(jnp.dtype(c.dtype), backend=self.backend)
        return Dense(c.embed_dim, init, kind == "affine", how, name=f"{name}_projection")(pooled)


def together(views: Sequence[Array]) -> Array:
    """Views [b, ...] of the same examples as [b * views, ...], those of an example side by side: so they stay on its device."""
    return views[0] if len(views) == 1 else jnp.stack(views, axis=1).reshape(-1, *views[0].shape[1:])


def apart(tree: Any, views: int) -> list[Any]:
    """The inverse of `together`, of trees."""
    if views == 1:
        return [tree]
    return [jax.tree.map(lambda x, i=i: x.reshape(-1, views, *x.shape[1:])[:, i], tree) for i in range(views)]


def unit(x: Array) -> Array:
    """x / max(|x|, 1e-12) along the last axis, in float32."""
    x = x.astype(jnp.float32)
    norm = jnp.sqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), 1e-24))
    return x / norm


def example_inputs(config: Model, batch_size: int) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and dtype of each tower's input, by tower name."""

    def one(tower: Tower) -> tuple[tuple[int, ...], str]:
        if isinstance(tower, TextTower):
            return (batch_size, tower.context_length), "int32"
        return (batch_size, *tower.size, 3), "uint8"

    return {name: one(tower) for name, tower in config.towers.items()}
