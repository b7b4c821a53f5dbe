"""Fine-tuning of anyone's weights on image-text shards, with a lower learning rate for lower layers (Bao et al. 2022, BEiT).

    jclip train configs/finetune.py --weights WEIGHTS --data "/data/mine/{00000..00099}.tar" --workdir /runs/finetune

WEIGHTS is a folder of open_clip or Hugging Face, what `jclip convert` has written, or the workdir of a run; a weight file beside
which no configuration lies needs --architecture ViT-B-32-quickgelu as well, and --tokenizer FILE where neither says the
vocabulary (SigLIP, and .npz of big_vision). The model is that of the weights, and all of it is
trained: the last block of a transformer at 0.75 of the learning rate, each block before it at 0.75 of the one after. For weights
with a logit bias (SigLIP) give the loss they were made with: --objectives.image_text.loss sigmoid.

Neither time nor accuracy has been measured, and the learning rate is a place to start from: a test trains two steps of it.
"""

from jclip import find_model
from jclip.config import (
    Augment,
    Checkpoint,
    Config,
    Contrastive,
    Data,
    InitFrom,
    Optim,
    ResNetTower,
    Retrieval,
    replace,
    source_of,
)


def get_config(
    weights: str = "ViT-B-32",
    architecture: str | None = None,
    tokenizer: str | None = None,
    data: str = "/data/train-{00000..00099}.tar",
    val: str = "",
    layer_decay: float = 0.75,
) -> Config:
    """The recipe; `data` and `val` are patterns of shards, or other sources (folder:DIR), `val` for retrieval once an epoch.

    A `weights` that is the name of an architecture is good for `jclip compile` and --help.
    """
    model = find_model(weights, architecture, tokenizer)
    stacked = [name for name, tower in model.towers.items() if not isinstance(tower, ResNetTower)]
    return Config(
        model=replace(model, "dtype", "bfloat16"),
        data=Data(source=source_of(data), augment=Augment(scale=(0.9, 1.0)), workers=8),
        init_from=InitFrom(weights, architecture=architecture, tokenizer=tokenizer),
        optim=Optim(lr=1e-4, warmup="10%", weight_decay=0.05, clip_norm=1.0, layer_decay=dict.fromkeys(stacked, layer_decay)),
        objectives={"image_text": Contrastive(block=512)},
        evals={"val/retrieval": Retrieval(source_of(val), every="1ep")} if val else {},
        checkpoint=Checkpoint(every="1ep", best="val/retrieval/mean/recall@10" if val else None),
        batch_size=512,
        eval_batch_size=512,
        duration="5ep",
        log_every=20,
    )
