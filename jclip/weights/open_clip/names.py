"""Names of open_clip's parameters; OpenAI's files have the same."""

from collections.abc import Collection, Container
from typing import cast

from jclip.config import BertTower, Model, ResNetTower, TextTower, VisionTower
from jclip.weights.layout import BIAS, CONV, SCALAR, SCALE, Rule, conv_layout, dense_rules, norm_rules, stacked_rules
from jclip.weights.open_clip.bert import bert_text_rules
from jclip.weights.open_clip.coca import decoder_rules, is_captioner, pool_rules
from jclip.weights.open_clip.timm import timm_name, timm_rules


def rules(model: Model, paths: Collection[str], names: Container[str] | None = None) -> list[Rule]:
    """A rule for every parameter.

    Args:
        model: the architecture.
        paths: of our parameters, which show whether the logits have a bias, as SigLIP's objective has it, and a decoder.
        names: of the arrays of a file, which show whether the text tower stands apart (`CustomTextCLIP`); None: as we write it.
    """
    image, text = model.towers["image"], model.towers["text"]
    coca = is_captioner(model)
    apart = timm_name(image) is not None or coca if names is None else "text.token_embedding.weight" in names
    decoders = sorted({path.split("/")[0] for path in paths if "/decoder/" in path})
    if isinstance(image, ResNetTower):
        visual = _resnet_rules(image)
    else:
        assert isinstance(image, VisionTower)
        visual = timm_rules(image) if image.pool == "map" else _vit_rules(image)
    if isinstance(text, BertTower):
        words = bert_text_rules(text)
    else:
        assert isinstance(text, TextTower)
        words = _text_rules(text, "text." if apart else "")
    return [
        *visual,
        *words,
        Rule(SCALE, "logit_scale", SCALAR),
        *([Rule(BIAS, "logit_bias", SCALAR)] if BIAS in paths else []),
        *(rule for name in decoders for rule in decoder_rules(name, cast(TextTower, text))),
    ]


def _vit_rules(image: VisionTower) -> list[Rule]:
    return [
        Rule("image/patch_embed/kernel", "visual.conv1.weight", conv_layout(image.patch_size)),
        Rule("image/cls", "visual.class_embedding"),
        Rule("image/pos_embed", "visual.positional_embedding"),
        *(norm_rules("image/norm_pre", "visual.ln_pre") if image.pre_norm else []),
        *_block_rules(image, "image/blocks", "visual.transformer.resblocks.{}"),
        *(pool_rules(image) if image.pool == "queries" else []),
        *norm_rules("image/norm", "visual.ln_post"),
        Rule("image_projection/kernel", "visual.proj"),
    ]


def _text_rules(text: TextTower, prefix: str) -> list[Rule]:
    projection = {
        "none": [],
        "linear": [Rule("text_projection/kernel", f"{prefix}text_projection")],
        "affine": dense_rules("text_projection", f"{prefix}text_projection"),
    }
    return [
        Rule("text/token_embed", f"{prefix}token_embedding.weight"),
        Rule("text/pos_embed", f"{prefix}positional_embedding"),
        *([Rule("text/cls", f"{prefix}cls_emb")] if text.pool in ("cls", "cls_legacy") else []),
        *_block_rules(text, "text/blocks", f"{prefix}transformer.resblocks.{{}}"),
        *norm_rules("text/norm", f"{prefix}ln_final"),
        *projection[text.projection],
    ]


def _block_rules(tower: VisionTower | TextTower, ours: str, theirs: str) -> list[Rule]:
    dense = (("attn/out", "attn.out_proj"), ("mlp/fc1", "mlp.c_fc"), ("mlp/fc2", "mlp.c_proj"))
    scales = [Rule(f"{ours}/scale{i}/scale", f"{theirs}.ls_{i}.gamma") for i in (1, 2)]
    return [
        *norm_rules(f"{ours}/norm1", f"{theirs}.ln_1"),
        *norm_rules(f"{ours}/norm2", f"{theirs}.ln_2"),
        *stacked_rules(f"{ours}/attn", f"{theirs}.attn.in_proj_"),
        *(rule for a, b in dense for rule in dense_rules(f"{ours}/{a}", f"{theirs}.{b}")),
        *(scales if tower.layer_scale is not None else []),
    ]


def _resnet_rules(image: ResNetTower) -> list[Rule]:
    stem = [rule for i in (1, 2, 3) for rule in _conv_rules(f"image/stem{i}", f"visual.conv{i}", f"visual.bn{i}")]
    blocks = []
    for stage, count in enumerate(image.layers, 1):
        for i in range(count):
            ours, theirs = f"image/stage{stage}_{i}", f"visual.layer{stage}.{i}"
            blocks += [r for j in (1, 2, 3) for r in _conv_rules(f"{ours}/conv{j}", f"{theirs}.conv{j}", f"{theirs}.bn{j}")]
            if i == 0:
                blocks += _conv_rules(f"{ours}/shortcut", f"{theirs}.downsample.0", f"{theirs}.downsample.1")
    return [
        *stem,
        *blocks,
        Rule("image/pool/pos_embed", "visual.attnpool.positional_embedding"),
        *(rule for name in "qkv" for rule in dense_rules(f"image/pool/{name}", f"visual.attnpool.{name}_proj")),
        *dense_rules("image_projection", "visual.attnpool.c_proj"),
    ]


def _conv_rules(ours: str, conv: str, norm: str) -> list[Rule]:
    """A convolution and its batch normalisation."""
    return [
        Rule(f"{ours}/kernel", f"{conv}.weight", CONV),
        *norm_rules(ours, norm),
        Rule(f"{ours}/mean", f"{norm}.running_mean"),
        Rule(f"{ours}/var", f"{norm}.running_var"),
    ]
