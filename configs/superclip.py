"""SuperCLIP: CLIP, and which words the caption has, predicted from the mean of the patches.

    jclip train configs/superclip.py --workdir runs/superclip
    jclip train configs/superclip.py --form clipart --data data/clipart --workdir runs/superclip_clipart
    jclip compile configs/superclip.py --form large --topology v5e:8x8

shapes and clipart are configs/quickstart.py and configs/clipart.py, and large is configs/vit_b16.py, with the batch and rate
of the published B/16. The classifier takes 6 B d V operations a step, for a large model next to nothing, for a small one with
CLIP's 49,408 words more than its towers. The large form is compiled, not trained.
"""

from typing import Literal

from jclip.config import Config, Vocabulary, beside, replace_each


def get_config(form: Literal["shapes", "clipart", "large"] = "shapes", data: str = "") -> Config:
    """The recipe; form and data are those of configs/plain.py."""
    config = beside(__file__, "plain.py", form=form, data=data)
    changes: dict[str, object] = {"objectives": {**config.objectives, "words": Vocabulary()}}
    if form == "large":
        changes |= {"batch_size": 16384, "optim.lr": 1e-3}
    return replace_each(config, changes)
