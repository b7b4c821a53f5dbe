"""Details of an evaluation for a report: tables, the worst mistakes, and pictures of what was retrieved."""

import base64
import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from jclip.data import BadExample, Source, find
from jclip.data.decoding import Decode
from jclip.eval.bench import Examples
from jclip.eval.classification import confusion_matrix, per_class_recall
from jclip.eval.ranks import rank_answers
from jclip.eval.zero_shot import predict_classes

SIDE = 96
"""Pixels of the longer side of a thumbnail."""

SHOWN = 12
"""Mistakes, queries, and pictures of a heat map."""

ANSWERS = 5
"""Shown of a query, or predicted for a mistake."""


def per_class(predictions: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> list[dict[str, Any]]:
    """A row for each class that has examples."""
    rows = zip(names, per_class_recall(predictions, labels, len(names)), strict=True)
    return [{"name": name, "examples": count, "recall": recall} for name, (count, recall) in rows if count]


def classification(source: Source, field: str, examples: Examples, classes: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """Recall by class, the confusion matrix, and the mistakes of which the model was surest.

    Args:
        source: of the images.
        field: which holds them.
        examples: unit vectors and labels.
        classes: unit vectors [C, E].
        names: of the classes.
    """
    scores, labels = examples.features @ classes.T, examples.labels
    predictions = predict_classes(examples.features, classes, labels)
    own = scores[np.arange(len(labels)), labels]
    margin = np.where(predictions == labels, -np.inf, scores.max(axis=1) - own)
    worst = [int(i) for i in np.argsort(-margin, kind="stable")[:SHOWN] if np.isfinite(margin[i])]
    mistakes = []
    for i in worst:
        order = np.argsort(-scores[i], kind="stable")
        mistakes.append(
            {
                "image": thumbnail(source, int(examples.place[i]), field),
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
    """The side of retrieval that has pictures."""

    source: Source
    field: str
    """Field that holds them."""
    place: np.ndarray
    """int64 [n]: where the examples are in the source."""
    z: np.ndarray
    """[n, E] float32 unit vectors."""
    groups: np.ndarray
    """[n] or [n, P], as `rank_answers` takes them."""

    def show(self, i: int) -> str | None:
        """The picture of example i."""
        return thumbnail(self.source, int(self.place[i]), self.field)


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
    if pictures.show(0) is None:
        return {}
    first = [int(np.argmax(texts.owner == i)) for i in chosen]
    heat_map = {
        "images": [pictures.show(i) for i in chosen],
        "texts": [texts.texts[j] for j in first],
        "cosines": (pictures.z[chosen] @ texts.z[first].T).tolist(),
    }
    asked = np.unique(np.linspace(0, m - 1, SHOWN).astype(int))
    to_texts = _nearest(pictures.z[chosen], texts.z, pictures.groups[chosen], texts.groups)
    to_images = _nearest(texts.z[asked], pictures.z, texts.groups[asked], pictures.groups)
    grids = {
        "image_to_text": [
            {"query": pictures.show(i), "rank": rank, "answers": [{"text": texts.texts[j], **facts} for j, facts in answers]}
            for i, (rank, answers) in zip(chosen, to_texts, strict=True)
        ],
        "text_to_image": [
            {"query": texts.texts[i], "rank": rank, "answers": [{"image": pictures.show(j), **facts} for j, facts in answers]}
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


def thumbnail(source: Source, index: int, field: str) -> str | None:
    """An example's picture as the data URI of a small JPEG; None where the field holds none."""
    try:
        pixels = Decode()(find(source[index], field).value)
    except (BadExample, TypeError, ValueError):
        return None
    image = Image.fromarray(np.asarray(pixels))
    image.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
