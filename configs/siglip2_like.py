"""After SigLIP 2 (Tschannen et al. 2025): sigmoid and captions from the start, self-distillation at last.

    jclip train configs/siglip2_like.py --workdir runs/siglip2
    jclip train configs/siglip2_like.py --form clipart --data data/clipart --workdir runs/siglip2_clipart
    jclip compile configs/siglip2_like.py --form large --topology v5e:8x8

In the last fifth of the run the student predicts from eight small crops, and from the image with half of its patches hidden,
what a teacher sees in the whole: its own moving average, which begins then as the student is. What differs from the paper:
the decoder writes captions as CoCa's does, over a causal text tower of its own (`written`), where the paper's also names
regions; of the heads, decays and weights the paper gives few, and those of DINO and SILC stand here. The views of the last
fifth are read from the start.

shapes and clipart are configs/quickstart.py and configs/clipart.py with heads that fit them, large is configs/vit_b16.py with
pooling by attention. On that slice a step of 4,096 pairs needs 3.90 of a chip's 15.75 GiB and, by the compiler's clock, 0.47 s of
computing and 0.09 s of transfers. Compiled, not trained.
"""

from typing import Literal

from jclip.config import (
    Augment,
    Caption,
    Config,
    Contrastive,
    SelfDistillation,
    TextTower,
    View,
    VisionTower,
    beside,
    replace_each,
)

CROP = Augment(scale=(0.05, 0.4), flip=0.5, jitter_p=0.8, grayscale=0.2, blur=0.5)


def get_config(form: Literal["shapes", "clipart", "large"] = "shapes", data: str = "") -> Config:
    """The recipe; form and data are those of configs/plain.py."""
    config = beside(__file__, "plain.py", form=form, data=data)
    image, text = config.model.towers["image"], config.model.towers["text"]
    assert isinstance(image, VisionTower)
    assert isinstance(text, TextTower)
    large = form == "large"
    # Three sevenths of the side in whole patches, as 96 of 224 pixels.
    side = max(1, round(image.size[0] * 3 / 7 / image.patch_size)) * image.patch_size
    crops = {f"image@{i}": View("image", augment=CROP, size=side) for i in range(1, 9 if large else 3)}
    changes = {
        "model.towers": {**config.model.towers, "written": text},
        "model.towers.written.causal": True,
        "model.towers.written.mask_padding": False,
        "model.towers.written.pool": "eot",
        "model.towers.written.depth": max(1, text.depth // 2),
        "data.fields": {**config.data.fields, "written": config.data.fields.get("text", "text")},
        "views": crops,
        "objectives": {
            "image_text": Contrastive(loss="sigmoid", logit_bias=None if large else "batch"),
            "caption": Caption("image", "written", weight=1.0),
            "taught": SelfDistillation(parts=tuple(crops), decay=0.99, final_decay=0.99, begin=0.8),
        },
        "optim.b2": 0.95,
    }
    if large:
        changes |= {
            "model.remat": "nothing_saveable",
            "mesh.fsdp": 8,
            "model.towers.image.pool": "map",
            "model.towers.image.patch_dropout": 0.0,
            "model.towers.text.pool": "map",
            "model.towers.text.causal": False,
        }
    else:
        changes |= {"objectives.taught.prototypes": 512, "objectives.taught.size": 256, "objectives.taught.features": 64}
    return replace_each(config, changes)
