"""The evaluator of what a test set and the training data share."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from jclip.config import ConfigError, Overlap
from jclip.data import Source, SourceError, read_field
from jclip.eval.bench import Bench
from jclip.eval.overlap import Met, content_digest, meet, or_none, recording_id
from jclip.eval.result import Evaluator, Result

log = logging.getLogger(__name__)

SHOWN = 20
"""Keys of shared examples in the details of a result."""

ONLY_ITS_OWN = "data of weights that it began from, and copies that are encoded anew, are not looked for"


@dataclass(frozen=True)
class OverlapEvaluator(Evaluator):
    """overlap, the share of the test examples that are found in the training data; no metric where nothing could be compared."""

    config: Overlap
    bench: Bench

    def run(self, params: Any, *, details: bool = False) -> Result:
        """See Evaluator."""
        config, test = self.config, self.bench.sources["source"]
        train = self.bench.sources.get("train")
        if train is None:
            log.warning("overlap of %s: NOT CHECKED: nothing says what the model was trained on; give train=", config.source)
            return Result({}, {"examples": len(test), "checked": 0})
        field = config.fields.get(config.tower, config.tower)
        checks = dict[str, Met]()
        if config.by:
            checks["id"] = self._compared(test, train, config.by, config.train_by or config.by, recording_id)
        if config.contents:
            checks["contents"] = self._compared(test, train, field, field, content_digest)
        compared = {name: met for name, met in checks.items() if met.unknown < len(test) and met.train_unknown < met.train}
        counts = {"examples": len(test), "train_examples": len(train), "checked": int(bool(compared))}
        for name, met in checks.items():
            counts |= {f"by_{name}": int(met.found.sum()), f"without_{name}": met.unknown}
            counts[f"train_without_{name}"] = met.train_unknown
        rows = [[name, met.train - met.train_unknown, int(met.found.sum())] for name, met in checks.items()]
        shown: dict[str, Any] = {"table": {"columns": ["compared by", "training examples that say it", "found"], "rows": rows}}
        if not compared:
            log.warning("overlap of %s: NOT CHECKED: %s", config.source, self._nothing(checks))
            return Result({}, counts, shown if details else {})
        found = np.any([met.found for met in compared.values()], axis=0)
        keys = [test[int(i)]["key"] for i in np.flatnonzero(found)[:SHOWN]]
        if found.any():
            log.warning(
                "overlap of %s: %d of its %d examples are in the training data %s, such as %s: numbers on it are not of unseen "
                "examples",
                *(config.source, found.sum(), len(test), config.train, ", ".join(keys[:3])),
            )
        by = " and ".join(compared)
        log.info("overlap of %s: compared by %s with %s; %s", config.source, by, config.train, ONLY_ITS_OWN)
        return Result({"overlap": float(found.mean())}, counts, {**shown, "found": keys} if details else {})

    def _compared(self, test: Source, train: Source, field: str, theirs: str, value: Callable[[Any], str | None]) -> Met:
        return meet(map(value, or_none(read_field(test, field))), map(value, or_none(read_field(train, theirs))))

    def _nothing(self, checks: dict[str, Met]) -> str:
        """Reason why nothing could be compared."""
        config = self.config
        ids = f"an id, in {config.by!r} and {config.train_by or config.by!r}"
        wanted = {"id": ids, "contents": f"an input for {config.tower!r}"}
        return f"not both test and training examples have {' or '.join(wanted[name] for name in checks)}"


def make_overlap(config: Overlap, bench: Bench) -> OverlapEvaluator:
    """The evaluator, with the data of the model's run where the config names none and the run's can be opened."""
    if config.train or bench.functions.trained_on is None:
        return OverlapEvaluator(config, bench)
    name, opened = bench.functions.trained_on
    try:
        sources = {**bench.sources, "train": opened()}
    except (SourceError, ConfigError) as problem:
        log.warning("overlap of %s: what the model was trained on cannot be opened: %s", config.source, problem)
        return OverlapEvaluator(config, bench)
    return OverlapEvaluator(replace(config, train=name), replace(bench, sources=sources))
