"""Weights as open_clip keeps them: `open_clip_config.json` and its state dict; OpenAI's have the same names."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from jclip.config import Model, Preprocess, TextTower, VisionTower
from jclip.weights.errors import WeightsError
from jclip.weights.layout import LINEAR, SAME, SCALAR, Rule, conv_layout, dense_rules, norm_rules

CONFIG = "open_clip_config.json"
FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin", "open_clip_pytorch_model.pt")
"""Names of the weights in a folder, the preferred first."""

BUFFERS = (
    "attn_mask",
    "text.attn_mask",
    "input_resolution",
    "context_length",
    "vocab_size",
    "text.transformer.embeddings.position_ids",
)
"""What some state dicts hold besides parameters."""

VISION = {"image_size", "layers", "width", "head_width", "mlp_ratio", "patch_size", "patch_dropout"}
TEXT = {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio"}
NEUTRAL: Mapping[str, Any] = {
    **dict.fromkeys(("ls_init_value", "timm_model_name", "hf_model_name", "act_kwargs", "norm_kwargs", "block_type"), None),
    **dict.fromkeys(("hf_tokenizer_name", "tokenizer_mode", "tokenizer_kwargs"), None),
    **dict.fromkeys(
        ("attentional_pool", "no_ln_pre", "final_ln_after_pool", "output_tokens", "embed_cls", "no_causal_mask"), False
    ),
    **dict.fromkeys(("qk_norm", "scaled_cosine_attn", "scale_heads", "scale_attn_inner", "scale_attn", "scale_fc"), False),
    **{"proj_bias": False, "proj_type": "linear", "pos_embed_type": "learnable", "pad_id": 0},
}
"""Options that change what is computed, with the value that jclip's towers reproduce."""

INERT = {"attn_pooler_queries", "attn_pooler_heads", "eos_id", "hf_model_pretrained", "hf_proj_type", "hf_pooler_type"}
INERT |= {"timm_model_pretrained", "timm_pool", "timm_proj", "timm_proj_bias", "timm_drop", "timm_drop_path"}
"""Options that mean nothing where the others are neutral."""


def read_model(folder: Path, config: Mapping[str, Any]) -> Model:
    """The architecture and preprocessing of an `open_clip_config.json`.

    Raises:
        WeightsError: an option has a value that is not reproduced, or is unknown.
    """
    at = str(folder / CONFIG)
    cfg = dict(_section(at, config, "model_cfg"))
    vision, text = dict(_section(at, cfg, "vision_cfg")), dict(_section(at, cfg, "text_cfg"))
    known = {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu", "custom_text", "init_logit_scale", "init_logit_bias"}
    _refuse_others(f"{at}: model_cfg", cfg, known | {"nonscalar_logit_scale", "cast_dtype", "output_dict"}, {})
    _refuse_others(f"{at}: vision_cfg", vision, VISION, {"pool_type": "tok"})
    _refuse_others(f"{at}: text_cfg", text, TEXT, {"pool_type": "argmax"})
    activation = "quick_gelu" if cfg.get("quick_gelu", False) else "gelu"
    width = vision.get("width", 768)
    image = VisionTower(
        image_size=vision.get("image_size", 224),
        patch_size=vision.get("patch_size", 16),
        width=width,
        depth=vision.get("layers", 12),
        heads=width // vision.get("head_width", 64),
        mlp_ratio=vision.get("mlp_ratio", 4.0),
        activation=cast(Any, activation),
        patch_dropout=vision.get("patch_dropout", 0.0),
        preprocess=_preprocess(at, config.get("preprocess_cfg", {}), vision.get("image_size", 224)),
    )
    words = TextTower(
        context_length=text.get("context_length", 77),
        vocab_size=text.get("vocab_size", 49408),
        width=text.get("width", 512),
        depth=text.get("layers", 12),
        heads=text.get("heads", 8),
        mlp_ratio=text.get("mlp_ratio", 4.0),
        activation=cast(Any, activation),
    )
    if not isinstance(cfg.get("embed_dim"), int):
        raise WeightsError(f"{at}: model_cfg has no embed_dim")
    return Model({"image": image, "text": words}, embed_dim=cfg["embed_dim"])


def openai_model(shapes: Mapping[str, tuple[int, ...]]) -> Model:
    """The architecture of weights that OpenAI published, which only their shapes tell; it has heads of 64 and QuickGELU always.

    Raises:
        WeightsError: they are no vision transformer's.
    """
    if "visual.conv1.weight" not in shapes or "visual.proj" not in shapes:
        raise WeightsError("the weights have OpenAI's names, but not those of a vision transformer; others are not reproduced")

    def depth(prefix: str) -> int:
        return sum(name.startswith(prefix) and name.endswith(".attn.in_proj_weight") for name in shapes)

    width, _, _, patch_size = shapes["visual.conv1.weight"]
    grid = math.isqrt(shapes["visual.positional_embedding"][0] - 1)
    vocab_size, text_width = shapes["token_embedding.weight"]
    image = VisionTower(
        image_size=grid * patch_size,
        patch_size=patch_size,
        width=width,
        depth=depth("visual.transformer."),
        heads=width // 64,
        activation="quick_gelu",
    )
    text = TextTower(
        context_length=shapes["positional_embedding"][0],
        vocab_size=vocab_size,
        width=text_width,
        depth=depth("transformer."),
        heads=text_width // 64,
        activation="quick_gelu",
    )
    return Model({"image": image, "text": text}, embed_dim=shapes["text_projection"][1])


def _section(at: str, config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    if not isinstance(config.get(name), Mapping):
        raise WeightsError(f"{at}: has no {name}")
    return cast(Mapping[str, Any], config[name])


def _refuse_others(at: str, given: Mapping[str, Any], known: set[str], neutral: Mapping[str, Any]) -> None:
    neutral = {**NEUTRAL, **neutral}
    for name, value in given.items():
        if name in known or name in INERT or (name in neutral and (value == neutral[name] or value is None)):
            continue
        what = f"only {neutral[name]!r} is reproduced" if name in neutral else "the option is unknown"
        raise WeightsError(f"{at}.{name} is {value!r}: {what}, and without it the features would be wrong")


def _preprocess(at: str, cfg: Mapping[str, Any], image_size: int) -> Preprocess:
    default = Preprocess()
    known = {"mean", "std", "interpolation", "resize_mode", "size", "mode", "fill_color"}
    if set(cfg) - known:
        raise WeightsError(f"{at}: preprocess_cfg.{', '.join(sorted(set(cfg) - known))} is unknown")
    size = cfg.get("size", image_size)
    if size not in (image_size, [image_size, image_size]) or cfg.get("mode", "RGB") != "RGB":
        raise WeightsError(
            f"{at}: preprocess_cfg is of {cfg.get('mode', 'RGB')} images of size {size}, the tower of {image_size}"
        )
    for name, allowed in (("interpolation", ("bicubic", "bilinear")), ("resize_mode", ("shortest", "longest", "squash"))):
        if cfg.get(name, allowed[0]) not in allowed:
            raise WeightsError(f"{at}: preprocess_cfg.{name} is {cfg[name]!r}; reproduced are {', '.join(allowed)}")
    return Preprocess(
        mean=tuple(cfg.get("mean", default.mean)),
        std=tuple(cfg.get("std", default.std)),
        interpolation=cfg.get("interpolation", "bicubic"),
        resize=cfg.get("resize_mode", "shortest"),
        fill=cfg.get("fill_color", 0),
    )


def config_of(model: Model, *, bias: bool) -> dict[str, Any]:
    """What goes into `open_clip_config.json`, so that open_clip builds the same model.

    Raises:
        WeightsError: open_clip has no such model.
    """
    image, text = model.towers["image"], model.towers["text"]
    assert isinstance(image, VisionTower)
    assert isinstance(text, TextTower)
    like = VisionTower(
        image.image_size, image.patch_size, image.width, image.depth, image.heads, image.mlp_ratio, image.activation
    )
    words = TextTower(
        text.context_length, text.vocab_size, text.width, text.depth, text.heads, text.mlp_ratio, activation=image.activation
    )
    fields = ("activation", "positions", "pool", "pre_norm", "norm_eps", "causal", "mask_padding", "tokenizer")
    obstacles = [
        f"{name}.{field} is {getattr(given, field)!r}, not {getattr(theirs, field)!r}"
        for name, given, theirs in (("image", image, like), ("text", text, words))
        for field in fields
        if getattr(given, field, None) != getattr(theirs, field, None)
    ]
    if image.activation not in ("gelu", "quick_gelu"):
        obstacles.append(f"activation is {image.activation!r}, not 'gelu' or 'quick_gelu'")
    if obstacles:
        raise WeightsError(f"open_clip's CLIP cannot compute this model: {'; '.join(obstacles)}")
    how = image.preprocess
    return {
        "model_cfg": {
            "embed_dim": model.embed_dim,
            "quick_gelu": image.activation == "quick_gelu",
            **({"init_logit_bias": -10.0} if bias else {}),
            "vision_cfg": {
                "image_size": image.image_size,
                "layers": image.depth,
                "width": image.width,
                "head_width": image.width // image.heads,
                "mlp_ratio": image.mlp_ratio,
                "patch_size": image.patch_size,
            },
            "text_cfg": {
                "context_length": text.context_length,
                "vocab_size": text.vocab_size,
                "width": text.width,
                "heads": text.heads,
                "layers": text.depth,
                "mlp_ratio": text.mlp_ratio,
            },
        },
        "preprocess_cfg": {
            "mean": list(how.mean),
            "std": list(how.std),
            "interpolation": how.interpolation,
            "resize_mode": how.resize,
            "fill_color": how.fill,
        },
    }


def rules(model: Model, *, bias: bool) -> list[Rule]:
    """Where open_clip's `CLIP` keeps each parameter; `bias`: of the logits, as SigLIP's objective has it."""
    image = model.towers["image"]
    assert isinstance(image, VisionTower)
    return [
        Rule("image/patch_embed/kernel", "visual.conv1.weight", conv_layout(image.patch_size)),
        Rule("image/cls", "visual.class_embedding"),
        Rule("image/pos_embed", "visual.positional_embedding"),
        *norm_rules("image/norm_pre", "visual.ln_pre"),
        *_blocks("image/blocks", "visual.transformer.resblocks.{}"),
        *norm_rules("image/norm", "visual.ln_post"),
        Rule("image_projection/kernel", "visual.proj"),
        Rule("text/token_embed", "token_embedding.weight"),
        Rule("text/pos_embed", "positional_embedding"),
        *_blocks("text/blocks", "transformer.resblocks.{}"),
        *norm_rules("text/norm", "ln_final"),
        Rule("text_projection/kernel", "text_projection"),
        Rule("image_text/logit_scale", "logit_scale", SCALAR),
        *([Rule("image_text/logit_bias", "logit_bias", SCALAR)] if bias else []),
    ]


def _blocks(ours: str, theirs: str) -> list[Rule]:
    dense = (("attn/out", "attn.out_proj"), ("mlp/fc1", "mlp.c_fc"), ("mlp/fc2", "mlp.c_proj"))
    return [
        *norm_rules(f"{ours}/norm1", f"{theirs}.ln_1"),
        *norm_rules(f"{ours}/norm2", f"{theirs}.ln_2"),
        *(
            Rule(f"{ours}/attn/{name}/{leaf}", f"{theirs}.attn.in_proj_{kind}", layout, (i, 3))
            for i, name in enumerate("qkv")
            for leaf, kind, layout in (("kernel", "weight", LINEAR), ("bias", "bias", SAME))
        ),
        *(rule for a, b in dense for rule in dense_rules(f"{ours}/{a}", f"{theirs}.{b}")),
    ]


def write_config(model: Model, folder: Path, *, bias: bool) -> None:
    """Writes `open_clip_config.json`."""
    (folder / CONFIG).write_text(json.dumps(config_of(model, bias=bias), indent=2) + "\n")
