"""Batch normalisation with means and variances that are given, of any features and of log-mel spectrograms."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from jclip.config import SpecAugment
from jclip.models.compute import Compute
from jclip.models.layers import along_last
from jclip.models.mel import mask_bands

EPSILON = 1e-5
"""Epsilon of batch normalisation, as in torch."""


class KeptNorm(nn.Module):
    """Batch normalisation (Ioffe and Szegedy 2015) of the last axis with means and variances that are given: [..., d]."""

    how: Compute = Compute()

    @nn.compact
    def __call__(self, x: Array) -> Array:
        def of_channel(name: str, init: Any) -> Array:
            return along_last(self.param(name, init, x.shape[-1:]), x)

        zeros, ones = nn.initializers.zeros, nn.initializers.ones
        mean, var = (jax.lax.stop_gradient(of_channel(*part)) for part in (("mean", zeros), ("var", ones)))
        factor = of_channel("scale", ones) * jax.lax.rsqrt(var + EPSILON)
        return ((x.astype(jnp.float32) - mean) * factor + of_channel("bias", zeros)).astype(self.how.dtype)


class MelNorm(nn.Module):
    """Log-mel spectrograms f32 [b, frames, mels], each mel normalised by its kept mean and variance, in training with masks."""

    masks: SpecAugment
    how: Compute = Compute()

    @nn.compact
    def __call__(self, logs: Array, rows: Array | None) -> Array:
        """See the class; `rows` as a tower takes it: random bands become zeros."""
        logs = KeptNorm(self.how._replace(dtype=jnp.float32), name="norm")(logs)
        if rows is not None and self.masks.active:
            logs = mask_bands(self.make_rng("dropout"), rows, logs, self.masks)
        return logs
