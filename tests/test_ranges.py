"""One guard for numbers: every number of a configuration has a range, and what is outside of it is refused with its place."""

import dataclasses
import json
import math
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import pytest
from test_config import FULL

from jclip.config import (
    Config,
    ConfigError,
    Contrastive,
    FewShot,
    InitFrom,
    Length,
    NearestNeighbours,
    Optim,
    Range,
    ResNetTower,
    Robustness,
    Suite,
    check,
    check_model,
    check_suite,
    from_json,
    to_json,
)
from jclip.config import replace as replace_path
from jclip.config.kinds import is_open, kinds_of

NAN, INF = math.nan, math.inf
EVERY = dataclasses.replace(  # an instance of each dataclass that has numbers
    FULL,
    model=dataclasses.replace(FULL.model, towers={**FULL.model.towers, "stages": ResNetTower()}),
    objectives={**FULL.objectives, "stages_text": Contrastive(a="stages", logit_scale=2.0)},
    evals={
        **FULL.evals,
        "few": FewShot("shapes:train", "shapes:test"),
        "near": NearestNeighbours("shapes:train", "shapes:test"),
        "robust": Robustness("a", "b", {"c": "d"}, baselines={"x": {"clean": 0.5, "c": 0.25}}),
    },
)


def numbers(hint: Any, at: str, stated: bool = False) -> Iterator[tuple[str, bool]]:
    """Each float and int among the fields of a type, and whether its type states a Range."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint in (int, float):
        yield at, stated
    elif origin is Annotated:
        yield from numbers(args[0], at, any(isinstance(extra, Range) for extra in args[1:]))
    elif is_open(hint):
        for kind in (kind for kind in kinds_of(hint).values() if kind.__module__.startswith("jclip.")):
            yield from fields(kind, f"{at}.{kind.__name__}")
    elif dataclasses.is_dataclass(hint):
        yield from fields(hint, at)
    elif origin in (typing.Union, types.UnionType, tuple, Mapping):
        for inner in args:
            yield from numbers(inner, at)


def fields(cls: Any, at: str) -> Iterator[tuple[str, bool]]:
    hints = typing.get_type_hints(cls, include_extras=True)
    for field in dataclasses.fields(cls):
        yield from numbers(hints[field.name], f"{at}.{field.name}")


@pytest.mark.parametrize("cls", [Config, Suite])
def test_every_number_of_a_configuration_states_its_range(cls: type) -> None:
    found = list(numbers(cls, cls.__name__))
    assert [at for at, stated in found if not stated] == []
    assert len(found) > (60 if cls is Config else 5)


def leaves(value: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    """Each number of a configuration, by its dotted path as messages write it."""
    if dataclasses.is_dataclass(value):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from leaves(inner, f"{at}.{key}".lstrip("."))
    elif isinstance(value, (tuple, list)):
        for i, inner in enumerate(value):
            yield from leaves(inner, f"{at}[{i}]")
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield at, value


def changed(data: Any, at: str, value: Any) -> Any:
    """JSON with another value at a path."""
    data, node = json.loads(json.dumps(data)), None
    keys = [int(key) if key.isdigit() else key for key in at.replace("[", ".").replace("]", "").split(".")]
    node = data
    for key in keys[:-1]:
        node = node[key]
    node[keys[-1]] = value
    return data


def test_no_number_is_ever_nan_or_infinite_or_beyond_its_type() -> None:
    check(EVERY)
    data, paths = to_json(EVERY), [at for at, _ in leaves(EVERY)]
    assert len(paths) > 70
    for at in paths:
        for value in (NAN, INF, -INF, 1e300, -1e300, 10**30, -(10**30), 10**400):
            with pytest.raises(ConfigError) as error:
                check(from_json(changed(data, at, value)))
            assert f"config: {at} " in str(error.value) or f"config.{at}: " in str(error.value), (at, value, str(error.value))
            assert len(str(error.value)) < 300


@pytest.mark.parametrize("value", ["3", True, None, (1,), {}, 1j, 10**400])
def test_what_is_no_number_is_refused_with_what_is_allowed(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"^config: optim\.lr .* must be (a number )?above 0 and at most 100$"):
        check(Config(optim=Optim(lr=value)))


@pytest.mark.parametrize(
    ("path", "value", "allowed"),
    [
        ("optim.clip_norm", "1", "a number above 0 or None"),
        ("optim.clip_norm", 1e-46, "a number above 0 or None"),  # which is 0 in float32
        ("objectives", None, "a mapping"),
        ("optim.warmup", 3, "a text"),
        ("data.fields", (), "a mapping"),
        ("model.scan", 1, "True or False"),
        ("model.dtype", "f16", "'float32' or 'bfloat16'"),
        ("optim.lr_rules", ((".*",),), "2 values"),
        ("optim", InitFrom(), "a Optim"),
        ("seed", 2**32, "at least 0 and at most 4,294,967,295"),  # jax.random.key(2**32) is that of 0
        ("batch_size", 1, "at least 2"),
    ],
)
def test_what_is_not_of_a_field_s_type_is_refused_with_what_is_allowed(path: str, value: Any, allowed: str) -> None:
    with pytest.raises(ConfigError) as error:
        check(replace_path(Config(), path, value))
    assert str(error.value).startswith(f"config: {path}")
    assert str(error.value).endswith(f"must be {allowed}")


def test_models_and_suites_are_guarded_as_configurations_are() -> None:
    model = replace_path(FULL.model, "towers.image.norm_eps", NAN)
    with pytest.raises(ConfigError, match=r"^config: model\.towers\.image\.norm_eps nan must be above 0 and at most 1$"):
        check_model(model)
    with pytest.raises(ConfigError, match=r"^config: batch_size 0 must be at least 1$"):
        check_suite(Suite(FULL.evals, batch_size=0), FULL.model)
    with pytest.raises(ConfigError, match=r"^config: evals\.probe\.l2 nan must be at least 0 and at most 1,000,000\.0$"):
        check_suite(Suite({"probe": dataclasses.replace(FULL.evals["probe"], l2=NAN)}), FULL.model)


@pytest.mark.parametrize(
    ("range_", "inside", "outside"),
    [
        (Range(least=0, most=1), (0, 0.0, 1, 1.0, 0.3), (-1e-30, -1, 1.0001, 2)),
        (Range(above=0, below=1), (1e-30, 0.999), (0, 0.0, 1, 1.0)),
        (Range(), (-(2**31) + 1, 2**31 - 1, -3e38, 3e38, 0.0), (2**31, 4e38, 1e-39, NAN, INF)),
        (Range(most=2**40), (2**40,), (2**40 + 1,)),
    ],
)
def test_the_ends_of_a_range(range_: Range, inside: tuple[float, ...], outside: tuple[float, ...]) -> None:
    assert [value for value in inside if value not in range_] == []
    assert [value for value in outside if value in range_] == []


def test_a_length_may_be_none_or_a_share_where_its_field_says_so() -> None:
    assert Length(least=0).problem("0") is None
    assert Length().problem("0ep") == ' "0ep" is no step; use "1" or more'
    assert Length().problem("0.001ep") is None  # of enough data that is a step
    assert Length().problem("50%") is None
    assert "cannot be a percentage" in str(Length(of_run=False).problem("50%"))
    assert "more than the 2,147,483,647 steps" in str(Length().problem("3000M"))


def test_a_range_is_shown_as_it_is_written() -> None:
    assert repr(Range(above=0, most=1)) == "Range(most=1, above=0)"
    assert repr(Range()) == "Range()"
