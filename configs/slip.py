"""SLIP (Mu et al. 2022): CLIP, and SimCLR of two further views of each image.

    jclip train configs/slip.py --workdir runs/slip
    jclip train configs/slip.py --form clipart --data data/clipart --workdir runs/slip_clipart
    jclip compile configs/slip.py --form large --topology v5e:4x8

shapes and clipart are configs/quickstart.py and configs/clipart.py with a head that fits them, and large is
configs/vit_b16.py with the head, augmentation, rate and decay that are published, but for the norm (see docs/objectives.md).
Three images are seen for each text, so a step takes some three times as long. The large form is compiled, not trained.
"""

from typing import Literal

from jclip.config import Augment, Config, Contrastive, SimCLR, View, beside, replace_each

STRONG = Augment(scale=(0.08, 1.0), flip=0.5, jitter_p=0.8, grayscale=0.2, blur=0.5)


def get_config(form: Literal["shapes", "clipart", "large"] = "shapes", data: str = "") -> Config:
    """The recipe; form and data are those of configs/plain.py."""
    config = beside(__file__, "plain.py", form=form, data=data)
    large = form == "large"
    changes = {
        "views": {"image@1": View("image", augment=STRONG), "image@2": View("image", augment=STRONG)},
        "objectives": {
            "image_text": Contrastive(),
            "simclr": SimCLR(hidden=4096 if large else 256, features=256 if large else 64),
        },
    }
    if large:
        changes |= {"optim.lr": 3e-3, "optim.weight_decay": 0.1, "optim.b2": 0.98, "optim.eps": 1e-8}
    return replace_each(config, changes)
