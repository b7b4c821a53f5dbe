"""`jclip compile --sweep`: one recipe compiled in many ways, as a table of what fits and how fast it is, best first."""

import hashlib
import itertools
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import jax
from rich.console import Console
from rich.table import Table

from jclip import __version__
from jclip.config import Config, ConfigError, check
from jclip.config.io import to_saved
from jclip.data.caches import write_atomically
from jclip.estimate import OutOfMemoryError, estimate
from jclip.memory import GIB
from jclip.operations import trained_flops
from jclip.program import make_program
from jclip.sharding import make_mesh
from jclip.topology import Topology, describe

ATTENTION = "q+k+v+attention+out"
"""Results of a block that are dear to compute and cheap to keep, other than the inside of its MLP."""

WIDTH = 240
"""Width of a table in a file, in letters."""

LEGEND = (
    "(pairs/s and MFU with the transfers, as if none ran beside the computing; see `jclip compile --help` for what the times are)"
)
NO_CLOCK = "(no clock: only the compiler of TPU slices says how long a program takes; name one as --topology)"

Load = Callable[[list[str]], Config]
"""Overrides of the command line -> the configuration."""


class SweepRow(NamedTuple):
    """One way to compile a recipe, and what came of it. Numbers are None where they are not known.

    Attributes:
        change: the overrides that make it, such as "model.remat=none batch_size=1024".
        key: digest of configuration, topology and versions, for all of which the numbers hold.
        problem: why there are no numbers; empty: there are.
        peak: bytes of a device that are needed.
        missing: bytes that a device has too few; 0: it fits.
        computing: seconds of a step, by the compiler's clock.
        step: the same with the transfers.
        rate: pairs a second of one device.
        mfu: share of the peak of its products.
    """

    change: str
    key: str
    problem: str = ""
    peak: int | None = None
    missing: int | None = None
    computing: float | None = None
    step: float | None = None
    rate: float | None = None
    mfu: float | None = None

    @property
    def fits(self) -> bool:
        """True where it can be run."""
        return self.missing == 0

    @property
    def order(self) -> tuple[Any, ...]:
        """The best first: what fits by speed, or by memory where there is no clock; then by what is missing."""
        return not self.fits, -(self.rate or 0), bool(self.problem), self.missing or 0, self.peak or 0


def main(load: Load, overrides: list[str], axes: Sequence[str], topology: str | None, out: str | None) -> bool:
    """Compiles every combination of the axes, reports each as soon as it is known, prints the table; returns whether one fits.

    Args:
        load: makes a configuration of overrides.
        overrides: what all have in common.
        axes: "PATH=VALUE,VALUE,...": values of a field of the configuration, those that are tuples joined by "+". Empty: those of
            `default_axes`.
        topology: see `describe`.
        out: JSON file to which each row is written; what it holds already is not compiled again. None: nothing is written.

    Raises:
        ConfigError: an axis cannot be read, or the topology is none.
        SystemExit: a value is none of its field; tyro has said why.
    """
    console = Console(emoji=False, highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else WIDTH)
    parsed = dict(map(_axis, axes)) or default_axes(load(overrides))
    changes = [dict(zip(parsed, values, strict=True)) for values in itertools.product(*parsed.values())]
    configs = [load(overrides + [word for item in change.items() for word in _override(*item)]) for change in changes]
    if any(config.stages for config in configs):
        console.print("(of the parts of a run with stages the last one alone is compiled; without --sweep all are)")
    devices = describe(topology)
    known = _read(out)
    rows = []
    for i, (change, config) in enumerate(zip(changes, configs, strict=True), 1):
        name = " ".join(f"{path}={value}" for path, value in change.items())
        with console.status(f"{i} of {len(changes)}: {name}"):
            key = _key(config, topology)
            row = known[key]._replace(change=name) if key in known else compile_row(config, devices, name, key)
        rows.append(row)
        known[key] = row
        console.print(f"{i} of {len(changes)}: {name}: {_words(row)}", markup=False)
        if out is not None:
            text = json.dumps([each._asdict() for each in known.values()], indent=1) + "\n"
            write_atomically(Path(out), partial(Path.write_text, data=text))
    console.print(_table(rows, devices.chip is not None))
    console.print(NO_CLOCK if devices.chip is None else LEGEND)
    return any(row.fits for row in rows)


def default_axes(config: Config) -> dict[str, list[str]]:
    """A small set around a recipe: four degrees of keeping, its batch and twice that, with and without what it splits."""
    both = {"mesh.fsdp": config.mesh.fsdp, "accumulate": config.accumulate}
    return {
        "model.remat": ["none", ATTENTION, "attention", "nothing_saveable"],
        "batch_size": [str(config.batch_size), str(2 * config.batch_size)],
        **{path: [str(value) for value in dict.fromkeys((1, value))] for path, value in both.items() if value > 1},
    }


def compile_row(config: Config, topology: Topology, change: str, key: str) -> SweepRow:
    """The row of one configuration; a contradiction, and what the compiler refuses, is what it says."""
    row, count = SweepRow(change, key), len(topology.devices)
    try:
        check(config, devices=count)
        found = estimate(make_program(config, make_mesh(config.mesh, topology.devices), warmup_steps=1, total_steps=2), topology)
    except ConfigError as error:
        return row._replace(problem=str(error).removeprefix("config: "))
    except OutOfMemoryError as error:
        return row._replace(missing=error.missing, problem="" if error.missing else str(error))
    except jax.errors.JaxRuntimeError as error:
        return row._replace(problem=str(error).splitlines()[0])
    finally:
        jax.clear_caches()  # of programs that are never run
    row = row._replace(peak=found.peak, missing=int(max(0, found.peak - topology.memory)))
    if topology.chip is None or not found.parts:
        return row
    flops = trained_flops(config) / count
    return row._replace(
        computing=found.computing,
        step=found.step,
        rate=config.batch_size / count / found.step,
        mfu=flops / found.step / topology.chip.flops,
    )


def _axis(text: str) -> tuple[str, list[str]]:
    path, equals, values = text.partition("=")
    if not (path and equals and all(values.split(","))):
        raise ConfigError(f"compile: --sweep {text!r} is not PATH=VALUE,VALUE, such as batch_size=1024,2048")
    return path, values.split(",")


def _override(path: str, value: str) -> list[str]:
    return [f"--{path.replace('_', '-')}", *value.split("+")]


def _key(config: Config, topology: str | None) -> str:
    where = topology or [device.device_kind for device in jax.devices()]
    versions = [version(name) for name in ("jax", "jaxlib", "libtpu") if find_spec(name) is not None]
    facts = [to_saved(config), where, __version__, versions]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _read(path: str | None) -> dict[str, SweepRow]:
    """The rows of an earlier call by their keys."""
    if path is None or not Path(path).exists():
        return {}
    try:
        rows = [SweepRow(**row) for row in json.loads(Path(path).read_text())]
    except (ValueError, TypeError) as error:
        raise ConfigError(f"compile: {path} was not written by --sweep; name another file ({error})") from error
    return {row.key: row for row in rows}


def _words(row: SweepRow) -> str:
    """Outcome of a row, in a line."""
    if row.problem:
        return row.problem
    if not row.fits:
        return f"does not fit by {(row.missing or 0) / GIB:.2f} GiB a device"
    fits = f"fits with {(row.peak or 0) / GIB:.2f} GiB a device"
    return fits if row.step is None else f"{fits}, {row.step:.3f} s, {row.rate:,.0f} pairs/s a device"


def _table(rows: Iterable[SweepRow], clock: bool) -> Table:
    table = Table(box=None, padding=(0, 2))
    names = ("GiB a device", *(("step", "with transfers", "pairs/s a device", "MFU") if clock else ()))
    table.add_column("", no_wrap=True)
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("")
    for row in sorted(rows, key=lambda row: row.order):
        numbers = {"{:.2f}": row.peak and row.peak / GIB, "{:.3f} s": row.computing, " {:.3f} s": row.step}
        numbers |= {"{:,.0f}": row.rate, "{:.1%}": row.mfu}
        shown = ["" if number is None else form.format(number) for form, number in numbers.items()]
        table.add_row(row.change, *shown[: len(names)], "fits" if row.fits else _words(row))
    return table
