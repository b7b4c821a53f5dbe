"""Places of arrays: the mesh, the shardings of parameters and batches, and host batches made global."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jax.tree_util import DictKey, tree_map_with_path

from jclip.config import MeshConfig
from jclip.tree import flatten, match_rule, unflatten

BATCH_AXES = ("data", "fsdp")
"""The batch is split over every device."""


def make_mesh(config: MeshConfig, devices: list[jax.Device] | None = None) -> Mesh:
    """A mesh with axes "data" and "fsdp" over all devices."""
    devices = jax.devices() if devices is None else devices
    data = len(devices) // config.fsdp if config.data == -1 else config.data
    return jax.make_mesh((data, config.fsdp), BATCH_AXES, axis_types=(AxisType.Auto, AxisType.Auto), devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading axis split over every device."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def param_shardings(shapes: Mapping[str, Any], config: MeshConfig, mesh: Mesh) -> dict[str, Any]:
    """The sharding of each parameter by rule; see `MeshConfig.rules`.

    Raises:
        ConfigError: the rules leave a parameter uncovered.
    """
    return unflatten({path: _sharding(path, leaf, config, mesh) for path, leaf in flatten(shapes).items()})


def extra_shardings(extra: Mapping[str, Any], params: Mapping[str, Any], config: MeshConfig, mesh: Mesh) -> dict[str, Any]:
    """The sharding of the state beside the parameters: an array whose path, without its first part, is that of a parameter has
    the sharding of that parameter.

    Raises:
        ConfigError: the rules leave an array uncovered.
    """
    known = flatten(params)

    def one(path: str, leaf: Any) -> NamedSharding:
        below = path.partition("/")[2]
        return _sharding(below if below in known else path, leaf, config, mesh)

    return unflatten({path: one(path, leaf) for path, leaf in flatten(extra).items()})


def moment_shardings(opt_state: Any, params: Mapping[str, Any], config: MeshConfig, mesh: Mesh) -> Any:
    """The sharding of the optimizer's state: a moment has that of the parameter whose path ends its own, what is factored of a
    parameter is sharded by the same rule, and all else is on every device."""
    known = flatten(params)

    def one(keys: tuple[Any, ...], leaf: Any) -> NamedSharding:
        names = [str(key.key) if isinstance(key, DictKey) else "" for key in keys]
        path = next((path for i in range(len(names)) if (path := "/".join(names[i:])) in known), None)
        return replicated(mesh) if path is None else _sharding(path, leaf, config, mesh)

    return tree_map_with_path(one, opt_state)


def _sharding(path: str, leaf: Any, config: MeshConfig, mesh: Mesh) -> NamedSharding:
    """The sharding of an array of this path: whole on every device, or its largest axis that they divide over "fsdp"."""
    size, first = mesh.shape["fsdp"], 1 if "/blocks/" in path else 0  # the axis of the layers stays whole: each has its share
    divisible = [axis for axis in range(first, len(leaf.shape)) if leaf.shape[axis] % size == 0]
    if match_rule(path, config.rules) == "replicate" or size == 1 or not divisible:
        return replicated(mesh)
    largest = max(divisible, key=lambda axis: int(leaf.shape[axis]))
    return NamedSharding(mesh, PartitionSpec(*(None,) * largest, "fsdp"))


Gather = Callable[[str, dict[str, Any], Any, Any], dict[str, Any]]


def make_gather(shapes: Mapping[str, Any], config: MeshConfig, mesh: Mesh) -> Gather | None:
    """(path of a stack of layers, parameters of one of them, dtype, reduce) -> the same, whole on every device; used inside jit.

    They travel in the type `dtype`, in which they are used, biases and scales as they are. Their gradients are summed over the
    devices in the type `reduce`, or `dtype` where that is wider, and come back sharded like the parameters. None where every
    device has all parameters anyway.
    """
    if mesh.shape["fsdp"] == 1:
        return None
    shardings = flatten(param_shardings(shapes, config, mesh))

    def gather(stack: str, params: dict[str, Any], dtype: Any, reduce: Any) -> dict[str, Any]:
        found = {}
        for path, leaf in flatten(params).items():
            share = NamedSharding(mesh, PartitionSpec(*shardings[f"{stack}/{path}"].spec[1:]))
            types = (dtype, reduce) if leaf.ndim > 1 else 2 * (leaf.dtype,)
            found[path] = _gathered(leaf, replicated(mesh), share, *types)
        return unflatten(found)

    return gather


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4))
def _gathered(x: jax.Array, whole: NamedSharding, share: NamedSharding, dtype: Any, reduce: Any) -> jax.Array:
    """x f32 -> x whole on every device: rounded to `dtype` before it travels, half of the bytes of f32, and cast to the wider of
    `dtype` and `reduce` after, so that its gradient is summed over the devices in that type. Where the caller casts back to
    `dtype`, XLA takes both casts out."""
    x = jax.lax.with_sharding_constraint(x.astype(dtype), whole)
    return x.astype(jnp.promote_types(dtype, reduce))


_gathered.defvjp(
    lambda x, *how: (_gathered(x, *how), None),
    lambda whole, share, dtype, reduce, _, dx: (jax.lax.with_sharding_constraint(dx, share).astype(jnp.float32),),
)


def split_rows(tree: Any, parts: int, mesh: Mesh) -> Any:
    """Arrays [B, ...] -> [parts, B / parts, ...]; each part has as many rows of every device, and nothing moves between them."""
    sharding = NamedSharding(mesh, PartitionSpec(None, BATCH_AXES))

    def split(x: jax.Array) -> jax.Array:
        x = x.reshape(mesh.size, parts, -1, *x.shape[1:]).swapaxes(0, 1)
        return jax.lax.with_sharding_constraint(x.reshape(parts, -1, *x.shape[3:]), sharding)

    return jax.tree.map(split, tree)


def join_rows(tree: Any, mesh: Mesh) -> Any:
    """The inverse of `split_rows`."""

    def join(x: jax.Array) -> jax.Array:
        x = x.reshape(len(x), mesh.size, -1, *x.shape[2:]).swapaxes(0, 1)
        return jax.lax.with_sharding_constraint(x.reshape(-1, *x.shape[3:]), batch_sharding(mesh))

    return jax.tree.map(join, tree)


def to_global(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """The rows of this host -> global arrays with the rows of all hosts, each on its own devices; see `by_host`."""
    sharding = batch_sharding(mesh)
    return {name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()}


def gather_rows(rows: np.ndarray) -> np.ndarray:
    """The rows of all hosts, host by host, of as many rows of each."""
    return np.asarray(multihost_utils.process_allgather(rows, tiled=True))


def by_host(rows: np.ndarray, mesh: Mesh) -> np.ndarray:
    """The rows of a global array, host by host. A mesh need not be so: it follows the wires between a TPU slice's devices."""
    owners = [device.process_index for device in mesh.devices.flat]
    chunks = rows.reshape(len(owners), -1, *rows.shape[1:])
    return chunks[np.argsort(owners, kind="stable")].reshape(rows.shape)
