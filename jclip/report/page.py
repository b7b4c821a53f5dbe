"""The page: its head, the summary of all models, and the evaluations one after the other, through the template page.html."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jclip.report.numbers import better, is_difference, is_fraction, number, shade_rules
from jclip.report.plots import COLORS, DASHES, MARKERS
from jclip.report.read import CheckedResults
from jclip.report.sections import Section, sections, training
from jclip.report.template import counted, fill

_SYMBOLS = {"o": "●", "s": "■", "^": "▲", "D": "◆", "v": "▼", "*": "★", "P": "✚"}
_CSS_DASHES = {"-": "solid", "--": "dashed", "-.": "dashed", ":": "dotted"}
_COUNTED = ("examples", "classes", "images", "captions", "texts")
_NOUNS = ("examples", "images", "captions", "texts", "templates", "groups")
"""Counts that lose their s where they are 1."""


class SummaryRow(NamedTuple):
    """A metric of the summary: a cell a model, and which are the best."""

    metric: str
    cells: list[str]
    best: list[bool]


class ShownEvaluation(NamedTuple):
    """An evaluation as the page shows it."""

    name: str
    protocol: str
    counts: str
    notes: list[str]
    rows: list[SummaryRow]
    facts: list[tuple[str, list[Any]]]
    """(field, a value a model, or a single one where all models agree); a list is a long value's items."""
    sections: list[Section]


def render(runs: Sequence[CheckedResults]) -> str:
    """The page as text. It has no script, and its own policy forbids the browser to fetch anything."""
    labels = labels_of(runs)
    names = list(dict.fromkeys(name for run in runs for name in run.results))
    suites = list(dict.fromkeys(run.suite for run in runs))
    return fill(
        "page.html",
        shade_rules(),
        number=number,
        runs=runs,
        labels=labels,
        keys=[_key(i) for i in range(len(runs))],
        suites=suites,
        training=training([run.training for run in runs], labels, names),
        evaluations=[_evaluation(name, runs, labels) for name in names],
        described=[_flat({"towers": run.model.get("towers", {}), "versions": run.versions}) for run in runs],
    )


def labels_of(runs: Sequence[CheckedResults]) -> list[str]:
    """A name for each model, with step, weights and file added where the ones before leave two alike."""
    labels = [run.model["name"] for run in runs]
    more = [
        [f", step {run.model['step']:,}" if run.model["step"] is not None else "" for run in runs],
        [f", weights {run.model['weights'][:8]}" for run in runs],
        [f", {run.path}" for run in runs],
        [f", #{i + 1}" for i in range(len(runs))],
    ]
    for addition in more:
        twice = {label for label in labels if labels.count(label) > 1}
        labels = [label + extra if label in twice else label for label, extra in zip(labels, addition, strict=True)]
    return labels


def _key(i: int) -> dict[str, str]:
    """Look of a model's line in plots, for the legend."""
    return {
        "color": COLORS[i % len(COLORS)],
        "symbol": _SYMBOLS[MARKERS[i % len(MARKERS)]],
        "line": _CSS_DASHES[DASHES[i % len(DASHES)]],
    }


def _evaluation(name: str, runs: Sequence[CheckedResults], labels: Sequence[str]) -> ShownEvaluation:
    results = [run.results.get(name) for run in runs]
    found = [(i, result) for i, result in enumerate(results) if result is not None]
    first = found[0][1]
    notes = _differences([result for _, result in found])
    comparable = len(found) > 1 and not any(note.startswith("Not compared") for note in notes)
    facts = [_flat({k: v for k, v in (r or {}).items() if k not in ("metrics", "details")}) for r in results]
    return ShownEvaluation(
        name,
        " / ".join(dict.fromkeys(result["protocol"] for _, result in found)),
        _counts_text(first["counts"]),
        notes,
        _summary_rows(results, comparable),
        _facts(facts),
        sections([(i, _with_classes(result)) for i, result in found], labels),
    )


def _with_classes(result: Mapping[str, Any]) -> dict[str, Any]:
    """The details, and the N of "rank k of N", from the counts or what else has every class."""
    details = result["details"]
    found = (
        result["counts"].get("classes"),
        len(details.get("confusion", {"names": []})["names"]),
        len(details.get("per_class", [])),
    )
    return {**details, "classes": next((count for count in found if count), None)}


def _summary_rows(results: Sequence[Mapping[str, Any] | None], comparable: bool) -> list[SummaryRow]:
    metrics = dict.fromkeys(metric for result in results if result for metric in result["metrics"])
    rows = []
    for metric in metrics:
        values = [None if result is None else result["metrics"].get(metric) for result in results]
        fraction, direction = is_fraction(metric, values), better(metric)
        known = [direction * value for value in values if value is not None and value == value]
        top = max(known) if comparable and direction and len(known) > 1 else None
        best = [value is not None and top is not None and direction * value == top for value in values]
        rows.append(SummaryRow(metric, [number(value, fraction, is_difference(metric)) for value in values], best))
    return rows


def _differences(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """Differences that keep models from being compared, and those that a reader should know."""

    def differ(values: list[Any]) -> bool:
        return len({json.dumps(value, sort_keys=True) for value in values}) > 1

    counts = [{name: result["counts"].get(name) for name in _COUNTED} for result in found]
    serious = {"protocol": [result["protocol"] for result in found], "data": list(map(_data_key, found)), "counts": counts}
    slight = {field: [result[field] for result in found] for field in ("settings", "dtype")}
    notes = []
    if names := [name for name, values in serious.items() if differ(values)]:
        notes.append(f"Not compared, because models differ in: {', '.join(names)}.")
    if names := [name for name, values in slight.items() if differ(values)]:
        notes.append(f"Models differ in: {', '.join(names)}.")
    return notes


def _data_key(result: Mapping[str, Any]) -> dict[str, Any]:
    """The same data may lie elsewhere: the fingerprint decides, and the spec only where there is none."""
    return {
        name: source.get("fingerprint", source) if isinstance(source, dict) else source for name, source in result["data"].items()
    }


def _counts_text(counts: Mapping[str, int]) -> str:
    """654 examples, 40 classes; zeros are left out."""
    return ", ".join(_counted(count, name.replace("_", " ")) for name, count in counts.items() if count)


def _counted(count: int, name: str) -> str:
    return counted(count, name.removesuffix("s")) if name in _NOUNS else f"{count:,} {name}"


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"settings.source": ..., ...}: nested names joined; lists of many values stay lists of text."""
    flat: dict[str, Any] = {}
    for name, item in value.items():
        if isinstance(item, dict) and item:
            flat |= _flat(item, f"{prefix}{name}.")
        elif isinstance(item, list) and len(item) > 3:
            flat[prefix + name] = [one if isinstance(one, str) else json.dumps(one, ensure_ascii=False) for one in item]
        else:
            flat[prefix + name] = item if isinstance(item, str) else json.dumps(item, ensure_ascii=False)
    return flat


def _facts(flat: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[Any]]]:
    rows = []
    for field in dict.fromkeys(field for one in flat for field in one):
        values = [one.get(field, "–") for one in flat]
        rows.append((field, values[:1] if all(value == values[0] for value in values) else values))
    return rows
