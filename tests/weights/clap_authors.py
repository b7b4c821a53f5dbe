"""Tiny CLAPs under the names of their authors' files: sizes, sounds, texts, and arrays of a formula."""

import re

import numpy as np
from foreign import number

WIDE = (4, 6, 8, 8, 10, 12)
"""Channels of CNN14."""

TINY = {"embed_dim": 12, "depths": [2, 2], "num_heads": [2, 4]}
"""HTS-AT of two stages; window, patches and square are those of the published ones."""

COMMON = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 1, "intermediate_size": 80, "vocab_size": 60}
ROBERTA = {**COMMON, "max_position_embeddings": 24, "type_vocab_size": 1, "pad_token_id": 1, "layer_norm_eps": 1e-5}
BERT = {**COMMON, "max_position_embeddings": 20, "type_vocab_size": 2, "pad_token_id": 0}
GPT2 = {"n_embd": 64, "n_layer": 2, "n_head": 1, "n_inner": 80, "vocab_size": 60, "n_positions": 20}

IDS = np.full((3, 16), 1, np.int32)
"""Texts of 16, 5 and 2 tokens, padded with 1."""
for _row, _length in zip(IDS, (16, 5, 2), strict=True):
    _row[:_length] = np.random.default_rng(_length).integers(5, 59, _length)

SOUNDS = {"htsat": (48_000, 10), "fused": (48_000, 10), "pann": (48_000, 10), "2022": (44_100, 5), "2023": (44_100, 7)}
"""Samples a second and seconds of the window of each model."""

CONSTANTS = r".*(spectrogram_extractor|logmel_extractor|relative_position_index|attn_mask|attn\.bias|masked_bias).*"


def numbers(shapes: dict[str, list[int]]) -> dict[str, np.ndarray]:
    """Arrays by name, but for constants; the spectrogram is brought to about 0 by its kept mean and variance."""
    made = {name: np.asarray(number(name, tuple(shape))) for name, shape in shapes.items() if not re.fullmatch(CONSTANTS, name)}
    for name in made:
        if name.endswith("bn0.running_mean"):
            made[name] -= 30
        if name.endswith("bn0.running_var"):
            made[name] *= 100
        elif "conv_block" in name and name.endswith("running_var"):
            made[name] *= np.float32(0.2)  # or twelve layers would leave nothing of the sound
        if name.endswith(("logit_scale", "logit_scale_a")):
            made[name] = np.float32(3) + 0 * made[name]
    return made


def waveforms(name: str) -> list[np.ndarray]:
    """Two sounds f32 that fill the window: a tone with noise, and a sweep; multiples of 1 / 32767, as LAION-CLAP makes them."""
    rate, seconds = SOUNDS[name]
    t = np.arange(rate * seconds) / rate
    noise = np.random.default_rng(1).normal(size=len(t))
    made = (0.3 * np.sin(2 * np.pi * 700 * t) + 0.02 * noise, 0.5 * np.sin(2 * np.pi * (200 * t + 300 * t**2)) * np.exp(-t / 3))
    return [((x * 32767).astype(np.int16) / 32767).astype(np.float32) for x in made]
