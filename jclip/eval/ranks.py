"""Ranks of right answers among candidates, the one primitive of zero-shot classification and retrieval."""

import jax
import jax.numpy as jnp
import numpy as np

TIE = 1e-6
"""Cosines closer than this are equal. An f32 dot product of unit vectors is off by some 1e-7, in a way that depends on the device
and the place in the matrix; without a margin, copies of one vector would come out in an arbitrary order instead of tied."""

_BLOCK_SCORES = 2**25  # 128 MiB of f32 scores at a time


def ranks(
    queries: np.ndarray,
    candidates: np.ndarray,
    query_groups: np.ndarray,
    candidate_groups: np.ndarray,
    *,
    block: int | None = None,
) -> np.ndarray:
    """The rank of each query's best right answer: 1 + the number of wrong candidates that are not clearly below it.

    A candidate is right for a query when their groups are equal. With s the cosine, in f32,

        best_i = max of s_ij over right j,    rank_i = 1 + #{wrong j : not s_ij < best_i - TIE}

    Ties count as lost, so a collapsed model, whose vectors are all equal, gets the worst rank, not the best or a random one. The
    negated comparison gives NaN the worst rank too. Other right answers are never in the way. A query without a right answer has
    rank 1 + the number of candidates. Without ties this is the usual "is a right answer among the top k", as rank <= k.

    Args:
        queries: [n, E] float32 unit vectors.
        candidates: [m, E] float32 unit vectors.
        query_groups: [n] integers.
        candidate_groups: [m] integers.
        block: queries scored at a time; by default so many that the scores take 128 MiB. The result does not depend on it.

    Returns:
        [n] int64, each 1 to m + 1.
    """
    n, m = len(queries), len(candidates)
    block = min(n, block or max(1, min(1024, _BLOCK_SCORES // m)))
    _, ids = np.unique(np.concatenate([query_groups, candidate_groups]), return_inverse=True)
    ids = ids.astype(np.int32)  # small enough for a device, whatever the groups are
    candidates_on_device, candidate_ids = jnp.asarray(candidates, jnp.float32), jnp.asarray(ids[n:])
    result = np.empty(n, np.int64)
    for start in range(0, n, block):
        rows = np.arange(start, start + block) % n  # the last block wraps around: one shape, one compilation
        found = _block_ranks(jnp.asarray(queries[rows], jnp.float32), candidates_on_device, jnp.asarray(ids[rows]), candidate_ids)
        result[start : start + block] = np.asarray(found)[: n - start]
    return result


@jax.jit
def _block_ranks(queries: jax.Array, candidates: jax.Array, query_ids: jax.Array, candidate_ids: jax.Array) -> jax.Array:
    scores = jnp.matmul(queries, candidates.T, precision="highest", preferred_element_type=jnp.float32)
    right = query_ids[:, None] == candidate_ids[None, :]
    best = jnp.max(scores, axis=1, where=right, initial=-jnp.inf)
    ahead = ~right & ~(scores < best[:, None] - TIE)
    return 1 + jnp.sum(ahead, axis=1)
