"""The evaluator of captions, with any number of references an image."""

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np

from jclip.config import Captioning, ConfigError, TextTower
from jclip.data import BadExample, detokenize, eval_transform, read_field, read_once
from jclip.data.shapes_captions import names_exactly
from jclip.eval.bench import Bench
from jclip.eval.captions import bleu4, cider_d, exact_match
from jclip.eval.evaluators.retrieval import text_field
from jclip.eval.result import Evaluator, Result

log = logging.getLogger(__name__)

SHOWN = 20
"""Captions in the details of a result."""


@dataclass(frozen=True)
class CaptioningEvaluator(Evaluator):
    """bleu4, cider, exact_match, and of examples with `objects`, as `shapes` has them, exact_objects."""

    config: Captioning
    bench: Bench

    def run(self, params: Any, *, details: bool = False) -> Result:
        """See Evaluator."""
        config, source = self.config, self.bench.sources["source"]
        field = config.fields.get(config.text) or text_field(source, config.text)
        found = [self._references(value) for value in read_field(source, field)]
        captions = self._captions(params)
        used = [i for i, several in enumerate(found) if several and captions[i] is not None]
        if not used:
            raise ConfigError(f"evaluation: no example of {config.source!r} has an image and a caption that can be read")
        written, references = [captions[i] or "" for i in used], [found[i] for i in used]
        metrics = {"bleu4": bleu4(written, references), "cider": cider_d(written, references)}
        metrics |= {"exact_match": exact_match(written, references)}
        objects = list(read_field(source, "objects"))
        if not any(isinstance(objects[i], BadExample) for i in used):
            right = [names_exactly(text, objects[i]) for text, i in zip(written, used, strict=True)]
            metrics["exact_objects"] = sum(right) / len(right)
        counts = {"examples": len(used), "captions": sum(map(len, references))}
        if broken := len(found) - len(used):
            counts["broken"] = broken
        rows = [[source[i]["key"], text, several[0]] for i, text, several in zip(used, written, references, strict=True)][:SHOWN]
        return Result(metrics, counts, {"captions": rows} if details else {})

    def _references(self, value: Any) -> list[str]:
        """The captions of an example; none of one that cannot be read."""
        if isinstance(value, str):
            return [value]
        return list(value) if isinstance(value, (list, tuple)) else []

    def _captions(self, params: Any) -> list[str | None]:
        """The model's caption of each example; None of one that cannot be read."""
        functions, image, source = self.bench.functions, self.config.image, self.bench.sources["source"]
        assert functions.caption is not None  # or `make_captioning` had raised
        text = self.bench.model.towers[self.config.text]
        assert isinstance(text, TextTower)
        found: list[str | None] = []
        batches = read_once(
            source,
            {image: eval_transform(self.bench.model.towers[image], max_pixels=functions.max_pixels)},
            batch_size=functions.batch_size,
            host=functions.host,
            hosts=functions.hosts,
            fields={image: self.bench.fields.get(image, image)},
        )
        for batch in batches:
            ids = functions.caption(self.config, params, batch.arrays)
            read = functions.gather(batch.mask.astype(np.uint8)) != 0
            for problem in batch.problems[:5]:
                log.warning("evaluation: an example is left out: %s", problem)
            found += [caption if known else None for caption, known in zip(detokenize(text, ids), read, strict=True)]
        return found[: len(source)]  # what follows is padding


def make_captioning(config: Captioning, bench: Bench) -> CaptioningEvaluator:
    """Raises ConfigError where the model has nothing that writes such captions."""
    functions, towers = bench.functions, (config.image, config.text)
    if functions.caption is None or towers not in [(how.image, how.text) for how in functions.captioners.values()]:
        views = f"{config.image!r} and {config.text!r}"
        raise ConfigError(f"evaluation: nothing writes captions of the towers {views}; there is no objective Caption of them")
    return CaptioningEvaluator(config, bench)
