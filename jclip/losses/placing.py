"""Places of a loss's arrays on a mesh of explicit axes, as `jax.make_mesh` makes it; on others XLA moves them by itself."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


def split_rows(tree: Any, mesh: Mesh | None, axes: tuple[str, ...]) -> Any:
    """Arrays [B, ...] with B split over these axes."""
    return _placed(tree, mesh, PartitionSpec(axes))


def whole(tree: Any, mesh: Mesh | None) -> Any:
    """Arrays that every device has whole."""
    return _placed(tree, mesh, PartitionSpec())


def _placed(tree: Any, mesh: Mesh | None, spec: PartitionSpec) -> Any:
    if mesh is None or AxisType.Explicit not in mesh.axis_types:
        return tree
    return jax.tree.map(lambda x: jax.sharding.reshard(jnp.asarray(x), NamedSharding(mesh, spec)), tree)
