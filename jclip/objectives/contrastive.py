"""The contrastive objective: each example's two views against all others of the global batch."""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh

from jclip import config, losses
from jclip.config import valid_name
from jclip.objectives.objective import Metrics, Objective, Params, Part, Setting
from jclip.objectives.projections import Projections
from jclip.sharding import BATCH_AXES

LOG_SCALE_RANGE = (0.0, math.log(100.0))
"""Bounds of the logarithm of the logit scale (Radford et al. 2021, section 2.5)."""


class ContrastiveObjective(Objective):
    """See `config.Contrastive`."""

    def __init__(self, name: str, how: config.Contrastive, setting: Setting, mesh: Mesh | None) -> None:
        self.how, self.setting, self.mesh = how, setting, mesh
        self.extra = Projections(how.a, how.b, setting.model.embed_dim, setting, mesh) if how.extra_projections else None

    def init(self, key: Array, part: Part) -> Params:
        """The scale and bias, and the extra projections; the defaults are those of CLIP and SigLIP (Zhai et al. 2023, section
        3.2)."""
        how = self.how
        default = 1 / 0.07 if how.loss == "softmax" else 10.0
        scale = {"logit_scale": jnp.log(jnp.float32(default if how.logit_scale is None else how.logit_scale))}
        if self.extra is not None:
            scale |= self.extra.init(key, *(part.encoded[view].output.pooled for view in (how.a, how.b)))
        if how.loss == "softmax":
            return scale
        bias = -math.log(self.setting.batch_size - 1) if how.logit_bias == "batch" else how.logit_bias
        return {**scale, "logit_bias": jnp.float32(-10.0 if bias is None else bias)}

    def rows(self, params: Params, extra: Params, part: Part) -> tuple[Any, Metrics]:
        """The embeddings, f32 [b, E] of both views, and those of the extra projections."""
        a, b = part.encoded[self.how.a], part.encoded[self.how.b]
        extra_z = () if self.extra is None else self.extra.apply(params, a.output.pooled, b.output.pooled)
        return (a.z, b.z, *extra_z), {}

    def batch(self, params: Params, extra: Params, rows: Any, batch: Mapping[str, Array]) -> tuple[Array, Metrics]:
        """The loss, and the scale and bias; where examples may lack a view, also the share of them that are pairs."""
        how = self.how
        scale, bias = jnp.exp(params["logit_scale"]), params.get("logit_bias")
        za, zb, *extra_z = (z.astype(how.dtype) for z in rows)
        valid = present(batch, (how.a, how.b))
        same: dict[str, Any] = {} if valid is None else {"valid": valid.astype(jnp.float32)}
        if how.equal != "negative":
            same |= {"ids": hash_rows(batch[how.equal_by or how.b]), "equal": how.equal}
        what: dict[str, Any] = {"kind": how.loss, "label_smoothing": how.label_smoothing, "decoupled": how.decoupled, **same}
        what |= {"mesh": self.mesh, "axes": BATCH_AXES, "method": how.method, "block": how.block}
        if extra_z:  # each pair of projections answers the questions of one side
            of_a = losses.contrastive(extra_z[0], extra_z[1], scale, direction="a_to_b", **what)
            loss = (of_a + losses.contrastive(zb, za, scale, direction="a_to_b", **what)) / 2
        else:
            loss = losses.contrastive(za, zb, scale, bias, **what)
        metrics = {"loss": loss, "logit_scale": scale} | ({} if bias is None else {"logit_bias": bias})
        return loss, metrics | ({} if valid is None else {"pairs": valid.mean(dtype=jnp.float32)})

    def bound(self, old: Params, new: Params) -> Params:
        """The scale within its range, or, where it came from outside of it (SigLIP's), no further out."""
        if "logit_scale" not in new:  # it is frozen
            return new
        (low, high), before = LOG_SCALE_RANGE, old["logit_scale"]
        return new | {"logit_scale": jnp.clip(new["logit_scale"], jnp.minimum(before, low), jnp.maximum(before, high))}

    def flops(self) -> int:
        """Both directions and both passes together take 4 B^2 E multiply-adds, and as many again with extra projections."""
        batch, once = self.setting.batch_size, 8 * self.setting.batch_size**2 * self.setting.model.embed_dim
        return once if self.extra is None else 2 * once + self.extra.flops(batch, batch)


def present(batch: Mapping[str, Array], views: Sequence[str]) -> Array | None:
    """bool [B], True where an example has all of these views; None where every example has."""
    known = [batch[valid_name(view)] for view in views if valid_name(view) in batch]
    return functools.reduce(jnp.logical_and, known) if known else None


def hash_rows(x: Array) -> Array:
    """i32 [B] of integers or floats [B, ...]: equal for equal rows, for two others once in 4e9.

    Each word is mixed with its place by the finalizer of MurmurHash3 (Appleby 2011), so that no simple change cancels another.
    """
    x = x.reshape(len(x), -1)
    # Of floats the bits: as integers all samples of a waveform would be 0. 0.0 is added: -0.0 equals it and has other bits.
    floats = jnp.issubdtype(x.dtype, jnp.floating)
    words = jax.lax.bitcast_convert_type(x.astype(jnp.float32) + 0.0, jnp.uint32) if floats else x.astype(jnp.uint32)
    mixed = words ^ jax.random.bits(jax.random.key(0), (1, words.shape[1]), jnp.uint32)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        mixed = (mixed ^ (mixed >> shift)) * jnp.uint32(factor)
    total = (mixed ^ (mixed >> 16)).sum(axis=1, dtype=jnp.uint32)
    return jax.lax.bitcast_convert_type(total, jnp.int32)
