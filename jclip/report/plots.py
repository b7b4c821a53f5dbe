"""Curves as SVG: the same numbers give the same bytes, and no text in them is taken for markup or mathematics."""

import base64
import io
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import matplotlib
import matplotlib.style
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator

# Okabe and Ito's colours, which differ to the colour-blind too, the light ones last; markers and dashes differ as well.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#000000", "#e69f00", "#56b4e9")
MARKERS = "os^Dv*P"
DASHES = ("-", "--", "-.", ":")
POINTS = 500
MARKED_UP_TO = 40
_STYLE = {
    "svg.hashsalt": "jclip",
    "svg.fonttype": "none",  # text stays text: small, and in scripts that matplotlib's own font has not
    "text.parse_math": False,  # a dollar in a name is a dollar
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.35,
    "figure.facecolor": "none",
    "path.simplify": True,
}


@dataclass(frozen=True)
class Series:
    """A model's line."""

    model: int
    """Place of the model among the others, which gives it colour, marker and dashes, the same in all plots of a page."""
    x: Sequence[float]
    y: Sequence[float]
    deviation: Sequence[float] | None = None
    best: float | None = None
    """The x to point at."""
    level: bool = False
    """True: a number that others are compared with, drawn without marks."""


def line_plot(
    series: Sequence[Series],
    *,
    title: str,
    x_name: str,
    percent: bool = False,
    axis: Literal["linear", "log2", "log10"] = "linear",
) -> str:
    """A data URL of an SVG, 400 pixels wide, without a legend.

    Args:
        series: the lines. Points that are not finite are gaps. More than 1,000 points become means of as many neighbours each.
        title: above the plot.
        x_name: below it.
        percent: y is a fraction.
        axis: of x; linear all the same where an x is not positive. "log2" has its ticks at the points and nowhere else.
    """
    with _style():
        figure = Figure(figsize=(4.15, 2.75), dpi=96, layout="constrained")
        axes = figure.subplots()
        few = all(len(one.x) <= MARKED_UP_TO for one in series)
        for one in map(_thinned, series):
            _draw(axes, one, 100.0 if percent else 1.0, MARKERS[one.model % len(MARKERS)] if few and not one.level else "")
        marked = sorted({x for one in series for x in one.x if math.isfinite(x)})
        if axis != "linear" and marked and marked[0] > 0:
            axes.set_xscale("log", base=2 if axis == "log2" else 10)
        if axis == "log2":
            axes.set_xticks(marked)
        # The formatters of logarithmic axes write mathematics, which is off.
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: _tick(x)))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel(_clipped(x_name, 60))
        axes.set_title(_clipped(title + (" (%)" if percent else ""), 58))
        return _data_url(figure)


def histogram(parts: Mapping[str, Sequence[float]], *, title: str, x_name: str, bins: int = 60) -> str:
    """A data URL of an SVG, 400 pixels wide: numbers by value, those of the parts on top of each other, with a legend.

    Args:
        parts: finite numbers by name, at least one in all.
        title: above the plot.
        x_name: below it.
        bins: bars at most; they span all numbers.
    """
    with _style():
        figure = Figure(figsize=(4.15, 2.75), dpi=96, layout="constrained")
        axes = figure.subplots()
        axes.hist(list(parts.values()), bins=bins, stacked=True, label=list(parts), color=COLORS[: len(parts)])
        axes.set_xlabel(_clipped(x_name, 60))
        axes.set_title(_clipped(title, 58))
        axes.legend(frameon=False)
        return _data_url(figure)


def _draw(axes: Any, one: Series, factor: float, marker: str) -> None:
    color = COLORS[one.model % len(COLORS)]
    look = {
        "color": color,
        "linestyle": DASHES[one.model % len(DASHES)],
        "marker": marker,
        "markersize": 4.5,
        "linewidth": 1.6,
    }
    y = [factor * value for value in one.y]
    bars = None if one.deviation is None else [factor * value for value in one.deviation]
    axes.errorbar(one.x, y, yerr=bars, capsize=3, elinewidth=1, **look)
    if one.best is not None and one.best in one.x:
        best = list(one.x).index(one.best)
        axes.plot(one.x[best], y[best], "o", markersize=11, fillstyle="none", markeredgewidth=1.6, color=color)


def _tick(x: float) -> str:
    """0.01, 1, 1,500; far powers of ten as 10⁻⁶."""
    exponent = round(math.log10(x)) if x > 0 else 0
    if not -2 <= exponent <= 4 and math.isclose(x, 10.0**exponent):
        return "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"{x:,.12g}"


def _thinned(one: Series) -> Series:
    """The series with at most twice `POINTS` points, each the mean of as many neighbours."""
    group = len(one.x) // POINTS
    if group < 2 or one.deviation is not None:
        return one

    def means(values: Sequence[float]) -> list[float]:
        parts = [values[i : i + group] for i in range(0, len(values), group)]
        return [math.fsum(part) / len(part) if all(map(math.isfinite, part)) else math.nan for part in parts]

    return Series(one.model, means(one.x), means(one.y), best=one.best)


@contextmanager
def _style() -> Iterator[None]:
    """matplotlib as it comes, whatever the user's own settings are, and ours."""
    with matplotlib.style.context(["default", _STYLE]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # the browser has it
        yield


def _data_url(figure: Figure) -> str:
    written = io.BytesIO()
    figure.savefig(written, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = written.getvalue()
    return "data:image/svg+xml;base64," + base64.b64encode(svg[svg.index(b"<svg") :]).decode()


def _clipped(text: str, length: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 1] + "…"
