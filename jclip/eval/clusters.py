"""Spherical k-means: centres of unit vectors, without a matrix of all cosines."""

from collections.abc import Sequence

import jax
import numpy as np
from numpy.typing import NDArray

from jclip.eval.duplicates import Nearest, nearest_of

PER_CLUSTER = 256
"""Rows a centre that are drawn to find the centres: more of them hardly move it."""

STEPS = 20
"""Steps after which the centres are taken as they are; most rows find theirs in the first few."""

_SUMMED_AT_A_TIME = 2**16


def centres_of(
    z: NDArray[np.float32],
    clusters: int,
    *,
    seed: int = 0,
    steps: int = STEPS,
    devices: Sequence[jax.Device] | None = None,
    progress: str | None = None,
) -> NDArray[np.float32]:
    """Centres of clusters, f32 [clusters, E] unit vectors: directions whose cosines with the nearest rows are large on average.

    Lloyd's algorithm on the sphere (Dhillon and Modha 2001, "Concept decompositions for large sparse text data using
    clustering"): it begins with rows drawn at random, and in each step every row goes to its nearest centre, and every centre to
    the direction of the mean of its rows. A centre without rows goes to a row that is farthest from its own. No step makes the
    average cosine smaller; the last is the one after which no row changes its centre, or step `steps`. At most PER_CLUSTER rows a
    centre, drawn at random, take part; of n rows a step takes n clusters E multiply-adds, on all devices, and sums in f64.

    Args:
        z: f32 [n, E] unit vectors without NaN, a file on disk if need be.
        clusters: number of centres, n at most.
        seed: of the draws.
        steps: most steps.
        devices: where to compute; by default on every device of this process.
        progress: what a bar on stderr is called, which appears when a step lasts; None: no bar.

    Raises:
        ValueError: there are more centres than rows.
    """
    if clusters > len(z):
        raise ValueError(f"{clusters:,} clusters of {len(z):,} rows: give at most as many as there are rows")
    rng = np.random.default_rng(seed)
    drawn = np.sort(rng.choice(len(z), min(len(z), PER_CLUSTER * clusters), replace=False))
    rows = np.asarray(z if len(drawn) == len(z) else z[drawn], np.float32)
    centres, before = rows[np.sort(rng.choice(len(rows), clusters, replace=False))], np.zeros(0, np.int64)
    for step in range(1, steps + 1):
        near = nearest_of(rows, centres, devices=devices, progress=progress and f"{progress}, step {step} of {steps}")
        if np.array_equal(near.row, before):
            break
        centres, before = _moved(rows, near, centres), near.row
    return centres


def _moved(rows: NDArray[np.float32], near: Nearest, centres: NDArray[np.float32]) -> NDArray[np.float32]:
    """The centres after a step, from the rows that are nearest to each."""
    sums = np.zeros(centres.shape, np.float64)
    for start in range(0, len(rows), _SUMMED_AT_A_TIME):
        part = slice(start, start + _SUMMED_AT_A_TIME)
        order = np.argsort(near.row[part], kind="stable")
        centre, first = np.unique(near.row[part][order], return_index=True)
        sums[centre] += np.add.reduceat(rows[part][order], first, axis=0, dtype=np.float64)
    length = np.linalg.norm(sums, axis=1, keepdims=True)
    moved = np.where(length > 0, sums / np.maximum(length, np.finfo(np.float64).tiny), centres)  # rows that cancel: it stays
    empty = np.flatnonzero(np.bincount(near.row, minlength=len(centres)) == 0)
    moved[empty] = rows[np.argsort(near.cosine, kind="stable")[: len(empty)]]
    return moved.astype(np.float32)
