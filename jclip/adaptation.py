"""`jclip adapt`: a model adapted to a few examples a class, by several methods under one protocol."""

import functools
import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from jclip.adapt import Fitted, Task, fit
from jclip.adapt.changes import with_changes
from jclip.adapt.contexts import reading_tower
from jclip.adapt.data import AdaptData, Subject
from jclip.adapt.heads import linear_head
from jclip.adapt.saved import Adapted, base_towers, read_adapted, write_adapted
from jclip.config import Adapt, ConfigError, Subset, check_adapt, differences, to_json
from jclip.config.adapt import Method
from jclip.config.adapt_methods import CoCoOp, CoOp
from jclip.data import Source, SourceError, open_part
from jclip.data.caches import write_atomically
from jclip.eval import FeatureCache
from jclip.evaluate import make_functions
from jclip.files import is_adapted, is_run
from jclip.inference import Encoder, load, tower_digest
from jclip.processes import Refused, from_first, is_first, leave_together, together
from jclip.report.adapt import FORMAT, read_adaptation
from jclip.results import describe_machine
from jclip.runs import open_run


def main(
    model: str | Path, config: Adapt, out: str | Path, *, cache: str | Path | None = None, as_json: bool = False, **how: Any
) -> dict[str, Any]:
    """Adapts a model by every method, for every number of shots and every seed, and measures each on the test.

    Writes out/results.json after each of these cells, out/METHOD/shots-K/seed-S, which `jclip.load` opens, and out/page.html
    (extra: report). The same command again goes on behind the last cell that was finished; one that was not begins anew.

    Args:
        model: as `jclip.load` takes it.
        config: methods, data and protocol.
        out: folder to write to; made where it is missing.
        cache: folder in which features are kept from run to run; None: they are not.
        as_json: whether the table is printed as one JSON object.
        how: further arguments of `jclip.load`.

    Returns:
        The content of results.json.

    Raises:
        ConfigError: the configuration contradicts itself, classes have too few examples or cannot be told apart, or `out` has
            the results of another model, other data or another protocol.
        SourceError: a source cannot be opened.
    """
    check_adapt(config)
    if is_adapted(model):
        raise ConfigError(f"adapt: {model} is adapted already; adapt what it was made of, or what `jclip convert` makes of it")
    encoder, out = load(model, **how), Path(out)
    say = Console(emoji=False, stderr=True, quiet=not is_first(), highlight=False, markup=False)
    weights = functools.cache(lambda tower: tower_digest(encoder.params, tower, encoder.mesh))
    data = together(lambda: make_data(config, encoder, None if cache is None else FeatureCache(Path(cache)), weights))
    together(data.require)
    base = {
        "model": _place(model),
        "options": _options(model, how),
        "weights": {t: weights(t) for t in sorted(encoder.config.towers)},
    }
    with leave_together((ConfigError, SourceError, Refused)):
        record = AdaptationFile(out, {**base, "towers": base_towers(encoder.config)}, data, say)
        cells = list(_cells(config))
        due = from_first(lambda: [cell.key for cell in cells if not record.has(cell)])
        for number, cell in enumerate(cells):
            if cell.key in due:
                say.print(f"{cell.name}, {cell.shots} shots, seed {cell.seed} ({number + 1} of {len(cells)}) ...", soft_wrap=True)
                record.add(cell, _run(cell, data, out, record.facts["model"]))
    record.finish(say)
    if is_first():
        _print(record.content, as_json)
    return record.content


def make_data(config: Adapt, encoder: Encoder, cache: FeatureCache | None, weights: Any) -> AdaptData:
    """The opened sources, and how to embed them; raises as `main`."""
    if not all(leaf.is_fully_addressable or leaf.is_fully_replicated for leaf in jax.tree.leaves(encoder.params)):
        raise ConfigError(
            "adapt: the model's parameters are sharded over several processes, and methods need them whole on each; start one "
            "process, or write the weights with `jclip convert` and adapt these, which each process then has whole"
        )
    for tower in (config.image, config.text):
        if tower not in encoder.config.towers:
            raise ConfigError(f"adapt: the model has no tower {tower!r}; towers: {', '.join(encoder.config.towers)}")
    if any(isinstance(method, CoOp | CoCoOp) for method in config.methods.values()):
        reading_tower(encoder.config, config.text)
    scale = config.scale
    if scale is None:
        pair = f"{config.image}_{config.text}" if len(encoder.objectives) > 1 else None
        scale = float(encoder.logit_scale(encoder.params, pair=pair))
    functions = make_functions(
        encoder.config, encoder.mesh, config.batch_size, cache=cache, weights=weights, max_pixels=config.max_pixels
    )
    subject = Subject(encoder.config, encoder.params, encoder.mesh, functions, scale)
    sources = {role: open_labelled(spec) for role, spec in config.sources().items()}
    return AdaptData(config, subject, sources, open_labelled)


def open_labelled(name: str) -> Source:
    """A source, or a folder whose folders are classes; raises as `open_part`."""
    images = Path(name).is_dir() and not Path(name, "nshards.txt").exists()
    return open_part(f"folder:{name}?labels=folders" if images else name, Subset(), "adapt")


@dataclass(frozen=True)
class Cell:
    """One number of the table: a method with so many shots of a seed."""

    name: str
    method: Method = field(repr=False)
    shots: int
    seed: int

    @property
    def key(self) -> str:
        """Its folder, below that of all."""
        return f"{self.name}/shots-{self.shots}/seed-{self.seed}"


def _cells(config: Adapt) -> Iterator[Cell]:
    """The cells, few shots first: what is wrong with a method shows soon."""
    for shots in config.shots:
        for seed in range(config.seeds):
            for name, method in config.methods.items():
                yield Cell(name, method, shots, seed)


def _run(cell: Cell, data: AdaptData, out: Path, base: Mapping[str, Any]) -> dict[str, Any]:
    """The row of a cell; its model is written."""
    task, rows = data.task(cell.shots, cell.seed)
    began = time.perf_counter()
    fitted = fit(cell.method, task)
    seconds = time.perf_counter() - began
    row = {
        "method": cell.name,
        "shots": cell.shots,
        "seed": cell.seed,
        "settings": to_json(cell.method),
        "files": data.files(cell.method),
        "test": _measure(fitted, data),
        "val": _selected(fitted, task),
        "seconds": round(seconds, 2),
        "parameters": fitted.parameters,
        "choice": dict(fitted.choice),
        "details": dict(fitted.details),
        "examples": rows.keys(),
    }
    if data.config.select == "test":
        leaky = fit(cell.method, data.task(cell.shots, cell.seed, "test")[0])
        row |= {"test_selected_on_test": _measure(leaky, data), "choice_on_test": dict(leaky.choice)}
    if data.config.save == "all" and is_first():
        write_adapted(out / cell.key, _adapted(fitted, data, base, {name: row[name] for name in _KEPT}))
    return row


_KEPT = ("method", "shots", "seed", "settings", "files", "test", "val", "choice", "details")
"""Facts of a row that are kept with a model."""


def _measure(fitted: Fitted, data: AdaptData) -> float:
    """Accuracy on the test."""
    if not fitted.changed:
        return data.test.score(fitted.head)
    params = with_changes(data.subject.params, fitted.changed)
    return data.encoded(data.rows["test"], "test", params=params).score(fitted.head)


def _selected(fitted: Fitted, task: Task) -> float:
    """Accuracy on the examples to choose by."""
    if not fitted.changed:
        return task.selection.score(fitted.head)
    return task.encode.selection(with_changes(task.params, fitted.changed)).score(fitted.head)


def _adapted(fitted: Fitted, data: AdaptData, base: Mapping[str, Any], facts: Mapping[str, Any]) -> Adapted:
    config = data.config
    return Adapted(data.names, config.image, config.text, fitted.head, base, facts, fitted.changed, fitted.arrays)


def _place(model: str | Path) -> str:
    """The model, or another path, as `jclip.load` finds it from any folder."""
    name = os.path.expanduser(str(model))
    return os.path.abspath(name) if os.path.exists(name) else str(model)


def _options(model: str | Path, how: Mapping[str, Any]) -> dict[str, Any]:
    """Further arguments of `jclip.load` that open this very model from any folder, and after further training."""
    found = {name: value for name, value in how.items() if value is not None and name != "fsdp"}  # devices are others there
    if "tokenizer" in found:
        found["tokenizer"] = _place(found["tokenizer"])
    if is_run(model) and "step" not in found:
        with open_run(model, None) as (_, _, step):
            found["step"] = step
    return found


class AdaptationFile:
    """The file results.json: what was adapted, by which protocol, and a row for each cell that is finished."""

    def __init__(self, out: Path, base: Mapping[str, Any], data: AdaptData, say: Console) -> None:
        self.path, self.data = out / "results.json", data
        config = data.config
        settings = {k: v for k, v in to_json(config).items() if k not in ("methods", "shots", "seeds", "save", "batch_size")}
        digests = {role: source.fingerprint() for role, source in data.sources.items()} | {"prompts": data.prompts_digest()}
        facts = {"model": base, "protocol": settings, "data": digests, "classes": list(data.names)}
        self.facts: dict[str, Any] = json.loads(json.dumps(facts))
        self.rows: dict[str, dict[str, Any]]
        self.zero_shot: dict[str, float]
        out.mkdir(parents=True, exist_ok=True)
        known = from_first(lambda: self._read(say) if self.path.exists() else {})
        self.rows = known.get("cells", {})
        self.zero_shot = known.get("zero_shot") or _zero_shot(data)
        self.left_out = data.left_out()
        if unread := len(data.rows["test"].labels) - int(self.zero_shot["examples"]):
            self.left_out.setdefault("test", {})["unreadable"] = unread
        for role, counts in self.left_out.items():
            shown = ", ".join(f"{count:,} {why}" for why, count in counts.items())
            say.print(f"adapt: of {role} examples are left out: {shown}", soft_wrap=True)

    def _read(self, say: Console) -> dict[str, Any]:
        """Rows that hold, "cells", and "zero_shot", of the file that is there; raises as `main`."""
        known = read_adaptation(self.path)
        if different := differences({name: known[name] for name in self.facts}, self.facts):
            raise ConfigError(f"adapt: {self.path} is of something else: {'; '.join(different[:5])}; give another --out")
        rows, methods = known["cells"], self.data.config.methods
        others = [key for key, row in rows.items() if row["method"] in methods and not self._alike(row, methods[row["method"]])]
        if others:
            of = ", ".join(dict.fromkeys(rows[key]["method"] for key in others))
            say.print(f"adapt: {len(others)} rows of {of} had other settings or files, and are dropped", soft_wrap=True)
        kept = {key: row for key, row in rows.items() if key not in others}
        return {"cells": kept, "zero_shot": known["zero_shot"]}

    def _alike(self, row: Mapping[str, Any], method: Method) -> bool:
        """True where a row is of these settings, and of what their files hold now."""
        now = {"settings": to_json(method), "files": self.data.files(method)}
        return bool({name: row[name] for name in now} == json.loads(json.dumps(now)))

    def has(self, cell: Cell) -> bool:
        """True where a cell is finished, with these settings, and its model is there if it is to be kept."""
        return cell.key in self.rows and (self.data.config.save == "none" or self._kept(cell.key))

    def _kept(self, key: str) -> bool:
        """True where the model of a row is there, and not one of earlier settings."""
        try:
            facts = read_adapted(self.path.parent / key).facts
        except ConfigError:
            return False
        return all(facts.get(name) == self.rows[key][name] for name in ("settings", "files"))

    def add(self, cell: Cell, row: dict[str, Any]) -> None:
        """Adds the row of a cell, and writes the file."""
        self.rows[cell.key] = json.loads(json.dumps(row))
        self._write()

    @property
    def content(self) -> dict[str, Any]:
        """Content of the file."""
        known = {**self.facts, "left_out": self.left_out, "zero_shot": self.zero_shot}
        return {"format": FORMAT, **known, "cells": self.rows, **describe_machine()}

    def _write(self) -> None:
        if is_first():
            text = json.dumps(self.content, indent=1)
            write_atomically(self.path, lambda part: part.write_text(text + "\n", encoding="utf-8"))

    def finish(self, say: Console) -> None:
        """Writes file and page."""
        self._write()
        try:
            from jclip.report.adapt import render

            page = render(self.content)
        except ImportError as error:
            say.print(f'no page.html: {error}; pip install "jclip[report]"', soft_wrap=True)
            return
        if is_first():
            write_atomically(self.path.parent / "page.html", lambda part: part.write_text(page, encoding="utf-8", newline="\n"))


def _zero_shot(data: AdaptData) -> dict[str, float]:
    head = linear_head(data.classifier, data.subject.scale)
    return {"test": data.test.score(head), "examples": float(len(data.test.labels))}


def summary(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A line for each method and number of shots: mean and deviation over seeds of the accuracy on the test, and the cost."""
    groups: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
    for row in content["cells"].values():
        groups.setdefault((row["method"], row["shots"]), []).append(row)
    lines = []
    for (method, shots), rows in groups.items():
        tests = [row["test"] for row in rows]
        line = {"method": method, "shots": shots, "seeds": len(rows), "mean": float(np.mean(tests)), "std": float(np.std(tests))}
        line |= {"seconds": float(np.mean([row["seconds"] for row in rows])), "parameters": rows[0]["parameters"]}
        leaky = [row["test_selected_on_test"] for row in rows if "test_selected_on_test" in row]
        if len(leaky) == len(rows):
            line |= {"selected_on_test": float(np.mean(leaky)), "difference": float(np.mean(leaky) - np.mean(tests))}
        lines.append(line)
    return lines


def _print(content: Mapping[str, Any], as_json: bool) -> None:
    lines = summary(content)
    if as_json:
        print(json.dumps({"zero_shot": content["zero_shot"]["test"], "adapted": lines}))
        return
    leaky = any("difference" in line for line in lines)
    table = Table("method", "shots", "test", *(["selected on test", "difference"] if leaky else []), "seconds", "parameters")
    table.add_row("zero-shot", "0", f"{100 * content['zero_shot']['test']:.2f}", *(["", ""] if leaky else []), "", "0")
    for line in lines:
        more = ["", ""] if leaky else []
        if "difference" in line:
            more = [f"{100 * line['selected_on_test']:.2f}", f"{100 * line['difference']:+.2f}"]
        accuracy = f"{100 * line['mean']:.2f} ± {100 * line['std']:.2f}"
        table.add_row(line["method"], str(line["shots"]), accuracy, *more, f"{line['seconds']:.1f}", f"{line['parameters']:,}")
    Console(emoji=False).print(table)
