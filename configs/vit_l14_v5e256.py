"""CLIP ViT-L/14 with 32,768 pairs a batch, for a slice of 256 TPU v5e chips.

    tools/launch/tpu_slice.sh NAME ZONE configs/vit_l14_v5e256.py --data "/mnt/{00000..41454}.tar" --workdir /mnt/runs/l14

Parameters and optimizer state are sharded over 16 chips and gathered block by block, in bfloat16; blocks keep nothing for the
backward pass; the loss goes around the chips. Does it fit? See for yourself, on any x86 machine with the extra "tpu":

    jclip compile configs/vit_l14_v5e256.py --topology v5e:16x16

Compiled, not trained: neither time nor accuracy has been measured, and the learning rate is a place to start from.
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
    model = replace_each(architecture("ViT-L-14"), {"dtype": "bfloat16", "scan": True, "remat": "nothing_saveable"})
    return Config(
        model=model,
        data=Data(source=source_of(data), augment=Augment(scale=(0.9, 1.0)), workers=32),
        optim=Optim(lr=1e-3, warmup="2000", weight_decay=0.2, b2=0.98, clip_norm=1.0),
        objectives={"image_text": Contrastive(method="ring", dtype="bfloat16", block=1024)},
        mesh=MeshConfig(data=-1, fsdp=16),
        evals={"val/retrieval": Retrieval(source_of(val), every="1ep")} if val else {},
        checkpoint=Checkpoint(every="5%", best="val/retrieval/mean/recall@10" if val else None),
        batch_size=32_768,
        eval_batch_size=8192,
        duration="32ep",
        log_every=50,
    )
