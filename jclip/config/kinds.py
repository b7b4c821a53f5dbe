"""Open kinds: bases such as that of all evaluations, whose dataclasses are known by name, those of other packages too."""

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar

from jclip.config.errors import ConfigError


class Kind:
    """Base of the bases. A field of such a base takes every dataclass below it, as soon as that is defined."""

    if TYPE_CHECKING:  # all below the bases are dataclasses
        __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]


def is_open(hint: Any) -> bool:
    """True for such a base."""
    return isinstance(hint, type) and Kind in hint.__bases__


def kinds_of(base: type) -> dict[str, type]:
    """The dataclasses of a base by name, of several with one name the last."""
    return {kind.__name__: kind for kind in _below(base) if dataclasses.is_dataclass(kind)}


def require_one(base: type, name: str) -> None:
    """Raises ConfigError where two modules define a dataclass of that name, the name by which files distinguish them."""
    modules = sorted({kind.__module__ for kind in _below(base) if kind.__name__ == name})
    if len(modules) > 1:
        raise ConfigError(f"config: {' and '.join(modules)} both have a {name}; name one otherwise")


def _below(base: type) -> Iterator[type]:
    below: list[type] = base.__subclasses__()
    for kind in below:
        yield kind
        yield from _below(kind)
