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

VISION, TEXT = OPEN_CLIP["vision_cfg"], OPEN_CLIP["text_cfg"]

WORDS: dict[str, Any] = {**TEXT, "vocab_size": 300, "hf_tokenizer_name": "words"}

TINY_TIMM = "vit_tiny_patch8_siglip_24"
"""A vision transformer of 24 pixels, width 36, depth 2, 3 heads, mlp_ratio 3.25, which make_golden.py tells timm about."""

SIGLIP: dict[str, Any] = {
    "model_type": "siglip",
    "vision_config": {**HUGGING_FACE["vision_config"], "hidden_size": 36, "hidden_act": "gelu_pytorch_tanh"},
    "text_config": {**HUGGING_FACE["text_config"], "projection_size": 36, "vocab_size": 300},
}

MODELS: dict[str, dict[str, Any]] = {
    "open_clip": OPEN_CLIP,
    "open_clip_quickgelu": {**OPEN_CLIP, "quick_gelu": True},
    "open_clip_resnet": {
        **OPEN_CLIP,
        "vision_cfg": {"image_size": 64, "layers": [2, 1, 1, 1], "width": 4, "head_width": 32, "patch_size": None},
    },
    "open_clip_rectangle": {**OPEN_CLIP, "vision_cfg": {**VISION, "image_size": [40, 24]}},
    "open_clip_layer_scale": {**OPEN_CLIP, "vision_cfg": {**VISION, "ls_init_value": 0.1}},
    "open_clip_clipa": {
        **OPEN_CLIP,
        "vision_cfg": {**VISION, "no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True},
        "text_cfg": {**WORDS, "pool_type": "last", "no_causal_mask": True, "tokenizer_kwargs": {"strip_sep_token": True}},
    },
    "open_clip_worldwide": {**OPEN_CLIP, "text_cfg": {**WORDS, "pool_type": "eos", "eos_id": 2}},
    "open_clip_siglip": {
        "embed_dim": 36,
        "init_logit_bias": -10.0,
        "custom_text": True,
        "vision_cfg": {"image_size": 24, "timm_model_name": TINY_TIMM, "timm_pool": "map", "timm_proj": "none"},
        "text_cfg": {
            **WORDS,
            "tokenizer_kwargs": {"clean": "canonicalize"},
            **{"no_causal_mask": True, "proj_bias": True, "pool_type": "last"},
            **{"norm_kwargs": {"eps": 1e-6}, "act_kwargs": {"approximate": "tanh"}},
        },
    },
    "hugging_face": HUGGING_FACE,
    "hugging_face_siglip": SIGLIP,
    "hugging_face_siglip2": {
        **SIGLIP,
        "model_type": "siglip2",
        "vision_config": {**SIGLIP["vision_config"], "num_patches": 9},
        "text_config": {**SIGLIP["text_config"], "vocab_size": 700},
    },
}
"""The configuration of each golden file."""


def image_size(name: str) -> tuple[int, int]:
    """Height and width of the images of model `name`."""
    return {"open_clip_resnet": (64, 64), "open_clip_rectangle": (40, 24)}.get(name, (24, 24))


def end_id(name: str) -> int | None:
    """The id that ends a text of model `name`; None: the tokenizer is CLIP's, and `TEXTS` are the texts."""
    ends = {"open_clip_clipa": 102, "open_clip_worldwide": 2, "open_clip_siglip": 1, "hugging_face_siglip": 1}
    return (ends | {"hugging_face_siglip2": 1}).get(name)


def ids(name: str) -> np.ndarray:
    """Three texts i32 [3, 20] of model `name`, one of which fills the context, where the tokenizer is none of CLIP's."""
    rows = np.random.default_rng(8).integers(103, 300, (3, 20)).astype(np.int32)
    for row, end in zip(rows, (19, 6, 1), strict=True):
        row[end], row[end + 1 :] = (0 if name == "open_clip_clipa" else end_id(name)), 0
        if name == "open_clip_worldwide":
            row[end + 1 :] = 2  # so that the end is the first of its id, and no last token before padding
    return rows


def write_vocabulary(folder: Path, size: int = 300) -> None:
    """A tokenizer of `size` words beside weights, as open_clip and transformers put it there; it adds no token to a text."""
    words = {"<pad>": 0, "</s>": 1, "[SEP]": 102} | {f"word{i}": i for i in range(2, size) if i != 102}
    model = {"type": "WordLevel", "vocab": words, "unk_token": "<pad>"}
    rest = dict.fromkeys(("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder"))
    (folder / "tokenizer.json").write_text(json.dumps({"version": "1.0", "added_tokens": [], **rest, "model": model}))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>", "eos_token": "</s>", "sep_token": "[SEP]"}
    config |= {"padding_side": "right"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def number(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The array of that name, f32: near what training leaves, and of no symmetry that could hide a mistake."""
    uniform = 2 * np.random.default_rng(zlib.crc32(name.encode())).random(shape, np.float32) - 1
    if name.endswith("logit_scale"):
        return np.full(shape, 3.0, np.float32)
    if len(shape) > 1:
        return uniform * np.float32(2 / np.sqrt(np.prod(shape[1:])))
    is_norm = name.endswith(("weight", "running_var")) and len(shape) == 1
    return np.asarray((1.0 if is_norm else 0.0) + np.float32(0.3) * uniform, np.float32)


def images(height: int, width: int | None = None) -> np.ndarray:
    """Three images u8 [3, height, width, 3], or square ones."""
    return np.random.default_rng(7).integers(0, 256, (3, height, width or height, 3), np.uint8)


def golden(name: str) -> dict[str, Any]:
    """Results of the owner of model `name`: names with shapes, image and text features before normalisation."""
    loaded: dict[str, Any] = json.loads((GOLDEN / f"{name}.json").read_text())
    return loaded


def arrays(name: str) -> dict[str, np.ndarray]:
    """All weights of model `name`, as its owner names them."""
    return {key: number(key, tuple(shape)) for key, shape in golden(name)["shapes"].items()}
