"""CNN14: waveforms to TowerOutput."""

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from jclip.config import Cnn14Tower
from jclip.models.compute import Compute
from jclip.models.kept_norm import MelNorm
from jclip.models.layers import Dense
from jclip.models.mel import as_waveform, log_mel
from jclip.models.output import TowerOutput
from jclip.models.resnet import ConvNorm, average


class Cnn14(nn.Module):
    """Six blocks of convolutions over the log-mel spectrogram (Kong et al. 2020, PANNs, section 3)."""

    config: Cnn14Tower
    how: Compute = Compute()

    @nn.compact
    def __call__(self, sounds: Array, *, rows: Array | None = None) -> TowerOutput:
        """Encodes sounds.

        Args:
            sounds: [b, samples], int16, of which 32767 is 1.0, or floats, -1 to 1.
            rows: in training, the index of each sound in the global batch, for masks of the spectrogram.

        Returns:
            The frames that are left, [b, frames / 32, width], and relu(fc(their maximum + their mean)).
        """
        c = self.config
        logs = log_mel(as_waveform(sounds, c.waveform), c.mel, c.waveform.sample_rate, self.how.backend)
        x = MelNorm(c.spec_augment, self.how, name="mel")(logs, rows)[..., None].astype(self.how.dtype)
        block = ConvBlock if self.how.remat == "none" else nn.remat(ConvBlock, policy=self.how.policy)
        for i, channels in enumerate(c.channels, 1):
            x = block(channels, self.how, name=f"block{i}")(x)
            x = average(x, 1 if i == len(c.channels) else 2)
        tokens = x.mean(axis=2)
        pooled = tokens.max(axis=1) + tokens.mean(axis=1)
        pooled = nn.relu(Dense(c.width, nn.initializers.lecun_normal(), how=self.how, name="fc")(pooled))
        return TowerOutput(pooled, tokens, jnp.ones(tokens.shape[:2], bool))


class ConvBlock(nn.Module):
    """Two convolutions of 3 by 3, each with batch normalisation and ReLU: [b, h, w, d] -> [b, h, w, channels]."""

    channels: int
    how: Compute

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for i in (1, 2):
            x = nn.relu(ConvNorm(self.channels, 3, 1, self.how, name=f"conv{i}")(x))
        return x
