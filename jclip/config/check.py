"""The one check: every wrong value and every contradiction of a configuration is found before anything is allocated."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from jclip.config.errors import ConfigError
from jclip.config.evals import Evaluation, Suite
from jclip.config.fields import field_problems
from jclip.config.filter import Filter
from jclip.config.ranges import value_problems
from jclip.config.schema import Config
from jclip.config.towers import Model

if TYPE_CHECKING:
    from jclip.config.adapt import Adapt


def check(config: Config, *, devices: int | None = None) -> None:
    """Raises ConfigError on the first wrong value or contradiction.

    Args:
        config: what is to be run.
        devices: how many devices will run it; None leaves out what depends on that.
    """
    _require_none(value_problems(config))
    _require_none(contradictions(config))
    _require_none(_eval_problems(config.model, config.evals))
    _require_none(_caption_problems(config))
    if devices is not None:
        _require_none(_device_problems(config, devices))


def check_model(model: Model) -> None:
    """Raises ConfigError on the first wrong value or contradiction of a model that no run trains."""
    _require_none(value_problems(model, "model"))
    _require_none(contradictions(model, "model"))


def check_suite(suite: Suite, model: Model) -> None:
    """Raises ConfigError on the first wrong value or contradiction of evaluations of a model."""
    _require_none(value_problems(suite))
    _require_none(contradictions(suite))
    _require_none(_eval_problems(model, suite.evals))


def check_filter(rules: Filter) -> None:
    """Raises ConfigError on the first wrong value or contradiction of the rules of a filter."""
    _require_none(value_problems(rules))
    _require_none(contradictions(rules))


def check_adapt(config: "Adapt") -> None:
    """Raises ConfigError on the first wrong value or contradiction of an adaptation."""
    _require_none(value_problems(config))
    _require_none(contradictions(config))


def _require_none(problems: Iterator[str]) -> None:
    for problem in problems:
        raise ConfigError(f"config: {problem}")


def contradictions(value: Any, at: str = "") -> Iterator[str]:
    """Problems that the dataclasses in a value find in themselves, the inner ones first: `problems() -> Iterator[str]`.

    Each problem begins with what stands behind the place of its dataclass, such as ".heads 3 does not divide width 8".
    """
    if isinstance(value, Mapping):
        inner = [(f"{at}.{key}", one) for key, one in value.items()]
    elif isinstance(value, (tuple, list)):
        inner = [(f"{at}[{i}]", one) for i, one in enumerate(value)]
    elif dataclasses.is_dataclass(value):
        inner = [(f"{at}.{field.name}", getattr(value, field.name)) for field in dataclasses.fields(value)]
    else:
        return
    for place, one in inner:
        yield from contradictions(one, place.lstrip("."))
    if hasattr(value, "problems"):
        yield from (f"{at}{problem}".lstrip(".") for problem in value.problems())


def _eval_problems(model: Model, evals: Mapping[str, Evaluation]) -> Iterator[str]:
    for name, evaluation in evals.items():
        unknown = [tower for tower in (*evaluation.towers(), *evaluation.fields) if tower not in model.towers]
        for tower in unknown:
            yield f"evals.{name}: there is no tower {tower!r}; towers: {', '.join(model.towers)}"
        if not unknown:
            yield from (f"evals.{name}{problem}" for problem in evaluation.misfits(model.towers))
        yield from field_problems(f"evals.{name}.fields", evaluation.fields)


def _caption_problems(config: Config) -> Iterator[str]:
    """Evaluations of captions that no objective writes."""
    written = [(how.image, how.text) for how in config.captioners().values()]
    for name, evaluation in config.evals.items():
        if (towers := evaluation.captions()) is not None and towers not in written:
            views = " and ".join(map(repr, towers))
            yield f"evals.{name}: nothing writes captions of the towers {views}; add an objective Caption of them"


def _device_problems(config: Config, devices: int) -> Iterator[str]:
    mesh = config.mesh
    if mesh.data == -1 and devices % mesh.fsdp:
        yield f"mesh.fsdp {mesh.fsdp} does not divide {devices} devices"
    if mesh.data > 0 and mesh.data * mesh.fsdp != devices:
        yield f"mesh {mesh.data} x {mesh.fsdp} needs {mesh.data * mesh.fsdp} devices; there are {devices}"
    for name in ("batch_size", "eval_batch_size"):
        size = getattr(config, name)
        if size % devices:
            low = size // devices * devices
            choices = f"{low} or {low + devices}" if low else str(devices)
            yield f"{name} {size} is not divisible by {devices} devices; use {choices}"
    parts = devices * config.accumulate
    for tower, tokens, share in config.buckets:
        if share * config.batch_size / parts < 1:
            rows = f"{config.batch_size / parts:g} rows of a device"
            yield f"buckets: {tower} {tokens} {share:g} is no row of the {rows} that its tower sees at once; leave buckets out"
    if config.accumulate > 1 and config.batch_size % parts:
        low = max(1, config.batch_size // parts) * parts
        what = f"{devices} devices x accumulate {config.accumulate}"
        yield f"batch_size {config.batch_size} is not divisible by {what}; use {low} or {low + parts}"
