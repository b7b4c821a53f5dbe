"""CLIP ViT-B/16 on image-text shards, for one GPU host.

    jclip train configs/vit_b16.py --data "/data/cc12m/{00000..01242}.tar" --workdir /runs/vit_b16

Meant for 8 GPUs of 80 GB: 4,096 pairs a batch in bfloat16, half of the patches dropped in training (FLIP, Li et al. 2023), and of
the activations only the results of matrix multiplications without a batch dimension kept for the backward pass. On one such GPU
start with --batch-size 512 --optim.lr 2.5e-4. Neither time nor accuracy has been measured: a test trains one step of it, with two
blocks a tower.
"""

from jclip.config import (
    Augment,
    Checkpoint,
    Config,
    Contrastive,
    Data,
    MeshConfig,
    Optim,
    Retrieval,
    architecture,
    replace_each,
    source_of,
)


def get_config(data: str = "/data/train-{00000..00099}.tar", val: str = "") -> Config:
    """The recipe; `data` and `val` are patterns of shards, or other sources (folder:DIR), `val` for retrieval once an epoch."""
    model = replace_each(
        architecture("ViT-B-16"),
        {
            "towers.image.patch_dropout": 0.5,
            "dtype": "bfloat16",
            "scan": True,
            "remat": "dots_with_no_batch_dims_saveable",
        },
    )
    return Config(
        model=model,
        data=Data(source=source_of(data), augment=Augment(scale=(0.5, 1.0), flip=0.0), workers=8),
        optim=Optim(lr=1e-3, warmup="2000", weight_decay=0.2, clip_norm=1.0),
        objectives={"image_text": Contrastive(block=1024)},
        mesh=MeshConfig(data=-1, fsdp=1),
        evals={"val/retrieval": Retrieval(source_of(val), every="1ep")} if val else {},
        checkpoint=Checkpoint(every="1ep", best="val/retrieval/mean/recall@10" if val else None),
        batch_size=4096,
        eval_batch_size=1024,
        duration="32ep",
        log_every=50,
    )
