"""CLIP ViT-B/16 with 1,048,576 pairs a batch, for a slice of 256 TPU v5e chips.

    tools/launch/tpu_slice.sh NAME ZONE configs/vit_b16_1m.py --data "/mnt/{00000..41454}.tar" --workdir /mnt/runs/b16_1m

A chip has 4,096 pairs of every batch, which its towers see in 16 parts of 256: all are embedded, the loss of the whole batch is
differentiated by the embeddings, and each part is embedded again to take the gradient back to the parameters. Every example has
all 1,048,575 others as its negatives. The logits, which would take 4 TB, exist in blocks. Does it fit? With the extra "tpu":

    jclip compile configs/vit_b16_1m.py --topology v5e:16x16

A host of 4 chips holds 2.5 GB of pixels for every batch, several times: count on 80 GB for 8 workers. Compiled, not trained:
neither time nor accuracy has been measured, and the learning rate is a place to start from.
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
    model = replace_each(architecture("ViT-B-16"), {"dtype": "bfloat16", "scan": True, "remat": "nothing_saveable"})
    return Config(
        model=model,
        data=Data(source=source_of(data), augment=Augment(scale=(0.9, 1.0)), workers=8),
        optim=Optim(lr=2e-3, warmup="3%", weight_decay=0.2, b2=0.95, clip_norm=1.0),
        objectives={"image_text": Contrastive(method="ring", dtype="bfloat16", block=1024)},
        mesh=MeshConfig(data=-1, fsdp=1),
        evals={"val/retrieval": Retrieval(source_of(val), every="5%")} if val else {},
        checkpoint=Checkpoint(every="5%", best="val/retrieval/mean/recall@10" if val else None),
        batch_size=1_048_576,
        accumulate=16,
        eval_batch_size=8192,
        duration="32ep",
        log_every=1,
    )
