"""Training data: one source, or several with weights."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from jclip.config.augment import Augment, SoundAugment, SoundMix, TextAugment
from jclip.config.durations import Length
from jclip.config.fields import field_problems
from jclip.config.ranges import Range
from jclip.config.subset import Subset

Weight = Annotated[float, Range(least=0, most=1e9)]
"""Share of the examples of training, relative to those of the other sources."""

LEAST_SHARE = 1e-6
"""Smallest share of a source that is not zero: shares are exact over so many examples as hold one of the rarest source."""


@dataclass(frozen=True)
class Portion:
    """One of several sources of training data."""

    source: str
    """Its name, as data.source."""
    weight: Weight | None = None
    """Share of the examples, relative to the weights of the others; None: as many as the source has, times `repeat`."""
    repeat: Annotated[float, Range(above=0, most=1e6)] = 1.0
    """Epochs of this source while another one with a repeat of 1 has one."""
    changes: tuple[tuple[Annotated[str, Length(least=0)], Weight], ...] = ()
    """(when, weight): the weight from there on, as (("80%", 0.1),); when: in the run, or in its last part where it has stages."""
    fields: Mapping[str, str] = field(default_factory=dict)
    """Fields of its examples by tower, in place of those of data.fields."""
    subset: Subset = Subset()
    """The part of it that is used."""


@dataclass(frozen=True)
class Data:
    """Training data."""

    source: str = ""
    """Data to train on: webdataset:PATTERN, arrayrecord:DIR, tfds:NAME[/CONFIG]:SPLIT, folder:DIR, parquet:PATTERN, csv:FILE,
    jsonl:FILE or shapes:SPLIT, with paths or addresses (https://, s3://, gs://, hf://datasets/); `jclip train --help` explains
    each."""
    sources: Mapping[str, Portion] = field(default_factory=dict)
    """Several sources by name, in place of `source`; an epoch is as many examples as all have together."""
    subset: Subset = Subset()
    """The part of `source` that is used."""
    batches: Literal["mixed", "one_source"] = "mixed"
    """one_source: all examples of a batch are of one of the sources, so that no negative comes from another source."""
    fields: Mapping[str, str] = field(default_factory=dict)
    """Fields of an example by tower, where they are not the tower's own name: {"text": "json.title"}, a field of a field;
    "text*0.5 | json.synthetic*0.5", one of several, drawn each time with these weights from those that the example has;
    "a photo of a {label}", a text with fields in it, where {label} is the name of the class. Alternatives may be such texts."""
    optional: tuple[str, ...] = ()
    """Views that an example may lack, such as ("sound", "depth"): contrastive objectives then leave out its pairs with them. An
    example without any pair teaches nothing; one that has a view which cannot be read is broken, as ever."""
    augment: Augment = Augment()
    """Image augmentation."""
    text_augment: TextAugment = TextAugment()
    """Text augmentation."""
    sound_augment: SoundAugment = SoundAugment()
    """Augmentation of sounds, beside the place of their crop."""
    sound_mix: SoundMix = SoundMix()
    """Mixtures of two examples of sounds and texts; what else an example has cannot be mixed."""
    max_pixels: Annotated[int, Range(least=1)] = 64_000_000
    """Larger images are broken examples, in the run's evaluations too, found before they are decoded: 64 M pixels take 256 MB."""
    max_seconds: Annotated[float, Range(above=0, most=1e6)] = 36_000.0
    """Longer sounds are broken examples, found before they are decoded; of others only the part that is seen is decoded."""
    decode: Literal["exact", "fast"] = "exact"
    """fast: in training a JPEG is decoded at 1/2, 1/4 or 1/8 of its size where its crop stays at least as large as what the tower
    sees; docs/speed.md says what it gains and changes. Evaluations decode exactly, whatever is said here."""
    shuffle: Literal["full", "blocks"] = "full"
    """full: any example may follow any other. blocks: a host reads a few shards at a time, and its own alone, which is for shards
    in a bucket that no cache of a host holds; docs/tutorials/buckets.md says what it changes."""
    lanes: Annotated[int, Range(least=1, most=2**16)] = 8
    """Lanes of blocks: parts of the shards and of a batch, each read by one host where the number of hosts divides it."""
    block_shards: Annotated[int, Range(least=1, most=2**20)] = 4
    """Shards of a block: of each lane so many are mixed at a time."""
    broken: Literal["replace", "stop"] = "replace"
    """replace: another example takes the place of one that is broken or out of reach, and is counted and said; stop: the run ends
    at the first, and one of a single process saves its steps before."""
    workers: Annotated[int, Range(least=0, most=1024)] = 0
    """Worker processes a host; 0 reads in threads. The batches do not depend on it."""

    @property
    def title(self) -> str:
        """Name of the data for people."""
        return " + ".join(self.sources) or self.source

    def problems(self) -> Iterator[str]:
        """Contradictions, each after the place of this dataclass."""
        yield from field_problems(".fields", self.fields)
        if self.shuffle == "full" and (self.lanes, self.block_shards) != (Data.lanes, Data.block_shards):
            yield ".lanes and block_shards are of shuffle blocks, and shuffle is full; give shuffle blocks, or leave them out"
        for name, portion in self.sources.items():
            yield from field_problems(f".sources.{name}.fields", portion.fields)
        if self.sources and self.subset != Subset():
            yield ".subset is of `source`, and there are sources; give each its own, sources.NAME.subset"
        if not self.sources:
            if self.batches != "mixed":
                yield f".batches {self.batches!r}: there is only one source; leave it out, or give data.sources"
            return
        if self.source != Data.source:
            yield f".source {self.source!r} and sources cannot both be given; move it into sources"
        weighted = [name for name, portion in self.sources.items() if portion.weight is not None]
        by_size = [name for name in self.sources if name not in weighted]
        if weighted and by_size:
            yield f".sources: {', '.join(weighted)} have weights and {', '.join(by_size)} none; give weights to all, or to none"
        for name, portion in self.sources.items():
            if not name or not name.isprintable() or any(letter in name for letter in "/. \\"):
                yield f".sources: {name!r} is no name; it stands before the keys of examples: use letters, digits, - and _"
            if portion.weight is not None and portion.repeat != 1.0:
                yield f".sources.{name}: weight and repeat both say how often it is seen; leave one out"
            if portion.weight is None and portion.changes:
                yield f".sources.{name}.changes: say the weight before, too"
        if weighted and not any(portion.weight for portion in self.sources.values()):
            yield ".sources: all weights are 0; nothing is left to train on"


def source_of(text: str) -> str:
    """A source as `Data.source` names it: what names its kind ("folder:DIR") as it is, all else as a pattern of tar shards."""
    return text if re.match(r"\w+:(?!//)", text) else f"webdataset:{text}"
