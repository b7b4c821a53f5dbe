"""Near duplicates: the nearest row that comes before each, and the nearest among others, without a matrix of all cosines."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from jclip.eval.blocks import map_rows, rows_at_a_time

CANDIDATES = 2**16
"""Candidates that a device holds at a time: 256 MiB of 1,024 numbers each."""

ROUNDING = 1e-6
"""Allowance of `as_near`: products of f32 unit vectors are off by some 1e-7, so that a row has a cosine below 1 with itself."""


class Nearest(NamedTuple):
    """The nearest candidate of each of n rows, of equally near ones the first."""

    cosine: NDArray[np.float32]
    """f32[n]; -inf where there is none: no candidate comes before, or the row or all candidates are NaN."""
    row: NDArray[np.int64]
    """i64[n] of the candidate; -1 where there is none."""


def nearest_before(
    z: np.ndarray,
    *,
    candidates: int = CANDIDATES,
    block: int | None = None,
    devices: Sequence[jax.Device] | None = None,
    progress: str | None = None,
) -> Nearest:
    """The nearest of the rows that come before each row.

    Computed in blocks of rows and candidates, those beyond the diagonal left out: n^2 E / 2 multiply-adds. They are f32 on every
    device, because cosines of near duplicates differ in the third digit, in which bfloat16 and TF32 are wrong. Neither the
    number of devices nor the size of a block changes which row is the nearest, but for ties within rounding.

    Args:
        z: f32 [n, E] unit vectors, a file on disk if need be; rows of NaN are near to nothing.
        candidates: rows of z that every device holds at a time.
        block: rows a device compares with them at a time; None: as many as memory is meant for.
        devices: where to compute; by default on every device of this process.
        progress: what a bar on stderr is called, which appears when the work lasts; None: no bar.
    """
    return _nearest(z, z, True, candidates, block, devices, progress)


def nearest_of(
    z: np.ndarray,
    others: np.ndarray,
    *,
    candidates: int = CANDIDATES,
    block: int | None = None,
    devices: Sequence[jax.Device] | None = None,
    progress: str | None = None,
) -> Nearest:
    """The nearest of other rows, f32 [m, E], for each row of z, f32 [n, E]; see `nearest_before`."""
    return _nearest(z, others, False, candidates, block, devices, progress)


def as_near(cosine: NDArray[np.float32], least: float) -> NDArray[np.bool_]:
    """True where a cosine is `least` or more, up to rounding."""
    return np.asarray(cosine >= np.float32(least) - np.float32(ROUNDING))


def _nearest(
    z: np.ndarray,
    others: np.ndarray,
    before: bool,
    candidates: int,
    block: int | None,
    devices: Sequence[jax.Device] | None,
    progress: str | None,
) -> Nearest:
    best = Nearest(np.full(len(z), -np.inf, np.float32), np.full(len(z), -1, np.int64))
    for start in range(0, len(others), candidates):
        chunk = np.asarray(others[start : start + candidates], np.float32)
        first = start if before else 0  # rows before the chunk have none of it before them
        count = len(z) - first
        if not count:
            continue

        def rows(indices: np.ndarray, start: int = start, first: int = first, size: int = len(chunk)) -> tuple[np.ndarray, ...]:
            places = indices + first
            limits = np.clip(places - start, 0, size) if before else np.full(len(places), size)
            return np.asarray(z[places], np.float32), limits.astype(np.int32)

        size = min(count, block) if block else rows_at_a_time(count, len(chunk))
        cosine, index = map_rows(_block, rows, count, (chunk,), block=size, devices=devices, progress=progress)
        own = slice(first, None)
        nearer = cosine > best.cosine[own]  # of equal ones the earlier chunk's stays
        best.cosine[own][nearer] = cosine[nearer]
        best.row[own][nearer] = index[nearer] + start
    return best


def _block(z: jax.Array, limits: jax.Array, chunk: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The nearest of the first limits[i] candidates for each row i: cosines [b], -inf where there is none, and indices [b]."""
    cosine = jnp.matmul(z, chunk.T, precision="highest", preferred_element_type=jnp.float32)
    allowed = (jnp.arange(chunk.shape[0])[None, :] < limits[:, None]) & ~jnp.isnan(cosine)
    cosine = jnp.where(allowed, cosine, -jnp.inf)
    return jnp.max(cosine, axis=1), jnp.argmax(cosine, axis=1)
