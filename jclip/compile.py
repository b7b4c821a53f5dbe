"""Ahead-of-time compilation of a recipe's train step: does it fit, what does it send, how long will it take?"""

import math
from collections import Counter
from typing import Any

import jax
import jax.extend as jex
from rich.console import Console
from rich.table import Table

from jclip.config import Config, check, stage_configs, stage_names
from jclip.estimate import Estimate, OutOfMemoryError, estimate
from jclip.memory import GIB, share, size_text
from jclip.operations import trained_flops
from jclip.optim import split
from jclip.program import Program, make_program
from jclip.sharding import make_mesh
from jclip.state import param_shapes
from jclip.topology import Chip, describe
from jclip.tree import flatten

SHOWN = 6
"""Number of the largest consumers that are named."""

LIMITS = (
    "(computing alone by the compiler's own model: good for ratios, within some tens of percent; "
    "a custom call, such as a kernel of our own, by the larger of its operations and its bytes; "
    "the transfers by their bytes over the wires, as if none ran beside the computing)"
)


def main(config: Config, topology: str | None) -> bool:
    """Compiles each stage of a run, prints the reports, and returns whether all fit.

    Args:
        config: of the run.
        topology: see `describe`.

    Raises:
        ConfigError: there is no such topology, the configuration does not fit it, or the extra `tpu` is missing.
    """
    fits = []
    for name, part in zip(stage_names(config), stage_configs(config), strict=True):
        if config.stages:
            print(f"stage {name}")
        fits.append(_compile(part, topology))
    return all(fits)


def _compile(config: Config, topology: str | None) -> bool:
    """One stage; see `main`."""
    console = Console(emoji=False, highlight=False, soft_wrap=True)
    slice_ = describe(topology)
    count = len(slice_.devices)
    check(config, devices=count)
    trained, frozen = (flatten(part) for part in split(config.optim, param_shapes(config)))
    parameters, flops = sum(leaf.size for leaf in (trained | frozen).values()), trained_flops(config)
    kind = slice_.devices[0].device_kind
    console.print(f"{parameters / 1e6:,.1f}M parameters, batch {config.batch_size:,}, on {count} x {kind}")
    console.print(f"{flops:.3e} floating-point operations a step, {flops / count:.3e} a device")
    if slice_.chip is not None:
        console.print(f"at 50% of the peak of bfloat16 a step would take {2 * flops / count / slice_.chip.flops:.2f} s")
    program = make_program(config, make_mesh(config.mesh, slice_.devices), warmup_steps=1, total_steps=2)
    try:
        with console.status(f"compiling for {count} devices; minutes, for large models"):
            found = estimate(program, slice_)
    except OutOfMemoryError as error:
        need, fits = str(error), False
    else:
        console.print(_needs(found))
        if slice_.chip is not None:
            console.print(_times(found, slice_.chip, config.batch_size / count, flops / count))
            console.print(LIMITS)
        need = f"{size_text(found.peak)} of {size_text(slice_.memory)} a device are needed"
        fits = found.peak <= slice_.memory
    console.print("[bold green]fits:[/]" if fits else "[bold red]does not fit, because[/]", need)
    if not fits:
        console.print(_consumers(program, config, count), markup=False)
    return fits


def _needs(found: Estimate) -> Table:
    """The bytes of a device, and what it sends."""
    table = Table(box=None, padding=(0, 2), show_header=False)
    for name, size in (("arguments", found.arguments), ("temporaries", found.temporaries), ("output", found.output)):
        table.add_row(name, f"{size_text(size)} a device")
    for kind, sent in found.traffic.items():
        time = f"{found.transfers[kind]:.3f} s" if kind in found.transfers else ""
        types = ", ".join(f"{dtype} {size_text(size)}" for dtype, size in sorted(sent.sizes.items(), key=lambda item: -item[1]))
        table.add_row(kind, f"{size_text(sent.size)} a device", f"{sent.runs:,} a step", time, types)
    return table


def _times(found: Estimate, chip: Chip, pairs: float, flops: float) -> Table:
    """The step time that the compiler expects, and the share of each part; of one chip, with its pairs and FLOPs a step."""
    table = Table(box=None, padding=(0, 2), show_header=False)

    def rate(seconds: float) -> str:
        return f"{pairs / seconds:,.0f} pairs/s a chip, MFU {flops / seconds / chip.flops:.1%}"

    table.add_row("estimated step", f"{found.computing:.3f} s", rate(found.computing))
    for name, seconds in found.parts.items():
        table.add_row(f"  {name}", f"{seconds:.3f} s", f"{seconds / found.computing:.1%}")
    table.add_row("with the transfers", f"{found.step:.3f} s", rate(found.step))
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
                like: Any = value.aval
                if like.shape not in parameters and any(length % rows == 0 for length in like.shape):
                    sizes[f"{tower} keeps {like.str_short()}"] += math.prod(like.shape) * like.dtype.itemsize
        inside = [_kept(inner, rows, parameters) for inner in jex.core.jaxprs_in_params(equation.params)]
        for kept in inside if equation.primitive.name != "cond" else [max(inside, key=lambda branch: branch.total())]:
            sizes.update(kept)
    return sizes
