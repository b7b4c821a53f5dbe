"""The page of `jclip adapt`: accuracy over shots, what choosing on the test would add, cost, words near learned contexts."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jclip.config import ConfigError
from jclip.files import read_whole

FORMAT = "jclip adapt 2"
PAGE = "page.html"
"""Name of the page, in the folder of an adaptation."""
_OF_ROWS = {"settings", "files", "method", "shots", "seed", "test", "val", "seconds", "parameters", "choice", "details"}
_PARTS = {"model", "protocol", "data", "classes", "zero_shot", "devices"}
WORDS_OF = 3
"""Contexts whose words are shown: those of the last seeds of most shots."""

Content = Mapping[str, Any]
"""Content of results.json, see `adaptation.AdaptationFile`."""


def is_adaptation(path: Path) -> bool:
    """True for results.json of `jclip adapt`, whether it is whole or not."""
    try:
        return str(json.loads(read_whole(path))["format"]).startswith("jclip adapt ")
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def read_adaptation(path: str | Path) -> dict[str, Any]:
    """The content of a results.json of `jclip adapt`.

    Raises:
        ConfigError: it is none.
    """
    try:
        content: dict[str, Any] = json.loads(read_whole(path))
        if content["format"] != FORMAT:
            raise ValueError(f"its format is {content['format']!r}, and this jclip reads {FORMAT!r}")
        rows = content["cells"].values()
        if not all(isinstance(row, dict) and row.keys() >= _OF_ROWS for row in rows):
            raise ValueError("a row is damaged")
        if not content.keys() >= _PARTS:
            raise ValueError("a part is missing")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(
            f"adapt: {path} is no file of results, or damaged ({error}); give another file, or `jclip adapt` another --out"
        ) from None
    return content


def page_of(path: Path) -> str:
    """The page of a results.json of `jclip adapt`.

    Raises:
        ConfigError: it is none, or damaged.
    """
    content = read_adaptation(path)
    if not content["cells"]:
        raise ConfigError(f"report: {path} has no finished cell yet; wait for `jclip adapt`, or start the same command again")
    try:
        return render(content)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise ConfigError(
            f"report: {path} is damaged ({type(error).__name__}: {error}); make it again with `jclip adapt`"
        ) from None


def render(content: Content) -> str:
    """The page as text; the same content gives the same bytes.

    Raises:
        ImportError: the extra of reports is missing.
    """
    from jclip.report.plots import COLORS, MARKERS
    from jclip.report.template import fill

    methods = list(dict.fromkeys(row["method"] for row in content["cells"].values()))
    shots = sorted({row["shots"] for row in content["cells"].values()})
    shapes = dict(zip("os^Dv*P", "●■▲◆▼★✚", strict=True))
    legend = [
        {"name": name, "color": COLORS[i % len(COLORS)], "marker": shapes[MARKERS[i % len(MARKERS)]] if i else "\u2003"}
        for i, name in enumerate(["zero-shot", *methods])
    ]
    return fill(
        "adapt.html",
        model=content["model"]["model"],
        facts=_facts(content),
        legend=legend,
        plot=_plot(content, methods, shots),
        columns=shots,
        zero_shot=f"{100 * content['zero_shot']['test']:.2f}",
        accuracy=[{"method": m, "cells": [_accuracy(content, m, k) for k in shots]} for m in methods],
        leaky=list(_leaky(content, methods, shots)),
        cost=[_cost(content, m, shots) for m in methods],
        machine=content["devices"],
        curves=list(_curves(content, shots)),
        words=list(_words(content, shots)),
        choices=[_choice(name, row) for name, row in content["cells"].items()],
    )


def _rows(content: Content, method: str, shots: int) -> list[Mapping[str, Any]]:
    return [row for row in content["cells"].values() if (row["method"], row["shots"]) == (method, shots)]


def _facts(content: Content) -> list[tuple[str, str]]:
    protocol, zero = content["protocol"], content["zero_shot"]
    of = {role: protocol[role] for role in ("source", "val", "test")}
    few = "of each class min(shots, 4)" if protocol["val_shots"] == "few" else "all of it"
    return [
        ("shots from", of["source"]),
        ("choices on", f"{of['val']}, {few}"),
        ("test", f"{of['test']}, {int(zero['examples']):,} examples, {len(content['classes']):,} classes"),
    ]


def _accuracy(content: Content, method: str, shots: int) -> str:
    tests = [100 * row["test"] for row in _rows(content, method, shots)]
    return f"{np.mean(tests):.2f} ± {np.std(tests):.2f}" if tests else ""


def _plot(content: Content, methods: Sequence[str], shots: Sequence[int]) -> str:
    from jclip.report.plots import Series, line_plot

    series = [Series(0, shots, [content["zero_shot"]["test"]] * len(shots), level=True)]
    for i, method in enumerate(methods, 1):
        found = {k: [row["test"] for row in rows] for k in shots if (rows := _rows(content, method, k))}
        mean, deviation = ([float(f(tests)) for tests in found.values()] for f in (np.mean, np.std))
        series.append(Series(i, list(found), mean, deviation))
    return line_plot(series, title="accuracy", x_name="examples a class", percent=True, axis="log2")


def _leaky(content: Content, methods: Sequence[str], shots: Sequence[int]) -> Iterator[list[str]]:
    for method in methods:
        for k in shots:
            rows = [row for row in _rows(content, method, k) if "test_selected_on_test" in row]
            if rows:
                honest, leaky = (100 * np.mean([row[name] for row in rows]) for name in ("test", "test_selected_on_test"))
                yield [method, str(k), f"{honest:.2f}", f"{leaky:.2f}", f"{leaky - honest:+.2f}"]


def _cost(content: Content, method: str, shots: Sequence[int]) -> dict[str, Any]:
    seconds = [[row["seconds"] for row in _rows(content, method, k)] for k in shots]
    numbers = sorted({row["parameters"] for row in content["cells"].values() if row["method"] == method})
    parameters = f"{numbers[0]:,}" if len(numbers) == 1 else f"{numbers[0]:,} to {numbers[-1]:,}"
    return {"method": method, "parameters": parameters, "cells": [f"{np.mean(s):.1f}" if s else "" for s in seconds]}


def _curves(content: Content, shots: Sequence[int]) -> Iterator[dict[str, str]]:
    """The curves that methods report of themselves, of the most shots, a line for each seed."""
    from jclip.report.plots import Series, line_plot

    for method in dict.fromkeys(row["method"] for row in content["cells"].values()):
        curves = [row["details"]["curve"] for row in _rows(content, method, shots[-1]) if "curve" in row["details"]]
        if curves:
            series = [Series(i, curve["x"], curve["y"]) for i, curve in enumerate(curves)]
            title = f"{method}, {shots[-1]} shots: accuracy on validation"
            url = line_plot(series, title=title, x_name=curves[0]["x_name"], percent=True)
            yield {"url": url, "alt": f"{title} over {curves[0]['x_name']}, a line for each seed"}


def _words(content: Content, shots: Sequence[int]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Rows of each table: a context and the words near it, or a class and the word nearest to each of its own contexts."""
    found = [(name, row["details"]) for name, row in content["cells"].items() if row["shots"] == shots[-1]]
    with_words = [(name, details) for name, details in found if {"words", "class_words"} & details.keys()]
    for name, details in with_words[-WORDS_OF:]:
        yield (
            name,
            [
                *({"place": str(i), "words": near} for i, near in enumerate(details.get("words", ()), 1)),
                *({"place": c, "words": [near[0] for near in own]} for c, own in details.get("class_words", {}).items()),
            ],
        )


def _choice(name: str, row: Mapping[str, Any]) -> dict[str, str]:
    parts = [f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in row["choice"].items()]
    return {"cell": name, "val": f"{100 * row['val']:.2f}", "test": f"{100 * row['test']:.2f}", "choice": ", ".join(parts)}
