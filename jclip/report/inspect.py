"""`jclip inspect`: what a recipe will do, as one page before it is trained."""

import base64
import io
import itertools
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console

from jclip.config import Config, ConfigError, ImageTower, Input, SoundTower, TokenTower, valid_name
from jclip.config.fields import parse_field
from jclip.data import Batch, Mixture, Source, detokenize
from jclip.data.addresses import shown
from jclip.data.caches import write_atomically
from jclip.data.survey import shares
from jclip.eval.previews import player_of, spectrogram
from jclip.memory import share, size_text
from jclip.models import end_of_text
from jclip.operations import trained_flops
from jclip.optim import lr_factors, make_schedule, split
from jclip.parts import RunPart, prepare
from jclip.program import Program, make_program
from jclip.report.numbers import Table, number
from jclip.report.plots import Series, line_plot
from jclip.report.template import fill
from jclip.sharding import make_mesh
from jclip.topology import Topology, describe
from jclip.tree import flatten, match_rules

EXAMPLES = 16
"""Rows of the first batch that are shown."""

LOOKED_AT = 512
"""Examples that are looked at for the alternatives of fields, spread evenly."""

CURVE_POINTS = 400
"""Steps at which the learning rate is drawn."""


class ShownInput(NamedTuple):
    """An input of a tower, as a page shows it."""

    src: str
    """Data URL of a PNG, of a sound its spectrogram; empty where the input is neither image nor sound."""
    text: str
    """Words of a text, or shape and dtype of what is none of these."""
    sound: str = ""
    """Data URL of a sound."""


class PartPage(NamedTuple):
    """A part of the run, as the page shows it."""

    name: str
    facts: list[tuple[str, str]]
    parameters: Table
    views: dict[str, list[ShownInput]]
    keys: list[str]
    problems: list[str]


def main(config: Config, title: str, html: str | Path, topology: str | None = None, seconds: float = 5.0) -> Path:
    """Writes the page and says where.

    Args:
        config: of the run.
        title: of the page, such as the recipe's path.
        html: the page to write; one that is there is replaced at once.
        topology: the devices the run is meant for, as in `jclip compile`; None: those of this machine.
        seconds: for which the loader's rate is measured.

    Returns:
        The page's path.

    Raises:
        ConfigError: the configuration contradicts itself or does not fit the devices.
        SourceError: the data cannot be opened, or none of it can be read.
    """
    out, console = Path(html), Console(emoji=False, stderr=True, highlight=False)
    if out.is_dir():
        raise ConfigError(f"inspect: {out} is a folder; name a file, such as {out / 'inspect.html'}")
    if not 0 < seconds < 3600:
        raise ConfigError(f"inspect: --seconds {seconds} must be above 0 and below an hour")
    slice_ = describe(topology)
    with console.status("reading the data, and counting"):
        parts = prepare(config, devices=len(slice_.devices))
        shown = [_shown(part, slice_) for part in parts]
    with console.status("measuring the loader"):
        rate = loader_rate(parts[-1], seconds)
    steps, rates = learning_rates(parts)
    page = fill(
        "inspect.html",
        title=title,
        facts=_run_facts(parts[-1], slice_, rate),
        curve=line_plot([Series(0, steps, rates)], title="learning rate", x_name="step"),
        parts=shown,
    )
    write_atomically(out, lambda path: path.write_text(page, encoding="utf-8", newline="\n"))
    print(
        f"wrote {out}: {parts[-1].plan.total:,} steps, {len(shown[-1].parameters.rows)} arrays, {out.stat().st_size / 1e6:.1f} MB"
    )
    return out


def learning_rates(parts: list[RunPart]) -> tuple[list[float], list[float]]:
    """Steps of the run, evenly spread, and the learning rate of the update that follows each; its ends and borders are among
    them."""
    steps, rates = list[float](), list[float]()
    for part in parts:
        optim, plan = part.config.optim, part.plan
        schedule = make_schedule(optim, warmup_steps=plan.warmup, total_steps=plan.length, cooldown_steps=plan.cooldown)
        count = min(plan.length, max(2, CURVE_POINTS // len(parts)))
        inner = np.unique(np.linspace(0, plan.length - 1, count).round().astype(int))
        steps += [float(plan.first + step) for step in inner]
        rates += [float(schedule(int(step))) for step in inner]
    return steps, rates


def loader_rate(part: RunPart, seconds: float) -> float:
    """Examples a second that the loader of this host hands over, after its first batch."""
    with part.data.loader(part.plan.first, ahead=False) as loader:
        next(loader)
        began = now = time.perf_counter()
        batches = 0
        while now - began < seconds or not batches:
            next(loader)
            batches, now = batches + 1, time.perf_counter()
    return batches * part.config.batch_size / (now - began)


def _run_facts(last: RunPart, slice_: Topology, rate: float) -> list[tuple[str, str]]:
    config, plan, source = last.config, last.plan, last.data.source
    seen = plan.skipped + plan.length * config.batch_size
    return [
        ("data", f"{shown(config.data.title)}: {len(source):,} examples"),
        ("run", f"{plan.total:,} steps, {seen:,} examples, {seen / len(source):,.1f} epochs"),
        ("optimizer", f"{config.optim.method}, weight decay {config.optim.weight_decay:g}, schedule {config.optim.schedule}"),
        ("devices", f"{len(slice_.devices)} x {slice_.devices[0].device_kind}"),
        ("loader, this machine", f"{rate:,.0f} examples/s with {config.data.workers or 'no'} worker processes"),
    ]


def _shown(part: RunPart, slice_: Topology) -> PartPage:
    config, plan = part.config, part.plan
    mesh = make_mesh(config.mesh, slice_.devices)
    program = make_program(config, mesh, warmup_steps=plan.warmup, total_steps=plan.length, cooldown_steps=plan.cooldown)
    batch = first_rows(part)
    views = {view: seen(what, batch.arrays[view], batch.arrays.get(valid_name(view))) for view, what in config.inputs().items()}
    name = "" if part.is_last and not config.stages else f"stage {part.name}"
    return PartPage(name, _facts(part, program), parameters(config, program), views, batch.keys, batch.problems)


def _facts(part: RunPart, program: Program) -> list[tuple[str, str]]:
    config, plan = part.config, part.plan
    flops = trained_flops(config)
    sizes = {name: share(held) for name, held in program.parts().items()}
    return [
        ("steps", f"{plan.length:,}, of which {plan.warmup:,} warm up"),
        ("batch", f"{config.batch_size:,} examples, {config.batch_size // program.mesh.size:,} a device"),
        ("inputs", ", ".join(f"{tower} {_shape(*how.input())}" for tower, how in config.model.towers.items())),
        *_alternatives(config, part.data.source),
        *(("order", line) for line in part.data.order_lines()),
        *(("notice", line) for line in part.data.shortcomings()),
        ("operations", f"{flops:.3e} a step, {flops / program.mesh.size:.3e} a device"),
        *((f"{name}, a device", size_text(size)) for name, size in sizes.items()),
        ("together", f"{size_text(sum(sizes.values()))} a device, activations not counted: jclip compile counts all"),
    ]


def _alternatives(config: Config, source: Source) -> list[tuple[str, str]]:
    """Shares of the alternatives of each view that is made of one of several, by the source where there are more."""
    fields = {name: view.field for name, view in config.inputs().items()}
    sources = {f" of {name}": one for name, one in source.sources.items()} if isinstance(source, Mixture) else {"": source}
    own = {f" of {name}": changed for name, changed in source.fields.items()} if isinstance(source, Mixture) else {}
    return [
        (f"{view}{name}, one of", str(shares(one, field, LOOKED_AT)))
        for name, one in sources.items()
        for view, field in {**fields, **own.get(name, {})}.items()
        if len(parse_field(field).alternatives) > 1
    ]


def parameters(config: Config, program: Program) -> Table:
    """Every array: its shape and numbers, sharding, weight decay, learning rates and whether it is trained."""
    params = program.state.params
    trained, _ = split(config.optim, params)
    decays, factors = flatten(match_rules(params, config.optim.weight_decay_rules)), flatten(lr_factors(config.optim, params))
    learned = flatten(trained).keys()

    def row(path: str, leaf: Any) -> list[str]:
        spec = ", ".join(str(axis) if axis is not None else "-" for axis in leaf.sharding.spec)
        decay = number(config.optim.weight_decay * decays[path]) if path in learned else "-"
        factor = _factor(factors[path]) if path in learned else "-"
        shape = " x ".join(map(str, leaf.shape)) or "scalar"
        return [path, shape, number(leaf.size), spec or "whole", decay, factor, "yes" if path in learned else "frozen"]

    rows = [row(path, leaf) for path, leaf in flatten(params).items()]
    return Table(["parameter", "shape", "numbers", "sharded over", "weight decay", "rate times", "trained"], rows)


def _factor(factor: Any) -> str:
    """A factor, or the first and the last of a stack's."""
    values = np.ravel(np.asarray(factor, np.float64))
    return number(float(values[0])) if len(set(values.tolist())) == 1 else f"{values[0]:.3g} to {values[-1]:.3g}"


def first_rows(part: RunPart) -> Batch:
    """The first EXAMPLES rows that training will see in this stage, of this host."""
    with part.data.loader(part.plan.first, ahead=False) as loader:  # no copies for so few
        batches = list(itertools.islice(loader, math.ceil(EXAMPLES / part.config.batch_size)))
    arrays = {view: np.concatenate([batch.arrays[view] for batch in batches])[:EXAMPLES] for view in batches[0].arrays}
    return Batch(arrays, list(_joined(batches, "keys"))[:EXAMPLES], list(_joined(batches, "problems")))


def _joined(batches: list[Batch], field: str) -> Iterator[str]:
    return itertools.chain.from_iterable(getattr(batch, field) for batch in batches)


def seen(view: Input, rows: NDArray[Any], valid: NDArray[np.bool_] | None) -> list[ShownInput]:
    """The inputs of a view as a page shows them; of examples that lack it, bool [b] `valid`, no more than that."""
    shown = pictures(view, rows)
    return shown if valid is None else [one if has else ShownInput("", "lacks it") for one, has in zip(shown, valid, strict=True)]


def pictures(view: Input, rows: NDArray[Any]) -> list[ShownInput]:
    """Inputs of a tower as a page shows them: images as they are, sounds as their spectrograms with
    a player, texts as the words that are left of them."""
    if not view.stored and isinstance(view.seen_by, ImageTower):
        return [ShownInput(_png(pixels), "") for pixels in rows]
    if not view.stored and isinstance(view.seen_by, SoundTower):
        heard = view.seen_by
        return [ShownInput(spectrogram(row, heard), "", player_of(row, heard.waveform)) for row in rows]
    if not view.stored and isinstance(view.seen_by, TokenTower):
        tower = view.seen_by
        lengths = (np.asarray(end_of_text(jnp.asarray(rows), tower)) + 1).tolist()
        return [
            ShownInput("", f"{text} ({length} of {tower.context_length} tokens)")
            for text, length in zip(detokenize(tower, rows), lengths, strict=True)
        ]
    return [ShownInput("", _shape(row.shape, str(row.dtype))) for row in rows]


def _png(pixels: NDArray[np.uint8]) -> str:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def _shape(shape: tuple[int, ...], dtype: str) -> str:
    return f"{dtype}[{', '.join(map(str, shape))}]"
