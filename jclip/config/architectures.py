"""The table of named architectures, by the names the field gives them."""

from jclip.config.errors import ConfigError
from jclip.config.towers import Model, TextTower, Tower, VisionTower


def _clip(
    embed_dim: int,
    vision: tuple[int, int, int, int],
    text: tuple[int, int, int],
    *,
    image_size: int = 224,
    mlp_ratio: float = 4.0,
    context_length: int = 77,
) -> Model:
    """A CLIP model; vision is (patch_size, width, depth, heads), text is (width, depth, heads)."""
    patch_size, width, depth, heads = vision
    text_width, text_depth, text_heads = text
    towers: dict[str, Tower] = {
        "image": VisionTower(
            image_size=image_size, patch_size=patch_size, width=width, depth=depth, heads=heads, mlp_ratio=mlp_ratio
        ),
        "text": TextTower(context_length=context_length, width=text_width, depth=text_depth, heads=text_heads),
    }
    return Model(towers=towers, embed_dim=embed_dim)


# Sizes: Dosovitskiy et al. 2021, table 1 (B, L, H); Zhai et al. 2022, table 2 (g, G); Touvron et al. 2021 (S); text towers:
# Radford et al. 2021, table 20 (B, L) and OpenCLIP (Cherti et al. 2023, table 20) for the others.
_TABLE = {
    "ViT-tiny-test": _clip(16, (8, 32, 2, 2), (32, 2, 2), image_size=16, context_length=8),
    "ViT-mini-test": _clip(32, (8, 64, 2, 2), (64, 2, 2), image_size=32, context_length=16),
    "ViT-S-32": _clip(384, (32, 384, 12, 6), (384, 12, 6)),
    "ViT-S-16": _clip(384, (16, 384, 12, 6), (384, 12, 6)),
    "ViT-B-32": _clip(512, (32, 768, 12, 12), (512, 12, 8)),
    "ViT-B-16": _clip(512, (16, 768, 12, 12), (512, 12, 8)),
    "ViT-L-16": _clip(768, (16, 1024, 24, 16), (768, 12, 12)),
    "ViT-L-14": _clip(768, (14, 1024, 24, 16), (768, 12, 12)),
    "ViT-L-14-336": _clip(768, (14, 1024, 24, 16), (768, 12, 12), image_size=336),
    "ViT-H-16": _clip(1024, (16, 1280, 32, 16), (1024, 24, 16)),
    "ViT-H-14": _clip(1024, (14, 1280, 32, 16), (1024, 24, 16)),
    "ViT-g-14": _clip(1024, (14, 1408, 40, 16), (1024, 24, 16), mlp_ratio=4.3637),
    "ViT-bigG-14": _clip(1280, (14, 1664, 48, 16), (1280, 32, 20), mlp_ratio=4.9231),
}


def architecture(name: str) -> Model:
    """The model of that name, such as "ViT-B-16".

    Raises:
        ConfigError: the name is not in the table.
    """
    if name not in _TABLE:
        raise ConfigError(f"model: no architecture is called {name!r}; known: {', '.join(_TABLE)}")
    return _TABLE[name]


def architecture_names() -> tuple[str, ...]:
    """All names in the table."""
    return tuple(_TABLE)
