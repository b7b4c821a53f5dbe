"""The evaluators of prompts: zero-shot classification, and its robustness to shifts of the data."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from jclip.config import ConfigError, Robustness, SoundTower, Tower, ZeroShot
from jclip.data import BadExample, read_field
from jclip.eval.bench import Bench, Examples, LabelledBench, labelled
from jclip.eval.classification import multi_label_metrics
from jclip.eval.evaluators.details import classification
from jclip.eval.labels import require_words
from jclip.eval.logistic import fit_logistic
from jclip.eval.result import Evaluator, Result
from jclip.eval.robustness import robustness_table
from jclip.eval.templates import DEFAULT, OF_SOUNDS, read_templates
from jclip.eval.zero_shot import class_embeddings, score_metrics, zero_shot_metrics

log = logging.getLogger(__name__)

Measure = Callable[[np.ndarray], dict[str, float]]
"""(bool [n], some of the examples) -> their metrics."""

GROUPS = 100
"""Groups of an evaluation, at most."""


def prompt_classes(bench: LabelledBench, params: Any, templates: tuple[str, ...], text: str) -> np.ndarray:
    """Unit vectors [C, E] of the candidates, from their prompts.

    Raises:
        ConfigError: a prompt cannot be read.
    """
    prompts = [template.replace("{}", name) for name in bench.names for template in templates]
    z, read = bench.bench.embed_texts(params, prompts, text)
    if not read.all():
        raise ConfigError(
            f"evaluation: the prompt {prompts[int(np.argmin(read))][:80]!r} cannot be read; shorten or rename the class"
        )
    return class_embeddings(z.reshape(len(bench.names), len(templates), -1))


def head_scores(bench: LabelledBench, params: Any, source: str, image: str) -> np.ndarray:
    """Scores f32 [n, C] of the examples of a source by the head of an adapted model."""
    assert bench.functions.head is not None
    z, pooled = (bench.examples(params, source, image, pooled=part).features for part in (False, True))
    return bench.functions.head(bench.names, z, pooled)


@dataclass(frozen=True)
class ZeroShotEvaluator(Evaluator):
    """top1, top5 (from 5 classes on) and mean_per_class; map where examples have several labels. Of groups GROUPS/VALUE/METRIC,
    and their mean, mean/GROUPS/METRIC."""

    config: ZeroShot
    bench: LabelledBench

    def run(self, params: Any, *, details: bool = False) -> Result:
        """See Evaluator."""
        config, bench = self.config, self.bench
        examples = bench.examples(params, "source", config.image, pooled=False)
        counts, shown = {**examples.counts, "classes": len(bench.names)}, dict[str, Any]()
        if bench.functions.head is not None:
            measure = self._by_scores(head_scores(bench, params, "source", config.image), examples.labels)
        else:
            classes = prompt_classes(bench, params, config.templates, config.text)
            counts["templates"] = len(config.templates)
            measure = self._by_classes(examples, classes)
            if details and examples.labels.ndim == 1:
                field = config.fields.get(config.image, config.image)
                shown = classification(bench.sources["source"], field, examples, classes, bench.names, self._tower)
        metrics = measure(np.ones(len(examples.labels), bool))
        if config.groups:
            each = {name: measure(rows) for name, rows in self._groups(examples).items()}
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

    def _by_classes(self, examples: Examples, classes: np.ndarray) -> Measure:
        """Metrics of examples that are compared with the prompts of classes."""
        z, labels = examples.features, examples.labels
        if labels.ndim == 2:
            return lambda rows: multi_label_metrics(z[rows] @ classes.T, labels[rows])
        return lambda rows: zero_shot_metrics(z[rows], classes, labels[rows], self.config.ks)

    def _by_scores(self, scores: np.ndarray, labels: np.ndarray) -> Measure:
        """Metrics of examples by the scores of a head."""
        if labels.ndim == 2:
            return lambda rows: multi_label_metrics(scores[rows], labels[rows])
        return lambda rows: score_metrics(scores[rows], labels[rows], self.config.ks)

    def _groups(self, examples: Examples) -> dict[str, np.ndarray]:
        """Examples of each group, bool [n], by its name, in the order of numbers or of names.

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
        return {name: of == name for name in names}


@dataclass(frozen=True)
class RobustnessEvaluator(Evaluator):
    """SET/zero_shot, /probe, /baseline (of probe and published models the nearest in clean accuracy), /difference and
    /effective_robustness, of the clean set and of each that is shifted."""

    config: Robustness
    bench: LabelledBench

    def run(self, params: Any, *, details: bool = False) -> Result:
        """See Evaluator."""
        config, bench, functions = self.config, self.bench, self.bench.functions
        head = functions.head is not None
        classes = None if head else prompt_classes(bench, params, config.templates, config.text)
        train = bench.examples(params, "train", config.image, pooled=True)
        pairs, how = (train.features, train.labels), functions.place
        probe = fit_logistic(*pairs, len(bench.names), l2=config.l2, place=how, devices=functions.devices)
        counts = {"train_examples": len(train.labels), "classes": len(bench.names), "templates": len(config.templates)}
        if not probe.converged:
            log.warning("robustness: the probe on %s has not converged after %d iterations", config.train, probe.iterations)
            counts["not_converged"] = 1
        zero_shot, probed, sizes = {}, {}, {}
        for name in ("clean", *config.shifted):
            z, pooled = (bench.examples(params, name, config.image, pooled=part) for part in (False, True))
            chosen = bench.candidates(name, config.masks.get(name, ()))
            kept = np.isin(z.labels, chosen)
            if not kept.any():
                raise ConfigError(f"evaluation: no example of {name} has a class of its mask; see masks")
            labels = np.searchsorted(chosen, z.labels[kept])
            if classes is None:
                scores = head_scores(bench, params, name, config.image)[kept][:, chosen]
                zero_shot[name] = score_metrics(scores, labels)["top1"]
            else:
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
        ConfigError: no class names are given and the source has none, they are numbers of WordNet, or a template has no place
            for one.
    """
    classes = _in_words(labelled(bench, config.labels, "source", config.source))
    templates = read_templates(config.templates, bench.sources["source"].templates, _default(config.image, bench))
    return ZeroShotEvaluator(replace(config, labels=classes.resolved(config.labels), templates=templates), classes)


def make_robustness(config: Robustness, bench: Bench) -> RobustnessEvaluator:
    """Classes and templates that the config does not name are the clean source's; raises as `make_zero_shot`."""
    classes = _in_words(labelled(bench, config.labels, "clean", config.clean))
    templates = read_templates(config.templates, bench.sources["clean"].templates, _default(config.image, bench))
    return RobustnessEvaluator(replace(config, labels=classes.resolved(config.labels), templates=templates), classes)


def _in_words(classes: LabelledBench) -> LabelledBench:
    """The same; raises ConfigError where its prompts would have no words."""
    if classes.functions.head is None:
        require_words(
            classes.names,
            "evaluation",
            "write their names into a file, a line for each in the order of the folders: DIR/classnames.txt, or labels.names "
            "file:PATH",
        )
    return classes


def _default(tower: str, bench: Bench) -> tuple[str, ...]:
    """Prompts of the examples of a tower, where neither the config nor the source has any."""
    return OF_SOUNDS if isinstance(bench.model.towers[tower], SoundTower) else DEFAULT
