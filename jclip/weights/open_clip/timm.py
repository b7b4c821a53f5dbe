"""The vision transformers of SigLIP as timm keeps them, which open_clip calls by name."""

from dataclasses import replace
from typing import Any

from jclip.config import Tower, VisionTower, siglip_image
from jclip.weights.layout import LEADING, Rule, conv_layout, dense_rules, norm_rules, stacked_rules

_TANH: dict[str, Any] = {"activation": "gelu_tanh"}
TIMM = {
    "vit_base_patch32_siglip_256": siglip_image("B", 32, 256, **_TANH),
    **{f"vit_base_patch16_siglip_{size}": siglip_image("B", 16, size) for size in (224, 256, 384, 512)},
    **{f"vit_large_patch16_siglip_{size}": siglip_image("L", 16, size) for size in (256, 384)},
    "vit_large_patch16_siglip_512": siglip_image("L", 16, 512, **_TANH),
    **{f"vit_so400m_patch14_siglip_{size}": siglip_image("SO400M", 14, size) for size in (224, 378, 384)},
    **{f"vit_so400m_patch16_siglip_{size}": siglip_image("SO400M", 16, size, **_TANH) for size in (256, 384, 512)},
    **{f"vit_giantopt_patch16_siglip_{size}": siglip_image("gopt", 16, size, **_TANH) for size in (256, 384)},
}
"""timm's models by name; the size of the images is part of it (timm 1.0)."""


def timm_name(tower: Tower) -> str | None:
    """timm's name of a tower, or None where it has none like it."""
    for name, theirs in TIMM.items():
        if isinstance(tower, VisionTower) and tower == replace(theirs, preprocess=tower.preprocess, dropout=tower.dropout):
            return name
    return None


def timm_rules(tower: VisionTower, ours: str = "image", theirs: str = "visual.trunk") -> list[Rule]:
    """Rules of timm's `VisionTransformer` with a latent pooling."""
    pool, latent = f"{ours}/map", f"{theirs}.attn_pool"
    return [
        Rule(f"{ours}/patch_embed/kernel", f"{theirs}.patch_embed.proj.weight", conv_layout(tower.patch_size)),
        Rule(f"{ours}/patch_embed/bias", f"{theirs}.patch_embed.proj.bias"),
        Rule(f"{ours}/pos_embed", f"{theirs}.pos_embed", LEADING),
        *_block_rules(f"{ours}/blocks", f"{theirs}.blocks.{{}}"),
        *norm_rules(f"{ours}/norm", f"{theirs}.norm"),
        Rule(f"{pool}/probe", f"{latent}.latent"),
        *dense_rules(f"{pool}/attn/q", f"{latent}.q"),
        *stacked_rules(f"{pool}/attn", f"{latent}.kv.", "kv"),
        *dense_rules(f"{pool}/attn/out", f"{latent}.proj"),
        *norm_rules(f"{pool}/norm", f"{latent}.norm"),
        *dense_rules(f"{pool}/mlp/fc1", f"{latent}.mlp.fc1"),
        *dense_rules(f"{pool}/mlp/fc2", f"{latent}.mlp.fc2"),
    ]


def _block_rules(ours: str, theirs: str) -> list[Rule]:
    dense = (("attn/out", "attn.proj"), ("mlp/fc1", "mlp.fc1"), ("mlp/fc2", "mlp.fc2"))
    return [
        *norm_rules(f"{ours}/norm1", f"{theirs}.norm1"),
        *norm_rules(f"{ours}/norm2", f"{theirs}.norm2"),
        *stacked_rules(f"{ours}/attn", f"{theirs}.attn.qkv."),
        *(rule for a, b in dense for rule in dense_rules(f"{ours}/{a}", f"{theirs}.{b}")),
    ]
