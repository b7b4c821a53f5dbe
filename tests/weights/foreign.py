"""Tiny models of other libraries whose numbers a formula gives, so that a golden file holds only what these compute of them."""

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np

GOLDEN = Path(__file__).parent / "golden"

TEXTS = ("a diagram", "a photo of a cat, asleep on the red sofa", "ZEBRA!")

# Odd widths and numbers of heads on purpose.
OPEN_CLIP: dict[str, Any] = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 24, "layers": 2, "width": 36, "head_width": 12, "mlp_ratio": 3.25, "patch_size": 8},
    "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 20, "heads": 5, "layers": 3},
}

HUGGING_FACE: dict[str, Any] = {
    "model_type": "clip",
    "projection_dim": 24,
    "vision_config": {
        "hidden_size": 36,
        "intermediate_size": 100,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "image_size": 24,
        "patch_size": 8,
    },
    "text_config": {
        "hidden_size": 20,
        "intermediate_size": 60,
        "num_hidden_layers": 3,
        "num_attention_heads": 5,
        "max_position_embeddings": 20,
        "vocab_size": 49408,
    },
}

MODELS: dict[str, dict[str, Any]] = {
    "open_clip": OPEN_CLIP,
    "open_clip_quickgelu": {**OPEN_CLIP, "quick_gelu": True},
    "hugging_face": HUGGING_FACE,
}
"""The configuration of each golden file."""


def number(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The array of that name, f32: near what training leaves, and of no symmetry that could hide a mistake."""
    uniform = 2 * np.random.default_rng(zlib.crc32(name.encode())).random(shape, np.float32) - 1
    if name.endswith("logit_scale"):
        return np.full(shape, 3.0, np.float32)
    if len(shape) > 1:
        return uniform * np.float32(2 / np.sqrt(np.prod(shape[1:])))
    is_norm = name.endswith("weight") and len(shape) == 1
    return np.asarray((1.0 if is_norm else 0.0) + np.float32(0.3) * uniform, np.float32)


def images(size: int) -> np.ndarray:
    """Three images u8 [3, size, size, 3]."""
    return np.random.default_rng(7).integers(0, 256, (3, size, size, 3), np.uint8)


def golden(name: str) -> dict[str, Any]:
    """What the owner of model `name` has computed: names with shapes, image and text features before normalisation."""
    loaded: dict[str, Any] = json.loads((GOLDEN / f"{name}.json").read_text())
    return loaded


def arrays(name: str) -> dict[str, np.ndarray]:
    """All weights of model `name`, as its owner names them."""
    return {key: number(key, tuple(shape)) for key, shape in golden(name)["shapes"].items()}
