"""The linear probe: multinomial logistic regression on `pooled`, fitted by L-BFGS (Radford et al. 2021, appendix A.3)."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from jclip.config import LinearProbe, Model
from jclip.data import Source, Transform, eval_transform, open_source
from jclip.eval.embed import Embedded, Functions, embed_source
from jclip.eval.labels import class_names, label_reader, mean_per_class
from jclip.eval.logistic import GRADIENT as _GRADIENT
from jclip.eval.logistic import ITERATIONS as _ITERATIONS
from jclip.eval.logistic import fit_logistic as fit_logistic

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LinearProbeEvaluator:
    """Yields top1 and mean_per_class on the test source, examples, and broken (of both sources) where there are any."""

    config: LinearProbe
    functions: Functions
    train: Source
    test: Source
    classes: tuple[str, ...]
    transform: Transform

    def run(self, params: Any) -> Iterator[tuple[str, float]]:
        train, test = self._embed(params, self.train), self._embed(params, self.test)
        x_train, x_test = train.features[self.config.tower], test.features[self.config.tower]
        y_train, y_test = train.extra[self.config.label], test.extra[self.config.label]
        correct = self._correct(x_train, y_train, x_test, y_test)
        yield "top1", float(np.mean(correct))
        yield "mean_per_class", mean_per_class(correct, y_test)
        yield "examples", len(y_test)
        if train.broken + test.broken:
            yield "broken", train.broken + test.broken

    def _embed(self, params: Any, source: Source) -> Embedded:
        extra = {self.config.label: label_reader(self.classes)}
        transforms = {self.config.tower: self.transform}
        return embed_source(self.functions, params, source, transforms, fields=self.config.fields, extra=extra, part="pooled")

    def _correct(self, x_train: np.ndarray, y_train: np.ndarray, x_test: np.ndarray, y_test: np.ndarray) -> np.ndarray:
        if not (np.isfinite(x_train).all() and np.isfinite(x_test).all()):
            log.warning("linear probe on %s: features are not finite; every prediction counts as wrong", self.config.source)
            return np.zeros(len(y_test), bool)
        fit = fit_logistic(x_train, y_train, len(self.classes), l2=self.config.l2, iterations=_ITERATIONS)
        if not fit.converged:
            log.warning(
                "linear probe on %s: not converged after %d iterations, gradient %.1e (limit %.0e); l2 %g may be too small",
                self.config.source,
                fit.iterations,
                fit.gradient,
                _GRADIENT,
                self.config.l2,
            )
        correct: np.ndarray = fit.predict(x_test) == y_test
        return correct


def make_linear_probe(config: LinearProbe, model: Model, functions: Functions) -> LinearProbeEvaluator:
    """Opens both sources.

    Raises:
        ValueError: no class names are given and the test source has none.
    """
    train, test = open_source(config.train), open_source(config.source)
    classes = class_names(config.classes, test, config.source)
    return LinearProbeEvaluator(config, functions, train, test, classes, eval_transform(model.towers[config.tower]))
