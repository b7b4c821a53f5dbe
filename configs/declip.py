"""DeCLIP (Li et al. 2022): CLIP between two views of images and of texts, SimSiam, masked words, and neighbours of texts.

    jclip train configs/declip.py --workdir runs/declip
    jclip train configs/declip.py --form clipart --data data/clipart --workdir runs/declip_clipart
    jclip compile configs/declip.py --form large --topology v5e:4x8

The weights are those of the published code: 0.4 on the mean of the four softmaxes between views, and 0.2 each on SimSiam,
masked words and neighbours. Its texts lose and swap words and exchange synonyms of WordNet; here --views.text@2.text-
augment.synonyms takes a file of them. A text tower that predicts masked words sees in both directions, where CLIP's does not.

shapes and clipart are configs/quickstart.py and configs/clipart.py with heads that fit them, large is configs/vit_b16.py,
compiled, not trained: on that slice it needs 11.74 of a chip's 15.75 GiB.
"""

from typing import Literal

from jclip.config import (
    Augment,
    Config,
    MaskedText,
    MultiView,
    NearestNeighbour,
    SimSiam,
    TextAugment,
    View,
    beside,
    replace_each,
)

STRONG = Augment(scale=(0.2, 1.0), flip=0.5, jitter_p=0.8, grayscale=0.2, blur=0.5)


def get_config(form: Literal["shapes", "clipart", "large"] = "shapes", data: str = "") -> Config:
    """The recipe; form and data are those of configs/plain.py."""
    config = beside(__file__, "plain.py", form=form, data=data)
    size = 1 if form == "large" else 8
    changes = {
        "model.towers.text.causal": False,
        "model.towers.text.mask_padding": True,
        "views": {
            "image@2": View("image", augment=STRONG),
            "text@2": View("text", text_augment=TextAugment(swap=0.1, drop=0.1)),
        },
        "objectives": {
            # The four pairs are the first and three times the mean of the others.
            "image_text": MultiView(("image", "image@2"), ("text", "text@2"), further=3.0, weight=0.1),
            "simsiam": SimSiam("image", "image@2", features=2048 // size, hidden=512 // size, weight=0.2),
            "masked": MaskedText(weight=0.2),
            "neighbours": NearestNeighbour(size=65536 // size, weight=0.2),
        },
    }
    return replace_each(config, changes)
