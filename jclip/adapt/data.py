"""The data of an adaptation: classes, shots of a seed, their views, and the embeddings of all, encoded once."""

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from hashlib import blake2b
from itertools import groupby
from typing import Any

import numpy as np
from jax.sharding import Mesh

from jclip.adapt.heads import Features, projected_norm
from jclip.adapt.prompts import read_by_class, read_prompts
from jclip.adapt.task import Encoding, LabelledFeatures, Task
from jclip.config import Adapt, Augment, ConfigError, Model, SoundTower, to_json
from jclip.config.adapt import Choose, Method
from jclip.config.adapt_methods import CrossModal, PromptSearch, Views
from jclip.data import BadExample, Source, Transform, train_transform
from jclip.data.fields import class_names
from jclip.data.names import name_key
from jclip.data.reader import make_arrays, reading_threads
from jclip.data.subset import SelectedExamples
from jclip.eval import Functions, class_embeddings, embed_source, embed_texts, tower_facts
from jclip.eval.embed import cached
from jclip.eval.few_shot import sample_few_shot
from jclip.eval.labels import BROKEN, LEFT_OUT, Classes, make_classes, require_words
from jclip.eval.templates import DEFAULT, OF_SOUNDS, read_templates

VALIDATION_SHOTS = 4
"""Most examples of a class that are chosen by, with val_shots="few" (CoOp, Lin et al. 2023)."""


@dataclass(frozen=True)
class LabelledRows:
    """Examples of a source that are used: where they are, and their labels."""

    source: Source
    rows: np.ndarray
    """int64 [n], rising."""
    labels: np.ndarray
    """int64 [n], indices into the classes."""
    role: str = "source"
    """Role or name of the source, for errors."""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """Numbers of examples of the source that are not used, by the reason."""

    @cached_property
    def part(self) -> Source:
        """The examples as a source; the whole of it where it is all."""
        everything = len(self.rows) == len(self.source)
        return self.source if everything else SelectedExamples(self.source, self.rows, ())

    def draw(self, names: Sequence[str], k: int, seed: int) -> "LabelledRows":
        """k examples of each class; those of a smaller k are among them. Raises ConfigError where a class has fewer."""
        try:
            chosen = sample_few_shot(self.labels, names, k, seed)
        except ConfigError as error:
            raise ConfigError(f"adapt: {self.role}: {error}") from None
        return replace(self, rows=self.rows[chosen], labels=self.labels[chosen])

    def keys(self) -> list[str]:
        """The keys of the examples."""
        return [str(self.source[int(row)]["key"]) for row in self.rows]


@dataclass(frozen=True)
class Subject:
    """A model to adapt: its towers and parameters, and how to embed with them."""

    model: Model
    params: Mapping[str, Any] = field(repr=False)
    """Nested."""
    mesh: Mesh
    functions: Functions
    scale: float
    """Factor on cosines."""


@dataclass(frozen=True)
class AdaptData:
    """The sources of an adaptation, opened, and what is encoded of them."""

    config: Adapt
    subject: Subject
    sources: Mapping[str, Source]
    """Open sources by their roles: source, val, test."""
    open: Callable[[str], Source]
    """Opens further sources."""
    further: dict[str, LabelledRows] = field(default_factory=dict, repr=False)
    """Examples of further sources that are open, by their names."""
    compiled: dict[Any, Any] = field(default_factory=dict, repr=False)
    """See Task."""

    @cached_property
    def classes(self) -> Classes:
        """The classes, of the config or of the source. Raises ConfigError where they cannot be told apart."""
        classes = make_classes(self.config.labels, self.sources["source"], self.config.source)
        names = classes.candidate_names
        if len(names) < 2:
            raise ConfigError(f"adapt: there is one class, {names[0]!r}; a classifier needs two or more")
        if not self.config.descriptions:  # these may describe classes by their numbers
            require_words(names, "adapt", "name them with labels.names file:PATH, a line for each class in their order")
        for alike in groupby(sorted(names, key=name_key), name_key):
            if len(called := list(dict.fromkeys(same := list(alike[1])))) < len(same) or len(called) > 1:
                shown = " or ".join(map(repr, called))
                raise ConfigError(
                    f"adapt: {len(same)} classes are called {shown}, and no prompt distinguishes them; rename them with "
                    "labels.names"
                )
        return classes

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.classes.candidate_names

    @cached_property
    def templates(self) -> tuple[str, ...]:
        """Templates of the zero-shot classifier."""
        return self._prompts[0]

    @cached_property
    def _prompts(self) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
        own = tuple(getattr(self.sources["source"], "templates", ()))
        sounds = isinstance(self.subject.model.towers[self.config.image], SoundTower)
        return read_prompts(self.config, self.names, own, OF_SOUNDS if sounds else DEFAULT)

    @cached_property
    def classifier(self) -> np.ndarray:
        """Zero-shot classifier f32 [C, E]: the mean of each class's prompts, all of unit length."""
        texts = self._prompts[1]
        z = self.texts([text for of_class in texts for text in of_class])
        parts = np.split(z, np.cumsum([len(of_class) for of_class in texts])[:-1])
        if len({len(part) for part in parts}) == 1:  # in one call, as evaluations compute it
            return class_embeddings(z.reshape(len(parts), -1, z.shape[-1]))
        return np.concatenate([class_embeddings(part[None]) for part in parts])

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors f32 [n, E] of texts. Raises ConfigError where one cannot be read."""
        tower = self.config.text
        z, read = embed_texts(self.subject.functions, self.subject.params, list(texts), tower, self.subject.model.towers[tower])
        if not read.all():
            raise ConfigError(f"adapt: the text {texts[int(np.argmin(read))][:80]!r} cannot be read; shorten or rename the class")
        return z

    @cached_property
    def rows(self) -> dict[str, LabelledRows]:
        """All examples of each role whose label is a class.

        Raises:
            ConfigError: labels are unknown, or several an example; or none is left.
        """
        return {role: self.read(source, role) for role, source in self.sources.items()}

    def read(self, source: Source, role: str) -> LabelledRows:
        """The examples of a source that have a label; raises as `rows`."""
        found = self.classes.read(source, self.config.labels.field)
        if found.several is not None:
            raise ConfigError(f"adapt: examples of {role} have several labels each; a classifier of one label is learned")
        used = np.flatnonzero(found.labels >= 0)
        marks = {"without a label": BROKEN, "of other classes": LEFT_OUT}
        left_out = {why: int(np.sum(found.labels == mark)) for why, mark in marks.items() if np.any(found.labels == mark)}
        if not len(used):
            counts = ", ".join(f"{why} {count}" for why, count in left_out.items())
            raise ConfigError(f"adapt: no example of {role} is left ({counts}); see labels.only and labels.others")
        return LabelledRows(source, used, found.labels[used], role, left_out)

    def encoded(self, rows: LabelledRows, role: str, *, params: Any = None, tower: str | None = None) -> LabelledFeatures:
        """Embeddings of examples; of other parameters than the model's own nothing is cached.

        Raises:
            ConfigError: one of the shots, or of the examples to choose by, cannot be read. Of the test they are left out.
        """
        subject, tower = self.subject, tower or self.config.image
        functions = subject.functions
        if params is not None:
            functions = Functions(**{**vars(functions), "cache": None, "weights": None})
        used = subject.params if params is None else params
        part, where = rows.part, self.config.fields.get(tower)
        found = embed_source(functions, used, part, tower, subject.model.towers[tower], where)
        if not found.read.all() and role != "test":
            key = self._key(rows, int(np.argmin(found.read)))
            raise ConfigError(f"adapt: example {key} of {role} cannot be read; leave it out of the source, or mend it")
        norm = projected_norm(subject.model, used, tower, found.pooled)
        return LabelledFeatures(Features(found.z, norm).take(found.read), rows.labels[found.read])

    def _key(self, rows: LabelledRows, index: int) -> str:
        try:
            return repr(rows.source[int(rows.rows[index])]["key"])
        except BadExample as problem:
            return f"{int(rows.rows[index])} ({problem})"

    @cached_property
    def test(self) -> LabelledFeatures:
        """Embeddings of the test, by the model itself."""
        return self.encoded(self.rows["test"], "test")

    def selection(self, select: str, shots: int, seed: int) -> LabelledRows:
        """Examples to choose by: of the validation, few or all, or of the test, all."""
        if select == "test":
            return self.rows["test"]
        if self.config.val_shots == "all":
            return self.rows["val"]
        return self.rows["val"].draw(self.names, min(shots, VALIDATION_SHOTS), seed)

    def require(self) -> None:
        """Looks whether every cell can be drawn, before the first one is run.

        Raises:
            ConfigError: a class has too few examples in a source; two sources that must differ have the same examples; a method
                learns from a tower that the model does not have.
        """
        most, towers = max(self.config.shots), self.subject.model.towers
        for name, method in self.config.methods.items():
            if isinstance(method, CrossModal) and method.extra and method.tower not in towers:
                known = ", ".join(towers)
                raise ConfigError(f"adapt: methods.{name}.tower: the model has no tower {method.tower!r}; towers: {known}")
        self.rows["source"].draw(self.names, most, 0)
        self.selection("val", most, 0)
        learned = {"source": "source", **{f"methods.{name}.extra": spec for name, spec in self.extras().items()}}
        for role, spec in learned.items():
            rows = self.rows["source"] if role == "source" else self.opened(spec)
            rows.draw(self.names, most, 0)
            for other in ("val", "test"):
                if rows.source.fingerprint() == self.sources[other].fingerprint():
                    raise ConfigError(f"adapt: {other} has the very examples of {role}; give examples of its own")
        if self.sources["val"].fingerprint() == self.sources["test"].fingerprint():
            raise ConfigError("adapt: test has the very examples of val; give examples of its own")

    def extras(self) -> dict[str, str]:
        """Further labelled examples, by the names of the methods that learn from them."""
        return {name: how.extra for name, how in self.config.methods.items() if isinstance(how, CrossModal) and how.extra}

    def opened(self, spec: str) -> LabelledRows:
        """The examples of a further source, which is opened once; raises as `rows`."""
        if spec not in self.further:
            self.further[spec] = self.read(self.open(spec), spec)
        return self.further[spec]

    def left_out(self) -> dict[str, dict[str, int]]:
        """Numbers of examples that have no label, or that of another class, by role or source and by the reason."""
        everything = {**self.rows, **{spec: self.opened(spec) for spec in self.extras().values()}}
        return {role: dict(rows.left_out) for role, rows in everything.items() if rows.left_out}

    def prompts_digest(self) -> str:
        """32 hexadecimal digits of the templates and of the texts of every class, wherever they come from."""
        return blake2b(json.dumps(self._prompts).encode(), digest_size=16).hexdigest()

    def files(self, method: Method) -> dict[str, str]:
        """Digests of what a method reads beyond its settings, by the names of the fields that name it."""
        found = {}
        if isinstance(method, CrossModal) and method.extra:
            found["extra"] = self.opened(method.extra).source.fingerprint()
        if isinstance(method, PromptSearch):
            found["templates"] = blake2b(json.dumps(read_templates(method.templates)).encode(), digest_size=16).hexdigest()
            if method.names:
                texts = read_by_class(method.names, self.names)
                found["names"] = blake2b(json.dumps(texts).encode(), digest_size=16).hexdigest()
        return found

    def task(self, shots: int, seed: int, select: str = "val") -> tuple[Task, LabelledRows]:
        """The task of a cell, and its shots."""
        rows = self.rows["source"].draw(self.names, shots, seed)
        chosen = self.selection(select, shots, seed)
        role: Choose = "val" if select == "val" else "test"
        found = self.encoded(rows, "source")
        encoding = Encoding(
            partial(self.views, rows, seed),
            self.texts,
            partial(self.pixels, rows, seed),
            lambda params: self.encoded(chosen, role, params=params),
            partial(self._extra, shots, seed),
        )
        subject = self.subject
        task = Task(
            names=self.names,
            shots=shots,
            seed=seed,
            labels=rows.labels,
            images=found.features,
            selection=self.encoded(chosen, role),
            templates=self.templates,
            prompts=self._prompts[1],
            classifier=self.classifier,
            scale=subject.scale,
            model=subject.model,
            params=subject.params,
            mesh=subject.mesh,
            image=self.config.image,
            text=self.config.text,
            encode=encoding,
            select=role,
            compiled=self.compiled,
        )
        return task, rows

    def _extra(self, shots: int, seed: int, spec: str, tower: str) -> LabelledFeatures:
        return self.encoded(self.opened(spec).draw(self.names, shots, seed), spec, tower=tower)

    def views(self, rows: LabelledRows, seed: int, views: Views, epochs: int) -> Features:
        """Embeddings of random views of examples, [V, n, E]; where V is 0, of the examples themselves, [1, n, E].

        A view is a function of the seed, its number and the example's place in the source.
        """
        count = epochs if views.count is None else views.count
        if not count:
            return self.encoded(rows, "source").features.take(None)
        tower, functions = self.config.image, self.subject.functions

        def make() -> dict[str, np.ndarray]:
            n = len(rows.rows)
            where = np.tile(np.arange(n), count), np.repeat(np.arange(count), n)
            found = self._embed_pixels(rows, seed, views.augment, *where)
            return {"z": found.z.reshape(count, n, -1), "norm": found.norm.reshape(count, n)}

        facts = {
            "tower": tower_facts(self.subject.model.towers[tower]),
            "field": self.config.fields.get(tower, tower),
            "max_pixels": functions.max_pixels,
            "views": {"count": count, "seed": seed, "augment": to_json(views.augment)},
        }
        arrays = cached(functions, tower, facts, rows.part.fingerprint, make)
        return Features(arrays["z"], arrays["norm"])

    def _embed_pixels(self, rows: LabelledRows, seed: int, augment: Augment, where: np.ndarray, views: np.ndarray) -> Features:
        functions, tower = self.subject.functions, self.config.image
        local = functions.batch_size // functions.hosts
        own = slice(functions.host * local, (functions.host + 1) * local)
        parts = []
        for start in range(0, len(where), functions.batch_size):
            chosen = np.arange(start, start + functions.batch_size) % len(where)
            pixels = self.pixels(rows, seed, augment, where[chosen[own]], views[chosen[own]])
            made = functions.embed(self.subject.params, {tower: pixels})[tower]
            norm = projected_norm(self.subject.model, self.subject.params, tower, made.pooled)
            parts.append(Features(made.z, norm).take(slice(len(where) - start)))
        return Features(*map(np.concatenate, zip(*parts, strict=True)))

    def pixels(self, rows: LabelledRows, seed: int, augment: Augment, where: np.ndarray, views: np.ndarray) -> np.ndarray:
        """Augmented images u8 [b, H, W, 3]: view `views[i]` of example `where[i]`.

        Raises:
            ConfigError: one cannot be read.
        """
        tower, transform = self.config.image, self._transform(augment)
        fields = {tower: self.config.fields.get(tower, tower)}

        def make(i: int) -> np.ndarray:
            row = int(rows.rows[where[i]])
            rng = np.random.default_rng([seed, int(views[i]), row])
            try:
                example = rows.source[row]
                return make_arrays({tower: transform}, example, fields, rng, classes=class_names(rows.source))[tower]
            except BadExample as problem:
                key = self._key(rows, int(where[i]))
                raise ConfigError(f"adapt: example {key} cannot be read: {problem}") from None

        with ThreadPoolExecutor(reading_threads(rows.source)) as pool:
            return np.stack(list(pool.map(make, range(len(where)))))

    def _transform(self, augment: Augment) -> Transform:
        tower = self.subject.model.towers[self.config.image]
        return train_transform(tower, augment, max_pixels=self.config.max_pixels)
