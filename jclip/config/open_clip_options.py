"""Options of open_clip's training, and what each is called here; docs/tutorials/from_open_clip.md shows the table."""

import re
from collections.abc import Mapping, Sequence

from jclip.config.errors import ConfigError

LOCK = '--optim.lr-rules "({0}|{0}_projection)/.*" 0 ".*" 1'
EVALUATION = "--evals.NAME.source, of the recipe's evaluations"
COLUMNS = '--data.source "csv:FILE?image=COLUMN&text=COLUMN&separator=tab"'
COUNTED = "nothing: an index counts the examples, and each comes once an epoch"
COOLDOWN = "--optim.schedule wsd --optim.cooldown Nep"
EXACT = "nothing: one loss, exact on any devices"
DEVICES = "nothing: one process a host drives all its devices, and all is compiled"
STATISTICS = "nothing: means and variances of batch normalisation stay as they were loaded"
OWN = "nothing: it is the user's shell, or a script, that does it"
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
    **dict.fromkeys(("--use-bn-sync", "--lock-image-freeze-bn-stats"), STATISTICS),
    **dict.fromkeys(("--lock-image-unlocked-groups", "--lock-text-unlocked-layers"), "--optim.layer-decay, lower rates below"),
    "--epochs": "--duration 32ep",
    "--warmup": "--optim.warmup",
    "--opt": "--optim.method",
    "--lr": "--optim.lr",
    "--wd": "--optim.weight-decay",
    "--beta1": "--optim.b1",
    "--beta2": "--optim.b2",
    "--eps": "--optim.eps",
    "--grad-clip-norm": "--optim.clip-norm",
    "--skip-scheduler": "--optim.schedule constant",
    "--lr-cooldown-end": "--optim.final-lr, a share of the rate",
    "--momentum": "--optim.b1",
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
    **dict.fromkeys(
        ("--device", "--dist-url", "--dist-backend", "--ddp-static-graph", "--torchcompile", "--torchscript", "--trace"), DEVICES
    ),
    **dict.fromkeys(("--copy-codebase", "--wandb-notes", "--wandb-project-name"), OWN),
    "--remote-sync": "--workdir s3://BUCKET/FOLDER, or gs://",
}
"""Words to write here, by the name there, which is no option here. Where there is no counterpart they begin with "nothing"."""

EXAMPLES: Mapping[str, str] = {
    "--model": "ViT-B-16",
    "--epochs": "32",
    "--epochs-cooldown": "N",
    "--accum-freq": "N",
    "--train-data": "PATTERN",
}
"""Values in these words that stand for what is given there."""

VALUES: Mapping[tuple[str, str], str] = {
    ("--lr-scheduler", "cosine"): "--optim.schedule cosine",
    ("--lr-scheduler", "const"): "--optim.schedule constant",
    ("--precision", "fp32"): "--model.dtype float32",
    **dict.fromkeys(
        (("--precision", "amp"), ("--precision", "fp16"), ("--precision", "pure_fp16")),
        "--model.dtype bfloat16: there is no float16, which needs its losses scaled",
    ),
    **dict.fromkeys((("--zeroshot-frequency", "0"), ("--val-frequency", "0")), "--evals none"),
}
"""Words for one value of an option, where they are others."""


def refuse_open_clip(overrides: Sequence[str]) -> None:
    """Raises ConfigError that says what options of open_clip are called here, where some are among the overrides of a recipe."""
    found = dict[str, str]()
    for option, after in zip(overrides, [*overrides[1:], ""], strict=False):
        name, _, value = option.partition("=")
        if (name := name.replace("_", "-")) in OPTIONS:
            found.setdefault(name, value or ("" if after.startswith("--") else after))
    if found:
        here = (f"{name} is an option of open_clip, here: {_here(name, value)}" for name, value in found.items())
        raise ConfigError("config: " + "; ".join(here))


def _here(name: str, value: str) -> str:
    """The words for an option there with its value, "" where it has none."""
    words = VALUES.get((name, value), OPTIONS[name])
    if value and name in EXAMPLES:
        return words.replace(EXAMPLES[name], value)
    takes_it = re.fullmatch(r"--[a-z][a-z0-9.-]*", words)  # one option, which has the same values
    return f"{words} {value}" if value and takes_it else words
