"""The parts of a run, its stages: everything that a process derives by itself before it looks at a checkpoint."""

import json
from collections.abc import Iterable
from typing import NamedTuple

import jax

from jclip.config import Config, Plan, check, make_plans, stage_configs, stage_names
from jclip.data import Mixture, RunData, Source, open_data, planned
from jclip.facts import Record, between_hosts, listed, make_record, shard_sizes
from jclip.processes import Refused, gather_texts, this_process


class RunPart(NamedTuple):
    """A stage of a run, or all of one that has none."""

    name: str
    run: Config
    """The whole run."""
    config: Config
    plan: Plan
    data: RunData
    record: Record
    is_last: bool


def prepare(config: Config, source: Source | None = None, *, devices: int | None = None) -> list[RunPart]:
    """The parts of a run, with their data; raises as `check`, `open_data` and `RunData`.

    Args:
        config: of the run.
        source: in place of what config.data names.
        devices: those that train; None: the devices of this run.
    """
    configs = stage_configs(config)
    for part in reversed(configs):  # the whole first, whose messages name the stage
        check(part, devices=jax.device_count() if devices is None else devices)
    own = source is None
    source = open_data(config) if source is None else source
    plans = make_plans(config, examples=len(source))
    if own and isinstance(source, Mixture):
        source = planned(source, zip(configs, plans, strict=True))
    parts = []
    for name, part, plan in zip(stage_names(config), configs, plans, strict=True):
        data = RunData(part, source, plan, host=jax.process_index(), hosts=jax.process_count())
        parts.append(RunPart(name, config, part, plan, data, make_record(part, source, plan), part is config))
    return parts


def require_room(parts: Iterable[RunPart]) -> None:
    """Raises SourceError where this host has no room for the shards that a part is to be read from."""
    for part in parts:
        part.data.require_room()


def compare_hosts(record: Record, source: Source) -> None:
    """Raises Refused on every process where they are not about to train the same."""
    if jax.process_count() == 1:
        return
    names, records = gather_texts(this_process()), gather_texts(json.dumps(record))
    found = between_hosts(names, [json.loads(text) for text in records])
    if any(line.startswith("data.") for line in found):  # all have found the same, and all go on to name the shards
        sizes = [{"shards": json.loads(text)} for text in gather_texts(json.dumps(shard_sizes(source)))]
        found += between_hosts(names, sizes)
    if found:
        raise Refused(f"the processes of the run differ; start all with the same command, data and versions:\n  {listed(found)}")
