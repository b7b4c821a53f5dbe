"""Retrieval between two towers, both ways; equal texts are right answers for each other's images."""

from collections.abc import Sequence

import jax
import numpy as np

from jclip.eval.ranks import count_right, rank_answers, ranks

KS = (1, 5, 10)


def recall_at(za: np.ndarray, zb: np.ndarray, groups: np.ndarray, ks: Sequence[int] = KS) -> dict[int, float]:
    """Recall@k from a to b: the fraction of rows of `za` with at least one right row of `zb` among the k nearest.

    Row j of `zb` is right for row i of `za` when groups[i] == groups[j]; always so for j = i. Ties between a right and a wrong
    row count as lost (see `ranks`): a collapsed model scores 0 as long as there are k wrong rows or more.

    Args:
        za: [n, E] float32 unit vectors.
        zb: [n, E] float32 unit vectors; row i is the pair of za's row i.
        groups: [n] integers from 0 on, equal where the contents are.
        ks: the cut-offs.
    """
    rank = ranks(za, zb, groups, groups)
    return {k: float(np.mean(rank <= k)) for k in ks}


def retrieval_metrics(
    za: np.ndarray,
    zb: np.ndarray,
    a_groups: np.ndarray,
    b_groups: np.ndarray,
    *,
    a: str,
    b: str,
    devices: Sequence[jax.Device] | None = None,
    progress: bool = False,
) -> dict[str, float]:
    """Retrieval both ways, with any number of right answers a query (see `rank_answers`).

    Recall@k is the fraction of queries with at least one right answer among the k nearest, as papers report it on COCO and
    Flickr30k. Recall that divides the right answers found by all right answers is another metric. The rank of a query is that of
    its best right answer; map@10 is the mean of `Ranking.average_precision_at(10)`. Queries without a right answer are not left
    out: they are never found, and their rank is 1 + the number of candidates.

    Args:
        za: [n, E] float32 unit vectors.
        zb: [m, E] float32 unit vectors.
        a_groups: [n] or [n, P] integers, the set of groups of each row of `za`; negative ones match nothing.
        b_groups: [m] or [m, Q] integers. Rows are right for each other when their sets meet: an image has the groups of all its
            captions, a caption has one, and equal captions have the same.
        a: what the rows of `za` are called in the metrics.
        b: what the rows of `zb` are called.
        devices: where to compute; by default on every device of this process.
        progress: whether a bar on stderr shows what lasts.

    Returns:
        `{a}_to_{b}/recall@1`, `@5`, `@10`, `/median_rank`, `/mean_rank`, `/map@10`; the same from b to a; and `mean/recall@k` of
        the two directions.
    """
    metrics: dict[str, float] = {}
    both = ((a, b, za, zb, a_groups, b_groups), (b, a, zb, za, b_groups, a_groups))
    for x, y, queries, candidates, query_groups, candidate_groups in both:
        name = f"{x}_to_{y}"
        bar = name if progress else None
        ranking = rank_answers(queries, candidates, query_groups, candidate_groups, k=10, devices=devices, progress=bar)
        metrics |= {f"{name}/recall@{k}": float(np.mean(ranking.found_at(k))) for k in KS}
        metrics[f"{name}/median_rank"] = float(np.median(ranking.rank))
        metrics[f"{name}/mean_rank"] = float(np.mean(ranking.rank))
        metrics[f"{name}/map@10"] = float(np.mean(ranking.average_precision_at(10)))
    for k in KS:
        metrics[f"mean/recall@{k}"] = (metrics[f"{a}_to_{b}/recall@{k}"] + metrics[f"{b}_to_{a}/recall@{k}"]) / 2
    return metrics


def retrieval_counts(a_groups: np.ndarray, b_groups: np.ndarray, *, a: str, b: str) -> dict[str, int]:
    """Counts beside the numbers of `retrieval_metrics`.

    Returns:
        `{a}` and `{b}`, the rows of each side; "right_pairs"; and `{a}_without_answer`, `{b}_without_answer`, the rows to which
        no row of the other side is right.
    """
    of_a, of_b = count_right(a_groups, b_groups), count_right(b_groups, a_groups)
    without = {f"{a}_without_answer": int(np.sum(of_a == 0)), f"{b}_without_answer": int(np.sum(of_b == 0))}
    return {a: len(of_a), b: len(of_b), "right_pairs": int(of_a.sum()), **without}
