"""Tiny CLAPs of each library: configurations of odd sizes, which no published model has."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from bert_tiny import TEXT, write_roberta

SOUND = {"feature_size": 64, "sampling_rate": 8000, "hop_length": 80, "fft_window_size": 256, "max_length_s": 1}
SOUND |= {"frequency_min": 50, "frequency_max": 3500, "padding": "repeatpad", "feature_extractor_type": "ClapFeatureExtractor"}

AUDIO: dict[str, Any] = {
    **{"patch_embeds_hidden_size": 12, "hidden_size": 24, "window_size": 4, "aff_block_r": 4},
    **{"num_mel_bins": 64, "spec_size": 128},  # transformers has fusion of 64 mels alone
    **{"depths": [2, 3], "num_attention_heads": [2, 4], "patch_size": 4, "patch_stride": [4, 4]},
}


def config(*, fused: bool) -> dict[str, Any]:
    """Content of config.json of a ClapModel."""
    text = {**TEXT, "max_position_embeddings": 24, "type_vocab_size": 1, "pad_token_id": 1}
    audio = AUDIO | {"enable_fusion": fused, "fusion_type": "aff_2d" if fused else None}
    return {"model_type": "clap", "projection_dim": 20, "text_config": text, "audio_config": audio}


def write_processor(folder: Path, *, fused: bool) -> None:
    """The settings of sounds, and the tokenizer."""
    how = SOUND | {"truncation": "fusion" if fused else "rand_trunc"}
    (folder / "preprocessor_config.json").write_text(json.dumps(how))
    write_roberta(folder)


def sounds(*lengths: int, seed: int = 0) -> list[np.ndarray]:
    """Noise with a tone, f32 [n] each."""
    rng = np.random.default_rng(seed)
    made = []
    for n in lengths:
        t = np.arange(n) / 8000
        made.append((0.2 * np.sin(2 * np.pi * rng.uniform(200, 3000) * t) + 0.05 * rng.normal(size=n)).astype(np.float32))
    return made
