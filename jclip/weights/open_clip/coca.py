"""Captioners as open_clip describes them: CoCa, whose decoder goes on from its text tower and sees what queries find."""

from collections.abc import Mapping
from typing import Any

from jclip.config import Caption, Model, TextTower, VisionTower
from jclip.models import decoder_config
from jclip.weights.errors import WeightsError
from jclip.weights.layout import Rule, dense_rules, norm_rules, stacked_rules
from jclip.weights.options import COUNT, NUMBER, check_options, optional

NAME = "caption"
"""The name that a captioner gets whose weights have none."""

DECODER = {"context_length": COUNT, "vocab_size": COUNT, "width": COUNT, "heads": COUNT, "layers": COUNT}
DECODER |= {"ls_init_value": optional(NUMBER), "mlp_ratio": NUMBER}
INERT = ("attn_pooler_heads", "n_queries", "dim_head")
"""The options of `multimodal_cfg` that the decoder has, and those that open_clip does not use."""


def is_captioner(model: Model) -> bool:
    """True where the towers are those of CoCa, which open_clip has together with a decoder alone."""
    image, text = model.towers["image"], model.towers["text"]
    if not isinstance(text, TextTower):
        return False
    return getattr(image, "pool", None) == "queries" or text.pool in ("cls", "cls_legacy")


def captioner_of(at: str, cfg: Mapping[str, Any]) -> Caption:
    """The decoder of a `model_cfg`.

    Raises:
        WeightsError: it is not as open_clip makes it of its text tower.
    """
    decoder, text = cfg["multimodal_cfg"], cfg["text_cfg"]
    check_options(f"{at}: multimodal_cfg.", decoder, DECODER, {}, INERT)
    own = {"context_length": 77, "vocab_size": 49408, "width": 512, "ls_init_value": None, "mlp_ratio": 4}
    for name, default in own.items():
        given, theirs = decoder.get(name, default), text.get(name, default)
        if given != theirs:
            raise WeightsError(f"{at}: multimodal_cfg.{name} is {given}, and text_cfg's {theirs}; equal ones are reproduced")
    if text.get("mlp_ratio", 4) != 4:
        raise WeightsError(f"{at}: text_cfg.mlp_ratio is {text['mlp_ratio']}; open_clip's decoder always has 4")
    if not cfg["vision_cfg"].get("attentional_pool") or not text.get("embed_cls"):
        raise WeightsError(f"{at}: captioners are reproduced with vision_cfg.attentional_pool and text_cfg.embed_cls alone")
    if cfg["embed_dim"] != text.get("width", 512):
        raise WeightsError(f"{at}: embed_dim {cfg['embed_dim']} is not text_cfg.width, of which open_clip's decoder takes images")
    return Caption(depth=decoder.get("layers", 12), heads=decoder.get("heads", 8))


def captioner_cfg(model: Model, how: Caption) -> dict[str, Any]:
    """The `multimodal_cfg` of a captioner, such that `captioner_of` reads it.

    Raises:
        WeightsError: open_clip has no such model.
    """
    image, text = model.towers["image"], model.towers["text"]
    assert isinstance(text, TextTower)
    if (how.image, how.text) != ("image", "text"):
        raise WeightsError(f"open_clip's captioner is of the towers image and text; this one is of {how.image} and {how.text}")
    if text.pool == "cls":
        raise WeightsError(
            "open_clip's configuration has no class token that leaves out all padding (text.pool 'cls'); it has that of its "
            "published weights, pool='cls_legacy'"
        )
    if not (isinstance(image, VisionTower) and image.pool == "queries" and text.pool == "cls_legacy" and image.class_token):
        raise WeightsError("open_clip's captioner pools images by queries, of a class token too, and texts by a class token")
    if {image.query_width or image.width, text.width} != {model.embed_dim}:
        raise WeightsError(f"open_clip's captioner has queries and texts of embed_dim {model.embed_dim}")
    decoder = decoder_config(how, text)
    return {
        "context_length": text.context_length,
        "vocab_size": text.vocab_size,
        "width": text.width,
        "heads": decoder.heads,
        "layers": decoder.depth,
        **({} if text.layer_scale is None else {"ls_init_value": text.layer_scale}),
    }


def queries(cfg: Mapping[str, Any], embed_dim: int, width: int) -> dict[str, Any]:
    """The pooling by queries, of the size of the embedding."""
    number, heads = cfg.get("attn_pooler_queries", 256), cfg.get("attn_pooler_heads", 8)
    return {"queries": number, "query_width": None if embed_dim == width else embed_dim, "query_heads": heads}


def queries_cfg(image: VisionTower) -> dict[str, Any]:
    """The inverse of `queries`."""
    pooler = {"attn_pooler_queries": image.queries, "attn_pooler_heads": image.query_heads}
    return {"attentional_pool": True, "output_tokens": True, **pooler}


def pool_rules(image: VisionTower) -> list[Rule]:
    """The pooling by queries. torch keeps the maps of an attention together where all are of one size."""
    ours, theirs = "image/pool/attn", "visual.attn_pool.attn"
    if image.pooled_width == image.width:
        maps = stacked_rules(ours, f"{theirs}.in_proj_")
    else:
        kernels = [rule for name in "qkv" for rule in dense_rules(f"{ours}/{name}", f"{theirs}.{name}_proj")[:1]]
        kernels = [Rule(rule.ours, rule.theirs.replace(".weight", "_weight"), rule.layout) for rule in kernels]
        maps = [*kernels, *(rule for rule in stacked_rules(ours, f"{theirs}.in_proj_") if rule.ours.endswith("bias"))]
    return [
        Rule("image/pool/probe", "visual.attn_pool.query"),
        *norm_rules("image/pool/norm_q", "visual.attn_pool.ln_q"),
        *norm_rules("image/pool/norm_k", "visual.attn_pool.ln_k"),
        *maps,
        *dense_rules(f"{ours}/out", f"{theirs}.out_proj"),
    ]


def decoder_rules(name: str, text: TextTower) -> list[Rule]:
    """The decoder under a captioner's name."""
    ours, theirs = f"{name}/decoder", "text_decoder"
    rules = [*norm_rules(f"{ours}/norm", f"{theirs}.ln_final"), Rule(f"{ours}/vocabulary", f"{theirs}.text_projection")]
    for prefix, stack in (("", "resblocks"), ("cross_", "cross_attn")):
        own, other = f"{ours}/blocks/{prefix}", f"{theirs}.{stack}.{{}}"
        rules += norm_rules(f"{own}norm1", f"{other}.ln_1") + norm_rules(f"{own}norm2", f"{other}.ln_2")
        rules += stacked_rules(f"{own}attn", f"{other}.attn.in_proj_")
        for a, b in (("attn/out", "attn.out_proj"), ("mlp/fc1", "mlp.c_fc"), ("mlp/fc2", "mlp.c_proj")):
            rules += dense_rules(f"{own}{a}", f"{other}.{b}")
        if text.layer_scale is not None:
            rules += [Rule(f"{own}scale{i}/scale", f"{other}.ls_{i}.gamma") for i in (1, 2)]
    return rules + norm_rules(f"{ours}/blocks/cross_norm_kv", f"{theirs}.cross_attn.{{}}.ln_1_kv")
