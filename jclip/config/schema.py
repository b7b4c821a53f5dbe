"""The dataclasses of a recipe: every option of a run, with its unit, its default and its source; `towers` has the model's."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, cast

from jclip.config.evals import Duration, Eval
from jclip.config.towers import Model

T = TypeVar("T")


@dataclass(frozen=True)
class Augment:
    """What training does to an image before it is `image_size` square."""

    scale: tuple[float, float] = (0.9, 1.0)
    """Range of the area of the random crop, as a fraction of the image (open_clip's default)."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Range of width over height of the random crop."""
    flip: float = 0.0
    """Probability of a horizontal flip."""


@dataclass(frozen=True)
class Data:
    """What is trained on."""

    source: str = "shapes:train"
    """shapes:SPLIT, webdataset:PATTERN, tfds:NAME[/CONFIG]:SPLIT or folder:DIR; `jclip train --help` explains each."""
    fields: Mapping[str, str] = field(default_factory=dict)
    """Where a tower finds its input in an example, where that is not its own name: {"text": "json.title"}."""
    augment: Augment = Augment()
    """Image augmentation."""
    max_pixels: int = 64_000_000
    """Larger images are broken examples, found before they are decoded: 64 M pixels take 256 MB while they are."""
    workers: int = 0
    """Worker processes a host; 0 reads in threads. The batches do not depend on it."""


@dataclass(frozen=True)
class Optim:
    """AdamW (Loshchilov and Hutter 2019) with linear warm-up and cosine decay."""

    lr: float = 1e-3
    """Peak learning rate."""
    warmup: Duration = "3%"
    """Length of the linear warm-up."""
    final_lr: float = 0.0
    """Learning rate at the end of the cosine, as a fraction of the peak."""
    b1: float = 0.9
    """Decay of the first moment."""
    b2: float = 0.98
    """Decay of the second moment (CLIP's ViTs: 0.98)."""
    eps: float = 1e-6
    """Added to the root of the second moment (CLIP's ViTs: 1e-6)."""
    weight_decay: float = 0.2
    """Decoupled decay, multiplied by the learning rate."""
    weight_decay_rules: tuple[tuple[str, float], ...] = (
        (r".*/(bias|scale|cls|probe|logit_scale|logit_bias)", 0.0),
        (r".*", 1.0),
    )
    """(regex on the parameter's path, factor on weight_decay); the first that matches the whole path counts."""
    lr_rules: tuple[tuple[str, float], ...] = ((r".*", 1.0),)
    """(regex on the parameter's path, factor on lr); first match counts. 0 freezes: no gradient, no optimizer state, no decay."""
    layer_decay: Mapping[str, float] = field(default_factory=dict)
    """By tower: each block's lr is that of the block after it times this (Bao et al. 2022, BEiT); see `optim.lr_factors`."""
    clip_norm: float | None = None
    """Largest global norm of the gradient of what is trained; None never clips."""


@dataclass(frozen=True)
class InitFrom:
    """Fine-tuning: whose parameters a run starts from. A workdir with checkpoints goes on from these, and nothing is loaded."""

    path: str = ""
    """Workdir of a training run, folder of weights of jclip, open_clip or Hugging Face, hf://ORG/NAME, or weight file; empty: all
    is random."""
    step: int | None = None
    """Which checkpoint of a workdir; None: the last."""
    architecture: str | None = None
    """Of a weight file beside which no configuration lies, such as "ViT-B-32-quickgelu"."""
    tokenizer: str | None = None
    """File of the vocabulary that an .npz of big_vision, or an architecture such as "ViT-B-16-SigLIP", leaves out."""
    rules: tuple[tuple[str, Literal["load", "scratch"]], ...] = ((r".*", "load"),)
    """(regex on the parameter's path, load it from `path` or let it be random); first match counts."""


@dataclass(frozen=True)
class Pair:
    """One contrastive objective between two towers, with a logit scale of its own; see `jclip.losses.contrastive`."""

    a: str = "image"
    """Name of one tower."""
    b: str = "text"
    """Name of the other."""
    loss: Literal["softmax", "sigmoid"] = "softmax"
    """softmax: symmetric cross-entropy over the global batch (CLIP); sigmoid: every pair of the batch by itself (SigLIP)."""
    weight: float = 1.0
    """Factor in the total loss."""
    logit_scale: float | None = None
    """Initial factor on the cosines, learned as a logarithm, kept within 1 and 100. None: 1/0.07 (CLIP), sigmoid 10 (SigLIP)."""
    logit_bias: float | Literal["batch"] | None = None
    """Initial bias of a sigmoid, learned. None: -10 (SigLIP); batch: -ln(batch_size - 1), a prior of one match in a batch."""
    label_smoothing: float = 0.0
    """Share of the target that is spread over all candidates."""
    equal: Literal["negative", "ignore", "positive"] = "negative"
    """What examples with equal input (see `equal_by`) are to each other: negatives like any, left out, or right answers too.
    Where equal inputs have equal embeddings, as captions have without dropout, a softmax without label smoothing is the same with
    right answers as with negatives."""
    equal_by: str | None = None
    """Tower whose input tells which examples are equal, by a 32-bit hash of it. None: `b`."""
    method: Literal["gather", "ring"] = "gather"
    """gather: every device holds one whole side (fastest); ring: it goes around the devices (least memory)."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type the embeddings are multiplied in; the logits and all after them are float32 always."""
    block: int = 256
    """Columns of the logits computed at a time; memory, not the result, depends on it."""

    @property
    def name(self) -> str:
        """Of its parameters and metrics: "image_text"."""
        return f"{self.a}_{self.b}"


@dataclass(frozen=True)
class Mesh:
    """How devices are arranged. The batch is split over all of them."""

    data: int = -1
    """Devices along the axis that replicates parameters; -1: all that remain."""
    fsdp: int = 1
    """Devices along the axis that shards parameters and optimizer state."""
    rules: tuple[tuple[str, Literal["replicate", "fsdp"]], ...] = (
        (r".*/(bias|scale|logit_scale|logit_bias)", "replicate"),
        (r".*", "fsdp"),
    )
    """(regex on the parameter's path, placement); fsdp shards the largest axis that divides. First match counts."""


@dataclass(frozen=True)
class Checkpoint:
    """When training is saved."""

    every: Duration = "10%"
    """Time between checkpoints. The last step is always saved."""
    keep: int = 3
    """How many of the latest are kept."""
    best: str | None = None
    """Metric of an evaluation, such as "clipart/retrieval/mean/recall@10"; the checkpoint where it is highest is kept too."""


@dataclass(frozen=True)
class Config:
    """A whole run."""

    model: Model = Model()
    """What is trained."""
    data: Data = Data()
    """What it is trained on."""
    optim: Optim = Optim()
    """How it is trained."""
    init_from: InitFrom = InitFrom()
    """What it starts from."""
    pairs: tuple[Pair, ...] = (Pair(),)
    """The objective: a weighted sum of contrastive losses."""
    mesh: Mesh = Mesh()
    """Where it is trained."""
    checkpoint: Checkpoint = Checkpoint()
    """What is kept."""
    evals: Mapping[str, Eval] = field(default_factory=dict)
    """How it is measured: evaluations by name; the name is the prefix of their metrics."""
    batch_size: int = 256
    """Examples in the global batch, which is also the number of candidates in the loss."""
    eval_batch_size: int = 256
    """Examples in the global batch of an evaluation; no result depends on it."""
    accumulate: int = 1
    """Parts in which the towers see a batch, one after the other: their memory falls by it, loss and gradients stay the same."""
    duration: Duration = "30ep"
    """Length of the run, as every duration: "5ep" (epochs), "1500" or "20k" (steps); elsewhere also "3%" (of the run)."""
    log_every: int = 10
    """Steps between lines of metrics.jsonl."""
    seed: int = 0
    """Seed of everything random: initialisation, order, augmentation, dropout."""


def replace(config: T, path: str, value: object) -> T:
    """A copy with another value at a dotted path, as on the command line: replace(config, "optim.lr", 3e-4).

    Raises:
        KeyError: there is no such path.
    """
    head, _, rest = path.partition(".")
    if isinstance(config, Mapping):
        inner = replace(config[head], rest, value) if rest else value
        return cast(T, {**config, head: inner})
    if head not in {f.name for f in dataclasses.fields(cast(Any, config))}:
        raise KeyError(f"config: {type(config).__name__} has no field {head!r}")
    inner = replace(getattr(config, head), rest, value) if rest else value
    return cast(T, dataclasses.replace(cast(Any, config), **{head: inner}))
