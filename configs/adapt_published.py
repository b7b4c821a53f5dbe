"""The protocols of CoOp, Tip-Adapter and Tip-Adapter-F with their published settings, a data set a command.

    jclip adapt RN50.pt --recipe configs/adapt_published.py --dataset caltech101 --root data/caltech101 --out runs/caltech101

RN50.pt is OpenAI's file, or give hf://ORG/NAME of a ViT. `root` has the folders train, val and test of CoOp's splits
(split_zhou_*.json), each with a folder a class, whose names, or those in classnames.txt, stand in the prompts. A GPU; 16 shots of
CoOp are 200 epochs of at most 16 C images. Published, 16 shots, RN50: docs/tutorials/adaptation.md. Expect less of Tip-Adapter-F:
its code takes the epoch that is best on the test set, as --select test shows beside the honest number.
"""

from typing import Literal

from jclip.config import Adapt, Augment, CoOp, TipAdapter, TipAdapterF, Views

Dataset = Literal[
    "caltech101",
    "dtd",
    "eurosat",
    "fgvc_aircraft",
    "food101",
    "oxford_flowers",
    "oxford_pets",
    "stanford_cars",
    "sun397",
    "ucf101",
]
TEMPLATES: dict[Dataset, str] = {
    "caltech101": "a photo of a {}.",
    "dtd": "{} texture.",
    "eurosat": "a centered satellite photo of {}.",
    "fgvc_aircraft": "a photo of a {}, a type of aircraft.",
    "food101": "a photo of {}, a type of food.",
    "oxford_flowers": "a photo of a {}, a type of flower.",
    "oxford_pets": "a photo of a {}, a type of pet.",
    "stanford_cars": "a photo of a {}.",
    "sun397": "a photo of a {}.",
    "ucf101": "a photo of a person doing {}.",
}
"""Prompts of the zero-shot classifier, of CoOp's code."""

CACHE: dict[Dataset, tuple[float, tuple[float, float]]] = {
    "caltech101": (3, (12, 5)),
    "dtd": (2, (13, 13)),
    "eurosat": (2, (12, 10)),
    "fgvc_aircraft": (5, (30, 30)),
    "food101": (1.17, (10, 10)),
    "oxford_flowers": (10, (50, 50)),
    "oxford_pets": (1.17, (7, 3)),
    "stanford_cars": (3, (20, 10)),
    "sun397": (1.17, (12, 10)),
    "ucf101": (3, (7, 3)),
}
"""Alpha before the search, and the ends of the grids of beta and alpha, of Tip-Adapter's code."""


def get_adapt(dataset: Dataset, root: str, words: bool = False) -> Adapt:
    alpha, most = CACHE[dataset]
    crops = Augment(scale=(0.5, 1.0), flip=0.5)
    tip = TipAdapter(alpha, 1.0, most=most, views=Views(10, crops))
    epochs = 100 if dataset == "eurosat" else 20
    return Adapt(
        methods={
            "coop": CoOp(words="a photo of a") if words else CoOp(),
            "tip": tip,
            "tip_f": TipAdapterF(alpha, 1.0, most=most, views=tip.views, epochs=epochs, training_views=Views(None, crops)),
        },
        source=f"folder:{root}/train?labels=folders",
        val=f"folder:{root}/val?labels=folders",
        test=f"folder:{root}/test?labels=folders",
        templates=(TEMPLATES[dataset],),
        val_shots="all",
    )
