"""OpenVision (Li et al. 2025): contrast and captions, with small images for most of the run and large ones at last.

    jclip train configs/openvision_b16.py --workdir runs/openvision
    jclip train configs/openvision_b16.py --form clipart --data data/clipart --workdir runs/openvision_clipart
    jclip compile configs/openvision_b16.py --form large --topology v5e:8x8

large is the published ViT-B/16: 12.8 billion examples of 160 pixels in batches of 32,768 at 1.02e-3, 1.02 billion of 224 in
16,384 at 2.56e-5, and 256 million of 384 in 8,192 at 3.2e-6. It is published to reach 73.9% of ImageNet, zero-shot. What differs:
the vocabulary is CLIP's and not BERT's, and the decoder, behind a causal text tower of its own (`written`), attends to the image,
where the paper's reads image and text as one row. The captions of its data are synthetic; --data.fields.written names them.

On that slice a step of its three stages needs 6.49, 4.34 and 5.72 of a chip's 15.75 GiB and, by the compiler's clock with the
transfers, 1.49, 0.96 and 1.06 s. Compiled, not trained.

shapes and clipart are configs/quickstart.py and configs/clipart.py with the same objectives, whose first stage sees half of each
side. Neither time nor accuracy has been measured.
"""

from typing import Literal

from jclip.config import (
    Augment,
    Caption,
    Config,
    Contrastive,
    Preprocess,
    Stage,
    TextTower,
    VisionTower,
    architecture,
    beside,
    replace_each,
)

IMAGENET = Preprocess((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), interpolation="bilinear", resize="squash")


def get_config(form: Literal["shapes", "clipart", "large"] = "shapes", data: str = "") -> Config:
    """The recipe; form and data are those of configs/plain.py."""
    config = beside(__file__, "plain.py", form=form, data=data)
    if form == "large":
        config = large(config)
    image, text = config.model.towers["image"], config.model.towers["text"]
    assert isinstance(image, VisionTower)
    assert isinstance(text, TextTower)
    changes: dict[str, object] = {
        "model.towers": {**config.model.towers, "written": text},
        "model.towers.written.causal": True,
        "model.towers.written.mask_padding": False,
        "model.towers.written.pool": "eot",
        "model.towers.written.depth": text.depth if form == "large" else max(1, text.depth // 2),
        "data.fields": {**config.data.fields, "written": config.data.fields.get("text", "text")},
        "objectives": {"image_text": Contrastive(block=1024), "caption": Caption("image", "written")},
    }
    half = image.size[0] // 2
    match form:
        case "shapes":
            changes |= {"stages": {"small": Stage("600", image_size=half)}, "duration": "300"}
        case "clipart":
            changes |= {
                "stages": {"small": Stage("20ep", image_size=half)},
                "duration": "5ep",
                "optim.lr": 3e-4,
                "optim.warmup": "10",
            }
    return replace_each(config, changes)


def large(config: Config) -> Config:
    """Towers, stages and rates of the paper."""
    stages = {
        "160": Stage("390980", image_size=160, batch_size=32768, lr=1.024e-3, warmup="1563"),
        "224": Stage("62557", image_size=224, batch_size=16384, lr=2.56e-5, warmup="1563"),
    }
    changes = {
        "model": architecture("ViT-B-16"),
        "model.towers.image.image_size": 384,
        "model.towers.image.positions": "sincos",
        "model.towers.image.pool": "avg",
        "model.towers.image.pre_norm": False,
        "model.towers.image.norm_after_pool": True,
        "model.towers.image.norm_eps": 1e-6,
        "model.towers.image.activation": "gelu_tanh",
        "model.towers.image.preprocess": IMAGENET,
        "model.towers.text.context_length": 80,
        "model.towers.text.causal": False,
        "model.towers.text.mask_padding": True,
        "model.towers.text.norm_eps": 1e-6,
        "model.towers.text.activation": "gelu_tanh",
        "model.dtype": "bfloat16",
        "model.scan": True,
        "model.remat": "nothing_saveable",
        "data.augment": Augment(scale=(0.4, 1.0), jitter=(0.32, 0.32, 0.32, 0.08), jitter_p=0.8, grayscale=0.2),
        "optim.lr": 3.2e-6,
        "optim.warmup": "0",
        "optim.b2": 0.95,
        "optim.mu_dtype": "bfloat16",
        "mesh.fsdp": 8,
        "stages": stages,
        "batch_size": 8192,
        "duration": "31278",
    }
    return replace_each(config, changes)
