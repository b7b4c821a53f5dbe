"""Models of the files that OpenAI published, which have open_clip's names and whose shapes alone say all."""

import math
from collections.abc import Mapping
from typing import Any, cast

from jclip.config import ImageTower, Model, ResNetTower, TextTower, VisionTower
from jclip.weights.errors import WeightsError

OPENAI = {"token_embedding.weight": 2, "positional_embedding": 2, "text_projection": 2}
OPENAI_VIT = {"visual.conv1.weight": 4, "visual.positional_embedding": 2}
OPENAI_RESNET = {"visual.layer1.0.conv1.weight": 4, "visual.attnpool.positional_embedding": 2}
"""The arrays whose shapes determine the architecture of OpenAI's files, with their number of axes."""


def openai_model(shapes: Mapping[str, tuple[int, ...]]) -> Model:
    """The architecture of weights that OpenAI published, read from their shapes; heads of 64 and QuickGELU are the same in all.

    Raises:
        WeightsError: an array is missing without which they do not determine it.
    """
    resnet = any(name.startswith(("visual.layer1.", "visual.attnpool.")) for name in shapes)
    needed = {**OPENAI, **(OPENAI_RESNET if resnet else OPENAI_VIT)}
    if problems := [
        f"{name} is {list(shapes[name])}, not of {axes} axes" if name in shapes else f"missing {name}"
        for name, axes in needed.items()
        if len(shapes.get(name, ())) != axes
    ]:
        raise WeightsError(f"the weights have OpenAI's names, but do not determine their architecture: {'; '.join(problems)}")

    def count(prefix: str, suffix: str) -> int:
        return sum(name.startswith(prefix) and name.endswith(suffix) for name in shapes)

    vocab_size, text_width = shapes["token_embedding.weight"]
    text = TextTower(
        context_length=shapes["positional_embedding"][0],
        vocab_size=vocab_size,
        width=text_width,
        depth=count("transformer.", ".attn.in_proj_weight"),
        heads=text_width // 64,
        activation="quick_gelu",
    )
    image: ImageTower
    if not resnet:
        width, _, _, patch_size = shapes["visual.conv1.weight"]
        image = VisionTower(
            image_size=math.isqrt(shapes["visual.positional_embedding"][0] - 1) * patch_size,
            patch_size=patch_size,
            width=width,
            depth=count("visual.transformer.", ".attn.in_proj_weight"),
            heads=width // 64,
            activation="quick_gelu",
        )
    else:
        stem = shapes["visual.layer1.0.conv1.weight"][0]
        layers = tuple(count(f"visual.layer{stage}.", ".conv1.weight") for stage in (1, 2, 3, 4))
        grid = math.isqrt(shapes["visual.attnpool.positional_embedding"][0] - 1)
        image = ResNetTower(grid * 32, cast(Any, layers), stem_width=stem, heads=stem * 32 // 64)
    return Model({"image": image, "text": text}, embed_dim=shapes["text_projection"][1])
