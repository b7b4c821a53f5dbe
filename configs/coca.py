"""CoCa (Yu et al. 2022): one model that matches images with texts, and writes the text of an image. Three forms of it.

    jclip train configs/coca.py --workdir runs/coca
    jclip caption runs/coca photo.png

shapes: drawn scenes of one to three objects, whose captions name each by colour and shape in one of many ways; the vocabulary is
coca_words.json. 3 min 47 s from the command to the last line on two cores of an EPYC that did nothing else. Of 2,000 new scenes
(seed 0) the greedy caption names in

    93.0%   exactly the objects: all of them, none besides, and each with its colour and shape; 98.0% after 2,000 steps
    21%     one of the many right ways, the one that the scene's own caption took: that is what exact_match counts

and recall@10 is 0.75 from image to text, and 0.93 from text to image.

    jclip train configs/coca.py --form clipart --data data/clipart --workdir runs/coca_clipart

clipart: the pictures of configs/clipart.py on a CPU, in CLIP's vocabulary, whose 49,408 logits a token are most of the work.
Neither time nor accuracy has been measured.

    jclip compile configs/coca.py --form large --topology v5e:8x16

large: CoCa of the size of open_clip's coca_ViT-L-14 for a slice of TPUs, with one query for the embedding and 256 for the decoder
and a class token that sees no padding, as in the paper. A step needs 3.22 of a chip's 15.75 GiB. Compiled, not trained.
"""

from pathlib import Path
from typing import Literal

from jclip.config import (
    Augment,
    Caption,
    Captioning,
    Checkpoint,
    Config,
    ConfigError,
    Contrastive,
    Data,
    MeshConfig,
    Model,
    Optim,
    Preprocess,
    Retrieval,
    TextTower,
    TokenizerConfig,
    VisionTower,
    architecture,
    replace_each,
    source_of,
)

WORDS = Path(__file__).resolve().with_name("coca_words.json")
WHITE = Preprocess(resize="longest", fill=255)


def get_config(form: Literal["shapes", "clipart", "large"] = "shapes", data: str = "") -> Config:
    """The recipe; `data` is the folder of clipart's shards, or for the large form a pattern of shards."""
    match form:
        case "shapes":
            if data:
                raise ConfigError(f"config: shapes are drawn while training, so that data {data!r} would not be read")
            return shapes()
        case "clipart":
            return clipart(data or "data/clipart")
        case "large":
            return large(data or "/data/train-{00000..00099}.tar")


def shapes(size: int = 32) -> Config:
    """Drawn scenes on a laptop."""
    vision = VisionTower(
        image_size=size,
        patch_size=8,
        width=128,
        depth=2,
        heads=4,
        stem=(24, 48, 96),
        activation="gelu_tanh",
        positions="sincos",
        pool="queries",
        queries=17,
        query_heads=4,
    )
    text = TextTower(
        context_length=24,
        vocab_size=64,
        width=64,
        depth=1,
        heads=4,
        activation="gelu_tanh",
        pool="cls",
        eot_id=2,
        tokenizer=TokenizerConfig("hugging_face", str(WORDS), bos_id=1, eos_id=2),
    )
    val = f"shapes:val?size={size}&captions=complete"
    return Config(
        model=Model(towers={"image": vision, "text": text}, embed_dim=128),
        data=Data(
            source=f"shapes:train?size={size}&length=1000000&captions=complete",
            augment=Augment(scale=(1.0, 1.0), ratio=(1.0, 1.0)),
        ),
        optim=Optim(lr=1.5e-3, warmup="5%", weight_decay=0.05, clip_norm=1.0),
        objectives={"image_text": Contrastive(block=256), "caption": Caption(depth=2, block=23)},
        evals={"captions": Captioning(val), "retrieval": Retrieval(val)},
        checkpoint=Checkpoint(every="25%"),
        batch_size=128,
        duration="1400",
        log_every=20,
    )


def clipart(root: str) -> Config:
    """Clip art on a few cores."""
    vision = VisionTower(64, 8, 256, 4, 4, pool="queries", queries=33, query_width=128, patch_dropout=0.5, preprocess=WHITE)
    text = TextTower(context_length=20, width=128, depth=2, heads=4, pool="cls")
    val = f"webdataset:{root}/clipart-val-00000.tar"
    return Config(
        model=Model(towers={"image": vision, "text": text}, embed_dim=128),
        data=Data(
            source=f"webdataset:{root}/clipart-train-{{00000..00005}}.tar",
            augment=Augment(scale=(0.49, 1.0), ratio=(1.0, 1.0), flip=0.5),
        ),
        optim=Optim(lr=1e-3, warmup="60", weight_decay=0.1, clip_norm=1.0),
        objectives={"image_text": Contrastive(block=128), "caption": Caption()},
        evals={"captions": Captioning(val), "retrieval": Retrieval(val)},
        checkpoint=Checkpoint(every="5ep"),
        batch_size=128,
        duration="30ep",
    )


def large(data: str) -> Config:
    """Web data on 128 chips."""
    changes = {"towers.image.queries": 257, "towers.text.pool": "cls", "dtype": "bfloat16", "scan": True}
    model = replace_each(architecture("coca_ViT-L-14"), {**changes, "remat": "nothing_saveable"})
    return Config(
        model=model,
        data=Data(source=source_of(data), augment=Augment(scale=(0.9, 1.0)), workers=32),
        optim=Optim(lr=8e-4, warmup="2000", weight_decay=0.2, b2=0.98, clip_norm=1.0),
        objectives={"image_text": Contrastive(method="ring", dtype="bfloat16", block=1024), "caption": Caption()},
        mesh=MeshConfig(data=-1, fsdp=16),
        checkpoint=Checkpoint(every="5%"),
        batch_size=8192,
        eval_batch_size=8192,
        duration="16ep",
        log_every=50,
    )
