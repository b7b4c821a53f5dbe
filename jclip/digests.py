"""Digests of arrays: 64 bits that change with any bit of an array, computed where it lives, the same on every mesh."""

import math
import os
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache, lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import NamedSharding, PartitionSpec, Sharding
from jax.tree_util import DictKey, GetAttrKey, SequenceKey

BLOCK = 2**14
"""Words that the host mixes at a time: with what is made of them they stay in a core's own cache."""

NICE = 10
"""Niceness of the thread that does so: beside a step that takes every core it gets about a tenth of one."""


def digest(x: Array) -> Array:
    """The digest of an array of any shape and type: u32 [2].

    Each word w at place i, from 1 on, becomes a = f(w ^ c i), where f is the finalizer of MurmurHash3 (Appleby 2011) and c is
    2^32 over the golden ratio, which spreads the places (Knuth, volume 3, section 6.4). The digest is (sum of all a, sum of all
    (2 i + 1) a) modulo 2^32. Sums of integers do not depend on their order, so devices add up what they hold, however the array
    is spread. f is one to one: one changed word always shows, and of other damages (words that have changed places, a run of
    zeros) one in 2^64 does not.
    """
    words = _words(x)
    place = jnp.ones(words.shape, jnp.uint32)
    stride = 1
    for axis in reversed(range(words.ndim)):
        place += jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis) * jnp.uint32(stride % 2**32)
        stride *= words.shape[axis]
    return jnp.stack(_sums(words, place))


def _sums(words: Any, place: Any) -> tuple[Any, Any]:
    """The two sums of a digest, over words with their places, u32; arrays of jax or numpy."""
    a = _mix(words ^ (place * np.uint32(0x9E3779B9)))
    return a.sum(dtype=np.uint32), (a * (2 * place + 1)).sum(dtype=np.uint32)


def _words(x: Array) -> Array:
    """The bits of each element as one u32, or two where it is wider."""
    if x.dtype == jnp.bool_:
        return x.astype(jnp.uint32)
    if x.dtype.itemsize == 8:
        return jax.lax.bitcast_convert_type(x, jnp.uint32)
    return jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * x.dtype.itemsize}")).astype(jnp.uint32)


def _mix(x: Any) -> Any:
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x = (x ^ (x >> shift)) * np.uint32(factor)
    return x ^ (x >> 16)


def tree_digests(tree: Any) -> Array:
    """The digests of all arrays of a tree, in the order of `array_paths`: u32 [n, 2], whole on every device of their mesh."""
    leaves = jax.tree.leaves(tree)
    shardings = [leaf.sharding for leaf in leaves]
    return _compiled(_everywhere(shardings))(leaves)


def begin_digests(tree: Any) -> "Future[np.ndarray]":
    """The digests of `tree_digests`, u32 [n, 2], while the caller goes on; the arrays may be donated meanwhile.

    An accelerator computes them between two steps, as fast as it reads its memory. A CPU would take the time from the next step:
    there a thread of low priority computes them.
    """
    leaves = jax.tree.leaves(tree)
    if jax.process_count() > 1 or any(device.platform != "cpu" for leaf in leaves for device in leaf.devices()):
        return _thread().submit(np.asarray, tree_digests(tree))
    # Views, not copies: while they are there, a step that is given these arrays writes to other memory.
    parts = [[(np.asarray(s.data), s.index) for s in leaf.addressable_shards if s.replica_id == 0] for leaf in leaves]
    shapes = [leaf.shape for leaf in leaves]
    return _thread().submit(lambda: np.stack([host_digest(*array) for array in zip(shapes, parts, strict=True)]))


@cache
def _thread() -> ThreadPoolExecutor:
    """The thread in which digests are waited for, or computed. Linux has a priority for each thread, other systems do not."""

    def begin() -> None:
        if sys.platform == "linux":
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)

    return ThreadPoolExecutor(1, "digests", begin)


def host_digest(shape: Sequence[int], parts: Iterable[tuple[np.ndarray, Sequence[slice]]]) -> np.ndarray:
    """The digest of an array of this shape, u32 [2], from parts of it that make up the whole, each with where it lies."""
    found = np.zeros(2, np.uint32)
    for values, index in parts:
        size = min(4, values.dtype.itemsize)
        words = np.ascontiguousarray(values)[..., None].view(f"u{size}")  # [..., words of an element]
        strides = [math.prod([*shape[axis:], words.shape[-1]]) for axis in range(1, words.ndim)] + [1]
        first = 1 + sum((part.start or 0) * stride for part, stride in zip(index, strides, strict=False))
        sizes, strides = _merged(words.shape, strides)
        for block, place in _blocks(words.reshape(sizes), strides, first):
            found += np.array(_sums(block.astype(np.uint32), place))
    return found


def _merged(sizes: Sequence[int], strides: Sequence[int]) -> tuple[list[int], list[int]]:
    """Sizes of axes and the distances between neighbours, with as few axes as there can be: of a whole array one."""
    fewer: list[tuple[int, int]] = []  # from the last axis on
    for size, stride in zip(reversed(sizes), reversed(strides), strict=True):
        if fewer and stride == math.prod(fewer[-1]):
            fewer[-1] = (size * fewer[-1][0], fewer[-1][1])
        else:
            fewer.append((size, stride))
    return [size for size, _ in reversed(fewer)], [stride for _, stride in reversed(fewer)]


def _blocks(words: np.ndarray, strides: Sequence[int], first: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Words [n, ...] in blocks of BLOCK or fewer, with their places u32, from the first one's and those between neighbours."""
    row = words[:1].size
    if row > BLOCK:
        for i, inner in enumerate(words):
            yield from _blocks(inner, strides[1:], first + i * strides[0])
        return
    rows = BLOCK // max(1, row)
    for start in range(0, len(words) if row else 0, rows):
        block = words[start : start + rows]
        place: Any = np.uint32((first + start * strides[0]) % 2**32)
        for size, stride in zip(block.shape, strides, strict=True):
            place = np.add.outer(place, np.arange(size, dtype=np.uint32) * np.uint32(stride % 2**32))
        yield block, place


def _everywhere(shardings: Iterable[Sharding]) -> NamedSharding | None:
    """The digests on all devices of the mesh, so that every process can read them; None where there is no mesh."""
    return next((NamedSharding(s.mesh, PartitionSpec()) for s in shardings if isinstance(s, NamedSharding)), None)


@lru_cache
def _compiled(out: NamedSharding | None) -> Any:
    return jax.jit(lambda leaves: jnp.stack([digest(leaf) for leaf in leaves]), out_shardings=out)


def array_paths(tree: Any) -> list[str]:
    """Names of the arrays of a tree, in order: "image/blocks/attn/q/kernel", "1/mu/image/cls"."""
    return ["/".join(map(_name, path)) for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]]


def _name(key: Any) -> str:
    match key:
        case DictKey():
            return str(key.key)
        case SequenceKey():
            return str(key.idx)
        case GetAttrKey():
            return key.name
    return str(key)
