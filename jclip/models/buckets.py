"""Text buckets: a tower sees the shorter texts of a batch without most of their padding, in programs of fixed shapes.

The rows of each device are sorted by length and cut into groups of fixed sizes, such as half of them up to 16 tokens and the rest
up to all 77: what a text tower says of a text does not depend on padding, so loss and gradients stay the same. A batch that does
not fit, because too many of its texts are long, is seen padded as ever, by the same program.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh

from jclip.config import Config, Groups, TokenTower, groups_of
from jclip.models.compute import Backend
from jclip.models.layers import Hidden
from jclip.models.output import TowerOutput
from jclip.models.text import end_of_text


def group_sizes(groups: Groups, rows: int, longest: int) -> list[tuple[int, int]]:
    """(rows, tokens) of each group of so many rows of a device."""
    sizes = [(int(share * rows + 1e-6), tokens) for tokens, share in groups]  # 0.29 of 100 is 28.999...
    return [*sizes, (rows - sum(count for count, _ in sizes), longest)]


def bucketed_views(config: Config) -> dict[str, list[str]]:
    """Inputs of each text tower with buckets, of which it sees each, or what an objective has made of it on the device."""
    made = {view: source for name, how in config.objectives.items() for view, source in how.makes(name).items()}
    seen, inputs = {made.get(view, view) for view in config.encoded_views()}, config.inputs()
    views = {
        tower: [name for name in inputs if name in seen and inputs[name].tower == tower] for tower in groups_of(config.buckets)
    }
    return {tower: names for tower, names in views.items() if names}


def fits_buckets(config: Config, batch: Mapping[str, Array], mesh: Mesh) -> Array:
    """True where every part of a global batch fits into the buckets on every device: bool []."""
    fits = jnp.ones((), bool)
    for tower, views in bucketed_views(config).items():
        how, groups = config.model.towers[tower], groups_of(config.buckets)[tower]
        assert isinstance(how, TokenTower)
        for view in views:
            lengths = end_of_text(batch[view], how) + 1
            rows = lengths.reshape(mesh.size, config.accumulate, -1)  # as split_rows cuts them
            rows, end = jnp.sort(rows, axis=2), 0
            for count, tokens in group_sizes(groups, rows.shape[2], how.context_length)[:-1]:
                end += count
                if end:
                    fits &= (rows[:, :, end - 1] <= tokens).all()
    return fits


def in_buckets(
    encode: Callable[[tuple[Array, ...], Array | None, Hidden | None], TowerOutput],
    ids: Array,
    rows: Array | None,
    hidden: Hidden | None,
    *,
    groups: Groups,
    tower: TokenTower,
    backend: Backend,
) -> TowerOutput:
    """A text tower's output, computed in groups; that of `encode` at once, to rounding, where each fits.

    Args:
        encode: the tower: ((ids i32 [b, l],), rows, hidden) -> its output for l tokens.
        ids: i32 [b, L].
        rows: index of each row in the global batch, or None.
        hidden: as `TextTransformer` takes it, or None.
        groups: see `config.Groups`.
        tower: its configuration.
        backend: whose mesh says which rows lie on one device.
    """
    devices = 1 if backend.mesh is None else backend.mesh.size
    sizes = [size for size in group_sizes(groups, len(ids) // devices, tower.context_length) if size[0]]

    def split(ids: Array, rest: Any) -> tuple[Array, list[tuple[Array, Any]]]:
        order, start, found = jnp.argsort(end_of_text(ids, tower)), 0, []
        for count, tokens in sizes:
            here = order[start : start + count]
            found.append((ids[here, :tokens], jax.tree.map(lambda x, here=here: x[here], rest)))
            start += count
        return jnp.argsort(order), found

    def join(places: Array, outputs: Sequence[TowerOutput]) -> TowerOutput:
        return jax.tree.map(lambda *parts: jnp.concatenate(parts)[places], *outputs)

    places, found = backend.by_rows(split)(ids, (rows, hidden))
    outputs = []
    for (_, tokens), (part, (index, hide)) in zip(sizes, found, strict=True):
        if hide is not None:
            hide = (hide[0][:, :tokens], hide[1])
        output = encode((part,), index, hide)
        missing = ((0, 0), (0, tower.context_length - tokens))
        padded = jnp.pad(output.tokens, (*missing, (0, 0)))  # what stands there nobody reads
        outputs.append(TowerOutput(output.pooled, padded, jnp.pad(output.mask, missing)))
    return backend.by_rows(join)(places, outputs)
