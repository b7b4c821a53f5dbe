"""The evaluators that learn from labels: linear probes, few-shot curves and nearest neighbours."""

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from jclip.config import ConfigError, FewShot, LinearProbe, NearestNeighbours, to_json
from jclip.config.same import changed_towers
from jclip.eval.bench import Bench, Examples, LabelledBench, labelled
from jclip.eval.evaluators.details import per_class
from jclip.eval.few_shot import sample_few_shot
from jclip.eval.knn import knn_predict
from jclip.eval.labels import mean_per_class
from jclip.eval.logistic import LogisticFit, fit_logistic
from jclip.eval.probe_file import Probe, load_probe, save_probe
from jclip.eval.probes import fit_probe
from jclip.eval.result import Evaluator, Result
from jclip.eval.scores import SCORES

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LinearProbeEvaluator(Evaluator):
    """top1, mean_per_class and the config's metric on the test source; 0 where features are not finite."""

    config: LinearProbe
    bench: LabelledBench

    def run(self, params: Any, *, details: bool = False) -> Result:
        """See Evaluator."""
        config, names, functions = self.config, self.bench.names, self.bench.functions
        of = {role: self._examples(params, role) for role in ("train", "validation", "source") if role in self.bench.sources}
        test, counts = of["source"], {**_counts(of), "classes": len(names)}
        if not all(np.isfinite(examples.features).all() for examples in of.values()):
            log.warning("linear probe on %s: features are not finite; every prediction counts as wrong", config.source)
            return Result({"top1": 0.0, "mean_per_class": 0.0}, counts)
        probe = fit_probe(
            config.protocol,
            (of["train"].features, of["train"].labels),
            (of["validation"].features, of["validation"].labels) if "validation" in of else None,
            len(names),
            strength=config.l2 if config.protocol == "logistic" else None,
            seed=config.seed,
            score=SCORES[config.metric],
            precise=config.precise,
            place=functions.place,
            devices=functions.devices,
        )
        if not probe.converged:
            what = f"not converged after {probe.iterations} iterations; the penalty {probe.strength:g} may be too small"
            log.warning("linear probe on %s: %s", config.source, what)
            counts["not_converged"] = 1
        if config.save and functions.host == 0:
            kind = "one" if of["train"].labels.ndim == 1 else "several"
            facts = {"train": config.train, "tower": config.tower, "features": self._features, "labels": kind}
            facts["configuration"] = json.dumps(to_json(self.bench.model.towers[config.tower]))
            if functions.weights is not None:
                facts["weights"] = functions.weights(config.tower)
            save_probe(config.save, probe, names, facts)
        metrics, shown = self._measure(probe, test)
        metrics["strength"] = probe.strength
        return Result(metrics, counts, shown if details else {})

    @property
    def _features(self) -> str:
        return "z" if self.config.protocol == "clip_benchmark" else "pooled"

    def _examples(self, params: Any, role: str) -> Examples:
        examples = self.bench.examples(params, role, self.config.tower, pooled=self._features == "pooled")
        if examples.labels.ndim == 1 or self.config.metric not in ("map11", "roc_auc"):
            return one_label(examples, role)
        return examples

    def _measure(self, probe: Probe, test: Examples) -> tuple[dict[str, float], dict[str, Any]]:
        """The metrics, and what a report shows."""
        scores, shown = probe.scores(test.features), dict[str, Any]()
        if probe.tried:
            strengths, found = zip(*probe.tried, strict=True)
            shown["search"] = {"x_name": "strength", "x": list(strengths), "scores": list(found), "best": probe.strength}
        metrics = dict[str, float]()
        if self.config.metric in ("map11", "roc_auc"):
            metrics[self.config.metric] = SCORES[self.config.metric](scores, test.labels)
        if test.labels.ndim == 1:
            predictions = np.argmax(scores, axis=1)
            correct = predictions == test.labels
            metrics |= {"top1": float(np.mean(correct)), "mean_per_class": mean_per_class(correct, test.labels)}
            shown["per_class"] = per_class(predictions, test.labels, self.bench.names)
        return metrics, shown

    def is_saved(self, weights: Callable[[str], str]) -> bool:
        """True where the probe is there, if one is asked for, of these weights and of features of this tower."""
        if not self.config.save:
            return True
        try:
            facts, tower = load_probe(self.config.save)[2], self.config.tower
            saved = {tower: json.loads(facts["configuration"])}
            same = not changed_towers(saved, {tower: self.bench.model.towers[tower]})
        except (ConfigError, KeyError, ValueError, RecursionError):
            return False
        return same and facts.get("weights") == weights(tower)


@dataclass(frozen=True)
class FewShotEvaluator(Evaluator):
    """kK/top1 and kK/deviation, the mean and the standard deviation over the samples of K examples a class."""

    config: FewShot
    bench: LabelledBench

    def run(self, params: Any, *, details: bool = False) -> Result:
        """See Evaluator."""
        config, names = self.config, self.bench.names
        roles = ("train", "source")
        of = {role: one_label(self.bench.examples(params, role, config.tower, pooled=True), role) for role in roles}
        train, test = of["train"], of["source"]
        fits = [[self._fit(train, k, seed) for seed in range(config.seeds)] for k in config.k]
        curve = [[float(np.mean(fit.predict(test.features) == test.labels)) for fit in row] for row in fits]
        mean, deviation = np.mean(curve, axis=1).tolist(), np.std(curve, axis=1).tolist()
        metrics = {f"k{k}/top1": m for k, m in zip(config.k, mean, strict=True)}
        metrics |= {f"k{k}/deviation": d for k, d in zip(config.k, deviation, strict=True)}
        axes = {"x_name": "examples a class", "y_name": "top1"}
        shown = {"curve": {**axes, "x": list(config.k), "mean": mean, "deviation": deviation}} if details else {}
        counts = {**_counts(of), "classes": len(names), "seeds": config.seeds}
        if unfinished := sum(not fit.converged for row in fits for fit in row):
            log.warning("few-shot on %s: %d of %d fits have not converged", config.source, unfinished, np.size(curve))
            counts["not_converged"] = unfinished
        return Result(metrics, counts, shown)

    def _fit(self, train: Examples, k: int, seed: int) -> LogisticFit:
        chosen = sample_few_shot(train.labels, self.bench.names, k, seed)
        return fit_logistic(train.features[chosen], train.labels[chosen], len(self.bench.names), l2=self.config.l2)


@dataclass(frozen=True)
class NearestNeighboursEvaluator(Evaluator):
    """top1 and mean_per_class of the votes of the nearest training examples."""

    config: NearestNeighbours
    bench: LabelledBench

    def run(self, params: Any, *, details: bool = False) -> Result:
        """See Evaluator."""
        config, names = self.config, self.bench.names
        roles = ("train", "source")
        of = {role: one_label(self.bench.examples(params, role, config.tower, pooled=False), role) for role in roles}
        train, test = of["train"], of["source"]
        found = knn_predict(train.features, train.labels, test.features, len(names), config.k, temperature=config.temperature)
        correct = found == test.labels
        metrics = {"top1": float(np.mean(correct)), "mean_per_class": mean_per_class(correct, test.labels)}
        shown = {"per_class": per_class(found, test.labels, names)} if details else {}
        return Result(metrics, {**_counts(of), "classes": len(names)}, shown)


def one_label(examples: Examples, role: str) -> Examples:
    """The same examples. Raises ConfigError where they have several labels each."""
    if examples.labels.ndim == 2:
        takes = "ZeroShot takes these, and LinearProbe with metric map11 or roc_auc"
        raise ConfigError(f"evaluation: examples of {role} have several labels each; {takes}")
    return examples


def make_linear_probe(config: LinearProbe, bench: Bench) -> LinearProbeEvaluator:
    """Classes that the config does not name are those of the test source."""
    return LinearProbeEvaluator(*_with_classes(config, bench))


def make_few_shot(config: FewShot, bench: Bench) -> FewShotEvaluator:
    """Classes that the config does not name are those of the test source."""
    return FewShotEvaluator(*_with_classes(config, bench))


def make_nearest_neighbours(config: NearestNeighbours, bench: Bench) -> NearestNeighboursEvaluator:
    """Classes that the config does not name are those of the test source."""
    return NearestNeighboursEvaluator(*_with_classes(config, bench))


def _with_classes(config: Any, bench: Bench) -> tuple[Any, LabelledBench]:
    found = labelled(bench, config.labels, "source", config.source)
    return replace(config, labels=found.resolved(config.labels)), found


def _counts(of: Mapping[str, Examples]) -> dict[str, int]:
    """The counts of the test source by their own names, of the others with their role before."""
    return {
        what if role == "source" else f"{role}_{what}": count
        for role, examples in of.items()
        for what, count in examples.counts.items()
    }
