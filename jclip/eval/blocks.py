"""Matrices too large to be held whole, such as all scores of queries and candidates: in blocks of rows, on all local devices."""

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from rich.console import Console
from rich.progress import track

SCORES = 2**25
"""Numbers that a device holds of the matrix at a time: 128 MiB of f32."""

_ROWS = 1024  # more are no faster
_PATIENCE = 2.0  # seconds before a progress bar appears

Function = Callable[..., tuple[jax.Array, ...]]
"""(rows [b, ...], ..., shared arrays, ...) -> arrays [b, ...]; known by identity, so define it at the top of a module."""


def rows_at_a_time(n: int, columns: int) -> int:
    """Rows of a matrix [n, columns] that one device computes at a time. The same on any number of devices; see `map_rows`."""
    return min(n, _ROWS, max(1, SCORES // max(1, columns)))


def map_rows(
    function: Function,
    rows: Callable[[np.ndarray], tuple[np.ndarray, ...]],
    n: int,
    shared: Sequence[np.ndarray],
    *,
    block: int,
    devices: Sequence[jax.Device] | None = None,
    progress: str | None = None,
    **static: Any,
) -> tuple[np.ndarray, ...]:
    """The results of `function` for n >= 1 rows, computed `block` rows a device at a time.

    Every device runs the same program on arrays of the same shape, however many there are: a row's result does not depend on the
    number of devices, down to the last bit.

    Args:
        function: what is computed of a block; jitted with `static` as its keyword arguments.
        rows: (indices [b] of rows) -> the arrays [b, ...] that belong to them. Asked for whole blocks: the last wraps around.
        n: number of rows.
        shared: arrays that every device has whole.
        block: rows a device at a time.
        devices: where to compute; by default on every device of this process.
        progress: what a bar on stderr is called, which appears when the work lasts; None: no bar.
        **static: hashable.
    """
    devices = tuple(jax.local_devices() if devices is None else devices)
    mesh = jax.make_mesh((len(devices),), ("rows",), axis_types=(AxisType.Auto,), devices=devices)
    split, whole = NamedSharding(mesh, PartitionSpec("rows")), NamedSharding(mesh, PartitionSpec())
    everywhere = tuple(jax.device_put(array, whole) for array in shared)
    step = block * len(devices)
    parts: list[tuple[np.ndarray, ...]] = []
    for start in _lasting(range(0, n, step), progress):
        own = tuple(jax.device_put(array, split) for array in rows(np.arange(start, start + step) % n))
        compiled = _compiled(function, mesh, len(own), len(everywhere), tuple(sorted(static.items())))
        parts.append(tuple(np.asarray(result)[: n - start] for result in compiled(*own, *everywhere)))
    return tuple(np.concatenate(column) for column in zip(*parts, strict=True))


@functools.lru_cache(maxsize=64)
def _compiled(function: Function, mesh: jax.sharding.Mesh, rows: int, shared: int, static: tuple[tuple[str, Any], ...]) -> Any:
    split, whole = PartitionSpec("rows"), PartitionSpec()
    specs = (split,) * rows + (whole,) * shared
    return jax.jit(jax.shard_map(functools.partial(function, **dict(static)), mesh=mesh, in_specs=specs, out_specs=split))


def _lasting(starts: range, progress: str | None) -> Iterator[int]:
    """`starts`, beside a bar from the moment on when they have taken a while."""
    began = time.monotonic()
    for i, start in enumerate(starts):
        if progress is not None and time.monotonic() - began > _PATIENCE:
            yield from track(starts[i:], progress, console=Console(emoji=False, stderr=True))
            return
        yield start
