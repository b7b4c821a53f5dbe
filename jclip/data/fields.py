"""Values of an example, as field expressions name them: fields, one of several alternatives, texts with fields in them."""

import itertools
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jclip.config import ConfigError
from jclip.config.fields import Alternative, Template, field_problems, parse_field
from jclip.data.source import BadExample, Example, Lacking, Source, Unreachable, decode_text, lookup


class Found(NamedTuple):
    """The part of an example that a field expression stands for."""

    value: Any
    """The value."""
    place: int
    """Index of the alternative that gave it."""
    name: str
    """Name of that alternative, without its weight; equal names of an example have equal values, but for what templates draw."""


def find(example: Example, field: str, classes: Sequence[str] = (), rng: np.random.Generator | None = None) -> Found:
    """The value that a field expression gives of an example.

    Of several alternatives one is drawn, by their weights, among those that are there: missing ones, None, NaN, blank texts and
    what cannot be read are left out. Without `rng` it is the first that is there. An expression that is but one path gives what
    `lookup` gives, and one without alternatives draws nothing, unless a field in a template has several texts.

    Args:
        example: of a source.
        field: the expression; see `jclip.config.fields`.
        classes: names of the source's labels, which {label} in a template stands for.
        rng: of the draw; one call of it, whatever is there.

    Raises:
        Lacking: the example has nothing of it.
        BadExample: what it has cannot be used.
        ConfigError: it is no expression.
    """
    expression = parse_field(field)
    if expression.is_path:
        return Found(lookup(example, field), 0, field)
    if (whole := _whole(example, field)) is not None:
        return Found(whole, 0, field)
    problems = []
    for place in _order([one.weight for one in expression.alternatives], rng):
        alternative = expression.alternatives[place]
        try:
            return Found(_value(example, alternative, classes, rng), place, str(alternative.value))
        except BadExample as problem:
            problems.append(problem)
    raise _kind_of(problems)("; ".join(map(str, problems)))


def there(example: Example, field: str, classes: Sequence[str] = ()) -> list[bool]:
    """The alternatives of a field expression that are there in an example: True for each that is.

    Raises:
        ConfigError: it is no expression.
    """
    return [_is_there(example, alternative, classes) for alternative in parse_field(field).alternatives]


def check_fields(fields: Mapping[str, str], at: str) -> None:
    """Raises ConfigError where a field is no expression, before the first example is read."""
    for problem in field_problems(" fields", fields):
        raise ConfigError(f"{at}:{problem}")


def class_names(source: Source) -> tuple[str, ...]:
    """The names of a source's labels; () of an object that says nothing of them, whose labels nothing asks for."""
    return tuple(getattr(source, "classes", ()))


def is_blank(value: Any) -> bool:
    """True where a value says nothing: None, NaN, a blank text, or several of which none says more."""
    if isinstance(value, str | bytes):
        return not value or value.isspace()
    if isinstance(value, tuple | list):
        return all(map(is_blank, value))
    return value is None or (isinstance(value, float | np.floating) and bool(np.isnan(value)))


def _order(weights: Sequence[float], rng: np.random.Generator | None) -> Iterator[int]:
    """Indices in the order in which they are tried: as they stand, or drawn one after the other by their weights.

    The first in such an order that is there is a draw among those that are there, by the same weights (Luce 1959): no other needs
    to be read to know which they are. All numbers are drawn at once, so that what follows does not depend on what is there.
    """
    if rng is None or len(weights) == 1:
        yield from range(len(weights))
        return
    left = list(range(len(weights)))
    for number in rng.random(len(weights)):
        marks = list(itertools.accumulate(weights[place] for place in left))
        yield left.pop(min(bisect_right(marks, number * marks[-1]), len(left) - 1))


def _kind_of(problems: Sequence[BadExample]) -> type[BadExample]:
    """Kind of the problem of an example where these are those of all alternatives."""
    if any(isinstance(problem, Unreachable) for problem in problems):
        return Unreachable
    return Lacking if all(isinstance(problem, Lacking) for problem in problems) else BadExample


def _is_there(example: Example, alternative: Alternative, classes: Sequence[str]) -> bool:
    try:
        _value(example, alternative, classes, None)
    except BadExample:
        return False
    return True


def _whole(example: Example, field: str) -> Any:
    """Value of a field whose own name or path is the whole of an expression; None where there is none."""
    try:
        return lookup(example, field)
    except BadExample:
        return None


def _value(example: Example, alternative: Alternative, classes: Sequence[str], rng: np.random.Generator | None) -> Any:
    if isinstance(alternative.value, Template):
        texts = [_text(_present(example, path), path, classes, rng) for path in alternative.value.paths]
        words = alternative.value.words
        return words[0] + "".join(text + word for text, word in zip(texts, words[1:], strict=True))
    return _present(example, alternative.value)


def _present(example: Example, path: str) -> Any:
    value = lookup(example, path)
    if is_blank(value):
        raise Lacking(f"{path} is {'null' if value is None else 'blank'}")
    return value


def _text(value: Any, path: str, classes: Sequence[str], rng: np.random.Generator | None) -> str:
    """A value as it stands in a template: of several texts one is drawn, or without `rng` the first; numbers in digits."""
    if path == "label" and not isinstance(value, str):
        return _class_name(value, classes)
    if isinstance(value, tuple | list):
        several = [one for one in value if not is_blank(one)]
        value = several[0 if rng is None else int(rng.integers(len(several)))]
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value[()]
    if isinstance(value, bytes):
        value = decode_text(value)
    if isinstance(value, bool | np.bool_) or not isinstance(value, str | int | float | np.integer | np.floating):
        raise BadExample(f"{path} is a {type(value).__name__}, which no template can say; a text or a number can stand there")
    return str(value).strip()


def _class_name(label: Any, classes: Sequence[str]) -> str:
    """Name of a label, as the source has it: zero-shot prompts take it as it is, too."""
    if isinstance(label, bool | np.bool_) or not isinstance(label, int | np.integer):
        several = "says of each class whether it is there" if isinstance(label, np.ndarray) else f"is a {type(label).__name__}"
        raise BadExample(f"label {several}, and {{label}} is the name of one class; use a field that holds a text")
    if not classes:
        raise BadExample(f"label is {label}, and the source names no classes; use a field that holds a text")
    if not 0 <= label < len(classes):
        raise BadExample(f"label is {label}, and the source names {len(classes)} classes")
    return classes[int(label)]
