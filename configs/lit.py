"""LiT (Zhai et al. 2022): a text tower learns to read a locked image tower, taken from anyone's weights.

    jclip train configs/lit.py --weights WEIGHTS --data "/data/cc12m/{00000..01242}.tar" --workdir /runs/lit

WEIGHTS is a folder of open_clip or Hugging Face, what `jclip convert` has written, or the workdir of a run; a weight file beside
which no configuration lies needs --architecture ViT-B-32-quickgelu as well, and --tokenizer FILE where neither says the
vocabulary (SigLIP, and .npz of big_vision). The model is that of the weights. Its image tower and
image projection are loaded and locked: no gradient, no optimizer state, bit for bit the same in the end. Text tower and scale are
new; --init-from.rules ".*" load starts from theirs too. What is configured for the locked tower still applies in training:
augmentation, and patch_dropout where the weights are of a run that has it (--model.towers.image.patch-dropout 0).

Neither time nor accuracy has been measured, and the learning rate is a place to start from: a test trains two steps of it.
"""

from jclip import find_model
from jclip.config import Augment, Checkpoint, Config, Contrastive, Data, InitFrom, Optim, Retrieval, TextTower, replace, source_of

IMAGE = r"(image|image_projection)/.*"


def get_config(
    weights: str = "ViT-B-32",
    architecture: str | None = None,
    tokenizer: str | None = None,
    data: str = "/data/train-{00000..00099}.tar",
    val: str = "",
) -> Config:
    """The recipe; `data` and `val` are patterns of shards, or other sources (folder:DIR), `val` for retrieval once an epoch.

    A `weights` that is the name of an architecture is good for `jclip compile` and --help.
    """
    model = find_model(weights, architecture, tokenizer)
    model = replace(model, "towers", {"text": TextTower(), **model.towers})  # a vision transformer comes without
    return Config(
        model=replace(model, "dtype", "bfloat16"),
        data=Data(source=source_of(data), augment=Augment(scale=(0.9, 1.0)), workers=8),
        init_from=InitFrom(weights, architecture=architecture, tokenizer=tokenizer, rules=((IMAGE, "load"), (r".*", "scratch"))),
        optim=Optim(lr=1e-3, warmup="5%", weight_decay=1e-2, clip_norm=1.0, lr_rules=((IMAGE, 0.0), (r".*", 1.0))),
        objectives={"image_text": Contrastive(block=1024)},
        evals={"val/retrieval": Retrieval(source_of(val), every="1ep")} if val else {},
        checkpoint=Checkpoint(every="1ep", best="val/retrieval/mean/recall@10" if val else None),
        batch_size=4096,
        eval_batch_size=1024,
        duration="10ep",
        log_every=50,
    )
