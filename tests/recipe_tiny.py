"""The recipe of tests/tiny.py, for tests that start `jclip` as a user does."""

from tiny import tiny_config

from jclip.config import BYOL, Augment, Config, Contrastive, NearestNeighbour, SelfDistillation, View


def get_config(state: bool = False) -> Config:
    """The tiny configuration; with `state` also all that no gradient reaches, of which some begins late."""
    if not state:
        return tiny_config()
    crop = Augment(scale=(0.3, 1.0))
    return tiny_config(
        views={"image@1": View("image", augment=crop), "image@2": View("image", augment=crop)},
        objectives={
            "image_text": Contrastive(),
            "byol": BYOL(hidden=16, features=8, decay=0.9),
            "neighbours": NearestNeighbour(size=32),
            "taught": SelfDistillation(prototypes=16, size=16, features=8, layers=2, begin=0.5),
        },
        **{"optim.ema": 0.9, "evaluate_ema": True},
    )
