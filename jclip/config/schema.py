"""The dataclasses of a recipe: every option of a run, with its unit, its default and its source; `towers` has the model's."""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, cast

from jclip.config.augment import Augment, SoundAugment, TextAugment
from jclip.config.buckets import Bucket, bucket_problems
from jclip.config.clap import Cnn14Tower, HtsatTower
from jclip.config.data import Data
from jclip.config.durations import Duration, Length
from jclip.config.evals import Count, Evaluation, Seed
from jclip.config.history import reads_pairs
from jclip.config.objectives import (
    Caption,
    Contrastive,
    Family,
    MultiView,
    View,
    mix_problems,
    objective_problems,
    optional_problems,
    view_problems,
)
from jclip.config.optim import Optim
from jclip.config.ranges import Range
from jclip.config.rules import rule_problems
from jclip.config.stages import Stage, stage_problems
from jclip.config.towers import Model, ResNetTower, Tower, VisionTower

T = TypeVar("T")


@dataclass(frozen=True)
class InitFrom:
    """Fine-tuning: whose parameters a run starts from. A workdir with checkpoints goes on from these, and nothing is loaded."""

    path: str = ""
    """Workdir of a training run, folder of weights of jclip, open_clip or Hugging Face, hf://ORG/NAME, or weight file; empty: all
    is random."""
    step: Annotated[int, Range(least=0)] | None = None
    """Checkpoint of a workdir, by its step; None: the last."""
    architecture: str | None = None
    """Architecture of a weight file beside which no configuration lies, such as "ViT-B-32-quickgelu"."""
    tokenizer: str | None = None
    """File of the vocabulary that an .npz of big_vision, or an architecture such as "ViT-B-16-SigLIP", leaves out."""
    rules: tuple[tuple[str, Literal["load", "scratch"]], ...] = ((r".*", "load"),)
    """(regex on the parameter's path, load it from `path` or let it be random); first match counts."""
    text_positions: Literal["resample", "extend"] = "resample"
    """Positions of a text tower of another context_length: resampled along the line, as open_clip does; or the first ones as they
    are, and those behind them random, for a tower that has seen but the beginning of texts (CLIPA). Between stages, too."""
    towers: Mapping[str, str] = field(default_factory=dict)
    """Towers that are called otherwise there: {"teacher_image": "image"}."""

    def problems(self) -> Iterator[str]:
        """Contradictions, each after the place of this dataclass."""
        yield from rule_problems(".rules", self.rules)
        if not self.path and self.towers:
            yield ".towers says what towers are called there, but init_from.path is empty; give the path"
        elif not self.path and self != InitFrom(rules=self.rules, text_positions=self.text_positions):
            yield ".step, architecture and tokenizer say which weights, but init_from.path is empty; give the path"
        if self.step is not None and self.architecture is not None:
            yield ".step is of a workdir, which says its architecture itself; leave out init_from.architecture"
        if self.path and all(what == "scratch" for _, what in self.rules):
            yield f".rules load nothing of {self.path}; leave out the path, or let a rule say 'load'"


@dataclass(frozen=True)
class MeshConfig:
    """Arrangement of the devices. The batch is split over all of them."""

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
        yield from rule_problems(".rules", self.rules)
        if self.data == 0:
            yield ".data 0 is no device; use 1 or more, or -1: all that remain"


@dataclass(frozen=True)
class Checkpoint:
    """Times at which training is saved, and what is kept."""

    every: Duration = "10%"
    """Time between checkpoints. The last step is always saved."""
    keep: Count = 3
    """Number of the latest checkpoints that are kept."""
    best: str | None = None
    """Metric of an evaluation, such as "clipart/retrieval/mean/recall@10"; the checkpoint where it is highest is kept too."""


class Input(NamedTuple):
    """A view with nothing left open."""

    tower: str
    """Tower that encodes it."""
    field: str
    """Field of an example that it is made of."""
    augment: Augment
    """Augmentation, where it is an image."""
    text_augment: TextAugment
    """Augmentation, where it is a text."""
    seen_by: Tower
    """The same tower, for images of this view's size."""
    same_as: str | None
    """View whose random draws it repeats."""
    stored: str
    """Folder of its embeddings, if no tower sees it."""
    stored_size: int
    """Size of these."""
    sound_augment: SoundAugment = SoundAugment()
    """Augmentation, where it is a sound."""


@reads_pairs
@dataclass(frozen=True)
class Config:
    """A whole run."""

    model: Model = Model()
    """Towers, and how they compute."""
    data: Data = Data()
    """Training data."""
    optim: Optim = Optim()
    """Optimizer and schedule."""
    init_from: InitFrom = InitFrom()
    """Parameters of the start."""
    views: Mapping[str, View] = field(default_factory=dict)
    """Further inputs of the towers by name, such as "image@2". A tower's own view bears its name."""
    objectives: Mapping[str, Family] = field(default_factory=lambda: {"image_text": Contrastive()})
    """Objectives by name, a weighted sum of losses. The name is also that of an objective's own parameters and metrics."""
    mesh: MeshConfig = MeshConfig()
    """Devices."""
    checkpoint: Checkpoint = Checkpoint()
    """Checkpoints."""
    evals: Mapping[str, Evaluation] = field(default_factory=dict)
    """Evaluations by name; the name is the prefix of their metrics."""
    batch_size: Annotated[int, Range(least=2)] = 256
    """Examples in the global batch, which is also the number of candidates in the loss."""
    evaluate_ema: bool = False
    """True: evaluations, and all who load the run, use the moving average of optim.ema."""
    eval_batch_size: Count = 256
    """Examples in the global batch of an evaluation; no result depends on it."""
    accumulate: Count = 1
    """Parts in which the towers see a batch, one after the other: their memory falls by it, loss and gradients stay the same."""
    buckets: tuple[Bucket, ...] = ()
    """(text tower, tokens, share of a device's rows), shortest first: texts are sorted by length and seen with so many tokens,
    the rest with context_length; loss and gradients stay the same. A batch with too many longer texts is seen padded."""
    stages: Mapping[str, Stage] = field(default_factory=dict)
    """Cheaper parts of the run before the last, which all else describes, by name and in their order."""
    duration: Annotated[str, Length(of_run=False)] = "30ep"
    """Length of the run, or of its last part where there are stages, as every duration: "5ep" (epochs), "1500" or "20k" (steps);
    elsewhere also "3%" (of the run)."""
    log_every: Count = 10
    """Steps between lines of metrics.jsonl."""
    seed: Seed = 0
    """Seed of everything random: initialisation, order, augmentation, dropout."""

    def inputs(self) -> dict[str, Input]:
        """The views that the objectives read, by name: what a batch of training consists of. The towers' own come first."""
        read = {name for objective in self.objectives.values() for name in objective.views()}
        views = {name: View(name) for name in self.model.towers} | dict(self.views)
        return {name: self._input(view) for name, view in views.items() if name in read}

    def teachers(self) -> set[str]:
        """Towers that only teach: objectives ask for their embeddings, and none trains them."""
        views = self.inputs()
        read = (views[view] for objective in self.objectives.values() for view in objective.teachers())
        return {view.tower for view in read if not view.stored} - self.trained_towers()

    def idle_towers(self) -> set[str]:
        """Towers that no objective reads: evaluations do."""
        return self.model.towers.keys() - {view.tower for view in self.inputs().values()}

    def trained_towers(self) -> set[str]:
        """Towers that the gradients of objectives reach."""
        views = self.inputs()
        return {views[view].tower for objective in self.objectives.values() for view in objective.trains()}

    def all_views(self) -> dict[str, Input]:
        """The inputs, and by the side of each what objectives make of it on the device."""
        views = self.inputs()
        for name, objective in self.objectives.items():
            views |= {made: views[view] for made, view in objective.makes(name).items()}
        return views

    def encoded_views(self) -> list[str]:
        """The views that the towers see, as often as a step asks for them: inputs first, then what objectives make of them."""
        made = [view for name, objective in self.objectives.items() for view in objective.makes(name)]
        asked = {view for objective in self.objectives.values() for view in objective.encodes()}
        return [*(name for name, view in self.inputs().items() if name in asked and not view.stored), *made]

    def scales(self) -> dict[str, str]:
        """The objectives with a logit scale of two towers, by the names of both, such as "image_text".

        Where several match the same towers it is the one of that name, or else the first.
        """
        scales: dict[str, str] = {}
        for name, how in self.objectives.items():
            pair = (how.a, how.b) if isinstance(how, Contrastive) else (how.a[0], how.b[0]) if isinstance(how, MultiView) else ()
            if pair and {*pair} <= self.model.towers.keys():
                both = "_".join(pair)
                scales[both] = name if name == both else scales.get(both, name)
        return scales

    def captioners(self) -> dict[str, Caption]:
        """The objectives that write captions, by name, with the names of towers in place of those of their views."""
        inputs = self.inputs()
        return {
            name: dataclasses.replace(how, image=inputs[how.image].tower, text=inputs[how.text].tower)
            for name, how in self.objectives.items()
            if isinstance(how, Caption)
        }

    def _input(self, view: View) -> Input:
        field = "key" if view.stored else view.field or self.data.fields.get(view.tower, view.tower)
        tower = self.model.towers[view.tower]
        if view.size is not None and isinstance(tower, VisionTower):
            tower = dataclasses.replace(tower, image_size=view.size)
        augment, text_augment = view.augment or self.data.augment, view.text_augment or self.data.text_augment
        sound_augment = view.sound_augment or self.data.sound_augment
        stored = view.stored, view.stored_size
        return Input(view.tower, field, augment, text_augment, tower, view.same_as, *stored, sound_augment)

    def problems(self) -> Iterator[str]:
        """Contradictions, each after the place of this dataclass."""
        towers, known = self.model.towers, ", ".join(self.model.towers)
        yield from view_problems(self.views, towers)
        frozen = [name for name in towers if self.optim.freezes(f"{name}/norm/scale")]
        yield from objective_problems(self.objectives, self.views, towers, self.batch_size, frozen)
        read = {name: how.views() for name, how in self.objectives.items()}
        may_lack = {name: how.may_lack() for name, how in self.objectives.items()}
        yield from optional_problems(self.data.optional, read, may_lack)
        if self.data.sound_mix.p:
            yield from mix_problems(
                {name: (view.seen_by, bool(view.stored)) for name, view in self.inputs().items()}, self.data.optional
            )
        named = [(".data.fields", name) for name in self.data.fields]
        named += [(f".data.sources.{key}.fields", name) for key, one in self.data.sources.items() for name in one.fields]
        named += [(".optim.layer_decay", name) for name in self.optim.layer_decay]
        yield from (f"{at}: there is no tower {name!r}; towers: {known}" for at, name in named if name not in towers)
        for name in self.optim.layer_decay:
            if isinstance(towers[name], ResNetTower | HtsatTower | Cnn14Tower):
                kind = type(towers[name]).__name__
                yield f".optim.layer_decay: tower {name!r} is a {kind}, whose blocks are not stacked; use optim.lr_rules"
        yield from stage_problems(self)
        yield from bucket_problems(self.buckets, towers)
        if self.data.shuffle == "blocks" and self.batch_size % self.data.lanes:
            yield f".data.lanes {self.data.lanes} does not divide the batch of {self.batch_size} examples; use a divisor of it"
        if self.evaluate_ema and self.optim.ema is None:
            yield ".evaluate_ema: there is no moving average; give optim.ema a decay"
        if self.optim.schedule == "cooldown" and self.init_from != InitFrom(self.init_from.path, self.init_from.step):
            yield ".init_from: a cooldown goes on from a whole run; leave out all but path and step"
        elif self.optim.schedule == "cooldown" and (not self.init_from.path or self.init_from.step is None):
            yield ".optim.schedule cooldown: of which run, and from where on? give init_from.path its workdir, and init_from.step"
        best = self.checkpoint.best
        if best is not None and not any(best.startswith(f"{name}/") for name in self.evals):
            evals = ", ".join(self.evals) or "none"
            yield f".checkpoint.best {best!r} is no metric of an evaluation; it starts with one of {evals}, or is None"


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


def replace_each(config: T, changes: Mapping[str, object]) -> T:
    """A copy with another value at each of these dotted paths, one after the other; see `replace`."""
    for path, value in changes.items():
        config = replace(config, path, value)
    return config
