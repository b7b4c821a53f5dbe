"""Layouts of other libraries: rules from its names to ours, applied in either direction."""

import math
import mmap
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jclip.config import Model
from jclip.weights.errors import WeightsError
from jclip.weights.prefixes import prefix_of

Array = NDArray[Any]

MAX_THREADS = 8
"""Threads that bring the blocks of a parameter into our order; more gain nothing, as memory is what they wait for."""

STRIP = 256
"""Columns of a matrix that are transposed at a time."""


SCALE, BIAS = "image_text/logit_scale", "image_text/logit_bias"
"""Our parameters of the one objective that other libraries have."""


class Layout(NamedTuple):
    """The order of an array's numbers elsewhere.

    Attributes:
        ours: an array as they keep it -> as we keep it.
        theirs: the inverse.
    """

    ours: Callable[[Array], Array]
    theirs: Callable[[Array], Array]


SAME = Layout(lambda x: x, lambda x: x)

SCALAR = Layout(lambda x: x.reshape(()), lambda x: x)
"""A scalar of shape [] or [1]."""

VECTOR = Layout(lambda x: x.reshape(()), lambda x: x.reshape(1))
"""A number as an array of one."""

LINEAR = Layout(np.transpose, np.transpose)
"""torch.nn.Linear keeps [out, in], we keep [in, out]."""

CONV = Layout(lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1))
"""torch.nn.Conv2d keeps [out, in, height, width], we keep [height, width, in, out]."""


def conv_layout(patch_size: int) -> Layout:
    """torch.nn.Conv2d keeps the embedding of patches as [width, 3, p, p], we keep [p * p * 3, width]."""

    def theirs(x: Array) -> Array:
        return x.reshape(patch_size, patch_size, -1, x.shape[1]).transpose(3, 2, 0, 1)

    return Layout(lambda x: x.transpose(2, 3, 1, 0).reshape(-1, len(x)), theirs)


FLAT = Layout(lambda x: x.reshape(-1), lambda x: x[None, None])
"""A vector of shape [1, 1, n], which we keep as [n]."""

LEADING = Layout(lambda x: x.reshape(x.shape[1:]), lambda x: x[None])
"""A leading axis of size 1 that we leave out."""


def patch_layout(patch_size: int) -> Layout:
    """flax's convolution keeps the embedding of patches as [p, p, 3, width], we keep [p * p * 3, width]."""
    return Layout(
        lambda x: x.reshape(patch_size * patch_size * x.shape[2], x.shape[3]),
        lambda x: x.reshape(patch_size, patch_size, -1, x.shape[-1]),
    )


def heads_layout(heads: int) -> Layout:
    """flax's attention keeps what comes out of the maps to q, k and v as [..., heads, width / heads], we keep [..., width]."""
    return Layout(
        lambda x: x.reshape(*x.shape[:-2], heads * x.shape[-1]),  # no -1: another number of heads is an error
        lambda x: x.reshape(*x.shape[:-1], heads, -1),
    )


def merge_layout(heads: int) -> Layout:
    """flax's attention keeps the last map as [..., heads, width / heads, width], we keep [..., width, width]."""
    return Layout(
        lambda x: x.reshape(*x.shape[:-3], heads * x.shape[-2], x.shape[-1]),
        lambda x: x.reshape(*x.shape[:-2], heads, -1, x.shape[-1]),
    )


@dataclass(frozen=True)
class Rule:
    """One parameter of ours, and where they keep it."""

    ours: str
    """Path of ours, such as "image/blocks/attn/q/kernel"."""
    theirs: str
    """Name of theirs; {} stands for the number of a block, and we keep all blocks of a tower in one array."""
    layout: Layout = SAME
    part: tuple[int, int] = (0, 1)
    """One of several equal parts of the first axis of their array, (place, number): (0, 3) are the queries of a stack of q, k and
    v."""

    def names(self, blocks: int) -> list[str]:
        """Names in the library, of every block where there are several."""
        return [self.theirs.format(i) for i in range(blocks)] if self.stacked else [self.theirs]

    @property
    def stacked(self) -> bool:
        """True for a parameter of blocks."""
        return "{}" in self.theirs

    def read(self, theirs: Array) -> Array:
        """Our part of their array (of one block), in our order."""
        index, count = self.part
        return self.layout.ours(theirs if count == 1 else np.split(theirs, count)[index])


def norm_rules(ours: str, theirs: str) -> list[Rule]:
    """A LayerNorm as torch's."""
    return [Rule(f"{ours}/scale", f"{theirs}.weight"), Rule(f"{ours}/bias", f"{theirs}.bias")]


def dense_rules(ours: str, theirs: str) -> list[Rule]:
    """An affine map as torch's Linear."""
    return [Rule(f"{ours}/kernel", f"{theirs}.weight", LINEAR), Rule(f"{ours}/bias", f"{theirs}.bias")]


def stacked_rules(ours: str, theirs: str, names: str = "qkv") -> list[Rule]:
    """The affine maps of an attention, which they keep as one of name `theirs` and "weight" or "bias", one below the other."""
    return [
        Rule(f"{ours}/{name}/{leaf}", f"{theirs}{kind}", layout, (i, len(names)))
        for i, name in enumerate(names)
        for leaf, kind, layout in (("kernel", "weight", LINEAR), ("bias", "bias", SAME))
    ]


Shapes = Mapping[str, tuple[int, ...]]


def to_ours(rules: Sequence[Rule], theirs: Mapping[str, Any], shapes: Shapes) -> Iterator[tuple[str, Array]]:
    """Our parameters one by one, f32, each with its path.

    Args:
        rules: one for every parameter of ours.
        theirs: their arrays by name, read when they are asked for, which `require_fit` has found to fit.
        shapes: of our parameters, by path.
    """
    with ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1)) as pool:
        for rule in rules:
            whole = _empty(shapes[rule.ours])
            blocks = whole if rule.stacked else whole[None]

            def fill(i: int, name: str, rule: Rule = rule, blocks: Array = blocks) -> None:
                _copy(blocks[i, ...], rule.read(np.asarray(theirs[name])))

            for _ in pool.map(fill, *zip(*enumerate(rule.names(len(blocks))), strict=True)):
                pass
            yield rule.ours, whole


def _empty(shape: tuple[int, ...]) -> Array:
    """f32 in pages of its own, which JAX on a CPU uses as they are, instead of copying them.

    Not np.empty: that asks for huge pages, and where the memory is in pieces a kernel may take a second per GB to make them.
    """
    count = math.prod(shape)
    pages = mmap.mmap(-1, 4 * max(count, 1), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return np.frombuffer(pages, np.float32, count).reshape(shape)


def _copy(target: Array, source: Array) -> None:
    """target[...] = source, of a large transposed matrix in a fourth of the time: in strips that fit into the cache of a core."""
    if source.ndim != 2 or source.flags.c_contiguous or source.size < STRIP**2:
        target[...] = source
        return
    # 16 numbers more: columns of rows a power of two apart would all fall into the same few lines of the cache.
    strip = np.empty((STRIP, len(source) + 16), source.dtype)[:, :-16]
    for start in range(0, source.shape[1], STRIP):
        columns = source[:, start : start + STRIP].T
        strip[: len(columns)] = columns
        target[:, start : start + STRIP] = strip[: len(columns)].T


def to_theirs(rules: Sequence[Rule], ours: Mapping[str, Any]) -> dict[str, Array]:
    """Arrays of the library by name, f32, of our parameters by path: the inverse of `to_ours`."""
    parts: dict[str, list[Array]] = {}
    for rule in sorted(rules, key=lambda rule: rule.part):
        whole = np.asarray(ours[rule.ours], np.float32)
        blocks = whole if rule.stacked else whole[None]
        for block, name in zip(blocks, rule.names(len(blocks)), strict=True):
            parts.setdefault(name, []).append(rule.layout.theirs(block))
    return {name: np.asarray(p[0] if len(p) == 1 else np.concatenate(p), order="C") for name, p in parts.items()}


def names_of(rules: Sequence[Rule], shapes: Shapes) -> set[str]:
    """Names in the library of all our parameters."""
    return {name for rule in rules for name in rule.names(shapes[rule.ours][0] if rule.stacked else 1)}


def require_fit(rules: Sequence[Rule], theirs: Mapping[str, Any], shapes: Shapes) -> None:
    """Compares their arrays with our parameters by name and shape; none is read.

    Args:
        rules: one for every parameter of ours.
        theirs: their arrays by name; each has `shape`, and np.asarray makes it an array.
        shapes: of our parameters, by path.

    Raises:
        WeightsError: arrays are missing, unknown, or of another shape; all are listed.
    """
    uncovered = shapes.keys() ^ {rule.ours for rule in rules}
    if uncovered:
        raise ValueError(f"no rule, or no parameter, of that name: {', '.join(sorted(uncovered))}")
    problems, known = [], set()
    for rule in rules:
        shape = shapes[rule.ours][1:] if rule.stacked else shapes[rule.ours]
        for name in rule.names(shapes[rule.ours][0] if rule.stacked else 1):
            known.add(name)
            if name not in theirs:
                problems.append(f"missing {name}")
            elif (given := _shape_of_ours(rule, tuple(theirs[name].shape))) != shape:
                problems.append(f"{name} is {list(theirs[name].shape)}, which makes {rule.ours} {given}, not {list(shape)}")
    unknown = [name for name in theirs if name not in known]
    prefix = prefix_of({name for name in known if name not in theirs}, unknown)
    hint = f" (names here begin with {prefix!r}, but not all: save those of the model alone)" if prefix else ""
    problems = list(dict.fromkeys(problems)) + [f"unknown {name}" for name in unknown]
    if problems:
        more = f"; and {len(problems) - 20} more" if len(problems) > 20 else ""
        raise WeightsError(f"the weights do not fit the architecture{hint}: {'; '.join(problems[:20])}{more}")


def _shape_of_ours(rule: Rule, shape: tuple[int, ...]) -> tuple[int, ...] | str:
    try:
        return rule.read(np.broadcast_to(np.float32(0), shape)).shape
    except (ValueError, TypeError, IndexError):
        return "impossible"


def require_pair(library: str, model: Model) -> None:
    """Raises WeightsError where a model is not that of an image and a text tower, as the library's are."""
    if set(model.towers) != {"image", "text"}:
        raise WeightsError(f"{library} has models of an image and a text tower; this one has {', '.join(model.towers)}")


def require_one_scale(library: str, scales: Iterable[str]) -> None:
    """Raises WeightsError where a model has other objectives' scales than the one of an image and a text tower."""
    if not {SCALE} <= {*scales} <= {SCALE, BIAS}:
        others = ", ".join(path for path in scales if path not in (SCALE, BIAS))
        raise WeightsError(f"{library} has one objective, image_text; this model has {others or 'none'}")
