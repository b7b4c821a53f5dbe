"""Numbers as a page shows them, and what their names say: a fraction or not, and whether more is better."""

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from markupsafe import Markup

LESS_IS_BETTER = frozenset({"rank", "loss", "error", "perplexity"})
_COUNTS = frozenset({"examples", "classes", "images", "captions", "texts", "broken"})
_SETTINGS = frozenset({"l2", "lambda", "strength", "scale", "bias", "seconds", "iterations", "lr", "norm", "temperature"})
_COMPARISONS = frozenset({"difference", "deviation", "converged", "chance"})
NO_QUALITY = _COUNTS | _SETTINGS | _COMPARISONS
_NO_FRACTION = _COUNTS | _SETTINGS | (LESS_IS_BETTER - {"error"})
SHADES = 20


class Table(NamedTuple):
    """Rows of text and of numbers, which `number` has made."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def numeric(self, column: int) -> bool:
        """True: the column is set flush right."""
        return all(isinstance(row[column], Markup) for row in self.rows)


def words(name: str) -> frozenset[str]:
    """The words of the last part of a metric's name."""
    return frozenset(re.split(r"[\W_]+", name.rpartition("/")[2].lower()))


def better(name: str) -> int:
    """1 if more is better, -1 if less is, 0 if neither."""
    if words(name) & NO_QUALITY:
        return 0
    return -1 if words(name) & LESS_IS_BETTER else 1


def is_fraction(name: str, values: Iterable[Any]) -> bool:
    """True where values are shown in percent: numbers between -1 and 1, and not of a name that has another unit."""
    finite = [value for value in values if is_number(value) and math.isfinite(value)]
    return bool(finite) and not words(name) & _NO_FRACTION and all(abs(value) <= 1 for value in finite)


def is_difference(name: str) -> bool:
    """True where values of this name are shown with their sign."""
    return bool(words(name) & {"difference", "effective"})


def is_number(value: Any) -> bool:
    """True for an int or a float; a bool is neither."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def number(value: float | None, fraction: bool = False, signed: bool = False) -> Markup:
    """A number for reading, which carries its exact value: `<data value="0.51234">51.2%</data>`; "-" if there is none."""
    if value is None or not math.isfinite(value):
        return Markup('<span class="none">–</span>')
    sign = "+" if signed else ""
    if fraction:
        text = f"{100 * value:{sign}.1f}%"
    elif isinstance(value, int) or (abs(value) >= 1000 and value == round(value)):
        text = f"{round(value):{sign},}"
    else:
        text = f"{value:{sign},.0f}" if abs(value) >= 1000 else f"{value:{sign}.4g}"
    return Markup('<data value="{}">{}</data>').format(repr(value), text.replace("-", "−"))


def generic_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Table:
    """A table whose columns are text, or numbers in percent, or other numbers; differences have a sign."""
    fractions = [
        is_fraction(name, column) and not all(isinstance(value, int) for value in column if is_number(value))
        for name, column in zip(columns, [[row[j] for row in rows] for j in range(len(columns))], strict=True)
    ]
    signed = [is_difference(name) for name in columns]

    def cell(value: Any, j: int) -> str:
        if value is None or is_number(value):
            return number(value, fractions[j], signed[j])
        return value if isinstance(value, str) else repr(value)

    return Table(columns, [[cell(value, j) for j, value in enumerate(row)] for row in rows])


def shade(value: float, low: float, high: float) -> int:
    """0 to `SHADES`: which colour a value between two others has."""
    if not math.isfinite(value) or high <= low:
        return 0
    return round(SHADES * min(max((value - low) / (high - low), 0.0), 1.0))


def shade_rules() -> str:
    """The CSS of the colours: white to dark blue, light text on the dark ones (contrast at least 4.5 to 1)."""
    stops = ((255, 255, 255), (158, 202, 225), (49, 130, 189), (8, 48, 107))

    def color(level: int) -> tuple[int, ...]:
        at = level / SHADES * (len(stops) - 1)
        left = min(int(at), len(stops) - 2)
        return tuple(round(a + (b - a) * (at - left)) for a, b in zip(stops[left], stops[left + 1], strict=True))

    rules = []
    for level in range(SHADES + 1):
        text = "#fff" if _luminance(color(level)) < 0.183 else "#111"
        rules.append(f".s{level}{{background:rgb{color(level)};color:{text}}}".replace(", ", ","))
    return "\n".join(rules)


def _luminance(color: Sequence[int]) -> float:
    """Relative luminance, WCAG 2.2."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (value / 255 for value in color)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
