"""CLIPA (Li et al. 2023): most of a run sees small images and the first words of texts, and a short last stage sees all of both.

    jclip train configs/clipa_l16.py --data "/data/laion/{00000..41407}.tar" --workdir /runs/clipa
    jclip train configs/clipa_l16.py --form clipart --data data/clipart --workdir runs/clipa_clipart
    jclip compile configs/clipa_l16.py --topology v5e:8x8 --mesh.fsdp 8

The form large is the ViT-L/16 that one machine of eight A100 is published to train to 69.3% of ImageNet, zero-shot: six epochs of
LAION-400M at 96 pixels and 8 tokens, in batches of 32,768 at 1.02e-3, then 131 million examples at 224 pixels and 32 tokens, in
batches of 7,168 at 2.24e-5. Texts are cut behind their first tokens, where the paper's choose words by their part of speech; the
positions of these tokens are kept in the last stage. On that slice a step of the first stage needs 3.42 of a chip's 15.75 GiB
and, by the compiler's clock with the transfers, 0.51 s, one of the last 3.68 GiB and 0.54 s. Compiled, not trained.

clipart is configs/clipart.py whose first stage sees 32 pixels and 16 tokens, all patches of them, and shapes is
configs/quickstart.py whose first stage sees 16 pixels.
"""

from typing import Literal

from jclip.config import Augment, Config, Stage, architecture, beside, replace_each


def get_config(form: Literal["shapes", "clipart", "large"] = "large", data: str = "") -> Config:
    """The recipe; form and data are those of configs/plain.py."""
    config = beside(__file__, "plain.py", form=form, data=data)
    changes: dict[str, object] = {"init_from.text_positions": "extend"}
    if form == "shapes":
        return replace_each(config, changes | {"stages": {"small": Stage("600", image_size=16)}, "duration": "300"})
    if form == "clipart":
        small = Stage("20ep", image_size=32, context_length=16, patch_dropout=0.0, lr=1e-3, warmup="60")
        changes |= {"stages": {"small": small}, "duration": "5ep", "optim.lr": 3e-4, "optim.warmup": "10"}
        return replace_each(config, changes)
    model = replace_each(
        architecture("ViT-L-14"),
        {
            "towers.image.patch_size": 16,
            "towers.text.context_length": 32,
            "dtype": "bfloat16",
            "scan": True,
            "remat": "nothing_saveable",
        },
    )
    small = Stage("6ep", image_size=96, context_length=8, batch_size=32768, lr=1.02e-3, warmup="2000")
    changes |= {
        "stages": {"small": small},
        "model": model,
        "data.augment": Augment(scale=(0.4, 1.0), flip=0.0),
        "optim.lr": 2.24e-5,
        "optim.b2": 0.95,
        "batch_size": 7168,
        "duration": "18300",
    }
    return replace_each(config, changes)
