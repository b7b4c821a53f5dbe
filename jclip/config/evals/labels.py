"""The dataclasses of evaluations of one tower's features on labelled examples: probes and neighbours."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from jclip.config.durations import Duration
from jclip.config.evals.base import Count, Labels, OfLabels, Penalty, Seed
from jclip.config.ranges import Range


@dataclass(frozen=True)
class LinearProbe(OfLabels):
    """A linear classifier on frozen features, fitted by one of the protocols of the literature (`jclip.eval.fit_probe`)."""

    train: str
    """Labelled examples to fit on."""
    source: str
    """Labelled examples to test on."""
    protocol: Literal["logistic", "openai", "clip_benchmark", "ridge"] = "logistic"
    """logistic: one L-BFGS fit with `l2`. openai: the same with a strength found by bisection on a grid of 97
    (CLIP, appendix A.3), of which 11 to 15 are fitted.
    clip_benchmark: AdamW on unit vectors, weight decay found on the same grid. ridge: least squares in closed form, strength
    chosen by leaving out one example at a time."""
    validation: str = ""
    """Labelled examples that the searches choose by; empty: a fifth of each class of `train`."""
    labels: Labels = Labels()
    """Labels of all these sources."""
    metric: Literal["accuracy", "mean_per_class", "map11", "roc_auc"] = "accuracy"
    """The data set's own, which the searches choose by. map11, the mean average precision at 11 recalls (VOC 2007), and roc_auc
    are for several labels an example too."""
    tower: str = "image"
    """Tower whose output is probed: `pooled`, before the projection, or for clip_benchmark the unit vectors."""
    l2: Penalty = 1e-3
    """Penalty on the squared weights, for logistic, added to the mean cross-entropy as l2/2 |W|^2; the intercept is free."""
    seed: Seed = 0
    """Seed of the split of `train`, and of the order in which AdamW sees the examples."""
    precise: bool = False
    """Precise end of logistic and openai in f64, which brings probabilities of examples far from those fitted to within 1e-4 of
    the optimum's where the penalty is weak; slow on a TPU."""
    save: str = ""
    """File the probe is written to (safetensors; `jclip.eval.load_probe`, `jclip classify --probe`); empty: none."""
    fields: Mapping[str, str] = field(default_factory=dict)
    """Like data.fields, for these sources."""
    every: Duration = "100%"
    """Time between evaluations in training. All are run at the end."""

    def sources(self) -> Mapping[str, str]:
        """All, with what the searches choose by if that is given."""
        validation = {"validation": self.validation} if self.validation else {}
        return {"train": self.train, "source": self.source, **validation}

    def problems(self) -> Iterator[str]:
        """Contradictions, each after the place of this dataclass."""
        if self.precise and self.protocol in ("clip_benchmark", "ridge"):
            yield f".precise: protocol {self.protocol} has no f64 to end in; leave it out"
        if self.validation and self.protocol in ("logistic", "ridge"):
            yield f".validation {self.validation!r}: protocol {self.protocol} searches nothing; leave it out"


@dataclass(frozen=True)
class FewShot(OfLabels):
    """Linear probes on k examples a class: a curve with mean and standard deviation over samples of the training set."""

    train: str
    """Labelled examples to sample from."""
    source: str
    """Labelled examples to test on."""
    k: tuple[Count, ...] = (1, 2, 4, 8, 16)
    """Examples a class."""
    seeds: Count = 3
    """Number of samples for each k; the sample of a smaller k is part of that of a larger one."""
    l2: Penalty = 1e-3
    """See LinearProbe."""
    labels: Labels = Labels()
    """Labels of both sources."""
    tower: str = "image"
    """Tower whose `pooled` output is probed."""
    fields: Mapping[str, str] = field(default_factory=dict)
    """Like data.fields, for these sources."""
    every: Duration = "100%"
    """Time between evaluations in training. All are run at the end."""

    def problems(self) -> Iterator[str]:
        """Contradictions, each after the place of this dataclass."""
        if not self.k or list(self.k) != sorted(set(self.k)):
            yield f".k {self.k} must be rising numbers of examples, such as (1, 2, 4, 8, 16)"


@dataclass(frozen=True)
class NearestNeighbours(OfLabels):
    """k-NN on unit vectors: neighbours vote with weight exp(cosine / temperature) (Wu et al. 2018, section 3.4)."""

    train: str
    """Labelled examples that vote."""
    source: str
    """Labelled examples to test on."""
    k: Count = 20
    """Number of neighbours."""
    temperature: Annotated[float, Range(least=1e-3, most=1e6)] | None = 0.07
    """Temperature of the votes; None: every neighbour has one vote."""
    labels: Labels = Labels()
    """Labels of both sources."""
    tower: str = "image"
    """Tower whose unit vectors are compared."""
    fields: Mapping[str, str] = field(default_factory=dict)
    """Like data.fields, for these sources."""
    every: Duration = "100%"
    """Time between evaluations in training. All are run at the end."""
