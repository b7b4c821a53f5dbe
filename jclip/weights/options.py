"""Options in another library's configuration: each is read, has a value that is reproduced, means nothing, or is refused."""

from collections.abc import Callable, Collection, Container, Mapping
from typing import Any, NamedTuple

from jclip.weights.errors import WeightsError


class Values(NamedTuple):
    """Values that an option may have.

    Attributes:
        words: for messages.
        holds: whether a value is of that kind.
    """

    words: str
    holds: Callable[[Any], bool]


def _whole(value: Any, least: int = 1) -> bool:
    return type(value) is int and value >= least


def _number(value: Any) -> bool:
    return type(value) in (int, float)


COUNT = Values("a whole number from 1", _whole)
ID = Values("a whole number from 0", lambda value: _whole(value, 0))
NUMBER = Values("a number", _number)
TEXT = Values("a text", lambda value: isinstance(value, str))
FLAG = Values("true or false", lambda value: isinstance(value, bool))
SECTION = Values("an object", lambda value: isinstance(value, Mapping))
SQUARE = Values(
    "a whole number from 1, or a list of two equal ones",
    lambda value: _whole(value) or (isinstance(value, list) and len(value) == 2 and _whole(value[0]) and value[0] == value[1]),
)
SIDES = Values(
    "a whole number from 1, or a list of two: height and width",
    lambda value: _whole(value) or (isinstance(value, list) and len(value) == 2 and all(map(_whole, value))),
)
LAYERS = Values(
    "a whole number from 1, or a list of four",
    lambda value: _whole(value) or (isinstance(value, list) and len(value) == 4 and all(map(_whole, value))),
)
COUNTS = Values(
    "a list of whole numbers from 1", lambda value: isinstance(value, list) and bool(value) and all(map(_whole, value))
)
COLOUR = Values("a list of three numbers", lambda value: isinstance(value, list) and len(value) == 3 and all(map(_number, value)))


def one_of(values: Collection[Any]) -> Values:
    """One of some values."""
    return Values(
        f"one of {', '.join(map(str, values))}", lambda value: any(type(value) is type(v) and value == v for v in values)
    )


def optional(kind: Values) -> Values:
    """The kind of value, or null, which stands for the default."""
    return Values(f"{kind.words}, or null", lambda value: value is None or kind.holds(value))


def side(square: Any) -> int:
    """The side of a SQUARE."""
    return int(square[0] if isinstance(square, list) else square)


def check_options(
    at: str,
    given: Mapping[str, Any],
    read: Mapping[str, Values],
    neutral: Mapping[str, Collection[Any]],
    inert: Container[str] = (),
) -> None:
    """Raises WeightsError where an option is not reproduced.

    Args:
        at: what stands before a name in messages, such as "config.json: text_config.".
        given: the options of a section, by name.
        read: those that jclip's towers have.
        neutral: others that change what is computed, with the values that jclip reproduces.
        inert: options of which no feature depends.
    """
    for name, value in given.items():
        if name in read:
            if not read[name].holds(value):
                raise WeightsError(f"{at}{name} is {value!r}; it must be {read[name].words}")
        elif name in neutral:
            if value not in neutral[name]:
                known = " or ".join(map(repr, neutral[name]))
                raise WeightsError(
                    f"{at}{name} is {value!r}: only {known} is reproduced, and otherwise the features would be wrong"
                )
        elif name not in inert:
            raise WeightsError(f"{at}{name} is {value!r}: the option is unknown, and without it the features would be wrong")
