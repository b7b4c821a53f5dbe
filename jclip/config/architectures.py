"""The table of named architectures, by the names that open_clip gives them."""

from dataclasses import replace
from typing import Any, Literal

from jclip.config.bert import BertTower
from jclip.config.errors import ConfigError
from jclip.config.inputs import Preprocess, TokenizerConfig
from jclip.config.towers import ImageTower, Model, ResNetTower, TextTower, TokenTower, VisionTower

Size = tuple[int, int, int]
"""Width, depth and heads."""

HALF = (0.5, 0.5, 0.5)
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

QUICK = "-quickgelu"

BERT = TokenizerConfig("hugging_face", clean="whitespace", strip_id=102)
XLM_V = TokenizerConfig("hugging_face", clean="whitespace", pad_id=1)
UNCASED = TokenizerConfig("hugging_face", clean="whitespace")
MT5 = TokenizerConfig("hugging_face", clean="canonicalize")
T5 = TokenizerConfig("sentencepiece", clean="canonicalize", eos_id=1, pad_id=1)
GEMMA = TokenizerConfig("sentencepiece", clean="canonicalize", eos_id=1, pad_id=0)
"""Tokenizers without their vocabularies, which --model.towers.text.tokenizer.file gives."""

ONE_WORD = {"causal": False, "pool": "last"}
"""Pooling of SigLIP's and CLIPA's texts: the last position, which sees all others."""

SIGLIP_SIZES: dict[str, tuple[Size, float]] = {
    "B": ((768, 12, 12), 4.0),
    "L": ((1024, 24, 16), 4.0),
    "SO400M": ((1152, 27, 16), 3.7362),
    "gopt": ((1536, 40, 16), 4.0),
}
"""Size and mlp_ratio of SigLIP's image towers (Zhai et al. 2023; Alabdulmohsin et al. 2023; Tschannen et al. 2025)."""


def siglip_image(size: str, patch_size: int, image_size: int, **others: Any) -> VisionTower:
    """SigLIP's image tower of one of SIGLIP_SIZES: no class token, pooling by attention, no projection."""
    (width, depth, heads), ratio = SIGLIP_SIZES[size]
    how = Preprocess(HALF, HALF, resize="squash")
    tower = VisionTower(image_size, patch_size, width, depth, heads, ratio, pool="map", pre_norm=False, norm_eps=1e-6)
    tower = replace(tower, crop=image_size % patch_size > 0, patch_bias=True, projection="none", preprocess=how)
    return replace(tower, **others)


def _vit(image_size: int, patch_size: int, size: Size, **others: Any) -> VisionTower:
    width, depth, heads = size
    return VisionTower(image_size, patch_size, width, depth, heads, **others)


def _text(size: Size, **others: Any) -> TextTower:
    width, depth, heads = size
    return TextTower(width=width, depth=depth, heads=heads, **others)


def _clip(embed_dim: int, image: ImageTower, text: TokenTower) -> Model:
    return Model(towers={"image": image, "text": text}, embed_dim=embed_dim)


def _clipa(base: Model, image_size: int) -> Model:
    """CLIPA (Li et al. 2023): short texts of BERT's words, and the mean of the patches."""
    how = Preprocess(*IMAGENET, interpolation="bilinear", resize="squash")
    new: dict[str, Any] = {"image_size": image_size, "preprocess": how}
    new |= {"pool": "avg", "class_token": True, "pre_norm": False, "norm_after_pool": True}
    image = replace(base.towers["image"], **new)
    new = {"context_length": 32, "vocab_size": 32000, "eot_id": 102, "tokenizer": BERT, **ONE_WORD}
    return replace(base, towers={"image": image, "text": replace(base.towers["text"], **new)})


def _worldwide(base: Model, image_size: int, tokenizer: TokenizerConfig, vocab_size: int, eot_id: int) -> Model:
    """MetaCLIP 2 (Chuang et al. 2025): texts of many languages."""
    new: dict[str, Any] = {"vocab_size": vocab_size, "eot_id": eot_id, "tokenizer": tokenizer}
    size: dict[str, Any] = {"image_size": image_size}
    image = replace(base.towers["image"], **size)
    return replace(base, towers={"image": image, "text": replace(base.towers["text"], **new)})


def _siglip(size: str, patch_size: int, image_size: int, tokenizer: TokenizerConfig, vocab_size: int, **others: Any) -> Model:
    """SigLIP and SigLIP 2; the activation of the image tower is erf's or tanh's GELU as timm has it."""
    activation = others.pop("image_activation", "gelu")
    text_size, ratio = SIGLIP_SIZES["SO400M" if size == "gopt" else size]
    text: dict[str, Any] = {"context_length": 64, "vocab_size": vocab_size, "tokenizer": tokenizer, "eot_id": 1, "norm_eps": 1e-6}
    text |= {"mlp_ratio": ratio, "projection": "affine", "activation": "gelu_tanh" if tokenizer is GEMMA else "gelu"}
    image = siglip_image(size, patch_size, image_size, activation=activation)
    return _clip(image.width, image, _text(text_size, **ONE_WORD, **(text | others)))


def _roberta(vocab_size: int, size: Size) -> BertTower:
    """RoBERTa (Liu et al. 2019) and XLM-R (Conneau et al. 2020)."""
    width, depth, heads = size
    how: dict[str, Any] = {"max_positions": 514, "positions_from": "pad_id", "token_types": 1, "norm_eps": 1e-5}
    return BertTower(vocab_size=vocab_size, width=width, depth=depth, heads=heads, tokenizer=XLM_V, **how)


def _at(name: str, *image_sizes: int) -> dict[str, int]:
    """Names of a model for several sizes of images; 224 goes without saying."""
    return {name if size == 224 else f"{name}-{size}": size for size in image_sizes}


HF_TEXTS: dict[str, BertTower] = {
    "bert-base-uncased": BertTower(tokenizer=UNCASED),
    "roberta-base": _roberta(50265, (768, 12, 12)),
    "xlm-roberta-base": _roberta(250002, (768, 12, 12)),
    "xlm-roberta-large": _roberta(250002, (1024, 24, 16)),
}
"""Text towers by the names that open_clip has of transformers, without their vocabularies."""


def hf_text(name: str, pool: Literal["pooler", "first", "mean"]) -> BertTower:
    """The tower of HF_TEXTS of that name, with that pooling."""
    return replace(HF_TEXTS[name], pool=pool)


# Sizes: Dosovitskiy et al. 2021, table 1 (B, L, H); Zhai et al. 2022, table 2 (g, G); Touvron et al. 2021 (S); text towers:
# Radford et al. 2021, table 20 (B, L, RN) and OpenCLIP (Cherti et al. 2023, table 20) for the others.
S, M, B, L = (384, 12, 6), (512, 12, 8), (768, 12, 12), (1024, 24, 16)
B_PLUS, H, SMALL_G, BIG_G, E = (896, 12, 14), (1280, 32, 16), (1408, 40, 16), (1664, 48, 16), (1792, 56, 16)
_CLIP = {
    "ViT-tiny-test": _clip(16, _vit(16, 8, (32, 2, 2)), _text((32, 2, 2), context_length=8)),
    "ViT-mini-test": _clip(32, _vit(32, 8, (64, 2, 2)), _text((64, 2, 2), context_length=16)),
    **{f"ViT-S-{patch}": _clip(384, _vit(224, patch, S), _text(S)) for patch in (32, 16)},
    **{f"ViT-S-{patch}-alt": _clip(256, _vit(224, patch, S), _text((256, 10, 4))) for patch in (32, 16)},
    **{f"ViT-M-{patch}": _clip(512, _vit(224, patch, M), _text(M)) for patch in (32, 16)},
    "ViT-M-32-alt": _clip(384, _vit(224, 32, M), _text(S)),
    "ViT-M-16-alt": _clip(384, _vit(224, 16, M, layer_scale=1e-4), _text(S)),
    **{name: _clip(512, _vit(size, 32, B), _text(M)) for name, size in _at("ViT-B-32", 224, 256).items()},
    "ViT-B-16": _clip(512, _vit(224, 16, B), _text(M)),
    "ViT-B-32-plus-256": _clip(640, _vit(256, 32, B_PLUS), _text((640, 12, 10))),
    **{name: _clip(640, _vit(size, 16, B_PLUS), _text((640, 12, 10))) for name, size in _at("ViT-B-16-plus", 224, 240).items()},
    **{name: _clip(768, _vit(size, 16, L), _text(B)) for name, size in _at("ViT-L-16", 224, 320).items()},
    **{name: _clip(768, _vit(size, 14, L), _text(B)) for name, size in _at("ViT-L-14", 224, 280, 336).items()},
    "ViT-H-16": _clip(1024, _vit(224, 16, H), _text(L)),
    **{name: _clip(1024, _vit(size, 14, H), _text(L)) for name, size in _at("ViT-H-14", 224, 378).items()},
    "ViT-g-14": _clip(1024, _vit(224, 14, SMALL_G, mlp_ratio=4.3637), _text(L)),
    "ViT-bigG-14": _clip(1280, _vit(224, 14, BIG_G, mlp_ratio=4.9231), _text((1280, 32, 20))),
    "ViT-e-14": _clip(1280, _vit(224, 14, E, mlp_ratio=8.5715), _text((1280, 36, 20))),
    "RN50": _clip(1024, ResNetTower(224, (3, 4, 6, 3), 64, 32), _text(M)),
    "RN101": _clip(512, ResNetTower(224, (3, 4, 23, 3), 64, 32), _text(M)),
    "RN50x4": _clip(640, ResNetTower(288, (4, 6, 10, 6), 80, 40), _text((640, 12, 10))),
    "RN50x16": _clip(768, ResNetTower(384, (6, 8, 18, 8), 96, 48), _text(B)),
    "RN50x64": _clip(1024, ResNetTower(448, (3, 15, 36, 10), 128, 64), _text((1024, 12, 16))),
}

_OTHERS = {
    **{
        name: _clipa(_CLIP[base], size)
        for base in ("ViT-L-14", "ViT-H-14", "ViT-bigG-14")
        for name, size in _at(f"{base}-CLIPA", 224, 336).items()
    },
    "ViT-L-14-worldwide": _worldwide(_CLIP["ViT-L-14"], 224, MT5, 250100, 1),
    **{
        name: _worldwide(_CLIP[base], size, XLM_V, 901629, 2)
        for base in ("ViT-H-14", "ViT-bigG-14")
        for name, size in _at(f"{base}-worldwide", 224, 378).items()
    },
}

_MLP: dict[str, Any] = {"projection": "mlp_gelu"}
_FOREIGN = {
    "roberta-ViT-B-32": _clip(512, _vit(224, 32, B, activation="quick_gelu"), replace(hf_text("roberta-base", "mean"), **_MLP)),
    "xlm-roberta-base-ViT-B-32": _clip(512, _vit(224, 32, B), replace(hf_text("xlm-roberta-base", "mean"), **_MLP)),
    "xlm-roberta-large-ViT-H-14": _clip(1024, _vit(224, 14, H), replace(hf_text("xlm-roberta-large", "mean"), **_MLP)),
}
_TANH: dict[str, Any] = {"image_activation": "gelu_tanh"}
_SIGLIP = {
    **{name: _siglip("B", 16, size, T5, 32000) for name, size in _at("ViT-B-16-SigLIP", 224, 256, 384, 512).items()},
    **{name: _siglip("L", 16, size, T5, 32000) for name, size in _at("ViT-L-16-SigLIP", 256, 384).items()},
    "ViT-SO400M-14-SigLIP": _siglip("SO400M", 14, 224, T5, 32000, context_length=16),
    **{name: _siglip("SO400M", 14, size, T5, 32000) for name, size in _at("ViT-SO400M-14-SigLIP", 378, 384).items()},
    "ViT-B-16-SigLIP-i18n-256": _siglip("B", 16, 256, T5, 250000),
    "ViT-SO400M-16-SigLIP-i18n-256": _siglip("SO400M", 16, 256, T5, 250000, projection="none", **_TANH),
}
_SIGLIP_2 = {
    "ViT-B-32-SigLIP2-256": _siglip("B", 32, 256, GEMMA, 256000, **_TANH),
    **{name: _siglip("B", 16, size, GEMMA, 256000) for name, size in _at("ViT-B-16-SigLIP2", 224, 256, 384, 512).items()},
    **{name: _siglip("L", 16, size, GEMMA, 256000) for name, size in _at("ViT-L-16-SigLIP2", 256, 384).items()},
    "ViT-L-16-SigLIP2-512": _siglip("L", 16, 512, GEMMA, 256000, **_TANH),
    **{name: _siglip("SO400M", 14, size, GEMMA, 256000) for name, size in _at("ViT-SO400M-14-SigLIP2", 224, 378).items()},
    **{
        name: _siglip(size, 16, pixels, GEMMA, 256000, **_TANH)
        for size, sizes in (("SO400M", (256, 384, 512)), ("gopt", (256, 384)))
        for name, pixels in _at(f"ViT-{size}-16-SigLIP2", *sizes).items()
    },
}


def _coca(image: VisionTower, text: TextTower) -> Model:
    """open_clip's CoCa (Yu et al. 2022); its captioner is Caption()."""
    pool: dict[str, Any] = {"pool": "queries", "class_token": True, "queries": 256, "query_width": text.width}
    end: dict[str, Any] = {"pool": "cls_legacy", "context_length": 76}
    return _clip(text.width, replace(image, **pool), replace(text, **end))


_COCA = {"coca_ViT-B-32": _coca(_vit(224, 32, B), _text(M)), "coca_ViT-L-14": _coca(_vit(224, 14, L), _text(B))}
_TABLE = {**_CLIP, **_COCA, **_OTHERS, **_FOREIGN, **_SIGLIP, **_SIGLIP_2}


def architecture(name: str) -> Model:
    """The model of that name, such as "ViT-B-16"; "-quickgelu" at its end gives its transformers that activation.

    Raises:
        ConfigError: the name is not in the table.
    """
    base = name.removesuffix(QUICK)
    if base not in _TABLE:
        raise ConfigError(f"model: no architecture is called {name!r}; known: {', '.join(_TABLE)}")
    model = _TABLE[base]
    if base == name:
        return model
    quick: Any = {"activation": "quick_gelu"}
    towers = {
        key: tower if isinstance(tower, ResNetTower | BertTower) else replace(tower, **quick)
        for key, tower in model.towers.items()
    }
    return replace(model, towers=towers)


def architecture_names() -> tuple[str, ...]:
    """All names in the table."""
    return tuple(_TABLE)
