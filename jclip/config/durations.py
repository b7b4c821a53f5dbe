"""Durations are values: "5ep" epochs, "3%" of the run, "1500", "20k" or "1.5M" steps."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from jclip.config.errors import ConfigError
from jclip.config.ranges import INT32

if TYPE_CHECKING:  # whose fields are durations
    from jclip.config.schema import Config

_UNITS = {"": 1.0, "k": 1e3, "M": 1e6}


@dataclass(frozen=True)
class Length:
    """Requirements of a duration, stated in the type of its field as a `Range` is."""

    of_run: bool = True
    """True: a percentage of the run is allowed."""
    least: int = 1
    """Steps; 0 where the duration may be none at all."""

    def problem(self, value: str) -> str | None:
        """Problem of a duration whatever the data, or None."""
        try:
            number, unit = _parse(value)
            if unit == "%" and not self.of_run:
                to_steps(value, steps_per_epoch=1)  # which says why not
            # Epochs and shares of a run are steps only once the data is known; then the shortest counts as one.
            steps = to_steps(value, steps_per_epoch=1, total=100) if unit not in ("ep", "%") else math.ceil(number)
        except ConfigError as error:
            return f": {str(error).removeprefix('config: ')}"
        return None if steps >= self.least else f' "{value}" is no step; use "1" or more'


Duration = Annotated[str, Length()]
"""A length of training: "5ep" epochs, "3%" of the run, "1500" or "20k" steps."""


def to_steps(duration: str, *, steps_per_epoch: float, total: int | None = None) -> int:
    """The number of steps of a duration, rounded to the nearest; see `exact_steps`."""
    return round(exact_steps(duration, steps_per_epoch=steps_per_epoch, total=total))


def exact_steps(duration: str, *, steps_per_epoch: float, total: int | None = None) -> float:
    """The steps of a duration, of which the last may be a part.

    Args:
        duration: such as "5ep", "3%", "1500" or "20k".
        steps_per_epoch: examples in the training set over the global batch size.
        total: steps of the whole run, which a percentage needs.

    Raises:
        ConfigError: the text is no duration, is longer than a device can count, or a percentage is given where there is nothing
            to take it of.
    """
    number, unit = _parse(duration)
    if unit == "ep":
        steps = number * steps_per_epoch
    elif unit == "%" and total is None:
        raise ConfigError(f'config: the run\'s own duration cannot be a percentage, as in "{duration}"; use "30ep" or "20k"')
    else:
        steps = number / 100 * (total or 0) if unit == "%" else number * _UNITS[unit]
    if steps > INT32:
        raise ConfigError(f'config: duration "{duration}" is more than the {INT32:,} steps that a device can count')
    return steps


def _parse(duration: str) -> tuple[float, str]:
    """Number and unit."""
    match = re.fullmatch(r"([0-9]+\.?[0-9]*)(ep|%|k|M|)", duration.strip())
    if match is None:
        raise ConfigError(f'config: duration "{duration[:40]}" is not understood; write "5ep", "3%", "1500" or "20k"')
    if float(match[1]) > INT32:
        raise ConfigError(f'config: duration "{duration[:40]}" is more than the {INT32:,} steps that a device can count')
    return float(match[1]), match[2]


@dataclass(frozen=True)
class Plan:
    """The durations of a run in steps."""

    total: int
    """Updates in all."""
    warmup: int
    """Updates of linear warm-up."""
    checkpoint_every: float
    """Updates between checkpoints, at least 1."""
    eval_every: Mapping[str, float]
    """Updates between runs of each evaluation, at least 1."""
    cooldown: int = 0
    """Updates of the linear fall at the end."""
    first: int = 0
    """Updates of the stages before, which count in `total`."""
    skipped: int = 0
    """Examples of the endless order of the data that these have seen."""

    @property
    def length(self) -> int:
        """Updates that follow one schedule: those of this stage."""
        return self.total - self.first

    def due_evaluations(self, step: int) -> list[str]:
        """The evaluations to run after `step` updates; all of them at the end."""
        return [name for name, every in self.eval_every.items() if _is_due(step, every) or step == self.total]

    def due_checkpoint(self, step: int) -> bool:
        """True where a checkpoint is due after `step` updates."""
        return _is_due(step, self.checkpoint_every) or step == self.total


def _is_due(step: int, every: float) -> bool:
    """True for the steps nearest to the multiples of a period. It is not rounded before: an epoch may end within a step, and
    what is due every epoch is done once in each."""
    return step == round(round(step / every) * every)


def make_plan(config: "Config", examples: int) -> Plan:
    """The plan of a run on so many training examples.

    Raises:
        ConfigError: the run has no step, or warm-up is longer than the run.
    """
    per_epoch = examples / config.batch_size
    total = to_steps(config.duration, steps_per_epoch=per_epoch)
    if total < 1:
        raise ConfigError(
            f'config: duration "{config.duration}" of {examples} examples in batches of {config.batch_size} is no step'
        )

    def steps(duration: str) -> int:
        return to_steps(duration, steps_per_epoch=per_epoch, total=total)

    warmup, cooldown = _warmup_and_cooldown(config, steps, total)
    if warmup > total:
        raise ConfigError(
            f'config: optim.warmup "{config.optim.warmup}" is {warmup} steps, longer than the run of {total}; use "5%"'
        )
    if warmup + cooldown > total:
        raise ConfigError(
            f'config: optim.warmup "{config.optim.warmup}" and optim.cooldown "{config.optim.cooldown}" are {warmup + cooldown} '
            f"steps, longer than the run of {total}; use shorter ones"
        )
    first = config.init_from.step or 0 if config.optim.schedule == "cooldown" else 0

    def period(duration: str) -> float:
        return max(1.0, exact_steps(duration, steps_per_epoch=per_epoch, total=total))

    every = {name: period(evaluation.every) for name, evaluation in config.evals.items()}
    return Plan(first + total, warmup, period(config.checkpoint.every), every, cooldown)


def _warmup_and_cooldown(config: "Config", steps: Callable[[str], int], total: int) -> tuple[int, int]:
    """The updates of the linear rise at the beginning, and of the linear fall at the end."""
    match config.optim.schedule:
        case "cooldown":
            return 0, total
        case "wsd" | "inverse_sqrt":
            return steps(config.optim.warmup), steps(config.optim.cooldown)
        case _:
            return steps(config.optim.warmup), 0
