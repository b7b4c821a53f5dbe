"""The parts of an evaluation, made ready for the template: what is sorted, chosen and coloured is decided here."""

import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

from jclip.report.numbers import Table, better, generic_table, is_fraction, is_number, number, shade
from jclip.report.plots import Series, line_plot

CLASSES_SHOWN = 20
MATRIX_LIMIT = 40
MATRIX_SHOWN = 30
CONFUSIONS_SHOWN = 10
NUMBERS_UP_TO = 16
MISTAKES_SHOWN = 12
QUERIES_SHOWN = 8

Details = Mapping[str, Any]
Found = list[tuple[int, Details]]
"""(place of the model, its details), of the models that have the evaluation."""


class Plot(NamedTuple):
    """A picture of curves."""

    url: str
    alt: str


class Panel(NamedTuple):
    """A part of a section: what the template's macro `kind` draws."""

    kind: str
    model: int | None
    """Place of the model it is of; None: of all."""
    data: Any


class Section(NamedTuple):
    """A heading and what is below it."""

    kind: str
    title: str
    blocks: list[Panel]


def sections(found: Found, labels: Sequence[str]) -> list[Section]:
    """All that there is data for.

    Args:
        found: the details of each model, with "classes", the N of "rank k of N", where that is known.
        labels: the names of all models.
    """
    named: list[tuple[str, str, Callable[[Found, Sequence[str]], list[Panel]]]] = [
        ("table", "Table", _each("table", _table)),
        ("curve", "Curve", _curves),
        ("search", "Search", _searches),
        ("per_class", "Classes", _per_class),
        ("confusion", "Confusion matrix", _each("confusion", _confusion)),
        ("mistakes", "Worst mistakes", _each("mistakes", _mistakes)),
        ("heat_map", "Similarities of pictures and texts", _each("heat_map", _heat_map)),
        ("grids", "Retrieval", _grids),
        ("other", "Other details", _other),
    ]
    known = {"classes", *(kind for kind, _, _ in named)}
    made = []
    for kind, title, make in named:
        having = [(i, d) for i, d in found if d.get(kind) or (kind == "other" and d.keys() - known)]
        if having and (blocks := make(having, labels)):
            made.append(Section(kind, title, blocks))
    return made


def _each(kind: str, make: Callable[[Details], Any]) -> Callable[[Found, Sequence[str]], list[Panel]]:
    """A block a model."""
    return lambda found, labels: [Panel(kind, i, make(details)) for i, details in found]


def _table(details: Details) -> Table:
    return generic_table(details["table"]["columns"], details["table"]["rows"])


def _curves(found: Found, labels: Sequence[str]) -> list[Panel]:
    """Models whose curves have the same axes share a plot."""
    blocks = []
    for x_name, y_name in dict.fromkeys((d["curve"]["x_name"], d["curve"]["y_name"]) for _, d in found):
        curves = [(i, d["curve"]) for i, d in found if (d["curve"]["x_name"], d["curve"]["y_name"]) == (x_name, y_name)]
        percent = is_fraction(y_name, [y for _, c in curves for y in c["mean"]])
        series = [Series(i, c["x"], c["mean"], c["deviation"]) for i, c in curves]
        url = line_plot(series, title=y_name, x_name=x_name, percent=percent, axis="log2")
        xs = sorted({x for _, c in curves for x in c["x"]})
        rows = []
        for x in xs:
            row = [number(x)]
            for _, c in curves:
                at = c["x"].index(x) if x in c["x"] else None
                mean, deviation = (None, None) if at is None else (c["mean"][at], c["deviation"][at])
                row.append(number(mean, percent) + " ± " + number(deviation, percent) if at is not None else number(None))
            rows.append(row)
        table = Table([x_name, *(labels[i] for i, _ in curves)], rows)
        alt = f"{y_name} against {x_name}, mean and deviation; the table beside it has the numbers"
        blocks.append(
            Panel(
                "curve",
                None,
                {
                    "plot": Plot(url, alt),
                    "table": table,
                    "caption": f"{y_name}: mean ± deviation",
                    "models": [i for i, _ in curves],
                },
            )
        )
    return blocks


def _searches(found: Found, labels: Sequence[str]) -> list[Panel]:
    blocks = []
    for x_name in dict.fromkeys(d["search"]["x_name"] for _, d in found):
        searches = [(i, d["search"]) for i, d in found if d["search"]["x_name"] == x_name]
        percent = is_fraction("score", [y for _, s in searches for y in s["scores"]])
        series, rows = [], []
        for i, search in searches:
            points = sorted(zip(search["x"], search["scores"], strict=True))
            series.append(Series(i, [x for x, _ in points], [y for _, y in points], best=search["best"]))
            best = next((y for x, y in points if x == search["best"]), None)
            rows.append([labels[i], number(search["best"]), number(best, percent), number(len(points))])
        url = line_plot(series, title="validation score", x_name=x_name, percent=percent, axis="log10")
        table = Table(["model", f"best {x_name}", "its score", "tried"], rows)
        alt = f"validation score against {x_name}; the best is circled"
        tried = Table(
            ["model", x_name, "score"],
            [[labels[one.model], number(x), number(y, percent)] for one in series for x, y in zip(one.x, one.y, strict=True)],
        )
        caption = "The best is circled."
        blocks.append(
            Panel(
                "curve",
                None,
                {"plot": Plot(url, alt), "table": table, "caption": caption, "models": [i for i, _ in searches], "more": tried},
            )
        )
    return blocks


def _per_class(found: Found, labels: Sequence[str]) -> list[Panel]:
    """One table for all models, the worst class on average first."""
    classes: dict[tuple[str, int], dict[int, tuple[int, float]]] = {}
    for i, details in found:
        seen: dict[str, int] = {}
        for one in details["per_class"]:
            # ImageNet has two classes "crane": the second of a name is another one.
            seen[one["name"]] = seen.get(one["name"], 0) + 1
            classes.setdefault((one["name"], seen[one["name"]]), {})[i] = (one["examples"], one["recall"])
    rows = []
    for (name, again), of in classes.items():
        finite = [recall for _, recall in of.values() if math.isfinite(recall)]
        mean = math.fsum(finite) / len(finite) if finite else math.inf
        examples = "/".join(f"{n:,}" for n in dict.fromkeys(n for n, _ in of.values()))
        recalls = [of[i][1] if i in of else math.nan for i, _ in found]
        rows.append((mean, name + (f" ({again})" if again > 1 else ""), examples, recalls))
    rows.sort(key=lambda row: (row[0], row[1]))
    data = {"models": [i for i, _ in found], "rows": [row[1:] for row in rows]}
    return [Panel("per_class", None, {**data, "shown": CLASSES_SHOWN if len(rows) > CLASSES_SHOWN + 5 else len(rows)})]


def _confusion(details: Details) -> dict[str, Any]:
    names, matrix = details["confusion"]["names"], details["confusion"]["matrix"]
    totals = [math.fsum(row) for row in matrix]
    wrong = {(i, j): n for i, row in enumerate(matrix) for j, n in enumerate(row) if i != j and n}
    most = sorted(wrong.items(), key=lambda item: (-item[1], item[0]))
    chosen = list(range(len(names)))
    if len(names) > MATRIX_LIMIT:  # the classes of the most frequent confusions, both of each
        chosen = sorted(list(dict.fromkeys(i for pair, _ in most for i in pair))[:MATRIX_SHOWN])
    rows = []
    for i in (i for i in chosen if totals[i]):  # a class that no example has is a prediction alone
        cells = [(matrix[i][j], shade(matrix[i][j], 0, totals[i]), i == j) for j in chosen]
        rows.append((names[i], round(totals[i]), cells))
    pairs = [
        [names[i], names[j], number(round(n) if n == round(n) else n), number(n / totals[i], True)]
        for (i, j), n in most[:CONFUSIONS_SHOWN]
    ]
    table = Table(["truth", "prediction", "times", "of the truth's examples"], pairs)
    return {"names": [names[j] for j in chosen], "rows": rows, "all": len(names), "table": table, "pairs": len(wrong)}


def _mistakes(details: Details) -> dict[str, Any]:
    return {"all": details["mistakes"], "shown": MISTAKES_SHOWN, "classes": details.get("classes")}


def _heat_map(details: Details) -> dict[str, Any]:
    """Pictures are the columns, texts the rows: long texts are read as they are, from left to right."""
    images, texts, cosines = (details["heat_map"][field] for field in ("images", "texts", "cosines"))
    finite = [value for row in cosines for value in row if math.isfinite(value)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 0.0)
    best = [max(row, default=0.0) for row in cosines]
    rows = [
        (text, [(row[t], shade(row[t], low, high), row[t] == best[i]) for i, row in enumerate(cosines)])
        for t, text in enumerate(texts)
    ]
    return {"images": images, "rows": rows, "low": low, "high": high, "numbers": len(images) <= NUMBERS_UP_TO}


def _grids(found: Found, labels: Sequence[str]) -> list[Panel]:
    blocks = []
    for direction in ("text_to_image", "image_to_text"):
        for i, details in found:
            if rows := details["grids"].get(direction):
                heard = any("sound" in one for row in rows for one in (row, *row["answers"]))
                blocks.append(Panel(direction, i, {"all": rows, "shown": QUERIES_SHOWN, "heard": heard}))
    return blocks


def _other(found: Found, labels: Sequence[str]) -> list[Panel]:
    known = {"classes", "table", "curve", "search", "per_class", "confusion", "mistakes", "heat_map", "grids"}
    return [
        Panel("other", i, json.dumps({k: d[k] for k in sorted(d.keys() - known)}, indent=1, ensure_ascii=False)) for i, d in found
    ]


def training(
    runs: Sequence[Sequence[Mapping[str, Any]]], labels: Sequence[str], evaluations: Collection[str] = ()
) -> dict[str, Any] | None:
    """The loss and every evaluated metric against the step, by evaluation; of what is no curve the last value alone.

    Args:
        runs: of every model the lines of its metrics.jsonl.
        labels: the names of all models.
        evaluations: names of evaluations.
    """
    names = _curves_of(runs, evaluations)
    groups, rows = dict[str, list[Plot]](), []
    for name in names:
        series = []
        for i, lines in enumerate(runs):
            points = [(line["step"], float(line[name])) for line in lines if is_number(line.get(name))]
            if points:
                series.append(Series(i, [x for x, _ in points], [y for _, y in points]))
        counted = "/" in name and all(isinstance(line[name], int) for lines in runs for line in lines if name in line)
        percent = not counted and is_fraction(name, [y for one in series for y in one.y])
        if not counted and any(len(set(one.y)) > 1 for one in series):  # what never changes, or was measured once, is no curve
            url = line_plot(series, title=name, x_name="step", percent=percent)
            plot = Plot(url, f"{name} against the step; the last values are in the table below")
            groups.setdefault(_group(name, evaluations), []).append(plot)
        rows.append(
            [name, *(_last_and_best(one, percent, 0 if counted else better(name)) for one in _by_model(series, len(runs)))]
        )
    table = Table(["metric", *labels], rows)
    return {"groups": groups, "table": table, "models": [i for i, lines in enumerate(runs) if lines]} if rows else None


def _group(name: str, evaluations: Collection[str]) -> str:
    """The evaluation that a metric is of, by the longest of their names; else "loss", or what stands before its last "/"."""
    if name.rpartition("/")[2] == "loss":
        return "loss"
    of = [one for one in evaluations if name.startswith(f"{one}/")]
    return max(of, key=len, default=name.rpartition("/")[0])


def _by_model(series: Sequence[Series], models: int) -> list[Series | None]:
    return [next((one for one in series if one.model == i), None) for i in range(models)]


def _last_and_best(one: Series | None, percent: bool, sign: int) -> str:
    if one is None:
        return number(None)
    text = number(one.y[-1], percent)
    finite = [(y, -x) for x, y in zip(one.x, one.y, strict=True) if math.isfinite(y)]
    if not sign or not finite:
        return text
    best, step = max(finite) if sign > 0 else min((y, -x) for y, x in finite)
    return text + " (best " + number(best, percent) + f" at step {abs(step):,.0f})"


def _curves_of(runs: Sequence[Sequence[Mapping[str, Any]]], evaluations: Collection[str]) -> list[str]:
    """Losses first, then what evaluations have measured, in their order: names with "/" that aren't training's own, nor counts.

    The loss of an objective that is all of the loss, as of a single one, is not shown again.
    """
    lines = [line for run in runs for line in run]
    found = dict.fromkeys(name for line in lines for name, value in line.items() if is_number(value))
    losses = sorted((name for name in found if name.rpartition("/")[2] == "loss"), key=lambda name: ("/" in name, name))
    again = {name for name in losses[1:] if losses[0] == "loss" and all(line.get(name) == line.get("loss") for line in lines)}
    own = {"loss", "logit_scale", "logit_bias", "examples", "classes", "images", "captions", "broken"}
    order = {name: i for i, name in enumerate(evaluations)}
    measured = [name for name in found if "/" in name and name.rpartition("/")[2] not in own]
    measured.sort(key=lambda name: (order.get(_group(name, evaluations), len(order)), name))
    return [name for name in losses if name not in again] + measured
