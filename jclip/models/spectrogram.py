"""The spectrogram transformer: waveforms to TowerOutput, by the vision transformer over their log-mel spectrogram."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from jclip.models.layers import Hidden
from jclip.models.mel import as_waveform, log_mel, mask_bands
from jclip.models.output import TowerOutput
from jclip.models.sensors import SensorTransformer


class SpectrogramTransformer(SensorTransformer):
    """A ViT over patches of the log-mel spectrogram, with the options of `SpectrogramTower`."""

    config: Any
    """A SpectrogramTower."""

    @nn.compact
    def __call__(self, sounds: Array, *, rows: Array | None = None, hidden: Hidden | None = None) -> TowerOutput:
        """Encodes sounds.

        Args:
            sounds: [b, samples], int16, of which 32767 is 1.0, or floats, -1 to 1.
            rows: in training, the index of each sound in the global batch, for dropout and masks of the spectrogram.
            hidden: as in `VisionTransformer`.
        """
        c = self.config
        logs = log_mel(as_waveform(sounds, c.waveform), c.mel, c.waveform.sample_rate, self.how.backend)
        if rows is not None and c.spec_augment.active:
            logs = mask_bands(self.make_rng("dropout"), rows, logs, c.spec_augment)
        patches = overlapping_patches(logs.swapaxes(1, 2).astype(self.how.dtype), c.patch, c.strides)
        return self.encode_patches(patches, rows, hidden)


def overlapping_patches(x: Array, size: tuple[int, int], stride: tuple[int, int]) -> Array:
    """[b, h, w] -> [b, rows * columns, size], patches of `size` every `stride` and their values in row-major order; what fills
    no patch is left out."""
    (height, width), (down, right) = size, stride
    rows, columns = 1 + (x.shape[1] - height) // down, 1 + (x.shape[2] - width) // right
    if size == stride:
        x = x[:, : rows * height, : columns * width].reshape(-1, rows, height, columns, width)
        return x.swapaxes(2, 3).reshape(-1, rows * columns, height * width)
    strips = jnp.stack([x[:, row * down : row * down + height] for row in range(rows)], axis=1)  # [b, rows, height, w]
    patches = jnp.stack([strips[..., right * i : right * i + width] for i in range(columns)], axis=2)
    return patches.reshape(len(x), rows * columns, height * width)
