"""One guard for numbers: a field states its range beside its type, and one walk refuses every value outside of it."""

import dataclasses
import math
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from jclip.config.kinds import is_open, kinds_of

FLOAT32 = (2.0**-126, 3.4028235e38)
"""Smallest normal and largest finite float32: what is smaller is 0 on a device, what is larger infinite."""

INT32 = 2**31 - 1
"""Largest int32, in which devices count."""


@dataclass(frozen=True, repr=False)
class Range:
    """The numbers that a field allows, stated in its type: `lr: Annotated[float, Range(above=0, most=100)]`.

    Never allowed are NaN, infinities, and floats other than 0 that float32 cannot hold; ints are int32 where no end says more.
    """

    least: float | None = None
    """Smallest number allowed."""
    most: float | None = None
    """Largest number allowed."""
    above: float | None = None
    """End below all numbers allowed."""
    below: float | None = None
    """End above all numbers allowed."""

    def __contains__(self, value: float) -> bool:
        # Each comparison is one that NaN fails.
        return (
            self._is_held(value)
            and (self.least is None or value >= self.least)
            and (self.most is None or value <= self.most)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def _is_held(self, value: float) -> bool:
        """True where a device has such a number."""
        if isinstance(value, int):
            return abs(value) <= max(INT32, self.most or 0)
        return math.isfinite(value) and (value == 0 or FLOAT32[0] <= abs(value) <= FLOAT32[1])

    def __repr__(self) -> str:
        ends = ", ".join(f"{f.name}={end}" for f in dataclasses.fields(self) if (end := getattr(self, f.name)) is not None)
        return f"Range({ends})"

    def __str__(self) -> str:
        ends = (("at least", self.least), ("above", self.above), ("at most", self.most), ("below", self.below))
        return " and ".join(f"{words} {end:,}" for words, end in ends if end is not None) or "finite"

    def problem(self, value: float) -> str | None:
        """Problem of a value that is a number, or None."""
        return None if value in self else f" {shown(value)} must be {self}{self._limit(value)}"

    def _limit(self, value: float) -> str:
        """The end that no field states, of a number that a device does not have."""
        if isinstance(value, int):
            return f" and at most {INT32:,}" if value > INT32 and self.most is None else ""
        return " in float32" if math.isfinite(value) and not self._is_held(value) else ""


Size = Annotated[int, Range(least=1, most=2**20)]
"""Length of an axis of an array: a million is beyond any model, and a hundred thousand of them within an int64."""


def value_problems(config: Any, at: str = "") -> Iterator[str]:
    """Every value of a dataclass, and of those in it, that is not of its field's type or not in its range, with its dotted path.

    The metadata of an `Annotated` type, which has no parts, is asked for the `problem` of a value, as `Range` is.
    """
    hints = typing.get_type_hints(type(config), include_extras=True)
    for field in dataclasses.fields(config):
        yield from _problems(getattr(config, field.name), hints[field.name], f"{at}.{field.name}".lstrip("."))


def _problems(value: Any, hint: Any, at: str) -> Iterator[str]:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        if _is_of(value, args[0]):
            yield from (f"{at}{problem}" for extra in args[1:] if (problem := extra.problem(value)))
        else:
            yield f"{at} {shown(value)} must be {_words(hint)}"
    elif origin in (typing.Union, types.UnionType):
        yield from _union_problems(value, args, at)
    elif dataclasses.is_dataclass(value) and (type(value) is hint or (is_open(hint) and isinstance(value, hint))):
        yield from value_problems(value, at)
    elif origin is tuple and isinstance(value, (tuple, list)):
        hints = [args[0]] * len(value) if args[-1] is Ellipsis else list(args)
        if len(hints) != len(value):
            yield f"{at} {shown(value)} must be {len(hints)} values"
        for i, (inner, inner_hint) in enumerate(zip(value, hints, strict=False)):
            yield from _problems(inner, inner_hint, f"{at}[{i}]")
    elif origin is Mapping and isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _problems(key, args[0], f"{at}: the key")
            yield from _problems(inner, args[1], f"{at}.{key}")
    elif not _is_of(value, hint):
        yield f"{at} {shown(value)} must be {_words(hint)}"


def _union_problems(value: Any, members: tuple[Any, ...], at: str) -> Iterator[str]:
    by_member = [list(_problems(value, member, at)) for member in members]
    if not all(by_member):
        return
    for member, problems in zip(members, by_member, strict=True):
        # One of several dataclasses, or as many values as a tuple has: what is wrong is in it.
        if type(value) is member or (isinstance(value, (tuple, list)) and len(value) == _length(member)):
            yield from problems
            return
    yield f"{at} {shown(value)} must be {' or '.join(map(_words, members))}"


def _is_of(value: Any, hint: Any) -> bool:
    """True where a value is of a type without parts; an int is a float, and a bool is neither."""
    if typing.get_origin(hint) is Literal:
        return any(type(value) is type(choice) and value == choice for choice in typing.get_args(hint))
    if hint in (int, float):
        return isinstance(value, (int, hint)) and not isinstance(value, bool)
    return isinstance(hint, type) and isinstance(value, hint)


def _length(hint: Any) -> int | None:
    """Values of a tuple, where its type says how many."""
    args = typing.get_args(hint)
    return len(args) if typing.get_origin(hint) is tuple and Ellipsis not in args else None


def _words(hint: Any) -> str:
    """Values that a type allows, for messages."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return f"{_words(args[0])} {' and '.join(map(str, args[1:]))}" if isinstance(args[1], Range) else _words(args[0])
    if origin is Literal:
        return " or ".join(map(repr, args))
    if (length := _length(hint)) is not None:
        return f"{length} values"
    plain = {int: "a whole number", float: "a number", str: "a text", bool: "True or False", types.NoneType: "None"}
    if is_open(hint):
        return " or ".join(f"a {name}" for name in kinds_of(hint))
    return plain.get(hint) or ("a tuple" if origin is tuple else "a mapping" if origin is Mapping else f"a {hint.__name__}")


def shown(value: Any, most: int = 100) -> str:
    """A value as messages show it: in `most` characters at most."""
    if isinstance(value, int) and value.bit_length() > 3 * most:  # Python refuses to write out the largest
        return f"(a number of {value.bit_length():,} bits)"
    text = repr(value)
    return text if len(text) <= most else f"{text[: most - 4]} ..."
