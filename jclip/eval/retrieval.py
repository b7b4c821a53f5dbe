"""Retrieval between two towers, both ways; equal texts are right answers for each other's images."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jclip.config import Model, Retrieval, TextTower
from jclip.data import Source, Transform, eval_transform, open_source
from jclip.eval.embed import Functions, embed_source
from jclip.eval.ranks import ranks

KS = (1, 5, 10)


def recall_at(za: np.ndarray, zb: np.ndarray, groups: np.ndarray, ks: Sequence[int] = KS) -> dict[int, float]:
    """Recall@k from a to b: the fraction of rows of `za` with at least one right row of `zb` among the k nearest.

    Row j of `zb` is right for row i of `za` when groups[i] == groups[j]; always so for j = i. Ties between a right and a wrong
    row count as lost (see `ranks`): a collapsed model scores 0 as long as there are k wrong rows or more.

    Args:
        za: [n, E] float32 unit vectors.
        zb: [n, E] float32 unit vectors; row i is the pair of za's row i.
        groups: [n] integers, equal where the contents are.
        ks: the cut-offs.
    """
    rank = ranks(za, zb, groups, groups)
    return {k: float(np.mean(rank <= k)) for k in ks}


def retrieval_metrics(features: dict[str, np.ndarray], a: str, b: str, groups: np.ndarray) -> dict[str, float]:
    """`{a}_to_{b}/recall@k` and `/median_rank`, the same from b to a, and `mean/recall@k` of the two directions."""
    metrics: dict[str, float] = {}
    for x, y in ((a, b), (b, a)):
        rank = ranks(features[x], features[y], groups, groups)
        metrics |= {f"{x}_to_{y}/recall@{k}": float(np.mean(rank <= k)) for k in KS}
        metrics[f"{x}_to_{y}/median_rank"] = float(np.median(rank))
    for k in KS:
        metrics[f"mean/recall@{k}"] = (metrics[f"{a}_to_{b}/recall@{k}"] + metrics[f"{b}_to_{a}/recall@{k}"]) / 2
    return metrics


def stable_hash(value: Any) -> int:
    """A signed 64-bit integer of a text or of bytes, the same in every process (Python's own `hash` is not)."""
    data = value if isinstance(value, bytes) else str(value).encode(errors="surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little", signed=True)


@dataclass(frozen=True)
class RetrievalEvaluator:
    """Yields the metrics of `retrieval_metrics`, examples, and broken where there are any."""

    config: Retrieval
    functions: Functions
    source: Source
    transforms: dict[str, Transform]
    text_field: str | None
    """Field of an example whose equality makes a right answer; None: an example is right for itself alone."""

    def run(self, params: Any) -> Iterator[tuple[str, float]]:
        config, field = self.config, self.text_field
        extra = {} if field is None else {field: stable_hash}
        embedded = embed_source(self.functions, params, self.source, self.transforms, fields=config.fields, extra=extra)
        examples = len(embedded.features[config.a])
        groups = np.arange(examples) if field is None else embedded.extra[field]
        yield from retrieval_metrics(embedded.features, config.a, config.b, groups).items()
        yield "examples", examples
        if embedded.broken:
            yield "broken", embedded.broken


def make_retrieval(config: Retrieval, model: Model, functions: Functions) -> RetrievalEvaluator:
    """Opens the source. Of two text towers, the texts of b are compared."""
    transforms: dict[str, Transform] = {tower: eval_transform(model.towers[tower]) for tower in (config.a, config.b)}
    texts = [tower for tower in (config.b, config.a) if isinstance(model.towers[tower], TextTower)]
    text_field = config.fields.get(texts[0], texts[0]) if texts else None
    return RetrievalEvaluator(config, functions, open_source(config.source), transforms, text_field)
