"""The page of `jclip filter`: how many examples each rule has dropped, their scores, some of their pictures, near duplicates."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jclip.data import BadExample, Source, find
from jclip.data.fields import class_names
from jclip.data.findings import RULES, Findings, caption
from jclip.report.data import thumbnail

SHOWN = 12
"""Examples, or pairs, of each rule on the page."""

MEANINGS = {
    "unreadable": "something that a rule asks for cannot be read",
    "subset": "not in the subset",
    "language": "the caption is in another language, or in none that is likely enough",
    "unlike": "its cluster has no image of --like",
    "score": "image and caption are too far from each other",
    "contaminated": "the image is near to one that must not be trained on",
    "duplicate": "the image is near to one of a higher score, or where there are no scores to an earlier one",
    "balance": "no entry of the list is in the caption, or no draw has kept it",
}


class ShownExample(NamedTuple):
    """An example on the page."""

    key: str
    text: str
    src: str
    """Data URL of its image; empty where it has none that can be read."""
    note: str = ""


class Row(NamedTuple):
    """A rule in the table."""

    rule: str
    examples: str
    share: str
    meaning: str


def render(spec: str, source: Source, others: Sequence[Source], found: Findings) -> str:
    """The page as text; the same findings give the same bytes.

    Args:
        spec: the source, as it was named.
        source: the source.
        others: the sources `against`.
        found: what is known of its examples.

    Raises:
        ImportError: the extra of reports is missing.
    """
    from jclip.report.template import fill

    single = [rule for rule in RULES if rule not in ("contaminated", "duplicate") and len(found.rows(rule))]
    return fill(
        "filter.html",
        spec=spec,
        rows=_rows(found),
        notes=found.notes,
        reasons=found.reasons.most_common(20),
        plot=_plot(found),
        kept=[_picture(source, int(row), found) for row in _spread(found.kept())],
        dropped=[(rule, [_picture(source, int(row), found) for row in _spread(found.rows(rule))]) for rule in single],
        pairs=[(rule, _pairs(source, found, rule, others)) for rule in ("contaminated", "duplicate")],
        meanings=MEANINGS,
    )


def _rows(found: Findings) -> list[Row]:
    counts, total = found.counts(), max(1, len(found.dropped))
    meanings = {"kept": "what every rule keeps", **MEANINGS}
    return [
        Row(name, f"{counts[name]:,}", f"{counts[name] / total:.2%}", meanings[name])
        for name in (*RULES, "kept")
        if counts[name] or name == "kept"
    ]


def _plot(found: Findings) -> str:
    """Histogram of the scores; empty where there are none."""
    low = np.isfinite(found.score) & (found.dropped == found.number("score"))
    high = np.isfinite(found.score) & ~low
    if not (low.any() or high.any()):
        return ""
    from jclip.report.plots import histogram

    parts = {"not dropped by it": found.score[high].tolist(), "dropped": found.score[low].tolist()}
    return histogram(parts, title="score", x_name="cosine of image and caption")


def _pairs(source: Source, found: Findings, rule: str, others: Sequence[Source]) -> list[tuple[ShownExample, ShownExample]]:
    """Pairs of dropped images and the nearest that stand for them, from the least near on, spread evenly."""
    before = rule == "duplicate"
    cosine, partner = (found.before_cosine, found.before_row) if before else (found.against_cosine, found.against_row)
    rows = found.rows(rule)
    rows = _spread(rows[np.argsort(cosine[rows], kind="stable")])
    return [
        (
            _picture(source, int(row), found, f"cosine {cosine[row]:.4f}"),
            _picture(source if before else others[found.against_source[row]], int(partner[row]), found),
        )
        for row in rows
    ]


def _spread(rows: NDArray[Any]) -> NDArray[Any]:
    """At most `SHOWN` of the rows, spread evenly."""
    return rows[np.unique(np.linspace(0, len(rows) - 1, min(SHOWN, len(rows))).round().astype(int))] if len(rows) else rows


def _picture(source: Source, row: int, found: Findings, note: str = "") -> ShownExample:
    key = text = src = ""
    try:
        example = source[row]
        key = str(example["key"])
        text = caption(find(example, found.rules.text, class_names(source)).value)[:300]
    except BadExample as problem:
        text = str(problem)[:300]
    try:
        src = thumbnail(find(source[row], found.rules.image, class_names(source)).value)
    except BadExample as problem:
        note = note or str(problem)[:300]
    return ShownExample(key or f"example {row}", text, src, note)
