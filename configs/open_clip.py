"""CLIP of any architecture on pairs of your own, with the defaults of open_clip's training.

    jclip train configs/open_clip.py --model ViT-B-32 --train-data "/data/cc12m/{00000..01241}.tar" \\
        --val-data "/data/cc12m/01242.tar" --imagenet-val /data/imagenet/val --batch-size 1024 --workdir /runs/b32

The five options have open_clip's names. All others are fields (`--help`), and where one of open_clip's is given `jclip train`
says which: docs/tutorials/from_open_clip.md. AdamW with b2 0.98 and eps 1e-6, of ResNets 0.999 and 1e-8; learning rate 5e-4,
weight decay 0.2, 10,000 steps of warm-up, a cosine, 32 epochs, crops of 90 to 100% of an image, bfloat16. The batch is the
global one: 1,024 pairs of ViT-B/32 fit one GPU of 80 GB. ImageNet's folder has a folder for each class, and their names in
classnames.txt, in their order, a line each. Neither time nor accuracy has been measured: a test trains one step of it.
"""

from jclip.config import (
    Checkpoint,
    Config,
    Contrastive,
    Data,
    Evaluation,
    InitFrom,
    Optim,
    ResNetTower,
    Retrieval,
    ZeroShot,
    architecture,
    replace,
    source_of,
)


def get_config(
    model: str = "ViT-B-32",
    pretrained: str = "",
    train_data: str = "/data/train-{00000..00099}.tar",
    val_data: str = "",
    imagenet_val: str = "",
) -> Config:
    """The recipe.

    Args:
        model: an architecture, one of `jclip info`.
        pretrained: weights of that architecture to start from: a folder, a file, hf://ORG/NAME or a workdir.
        train_data: a pattern of shards, or another source (csv:FILE).
        val_data: another one, for retrieval once an epoch.
        imagenet_val: a folder of ImageNet's validation images, for zero-shot classification every second epoch.
    """
    chosen = replace(architecture(model), "dtype", "bfloat16")
    b2, eps = (0.999, 1e-8) if isinstance(chosen.towers["image"], ResNetTower) else (0.98, 1e-6)
    evals: dict[str, Evaluation] = {}
    if val_data:
        evals["val/retrieval"] = Retrieval(source_of(val_data), every="1ep")
    if imagenet_val:
        evals["imagenet"] = ZeroShot(f"folder:{imagenet_val}?labels=folders", templates=("set:imagenet",), every="2ep")
    return Config(
        model=chosen,
        data=Data(source=source_of(train_data), workers=4),
        init_from=InitFrom(pretrained),
        optim=Optim(lr=5e-4, warmup="10000", weight_decay=0.2, b2=b2, eps=eps),
        objectives={"image_text": Contrastive(block=1024)},
        evals=evals,
        checkpoint=Checkpoint(every="1ep"),
        batch_size=1024,
        eval_batch_size=1024,
        duration="32ep",
        log_every=100,
    )
