"""After SigLIP 2 (Tschannen et al. 2025): sigmoid and captions from the start, self-distillation at last.

    jclip train configs/siglip2_like.py --workdir runs/siglip2
    jclip train configs/siglip2_like.py --form clipart --data data/clipart --workdir runs/siglip2_clipart
    jclip compile configs/siglip2_like.py --form large --topology v5e:8x8

In the last fifth of the run the student tells from eight small crops, and from the image with half of its patches hidden,
what a teacher sees in the whole: its own moving average, which begins then as the student is. What differs from the paper:
the decoder writes captions as CoCa's does, over a causal text tower of its own (`written`), where the paper's also names
regions; of the heads, decays and weights the paper gives few, and those of DINO and SILC stand here. The views of the last
fifth are read from the start.

shapes and clipart are configs/quickstart.py and configs/clipart.py with heads that fit them, large is configs/vit_b16.py with
pooling by attention. The large form is compiled, not trained.
"""

from dataclasses import replace
from pathlib import Path
from typing import Literal

from jclip.config import (
    Augment,
    Caption,
    Config,
    Contrastive,
    Model,
    SelfDistillation,
    TextTower,
    Tower,
    View,
    VisionTower,
    load,
)

CROP = Augment(scale=(0.05, 0.4), flip=0.5, jitter_p=0.8, grayscale=0.2, blur=0.5)


def get_config(form: Literal["shapes", "clipart", "large"] = "shapes", data: str = "") -> Config:
    """The recipe; `data` is the folder of clipart's shards, or for the large form a pattern of WebDataset shards."""
    folder = Path(__file__).parent
    match form:
        case "shapes":
            base = load(folder / "quickstart.py")
        case "clipart":
            base = load(folder / "clipart.py", ["--root", data or "data/clipart"])
        case "large":
            base = load(folder / "vit_b16.py", ["--data", data] if data else [])
    large = form == "large"
    crops = {f"image@{i}": View("image", augment=CROP, size=crop_size(base.model)) for i in range(1, 9 if large else 3)}
    teaching = SelfDistillation(parts=tuple(crops), decay=0.99, final_decay=0.99, begin=0.8)
    return replace(
        base,
        model=pooled_by_attention(base.model) if large else with_written(base.model),
        data=replace(base.data, fields={**base.data.fields, "written": base.data.fields.get("text", "text")}),
        views=crops,
        objectives={
            "image_text": Contrastive(loss="sigmoid", logit_bias=None if large else "batch"),
            "caption": Caption("image", "written", weight=1.0),
            "taught": teaching if large else replace(teaching, prototypes=512, size=256, features=64),
        },
        optim=replace(base.optim, b2=0.95),
    )


def crop_size(model: Model) -> int:
    """Three sevenths of the image's side, in whole patches, as 96 of 224 pixels."""
    image = model.towers["image"]
    assert isinstance(image, VisionTower)
    return max(1, round(image.size[0] * 3 / 7 / image.patch_size)) * image.patch_size


def with_written(model: Model) -> Model:
    """The model with a causal text tower beside its own, of half its blocks, at least one."""
    text = model.towers["text"]
    assert isinstance(text, TextTower)
    written = replace(text, causal=True, mask_padding=False, pool="eot", depth=max(1, text.depth // 2))
    return replace(model, towers={**model.towers, "written": written})


def pooled_by_attention(model: Model) -> Model:
    """The same of a model whose towers pool by attention, and whose text tower sees in both directions."""
    image, text = model.towers["image"], model.towers["text"]
    assert isinstance(image, VisionTower)
    assert isinstance(text, TextTower)
    towers: dict[str, Tower] = {
        "image": replace(image, pool="map", patch_dropout=0.0),
        "text": replace(text, causal=False, pool="map"),
    }
    return with_written(replace(model, towers=towers))
