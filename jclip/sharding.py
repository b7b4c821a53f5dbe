"""Where arrays live: the mesh, the shardings of parameters and batches, and host batches made global."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jax.sharding import Mesh as DeviceMesh

from jclip.config import Mesh
from jclip.tree import flatten, match_rules, unflatten

BATCH_AXES = ("data", "fsdp")
"""The batch is split over every device."""


def make_mesh(config: Mesh, devices: list[jax.Device] | None = None) -> DeviceMesh:
    """A mesh with axes "data" and "fsdp" over all devices."""
    devices = jax.devices() if devices is None else devices
    data = len(devices) // config.fsdp if config.data == -1 else config.data
    return jax.make_mesh((data, config.fsdp), BATCH_AXES, axis_types=(AxisType.Auto, AxisType.Auto), devices=devices)


def replicated(mesh: DeviceMesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: DeviceMesh) -> NamedSharding:
    """The leading axis split over every device."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def param_shardings(shapes: Mapping[str, Any], config: Mesh, mesh: DeviceMesh) -> dict[str, Any]:
    """The sharding of each parameter by rule; see `Mesh.rules`.

    Raises:
        ValueError: the rules leave a parameter uncovered.
    """
    flat, placements = flatten(shapes), flatten(match_rules(shapes, config.rules))
    return unflatten({path: NamedSharding(mesh, _spec(leaf.shape, placements[path], mesh)) for path, leaf in flat.items()})


def _spec(shape: tuple[int, ...], placement: str, mesh: DeviceMesh) -> PartitionSpec:
    size = mesh.shape["fsdp"]
    divisible = [axis for axis, length in enumerate(shape) if length % size == 0]
    if placement == "replicate" or size == 1 or not divisible:
        return PartitionSpec()
    largest = max(divisible, key=lambda axis: shape[axis])
    return PartitionSpec(*(None,) * largest, "fsdp")


def to_global(batch: Mapping[str, np.ndarray], mesh: DeviceMesh) -> dict[str, jax.Array]:
    """The rows of this host -> global arrays whose rows are those of all hosts in order, split over every device."""
    sharding = batch_sharding(mesh)
    return {name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()}


def gather_rows(rows: np.ndarray) -> np.ndarray:
    """The rows of all hosts, in the order of `to_global`, of as many rows of each."""
    return np.asarray(multihost_utils.process_allgather(rows, tiled=True))
