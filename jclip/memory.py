"""Memory of a device that a program holds, counted from shapes and shardings before anything is allocated."""

import math
import os
from collections.abc import Mapping
from typing import Any

import jax

from jclip.config import ConfigError

GIB = 2**30


def share(tree: Any) -> int:
    """Bytes that one device holds of a tree of shapes, dtypes and shardings."""
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)


def device_memory(device: jax.Device) -> int | None:
    """Bytes of a device's memory: on a CPU this device's part of the machine's; None where the device does not say."""
    if device.platform == "cpu":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // jax.local_device_count()
    stats = device.memory_stats() or {}
    return stats.get("bytes_limit")


def size_text(size: float) -> str:
    """Bytes in the largest unit of which there is one, such as "1.50 MiB"."""
    unit, name = next(
        ((unit, name) for unit, name in ((GIB, "GiB"), (2**20, "MiB"), (2**10, "KiB")) if size >= unit), (1, "bytes")
    )
    return f"{size / unit:,.2f} {name}" if unit > 1 else f"{size:,.0f} {name}"


def require_memory(parts: Mapping[str, Any], memory: int | None) -> None:
    """Raises ConfigError where the parts of a program, such as its parameters, do not fit a device together.

    Args:
        parts: trees of shapes, dtypes and shardings, by what they are called.
        memory: bytes of a device; None: not known, so all fits.
    """
    sizes = {name: share(tree) for name, tree in parts.items()}
    need = sum(sizes.values())
    if memory is not None and need > memory:
        what = ", ".join(f"{name} {size_text(size)}" for name, size in sizes.items())
        raise ConfigError(
            f"config: a device would hold {size_text(need)} ({what}) and has {size_text(memory)}, activations not counted; use a "
            "smaller model or batch_size, or more devices and mesh.fsdp"
        )
