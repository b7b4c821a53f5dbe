"""The evaluator of retrieval, with any number of texts an example."""

import logging
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from jclip.config import ConfigError, Retrieval, TokenTower
from jclip.data import BadExample, Source, read_field
from jclip.eval.bench import Bench
from jclip.eval.evaluators.details import Pictures, Texts, retrieval
from jclip.eval.ranks import pad_groups
from jclip.eval.result import Evaluator, Result
from jclip.eval.retrieval import retrieval_counts, retrieval_metrics

log = logging.getLogger(__name__)

REPEATED = 0.01
"""Share of images that equal an earlier one, from which on it is reported."""

REPEATED_IMAGES = (
    "evaluation: %s of %s images of %r are the same to the model as an earlier one. Each is a wrong answer to the captions of "
    "the others, so recall is lower than that of images with several captions; captions=rows makes these of a table's rows"
)


class Gallery(NamedTuple):
    """Embeddings of the examples by one tower: as many rows as they have inputs for it."""

    z: np.ndarray
    """[m, E] float32 unit vectors."""
    owner: np.ndarray
    """int64 [m]: the example of each row."""
    read: np.ndarray
    """bool [n]: whether the example can be read."""
    texts: list[str] | None
    """Text of each row; None where the tower is none of texts."""

    def of(self, kept: np.ndarray) -> "Gallery":
        """The rows of some examples, which are counted anew."""
        rows = np.flatnonzero(kept[self.owner])
        place = np.cumsum(kept) - 1
        texts = None if self.texts is None else [self.texts[i] for i in rows]
        return Gallery(self.z[rows], place[self.owner[rows]], kept[kept], texts)


@dataclass(frozen=True)
class RetrievalEvaluator(Evaluator):
    """Recall at 1, 5 and 10, median and mean rank and map@10, both ways."""

    config: Retrieval
    bench: Bench

    def run(self, params: Any, *, details: bool = False) -> Result:
        """See Evaluator."""
        config = self.config
        sides = [self._side(params, tower) for tower in (config.a, config.b)]
        read = sides[0].read & sides[1].read
        a, b = (side.of(read) for side in sides)
        if not read.any():
            raise ConfigError(f"evaluation: no example of {config.source!r} can be read on both sides")
        a_groups, b_groups = groups(a, b, equal=config.equal == "right")
        counts = {"examples": len(a.read), **retrieval_counts(a_groups, b_groups, a=config.a, b=config.b)}
        if broken := int(np.sum(~read)):
            counts["broken"] = broken
        if repeated := repeated_images(a, b):
            counts["repeated_images"] = repeated
            if repeated > REPEATED * len(a.read):
                log.warning(REPEATED_IMAGES, f"{repeated:,}", f"{len(a.read):,}", config.source)
        metrics = retrieval_metrics(a.z, b.z, a_groups, b_groups, a=config.a, b=config.b)
        if not details or (a.texts is None) == (b.texts is None):
            return Result(metrics, counts)
        pictures, texts = (a, b) if a.texts is None else (b, a)
        of_pictures, of_texts = (a_groups, b_groups) if a.texts is None else (b_groups, a_groups)
        tower = config.a if a.texts is None else config.b
        place = np.flatnonzero(read)
        shown_of = tower.partition("+")[0]  # of several the first
        seen_by, field = self.bench.model.towers[shown_of], config.fields.get(shown_of, shown_of)
        shown = retrieval(
            Pictures(self.bench.sources["source"], field, place, pictures.z, of_pictures, seen_by),
            Texts(texts.texts or [], texts.z, texts.owner, of_texts),
        )
        return Result(metrics, counts, shown)

    def _side(self, params: Any, names: str) -> Gallery:
        """The examples as one tower sees them, or as the sum of what several make of them."""
        each = [self._seen_by(params, tower) for tower in names.split("+")]
        if len(each) == 1:
            return each[0]
        z = unit_rows(np.sum([side.z for side in each], axis=0))
        return Gallery(z, each[0].owner, np.all([side.read for side in each], axis=0), None)

    def _seen_by(self, params: Any, tower: str) -> Gallery:
        if not isinstance(self.bench.model.towers[tower], TokenTower):
            embedded = self.bench.embed(params, "source", tower)
            return Gallery(embedded.z, np.arange(len(embedded.z)), embedded.read, None)
        source = self.bench.sources["source"]
        values = list(read_field(source, self.bench.fields.get(tower) or text_field(source, tower)))
        read = np.array([isinstance(value, (str, list, tuple)) and value not in ((), []) for value in values], bool)
        if not read.any():
            raise ConfigError(
                f"evaluation: no example of {self.config.source!r} has a text for tower {tower!r}: {str(values[:1])[:200]}"
            )
        texts, owner = [], []
        for i in np.flatnonzero(read):
            found = [values[i]] if isinstance(values[i], str) else list(values[i])
            texts += found
            owner += [i] * len(found)
        z, known = self.bench.embed_texts(params, texts, tower)
        owners = np.array(owner, np.int64)
        read[owners[~known]] = False
        return Gallery(z, owners, read, texts)


def unit_rows(x: np.ndarray) -> np.ndarray:
    """x / |x| of each row, float32 [n, E]; zeros of a row of zeros."""
    norm = np.linalg.norm(x, axis=1, keepdims=True)
    return np.divide(x, norm, out=np.zeros_like(x, np.float32), where=norm > 0)


def repeated_images(a: Gallery, b: Gallery) -> int:
    """Number of images whose embedding is that of an earlier one, bit by bit; 0 where neither side, or each, has texts."""
    if (a.texts is None) == (b.texts is None):
        return 0
    z = a.z if a.texts is None else b.z
    return len(z) - len({row.tobytes() for row in z})


def groups(a: Gallery, b: Gallery, *, equal: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """The groups of the rows of either side, as `retrieval_metrics` takes them.

    Texts that are equal are a group, and whatever else belongs to an example has the groups of all its texts. Of two sides of
    texts, those of b are the groups. Without texts, or where equal ones are not right for each other, each example is a group.
    """
    captioned, asked = (b, a) if b.texts is not None or a.texts is None else (a, b)
    if captioned.texts is None or not equal:
        return a.owner, b.owner
    _, own = np.unique(np.array(captioned.texts, object), return_inverse=True)
    members: list[list[int]] = [[] for _ in captioned.read]
    for group, owner in zip(own.tolist(), captioned.owner.tolist(), strict=True):
        members[owner].append(group)
    others = pad_groups([sorted(set(groups)) for groups in members])[asked.owner]
    return (own, others) if captioned is a else (others, own)


def text_field(source: Source, tower: str) -> str:
    """Field of a text tower's texts: `captions` where the source has that field, else the tower's name."""
    for i in range(len(source)):
        try:
            return "captions" if "captions" in source[i] else tower
        except BadExample:
            continue
    return tower
