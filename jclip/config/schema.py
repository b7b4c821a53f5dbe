"""The dataclasses of a recipe: every option of a run, with its unit, its default and its source; `towers` has the model's."""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeVar, cast

from jclip.config.durations import Duration, Length
from jclip.config.evals import Count, Eval, Seed
from jclip.config.ranges import Range
from jclip.config.towers import Model, ResNetTower

T = TypeVar("T")

Fraction = Annotated[float, Range(above=0, most=1)]
Ratio = Annotated[float, Range(least=0.01, most=100)]
Factor = Annotated[float, Range(least=0, most=1000)]


@dataclass(frozen=True)
class Augment:
    """What training does to an image before it has the tower's size."""

    scale: tuple[Fraction, Fraction] = (0.9, 1.0)
    """Range of the area of the random crop, as a fraction of the image (open_clip's default)."""
    ratio: tuple[Ratio, Ratio] = (3 / 4, 4 / 3)
    """Range of width over height of the random crop, in pixels of the image, whatever the shape of the tower's input, as in
    open_clip; with resize="longest", which pads an image to that shape before, in multiples of its width over height."""
    flip: Annotated[float, Range(least=0, most=1)] = 0.0
    """Probability of a horizontal flip."""

    def problems(self) -> Iterator[str]:
        """Contradictions, each after the place of this dataclass."""
        for name in ("scale", "ratio"):
            low, high = getattr(self, name)
            if low > high:
                yield f".{name} {(low, high)} is no range: it ends before it begins"


@dataclass(frozen=True)
class Data:
    """What is trained on."""

    source: str = "shapes:train"
    """shapes:SPLIT, webdataset:PATTERN, tfds:NAME[/CONFIG]:SPLIT or folder:DIR; `jclip train --help` explains each."""
    fields: Mapping[str, str] = field(default_factory=dict)
    """Where a tower finds its input in an example, where that is not its own name: {"text": "json.title"}."""
    augment: Augment = Augment()
    """Image augmentation."""
    max_pixels: Annotated[int, Range(least=1)] = 64_000_000
    """Larger images are broken examples, in the run's evaluations too, found before they are decoded: 64 M pixels take 256 MB."""
    workers: Annotated[int, Range(least=0, most=1024)] = 0
    """Worker processes a host; 0 reads in threads. The batches do not depend on it."""


@dataclass(frozen=True)
class Optim:
    """AdamW (Loshchilov and Hutter 2019) with linear warm-up and cosine decay."""

    lr: Annotated[float, Range(above=0, most=100)] = 1e-3
    """Peak learning rate."""
    warmup: Annotated[str, Length(least=0)] = "3%"
    """Length of the linear warm-up."""
    final_lr: Annotated[float, Range(least=0, most=1)] = 0.0
    """Learning rate at the end of the cosine, as a fraction of the peak."""
    b1: Annotated[float, Range(least=0, most=0.99999)] = 0.9
    """Decay of the first moment."""
    b2: Annotated[float, Range(least=0, most=0.99999)] = 0.98
    """Decay of the second moment (CLIP's ViTs: 0.98)."""
    eps: Annotated[float, Range(above=0, most=1)] = 1e-6
    """Added to the root of the second moment (CLIP's ViTs: 1e-6)."""
    weight_decay: Annotated[float, Range(least=0, most=1e6)] = 0.2
    """Decoupled decay, multiplied by the learning rate."""
    weight_decay_rules: tuple[tuple[str, Factor], ...] = (
        (r".*/(bias|scale|cls|probe|logit_scale|logit_bias)", 0.0),
        (r".*", 1.0),
    )
    """(regex on the parameter's path, factor on weight_decay); the first that matches the whole path counts. As in big_vision the
    query of a pooling by attention, `probe`, is not decayed; open_clip decays it."""
    lr_rules: tuple[tuple[str, Factor], ...] = ((r".*", 1.0),)
    """(regex on the parameter's path, factor on lr); first match counts. 0 freezes: no gradient, no optimizer state, no decay."""
    layer_decay: Mapping[str, Annotated[float, Range(above=0, most=1)]] = field(default_factory=dict)
    """By tower: each block's lr is that of the block after it times this (Bao et al. 2022, BEiT); see `optim.lr_factors`."""
    clip_norm: Annotated[float, Range(above=0)] | None = None
    """Largest global norm of the gradient of what is trained; None never clips."""

    def problems(self) -> Iterator[str]:
        """Contradictions, each after the place of this dataclass."""
        yield from _rule_problems(".weight_decay_rules", self.weight_decay_rules)
        yield from _rule_problems(".lr_rules", self.lr_rules)
        rate, decay = (max(factor for _, factor in rules) for rules in (self.lr_rules, self.weight_decay_rules))
        if self.lr * rate * self.weight_decay * decay >= 1:
            yield (
                f".weight_decay {self.weight_decay} times lr {self.lr} and the factors of the rules is 1 or more: a step "
                "would take away more than there is; use less of one of them"
            )


@dataclass(frozen=True)
class InitFrom:
    """Fine-tuning: whose parameters a run starts from. A workdir with checkpoints goes on from these, and nothing is loaded."""

    path: str = ""
    """Workdir of a training run, folder of weights of jclip, open_clip or Hugging Face, hf://ORG/NAME, or weight file; empty: all
    is random."""
    step: Annotated[int, Range(least=0)] | None = None
    """Which checkpoint of a workdir; None: the last."""
    architecture: str | None = None
    """Of a weight file beside which no configuration lies, such as "ViT-B-32-quickgelu"."""
    tokenizer: str | None = None
    """File of the vocabulary that an .npz of big_vision, or an architecture such as "ViT-B-16-SigLIP", leaves out."""
    rules: tuple[tuple[str, Literal["load", "scratch"]], ...] = ((r".*", "load"),)
    """(regex on the parameter's path, load it from `path` or let it be random); first match counts."""

    def problems(self) -> Iterator[str]:
        """Contradictions, each after the place of this dataclass."""
        yield from _rule_problems(".rules", self.rules)
        if not self.path and self != InitFrom(rules=self.rules):
            yield ".step, architecture and tokenizer say which weights, but init_from.path is empty; give the path"
        if self.step is not None and self.architecture is not None:
            yield ".step is of a workdir, which says its architecture itself; leave out init_from.architecture"
        if self.path and all(what == "scratch" for _, what in self.rules):
            yield f".rules load nothing of {self.path}; leave out the path, or let a rule say 'load'"


@dataclass(frozen=True)
class Pair:
    """One contrastive objective between two towers, with a logit scale of its own; see `jclip.losses.contrastive`."""

    a: str = "image"
    """Name of one tower."""
    b: str = "text"
    """Name of the other."""
    loss: Literal["softmax", "sigmoid"] = "softmax"
    """softmax: symmetric cross-entropy over the global batch (CLIP); sigmoid: every pair of the batch by itself (SigLIP)."""
    weight: Annotated[float, Range(above=0, most=1e6)] = 1.0
    """Factor in the total loss."""
    logit_scale: Annotated[float, Range(least=1, most=100)] | None = None
    """Initial factor on the cosines, learned as a logarithm, kept within 1 and 100. None: 1/0.07 (CLIP), sigmoid 10 (SigLIP)."""
    logit_bias: Annotated[float, Range(least=-1000, most=1000)] | Literal["batch"] | None = None
    """Initial bias of a sigmoid, learned. None: -10 (SigLIP); batch: -ln(batch_size - 1), a prior of one match in a batch."""
    label_smoothing: Annotated[float, Range(least=0, below=1)] = 0.0
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
    block: Count = 256
    """Columns of the logits computed at a time; memory, not the result, depends on it."""

    @property
    def name(self) -> str:
        """Of its parameters and metrics: "image_text"."""
        return f"{self.a}_{self.b}"

    def problems(self) -> Iterator[str]:
        """Contradictions, each after the place of this dataclass."""
        if self.logit_bias is not None and self.loss == "softmax":
            yield f".logit_bias {self.logit_bias}: a softmax does not depend on a bias; leave it None"
        if self.equal_by is not None and self.equal == "negative":
            yield f".equal_by {self.equal_by!r} has no effect with equal='negative'; use 'ignore' or 'positive'"


@dataclass(frozen=True)
class Mesh:
    """How devices are arranged. The batch is split over all of them."""

    data: Annotated[int, Range(least=-1)] = -1
    """Devices along the axis that replicates parameters; -1: all that remain."""
    fsdp: Count = 1
    """Devices along the axis that shards parameters and optimizer state."""
    rules: tuple[tuple[str, Literal["replicate", "fsdp"]], ...] = (
        (r".*/(bias|scale|logit_scale|logit_bias)", "replicate"),
        (r".*", "fsdp"),
    )
    """(regex on the parameter's path, placement); fsdp shards the largest axis that divides. First match counts."""

    def problems(self) -> Iterator[str]:
        """Contradictions, each after the place of this dataclass."""
        yield from _rule_problems(".rules", self.rules)
        if self.data == 0:
            yield ".data 0 is no device; use 1 or more, or -1: all that remain"


@dataclass(frozen=True)
class Checkpoint:
    """When training is saved."""

    every: Duration = "10%"
    """Time between checkpoints. The last step is always saved."""
    keep: Count = 3
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
    batch_size: Annotated[int, Range(least=2)] = 256
    """Examples in the global batch, which is also the number of candidates in the loss."""
    eval_batch_size: Count = 256
    """Examples in the global batch of an evaluation; no result depends on it."""
    accumulate: Count = 1
    """Parts in which the towers see a batch, one after the other: their memory falls by it, loss and gradients stay the same."""
    duration: Annotated[str, Length(of_run=False)] = "30ep"
    """Length of the run, as every duration: "5ep" (epochs), "1500" or "20k" (steps); elsewhere also "3%" (of the run)."""
    log_every: Count = 10
    """Steps between lines of metrics.jsonl."""
    seed: Seed = 0
    """Seed of everything random: initialisation, order, augmentation, dropout."""

    def problems(self) -> Iterator[str]:
        """Contradictions, each after the place of this dataclass."""
        yield from self._objective_problems()
        towers = ", ".join(self.model.towers)
        named = [(f".data.fields: there is no tower {name!r}", name) for name in self.data.fields]
        named += [(f".optim.layer_decay: there is no tower {name!r}", name) for name in self.optim.layer_decay]
        for i, pair in enumerate(self.pairs):
            named += [(f".pairs[{i}]: there is no tower {name!r}", name) for name in (pair.a, pair.b)]
            named += [
                (f".pairs[{i}].equal_by: there is no tower {name!r}", name) for name in (pair.equal_by,) if name is not None
            ]
        yield from (f"{problem}; towers: {towers}" for problem, name in named if name not in self.model.towers)
        for name in self.optim.layer_decay:
            if isinstance(self.model.towers[name], ResNetTower):
                yield f".optim.layer_decay: tower {name!r} is a ResNet, whose blocks are not stacked; use optim.lr_rules"
        best = self.checkpoint.best
        if best is not None and not any(best.startswith(f"{name}/") for name in self.evals):
            known = ", ".join(self.evals) or "none"
            yield f".checkpoint.best {best!r} is no metric of an evaluation; it starts with one of {known}, or is None"

    def _objective_problems(self) -> Iterator[str]:
        if len(self.model.towers) < 2:
            yield f".model.towers has {len(self.model.towers)} tower; a contrastive model needs at least 2"
        if not self.pairs:
            yield ".pairs is empty: there is nothing to learn; use (Pair(a='image', b='text'),)"
        taken = {*self.model.towers, *(f"{tower}_projection" for tower in self.model.towers)}
        for i, pair in enumerate(self.pairs):
            if pair.a == pair.b:
                yield f".pairs[{i}]: both sides are {pair.a!r}"
            if pair.name in taken:
                yield (
                    f".pairs[{i}]: the name {pair.name!r} is taken, by a tower, its projection or another pair; rename a tower"
                )
            taken.add(pair.name)
        unused = set(self.model.towers) - {tower for pair in self.pairs for tower in (pair.a, pair.b)}
        if unused:
            yield f".pairs: no pair trains the tower {', '.join(sorted(unused))}"


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


def _rule_problems(at: str, rules: tuple[tuple[str, object], ...]) -> Iterator[str]:
    if not rules:
        yield f"{at} is empty, so no parameter has a value; end with a rule for '.*'"
    for pattern, _ in rules:
        try:
            re.compile(pattern)
        except (re.error, OverflowError, RecursionError) as error:
            yield f"{at}: {pattern!r} is no regular expression: {error}"
