"""The dataclasses of evaluations of images by texts: zero-shot, robustness, choice of captions, captioning, retrieval."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from jclip.config.durations import Duration
from jclip.config.evals.base import Count, Evaluation, Labels, OfPrompts, Penalty
from jclip.config.fields import field_problems
from jclip.config.ranges import Range
from jclip.config.towers import TokenTower, Tower


@dataclass(frozen=True)
class ZeroShot(OfPrompts):
    """Zero-shot classification: the class whose prompts' mean embedding is nearest (CLIP, section 3.1)."""

    source: str
    """Labelled images, or sounds, or what else a tower sees."""
    labels: Labels = Labels()
    """Labels of these examples."""
    templates: tuple[str, ...] = ()
    """Prompts; {} is the class name. "set:NAME" stands for the published prompts of a data set (`jclip.eval.template_set`),
    "file:PATH" for the lines of a file. Empty: the source's own, or else "a photo of a {}.", and "This is a sound of {}."
    for sounds."""
    image: str = "image"
    """Tower that embeds the examples."""
    text: str = "text"
    """Tower that embeds the prompts."""
    ks: tuple[Count, ...] = (1, 5)
    """Places that the right class may have: top1, top5, ... are the shares of examples where it is among the first of them, each
    from so many classes on. With 10 among them there is map@10 too, as of retrieval: 1 / place up to the tenth, and 0 beyond."""
    groups: str = ""
    """Field that divides the examples, such as ESC-50's `fold`: each metric is computed for each group, and as the mean of these;
    empty: they are not divided."""
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
        if list(self.ks) != sorted({1, *self.ks}):
            yield f".ks {self.ks} must be rising numbers from 1 on, such as (1, 5, 10)"
        if self.groups:
            yield from field_problems("", {"groups": self.groups})


@dataclass(frozen=True)
class Retrieval(Evaluation):
    """Retrieval both ways, with any number of captions an image."""

    source: str
    """Examples with something for either tower."""
    a: str = "image"
    """Name of one tower; or several, joined as in "image+sound": the unit vector of the sum of what they make of an example
    (Girdhar et al. 2023, ImageBind, section 4.3)."""
    b: str = "text"
    """Name of the other, or of several."""
    equal: Literal["right", "wrong"] = "right"
    """Treatment of a text that equals one of an image's own, but belongs to another image. right: it is a right answer. wrong: as
    in papers on COCO and Flickr30k; of two equal texts then at most one can be found first, and ties count as lost."""
    fields: Mapping[str, str] = field(default_factory=dict)
    """Like data.fields, for this source. A text tower's field may hold several texts; without an entry it is `captions` where the
    source has that field."""
    every: Duration = "100%"
    """Time between evaluations in training. All are run at the end."""

    def towers(self) -> tuple[str, ...]:
        """Towers of both sides, each once."""
        return tuple(dict.fromkeys((*self.a.split("+"), *self.b.split("+"))))

    def sources(self) -> Mapping[str, str]:
        """The one source."""
        return {"source": self.source}

    def problems(self) -> Iterator[str]:
        """Contradictions, each after the place of this dataclass."""
        sides = [self.a.split("+"), self.b.split("+")]
        if twice := sorted(name for name in {*sides[0], *sides[1]} if sides[0].count(name) + sides[1].count(name) > 1):
            yield f": {', '.join(twice)} is there twice, in {self.a!r} and {self.b!r}; use two towers"

    def misfits(self, towers: Mapping[str, Tower]) -> Iterator[str]:
        """Sums with texts, of which an example may have several."""
        for side, names in (("a", self.a.split("+")), ("b", self.b.split("+"))):
            texts = [name for name in names if isinstance(towers[name], TokenTower)]
            if texts and len(names) > 1:
                yield f".{side} {'+'.join(names)!r} adds texts, of which an example may have several; leave out {texts[0]}"


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
        if isinstance(text, TokenTower) and (self.length or 0) > text.context_length:
            yield f".length {self.length} is more than the tower's context_length {text.context_length}"
        if isinstance(text, TokenTower) and 2 * self.beams > text.vocab_size:
            yield f".beams {self.beams} is more than half of the vocabulary of {text.vocab_size}"


def template_problems(templates: tuple[str, ...]) -> Iterator[str]:
    """Problems of templates, after the place of the dataclass that has them."""
    for template in templates:
        if "{}" not in template and not template.startswith(("set:", "file:")):
            yield f".templates: each needs a {{}} where the class name goes, or is set:NAME or file:PATH; got {template!r}"
