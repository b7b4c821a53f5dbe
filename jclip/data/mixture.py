"""Mixtures: several sources in one endless order, in which every place is arithmetic.

Place t of the order has an example of one source, the p-th of that source's own endless order, where p is the number of earlier
places with it. Both are computed from t alone, whatever was read before: so a mixture goes on after an interruption, on other
hosts and with other workers, with the very examples that would have come.
"""

import dataclasses
import hashlib
import math
import sys
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from jclip.config import LEAST_SHARE, Config, ConfigError, Data, Plan, to_steps
from jclip.data.caches import opening_for_blocks
from jclip.data.fingerprint import combine
from jclip.data.open import open_source
from jclip.data.reader import waits
from jclip.data.source import Example, Source, SourceError
from jclip.data.subset import select

BLOCK = 1024
"""Places of the order, or batches of one source, after which the number of each source is within one of its share; more where a
source is rarer than one of them."""


class Shares(NamedTuple):
    """A part of the order in which weights stay as they are."""

    first: int
    """Place in the order from which they hold."""
    weights: tuple[float, ...]
    """Share of each source, relative to the others."""
    together: int = 1
    """Places of a unit, which all have the same source: 1, or a batch."""


@dataclass(frozen=True)
class Mixture:
    """Several sources as one: all their examples one after the other, and the order in which training mixes them.

    The key of an example is that of its source behind the source's name: "coco/000042".

    Attributes:
        sources: by name.
        phases: weights, from the first place of the order on; (): as many of each source as it has examples.
        fields: where arrays find their values in the examples of a source, as {"coco": {"text": "json.caption"}}; those that are
            not named find them where they do in every source.
    """

    sources: Mapping[str, Source]
    phases: tuple[Shares, ...] = ()
    fields: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.sources or not all(len(source) for source in self.sources.values()):
            empty = ", ".join(name for name, source in self.sources.items() if not len(source))
            raise SourceError(f"mixture: {f'{empty} has no examples' if empty else 'there is no source'}")
        if self.phases and (self.phases[0].first != 0 or any(b.first <= a.first for a, b in pairwise(self.phases))):
            raise ConfigError(f"mixture: phases begin at {[phase.first for phase in self.phases]}; use 0, and rising places")
        for phase in self.phases:
            _require_weights(phase.weights, tuple(self.sources))
            if phase.together < 1:
                raise ConfigError(f"mixture: together {phase.together} must be at least 1")

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the labels, where all sources have the same; otherwise none."""
        (first, *others) = {source.classes for source in self.sources.values()}
        return () if others else first

    @property
    def templates(self) -> tuple[str, ...]:
        """The prompts, where all sources come with the same; otherwise none."""
        (first, *others) = {source.templates for source in self.sources.values()}
        return () if others else first

    @property
    def shards(self) -> dict[str, int] | None:
        """Bytes of each shard, behind the name of its source; None where no source has shards."""
        found = {name: getattr(source, "shards", None) for name, source in self.sources.items()}
        named = {f"{name}/{shard}": size for name, shards in found.items() for shard, size in (shards or {}).items()}
        return named or None

    @property
    def waits(self) -> bool:
        """True where reading one of the sources is mostly waiting for a store."""
        return any(map(waits, self.sources.values()))

    @property
    def left_out(self) -> dict[str, int]:
        """Number of files that are in no example, by source and reason."""
        found = {name: getattr(source, "left_out", {}) for name, source in self.sources.items()}
        return {f"{what} of {name}": count for name, counts in found.items() for what, count in counts.items()}

    def __len__(self) -> int:
        return sum(map(len, self.sources.values()))

    def __getitem__(self, index: int) -> Example:
        for name, source in self.sources.items():
            if index < len(source):
                return self.example(name, index)
            index -= len(source)
        raise IndexError(index)

    def example(self, name: str, index: int) -> Example:
        """An example of a source, by its place in that source."""
        return _Named(name, self.sources[name][index])

    def fingerprint(self) -> str:
        """The fingerprint of all sources and their names; see `Source.fingerprint`."""
        return combine(*(part for name, source in self.sources.items() for part in (name, source.fingerprint())))

    def order(self, seed: int) -> "Order":
        """The order of training. Raises ConfigError where a source is too small beside the others, and there are no phases."""
        sizes = tuple(map(len, self.sources.values()))
        if not self.phases:
            _require_weights(sizes, tuple(self.sources))
        return Order(seed, tuple(self.sources), sizes, self.phases or (Shares(0, tuple(map(float, sizes))),))


@dataclass(frozen=True)
class Order:
    """The endless order of a mixture; see the head of this file.

    Attributes:
        seed: of the order.
        names: of the sources.
        sizes: their numbers of examples.
        phases: the first begins at place 0.
    """

    seed: int
    names: tuple[str, ...]
    sizes: tuple[int, ...]
    phases: tuple[Shares, ...]

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, place: int) -> tuple[str, int]:
        """The source of a place of the order, and the index of its example there."""
        name, position = self.place(place)
        return name, _endless(self.seed, name, self.sizes[self.names.index(name)])[position]

    def place(self, place: int) -> tuple[str, int]:
        """The source of a place of the order, and the number of earlier places with that source."""
        i = self._phase(place)
        phase = self.phases[i]
        unit, row = divmod(place - phase.first, phase.together)
        block = _block(self.seed, i, phase.weights, unit // (size := _block_size(phase.weights)))
        which = int(block.sources[unit % size])
        position = self._before[i][which] + int(block.positions[unit % size]) * phase.together + row
        return self.names[which], position

    def counts(self, place: int) -> dict[str, int]:
        """The number of examples of each source before a place."""
        i = self._phase(place)
        here = _counts(self.seed, i, self.phases[i], place - self.phases[i].first)
        return {name: before + count for name, before, count in zip(self.names, self._before[i], here, strict=True)}

    def _phase(self, place: int) -> int:
        return bisect_right([phase.first for phase in self.phases], place) - 1

    @cached_property
    def _before(self) -> list[tuple[int, ...]]:
        """The number of examples of each source before each phase."""
        before = [(0,) * len(self.names)]
        for i, (phase, following) in enumerate(pairwise(self.phases)):
            here = _counts(self.seed, i, phase, following.first - phase.first)
            before.append(tuple(a + b for a, b in zip(before[-1], here, strict=True)))
        return before


def open_data(config: Config) -> Source:
    """The source of a run, or the mixture of its sources, whose phases `planned` adds once the run is planned.

    Raises:
        ConfigError: none is named.
        SourceError: one of them cannot be opened.
    """
    if not config.data.title:
        raise ConfigError(
            "config: data.source names no data to train on; give --data.source webdataset:PATTERN, folder:DIR, csv:FILE, ..., "
            "`jclip train --help` explains each, or shapes:train, scenes that are drawn"
        )
    with opening_for_blocks(config.data.shuffle == "blocks"):
        return _open_data(config)


def _open_data(config: Config) -> Source:
    if not config.data.sources:
        return select(open_source(config.data.source), config.data.subset, "data.subset")
    sources, fields = dict[str, Source](), dict[str, dict[str, str]]()
    for name, portion in config.data.sources.items():
        data = dataclasses.replace(config.data, fields={**config.data.fields, **portion.fields})
        fields[name] = {view: how.field for view, how in dataclasses.replace(config, data=data).inputs().items()}
        try:
            sources[name] = select(open_source(portion.source), portion.subset)
        except SourceError as error:
            raise SourceError(f"data.sources.{name}: {error}") from None
    return Mixture(sources, fields=fields)


def planned(mixture: Mixture, parts: Iterable[tuple[Config, Plan]]) -> Mixture:
    """The mixture with the phases of a run, whose stages `parts` are in their order.

    Raises:
        ConfigError: in one of them no source has a weight, or one too small.
    """
    sizes = {name: len(source) for name, source in mixture.sources.items()}
    phases: dict[int, Shares] = {}
    for config, plan in parts:
        data, per_step = config.data, config.batch_size
        steps = {0}
        for name, portion in data.sources.items():
            whens = [to_steps(w, steps_per_epoch=sum(sizes.values()) / per_step, total=plan.length) for w, _ in portion.changes]
            if any(b <= a for a, b in pairwise(whens)) or any(when >= plan.length for when in whens):
                raise ConfigError(
                    f"config: data.sources.{name}.changes are at steps {', '.join(map(str, whens))}; write them in their order, "
                    f"and before the end of these {plan.length:,} steps"
                )
            steps |= {*whens}
        for step in sorted(steps):
            weights = tuple(_weight_at(data, name, sizes, step, plan, per_step) for name in data.sources)
            _require_weights(weights, tuple(data.sources))
            first = plan.skipped + step * per_step
            phases[first] = Shares(first, weights, per_step if data.batches == "one_source" else 1)
    return dataclasses.replace(mixture, phases=tuple(phases.values()))


class Counted(Protocol):
    """An order that counts."""

    def counts(self, place: int) -> dict[str, int]:
        """The number of examples of each source before a place."""
        ...


def in_numbers(mixture: Mixture, order: Counted, first: int, last: int) -> list[str]:
    """A line for each source: its size, and its examples and epochs between two places of an order."""
    total, lines = last - first, []
    before, after = order.counts(first), order.counts(last)
    for name, source in mixture.sources.items():
        count = after[name] - before[name]
        lines.append(f"{name}: {len(source):,} examples, {count / total:.1%} of what is seen, {count / len(source):,.2f} epochs")
    return lines


def _weight_at(data: Data, name: str, sizes: Mapping[str, int], step: int, plan: Plan, per_step: int) -> float:
    portion = data.sources[name]
    if portion.weight is None:
        return portion.repeat * sizes[name]
    weight = portion.weight
    for when, then in portion.changes:
        if to_steps(when, steps_per_epoch=sum(sizes.values()) / per_step, total=plan.length) <= step:
            weight = then
    return weight


def _require_weights(weights: Sequence[float], names: Sequence[str]) -> None:
    total = sum(weights)
    if len(weights) != len(names) or not all(math.isfinite(weight) and weight >= 0 for weight in weights):
        raise ConfigError(f"mixture: weights {tuple(weights)} of {', '.join(names)}; give each source one of 0 or more")
    if total <= 0:
        raise ConfigError(f"config: data.sources: {', '.join(names)} all have the weight 0 at once; nothing is left to train on")
    for name, weight in zip(names, weights, strict=True):
        if 0 < weight < LEAST_SHARE * total:
            raise ConfigError(
                f"config: data.sources.{name} has {weight / total:.1g} of the examples, less than {LEAST_SHARE:g}; "
                "leave it out, or give it more"
            )


class _Block(NamedTuple):
    """The sources of BLOCK places or more."""

    sources: NDArray[np.int32]
    positions: NDArray[np.int64]
    """The number of earlier places of the phase with the same source."""


def _block_size(weights: tuple[float, ...]) -> int:
    """Units of a block: enough that the share of each source with a weight is one or more, which keeps counts from falling."""
    return max(BLOCK, -int(-sum(weights) // min(weight for weight in weights if weight > 0)))


def _totals(weights: tuple[float, ...], units: int) -> list[int]:
    """The number of places with each source among the first `units` of a phase, whole blocks.

    It is what the weights say, rounded so that the sum is `units`: sums over the first sources are rounded, and their differences
    taken. The arithmetic is that of whole numbers, so that nothing drifts in an order of any length.
    """
    total, so_far, edges = sum(map(Fraction, weights)), Fraction(0), [0]
    for weight in weights:
        so_far += Fraction(weight)
        edges.append(int(so_far * units / total + Fraction(1, 2)))
    return [b - a for a, b in pairwise(edges)]


@lru_cache(maxsize=4)  # the order is read from its beginning to its end, and blocks of rare sources are large
def _block(seed: int, phase: int, weights: tuple[float, ...], index: int) -> _Block:
    size = _block_size(weights)
    before, after = _totals(weights, index * size), _totals(weights, (index + 1) * size)
    ordered = np.repeat(np.arange(len(weights), dtype=np.int32), np.subtract(after, before))
    sources = np.random.default_rng([seed, phase, index]).permutation(ordered)
    places = np.argsort(sources, kind="stable")  # source by source, each in the order of its places; then their ranks in it
    starts = np.searchsorted(ordered, np.arange(len(weights)))
    positions = np.empty(size, np.int64)
    positions[places] = np.arange(size) - starts[ordered] + np.asarray(before)[ordered]
    return _Block(sources, positions)


def _counts(seed: int, index: int, phase: Shares, places: int) -> tuple[int, ...]:
    """The number of examples of each source among the first places of a phase."""
    units, rows = divmod(places, phase.together)
    blocks, rest = divmod(units, size := _block_size(phase.weights))
    counts = np.asarray(_totals(phase.weights, blocks * size))
    sources = _block(seed, index, phase.weights, blocks).sources
    counts = (counts + np.bincount(sources[:rest], minlength=len(counts))) * phase.together
    counts[sources[rest]] += rows
    return tuple(map(int, counts))


@lru_cache(maxsize=256)
def _endless(seed: int, name: str, size: int) -> Sequence[int]:
    """The endless order of one source: every epoch has every index once, in an order of its own."""
    import grain

    own = int.from_bytes(hashlib.blake2b(f"{seed} {name}".encode(), digest_size=4).digest())  # one more source changes no other
    order: Sequence[int] = grain.MapDataset.range(size).shuffle(seed=own).repeat()
    return order


class _Named(Mapping[str, Any]):
    """An example whose key has the name of its source before it."""

    def __init__(self, source: str, example: Example) -> None:
        self._source, self._example = source, example

    def __getitem__(self, name: str) -> Any:
        return f"{self._source}/{self._example['key']}" if name == "key" else self._example[name]

    def __contains__(self, name: object) -> bool:  # without reading it
        return name in self._example

    def __iter__(self) -> Iterator[str]:
        return iter(self._example)

    def __len__(self) -> int:
        return len(self._example)
