"""The example of one place in the endless order of training: read, made of its fields, and replaced where it is broken."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from jclip.data.blocks import BlockOrder, Spot
from jclip.data.fields import class_names
from jclip.data.mixture import Mixture
from jclip.data.reader import Arrays, make_arrays
from jclip.data.reading import Transform
from jclip.data.source import BadExample, Source, SourceError

if TYPE_CHECKING:  # it imports what decodes sounds
    from jclip.data.mixing import Mixer

MAX_ATTEMPTS = 100
"""Broken examples in a row, for one place of a batch, after which the source is given up."""

Place = int | tuple[str, int] | Spot
"""An index; that in one of the sources of a mixture; or a place in the order of blocks."""


@dataclass(frozen=True)
class Prepare:
    """Makes the example of a place from its index, or a substitute if it is broken; or a mixture of two."""

    source: Source
    transforms: Mapping[str, Transform]
    fields: Mapping[str, str]
    same: Mapping[str, str]
    optional: Arrays
    blocks: BlockOrder | None = None
    mixer: "Mixer | None" = None
    stop: bool = False
    """True: no example is replaced; the first that is broken ends the reading."""

    def __call__(self, place: Place, rng: np.random.Generator) -> tuple[str, Arrays, list[str]]:
        """Key and arrays of the example, and a "key: reason" of each broken one; all that is random is drawn from `rng`."""
        problems: list[str] = []
        share = None if self.mixer is None else self.mixer.draw(rng)
        if self.mixer is None or share is None:
            return *self._one(place, self.transforms, rng, problems), problems
        key, first = self._one(place, self.mixer.parts, rng, problems)
        other, second = self._one(place, self.mixer.parts, rng, problems, drawn=True)
        return f"{key} + {other}", self.mixer.join(first, second, share), problems

    def _one(
        self,
        place: Place,
        transforms: Mapping[str, Transform],
        rng: np.random.Generator,
        problems: list[str],
        drawn: bool = False,
    ) -> tuple[str, Arrays]:
        """Key and arrays of the example of a place, or where that is broken or `drawn` is asked for, of one that is drawn."""
        name, index = ("", place) if isinstance(place, int) else place[:2]
        mixture = self.source if isinstance(self.source, Mixture) else None
        size = len(mixture.sources[name] if mixture else self.source)
        fields = {**self.fields, **mixture.fields.get(name, {})} if mixture else self.fields
        for _ in range(MAX_ATTEMPTS):
            if drawn and self.blocks is not None and isinstance(place, Spot):
                index = self.blocks.draw(place, len(problems), rng)  # where shards are that this host has
            elif drawn:
                index = int(rng.integers(size))
            drawn = True
            key = f"example {index}" + (f" of {name}" if mixture else "")
            try:
                example = mixture.example(name, index) if mixture else self.source[index]
                key = example["key"]
                classes = class_names(mixture.sources[name] if mixture else self.source)
                return key, make_arrays(transforms, example, fields, rng, self.same, classes, self.optional)
            except BadExample as error:
                if self.stop:
                    raise SourceError(f"{key}: {error}; with data.broken replace another example takes its place") from None
                problems.append(f"{key}: {error}")
        different = list(dict.fromkeys(problems[-MAX_ATTEMPTS:]))
        first = "\n  ".join(different[:5])
        count = f"{MAX_ATTEMPTS} examples in a row, {len(different)} different ones,"
        raise SourceError(f"{count} are broken; mend the source or data.fields. The first:\n  {first}")
