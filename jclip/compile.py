"""Ahead-of-time compilation of a recipe's train step: does it fit, and what does it send? No accelerator is needed."""

import importlib.util
import math
import os
import re
from collections import Counter
from typing import Any, NamedTuple

import jax
import jax.extend as jex
from jax.experimental import topologies
from rich.console import Console
from rich.table import Table

from jclip.config import Config, ConfigError, check
from jclip.hlo import collectives
from jclip.hlo_time import estimated_cycles
from jclip.memory import GIB, device_memory, share, size_text
from jclip.optim import split
from jclip.program import Program, make_program
from jclip.sharding import make_mesh
from jclip.state import param_shapes
from jclip.step import step_flops
from jclip.tree import flatten

SHOWN = 6
"""How many of the largest consumers are named."""


class Chip(NamedTuple):
    """A kind of TPU chip."""

    accelerator: str
    """The prefix of its accelerator type."""
    memory: float
    """GiB that a program may use."""
    flops: float
    """Peak of bfloat16 products a second."""
    bandwidth: float
    """Bytes a second of its memory."""
    clock: float
    """Cycles a second: the peak, divided by the products of all its matrix units in a cycle."""


# Memory as the compiler reports it; peaks as in the system architecture pages of Cloud TPU.
CHIPS = {
    "v5e": Chip("v5litepod", 15.75, 197e12, 0.819e12, 1.5e9),
    "v5p": Chip("v5p", 95.74, 459e12, 2.765e12, 1.75e9),
    "v6e": Chip("v6e", 31.25, 918e12, 1.64e12, 1.75e9),
}


class Report(NamedTuple):
    """What a compiled train step needs; sizes in bytes a device."""

    arguments: int
    temporaries: int
    output: int
    """Without what takes the place of an argument."""
    peak: int


def main(config: Config, topology: str) -> bool:
    """Compiles, prints the report, and returns whether the program fits.

    Args:
        config: of the run.
        topology: "v5e:16x16", "v5p:4x4x4", "v6e:8x8", or "cpu:8" for as many emulated devices.

    Raises:
        ConfigError: there is no such topology, the configuration does not fit it, or the extra `tpu` is missing.
    """
    console = Console(highlight=False, soft_wrap=True)
    devices, limit = _devices(topology)
    check(config, devices=len(devices))
    mesh = make_mesh(config.mesh, devices)
    trained, frozen = (flatten(part) for part in split(config.optim, param_shapes(config)))
    parameters = sum(leaf.size for leaf in (trained | frozen).values())
    flops = step_flops(config, [name for name in config.model.towers if not any(_is_of(name, path) for path in trained)])
    console.print(
        f"{parameters / 1e6:,.1f}M parameters, batch {config.batch_size:,}, on {len(devices)} x {devices[0].device_kind}"
    )
    console.print(f"{flops:.3e} floating-point operations a step, {flops / len(devices):.3e} a device")
    if (chip := CHIPS.get(topology.split(":")[0])) is not None:
        console.print(f"at 50% of the peak of bfloat16 a step would take {2 * flops / len(devices) / chip.flops:.2f} s")
    program = make_program(config, mesh, warmup_steps=1, total_steps=2)
    try:
        with console.status(f"compiling for {len(devices)} devices; minutes, for large models"):
            compiled = program.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        need, fits = str(error).splitlines()[0].removeprefix("RESOURCE_EXHAUSTED: "), False
    else:
        report, text = _report(compiled), str(compiled.as_text())
        console.print(_table(report, collectives(text)))
        if chip is not None:
            console.print(_time(text, chip, config.batch_size / len(devices), flops / len(devices)))
            console.print("(by the compiler's own model, transfers left out: good for ratios, within some tens of percent)")
        need, fits = f"{size_text(report.peak)} of {size_text(limit)} a device are needed", report.peak <= limit
    console.print("[bold green]fits:[/]" if fits else "[bold red]does not fit, because[/]", need)
    if not fits:
        console.print(_consumers(program, config, len(devices)), markup=False)
    return fits


def _time(hlo: str, chip: Chip, pairs: float, flops: float) -> Table:
    """The step time that the compiler expects, and the share of each part; of one chip, with its pairs and FLOPs a step."""
    cycles = estimated_cycles(hlo, flops=chip.flops, bandwidth=chip.bandwidth, clock=chip.clock)
    seconds = sum(cycles.values()) / chip.clock
    table = Table(box=None, padding=(0, 2), show_header=False)
    rate = f"{pairs / seconds:,.0f} pairs/s a chip, MFU {flops / seconds / chip.flops:.1%}"
    table.add_row("estimated step", f"{seconds:.3f} s", rate)
    for name, count in cycles.items():
        table.add_row(f"  {name}", f"{count / chip.clock:.3f} s", f"{count / sum(cycles.values()):.1%}")
    return table


def _is_of(tower: str, path: str) -> bool:
    return path.startswith((f"{tower}/", f"{tower}_projection/"))


def _devices(topology: str) -> tuple[list[jax.Device], float]:
    """The devices, and the bytes of memory of one."""
    name, _, layout = topology.partition(":")
    if name == "cpu" and layout.isdigit() and int(layout):
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", int(layout))
        return list(jax.devices()), device_memory(jax.devices()[0]) or math.inf
    if name not in CHIPS or not re.fullmatch(r"\d+(x\d+){1,2}", layout):
        raise ConfigError(f"compile: topology {topology!r} is unknown; use cpu:8, or like v5e:16x16: {', '.join(CHIPS)}")
    chips = 1
    for side in layout.split("x"):
        chips *= int(side)
    chip = CHIPS[name]
    # libtpu compiles anywhere when it is told which slice this is, and not to look for one.
    os.environ.update(
        TPU_SKIP_MDS_QUERY="1", TPU_WORKER_HOSTNAMES="localhost", TPU_ACCELERATOR_TYPE=f"{chip.accelerator}-{chips}"
    )
    jax.config.update("jax_platforms", "cpu")
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=topology)
    except Exception as error:  # libtpu raises whatever it likes
        if importlib.util.find_spec("libtpu") is None:
            raise ConfigError("compile: TPU topologies need libtpu; `pip install 'jclip[tpu]'`, on x86 Linux") from error
        raise ConfigError(f"compile: topology {topology!r}: {str(error).splitlines()[0]}") from error
    return list(found.devices), chip.memory * GIB


def _report(compiled: Any) -> Report:
    sizes = compiled.memory_analysis()
    output = sizes.output_size_in_bytes - sizes.alias_size_in_bytes
    peak = sizes.argument_size_in_bytes + sizes.temp_size_in_bytes + output + sizes.generated_code_size_in_bytes
    return Report(sizes.argument_size_in_bytes, sizes.temp_size_in_bytes, output, peak)


def _table(report: Report, traffic: Any) -> Table:
    table = Table(box=None, padding=(0, 2), show_header=False)
    for name, size in (("arguments", report.arguments), ("temporaries", report.temporaries), ("output", report.output)):
        table.add_row(name, f"{size_text(size)} a device", "")
    for kind, (count, size) in traffic.items():
        table.add_row(kind, f"{size_text(size)} a device", f"in {count:,} collectives a step")
    return table


def _consumers(program: Program, config: Config, devices: int) -> str:
    """The largest: the arguments by part, and what the blocks keep for the backward pass."""
    sizes = [(share(part), name) for name, part in program.parts().items()]
    step = jax.make_jaxpr(program.train_step)(program.state, program.batch)
    parameters = {leaf.shape for leaf in jax.tree.leaves(program.state.params)}  # the backward pass stacks their gradients
    kept = _kept(step.jaxpr, config.batch_size // config.accumulate, parameters)
    sizes += [(size // devices, what) for what, size in kept.most_common(SHOWN)]
    lines = [f"  {size / GIB:8.3f} GiB a device  {what}" for size, what in sizes]
    return "\n".join([*lines, "less: more --accumulate or --mesh.fsdp, --model.remat nothing_saveable, a smaller --batch-size"])


def _kept(jaxpr: jex.core.Jaxpr, rows: int, parameters: set[tuple[int, ...]]) -> Counter[str]:
    """Bytes of all devices that the blocks of a tower keep of `rows` examples for the backward pass, by tower and shape.

    What has the shape of one of the `parameters` is not of examples.
    """
    sizes: Counter[str] = Counter()
    for equation in jaxpr.eqns:
        if equation.primitive.name == "scan":
            tower = str(equation.source_info.name_stack).rpartition("/")[2].removesuffix(".run_blocks")
            for value in equation.outvars[equation.params["num_carry"] :]:
                kept: Any = value.aval
                if kept.shape not in parameters and any(length % rows == 0 for length in kept.shape):
                    sizes[f"{tower} keeps {kept.str_short()}"] += math.prod(kept.shape) * kept.dtype.itemsize
        for inner in jex.core.jaxprs_in_params(equation.params):
            sizes.update(_kept(inner, rows, parameters))
    return sizes
