"""Conditions: the small language in which a configuration says which examples are meant, by what their fields hold.

    json.width >= 256 and json.height >= 256
    score > 0.28 and not json.watermark
    words(text) > 3 and 2 < len(text) < 200
    label in (3, 5) or "cat" in lower(text)
    has(json.title) and max(json.width, json.height) <= 3 * min(json.width, json.height)
    field("clip-score") > 0.3
    number(width) >= 256                          of CSV files, in which all is text

Names are dotted paths of fields, a field of a field; `field("...")` names one that is no word. The words and signs are Python's:
and, or, not, in, < <= > >= == !=, + - * / // %, texts in quotes, numbers, True and False, lists in brackets; the functions are
those of FUNCTIONS. What stands beside `and`, `or` and `not` is true or false, never a number. Nothing else is in it: no condition
can do anything but compare.
"""

import ast
import math
import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce
from typing import Any

from jclip.config.errors import ConfigError

LONGEST = 10_000
"""Letters of a condition."""

SHOWN = 300
"""Letters of it that an error repeats."""

Get = Callable[[str], Any]
"""(dotted path) -> the value of an example's field. Raises LookupError where there is none."""

Step = Callable[[Get], Any]


class CannotSay(Exception):
    """A condition says nothing of an example: a field is missing, or is not what it is compared with."""


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "len": len,
    "words": lambda text: len(text.split()),
    "lower": lambda text: text.lower(),
    "min": min,
    "max": max,
    "abs": abs,
    "number": lambda text: float(text),
}
"""Functions of a condition, beside `has(path)`, which is whether a field is there, and `field("path")`."""

COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: lambda a, b: _alike(a, b) and a == b,
    ast.NotEq: lambda a, b: _alike(a, b) and a != b,
    ast.In: lambda part, whole: _is_in(part, whole),
    ast.NotIn: lambda part, whole: not _is_in(part, whole),
}
"""Comparisons. A text is never compared with a number: "3" of a CSV file is neither 3 nor another number, see `number`."""

ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}


@dataclass(frozen=True)
class Condition:
    """Meaning of a text, which `parse_condition` finds."""

    text: str
    paths: tuple[str, ...]
    """Fields that it names, in the order of the text."""
    _step: Step

    def __call__(self, get: Get) -> bool:
        """True where it holds for an example.

        Raises:
            CannotSay: a field that it comes to is missing, or no thing to be compared so.
        """
        try:
            return _truth(self.text, self._step(get))
        except LookupError as error:
            raise CannotSay(str(error.args[0]) if error.args else "a field is missing") from None
        except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
            raise CannotSay(f"where cannot be said of it: {error}") from None


@lru_cache(maxsize=256)
def parse_condition(text: str) -> Condition:
    """Meaning of a condition.

    Raises:
        ConfigError: it means nothing; the message says why, and which part of it.
    """
    if len(text) > LONGEST:
        raise ConfigError(f"condition {_short(text)!r} has {len(text):,} letters; at most {LONGEST:,}")
    try:
        tree = ast.parse(text.strip(), mode="eval").body
        paths = tuple(dict.fromkeys(_paths(text, tree)))
        step = _step(text, tree)
    except ConfigError:
        raise
    except SyntaxError as error:
        raise ConfigError(
            f"condition {_short(text)!r}: {error.msg} at character {error.offset or 1}; write such as "
            "'json.width >= 256 and score > 0.3'"
        ) from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise ConfigError(f"condition {_short(text)!r} cannot be read: {error}") from None
    if not paths:
        raise ConfigError(f"condition {_short(text)!r} names no field; write such as 'json.width >= 256'")
    return Condition(text, paths, step)


def _paths(text: str, node: ast.expr) -> Iterator[str]:
    """Paths of the fields of a part."""
    path = _path(text, node)
    if path is not None:
        yield path
        return
    if isinstance(node, ast.Call):
        for argument in node.args:
            yield from _paths(text, argument)
        return
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.expr):
            yield from _paths(text, child)


def _path(text: str, node: ast.expr) -> str | None:
    """The dotted path that a part is; None where it is another thing."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        before = _path(text, node.value)
        return None if before is None else f"{before}.{node.attr}"
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "field":
        if len(node.args) != 1 or not isinstance(node.args[0], ast.Constant) or not isinstance(node.args[0].value, str):
            raise _problem(text, node, 'write the path in quotes, as in field("clip-score")')
        return node.args[0].value
    return None


def _step(text: str, node: ast.expr) -> Step:
    """The function of a part: (get) -> its value."""
    if (path := _path(text, node)) is not None:
        return lambda get: _scalar(get(path))
    match node:
        case ast.Constant(value=bool() | int() | float() | str() as value):
            return lambda get: value
        case ast.Tuple(elts=parts) | ast.List(elts=parts) | ast.Set(elts=parts):
            steps = [_step(text, part) for part in parts]
            return lambda get: [step(get) for step in steps]
        case ast.BoolOp(op=op, values=parts):
            return _logic(isinstance(op, ast.And), [(_part(text, part), _step(text, part)) for part in parts])
        case ast.UnaryOp(op=ast.Not(), operand=part):
            step, what = _step(text, part), _part(text, part)
            return lambda get: not _truth(what, step(get))
        case ast.UnaryOp(op=ast.USub(), operand=part):
            step, what = _step(text, part), _part(text, part)
            return lambda get: -_number(what, step(get))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in ARITHMETIC:
            return _arithmetic(text, ARITHMETIC[type(op)], left, right)
        case ast.Compare(left=left, ops=ops, comparators=others):
            return _comparison([_step(text, part) for part in (left, *others)], [COMPARISONS.get(type(op)) for op in ops], text)
        case ast.Call(func=ast.Name(id=name), args=parts, keywords=[]):
            return _call(text, node, name, parts)
    raise _problem(text, node, "this is nothing that a condition has")


def _logic(all_of: bool, parts: Sequence[tuple[str, Step]]) -> Step:
    def decide(get: Get) -> bool:
        for what, step in parts:
            if _truth(what, step(get)) != all_of:
                return not all_of
        return all_of

    return decide


def _arithmetic(text: str, function: Callable[[Any, Any], Any], *sides: ast.expr) -> Step:
    parts = [(_part(text, side), _step(text, side)) for side in sides]
    return lambda get: reduce(function, [_number(what, step(get)) for what, step in parts])


def _comparison(steps: Sequence[Step], signs: Sequence[Callable[[Any, Any], Any] | None], text: str) -> Step:
    known = [sign for sign in signs if sign is not None]
    if len(known) != len(signs):
        raise ConfigError(f"condition {_short(text)!r}: `is` compares no values; write == or has(...)")

    def compare(get: Get) -> bool:
        left = steps[0](get)
        for sign, step in zip(known, steps[1:], strict=True):
            right = step(get)
            if not sign(left, right):
                return False
            left = right
        return True

    return compare


def _call(text: str, node: ast.Call, name: str, parts: Sequence[ast.expr]) -> Step:
    if name == "has":
        path = _path(text, parts[0]) if len(parts) == 1 else None
        if path is None:
            raise _problem(text, node, "has(...) asks for one field, as in has(json.title)")
        return lambda get: _is_there(get, path)
    if name not in FUNCTIONS:
        raise _problem(text, node, f"there is no function {name}; there are {', '.join([*FUNCTIONS, 'has', 'field'])}")
    least = 2 if name in ("min", "max") else 1
    if len(parts) < least or (least == 1 and len(parts) > 1) or any(isinstance(part, ast.Starred) for part in parts):
        raise _problem(text, node, f"{name} takes {'two values or more' if least == 2 else 'one value'}")
    function, steps = FUNCTIONS[name], [_step(text, part) for part in parts]
    return lambda get: function(*(step(get) for step in steps))


def _is_there(get: Get, path: str) -> bool:
    try:
        _scalar(get(path))
    except LookupError:
        return False
    return True


def _scalar(value: Any) -> Any:
    """A value as Python has it; null and NaN are a field that is missing."""
    value = value.item() if getattr(value, "ndim", None) == 0 else value
    if value is None or (isinstance(value, float) and math.isnan(value)):
        raise LookupError(f"a field is {'null' if value is None else 'NaN'}")
    return value


def _alike(a: Any, b: Any) -> bool:
    """True; raises TypeError for two values of which it means nothing that they differ."""
    both_bool = isinstance(a, bool), isinstance(b, bool)
    if all(both_bool) or (not any(both_bool) and any(isinstance(a, kind) and isinstance(b, kind) for kind in (str, int | float))):
        return True
    raise TypeError(f"{_shown(a)} is a {type(a).__name__}, and {_shown(b)} a {type(b).__name__}")


def _is_in(part: Any, whole: Any) -> bool:
    if isinstance(whole, str):
        return part in whole
    values = whole.tolist() if hasattr(whole, "tolist") else whole
    return any(_alike(part, value) and part == value for value in values)


def _shown(value: Any) -> str:
    return repr(value)[:40]


def _truth(what: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{what} is {str(value)[:40]!r}, neither true nor false; compare it with something")
    return value


def _number(what: str, value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{what} is no number: {str(value)[:40]!r}")
    return value


def _part(text: str, node: ast.expr) -> str:
    return ast.get_source_segment(text.strip(), node) or text


def _problem(text: str, node: ast.expr, what: str) -> ConfigError:
    return ConfigError(f"condition {_short(text)!r}, {_short(_part(text, node))!r}: {what}")


def _short(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."
