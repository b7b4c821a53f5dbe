"""Batch normalisation with means and variances that are given, and the log-mel spectrogram that begins with one."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from jclip.models.compute import Compute
from jclip.models.layers import along_last
from jclip.models.mel import as_waveform, log_mel, mask_bands

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


class NormalisedMel(nn.Module):
    """Log-mel spectrograms, each mel normalised by its kept mean and variance: [b, samples] -> f32 [b, frames, mels]."""

    config: Any
    """Of the tower: waveform, mel and spec_augment."""
    how: Compute = Compute()

    @nn.compact
    def __call__(self, sounds: Array, rows: Array | None) -> Array:
        """See the class; `rows` as a tower takes it: in training, random bands become zeros."""
        c = self.config
        return self.normalise(log_mel(as_waveform(sounds, c.waveform), c.mel, c.waveform.sample_rate, self.how.backend), rows)

    def normalise(self, logs: Array, rows: Array | None) -> Array:
        """The normalised spectrogram of log energies f32 [b, frames, mels]."""
        c = self.config
        logs = KeptNorm(self.how._replace(dtype=jnp.float32), name="norm")(logs)
        if rows is not None and c.spec_augment.active:
            logs = mask_bands(self.make_rng("dropout"), rows, logs, c.spec_augment)
        return logs
