"""Which of Hugging Face's models ours is, and where that keeps each parameter."""

from collections.abc import Container

from jclip.config import Model, TextTower, VisionTower
from jclip.weights.layout import BIAS, LINEAR, SCALAR, SCALE, VECTOR, Rule, conv_layout, dense_rules, norm_rules, stacked_rules


def model_type(model: Model) -> str:
    """Which type of model is written: siglip and siglip2 differ in how texts are cleaned, and in how patches are embedded."""
    image, text = model.towers["image"], model.towers["text"]
    assert isinstance(text, TextTower)
    if not isinstance(image, VisionTower) or image.pool != "map":
        return "clip"
    return "siglip2" if text.tokenizer.clean == "siglip2" else "siglip"


def rules(model: Model, paths: Container[str], names: Container[str] | None = None) -> list[Rule]:
    """A rule for every parameter.

    Args:
        model: the architecture.
        paths: of our parameters, which tell whether the logits have a bias.
        names: of the arrays of a file; not needed, their shapes tell the kinds apart.
    """
    image = model.towers["image"]
    assert isinstance(image, VisionTower)
    kind = model_type(model)
    scalar = SCALAR if kind == "clip" else VECTOR
    return [
        *(_clip_rules(image) if kind == "clip" else _siglip_rules(image, kind)),
        Rule("image/pos_embed", "vision_model.embeddings.position_embedding.weight"),
        *_block_rules("image/blocks", "vision_model.encoder.layers.{}"),
        *norm_rules("image/norm", "vision_model.post_layernorm"),
        Rule("text/token_embed", "text_model.embeddings.token_embedding.weight"),
        Rule("text/pos_embed", "text_model.embeddings.position_embedding.weight"),
        *_block_rules("text/blocks", "text_model.encoder.layers.{}"),
        *norm_rules("text/norm", "text_model.final_layer_norm"),
        Rule(SCALE, "logit_scale", scalar),
        *([Rule(BIAS, "logit_bias", scalar)] if BIAS in paths else []),
    ]


def _clip_rules(image: VisionTower) -> list[Rule]:
    return [
        Rule("image/patch_embed/kernel", "vision_model.embeddings.patch_embedding.weight", conv_layout(image.patch_size)),
        Rule("image/cls", "vision_model.embeddings.class_embedding"),
        *norm_rules("image/norm_pre", "vision_model.pre_layrnorm"),  # their spelling
        Rule("image_projection/kernel", "visual_projection.weight", LINEAR),
        Rule("text_projection/kernel", "text_projection.weight", LINEAR),
    ]


def _siglip_rules(image: VisionTower, kind: str) -> list[Rule]:
    """SigLIP's own; SigLIP 2 keeps the embedding of patches as a matrix, in the order of our pixels."""
    head = "vision_model.head"
    patches = LINEAR if kind == "siglip2" else conv_layout(image.patch_size)
    return [
        Rule("image/patch_embed/kernel", "vision_model.embeddings.patch_embedding.weight", patches),
        Rule("image/patch_embed/bias", "vision_model.embeddings.patch_embedding.bias"),
        Rule("image/map/probe", f"{head}.probe"),
        *stacked_rules("image/map/attn", f"{head}.attention.in_proj_"),
        *dense_rules("image/map/attn/out", f"{head}.attention.out_proj"),
        *norm_rules("image/map/norm", f"{head}.layernorm"),
        *dense_rules("image/map/mlp/fc1", f"{head}.mlp.fc1"),
        *dense_rules("image/map/mlp/fc2", f"{head}.mlp.fc2"),
        *dense_rules("text_projection", "text_model.head"),
    ]


def _block_rules(ours: str, theirs: str) -> list[Rule]:
    dense = [(f"attn/{name}", f"self_attn.{name}_proj") for name in "qkv"]
    dense += [("attn/out", "self_attn.out_proj"), ("mlp/fc1", "mlp.fc1"), ("mlp/fc2", "mlp.fc2")]
    return [
        *norm_rules(f"{ours}/norm1", f"{theirs}.layer_norm1"),
        *norm_rules(f"{ours}/norm2", f"{theirs}.layer_norm2"),
        *(rule for a, b in dense for rule in dense_rules(f"{ours}/{a}", f"{theirs}.{b}")),
    ]
