"""HTS-AT: waveforms to TowerOutput, by a Swin transformer over their folded log-mel spectrogram."""

from functools import lru_cache
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from jclip.config import HtsatTower
from jclip.models.compute import Compute
from jclip.models.kept_norm import KeptNorm, MelNorm
from jclip.models.layers import Dense, LayerNorm, Mlp
from jclip.models.long_sounds import parts_of
from jclip.models.mel import as_waveform, log_mel
from jclip.models.output import TowerOutput
from jclip.models.spectrogram import overlapping_patches

EPSILON = 1e-5
"""Epsilon of every LayerNorm."""

APART = -100.0
"""Added to the logits of tokens that are neighbours in a shifted window alone."""


class Htsat(nn.Module):
    """HTS-AT (Chen et al. 2022) with the options of `HtsatTower`."""

    config: HtsatTower
    how: Compute = Compute()

    @nn.compact
    def __call__(self, sounds: Array, *, rows: Array | None = None) -> TowerOutput:
        """Encodes sounds.

        Args:
            sounds: [b, samples], int16, of which 32767 is 1.0, or floats, -1 to 1; with fusion as `data.FitLong` makes them.
            rows: in training, the index of each sound in the global batch, for masks of the spectrogram.

        Returns:
            The tokens of the last stage, [b, n, width], and their mean.
        """
        c, rate, norm = self.config, self.config.waveform.sample_rate, MelNorm(self.config.spec_augment, self.how, name="mel")
        if c.fused_seconds is None:
            logs = log_mel(as_waveform(sounds, c.waveform), c.mel, rate, self.how.backend)
            return self.encode(norm(logs, rows)[:, None], None)
        if sounds.shape[1:] != c.input()[0]:
            raise ValueError(f"sound: shape {sounds.shape} is not [b, {c.input()[0][0]}], as fusion takes it")
        logs = log_mel(sounds[:, :-1].astype(jnp.float32), c.mel, rate, self.how.backend)
        parts, longer = parts_of(logs, sounds[:, -1].astype(jnp.int32) // c.mel.hop + 1, c.frames)
        again = None if rows is None else jnp.repeat(rows, 4)  # the same bands in all four
        parts = norm(parts.reshape(-1, *parts.shape[2:]), again).reshape(parts.shape)
        return self.encode(parts, longer)

    def encode(self, logs: Array, longer: Array | None) -> TowerOutput:
        """The output of normalised spectrograms f32 [b, 1 or 4, frames, mels], the first of all of a sound, the others of parts.

        longer: bool [b], True where the parts are fused with the first; None: nowhere.
        """
        c = self.config
        images = fold(stretch(logs, c.spec_size**2 // c.mel.mels), c.spec_size // c.mel.mels)
        x = Patches(c, self.how, name="patch_embed")(images, longer)
        norm = LayerNorm(EPSILON, self.how, name="norm")
        block = SwinBlock if self.how.remat == "none" else nn.remat(SwinBlock, policy=self.how.policy)
        for stage, (depth, heads, side) in enumerate(zip(c.depths, c.heads, c.sides, strict=True)):
            for i in range(depth):
                shift = c.window // 2 if i % 2 and side > c.window else 0
                x = block(heads, c.window, shift, c.mlp_ratio, self.how, name=f"stage{stage + 1}_{i}")(x)
            if stage + 1 < len(c.depths):
                x = Merge(self.how, name=f"merge{stage + 1}")(x)
        tokens = norm(x).reshape(len(x), -1, c.width)
        return TowerOutput(tokens.mean(axis=1), tokens, jnp.ones(tokens.shape[:2], bool))


class Patches(nn.Module):
    """The embedding of patches, and the fusion with those of parts: [b, 1 or 4, s, s] -> [b, s/p, s/p, width]."""

    config: HtsatTower
    how: Compute

    @nn.compact
    def __call__(self, images: Array, longer: Array | None) -> Array:
        c, side = self.config, self.config.sides[0]
        size = (c.patch_size, c.patch_size)

        def embed(x: Array, size: tuple[int, int], name: str) -> Array:
            """Patches [b, s, s] -> [b, rows, columns, width]."""
            patches = overlapping_patches(x.astype(self.how.dtype), size, size)
            y = Dense(c.stem_width, nn.initializers.lecun_normal(), how=self.how, name=name)(patches)
            return y.reshape(len(x), side, -1, c.stem_width)

        x = embed(images[:, 0], size, "proj")
        if longer is not None:
            parts = images[:, 1:]
            wide = embed(parts.reshape(-1, *parts.shape[2:]), (c.patch_size, 3 * c.patch_size), "parts")
            wide = jnp.moveaxis(wide.reshape(len(x), 3, *wide.shape[1:]), 1, 2)  # side by side
            wide = wide.reshape(len(x), side, -1, c.stem_width)
            wide = jnp.pad(wide, ((0, 0), (0, 0), (0, side - wide.shape[2]), (0, 0)))
            fused = Fusion(c.stem_width // c.fusion_ratio, self.how, name="fusion")(x, wide)
            x = jnp.where(longer[:, None, None, None], fused, x)
        return LayerNorm(EPSILON, self.how, name="norm")(x)


class Fusion(nn.Module):
    """Attentional feature fusion (Dai et al. 2021, AFF, equation 4): 2 (x w + y (1 - w)), with w = sigmoid(local(x + y) +
    global(x + y)), of x and y [b, h, w, d]."""

    hidden: int
    how: Compute

    @nn.compact
    def __call__(self, x: Array, y: Array) -> Array:
        def attention(x: Array, name: str) -> Array:
            init, width = nn.initializers.lecun_normal(), x.shape[-1]
            x = KeptNorm(self.how, name=f"{name}_norm1")(Dense(self.hidden, init, how=self.how, name=f"{name}_fc1")(x))
            x = Dense(width, init, how=self.how, name=f"{name}_fc2")(nn.relu(x))
            return KeptNorm(self.how, name=f"{name}_norm2")(x)

        both = x + y
        w = jax.nn.sigmoid(attention(both, "local") + attention(both.mean(axis=(1, 2), keepdims=True), "global"))
        return 2 * x * w + 2 * y * (1 - w)


class SwinBlock(nn.Module):
    """A pre-norm block with attention within windows (Liu et al. 2021, section 3.2): [b, h, w, d] -> [b, h, w, d]."""

    heads: int
    window: int
    shift: int
    mlp_ratio: float
    how: Compute

    @nn.compact
    def __call__(self, x: Array) -> Array:
        y = LayerNorm(EPSILON, self.how, name="norm1")(x)
        y = jnp.roll(y, (-self.shift, -self.shift), (1, 2)) if self.shift else y
        y = WindowAttention(self.heads, self.window, self.shift, self.how, name="attn")(y)
        x = x + (jnp.roll(y, (self.shift, self.shift), (1, 2)) if self.shift else y)
        y = LayerNorm(EPSILON, self.how, name="norm2")(x)
        return x + Mlp(round(self.mlp_ratio * x.shape[-1]), "gelu", 1.0, self.how, name="mlp")(y)


class WindowAttention(nn.Module):
    """Multi-head attention within windows, with a learned bias for each relative position: [b, h, w, d] -> [b, h, w, d]."""

    heads: int
    window: int
    shift: int
    how: Compute

    @nn.compact
    def __call__(self, x: Array) -> Array:
        (b, side, _, width), size, count = x.shape, self.window, self.window**2
        across = side // size
        table = self.param("bias_table", nn.initializers.normal(0.02), ((2 * size - 1) ** 2, self.heads))
        windows = x.reshape(b, across, size, across, size, width).swapaxes(2, 3).reshape(b, -1, count, width)

        def heads(name: str) -> Array:
            y = Dense(width, nn.initializers.normal(width**-0.5), how=self.how, name=name)(windows)
            return jnp.moveaxis(y.reshape(*y.shape[:3], self.heads, -1), 3, 2)  # [b, windows, heads, tokens, d / heads]

        q, k, v = (heads(name) for name in "qkv")
        logits = jnp.einsum("bwhqd,bwhkd->bwhqk", q * q.shape[-1] ** -0.5, k, preferred_element_type=jnp.float32)
        bias = jnp.moveaxis(table[relative_positions(size).reshape(-1)].reshape(count, count, -1), -1, 0)
        logits = logits + bias[None, None]
        if self.shift:
            logits = logits + jnp.asarray(apart(side, size, self.shift), jnp.float32)[None, :, None]
        weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
        y = jnp.moveaxis(jnp.einsum("bwhqk,bwhkd->bwhqd", weights, v), 2, 3).reshape(b, across, across, size, size, width)
        y = y.swapaxes(2, 3).reshape(x.shape)
        return Dense(width, nn.initializers.normal(width**-0.5), how=self.how, name="out")(y)


class Merge(nn.Module):
    """Squares of two by two tokens become one of twice the width (Liu et al. 2021, section 3.1), [b, h/2, w/2, 2d]."""

    how: Compute

    @nn.compact
    def __call__(self, x: Array) -> Array:
        width = x.shape[-1]
        x = jnp.concatenate([x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)], axis=-1)
        x = LayerNorm(EPSILON, self.how, name="norm")(x)
        return Dense(2 * width, nn.initializers.lecun_normal(), False, self.how, name="reduce")(x)


def fold(x: Array, parts: int) -> Array:
    """[b, c, t, mels] -> [b, c, parts * mels, t / parts]: parts of the time below each other, mels from low to high in each."""
    b, channels, frames, mels = x.shape
    return x.reshape(b, channels, parts, frames // parts, mels).swapaxes(3, 4).reshape(b, channels, parts * mels, -1)


def stretch(x: Array, frames: int) -> Array:
    """[b, c, t, mels] -> [b, c, frames, mels], bicubic (a = -0.75) with the first and the last frame in their places."""
    if x.shape[2] == frames:
        return x
    matrix = jnp.asarray(cubic_matrix(x.shape[2], frames))
    return jnp.einsum("ot,bctm->bcom", matrix, x, precision=jax.lax.Precision.HIGHEST)


@lru_cache(maxsize=8)
def cubic_matrix(before: int, after: int) -> NDArray[np.float32]:
    """The weights f32 [after, before] of torch's bicubic interpolation with align_corners, whose places are computed in f32."""
    places = np.arange(after, dtype=np.float32) * (np.float32(before - 1) / np.float32(max(after - 1, 1)))
    first = np.floor(places)
    t = (places - first).astype(np.float64)
    matrix = np.zeros((after, before))
    for offset, distance in ((-1, t + 1), (0, t), (1, 1 - t), (2, 2 - t)):
        near = (1.25 * distance - 2.25) * distance**2 + 1
        far = -0.75 * (((distance - 5) * distance + 8) * distance - 4)
        at = np.clip(first.astype(int) + offset, 0, before - 1)
        np.add.at(matrix, (np.arange(after), at), near if offset in (0, 1) else far)
    return matrix.astype(np.float32)


@lru_cache(maxsize=8)
def relative_positions(size: int) -> NDArray[Any]:
    """Row of the table of biases for each query and key of a window: i64 [size ** 2, size ** 2]."""
    rows, columns = (axis.reshape(-1) for axis in np.meshgrid(np.arange(size), np.arange(size), indexing="ij"))
    down, right = (axis[:, None] - axis[None] + size - 1 for axis in (rows, columns))
    return down * (2 * size - 1) + right


@lru_cache(maxsize=8)
def apart(side: int, size: int, shift: int) -> NDArray[Any]:
    """APART for tokens of a shifted window that are no neighbours, else 0: f64 [windows, size ** 2, size ** 2]."""
    region = np.repeat((0, 1, 2), (side - size, size - shift, shift))
    regions = 3 * region[:, None] + region[None]
    windows = regions.reshape(side // size, size, side // size, size).swapaxes(1, 2).reshape(-1, size**2)
    return np.where(windows[:, :, None] != windows[:, None], APART, 0.0)
