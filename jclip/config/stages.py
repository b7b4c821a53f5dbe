"""Stages: a run whose first parts see smaller images, shorter texts or fewer patches, for a fraction of the cost."""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

from jclip.config.data import Weight
from jclip.config.durations import Length, Plan, make_plan
from jclip.config.ranges import Range
from jclip.config.towers import ImageSize, TokenTower, VisionTower

if TYPE_CHECKING:  # which has stages
    from jclip.config.schema import Config


LAST = "last"
"""Name of the last part of a run, which the run's own fields describe."""


@dataclass(frozen=True)
class Stage:
    """A part of a run before its last: a run of its own, with warm-up, schedule and optimizer state from the start, whose
    parameters the next one goes on from. What is None is as in the last."""

    duration: Annotated[str, Length(of_run=False)] = "1ep"
    """Length of this part."""
    image_size: ImageSize | None = None
    """Side of a square image, or its height and width, in pixels, of every vision transformer; then positions are resampled."""
    context_length: Annotated[int, Range(least=2, most=2**20)] | None = None
    """Tokens of a text, of every text tower; positions after it are as init_from.text_positions says."""
    patch_dropout: Annotated[float, Range(least=0, below=1)] | None = None
    """Fraction of the patches that training drops, of every vision transformer."""
    batch_size: Annotated[int, Range(least=2)] | None = None
    """Examples in the global batch."""
    accumulate: Annotated[int, Range(least=1)] | None = None
    """Parts in which the towers see a batch."""
    lr: Annotated[float, Range(above=0, most=100)] | None = None
    """Peak learning rate."""
    warmup: Annotated[str, Length(least=0)] | None = None
    """Length of the linear warm-up."""
    weights: Mapping[str, Weight] = field(default_factory=dict)
    """Weights of data.sources, by name; those that are not named are as in the last part, and none changes in this one."""


def stage_configs(config: "Config") -> list["Config"]:
    """The parts of a run in their order, each as the configuration of a run; the last is all that the run's own says."""
    return [*(_with(config, stage) for stage in config.stages.values()), config]


def stage_names(config: "Config") -> list[str]:
    """The names of the parts of a run in their order."""
    return [*config.stages, LAST]


def make_plans(config: "Config", examples: int) -> list[Plan]:
    """The plan of each stage of a run, one behind the other; raises as `make_plan`."""
    plans: list[Plan] = []
    first = skipped = 0
    for part in stage_configs(config):
        plan = make_plan(part, examples)
        plans.append(dataclasses.replace(plan, total=first + plan.total, first=first, skipped=skipped))
        skipped += (plans[-1].total - first) * part.batch_size
        first = plans[-1].total
    return plans


def _with(config: "Config", stage: Stage) -> "Config":
    """The configuration of one stage."""

    def given(**values: Any) -> dict[str, Any]:
        return {name: value for name, value in values.items() if value is not None}

    towers = dict(config.model.towers)
    for name, tower in towers.items():
        if isinstance(tower, VisionTower):
            sizes = given(image_size=stage.image_size, patch_dropout=stage.patch_dropout)
            towers[name] = dataclasses.replace(tower, **sizes)
        elif isinstance(tower, TokenTower):
            towers[name] = dataclasses.replace(tower, **given(context_length=stage.context_length))
    changes = given(batch_size=stage.batch_size, accumulate=stage.accumulate)
    sources = {
        name: dataclasses.replace(portion, weight=stage.weights.get(name, portion.weight), changes=())
        for name, portion in config.data.sources.items()
    }
    return dataclasses.replace(
        config,
        stages={},
        data=dataclasses.replace(config.data, sources=sources),
        model=dataclasses.replace(config.model, towers=towers),
        optim=dataclasses.replace(config.optim, **given(lr=stage.lr, warmup=stage.warmup)),
        duration=stage.duration,
        # A bucket as long as the texts of this stage is what the last group of them is.
        buckets=tuple(b for b in config.buckets if stage.context_length is None or b[1] < stage.context_length),
        **changes,
    )


def stage_problems(config: "Config") -> Iterator[str]:
    """Contradictions of the stages with the rest of a run."""
    if config.stages and config.optim.schedule == "cooldown":
        yield ".stages: a cooldown goes on from another run and is of one piece; leave them out"
    if LAST in config.stages:
        yield f".stages: {LAST!r} is the part that the run's own fields describe; name a stage otherwise"
    for name, stage in config.stages.items():
        if unknown := stage.weights.keys() - config.data.sources.keys():
            known = ", ".join(config.data.sources) or "none"
            yield f".stages.{name}.weights: there is no source {', '.join(sorted(unknown))}; data.sources has {known}"
        if stage == Stage(stage.duration):
            yield f".stages.{name} changes nothing of the last part; lengthen the run's duration instead"
        yield from (f".stages.{name}: {problem.lstrip('.')}" for problem in _with(config, stage).problems())
