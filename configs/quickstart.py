"""A CLIP that names drawn shapes, trained from nothing on a laptop: the first thing to run.

jclip train configs/quickstart.py --workdir /tmp/quickstart
"""

from jclip.config import (
    Augment,
    Config,
    Data,
    LinearProbe,
    Model,
    Optim,
    Pair,
    Preprocess,
    Retrieval,
    TextTower,
    VisionTower,
    ZeroShot,
)

SIZE = 48
PROMPTS = ("a {}", "a picture of a {}", "there is a {}")


def get_config() -> Config:
    """The recipe."""
    vision = VisionTower(
        image_size=SIZE, patch_size=8, width=192, depth=4, heads=3, pool="avg", positions="sincos", preprocess=Preprocess()
    )
    text = TextTower(context_length=32, width=128, depth=2, heads=2, causal=False, mask_padding=True, pool="mean")
    return Config(
        model=Model(towers={"image": vision, "text": text}, embed_dim=128),
        data=Data(source=f"shapes:train?size={SIZE}", augment=Augment(scale=(1.0, 1.0), ratio=(1.0, 1.0))),
        optim=Optim(lr=2e-3, warmup="5%", weight_decay=0.05, b2=0.98, clip_norm=1.0),
        pairs=(Pair(block=256),),
        evals={
            "seen": ZeroShot(f"shapes:test?size={SIZE}&classes=seen", templates=PROMPTS, every="25%"),
            "heldout": ZeroShot(f"shapes:heldout?size={SIZE}", templates=PROMPTS, every="25%"),
            "retrieval": Retrieval(f"shapes:val?size={SIZE}"),
            "probe": LinearProbe(f"shapes:test?size={SIZE}&length=2000&seed=1", f"shapes:test?size={SIZE}"),
        },
        batch_size=256,
        duration="400",
    )
