"""A survey of a source: in short, from its index; and in full, from a sample of its examples."""

import itertools
import math
import re
import statistics
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from io import BytesIO

import numpy as np
from PIL import Image

from jclip.config import TextTower, TokenizerConfig
from jclip.config.fields import Alternative, parse_field
from jclip.data.decoding import Decode
from jclip.data.fields import class_names, find, is_blank, there
from jclip.data.folder import Folder
from jclip.data.mixture import Mixture
from jclip.data.reader import reading_threads
from jclip.data.samples import field_of
from jclip.data.sounds import SoundFacts, sound_facts
from jclip.data.source import BadExample, Example, Lacking, Source
from jclip.data.subset import SelectedExamples
from jclip.data.tokenizer import get_tokenizer
from jclip.data.transforms import Tokenize

LOOKED_AT = 32
"""Texts that `outline` reads, spread evenly, to see whether they have several lines."""

BUCKETS = (8, 16, 24, 32, 48, 64)
"""Lengths in tokens for which the captions that fit are counted."""

Counts = dict[str, int]


def outline(source: Source, fields: Mapping[str, str], batch_size: int | None = None) -> list[str]:
    """A few lines on a source, from its index: examples and shards, and its `shortcomings`."""
    total, shards = len(source), getattr(source, "shard_count", None)
    return [f"{total:,} examples" + (f" in {shards:,} shards" if shards else ""), *shortcomings(source, fields, batch_size)]


def shortcomings(
    source: Source, fields: Mapping[str, str], batch_size: int | None = None, optional: Collection[str] = ()
) -> list[str]:
    """A line for each thing that training will miss in a source, from its index.

    Args:
        source: the data.
        fields: field of each tower's input, as data.fields.
        batch_size: of the training; None: there is none.
        optional: towers whose input an example may lack.
    """
    if isinstance(source, Mixture):
        of_each = {name: {**fields, **source.fields.get(name, {})} for name in source.sources}
        found = {name: shortcomings(one, of_each[name], optional=optional) for name, one in source.sources.items()}
        return [f"{name}: {line}" for name, lines in found.items() for line in lines]
    total, lines = len(source), list(source.notes) if isinstance(source, SelectedExamples) else []
    combinations: Mapping[str, int] = getattr(source, "fields", {})
    left_out: Mapping[str, int] = getattr(source, "left_out", {})
    why = "; left out of the source: " + ", ".join(f"{count:,} {what}" for what, count in left_out.items()) if left_out else ""
    known = {name for has in combinations for name in has.split(" ")}
    if any("." in name and field_of(name.rpartition(".")[2]) in ("image", "text") for name in known):
        why += "; a name ends at its first dot, so that a.b.jpg is the field b.jpg of a: rename files whose names have dots"
    for tower, text in fields.items():
        lacking = _lacking(combinations, text)
        missing = lacking.pop(text)
        if missing:
            what = f"no {text}" if parse_field(text).is_path else f"nothing of {text!r}"
            then = "are left out of what needs it" if tower in optional else f"others take their place{why}"
            lines.append(f"{missing:,} of {total:,} examples have {what} for the tower {tower}, and {then}")
        if some := [f"{count:,} have no {path}" for path, count in lacking.items() if count > missing]:
            lines.append(f"of {total:,} examples {', '.join(some)} for the tower {tower}, and one of the others is drawn")
    if not combinations:
        lines += _without_texts(source, fields)
        lines += [line for tower in optional if fields.get(tower) for line in _never_there(source, fields[tower], tower)]
    if batch_size is not None and total < batch_size:
        few = f"only {total:,} examples for a batch of {batch_size:,}: one is in it up to {-(-batch_size // total)} times, each"
        lines.append(f"{few} a negative of the others; --batch-size {total} or less is better")
    paths = [path for text in fields.values() for one in parse_field(text).alternatives for path in one.paths]
    if "text" in paths and (several := _several_lines(source)):
        lines.append(f"{several}, and each text is one caption; with the option captions=lines of the source each line is one")
    return lines


def _never_there(source: Source, text: str, tower: str) -> list[str]:
    """A line where none of the examples that are looked at has what a tower may lack: perhaps the field is called otherwise."""
    places = spread(len(source), LOOKED_AT)
    for index in places:
        try:
            if any(there(source[index], text, class_names(source))):
                return []
        except BadExample:
            continue
    return [f"none of {len(places)} examples looked at has {text!r} for the tower {tower}, which would learn nothing of them"]


def _without_texts(source: Source, fields: Mapping[str, str]) -> list[str]:
    """A line for the tower of texts where none of the examples that are looked at has its field: what they are good for."""
    path = fields.get("text", "")
    if not path or not parse_field(path).is_path:
        return []
    labelled = True
    for index in spread(len(source), LOOKED_AT):
        try:
            example = source[index]
        except BadExample:
            continue
        if path in example or path.split(".")[0] in example:
            return []
        labelled = labelled and "label" in example
    if labelled:
        return [
            f"examples have labels and no {path}: evaluations of labels (ZeroShot, LinearProbe, ...) can use them as they are, "
            'and training with the option --data.fields text "a photo of a {label}"'
        ]
    what = "; the option labels=folders makes labels of folders, and NAME.txt beside NAME.jpg is its text"
    return [
        f"examples have no {path} and no labels: they can be embedded and classified, and learned from by images alone"
        + what * isinstance(source, Folder)
    ]


def spread(total: int, most: int) -> list[int]:
    """Indices below `total`, at most `most`, the first and the last among them, at equal distances."""
    count = min(total, most)
    return [i * (total - 1) // max(1, count - 1) for i in range(count)]


def _lacking(combinations: Mapping[str, int], text: str) -> Counts:
    """Number of examples that lack all of a field expression, by its text; and each of its alternatives, where it has several."""
    alternatives = parse_field(text).alternatives

    def lacks(alternative: Alternative, names: set[str]) -> bool:
        return any(not names & {path, path.split(".")[0]} for path in alternative.paths)

    counts = Counter({text: 0})
    for has, count in combinations.items():
        names = {"key", *has.split(" ")}
        if has == "..." or text in names:
            continue
        missing = [str(alternative.value) for alternative in alternatives if lacks(alternative, names)]
        counts[text] += count if len(missing) == len(alternatives) else 0
        counts.update(dict.fromkeys(missing if len(alternatives) > 1 else (), count))
    return dict(counts)


def _several_lines(source: Source) -> str:
    """Says so where most of the texts that are looked at have several lines."""
    texts = []
    for index in spread(len(source), LOOKED_AT):
        try:
            texts.append(source[index]["text"])
        except (BadExample, KeyError):
            continue
    texts = [text for text in texts if isinstance(text, str)]
    several = sum(len([line for line in text.split("\n") if line.strip()]) > 1 for text in texts)
    return f"{several} of {len(texts)} texts that were looked at have several lines" if 2 * several > len(texts) else ""


@dataclass
class FieldCounts:
    """Counts of the alternatives of a field expression, in a sample of a source."""

    looked_at: int
    there: Counts
    """Number of examples that have it, by alternative."""
    drawn: Counts
    """Number of examples for which it is drawn; once each."""
    none: int
    """Number of examples that have none, or cannot be read."""

    def __str__(self) -> str:
        total = max(1, self.looked_at)
        parts = (f"{name} (there {self.there[name] / total:.1%}, drawn {self.drawn[name] / total:.1%})" for name in self.there)
        return f"{', '.join(parts)}, none {self.none / total:.1%}"


@dataclass
class Survey:
    """Findings in a sample of a source."""

    examples: int
    shards: int | None
    looked_at: int
    usable: int
    """Examples, of those looked at, with an image or a sound, and a text, that can be read."""
    images: int = 0
    """Examples, of those looked at, with an image that can be read."""
    classes: int = 0
    """Classes that the source names."""
    labels: Counts = field(default_factory=dict)
    """Number of examples looked at by the class of their label; of several labels, by each."""
    unusable: Counts = field(default_factory=dict)
    """Number of examples looked at, by reason."""
    fields: Counts = field(default_factory=dict)
    """Number of all samples by their fields, from the index of shards."""
    left_out: Counts = field(default_factory=dict)
    """Number of files or members that are in no example, by the reason."""
    alternatives: dict[str, FieldCounts] = field(default_factory=dict)
    """Shares of the alternatives of "image" and "text", where there are several."""
    formats: Counts = field(default_factory=dict)
    widths: list[float] = field(default_factory=list)
    """Least, median and greatest, in pixels; as the three that follow."""
    heights: list[float] = field(default_factory=list)
    characters: list[float] = field(default_factory=list)
    tokens: list[float] = field(default_factory=list)
    within: dict[int, float] = field(default_factory=dict)
    """Share of the captions that have at most so many tokens: those that fit into a bucket."""
    cut: int = 0
    """Captions, of those looked at, that are longer than the context."""
    duplicates: int = 0
    """Captions, of those looked at, that equal an earlier one."""
    images_per_second: float = 0.0
    """Images that all threads of this process read and decode in a second."""
    sounds: int = 0
    """Examples, of those looked at, with a sound whose beginning can be decoded."""
    seconds: list[float] = field(default_factory=list)
    """Lengths of sounds; as `widths`."""
    rates: Counts = field(default_factory=dict)
    """Number of sounds by samples a second and channels."""


@dataclass(frozen=True)
class Look:
    """One example."""

    index: int
    key: str
    problems: tuple[str, ...] = ()
    format: str = ""
    size: tuple[int, int] = (0, 0)
    text: str = ""
    labels: tuple[str, ...] = ()
    sound: SoundFacts | None = None


def survey(source: Source, fields: Mapping[str, str], *, context_length: int = 77, most: int = 2000) -> tuple[Survey, list[Look]]:
    """Looks at `most` examples, spread evenly over the source.

    Args:
        source: the data.
        fields: fields of "image", "sound" and "text", as data.fields; of alternatives one is drawn for each example.
        context_length: tokens of a caption that count, of CLIP's vocabulary.
        most: how many examples are read.
    """
    Tokenize()("loaded before the clock starts")
    began = time.perf_counter()
    with ThreadPoolExecutor(reading_threads(source)) as pool:
        looks = list(pool.map(lambda index: _look(source, index, fields), spread(len(source), most)))
    seconds = max(time.perf_counter() - began, 1e-9)
    texts = [look.text for look in looks if look.text]
    long = get_tokenizer(TokenizerConfig())
    tokens = [int(np.argmax(long(text[:20_000], 4096))) + 1 for text in texts]  # the end of a text is the greatest id
    images, sounds = [look for look in looks if look.format], [look.sound for look in looks if look.sound is not None]
    several = {name: text for name, text in fields.items() if len(parse_field(text).alternatives) > 1}
    reasons = Counter(re.sub(r"\d+", "N", problem)[:100] for look in looks for problem in look.problems)
    return Survey(
        examples=len(source),
        shards=getattr(source, "shard_count", None),
        looked_at=len(looks),
        usable=sum(not look.problems for look in looks),
        images=len(images),
        classes=len(class_names(source)),
        labels=dict(Counter(label for look in looks for label in look.labels).most_common()),
        unusable=dict(reasons.most_common()),
        fields=dict(getattr(source, "fields", {})),
        left_out=dict(getattr(source, "left_out", {})),
        alternatives={name: shares(source, text, most) for name, text in several.items()},
        formats=dict(Counter([*(look.format for look in images), *(sound.format for sound in sounds)]).most_common()),
        widths=_range([look.size[0] for look in images]),
        heights=_range([look.size[1] for look in images]),
        characters=_range([len(text) for text in texts]),
        tokens=_range(tokens),
        within={most: round(sum(count <= most for count in tokens) / len(tokens), 4) for most in BUCKETS} if tokens else {},
        cut=sum(count > context_length for count in tokens),
        duplicates=len(texts) - len(set(texts)),
        images_per_second=round(len(images) / seconds, 1),
        sounds=len(sounds),
        seconds=_range([round(sound.seconds, 3) for sound in sounds]),
        rates=dict(Counter(f"{sound.rate} Hz x {sound.channels}" for sound in sounds).most_common()),
    ), looks


def shares(source: Source, field: str, most: int) -> FieldCounts:
    """Looks at `most` examples, spread evenly, for the alternatives of a field expression."""
    names, classes = [str(alternative) for alternative in parse_field(field).alternatives], class_names(source)

    def look(index: int) -> tuple[list[bool], int | None]:
        try:
            example = source[index]
            return there(example, field, classes), find(example, field, classes, np.random.default_rng(index)).place
        except BadExample:
            return [False] * len(names), None

    with ThreadPoolExecutor(reading_threads(source)) as pool:
        looks = list(pool.map(look, spread(len(source), most)))
    return FieldCounts(
        looked_at=len(looks),
        there={name: sum(flags[i] for flags, _ in looks) for i, name in enumerate(names)},
        drawn={name: sum(place == i for _, place in looks) for i, name in enumerate(names)},
        none=sum(place is None for _, place in looks),
    )


def _range(values: Sequence[float]) -> list[float]:
    return [min(values), statistics.median(values), max(values)] if values else []


def _look(source: Source, index: int, fields: Mapping[str, str]) -> Look:
    key, problems, kind, size, text = f"example {index}", list[str](), "", (0, 0), ""
    try:
        example = source[index]
        key = example["key"]
    except BadExample as problem:
        return Look(index, key, (str(problem),))
    sound, lacking = None, list[str]()
    try:
        value = find(example, fields.get("image", "image"), class_names(source), np.random.default_rng(index)).value
        image = Decode()(value)
        size, kind = image.size, (_format(value) if isinstance(value, bytes) else type(value).__name__)
    except Lacking as problem:
        lacking.append(str(problem))
    except BadExample as problem:
        problems.append(str(problem))
    try:
        sound = sound_facts(find(example, fields.get("sound", "sound"), class_names(source), np.random.default_rng(index)).value)
    except Lacking:
        problems += lacking  # an example needs one of both, and images are what most have
    except BadExample as problem:
        problems.append(str(problem))
    try:
        value = find(example, fields.get("text", "text"), class_names(source), np.random.default_rng(index)).value
        Tokenize(TokenizerConfig(), TextTower().context_length)(value)
        text = next(text for text in value if not is_blank(text)) if isinstance(value, tuple | list) else value
    except BadExample as problem:
        problems.append(str(problem))
    return Look(index, key, tuple(problems), kind, size, text, _labels(example, class_names(source)), sound)


def _labels(example: Example, classes: Sequence[str]) -> tuple[str, ...]:
    """Names of an example's classes; numbers where the source names none."""
    try:
        value = example.get("label", ())
    except BadExample:
        return ()
    if isinstance(value, np.ndarray):
        value = np.flatnonzero(value).tolist() if value.ndim == 1 else ()
    several = value if isinstance(value, list | tuple) else (value,)
    return tuple(classes[one] if isinstance(one, int) and 0 <= one < len(classes) else str(one) for one in several)


def _format(data: bytes) -> str:
    return str(Image.open(BytesIO(data)).format)


def as_text(found: Survey, context_length: int) -> str:
    """The survey as lines."""
    texts = max(1, found.looked_at)
    lines = [f"{found.examples:,} examples" + (f" in {found.shards:,} shards" if found.shards else "")]
    lines += [f"  {count:,} with {has}" for has, count in found.fields.items()]
    lines += [f"left out: {count:,} {what}" for what, count in found.left_out.items()]
    kinds = [name for name, count in (("image", found.images), ("sound", found.sounds)) if count] or ["image"]
    pairs = f"{found.usable:,} usable as pairs of {' or '.join(kinds)} and text ({found.usable / texts:.1%})"
    read = {"image": f"{found.images:,} images that can be read", "sound": f"{found.sounds:,} sounds that can be read"}
    lines.append(f"looked at {found.looked_at:,}: {', '.join(read[kind] for kind in kinds)}, {pairs}")
    lines += [f"  {count:,} ({count / texts:.1%}): {reason}" for reason, count in found.unusable.items()]
    if found.labels:
        counts, names = list(found.labels.values()), ", ".join(list(found.labels)[:3])
        of = f" of {found.classes:,}" if found.classes > len(counts) else ""
        each = f"{min(counts):,} to {max(counts):,} of each"
        lines.append(f"labels: {sum(counts):,}, of {len(counts):,}{of} classes, such as {names}; {each}")
    lines += [f"{name}, one of: {shares}" for name, shares in found.alternatives.items()]
    for name, values in (
        ("width", found.widths), ("height", found.heights), ("seconds", found.seconds), ("characters", found.characters),
        ("tokens", found.tokens),
    ):  # fmt: skip
        if values:
            lines.append(f"{name}: {values[0]:g} to {values[2]:g}, median {values[1]:g}")
    if found.formats:
        lines.append("formats: " + ", ".join(f"{name} {count:,}" for name, count in found.formats.items()))
    if found.rates:
        lines.append("samples a second x channels: " + ", ".join(f"{name}: {count:,}" for name, count in found.rates.items()))
    if found.tokens:
        shares = ", ".join(f"{most} {share:.1%}" for most, share in found.within.items())
        lines.append(f"captions with at most so many of CLIP's tokens (`jclip train --buckets`): {shares}")
        lines.append(f"captions cut at {context_length} tokens: {found.cut:,}; equal to an earlier one: {found.duplicates:,}")
    if found.images or not found.sounds:
        what = "images and their sounds" if found.sounds else "images"
        lines.append(f"reading and decoding: {found.images_per_second:,.0f} {what} a second on this machine")
    return "\n".join(lines)


def first_usable(looks: Sequence[Look], most: int) -> list[Look]:
    """Examples with an image or a sound that can be read, at most `most`, spread evenly."""
    good = [look for look in looks if look.format or look.sound is not None]
    return list(itertools.islice(good, 0, None, max(1, math.ceil(len(good) / most))))
