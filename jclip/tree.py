"""Parameter paths, and the one mechanism that gives every parameter a value by rule."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from jclip.config import ConfigError

T = TypeVar("T")


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one dict from paths such as "image/blocks/attn/q/kernel" to leaves."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        path = f"{prefix}{name}"
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{path}/"))
        else:
            flat[path] = value
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = value
    return tree


def merge(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Any]:
    """One tree of the leaves of two that have none in common."""
    return unflatten({**flatten(a), **flatten(b)})


def match_rule(path: str, rules: Sequence[tuple[str, T]]) -> T:
    """The value of the first rule whose regex matches the whole path of a leaf.

    Raises:
        ConfigError: there is none.
    """
    for pattern, value in rules:
        if re.fullmatch(pattern, path):
            return value
    raise ConfigError(f'config: no rule covers parameter {path}; add a last rule (".*", ...) or one for it. Rules: {rules}')


def match_rules(tree: Mapping[str, Any], rules: Sequence[tuple[str, T]]) -> dict[str, Any]:
    """The same tree with each leaf replaced by the value of the first rule that matches its path; raises as `match_rule`."""
    return unflatten({path: match_rule(path, rules) for path in flatten(tree)})


def require_used(tree: Mapping[str, Any], rules: Sequence[tuple[str, Any]], at: str) -> None:
    """Every rule decides on a parameter; only a last rule ".*" may find nothing left. `at` is where they stand, for the message.

    Raises:
        ConfigError: a regex matches no path, which is misspelt most likely, or stands behind others that match all of its paths.
    """
    paths = list(flatten(tree))
    patterns = [re.compile(pattern) for pattern, _ in rules]
    deciding = {next((i for i, pattern in enumerate(patterns) if pattern.fullmatch(path)), None) for path in paths}
    for i, pattern in enumerate(patterns):
        if i in deciding or (i == len(patterns) - 1 and pattern.pattern == ".*"):
            continue
        if any(pattern.fullmatch(path) for path in paths):
            why = "decides on nothing: earlier rules match all that it does; put it before them, or leave it out"
        else:
            why = f"matches no parameter; paths are like {paths[0]}"
        raise ConfigError(f"config: {at}: {pattern.pattern!r} {why}")
