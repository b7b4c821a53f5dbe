"""Digests of arrays: 64 bits that change with any bit of an array, computed where it lives, the same on every mesh."""

from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import NamedSharding, PartitionSpec, Sharding
from jax.tree_util import DictKey, GetAttrKey, SequenceKey


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
    a = _mix(words ^ (place * jnp.uint32(0x9E3779B9)))
    return jnp.stack([jnp.sum(a, dtype=jnp.uint32), jnp.sum(a * (2 * place + 1), dtype=jnp.uint32)])


def _words(x: Array) -> Array:
    """The bits of each element as one u32, or two where it is wider."""
    if x.dtype == jnp.bool_:
        return x.astype(jnp.uint32)
    if x.dtype.itemsize == 8:
        return jax.lax.bitcast_convert_type(x, jnp.uint32)
    return jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * x.dtype.itemsize}")).astype(jnp.uint32)


def _mix(x: Array) -> Array:
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x = (x ^ (x >> shift)) * jnp.uint32(factor)
    return x ^ (x >> 16)


def tree_digests(tree: Any) -> Array:
    """The digests of all arrays of a tree, in the order of `array_paths`: u32 [n, 2], whole on every device of their mesh."""
    leaves = jax.tree.leaves(tree)
    shardings = [leaf.sharding for leaf in leaves]
    return _compiled(_everywhere(shardings))(leaves)


def _everywhere(shardings: Iterable[Sharding]) -> NamedSharding | None:
    """On all devices of the mesh, so that every process can read it; None where there is no mesh."""
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
