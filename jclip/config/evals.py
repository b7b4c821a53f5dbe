"""The dataclasses of evaluations: what is measured, on which data, by which protocol."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from jclip.config.durations import Duration
from jclip.config.fields import field_problems
from jclip.config.kinds import Kind
from jclip.config.ranges import Range
from jclip.config.towers import TextTower, Tower

Penalty = Annotated[float, Range(least=0, most=1e6)]
Count = Annotated[int, Range(least=1)]
Seed = Annotated[int, Range(least=0, most=2**32 - 1)]
"""A seed: jax and numpy read no more than 32 bits of it."""


@dataclass(frozen=True)
class Labels:
    """Place of the labels in an example, and names of the classes.

    In a tuple of names, "file:PATH" stands for the lines of a file.
    """

    field: str = "label"
    """Field of an example that holds the label, as in data.fields: an index into `classes`, or one of them; for several labels an
    example, a 0 or 1 for each class."""
    classes: tuple[str, ...] = ()
    """The classes, in the order of the labels; empty: the source's own."""
    names: tuple[str, ...] = ()
    """Names of the classes in prompts and tables, in the same order; empty: those of `classes`."""
    only: tuple[str, ...] = ()
    """Label mask: the classes that are candidates (ImageNet-R: 200 of 1,000); empty: all. Examples of the others are left
    out, and counted."""
    match: Literal["name", "position"] = "name"
    """name: the classes of a source are those of `classes` with the same names, without regard to case, underscores and Unicode
    form; only where no name matches and there are equally many, they match by position, which is logged and counted. position:
    class i of every source is class i of `classes`."""
    others: Literal["error", "leave_out"] = "error"
    """Treatment of an example whose label is none of `classes`: an error, or left out, and counted."""

    def problems(self) -> Iterator[str]:
        """Contradictions, each after the place of this dataclass."""
        by_file = any(name.startswith("file:") for name in (*self.classes, *self.names))
        if self.names and self.classes and not by_file and len(self.names) != len(self.classes):
            yield f".names has {len(self.names)} names for {len(self.classes)} classes; give one each, or none"
        yield from field_problems("", {"field": self.field})


class Evaluation(Kind):
    """Base of the dataclasses of evaluations."""

    fields: Mapping[str, str]
    """Fields of an example by tower, as in data.fields; of alternatives, the first that an example has."""
    every: Duration
    """Time between evaluations in training."""

    def towers(self) -> tuple[str, ...]:
        """Names of the towers that it uses."""
        raise NotImplementedError

    def sources(self) -> Mapping[str, str]:
        """Names of the sources that it reads, by their roles."""
        raise NotImplementedError

    def captions(self) -> tuple[str, str] | None:
        """Towers of images and of the captions that the model is to write of them; None: it is to write none."""
        return None

    def misfits(self, towers: Mapping[str, Tower]) -> Iterator[str]:
        """Contradictions with the towers of the model, each after the place of this dataclass."""
        return iter(())


class OfPrompts(Evaluation):
    """Evaluations of images by texts, which one tower has to take."""

    image: str
    """Tower that embeds the examples."""
    text: str
    """Tower that embeds the prompts."""

    def towers(self) -> tuple[str, ...]:
        """Both."""
        return self.image, self.text

    def misfits(self, towers: Mapping[str, Tower]) -> Iterator[str]:
        """A tower of prompts that is none of texts."""
        if not isinstance(towers[self.text], TextTower):
            what = "prompts" if self.captions() is None else "captions"
            yield f".text {self.text!r} is not a text tower; {what} need one"


class OfLabels(Evaluation):
    """Evaluations of one tower's features, fitted on labelled examples and tested on others."""

    train: str
    """Labelled examples to fit on."""
    source: str
    """Labelled examples to test on."""
    tower: str
    """Tower whose features are used."""

    def towers(self) -> tuple[str, ...]:
        """The tower."""
        return (self.tower,)

    def sources(self) -> Mapping[str, str]:
        """Both."""
        return {"train": self.train, "source": self.source}


@dataclass(frozen=True)
class ZeroShot(OfPrompts):
    """Zero-shot classification: the class whose prompts' mean embedding is nearest (CLIP, section 3.1)."""

    source: str
    """Labelled images."""
    labels: Labels = Labels()
    """Labels of these images."""
    templates: tuple[str, ...] = ()
    """Prompts; {} is the class name. "set:NAME" stands for the published prompts of a data set (`jclip.eval.template_set`),
    "file:PATH" for the lines of a file. Empty: the source's own, or else "a photo of a {}."."""
    image: str = "image"
    """Tower that embeds the examples."""
    text: str = "text"
    """Tower that embeds the prompts."""
    fields: Mapping[str, str] = field(default_factory=dict)
    """Like data.fields, for this source."""
    every: Duration = "100%"
    """Time between evaluations in training. All are run at the end."""

    def sources(self) -> Mapping[str, str]:
        """The one source."""
        return {"source": self.source}

    def problems(self) -> Iterator[str]:
        """Contradictions, each after the place of this dataclass."""
        yield from template_problems(self.templates)


@dataclass(frozen=True)
class Retrieval(Evaluation):
    """Retrieval both ways, with any number of captions an image."""

    source: str
    """Examples with something for either tower."""
    a: str = "image"
    """Name of one tower."""
    b: str = "text"
    """Name of the other."""
    equal: Literal["right", "wrong"] = "right"
    """Treatment of a text that equals one of an image's own, but belongs to another image. right: it is a right answer. wrong: as
    in papers on COCO and Flickr30k; of two equal texts then at most one can be found first, and ties count as lost."""
    fields: Mapping[str, str] = field(default_factory=dict)
    """Like data.fields, for this source. A text tower's field may hold several texts; without an entry it is `captions` where the
    source has that field."""
    every: Duration = "100%"
    """Time between evaluations in training. All are run at the end."""

    def towers(self) -> tuple[str, ...]:
        """Both."""
        return self.a, self.b

    def sources(self) -> Mapping[str, str]:
        """The one source."""
        return {"source": self.source}

    def problems(self) -> Iterator[str]:
        """Contradictions, each after the place of this dataclass."""
        if self.a == self.b:
            yield f": both sides are {self.a!r}; use two towers"


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


@dataclass(frozen=True)
class Robustness(OfPrompts):
    """Zero-shot accuracy on shifted test sets and a clean one, beside a probe of the same tower fitted on clean images."""

    train: str
    """Labelled examples that the probe is fitted on."""
    clean: str
    """Labelled examples of the same kind."""
    shifted: Mapping[str, str]
    """Labelled examples of other kinds, by the name they have in the table."""
    masks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Classes that are candidates, by the name of a set. A set whose source names fewer classes needs none: these are
    its candidates (ImageNet-R and -A: 200 of 1,000)."""
    baselines: Mapping[str, Mapping[str, Annotated[float, Range(least=0, most=1)]]] = field(default_factory=dict)
    """Published accuracies, 0 to 1, by the name of a supervised model and by set, "clean" included; they join the probe."""
    l2: Penalty = 1e-3
    """Penalty of the probe; see LinearProbe."""
    labels: Labels = Labels()
    """Labels of all these sources; classes that are not given are those of `clean`."""
    templates: tuple[str, ...] = ()
    """Prompts, as in ZeroShot; empty: the clean source's own."""
    image: str = "image"
    """Tower that embeds the examples."""
    text: str = "text"
    """Tower that embeds the prompts."""
    fields: Mapping[str, str] = field(default_factory=dict)
    """Like data.fields, for these sources."""
    every: Duration = "100%"
    """Time between evaluations in training. All are run at the end."""

    def sources(self) -> Mapping[str, str]:
        """The clean and the shifted ones, and what the probe is fitted on."""
        return {"train": self.train, "clean": self.clean, **self.shifted}

    def problems(self) -> Iterator[str]:
        """Contradictions, each after the place of this dataclass."""
        if not self.shifted or {"clean", "train", "source"} & set(self.shifted):
            sets = ", ".join(self.shifted) or "no set"
            yield f".shifted names {sets}; give at least one, of another name than clean and train"
        for name in self.masks:
            if name not in ("clean", *self.shifted):
                yield f".masks names {name!r}, which is no set; sets: clean, {', '.join(self.shifted)}"
        for name, known in self.baselines.items():
            if set(known) != {"clean", *self.shifted}:
                sets = ", ".join(("clean", *self.shifted))
                yield f".baselines: {name!r} needs an accuracy for each of {sets}; got {dict(known)}"
        yield from template_problems(self.templates)


@dataclass(frozen=True)
class Choice(OfPrompts):
    """Choice of the caption that belongs to an image, where the others differ by a word or by their order (SugarCrepe,
    Winoground): a right pair has to be strictly nearer than every wrong one."""

    source: str
    """Examples with `images` and `captions`, of which caption i belongs to image i; further captions are wrong."""
    image: str = "image"
    """Tower that embeds the images."""
    text: str = "text"
    """Tower that embeds the captions."""
    fields: Mapping[str, str] = field(default_factory=dict)
    """Fields of the inputs by tower, where they are not `images` and `captions`."""
    every: Duration = "100%"
    """Time between evaluations in training. All are run at the end."""

    def sources(self) -> Mapping[str, str]:
        """The one source."""
        return {"source": self.source}


@dataclass(frozen=True)
class Captioning(OfPrompts):
    """Captions that a model with an objective `Caption` writes, against those of the images: BLEU-4, CIDEr-D and exact matches
    (`jclip.eval.captions`); of scenes of `shapes` also how often a caption names exactly their objects."""

    source: str
    """Examples with an image and one or several captions."""
    image: str = "image"
    """Tower of the images."""
    text: str = "text"
    """Tower of the captions."""
    beams: Count = 1
    """Captions followed at a time; 1 takes the likeliest token each time."""
    length: Annotated[int, Range(least=2)] | None = None
    """Tokens of a caption at most, start and end of text among them; None: the tower's context_length."""
    length_penalty: Annotated[float, Range(least=0, most=10)] = 1.0
    """A caption's log-probability is divided by its length to this power; see `jclip.captioning.Search`."""
    fields: Mapping[str, str] = field(default_factory=dict)
    """Like data.fields, for this source. Captions are as in Retrieval."""
    every: Duration = "100%"
    """Time between evaluations in training. All are run at the end."""

    def sources(self) -> Mapping[str, str]:
        """The one source."""
        return {"source": self.source}

    def captions(self) -> tuple[str, str] | None:
        """Both towers."""
        return self.image, self.text

    def misfits(self, towers: Mapping[str, Tower]) -> Iterator[str]:
        """A tower of captions that is none of texts, or not so long."""
        text = towers[self.text]
        yield from super().misfits(towers)
        if isinstance(text, TextTower) and (self.length or 0) > text.context_length:
            yield f".length {self.length} is more than the tower's context_length {text.context_length}"
        if isinstance(text, TextTower) and 2 * self.beams > text.vocab_size:
            yield f".beams {self.beams} is more than half of the vocabulary of {text.vocab_size}"


def template_problems(templates: tuple[str, ...]) -> Iterator[str]:
    """Problems of templates, after the place of the dataclass that has them."""
    for template in templates:
        if "{}" not in template and not template.startswith(("set:", "file:")):
            yield f".templates: each needs a {{}} where the class name goes, or is set:NAME or file:PATH; got {template!r}"


@dataclass(frozen=True)
class Suite:
    """Evaluations of one model, as `jclip eval MODEL --suite FILE.py` runs them."""

    evals: Mapping[str, Evaluation]
    """Evaluations by name, in order; the name is the prefix of the metrics."""
    batch_size: Count = 256
    """Examples in the global batch; no result depends on it."""
    max_pixels: Annotated[int, Range(least=1)] = 64_000_000
    """Larger images are broken examples, as in training; see `Data`."""
