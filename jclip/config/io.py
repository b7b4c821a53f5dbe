"""Configurations as JSON, there and back."""

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from jclip.config.errors import ConfigError
from jclip.config.history import FORMAT, stored_name, upgrade
from jclip.config.kinds import is_open, kinds_of, require_one
from jclip.config.ranges import shown
from jclip.config.schema import Config

T = TypeVar("T")


def to_json(config: Any) -> Any:
    """A configuration as plain dicts, lists and numbers; dataclasses carry their name as "type"; see `stored_name`."""
    if dataclasses.is_dataclass(config):
        fields = {f.name: to_json(getattr(config, f.name)) for f in dataclasses.fields(config)}
        return {"type": stored_name(type(config)), **fields}
    if isinstance(config, Mapping):
        return {key: to_json(value) for key, value in config.items()}
    if isinstance(config, (tuple, list)):
        return [to_json(value) for value in config]
    return config


def to_saved(config: Any) -> dict[str, Any]:
    """A configuration as a file keeps it: `to_json` with its format."""
    return {"format": FORMAT, **to_json(config)}


def differences(old: Any, new: Any, at: str = "") -> list[str]:
    """Differences between two configurations, such as "optim.lr: 0.001 -> 0.0003"."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = [*old, *(key for key in new if key not in old)]
        pairs = [(f"{at}.{key}".lstrip("."), old.get(key), new.get(key)) for key in keys]
    elif dataclasses.is_dataclass(old) and type(old) is type(new):
        names = [f.name for f in dataclasses.fields(old)]
        pairs = [(f"{at}.{name}".lstrip("."), getattr(old, name), getattr(new, name)) for name in names]
    else:
        return [] if old == new else [f"{at}: {old!r} -> {new!r}"]
    return [change for path, a, b in pairs for change in differences(a, b, path)]


def from_json(data: Any, cls: type[T] = Config, at: str = "config") -> T:  # type: ignore[assignment]
    """The inverse of `to_json` and of `to_saved`; also of what an older jclip has saved, see `jclip.config.history`.

    Raises:
        ConfigError: a key is unknown or missing, or a value has the wrong type; the message says where.
    """
    config: T = _parse(upgrade(data, at), cls, at)
    return config


def _parse(data: Any, hint: Any, at: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if is_open(hint):
        require_one(hint, str(data.get("type")) if isinstance(data, Mapping) else "")
        return _parse_kind(data, kinds_of(hint), at)
    if dataclasses.is_dataclass(hint):
        return _parse_dataclass(data, hint, at)
    if origin in (typing.Union, types.UnionType):
        return _parse_union(data, args, at)
    if origin is Literal:
        if data not in args:
            raise ConfigError(f"{at}: {data!r} is not allowed; use one of {', '.join(map(repr, args))}")
        return data
    if origin is tuple and isinstance(data, (list, tuple)):
        hints = [args[0]] * len(data) if args[-1] is Ellipsis else list(args)
        if len(hints) != len(data):
            raise ConfigError(f"{at}: {len(data)} values where {len(hints)} belong")
        return tuple(_parse(x, h, f"{at}[{i}]") for i, (x, h) in enumerate(zip(data, hints, strict=True)))
    if origin in (dict, Mapping) and isinstance(data, Mapping):
        return {key: _parse(value, args[1], f"{at}.{key}") for key, value in data.items()}
    if hint is float and type(data) is int and abs(data) < 2**64:
        return float(data)
    if isinstance(hint, type) and type(data) is hint:
        return data
    raise ConfigError(f"{at}: {shown(data)} is not a {getattr(hint, '__name__', hint)}")


def _parse_dataclass(data: Any, cls: Any, at: str) -> Any:
    if not isinstance(data, Mapping):
        raise ConfigError(f"{at}: {data!r} is not a {cls.__name__}")
    if data.get("type", stored_name(cls)) != stored_name(cls):
        raise ConfigError(f"{at}: type {data['type']!r} is unknown; use {stored_name(cls)}")
    known = typing.get_type_hints(cls)
    hints = {field.name: known[field.name] for field in dataclasses.fields(cls)}  # not what bases promise of computed properties
    values = {key: value for key, value in data.items() if key != "type"}
    for key in values:
        if key not in hints:
            close = difflib.get_close_matches(key, hints, n=1)
            meant = f"; did you mean {close[0]!r}?" if close else ";"
            raise ConfigError(f"{at}: unknown key {key!r}{meant} allowed: {', '.join(hints)}")
    missing = [f.name for f in dataclasses.fields(cls) if f.name not in values]
    if missing:
        raise ConfigError(f"{at}: missing {', '.join(missing)}")
    return cls(**{key: _parse(value, hints[key], f"{at}.{key}") for key, value in values.items()})


def _parse_union(data: Any, members: tuple[Any, ...], at: str) -> Any:
    if data is None and types.NoneType in members:
        return None
    members = tuple(member for member in members if member is not types.NoneType)
    if len(members) == 1:
        return _parse(data, members[0], at)
    if not all(dataclasses.is_dataclass(member) for member in members):
        return _parse_first(data, members, at)
    return _parse_kind(data, {stored_name(member): member for member in members}, at)


def _parse_kind(data: Any, by_name: Mapping[str, Any], at: str) -> Any:
    """One of several dataclasses, told apart by name."""
    name = data.get("type") if isinstance(data, Mapping) else None
    if not isinstance(name, str) or name not in by_name:
        raise ConfigError(f"{at}: type {name!r} is unknown; use one of {', '.join(by_name)}, or import first what defines it")
    return _parse_dataclass(data, by_name[name], at)


def _parse_first(data: Any, members: tuple[Any, ...], at: str) -> Any:
    """The data as the first member that fits."""
    problems = []
    for member in members:
        try:
            return _parse(data, member, at)
        except ConfigError as problem:
            problems.append(str(problem).removeprefix(f"{at}: "))
    raise ConfigError(f"{at}: {'; '.join(problems)}")
