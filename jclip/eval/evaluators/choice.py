"""The evaluator of choices among images and captions that differ by little."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from jclip.config import Choice, ConfigError
from jclip.data import BadExample, Source, find, read_field
from jclip.data.fields import class_names
from jclip.eval.bench import Bench
from jclip.eval.choice import choice_metrics
from jclip.eval.embed import embed_source
from jclip.eval.result import Evaluator, Result


@dataclass(frozen=True)
class Members:
    """A source whose examples are the members of a field that holds several: example j is of example j // count of the source."""

    source: Source
    field: str
    count: int
    classes: tuple[str, ...] = ()
    templates: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.source) * self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = self.source[index // self.count]
        values = find(example, self.field, class_names(self.source)).value
        if len(values) != self.count:
            raise BadExample(f"{self.field} has {len(values)} members where others have {self.count}")
        return {"key": f"{example['key']}:{index % self.count}", "member": values[index % self.count]}

    def fingerprint(self) -> str:
        """See Source."""
        return f"{self.source.fingerprint()}:{self.field}:{self.count}"


@dataclass(frozen=True)
class ChoiceEvaluator(Evaluator):
    """text_score, and where examples have several images image_score and group_score."""

    config: Choice
    bench: Bench

    def run(self, params: Any, *, details: bool = False) -> Result:
        """See Evaluator."""
        config, source = self.config, self.bench.sources["source"]
        images, some_images = self._images(params, source)
        captions, some_captions = self._captions(params, source)
        read = some_images & some_captions
        if not read.any():
            raise ConfigError(f"evaluation: no example of {config.source!r} has images and captions that can be read")
        counts = {"examples": int(read.sum()), "images": images.shape[1], "captions": captions.shape[1]}
        if broken := int(np.sum(~read)):
            counts["broken"] = broken
        return Result(choice_metrics(images[read], captions[read]), counts)

    def _images(self, params: Any, source: Source) -> tuple[np.ndarray, np.ndarray]:
        """Unit vectors [n, I, E], and whether all I images of an example can be read."""
        config, field = self.config, self.config.fields.get(self.config.image, "images")
        members = Members(source, field, _count(source, field, config.source))
        z = embed_source(self.bench.functions, params, members, config.image, self.bench.model.towers[config.image], "member")
        shape = len(source), members.count
        return z.z.reshape(*shape, -1), np.all(z.read.reshape(shape), axis=1)

    def _captions(self, params: Any, source: Source) -> tuple[np.ndarray, np.ndarray]:
        """Unit vectors [n, T, E], and whether the captions of an example can be read."""
        config, field = self.config, self.config.fields.get(self.config.text, "captions")
        count = _count(source, field, config.source)
        values = list(read_field(source, field))
        read = np.array([not isinstance(value, BadExample) and len(value) == count for value in values], bool)
        texts = [text for value, whole in zip(values, read, strict=True) for text in (value if whole else [""] * count)]
        z, known = self.bench.embed_texts(params, texts, config.text)
        shape = len(values), count
        return z.reshape(*shape, -1), read & np.all(known.reshape(shape), axis=1)


def _count(source: Source, field: str, spec: str) -> int:
    """Number of members of a field, by the first example that can be read."""
    problem: object = "it is empty"
    for value in read_field(source, field):
        if not isinstance(value, BadExample):
            return len(value)
        problem = value
    raise ConfigError(f"evaluation: no example of {spec!r} has {field}: {problem}")
