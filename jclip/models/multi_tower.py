"""The model: any number of named towers, with a projection each."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from jclip.config import Groups, ImageTower, Model, TokenTower, Tower
from jclip.models.buckets import in_buckets
from jclip.models.compute import Backend, Compute, Params, Taps
from jclip.models.heads import make_projection
from jclip.models.layers import Hidden
from jclip.models.output import TowerOutput
from jclip.models.towers import kind_of


class Encoded(NamedTuple):
    """A tower's output and its embedding.

    Attributes:
        z: f32 [b, E] unit vectors.
        output: what the tower returned.
    """

    z: Array
    output: TowerOutput


class Masked(NamedTuple):
    """An input of a tower of which some tokens are hidden from it.

    Attributes:
        input: images u8 [b, H, W, 3], or ids i32 [b, L].
        hidden: bool [b, l], the patches or the words that `token` stands for.
        token: f32 [b, width], in place of their embeddings, to which positions are added.
    """

    input: Array
    hidden: Array
    token: Array


class MultiTower(nn.Module):
    """Towers of any modality that map into one embedding space."""

    config: Model
    gather: Callable[[str, Params, Any, Any], Params] | None = None
    """See Compute; with the path of the stack of blocks."""
    backend: Backend = Backend()
    """The device that the program is compiled for."""
    views: Mapping[str, str] | None = None
    """Towers of inputs that do not bear their tower's name."""
    buckets: Mapping[str, Groups] | None = None
    """Groups in which text towers see a batch, all of whose token ids fit into them; see `buckets`."""
    taps: Taps | None = None
    """Blocks of the towers whose outputs are asked for; see Compute."""

    @nn.compact
    def __call__(self, batch: Mapping[str, Any], *, rows: Array | None = None, normalised: bool = False) -> dict[str, Encoded]:
        """Encodes the views that the batch has, those of one tower in one call of it, as far as their shapes are the same.

        Args:
            batch: inputs by view, an array each, a Masked, or for a text tower the tuple (input embeddings, eot); with `init`, of
                every tower.
            rows: in training, the index i32 [b] of each example in the global batch. Dropout is a function of it, of the view and
                of the key "dropout", so that an example loses the same whatever the devices and the parts of the batch.
            normalised: whether images are floats that are normalised already, instead of u8.

        Returns:
            The encoded views by name.
        """
        encoded: dict[str, Encoded] = {}
        by_tower: dict[str, list[str]] = {}
        for view in sorted(batch):
            by_tower.setdefault((self.views or {}).get(view, view), []).append(view)
        for tower, views in sorted(by_tower.items()):
            encode = self._tower(tower, normalised)
            # In buckets each view has an order of lengths of its own.
            for alike in [[view] for view in views] if tower in (self.buckets or {}) else _of_one_shape(views, batch):
                stacked = jax.tree.map(lambda *inputs: together(inputs), *(batch[view] for view in alike))
                index = None if rows is None else together([rows * len(views) + views.index(view) for view in alike])
                encoded |= dict(zip(alike, apart(encode(stacked, index), len(alike)), strict=True))
        return encoded

    def _tower(self, name: str, normalised: bool) -> Callable[[Any, Array | None], Encoded]:
        """A tower with its projection: (an input as `__call__` takes it, rows) -> Encoded."""
        c = self.config
        gather = None if self.gather is None else partial(self.gather, f"{name}/blocks")
        how = Compute(jnp.dtype(c.dtype), c.scan, c.remat, gather, self.backend, jnp.dtype(c.reduce_dtype), self.taps)
        config, groups = c.towers[name], (self.buckets or {}).get(name, ())
        tower = kind_of(config).module(config, how, name=name)
        project = self._projection(name)
        pixels = {"normalised": True} if isinstance(config, ImageTower) and normalised else {}

        def see(inputs: tuple[Array, ...], rows: Array | None, hidden: Hidden | None) -> TowerOutput:
            more: dict[str, Any] = {} if hidden is None else {"hidden": hidden}
            if groups:
                more["cut"] = True
            output: TowerOutput = tower(*inputs, rows=rows, **more, **pixels)
            return output

        def encode(inputs: Any, rows: Array | None) -> Encoded:
            hidden = None
            if isinstance(inputs, Masked):
                inputs, hidden = inputs.input, (inputs.hidden, inputs.token)
            if not isinstance(inputs, tuple):
                inputs = (inputs,)
            if groups and isinstance(config, TokenTower) and len(inputs) == 1:
                output = in_buckets(see, inputs[0], rows, hidden, groups=groups, tower=config, backend=self.backend)
            else:
                output = see(inputs, rows, hidden)
            return Encoded(unit(project(output.pooled)), output)

        return encode

    def _projection(self, name: str) -> Callable[[Array], Array]:
        """Projection to the shared space: [b, d] -> [b, E]."""
        c = self.config
        tower = c.towers[name]
        if tower.projection == "none":
            return lambda pooled: pooled
        how = Compute(jnp.dtype(c.dtype), backend=self.backend, reduce=jnp.dtype(c.reduce_dtype))
        return make_projection(tower, c.embed_dim, how, f"{name}_projection")


def _of_one_shape(views: Sequence[str], batch: Mapping[str, Any]) -> list[list[str]]:
    """The views in groups whose inputs have the same structure and shapes."""
    groups: dict[Any, list[str]] = {}
    for view in views:
        leaves, structure = jax.tree.flatten(batch[view])
        groups.setdefault((structure, *(leaf.shape for leaf in leaves)), []).append(view)
    return list(groups.values())


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
    return {name: example_input(tower, batch_size) for name, tower in config.towers.items()}


def example_input(tower: Tower, batch_size: int) -> tuple[tuple[int, ...], str]:
    """Shape and dtype of a tower's input."""
    shape, dtype = tower.input()
    return (batch_size, *shape), dtype
