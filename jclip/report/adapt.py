"""The page of `jclip adapt`: accuracy over shots, what choosing on the test would add, cost, words near learned contexts."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

WORDS_OF = 3
"""Contexts whose words are shown: those of the last seeds of most shots."""

Content = Mapping[str, Any]
"""Content of results.json, see `adaptation.Record`."""


def render(content: Content) -> str:
    """The page as text; the same content gives the same bytes.

    Raises:
        ImportError: the extra of reports is missing.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    from jclip.report.plots import COLORS, MARKERS

    here = Path(__file__).parent
    environment = Environment(loader=FileSystemLoader(here), autoescape=True, undefined=StrictUndefined)
    css = Markup((here / "page.css").read_text(encoding="utf-8"))  # ours, not a file's
    methods = list(dict.fromkeys(row["method"] for row in content["cells"].values()))
    shots = sorted({row["shots"] for row in content["cells"].values()})
    shapes = dict(zip("os^Dv*P", "●■▲◆▼★✚", strict=True))
    legend = [
        {"name": name, "color": COLORS[i % len(COLORS)], "marker": shapes[MARKERS[i % len(MARKERS)]]}
        for i, name in enumerate(["zero-shot", *methods])
    ]
    html = environment.get_template("adapt.html").render(
        css=css,
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
    return html.lstrip() + "\n"


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

    series = [Series(0, shots, [content["zero_shot"]["test"]] * len(shots))]
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


def _curves(content: Content, shots: Sequence[int]) -> Iterator[str]:
    """The curves that methods report of themselves, of the most shots, a line for each seed."""
    from jclip.report.plots import Series, line_plot

    for method in dict.fromkeys(row["method"] for row in content["cells"].values()):
        curves = [row["details"]["curve"] for row in _rows(content, method, shots[-1]) if "curve" in row["details"]]
        if curves:
            series = [Series(i, curve["x"], curve["y"]) for i, curve in enumerate(curves)]
            title = f"{method}, {shots[-1]} shots: accuracy on validation"
            yield line_plot(series, title=title, x_name=curves[0]["x_name"], percent=True)


def _words(content: Content, shots: Sequence[int]) -> Iterator[tuple[str, list[dict[str, str]]]]:
    found = [(name, row) for name, row in content["cells"].items() if row["shots"] == shots[-1] and "words" in row["details"]]
    for name, row in found[-WORDS_OF:]:
        words = row["details"]["words"]
        rows = [{"place": str(i + 1), "words": ", ".join(f"{w} ({d:.2f})" for w, d in near)} for i, near in enumerate(words)]
        yield name, rows


def _choice(name: str, row: Mapping[str, Any]) -> dict[str, str]:
    parts = [f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in row["choice"].items()]
    return {"cell": name, "val": f"{100 * row['val']:.2f}", "test": f"{100 * row['test']:.2f}", "choice": ", ".join(parts)}
