"""Any option set to nonsense, alone or with another: a ConfigError, or a configuration that works."""

import dataclasses
import itertools
import math
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import tiny_config

from jclip import train
from jclip.config import Config, ConfigError, LinearProbe, check, make_plan
from jclip.data import SourceError, open_source
from jclip.memory import require_memory
from jclip.metrics import NonFiniteLoss
from jclip.program import make_program
from jclip.sharding import make_mesh
from jclip.weights import WeightsError

VALUES = (0, -1, 0.0, -1.0, math.nan, math.inf, -math.inf, 1e300, 10**30, 10**400, "", "x", (), {}, None, True)
BASE = dataclasses.replace(
    tiny_config(**{"duration": "2", "optim.warmup": "1"}),
    evals={**tiny_config().evals, "probe": LinearProbe("shapes:test?size=16&length=64", "shapes:val?size=16&length=32")},
)
REFUSED = (ConfigError, SourceError, WeightsError)


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every option, and of every part of one."""
    if at:
        yield at
    if dataclasses.is_dataclass(value):
        inner: Any = [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
    elif isinstance(value, Mapping):
        inner = value.items()
    else:
        inner = enumerate(value) if isinstance(value, tuple) else ()
    for key, one in inner:
        yield from places(one, (*at, key))


def put(config: Any, at: tuple[Any, ...], value: Any) -> Any:
    """A copy with another value at a path; where another change has taken that place away, as it is."""
    if not at:
        return value
    head, rest = at[0], at[1:]
    if dataclasses.is_dataclass(config) and hasattr(config, str(head)):
        return dataclasses.replace(config, **{head: put(getattr(config, head), rest, value)})  # type: ignore[type-var]
    if isinstance(config, Mapping) and head in config:
        return {**config, head: put(config[head], rest, value)}
    if isinstance(config, tuple) and isinstance(head, int) and head < len(config):
        return (*config[:head], put(config[head], rest, value), *config[head + 1 :])
    return config


PLACES = tuple(places(BASE))
CHANGES = st.tuples(st.sampled_from(PLACES), st.sampled_from(VALUES))


def changed(*changes: tuple[tuple[Any, ...], Any]) -> Config:
    config = BASE
    for at, value in changes:
        config = put(config, at, value)
    return config


def accepted(config: Config, *, trace: bool) -> bool:
    """True where it passes the checks that training begins with, and its step can be traced; False where it is refused."""
    try:
        check(config, devices=8)
        examples = len(open_source(config.data.source))
        plan = make_plan(config, examples)
        mesh = make_mesh(config.mesh)
        program = make_program(config, mesh, warmup_steps=plan.warmup, total_steps=plan.total)
        require_memory(program.parts(), 2**31)
    except REFUSED as error:
        assert "\n" not in str(error)  # noqa: PT017
        assert len(str(error)) < 1000  # noqa: PT017
        return False
    if trace:
        jax.eval_shape(program.train_step, program.state, program.batch)
    return True


@settings(max_examples=250, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(st.one_of(st.tuples(CHANGES), st.tuples(CHANGES, CHANGES)))
def test_one_or_two_odd_values_are_refused_or_make_a_program(changes: Any) -> None:
    accepted(changed(*changes), trace=False)


def test_every_option_set_to_every_odd_value_is_refused_or_passes_the_check() -> None:
    assert len(PLACES) > 150
    for at, value in itertools.product(PLACES, VALUES):
        try:
            check(changed((at, value)), devices=8)
        except ConfigError as error:
            assert len(str(error)) < 1000, (at, value)  # noqa: PT017


def trains(config: Config, workdir: Path) -> bool:
    """True where it has trained to its end, or said that it diverged; False where it is refused."""
    try:
        train.main(config, workdir)
    except (*REFUSED, NonFiniteLoss) as error:
        return isinstance(error, NonFiniteLoss)
    return True


@pytest.mark.parametrize(
    "changes",
    [
        {"optim.weight_decay": 0.0, "optim.clip_norm": None, "optim.final_lr": 0.0},
        {"optim.b1": 0, "optim.b2": 0.0, "objectives": {}},
    ],
    ids=["zeros", "nothing to learn"],
)
def test_what_is_accepted_trains(changes: Mapping[str, Any], tmp_path: Path) -> None:
    config = BASE
    for path, value in {**changes, "evals": {}, "checkpoint.best": None}.items():
        config = put(config, tuple(path.split(".")), value)
    assert trains(config, tmp_path) == ("objectives" not in changes)


def passes_the_check(config: Config) -> bool:
    try:
        check(config, devices=8)
    except ConfigError:
        return False
    return True


@pytest.mark.slow
@pytest.mark.parametrize("together", [25, pytest.param(1, marks=pytest.mark.exhaustive)])
def test_every_odd_value_that_passes_the_check_trains(together: int, tmp_path: Path) -> None:
    """Shuffled, so many odd values at a time: each is accepted with the others, and trains.

    Texts are left out: they name sources, files and parameters, and these are looked up after the check. There are two rules
    of learning rates, of which the first stays, as factors of 0 alone would freeze every parameter, which is refused where these
    are known.
    """
    base = put(put(BASE, ("evals",), {}), ("checkpoint", "best"), None)
    base = put(base, ("optim", "lr_rules"), ((".*/bias", 1.0), (".*", 1.0)))
    changed = (at for at in places(base) if at[:3] != ("optim", "lr_rules", 0))
    odd = itertools.product(changed, (value for value in VALUES if not isinstance(value, str)))
    alone = [(at, value) for at, value in odd if put(base, at, value) != base and passes_the_check(put(base, at, value))]
    assert len(alone) > 40
    random.Random(0).shuffle(alone)
    for i in range(0, len(alone), together):
        config = base
        for at, value in alone[i : i + together]:
            config = put(config, at, value)
        assert trains(config, tmp_path / str(i)), alone[i : i + together]
