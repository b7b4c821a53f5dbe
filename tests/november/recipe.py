"""The recipe of the run beside it, as it was written before objectives had names."""

from jclip.config import (
    Checkpoint,
    Config,
    Data,
    Model,
    Optim,
    Pair,
    TextTower,
    VisionTower,
    ZeroShot,
)


def get_config() -> Config:
    """Small towers with one pair."""
    v = VisionTower(
        image_size=16, patch_size=8, width=16, depth=2, heads=2, stem=(8,), pool="avg", positions="sincos", patch_dropout=0.25
    )
    t = TextTower(context_length=16, width=8, depth=1, heads=1)
    return Config(
        model=Model(towers={"image": v, "text": t}, embed_dim=8),
        data=Data(source="shapes:train?size=16"),
        optim=Optim(lr=1e-3, warmup="2", weight_decay=0.1),
        pairs=(Pair(loss="sigmoid", equal="ignore", label_smoothing=0.05),),
        evals={"seen": ZeroShot("shapes:test?size=16&length=64&classes=seen", every="4")},
        checkpoint=Checkpoint(every="4", keep=1),
        batch_size=8,
        duration="8",
        log_every=2,
    )
