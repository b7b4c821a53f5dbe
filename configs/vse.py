"""VSE++ (Faghri et al. 2018): images and texts ranked by triplets, of which the hardest of a batch count.

    jclip train configs/vse.py --workdir runs/vse
    jclip train configs/vse.py --paper --data "webdataset:/data/{00000..00099}.tar" --workdir /runs/vse

The margin of 0.2, batches of 128, 1,024 dimensions, Adam at 2e-4 without decay and gradients clipped at 2 are published. There
the loss is the sum over the batch, here its mean: for Adam the same, and gradients are clipped at 2 / 128. The rate falls along
a cosine, there by 10 after half of the run. `--paper` is for an accelerator: CLIP's ResNet-50, where the paper has one of
152 layers with weights of ImageNet, and a small causal transformer for its GRU.

The hardest alone collapse from random weights: the loss stays at twice the margin. So the mean over all comes first, and the
hardest join it after three tenths of the run; 300 steps so (--duration 300) name 34% of the 56 classes of shapes, chance 1.8%.
Equal captions are related, and no negatives of each other.
"""

from jclip.config import (
    Augment,
    Config,
    Data,
    Model,
    Optim,
    ResNetTower,
    Retrieval,
    TextTower,
    Triplet,
    VisionTower,
    ZeroShot,
)


def get_config(paper: bool = False, data: str = "") -> Config:
    """The recipe; `data` is a source of images with texts, empty: shapes."""
    if paper:
        image: ResNetTower | VisionTower = ResNetTower()
        text = TextTower(width=512, depth=3, heads=8)
    else:
        image = VisionTower(image_size=32, patch_size=8, width=128, depth=2, heads=2, stem=(24, 48, 96), pool="avg")
        text = TextTower(context_length=20, width=128, depth=1, heads=2)
    shapes = f"size={image.size[0]}"
    return Config(
        model=Model(towers={"image": image, "text": text}, embed_dim=1024, dtype="bfloat16" if paper else "float32"),
        data=Data(source=data or f"shapes:train?{shapes}&length=1000000", augment=Augment(scale=(0.8, 1.0), ratio=(1.0, 1.0))),
        optim=Optim(lr=2e-4, warmup="5%", b2=0.999, eps=1e-8, weight_decay=0.0, clip_norm=2 / 128),
        objectives={
            "all": Triplet(margin=0.2, mining="all", equal_by="text", weight=1 / 127),
            "hardest": Triplet(margin=0.2, mining="hardest", equal_by="text", begin=0.3),
        },
        evals={
            "seen": ZeroShot(f"shapes:test?{shapes}&classes=seen", templates=("a {}",), every="25%"),
            "retrieval": Retrieval(f"shapes:val?{shapes}"),
        }
        if not data
        else {},
        batch_size=128,
        duration="30ep" if paper else "900",
        log_every=20,
    )
