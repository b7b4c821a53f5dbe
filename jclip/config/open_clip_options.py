"""Options of open_clip's training, and what each is called here; docs/tutorials/from_open_clip.md shows the table."""

from collections.abc import Mapping, Sequence

from jclip.config.errors import ConfigError

LOCK = '--optim.lr-rules "({0}|{0}_projection)/.*" 0 ".*" 1'
EVALUATION = "--evals.NAME.source, of the recipe's evaluations"
COLUMNS = '--data.source "csv:FILE?image=COLUMN&text=COLUMN&separator=tab"'
COUNTED = "nothing: an index counts the examples, and each comes once an epoch"
COOLDOWN = "--optim.schedule wsd --optim.cooldown Nep"
EXACT = "nothing: one loss, exact on any devices"
DEVICES = "nothing: one process a host drives all its devices, and all is compiled"
PIXELS = "preprocess of the image tower, in the recipe"

OPTIONS: Mapping[str, str] = {
    "--train-data": '--data.source "webdataset:PATTERN"',
    "--train-data-upsampling-factors": "data.sources with repeat, in the recipe",
    "--dataset-type": "the word before the colon of --data.source",
    **dict.fromkeys(("--csv-img-key", "--csv-caption-key", "--csv-separator"), COLUMNS),
    **dict.fromkeys(("--train-num-samples", "--val-num-samples", "--dataset-resampled"), COUNTED),
    **dict.fromkeys(("--val-data", "--imagenet-val", "--imagenet-v2"), EVALUATION),
    "--model": 'model=architecture("ViT-B-16"), in the recipe',
    "--force-quick-gelu": 'model=architecture("ViT-B-16-quickgelu"), in the recipe',
    "--pretrained": "--init-from.path",
    "--pretrained-image": "--init-from.path, with --init-from.rules",
    "--lock-image": LOCK.format("image"),
    "--lock-text": LOCK.format("text"),
    "--epochs": "--duration 32ep",
    "--warmup": "--optim.warmup",
    "--opt": "--optim.method",
    "--lr": "--optim.lr",
    "--wd": "--optim.weight-decay",
    "--beta1": "--optim.b1",
    "--beta2": "--optim.b2",
    "--eps": "--optim.eps",
    "--grad-clip-norm": "--optim.clip-norm",
    "--lr-scheduler": COOLDOWN,
    "--epochs-cooldown": COOLDOWN,
    "--accum-freq": "--accumulate N, which splits --batch-size",
    "--precision": "--model.dtype bfloat16",
    "--grad-checkpointing": "--model.remat nothing_saveable",
    "--siglip": "--objectives.image-text.loss sigmoid",
    "--loss-dist-impl": "--objectives.image-text.method",
    "--local-loss": EXACT,
    "--gather-with-grad": EXACT,
    "--coca-caption-loss-weight": "--objectives.NAME.weight",
    "--coca-contrastive-loss-weight": "--objectives.NAME.weight",
    "--distill-model": "a teacher, as in configs/distill.py",
    "--distill-pretrained": "a teacher, as in configs/distill.py",
    "--force-image-size": "--model.towers.image.image-size",
    "--force-patch-dropout": "--model.towers.image.patch-dropout",
    "--force-context-length": "--model.towers.text.context-length",
    **dict.fromkeys(("--image-mean", "--image-std", "--image-interpolation", "--image-resize-mode"), PIXELS),
    "--aug-cfg": "--data.augment.FIELD",
    "--workers": "--data.workers",
    "--logs": "--workdir",
    "--name": "--workdir",
    "--resume": "nothing: the same command goes on; --resume-from STEP goes back",
    "--save-frequency": "--checkpoint.every",
    "--save-most-recent": "--checkpoint.keep",
    "--delete-previous-checkpoint": "--checkpoint.keep",
    "--zeroshot-frequency": "--evals.NAME.every",
    "--val-frequency": "--evals.NAME.every",
    "--log-every-n-steps": "--log-every",
    "--report-to": "nothing: metrics.jsonl, and with the extra tensorboard its events, lie in --workdir",
    **dict.fromkeys(("--device", "--dist-url", "--dist-backend", "--torchcompile", "--torchscript", "--trace"), DEVICES),
}
"""Words to write here, by the name there, which is no option here. Where there is no counterpart they begin with "nothing"."""


def refuse_open_clip(overrides: Sequence[str]) -> None:
    """Raises ConfigError that says what options of open_clip are called here, where some are among the overrides of a recipe."""
    names = [option.partition("=")[0].replace("_", "-") for option in overrides if option.startswith("--")]
    if found := [name for name in dict.fromkeys(names) if name in OPTIONS]:
        raise ConfigError("config: " + "; ".join(f"{name} is an option of open_clip, here: {OPTIONS[name]}" for name in found))
