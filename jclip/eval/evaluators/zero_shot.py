"""The evaluators of prompts: zero-shot classification, and its robustness to shifts of the data."""

import logging
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from jclip.config import ConfigError, Robustness, SoundTower, Tower, ZeroShot
from jclip.data import BadExample, read_field
from jclip.eval.bench import Bench, Examples, LabelledBench, labelled
from jclip.eval.classification import multi_label_metrics
from jclip.eval.evaluators.details import classification
from jclip.eval.logistic import fit_logistic
from jclip.eval.result import Evaluator, Result
from jclip.eval.robustness import robustness_table
from jclip.eval.templates import DEFAULT, OF_SOUNDS, read_templates
from jclip.eval.zero_shot import class_embeddings, zero_shot_metrics

log = logging.getLogger(__name__)

GROUPS = 100
"""Groups of an evaluation, at most."""


def prompt_classes(bench: LabelledBench, params: Any, templates: tuple[str, ...], text: str) -> np.ndarray:
    """Unit vectors [C, E] of the candidates, from their prompts."""
    if bench.functions.head is not None:  # whose scores, of `seen_examples`, are compared as they are
        return np.eye(len(bench.names), dtype=np.float32)
    prompts = [template.replace("{}", name) for name in bench.names for template in templates]
    z, read = bench.bench.embed_texts(params, prompts, text)
    if not read.all():
        raise ConfigError(
            f"evaluation: the prompt {prompts[int(np.argmin(read))][:80]!r} cannot be read; shorten or rename the class"
        )
    return class_embeddings(z.reshape(len(bench.names), len(templates), -1))


def seen_examples(bench: LabelledBench, params: Any, source: str, tower: str) -> Examples:
    """Examples of a source as unit vectors; of an adapted model as its head's scores of the classes, [n, C]."""
    examples = bench.examples(params, source, tower, pooled=False)
    if bench.functions.head is None:
        return examples
    pooled = bench.examples(params, source, tower, pooled=True).features
    return examples._replace(features=bench.functions.head(bench.names, examples.features, pooled))


@dataclass(frozen=True)
class ZeroShotEvaluator(Evaluator):
    """top1, top5 (from 5 classes on) and mean_per_class; map where examples have several labels. Of groups GROUPS/VALUE/METRIC,
    and their mean, mean/GROUPS/METRIC."""

    config: ZeroShot
    bench: LabelledBench

    def run(self, params: Any, *, details: bool = False) -> Result:
        """See Evaluator."""
        config, bench = self.config, self.bench
        examples = seen_examples(bench, params, "source", config.image)
        classes = prompt_classes(bench, params, config.templates, config.text)
        counts = {**examples.counts, "classes": len(bench.names), "templates": len(config.templates)}
        metrics = self._metrics(examples.features, examples.labels, classes)
        shown: dict[str, Any] = {}
        if details and examples.labels.ndim == 1:
            field = config.fields.get(config.image, config.image)
            shown = classification(bench.sources["source"], field, examples, classes, bench.names, self._tower)
        if config.groups:
            each = self._of_groups(examples, classes)
            counts["groups"] = len(each)
            rows = [[name, *one.values()] for name, one in each.items()]
            mean = {metric: float(np.mean([one[metric] for one in each.values()])) for metric in metrics}
            shown = {"table": {"columns": [config.groups, *metrics], "rows": rows}, **shown}
            metrics = metrics | {f"mean/{config.groups}/{metric}": value for metric, value in mean.items()}
            metrics |= {f"{config.groups}/{name}/{metric}": value for name, one in each.items() for metric, value in one.items()}
        return Result(metrics, counts, shown if details else {})

    @property
    def _tower(self) -> Tower:
        return self.bench.model.towers[self.config.image]

    def _metrics(self, features: np.ndarray, labels: np.ndarray, classes: np.ndarray) -> dict[str, float]:
        if labels.ndim == 2:
            return multi_label_metrics(features @ classes.T, labels)
        return zero_shot_metrics(features, classes, labels, self.config.ks)

    def _of_groups(self, examples: Examples, classes: np.ndarray) -> dict[str, dict[str, float]]:
        """Metrics of each group by its name, in the order of numbers or of names.

        Raises:
            ConfigError: an example has no group, or nearly each has one of its own.
        """
        field = self.config.groups
        values = list(read_field(self.bench.sources["source"], field))
        for place in examples.place:
            if isinstance(values[place], bool) or not isinstance(values[place], str | int | np.integer):
                said = values[place] if isinstance(values[place], BadExample) else f"it is a {type(values[place]).__name__}"
                raise ConfigError(f"evaluation: groups={field!r}: example {place} has no number or text there: {said}")
        of = np.array([str(values[place]) for place in examples.place], object)
        names = sorted(set(of.tolist()), key=lambda name: (not name.isdecimal(), int(name) if name.isdecimal() else 0, name))
        if len(names) > GROUPS:
            raise ConfigError(
                f"evaluation: groups={field!r} has {len(names):,} values, more than {GROUPS}; name a field of fewer"
            )
        kept = {name: of == name for name in names}
        return {n: self._metrics(examples.features[k], examples.labels[k], classes) for n, k in kept.items()}


@dataclass(frozen=True)
class RobustnessEvaluator(Evaluator):
    """SET/zero_shot, /probe, /baseline (of probe and published models the nearest in clean accuracy), /difference and
    /effective_robustness, of the clean set and of each that is shifted."""

    config: Robustness
    bench: LabelledBench

    def run(self, params: Any, *, details: bool = False) -> Result:
        """See Evaluator."""
        config, bench, functions = self.config, self.bench, self.bench.functions
        classes = prompt_classes(bench, params, config.templates, config.text)
        train = bench.examples(params, "train", config.image, pooled=True)
        pairs, how = (train.features, train.labels), functions.place
        probe = fit_logistic(*pairs, len(bench.names), l2=config.l2, place=how, devices=functions.devices)
        counts = {"train_examples": len(train.labels), "classes": len(bench.names), "templates": len(config.templates)}
        if not probe.converged:
            log.warning("robustness: the probe on %s has not converged after %d iterations", config.train, probe.iterations)
            counts["not_converged"] = 1
        zero_shot, probed, sizes = {}, {}, {}
        for name in ("clean", *config.shifted):
            z = seen_examples(bench, params, name, config.image)
            pooled = bench.examples(params, name, config.image, pooled=True)
            chosen = bench.candidates(name, config.masks.get(name, ()))
            kept = np.isin(z.labels, chosen)
            if not kept.any():
                raise ConfigError(f"evaluation: no example of {name} has a class of its mask; see masks")
            labels = np.searchsorted(chosen, z.labels[kept])
            zero_shot[name] = zero_shot_metrics(z.features[kept], classes[chosen], labels)["top1"]
            found = np.argmax(probe.scores(pooled.features[kept])[:, chosen], axis=1)
            probed[name], sizes[name] = float(np.mean(found == labels)), len(labels)
            masked = {"masked": int(np.sum(~kept)), "candidates": len(chosen)} if len(chosen) < len(bench.names) else {}
            counts |= {f"{name}/{what}": count for what, count in (z.counts | {"examples": len(labels)} | masked).items()}
        rows = robustness_table(zero_shot, [probed, *config.baselines.values()], "clean", examples=sizes)
        metrics = {f"{name}/probe": value for name, value in probed.items()}
        for row in rows:
            metrics[f"{row.set}/zero_shot"] = row.model
            metrics[f"{row.set}/baseline"] = row.baseline
            metrics[f"{row.set}/difference"] = row.difference
            metrics[f"{row.set}/effective_robustness"] = row.effective
        columns = ["set", "zero-shot", "baseline", "difference", "effective robustness"]
        return Result(metrics, counts, {"table": {"columns": columns, "rows": [list(row) for row in rows]}})


def make_zero_shot(config: ZeroShot, bench: Bench) -> ZeroShotEvaluator:
    """The evaluator with its classes and templates.

    Raises:
        ConfigError: no class names are given and the source has none, or a template has no place for one.
    """
    classes = labelled(bench, config.labels, "source", config.source)
    templates = read_templates(config.templates, bench.sources["source"].templates, _default(config.image, bench))
    return ZeroShotEvaluator(replace(config, labels=classes.resolved(config.labels), templates=templates), classes)


def make_robustness(config: Robustness, bench: Bench) -> RobustnessEvaluator:
    """Classes and templates that the config does not name are the clean source's; raises as `make_zero_shot`."""
    classes = labelled(bench, config.labels, "clean", config.clean)
    templates = read_templates(config.templates, bench.sources["clean"].templates, _default(config.image, bench))
    return RobustnessEvaluator(replace(config, labels=classes.resolved(config.labels), templates=templates), classes)


def _default(tower: str, bench: Bench) -> tuple[str, ...]:
    """Prompts of the examples of a tower, where neither the config nor the source has any."""
    return OF_SOUNDS if isinstance(bench.model.towers[tower], SoundTower) else DEFAULT
