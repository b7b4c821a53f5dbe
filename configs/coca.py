"""CoCa (Yu et al. 2022): one model that matches images with texts, and writes the text of an image.

    jclip train configs/coca.py --workdir runs/coca
    jclip caption runs/coca photo.png

Scenes of one to three shapes, whose captions name each by colour and shape.
"""

from pathlib import Path

from jclip.config import (
    Augment,
    Caption,
    Checkpoint,
    Config,
    Contrastive,
    Data,
    Model,
    Optim,
    Retrieval,
    TextTower,
    Tokenizer,
    VisionTower,
)

SIZE = 32
WORDS = Path(__file__).resolve().with_name("coca_words.json")


def get_config() -> Config:
    """The recipe."""
    vision = VisionTower(
        image_size=SIZE,
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
        tokenizer=Tokenizer("hugging_face", str(WORDS), bos_id=1, eos_id=2),
    )
    return Config(
        model=Model(towers={"image": vision, "text": text}, embed_dim=128),
        data=Data(
            source=f"shapes:train?size={SIZE}&length=1000000&captions=complete",
            augment=Augment(scale=(1.0, 1.0), ratio=(1.0, 1.0)),
        ),
        optim=Optim(lr=1.5e-3, warmup="5%", weight_decay=0.05, clip_norm=1.0),
        objectives={"image_text": Contrastive(block=256), "caption": Caption(depth=2, block=23)},
        evals={"retrieval": Retrieval(f"shapes:val?size={SIZE}&captions=complete")},
        checkpoint=Checkpoint(every="10%"),
        batch_size=128,
        duration="2000",
        log_every=20,
    )
