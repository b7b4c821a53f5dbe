"""The greeting of a run, before its first step: size, devices, memory, data, and where all goes."""

import os
from pathlib import Path
from typing import Any

import jax

from jclip.data.addresses import shown
from jclip.facts import Record
from jclip.optim import split
from jclip.parts import RunPart
from jclip.program import Program


def greeting(part: RunPart, program: Program, train_step: jax.stages.Compiled, origin: str, workdir: Path) -> str:
    """Lines that say what is about to be trained, on what, from where (`origin`) and to where."""
    config, plan, mesh = part.config, part.plan, program.mesh
    is_whole = part.is_last and not config.stages
    steps = f"{plan.total:,} steps" if is_whole else f"stage {part.name}: steps {plan.first + 1:,} to {plan.total:,}"
    trained, frozen = (sum(leaf.size for leaf in jax.tree.leaves(part)) for part in split(config.optim, program.state.params))
    how_many = f"{trained / 1e6:.1f}M trained and {frozen / 1e6:.1f}M frozen" if frozen else f"{trained / 1e6:.1f}M"
    memory: Any = train_step.memory_analysis()
    lines = [
        f"{how_many} parameters in {', '.join(config.model.towers)} on {mesh.size} x {jax.devices()[0].device_kind} "
        f"(mesh data {mesh.shape['data']} x fsdp {mesh.shape['fsdp']})",
        origin,
        f"a device holds {_mib(memory.argument_size_in_bytes)} of state and batch, "
        f"and {_mib(memory.temp_size_in_bytes)} more in a step",
        f"{shown(config.data.title)}: {_data(part.record['data'], config.batch_size)}",
        f"{steps} of {config.batch_size} examples; all goes to {workdir}",
    ]
    if jax.process_count() > 1:
        lines.append(f"{jax.process_count()} processes: when one is lost all end; start the same command again on all hosts")
    for flags in ("XLA_FLAGS", "LIBTPU_INIT_ARGS"):
        if value := os.environ.get(flags):
            lines.append(f"{flags}={value}")
    lines += [f"  {line}" for line in part.data.order_lines()] + part.data.shortcomings()
    return "\n".join(f"jclip: {line}" for line in lines)


def _data(facts: Record, batch_size: int) -> str:
    examples = facts["examples"]
    shards = f" in {facts['shards']:,} shard{'s' if facts['shards'] > 1 else ''}" if "shards" in facts else ""
    return f"{examples:,} examples{shards}, an epoch is {examples / batch_size:,.1f} steps"


def _mib(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"
