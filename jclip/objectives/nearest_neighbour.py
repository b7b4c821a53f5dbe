"""The nearest-neighbour objective: a contrastive loss whose right answer is the nearest of a queue of earlier embeddings."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh

from jclip import config
from jclip.objectives.contrastive import ContrastiveObjective
from jclip.objectives.objective import Metrics, Objective, Params, Part, Setting

BLOCK = 4096
"""Rows of the queue that are compared at a time."""


class NearestNeighbourObjective(Objective):
    """See `config.NearestNeighbour`. Its state is the queue f32 [size, E] and how many embeddings have gone into it, i32 []."""

    def __init__(self, name: str, how: config.NearestNeighbour, setting: Setting, mesh: Mesh | None) -> None:
        self.how, self.setting = how, setting
        self.match = ContrastiveObjective(
            name, config.Contrastive(how.a, how.b, method=how.method, block=how.block), setting, mesh
        )

    def init(self, key: Array, part: Part) -> Params:
        """The logit scale."""
        return self.match.init(key, part)

    def init_extra(self, key: Array, params: Params) -> Params:
        """An empty queue."""
        return {"queue": jnp.zeros((self.how.size, self.setting.model.embed_dim)), "seen": jnp.zeros((), jnp.int32)}

    def rows(self, params: Params, extra: Params, part: Part) -> tuple[Any, Metrics]:
        """The embeddings f32 [b, E] of `a`, the neighbours of those of `b`, and those of `b`, for the queue."""
        b = jax.lax.stop_gradient(part.encoded[self.how.b].z)
        best, at = nearest(b, extra["queue"], jnp.minimum(extra["seen"], self.how.size))
        neighbours = jnp.where(extra["seen"] > 0, extra["queue"][at], b)  # at the first step there is none but itself
        return {"a": part.encoded[self.how.a].z, "neighbours": neighbours, "b": b}, {"cosine": best.sum()}

    def batch(self, params: Params, extra: Params, rows: Any, batch: Mapping[str, Array]) -> tuple[Array, Metrics]:
        """The contrastive loss of `a` and the neighbours."""
        return self.match.batch(params, {}, (rows["a"], rows["neighbours"]), batch)

    def update(self, extra: Params, params: Params, rows: Any, batch: Mapping[str, Array], progress: Array) -> Params:
        """The embeddings of `b` take the place of the oldest, in the order of the batch."""
        at = (extra["seen"] + jnp.arange(len(rows["b"]))) % self.how.size  # a resume may have brought another batch size
        queue = extra["queue"].at[at].set(rows["b"])
        # Counted from the size on in a circle: an int32 would end after 2^31 examples.
        seen = extra["seen"] + len(rows["b"])
        return {"queue": queue, "seen": jnp.where(seen >= 2 * self.how.size, seen - self.how.size, seen)}

    def bound(self, old: Params, new: Params) -> Params:
        """The scale within its range."""
        return self.match.bound(old, new)

    def flops(self) -> int:
        """The contrastive loss, and one product with the queue."""
        return self.match.flops() + 2 * self.setting.batch_size * self.how.size * self.setting.model.embed_dim


def nearest(z: Array, queue: Array, filled: Array) -> tuple[Array, Array]:
    """The largest cosine f32 [b] of rows [b, E] among the first `filled` of a queue [K, E], and where it is, i32 [b].

    The queue is compared in blocks: of b x K numbers there are never more than b x BLOCK. Where nothing is filled: 0 and 0.
    """
    size = min(BLOCK, len(queue))

    def visit(found: tuple[Array, Array], start: Array) -> tuple[tuple[Array, Array], None]:
        first = jnp.minimum(start, len(queue) - size)  # the last block is moved back until it fits: to see a row twice is no harm
        cosines = z @ jax.lax.dynamic_slice_in_dim(queue, first, size).T
        cosines = jnp.where((first + jnp.arange(size) < filled)[None], cosines, -2.0)
        at = cosines.argmax(axis=1)
        best = jnp.take_along_axis(cosines, at[:, None], axis=1)[:, 0]
        nearer = best > found[0]
        return (jnp.where(nearer, best, found[0]), jnp.where(nearer, first + at, found[1])), None

    nothing = z[:, 0] * 0 - 2.0, jnp.zeros(len(z), jnp.int32)
    (best, at), _ = jax.lax.scan(visit, nothing, jnp.arange(0, len(queue), size))
    return jnp.where(filled > 0, best, 0.0), at
