"""Ranks of right answers among candidates, the one primitive of zero-shot classification and retrieval."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jclip.eval.blocks import SCORES, map_rows, rows_at_a_time

TIE = 1e-6
"""Cosines closer than this are equal. An f32 dot product of unit vectors is off by some 1e-7, in a way that depends on the device
and the place in the matrix; without a margin, copies of one vector would come out in an arbitrary order instead of tied."""


class Ranking(NamedTuple):
    """Ranks of the right answers of n queries."""

    positions: np.ndarray
    """[n, k] int64: of each query's k best right answers, best first; past the last one, 1 + the number of candidates."""
    right: np.ndarray
    """[n] int64: right answers a query has."""

    @property
    def rank(self) -> np.ndarray:
        """[n] int64: the position of the best right answer."""
        best: np.ndarray = self.positions[:, 0]
        return best

    def found_at(self, k: int) -> np.ndarray:
        """[n] bool: a right answer is among the first k positions, which takes a right answer even where candidates are few."""
        found: np.ndarray = (self.rank <= k) & (self.right > 0)
        return found

    def average_precision_at(self, k: int) -> np.ndarray:
        """[n] float64: sum of the precisions at the right answers among the first k positions / min(k, number of right answers).

        The precision at the position p of the i-th best right answer is i / p. A query without a right answer has 0.

        Raises:
            ValueError: the ranking was made for a smaller k.
        """
        if not 1 <= k <= self.positions.shape[1]:
            raise ValueError(f"k is {k}, and this ranking has the positions of {self.positions.shape[1]}; rank with k={k}")
        positions = self.positions[:, :k]
        i = np.arange(1, k + 1)[None, :]
        found = (positions <= k) & (i <= self.right[:, None])
        total: np.ndarray = np.sum(np.where(found, i / positions, 0.0), axis=1) / np.clip(self.right, 1, k)
        return total


def rank_answers(
    queries: np.ndarray,
    candidates: np.ndarray,
    query_groups: np.ndarray,
    candidate_groups: np.ndarray,
    *,
    k: int = 1,
    block: int | None = None,
    devices: Sequence[jax.Device] | None = None,
    progress: str | None = None,
) -> Ranking:
    """The positions of each query's k best right answers.

    A query and a candidate each belong to a set of groups; they are right for each other when the sets meet. With s the cosine,
    in f32, and the right answers of query i in falling order of s_ij, the r-th of them has

        position = r + #{wrong j : not s_ij < s_ir - TIE}

    Ties count as lost, so a collapsed model, whose vectors are all equal, gets the worst positions, not the best or random ones.
    Other right answers are never in the way. NaN is the worst: a right answer's comes after all others, a wrong one's is ahead.
    Without ties the best position, the rank, is the usual one: a right answer is among the top k exactly when rank <= k.

    Scores are never held whole; each device computes at most 128 MiB of them at a time. The result does not depend on the number
    of devices, nor on `block` but for rounding at the margin.

    Args:
        queries: [n, E] float32 unit vectors.
        candidates: [m, E] float32 unit vectors.
        query_groups: [n] or [n, P] integers; negative ones match nothing, and fill up sets of fewer than P (see `pad_groups`).
        candidate_groups: [m] or [m, Q] integers.
        k: how many right answers of a query to look at.
        block: queries that a device scores at a time; by default so many that the scores take 128 MiB, and at most 1024.
        devices: where to compute; by default on every device of this process.
        progress: what a progress bar on stderr is called, which appears when this lasts; None: no bar.
    """
    n, m = len(queries), len(candidates)
    answers = _Answers(query_groups, candidate_groups)
    # A list of right answers is about four more arrays of its length: numbers, scores, and both again while they are sorted.
    block = block or rows_at_a_time(n, m + 4 * answers.most)
    queries, candidates = np.asarray(queries, np.float32), np.asarray(candidates, np.float32)

    def rows(indices: np.ndarray) -> tuple[np.ndarray, ...]:
        return queries[indices], answers.of(indices)

    positions, right = map_rows(
        _block_positions, rows, n, (candidates,), block=min(n, block), devices=devices, progress=progress, k=k
    )
    return Ranking(positions.astype(np.int64), right.astype(np.int64))


def ranks(
    queries: np.ndarray,
    candidates: np.ndarray,
    query_groups: np.ndarray,
    candidate_groups: np.ndarray,
    *,
    block: int | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> np.ndarray:
    """The rank [n] int64 of each query's best right answer, 1 to m + 1; see `rank_answers`."""
    return rank_answers(queries, candidates, query_groups, candidate_groups, block=block, devices=devices).rank


def count_right(query_groups: np.ndarray, candidate_groups: np.ndarray) -> np.ndarray:
    """The number [n] int64 of right answers of each query; the arguments are those of `rank_answers`."""
    answers, n = _Answers(query_groups, candidate_groups), len(query_groups)
    step = max(1, SCORES // 8 // max(1, answers.most))
    return np.concatenate([answers.pairs(np.arange(start, min(n, start + step)))[2] for start in range(0, n, step)])


def pad_groups(sets: Sequence[Sequence[int]]) -> np.ndarray:
    """Sets of different sizes as an array [n, P] int64, filled up with -1. P is the largest size, and at least 1."""
    padded = np.full((len(sets), max([1, *map(len, sets)])), -1, np.int64)
    for row, members in zip(padded, sets, strict=True):
        row[: len(members)] = members
    return padded


class _Answers:
    """The right candidates of queries, found through their groups: never a matrix of all pairs."""

    def __init__(self, query_groups: np.ndarray, candidate_groups: np.ndarray) -> None:
        own, theirs = (np.asarray(groups).reshape(len(groups), -1) for groups in (query_groups, candidate_groups))
        self._m, self._single = len(theirs), own.shape[1] == theirs.shape[1] == 1
        members, columns = np.nonzero(theirs >= 0)
        names, groups = np.unique(theirs[members, columns], return_inverse=True)
        self._members = members[np.argsort(groups, kind="stable")]  # candidates, group after group
        self._ends = np.cumsum(np.bincount(groups, minlength=len(names) + 1))  # the last group, of no candidate, is for strangers
        slots = np.searchsorted(names, own)
        known = np.append(names, -1)[slots] == own
        self._slots = np.where(known, slots, len(names))
        self.most = int(self._sizes(self._slots).sum(axis=1).max(initial=0))
        """An upper bound of the right answers of a query."""

    def _sizes(self, slots: np.ndarray) -> np.ndarray:
        sizes: np.ndarray = self._ends[slots] - np.where(slots > 0, self._ends[slots - 1], 0)
        return sizes

    def pairs(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows and candidates of the right pairs of some queries, row after row; and how many each row has."""
        # The members of all groups lie in one array, group after group, and a query knows the slots of its groups:
        #
        #     _members    a b | c | d e f      _ends    2 3 6
        #     query 0 has slots 0, 2           its right candidates are a b, d e f
        #
        # Each (query, slot) becomes as many (row, candidate) as its group has members, without a loop over queries: `offset`
        # counts 0, 1, ... within each group, behind the place where the group begins.
        slots = self._slots[indices]
        sizes = self._sizes(slots)
        row, flat = np.repeat(np.arange(len(indices)), sizes.sum(axis=1)), sizes.ravel()
        offset = np.arange(flat.sum()) - np.repeat(np.cumsum(flat) - flat, flat)  # 0, 1, ... within each group
        candidate = self._members[np.repeat(self._ends[slots].ravel() - flat, flat) + offset]
        if not self._single:  # two sets may meet more than once
            row, candidate = np.divmod(np.unique(row * self._m + candidate), self._m)
        return row, candidate, np.bincount(row, minlength=len(indices))

    def of(self, indices: np.ndarray) -> np.ndarray:
        """[b, R] int32: the right candidates of some queries, filled up with m. R is a power of two: few shapes to compile."""
        row, candidate, counts = self.pairs(indices)
        width = 1 << int(counts.max(initial=1) - 1).bit_length() if counts.max(initial=0) else 1
        lists = np.full((len(indices), width), self._m, np.int32)
        lists[row, np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)] = candidate
        return lists


def _block_positions(queries: jax.Array, lists: jax.Array, candidates: jax.Array, *, k: int) -> tuple[jax.Array, jax.Array]:
    """Positions [b, k] int32 and numbers of right answers [b], for their lists [b, R] padded with m."""
    m = len(candidates)
    scores = jnp.matmul(queries, candidates.T, precision="highest", preferred_element_type=jnp.float32)
    real = lists < m
    right = jnp.sum(real, axis=1)
    own = jnp.take_along_axis(scores, jnp.minimum(lists, m - 1), axis=1)
    width = min(k, lists.shape[1])
    # The barrier, because XLA on CPUs makes a sort of all R, 60 times slower, of a top_k whose columns are taken apart.
    best = jax.lax.optimization_barrier(jax.lax.top_k(jnp.where(real & ~jnp.isnan(own), own, -jnp.inf), width)[0])
    columns = []
    for i in range(width):  # one pass over the scores each, which the compiler fuses
        bar = best[:, i : i + 1] - TIE
        ahead = jnp.sum(~(scores < bar), axis=1) - jnp.sum(real & ~(own < bar), axis=1)
        columns.append(jnp.where(i < right, i + 1 + ahead, m + 1))
    columns += [jnp.full_like(right, m + 1)] * (k - width)
    return jnp.stack(columns, axis=1), right
