"""Types of Hugging Face's models, and names of their parameters."""

from collections.abc import Container, Iterable

from jclip.config import BertTower, Model, TextTower, VisionTower
from jclip.weights.hugging_face.bert import text_rules
from jclip.weights.hugging_face.clap import clap_rules
from jclip.weights.layout import BIAS, LINEAR, SCALAR, SCALE, VECTOR, Rule, conv_layout, dense_rules, norm_rules, stacked_rules


def model_type(model: Model) -> str:
    """Type of the model that is written: siglip and siglip2 differ in how texts are cleaned, and in how patches are embedded.

    A text tower of BERT's kind is Chinese-CLIP's or AltCLIP's. A tower alone is one of a clip or a siglip.
    """
    image, text = model.towers.get("image"), model.towers.get("text")
    if isinstance(text, BertTower):
        return "altclip" if text.final_norm or text.output_width is not None else "chinese_clip"
    if image is None:
        return "siglip" if isinstance(text, TextTower) and text.pool == "last" else "clip"
    if not isinstance(image, VisionTower) or image.pool != "map":
        return "clip"
    return "siglip2" if isinstance(text, TextTower) and text.tokenizer.clean == "siglip2" else "siglip"


def rules(model: Model, paths: Container[str], names: Iterable[str] | None = None) -> list[Rule]:
    """A rule for every parameter.

    Args:
        model: the architecture.
        paths: of our parameters, which show whether there are scale and bias of the logits, and projections.
        names: of the arrays of a file, which show whether those of a tower alone begin with its name, as all did before
            transformers 5; what is written does, and any version reads it.
    """
    if "sound" in model.towers:
        return clap_rules(model, paths, writing=names is None)
    image, text = model.towers.get("image"), model.towers.get("text")
    kind = model_type(model)
    clip = not kind.startswith("siglip")
    scalar = SCALAR if clip else VECTOR
    bare = len(model.towers) == 1 and names is not None and any(name.startswith(("embeddings.", "encoder.")) for name in names)
    found = [Rule(path, name, scalar) for path, name in ((SCALE, "logit_scale"), (BIAS, "logit_bias")) if path in paths]
    if isinstance(image, VisionTower):
        found += _image_rules(image, kind, "" if bare else "vision_model.")
    if isinstance(text, TextTower):
        found += _text_rules(kind, "" if bare else "text_model.")
    if isinstance(text, BertTower):
        found += text_rules(text, kind)
    return [rule for rule in found if not clip or "_projection/" not in rule.ours or rule.ours in paths]


def _image_rules(image: VisionTower, kind: str, at: str) -> list[Rule]:
    return [
        *(_siglip_rules(image, kind, at) if kind.startswith("siglip") else _clip_rules(image, at)),
        Rule("image/pos_embed", f"{at}embeddings.position_embedding.weight"),
        *_block_rules("image/blocks", f"{at}encoder.layers.{{}}"),
        *norm_rules("image/norm", f"{at}post_layernorm"),
    ]


def _text_rules(kind: str, at: str) -> list[Rule]:
    return [
        Rule("text/token_embed", f"{at}embeddings.token_embedding.weight"),
        Rule("text/pos_embed", f"{at}embeddings.position_embedding.weight"),
        *_block_rules("text/blocks", f"{at}encoder.layers.{{}}"),
        *norm_rules("text/norm", f"{at}final_layer_norm"),
        *(
            [Rule("text_projection/kernel", "text_projection.weight", LINEAR)]
            if kind == "clip"
            else dense_rules("text_projection", f"{at}head")
        ),
    ]


def _clip_rules(image: VisionTower, at: str) -> list[Rule]:
    return [
        Rule("image/patch_embed/kernel", f"{at}embeddings.patch_embedding.weight", conv_layout(image.patch_size)),
        Rule("image/cls", f"{at}embeddings.class_embedding"),
        *norm_rules("image/norm_pre", f"{at}pre_layrnorm"),  # their spelling
        Rule("image_projection/kernel", "visual_projection.weight", LINEAR),
    ]


def _siglip_rules(image: VisionTower, kind: str, at: str) -> list[Rule]:
    """SigLIP's own; SigLIP 2 keeps the embedding of patches as a matrix, in the order of our pixels."""
    head = f"{at}head"
    patches = LINEAR if kind == "siglip2" else conv_layout(image.patch_size)
    return [
        Rule("image/patch_embed/kernel", f"{at}embeddings.patch_embedding.weight", patches),
        Rule("image/patch_embed/bias", f"{at}embeddings.patch_embedding.bias"),
        Rule("image/map/probe", f"{head}.probe"),
        *stacked_rules("image/map/attn", f"{head}.attention.in_proj_"),
        *dense_rules("image/map/attn/out", f"{head}.attention.out_proj"),
        *norm_rules("image/map/norm", f"{head}.layernorm"),
        *dense_rules("image/map/mlp/fc1", f"{head}.mlp.fc1"),
        *dense_rules("image/map/mlp/fc2", f"{head}.mlp.fc2"),
    ]


def _block_rules(ours: str, theirs: str) -> list[Rule]:
    dense = [(f"attn/{name}", f"self_attn.{name}_proj") for name in "qkv"]
    dense += [("attn/out", "self_attn.out_proj"), ("mlp/fc1", "mlp.fc1"), ("mlp/fc2", "mlp.fc2")]
    return [
        *norm_rules(f"{ours}/norm1", f"{theirs}.layer_norm1"),
        *norm_rules(f"{ours}/norm2", f"{theirs}.layer_norm2"),
        *(rule for a, b in dense for rule in dense_rules(f"{ours}/{a}", f"{theirs}.{b}")),
    ]
