"""Models as open_clip describes them, in and out: `open_clip_config.json`."""

import dataclasses
import json
import re
from collections.abc import Collection, Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from numpy.typing import NDArray

from jclip.config import (
    BertTower,
    Caption,
    ImageSize,
    ImageTower,
    Model,
    Preprocess,
    ResNetTower,
    TextTower,
    TokenizerConfig,
    TokenTower,
    VisionTower,
    as_image_size,
)
from jclip.weights.bert_names import UNUSED_POOLER
from jclip.weights.errors import WeightsError
from jclip.weights.io.files import Lazy
from jclip.weights.layout import BIAS, SCALE, require_one_scale, require_pair
from jclip.weights.open_clip.bert import bert_cfg, bert_of
from jclip.weights.open_clip.coca import NAME, captioner_cfg, captioner_of, is_captioner, queries, queries_cfg
from jclip.weights.open_clip.names import rules
from jclip.weights.open_clip.timm import TIMM, timm_name
from jclip.weights.options import (
    COLOUR,
    COUNT,
    FLAG,
    ID,
    LAYERS,
    NUMBER,
    SECTION,
    SIDES,
    SQUARE,
    TEXT,
    check_options,
    one_of,
    optional,
    side,
)
from jclip.weights.same import require_same
from jclip.weights.texts.tokenizer_files import write_open_clip
from jclip.weights.texts.tokenizers import read_open_clip

__all__ = [
    "BUFFERS",
    "CONFIG",
    "FILES",
    "MARK",
    "config_of",
    "finish",
    "named_captioners",
    "opened",
    "read_captioners",
    "read_model",
    "rules",
    "scales",
    "write_config",
]

CONFIG = "open_clip_config.json"
FILES = (
    *("open_clip_model.safetensors", "open_clip_pytorch_model.bin", "open_clip_pytorch_model.pt"),
    *("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"),
)
"""Names of the weights in a folder, the preferred first; the last may be another library's, as its names then show."""

MARK = r"(.*\.)?visual\..*"
"""Names that identify weights of this library."""

BUFFERS = (
    r"(text\.|text_decoder\.)?attn_mask|input_resolution|context_length|vocab_size|"
    r".*\.(num_batches_tracked|position_ids|token_type_ids)"
)
"""Names in state dicts that are no parameters, and on which no result depends."""

IMAGE_POOLS = {"tok": "cls", "avg": "avg"}
TEXT_POOLS = {"argmax": "eot", "eos": "eot", "last": "last", "first": "first"}
"""Poolings: open_clip's name, and ours."""

FILE = {"model_cfg": SECTION, "preprocess_cfg": optional(SECTION)}
SECTIONS = {"vision_cfg": SECTION, "text_cfg": SECTION}
MODEL = {
    **SECTIONS,
    "multimodal_cfg": SECTION,
    "embed_dim": COUNT,
    "quick_gelu": optional(FLAG),
    "init_logit_bias": optional(NUMBER),
}
COMMON = {"width": COUNT, "mlp_ratio": NUMBER, "ls_init_value": optional(NUMBER)}
COMMON |= {"act_kwargs": optional(SECTION), "norm_kwargs": optional(SECTION)}
VISION = COMMON | {"image_size": SIDES, "patch_size": SQUARE, "layers": LAYERS, "head_width": COUNT, "patch_dropout": NUMBER}
VISION |= {"attentional_pool": FLAG, "attn_pooler_queries": COUNT, "attn_pooler_heads": COUNT}
VISION |= {"no_ln_pre": FLAG, "final_ln_after_pool": FLAG, "pool_type": one_of(IMAGE_POOLS), "timm_model_name": optional(TEXT)}
RESNET = {"patch_size": optional(SQUARE)}  # which has none
WORDS = COMMON | {"context_length": COUNT, "vocab_size": COUNT, "heads": COUNT, "layers": COUNT, "pad_id": ID, "eos_id": ID}
WORDS |= {
    "pool_type": one_of(TEXT_POOLS),
    "no_causal_mask": FLAG,
    "embed_cls": FLAG,
    "proj_type": one_of(("linear", "none")),
    "proj_bias": FLAG,
}
WORDS |= {"hf_tokenizer_name": optional(TEXT), "tokenizer_mode": optional(TEXT), "tokenizer_kwargs": optional(SECTION)}
HOW = {"mean": COLOUR, "std": COLOUR, "size": SIDES, "fill_color": ID, "interpolation": one_of(("bicubic", "bilinear"))}
HOW |= {"resize_mode": one_of(("shortest", "longest", "squash"))}
"""The options of each section that our towers have."""

NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    **dict.fromkeys(("block_type", "timm_drop_path"), (None,)),
    **dict.fromkeys(("final_ln_after_pool", "timm_proj_bias"), (False, None)),
    **dict.fromkeys(("qk_norm", "scaled_cosine_attn", "scale_heads", "scale_attn_inner", "scale_attn"), (False, None)),
    **{"scale_fc": (False, None), "pos_embed_type": ("learnable", None), "mode": ("RGB", None)},
    **{"timm_pool": ("map",), "timm_proj": ("none",), "timm_drop": (0.0, None)},
}
"""Options that change what is computed, with the values that jclip's towers reproduce."""

INERT = {"timm_model_pretrained", "output_tokens", "custom_text"}
INERT |= {"init_logit_scale", "nonscalar_logit_scale", "cast_dtype", "output_dict"}
"""Options that mean nothing where the others are neutral."""

SIGLIP_END = 1
"""Id that ends a text in the vocabularies of all SigLIP models."""


def read_model(folder: Path, config: Mapping[str, Any], names: Iterable[str] = ()) -> tuple[Model, tuple[str, ...]]:
    """The architecture, preprocessing and tokenizer of an `open_clip_config.json`, and the parameters of its objective.

    The `names` of arrays say no more.

    Raises:
        WeightsError: an option has a value that is not reproduced, or is unknown.
    """
    at = str(folder / CONFIG)
    check_options(f"{at}: ", {"model_cfg": None, **config}, FILE, {}, config)
    cfg, preprocess = config["model_cfg"], config.get("preprocess_cfg") or {}
    if missing := [name for name in ("embed_dim", *SECTIONS) if name not in cfg]:
        raise WeightsError(f"{at}: model_cfg has no {' and no '.join(missing)}")
    check_options(f"{at}: model_cfg.", cfg, MODEL, {}, INERT)
    vision, text = cfg["vision_cfg"], cfg["text_cfg"]
    read = VISION | (RESNET if isinstance(vision.get("layers"), list) else {})
    check_options(f"{at}: vision_cfg.", _without_others(vision, "timm_", VISION), read, NEUTRAL, INERT)
    foreign = text.get("hf_model_name") is not None
    if not foreign:
        check_options(f"{at}: text_cfg.", _without_others(text, "hf_", WORDS), WORDS, NEUTRAL, INERT)
    if "multimodal_cfg" in cfg:
        if foreign:
            what = f"text_cfg.hf_model_name is {text['hf_model_name']!r} beside a multimodal_cfg"
            raise WeightsError(f"{at}: {what}: captioners of open_clip's own text towers are reproduced")
        captioner_of(at, cfg)  # it has to be one
    elif vision.get("attentional_pool") or text.get("embed_cls"):
        raise WeightsError(
            f"{at}: vision_cfg.attentional_pool and text_cfg.embed_cls without a multimodal_cfg are not reproduced"
        )
    how = {name: value for name, value in preprocess.items() if value is not None}  # which open_clip skips
    check_options(f"{at}: preprocess_cfg.", how, HOW, {"mode": ("RGB",)})
    quick = bool(cfg.get("quick_gelu"))
    image = _image_tower(at, vision, quick, how, cfg["embed_dim"])
    tokenizer = read_open_clip(folder, text)
    words = bert_of(f"{at}: text_cfg", text, tokenizer) if foreign else _text_tower(at, text, quick, tokenizer)
    scales = (SCALE,) if cfg.get("init_logit_bias") is None else (SCALE, BIAS)
    return Model({"image": image, "text": words}, embed_dim=cfg["embed_dim"]), scales


def read_captioners(folder: Path, config: Mapping[str, Any]) -> dict[str, Caption]:
    """Captioners by the name of their parameters; raises as `read_model` does."""
    cfg = config["model_cfg"]
    return {NAME: captioner_of(str(folder / CONFIG), cfg)} if "multimodal_cfg" in cfg else {}


def named_captioners(name: str) -> dict[str, Caption]:
    """Captioners of a named architecture."""
    return {NAME: Caption()} if name.startswith("coca_") else {}


def _without_others(cfg: Mapping[str, Any], prefix: str, read: Container[str]) -> Mapping[str, Any]:
    """The section without the options of another library's tower, which mean nothing where no such tower is named."""
    named = cfg.get(f"{prefix}model_name") is not None
    return {name: value for name, value in cfg.items() if named or name in read or not name.startswith(prefix)}


def scales(model: Model) -> tuple[str, ...]:
    """The parameters of the objective that its named architectures come with: SigLIP's has a bias, and no other."""
    return (SCALE, BIAS) if timm_name(model.towers["image"]) else (SCALE,)


def _image_tower(at: str, cfg: Mapping[str, Any], quick_gelu: bool, preprocess: Mapping[str, Any], embed_dim: int) -> ImageTower:
    timm = cfg.get("timm_model_name")
    if timm:
        if timm not in TIMM or cfg.get("timm_pool") != "map" or cfg.get("timm_proj") != "none":
            raise WeightsError(
                f"{at}: vision_cfg.timm_model_name is {timm!r}; of timm's models those of SigLIP are reproduced, with timm_pool "
                f"'map' and timm_proj 'none': {', '.join(TIMM)}"
            )
        tower = TIMM[timm]
        return _with_preprocess(at, tower, preprocess, as_image_size(cfg.get("image_size", tower.image_size)))
    layers, width, image_size = cfg.get("layers", 12), cfg.get("width", 768), as_image_size(cfg.get("image_size", 224))
    if isinstance(layers, list):
        if not isinstance(image_size, int):
            raise WeightsError(f"{at}: vision_cfg.image_size is {list(image_size)}; the ResNets of open_clip take squares alone")
        heads = width * 32 // cfg.get("head_width", 64)
        resnet = ResNetTower(image_size, cast(Any, tuple(layers)), stem_width=width, heads=heads)
        return _with_preprocess(at, resnet, preprocess, image_size)
    pool, by_queries = cfg.get("pool_type", "tok"), bool(cfg.get("attentional_pool"))
    if by_queries and (pool != "tok" or cfg.get("final_ln_after_pool")):
        raise WeightsError(f"{at}: vision_cfg.attentional_pool with pool_type {pool!r} or final_ln_after_pool is not reproduced")
    vit = VisionTower(
        image_size=image_size,
        patch_size=side(cfg.get("patch_size", 16)),
        width=width,
        depth=layers,
        heads=width // cfg.get("head_width", 64),
        patch_dropout=cfg.get("patch_dropout", 0.0),
        pool="queries" if by_queries else cast(Any, IMAGE_POOLS[pool]),
        class_token=pool != "tok" or by_queries,
        **(queries(cfg, embed_dim, width) if by_queries else {}),
        pre_norm=not cfg.get("no_ln_pre", False),
        norm_after_pool=cfg.get("final_ln_after_pool", False),
        **_common(f"{at}: vision_cfg", cfg, width, quick_gelu),
    )
    return _with_preprocess(at, vit, preprocess, image_size)


def _text_tower(at: str, cfg: Mapping[str, Any], quick_gelu: bool, tokenizer: TokenizerConfig) -> TextTower:
    width, pool = cfg.get("width", 512), cfg.get("pool_type", "argmax")
    ends = {"argmax": None, "eos": cfg.get("eos_id", 2)}
    end = SIGLIP_END if tokenizer.strip_id is None else tokenizer.strip_id  # CLIPA's texts have none but padding
    projection = "none" if cfg.get("proj_type", "linear") == "none" else "affine" if cfg.get("proj_bias") else "linear"
    return TextTower(
        context_length=cfg.get("context_length", 77),
        vocab_size=cfg.get("vocab_size", 49408),
        width=width,
        depth=cfg.get("layers", 12),
        heads=cfg.get("heads", 8),
        causal=not cfg.get("no_causal_mask", False),
        pool="cls_legacy" if cfg.get("embed_cls") else cast(Any, TEXT_POOLS[pool]),
        eot_id=ends.get(pool, end),
        projection=cast(Any, projection),
        tokenizer=tokenizer,
        **_common(f"{at}: text_cfg", cfg, width, quick_gelu),
    )


def _common(at: str, cfg: Mapping[str, Any], width: int, quick_gelu: bool) -> dict[str, Any]:
    """Fields that both kinds of transformer have."""
    act, norm, ratio = cfg.get("act_kwargs") or {}, cfg.get("norm_kwargs") or {}, cfg.get("mlp_ratio", 4.0)
    if act not in ({}, {"approximate": "none"}, {"approximate": "tanh"}) or (act and quick_gelu):
        raise WeightsError(f"{at}.act_kwargs is {act}; reproduced is {{'approximate': 'tanh'}} without quick_gelu, or none")
    check_options(f"{at}.norm_kwargs.", norm, {"eps": NUMBER}, {})
    hidden = int(width * ratio)  # where ours is rounded
    return {
        "mlp_ratio": ratio if round(width * ratio) == hidden else hidden / width,
        "activation": "quick_gelu" if quick_gelu else "gelu_tanh" if act.get("approximate") == "tanh" else "gelu",
        "norm_eps": norm.get("eps", 1e-5),
        "layer_scale": cfg.get("ls_init_value"),
    }


def _with_preprocess(at: str, tower: ImageTower, cfg: Mapping[str, Any], image_size: ImageSize) -> ImageTower:
    """The tower with the preprocessing of a `preprocess_cfg`; what it does not say is as CLIP has it."""
    default, size = Preprocess(), as_image_size(cfg.get("size", image_size))
    if {size, image_size} != {tower.image_size}:
        raise WeightsError(
            f"{at}: the tower takes images of {tower.image_size} pixels a side; vision_cfg.image_size is {image_size}, and "
            f"preprocess_cfg.size {size}"
        )
    resize, interpolation = cfg.get("resize_mode", "shortest"), cfg.get("interpolation", "bicubic")
    if resize == "shortest" and not isinstance(size, int):
        interpolation = "bicubic"  # whatever is said: open_clip's resize to a rectangle does not pass it on
    how = Preprocess(
        mean=tuple(cfg.get("mean", default.mean)),
        std=tuple(cfg.get("std", default.std)),
        interpolation=interpolation,
        resize=resize,
        fill=cfg.get("fill_color", 0),
    )
    return dataclasses.replace(tower, preprocess=how)


def config_of(model: Model, scales: Container[str], captioner: Caption | None = None) -> dict[str, Any]:
    """Content of `open_clip_config.json` from which open_clip builds the same model.

    Raises:
        WeightsError: open_clip has no such model.
    """
    image, text = model.towers["image"], model.towers["text"]
    assert isinstance(image, VisionTower | ResNetTower)
    assert isinstance(text, TextTower | BertTower)
    foreign = isinstance(text, BertTower)
    timm, coca = timm_name(image), {}
    if captioner is not None:
        coca = {"multimodal_cfg": captioner_cfg(model, captioner), "custom_text": True}
    quick = "quick_gelu" in (None if foreign else text.activation, getattr(image, "activation", None))
    vision: dict[str, Any] = (
        {"timm_model_name": timm, "timm_pool": "map", "timm_proj": "none"} if timm else _vision_cfg(image, quick)
    )
    words, how = bert_cfg(text) if isinstance(text, BertTower) else _text_cfg(text, quick), image.preprocess
    preprocess: dict[str, Any] = {"mean": list(how.mean), "std": list(how.std), "interpolation": how.interpolation}
    preprocess |= {"resize_mode": how.resize, "fill_color": how.fill}
    vision["image_size"] = image.image_size if isinstance(image.image_size, int) else list(image.image_size)
    read = _image_tower(CONFIG, vision, quick, preprocess, model.embed_dim)
    make = bert_of(CONFIG, words, text.tokenizer) if foreign else _text_tower(CONFIG, words, quick, text.tokenizer)
    towers = {"image": read, "text": make}
    require_same("open_clip cannot compute this model", model, Model(towers, model.embed_dim))
    return {
        "model_cfg": {
            "embed_dim": model.embed_dim,
            "quick_gelu": quick,
            **({"custom_text": True} if timm or foreign else {}),
            **coca,
            **({"init_logit_bias": -10.0} if BIAS in scales else {}),
            "vision_cfg": vision,
            "text_cfg": words,
        },
        "preprocess_cfg": preprocess,
    }


def _vision_cfg(image: VisionTower | ResNetTower, quick_gelu: bool) -> dict[str, Any]:
    if isinstance(image, ResNetTower):
        return {"layers": list(image.layers), "width": image.stem_width, "head_width": image.width // image.heads}
    pools = {ours: theirs for theirs, ours in IMAGE_POOLS.items()}
    return {
        "layers": image.depth,
        "width": image.width,
        "head_width": image.width // image.heads,
        "patch_size": image.patch_size,
        **({} if image.pool in ("cls", "queries") else {"pool_type": pools.get(image.pool, "tok")}),
        **(queries_cfg(image) if image.pool == "queries" else {}),
        **({} if image.pre_norm else {"no_ln_pre": True}),
        **({"final_ln_after_pool": True} if image.norm_after_pool else {}),
        **_common_cfg(image, quick_gelu),
    }


def _text_cfg(text: TextTower, quick_gelu: bool) -> dict[str, Any]:
    pools = {"eot": "argmax" if text.eot_id is None else "eos", "last": "last", "first": "first"}
    pool = pools.get(text.pool, "argmax")
    return {
        "context_length": text.context_length,
        "vocab_size": text.vocab_size,
        "width": text.width,
        "heads": text.heads,
        "layers": text.depth,
        **({} if text.causal else {"no_causal_mask": True}),
        **({} if pool == "argmax" else {"pool_type": pool}),
        **({"eos_id": text.eot_id} if pool == "eos" else {}),
        **({"embed_cls": True, "output_tokens": True} if text.pool == "cls_legacy" else {}),
        **({"proj_type": "none"} if text.projection == "none" else {}),
        **({"proj_bias": True} if text.projection == "affine" else {}),
        **_common_cfg(text, quick_gelu),
    }


def _common_cfg(tower: VisionTower | TextTower, quick_gelu: bool) -> dict[str, Any]:
    """Fields that differ from CLIP's alone, so that versions of open_clip without an option read all others."""
    tanh = tower.activation == "gelu_tanh" and not quick_gelu
    return {
        "mlp_ratio": tower.mlp_ratio,
        **({"act_kwargs": {"approximate": "tanh"}} if tanh else {}),
        **({} if tower.norm_eps == 1e-5 else {"norm_kwargs": {"eps": tower.norm_eps}}),
        **({} if tower.layer_scale is None else {"ls_init_value": tower.layer_scale}),
    }


def opened(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Lazy]) -> dict[str, Lazy]:
    """See Format: the arrays, without a pooler of transformers that pools nothing."""
    text = config["model_cfg"]["text_cfg"]
    unused = text.get("hf_model_name") and text.get("hf_pooler_type", "mean_pooler") != "cls_pooler"
    return {name: x for name, x in tensors.items() if not (unused and re.fullmatch(UNUSED_POOLER, name))}


def finish(folder: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """See Format: nothing is left to write."""


def write_config(
    model: Model, folder: Path, scales: Sequence[str], captioners: Mapping[str, Caption] | None = None
) -> Collection[str]:
    """Writes `open_clip_config.json` and the tokenizer. Returns the name of the captioner that is part of it, where one is."""
    require_pair("open_clip", model)
    kept = list(captioners or ()) if is_captioner(model) else []
    if len(kept) != is_captioner(model):
        raise WeightsError(f"open_clip's CoCa has one captioner, and this model with towers like it has {len(kept)}")
    config = config_of(model, scales, captioners[kept[0]] if captioners and kept else None)
    text = model.towers["text"]
    assert isinstance(text, TokenTower)
    config["model_cfg"]["text_cfg"] |= write_open_clip(text.tokenizer, folder)
    require_one_scale("open_clip", scales)
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    return kept
