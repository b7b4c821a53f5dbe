"""A CoCa of open_clip's, tiny, whose numbers follow from their names: what golden files and the live tests have in common."""

import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

START, END = 49406, 49407


def config(vision_width: int = 24, embed_dim: int = 16) -> dict[str, Any]:
    """A `model_cfg`; with equal widths torch keeps the maps of the pooling together."""
    words = {"context_length": 9, "vocab_size": 49408, "width": embed_dim, "heads": 4, "layers": 2}
    vision = {"image_size": 32, "layers": 2, "width": vision_width, "head_width": 8, "patch_size": 16}
    pool = {"attentional_pool": True, "attn_pooler_heads": 2, "attn_pooler_queries": 6, "output_tokens": True}
    return {
        "embed_dim": embed_dim,
        "vision_cfg": vision | pool,
        "text_cfg": words | {"embed_cls": True, "output_tokens": True},
        "multimodal_cfg": words | {"heads": 2, "layers": 3, "attn_pooler_heads": 2},
        "custom_text": True,
    }


def numbers(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Arrays by name: norms near 1, all else small enough for attention to have much to look at."""
    made = {}
    for name, shape in shapes.items():
        x = np.random.default_rng(zlib.crc32(name.encode())).normal(size=shape)
        norm = ".ln_" in name and name.endswith("weight")
        x = 1 + 0.2 * x if norm else x * (2 / max([1, *shape[-1:]]) ** 0.5 if len(shape) > 1 else 0.1)
        made[name] = np.asarray(2.5 if name == "logit_scale" else x, np.float32)
    return made


def inputs() -> tuple[np.ndarray, np.ndarray]:
    """Pixels f32 [3, 32, 32, 3], and ids i32 [3, 9]: a text that fills the context, a short one, and an empty one."""
    rng = np.random.default_rng(5)
    ids = rng.integers(3, END - 2, (3, 9)).astype(np.int32)
    for row, last in zip(ids, (8, 4, 1), strict=True):
        row[0], row[last], row[last + 1 :] = START, END, 0
    return rng.normal(size=(3, 32, 32, 3)).astype(np.float32), ids
