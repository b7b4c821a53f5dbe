"""VSE++ (Faghri et al. 2018): images and texts ranked by triplets, of which the hardest of a batch count.

    jclip train configs/vse.py --workdir runs/vse
    jclip train configs/vse.py --form clipart --data data/clipart --workdir runs/vse_clipart
    jclip train configs/vse.py --form large --data "/data/{00000..00099}.tar" --workdir /runs/vse

The margin of 0.2, batches of 128, 1,024 dimensions, Adam at 2e-4 without decay and gradients clipped at 2 are published. There
the loss is the sum over the batch, here its mean: for Adam the same, and gradients are clipped at 2 / 128. The rate falls along
a cosine, there by 10 after half of the run. Data, evaluations, length and small towers are those of configs/plain.py; the large
form, for an accelerator, has CLIP's ResNet-50, where the paper has one of 152 layers with weights of ImageNet, and a small causal
transformer for its GRU.

The hardest alone collapse from random weights: the loss stays at twice the margin. So the mean over all comes first, and the
hardest join it after three tenths of the run; 300 steps so (--duration 300) name 27% of the 56 classes of shapes, chance 1.8%.
Equal captions are related, and no negatives of each other.
"""

from typing import Literal

from jclip.config import Config, Model, Optim, ResNetTower, TextTower, Triplet, beside, replace_each


def get_config(form: Literal["shapes", "clipart", "large"] = "shapes", data: str = "") -> Config:
    """The recipe; form and data are those of configs/plain.py."""
    plain = beside(__file__, "plain.py", form=form, data=data)
    towers = {"image": ResNetTower(), "text": TextTower(width=512, depth=3, heads=8)}
    changes = {
        "model": Model(towers, embed_dim=1024, dtype="bfloat16")
        if form == "large"
        else replace_each(plain.model, {"embed_dim": 1024}),
        "optim": Optim(lr=2e-4, warmup="5%", b2=0.999, eps=1e-8, weight_decay=0.0, clip_norm=2 / 128),
        "objectives": {
            "all": Triplet(margin=0.2, mining="all", equal_by="text", weight=1 / 127),
            "hardest": Triplet(margin=0.2, mining="hardest", equal_by="text", begin=0.3),
        },
        "batch_size": 128,
    }
    return replace_each(plain, changes)
