"""Pictures a second that a core, and all of a host, read, decode and augment."""

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np

from jclip.config import Config, Data, Model, TextTower, VisionTower
from jclip.data.allocator import keep_freed_memory
from jclip.data.fields import find
from jclip.data.inputs import train_transform
from jclip.data.loader import make_run_loader
from jclip.data.reader import reading_threads
from jclip.data.source import BadExample, Source, SourceError

BATCH = 16
"""Pictures that a loader hands over at a time."""

MOST_BROKEN = 1000
"""Pictures that cannot be read, before any that can, after which a source is given up."""

Decoding = Literal["exact", "fast"]


@dataclass
class Rate:
    """Pictures a second with one of the two ways of decoding."""

    decode: Decoding
    core: float = 0.0
    """One thread."""
    host: float = 0.0
    """The loader of a training run."""


@dataclass
class Rates:
    """Pictures a second of a source, as crops of `size` for training."""

    size: tuple[int, int]
    """Height and width."""
    workers: int
    """Processes of the loader; 0: threads."""
    threads: int
    """Threads of the loader, where it has no processes."""
    rates: list[Rate] = field(default_factory=lambda: [Rate("exact"), Rate("fast")])
    broken: int = 0
    """Pictures that could not be read, of those that one thread was given."""
    looked_at: int = 0
    """Pictures that one thread was given."""


def measure(
    source: Source,
    spec: str,
    *,
    image: str = "image",
    size: tuple[int, int] = (224, 224),
    workers: int = 0,
    seconds: float = 5.0,
    tick: Callable[[str, float], None] = lambda what, share: None,
) -> Rates:
    """Measures both ways of decoding, in one thread and in a loader, in an order drawn at random.

    Args:
        source: the data.
        spec: what it was opened from.
        image: field of an example that holds its picture.
        size: height and width of what a tower sees.
        workers: as data.workers.
        seconds: of each measurement, which begins after a first picture or batch.
        tick: called with what is measured, and how much of it is done, from 0 to 1.

    Raises:
        SourceError: no picture can be read.
    """
    keep_freed_memory()
    found = Rates(size, workers, reading_threads())
    for rate in found.rates:
        one = _one_thread(source, image, size, rate.decode, found)
        rate.core = _a_second(one, 1, seconds, partial(tick, f"{rate.decode}, a core"))
        with make_run_loader(_config(spec, image, size, workers, rate.decode), source) as loader:
            ahead = (2 * workers if workers else reading_threads()) + 1  # what is ready before the clock starts does not count
            for _ in itertools.islice(loader, ahead):
                pass
            rate.host = _a_second(loader, BATCH, seconds, partial(tick, f"{rate.decode}, the host"))
    return found


def _a_second(items: Iterator[Any], each: int, seconds: float, tick: Callable[[float], None]) -> float:
    """The rate of an iterator that gives `each` at a time, once its first item is there."""
    next(items)
    began = now = time.perf_counter()
    count = 0
    while now - began < seconds or not count:
        next(items)
        count += each
        now = time.perf_counter()
        tick(min(1.0, (now - began) / seconds))
    return count / (now - began)


def _one_thread(source: Source, image: str, size: tuple[int, int], decode: Decoding, found: Rates) -> Iterator[Any]:
    """Crops of pictures drawn from a source, for ever; the broken ones are counted."""
    transform = train_transform(VisionTower(size, 1), Data().augment, decode=decode)
    rng = np.random.default_rng(0)
    while True:
        found.looked_at += 1
        try:
            yield transform(find(source[int(rng.integers(len(source)))], image).value, rng)
        except BadExample as problem:
            found.broken += 1
            if found.broken == found.looked_at == MOST_BROKEN:
                raise SourceError(f"{MOST_BROKEN:,} of {MOST_BROKEN:,} pictures cannot be read, such as: {problem}") from None


def _config(spec: str, image: str, size: tuple[int, int], workers: int, decode: Decoding) -> Config:
    """A run that reads these pictures; its texts are the keys, which every example has."""
    model = Model({"image": VisionTower(size, 1), "text": TextTower()})
    data = Data(spec, fields={"image": image, "text": "key"}, workers=workers, decode=decode)
    return Config(model, data, batch_size=BATCH)


def as_text(found: Rates) -> str:
    """The rates as lines."""
    height, width = found.size
    host = f"{found.workers} worker processes" if found.workers else f"{found.threads} threads"
    lines = [f"pictures a second, read, decoded, cropped and resized to {height} x {width}:"]
    lines += [f"  {'decode':8}{'a core':>12}   the host ({host})"]
    lines += [f"  {rate.decode:8}{rate.core:12,.0f}{rate.host:12,.0f}" for rate in found.rates]
    if found.broken:
        lines.append(f"broken: {found.broken:,} of {found.looked_at:,} pictures that were drawn")
    return "\n".join(lines)
