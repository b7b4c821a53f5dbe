"""Details of an evaluation for a report: tables, the worst mistakes, and pictures of what was retrieved."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jclip.config import Tower
from jclip.data import Source
from jclip.eval.bench import Examples
from jclip.eval.classification import confusion_matrix, per_class_recall
from jclip.eval.previews import Preview, preview
from jclip.eval.ranks import rank_answers
from jclip.eval.zero_shot import predict_classes

SHOWN = 12
"""Mistakes, queries, and pictures of a heat map."""

ANSWERS = 5
"""Shown of a query, or predicted for a mistake."""


def per_class(predictions: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> list[dict[str, Any]]:
    """A row for each class that has examples."""
    rows = zip(names, per_class_recall(predictions, labels, len(names)), strict=True)
    return [{"name": name, "examples": count, "recall": recall} for name, (count, recall) in rows if count]


def classification(
    source: Source, field: str, examples: Examples, classes: np.ndarray, names: Sequence[str], tower: Tower
) -> dict[str, Any]:
    """Recall by class, the confusion matrix, and the mistakes of which the model was surest.

    Args:
        source: of the images or sounds.
        field: which holds them.
        examples: unit vectors and labels.
        classes: unit vectors [C, E].
        names: of the classes.
        tower: which embeds the examples.
    """
    scores, labels = examples.features @ classes.T, examples.labels
    predictions = predict_classes(examples.features, classes, labels)
    own = scores[np.arange(len(labels)), labels]
    margin = np.where(predictions == labels, -np.inf, scores.max(axis=1) - own)
    worst = [int(i) for i in np.argsort(-margin, kind="stable")[:SHOWN] if np.isfinite(margin[i])]
    mistakes = []
    for i in worst:
        order = np.argsort(-scores[i], kind="stable")
        shown = preview(source, int(examples.place[i]), field, tower)
        if shown is None:  # a tower of somebody's own, whose examples nobody here can draw
            continue
        mistakes.append(
            {
                **shown.facts(),
                "key": str(source[int(examples.place[i])]["key"]),
                "truth": names[labels[i]],
                "predictions": [[names[j], float(scores[i, j])] for j in order[:ANSWERS]],
                "rank": int(np.sum(scores[i] >= own[i])),
            }
        )
    matrix = confusion_matrix(predictions, labels, len(names)).tolist()
    return {
        "per_class": per_class(predictions, labels, names),
        "confusion": {"names": list(names), "matrix": matrix},
        "mistakes": mistakes,
    }


class Pictures(NamedTuple):
    """The side of retrieval that has pictures, or sounds."""

    source: Source
    field: str
    """Field that holds them."""
    place: np.ndarray
    """int64 [n]: where the examples are in the source."""
    z: np.ndarray
    """[n, E] float32 unit vectors."""
    groups: np.ndarray
    """[n] or [n, P], as `rank_answers` takes them."""
    tower: Tower
    """Tower that embeds them."""

    def show(self, i: int) -> Preview | None:
        """The picture of example i, and its sound."""
        return preview(self.source, int(self.place[i]), self.field, self.tower)


class Texts(NamedTuple):
    """The side that has texts."""

    texts: Sequence[str]
    z: np.ndarray
    """[m, E] float32 unit vectors."""
    owner: np.ndarray
    """int64 [m]: the example of each."""
    groups: np.ndarray
    """[m] or [m, P], as `rank_answers` takes them."""


def retrieval(pictures: Pictures, texts: Texts) -> dict[str, Any]:
    """Cosines of some pictures with their own first texts, and the nearest answers to some queries each way.

    Queries are taken at equal distances over the source. Nothing is shown of what is no picture.
    """
    n, m = len(pictures.z), len(texts.z)
    chosen = np.unique(np.linspace(0, n - 1, SHOWN).astype(int))
    asked = np.unique(np.linspace(0, m - 1, SHOWN).astype(int))
    to_texts = _nearest(pictures.z[chosen], texts.z, pictures.groups[chosen], texts.groups)
    to_images = _nearest(texts.z[asked], pictures.z, texts.groups[asked], pictures.groups)
    answers = {place for _, nearest in to_images for place, _ in nearest}
    shown = {i: pictures.show(i) for i in sorted({*chosen.tolist(), *answers})}
    facts = {i: one.facts() for i, one in shown.items() if one is not None}
    if len(facts) < len(shown):
        return {}
    first = [int(np.argmax(texts.owner == i)) for i in chosen]
    heat_map = {
        "images": [facts[i]["image"] for i in chosen],
        "texts": [texts.texts[j] for j in first],
        "cosines": (pictures.z[chosen] @ texts.z[first].T).tolist(),
    }
    grids = {
        "image_to_text": [
            {
                "query": facts[i]["image"],
                **{name: value for name, value in facts[i].items() if name == "sound"},
                "rank": rank,
                "answers": [{"text": texts.texts[j], **score} for j, score in answers],
            }
            for i, (rank, answers) in zip(chosen, to_texts, strict=True)
        ],
        "text_to_image": [
            {"query": texts.texts[i], "rank": rank, "answers": [{**facts[j], **score} for j, score in answers]}
            for i, (rank, answers) in zip(asked, to_images, strict=True)
        ],
    }
    return {"heat_map": heat_map, "grids": grids}


def _nearest(
    queries: np.ndarray, candidates: np.ndarray, query_groups: np.ndarray, candidate_groups: np.ndarray
) -> list[tuple[int, list[tuple[int, dict[str, Any]]]]]:
    """Rank of the best right answer to each query, and the nearest candidates with their scores."""
    ranks = rank_answers(queries, candidates, query_groups, candidate_groups).rank
    scores = queries @ candidates.T
    found = []
    for i, row in enumerate(scores):
        own = set(np.atleast_1d(query_groups[i]).tolist()) - {-1}
        nearest = np.argsort(-row, kind="stable")[:ANSWERS]
        right = [bool(own & set(np.atleast_1d(candidate_groups[j]).tolist())) for j in nearest]
        found.append(
            (int(ranks[i]), [(int(j), {"right": r, "score": float(row[j])}) for j, r in zip(nearest, right, strict=True)])
        )
    return found
