"""The record of what a run is made of: small, compared between hosts, kept with each checkpoint, and compared at a resume."""

import hashlib
import json
import platform
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from itertools import chain
from pathlib import Path
from typing import Any

import flax
import jax
import numpy as np
import optax

from jclip import __version__
from jclip.config import Config, Data, Plan, TokenTower, differences, from_json, to_saved
from jclip.data import BadExample, Mixture, Source
from jclip.data.addresses import shown
from jclip.files import read_whole

FORMAT = 2
"""Format of a record. 1: jclip 0.1.0 until November 2026, which kept the configuration and versions alone."""

SAMPLES = 16
"""Examples that are read for the fingerprint of a source, at equal distances."""

BLOCKS, BLOCK = 16, 4096
"""Number and bytes of the blocks that are read of a file of weights, at equal distances."""

SHOWN = 6
"""Differences that a message names."""

Record = dict[str, Any]
"""The record as JSON: "format", "config" (see `to_saved`), "data", "plan", "vocabulary", "files", "weights" and "versions"."""


def make_record(config: Config, source: Source, plan: Plan) -> Record:
    """The record of a run. Each process of it makes its own, from what it sees.

    Raises:
        OSError: a vocabulary or weights cannot be read.
    """
    return {
        "format": FORMAT,
        "config": to_saved(config),
        "data": data_facts(source),
        "plan": {
            "total": plan.total,
            "first": plan.first,
            "skipped": plan.skipped,
            "shares": [[shares.first, *shares.weights] for shares in source.phases] if isinstance(source, Mixture) else [],
            "warmup": plan.warmup,
            "cooldown": plan.cooldown,
            "checkpoint_every": plan.checkpoint_every,
        },
        "vocabulary": _vocabularies(config),
        "files": {path: weights_digest(path) for path in _files(config)},
        "weights": weights_digest(config.init_from.path),
        "versions": versions(),
    }


def data_facts(source: Source) -> dict[str, Any]:
    """The number of examples, and what identifies the data without reading all of it: shards, and a few examples."""
    shards = getattr(source, "shards", None)
    facts = {"examples": len(source), "fingerprint": _sample(source)}
    if shards is not None:
        facts |= {"shards": len(shards), "sizes": _hash(f"{name} {size}\n" for name, size in shards.items())}
    return facts


def shard_sizes(source: Source) -> dict[str, int]:
    """Bytes of each shard by name; none where a source has no shards."""
    return dict(getattr(source, "shards", None) or {})


def versions() -> dict[str, str]:
    """Versions of everything that a result may depend on."""
    return {
        "jclip": __version__,
        "jax": jax.__version__,
        "jaxlib": metadata.version("jaxlib"),
        "flax": flax.__version__,
        "optax": optax.__version__,
        "python": platform.python_version(),
    }


def between_hosts(names: Sequence[str], records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Differences between the records of the processes of a run: "config.optim.lr is 0.1 on process 0 (a) and 0.2 on ...".

    That of Python is none: it changes no result.
    """
    found = []
    for other in range(1, len(records)):
        for at, here, there in _leaf_differences(records[0], records[other]):
            if at != "versions.python":
                found.append(f"{at} is {here!r} on {names[0]} and {there!r} on {names[other]}")
    return list(map(shown, found))


def _leaf_differences(old: Any, new: Any, at: str = "") -> list[tuple[str, Any, Any]]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = dict.fromkeys((*old, *new))
        return list(chain.from_iterable(_leaf_differences(old.get(k), new.get(k), f"{at}.{k}".lstrip(".")) for k in keys))
    return [] if old == new else [(at, old, new)]


def listed(lines: Sequence[str]) -> str:
    """The first lines, and how many more there are."""
    more = [f"and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    return "\n  ".join([*lines[:SHOWN], *more])


def changes(saved: Mapping[str, Any], now: Mapping[str, Any], step: int, rates: tuple[float, float]) -> list[str]:
    """Changes since a checkpoint was saved, each with its effect; nothing of what its record does not hold.

    Args:
        saved: its record.
        now: the record of the run that goes on.
        step: of the checkpoint.
        rates: the learning rate of the next step by the schedule then, and by that of now.
    """
    lines = list(map(shown, differences(*(from_json(record["config"]) for record in (saved, now)))))
    if "format" not in saved:
        return lines
    lines += _data_changes(saved, now, step)
    then, today = saved["plan"], now["plan"]
    if then["total"] != today["total"]:
        lines.append(f"the run is {today['total']:,} steps long instead of {then['total']:,}")
    if rates[0] != rates[1]:
        lines.append(
            f"the learning rate of step {step + 1:,} is {rates[1]:.3g}, where the schedule of before gave {rates[0]:.3g}"
        )
    if saved["vocabulary"] != now["vocabulary"]:
        lines.append("the vocabulary's file is another: its token ids may mean other words than those that were trained")
    for path in sorted(saved.get("files", {}).keys() & now["files"].keys()):
        if saved["files"][path] != now["files"][path]:
            lines.append(f"{path} holds other than it did: from here on it is trained on that")
    lines += [f"versions.{line}" for line in differences(saved["versions"], now["versions"])]
    return lines


def _data_changes(saved: Mapping[str, Any], now: Mapping[str, Any], step: int) -> list[str]:
    """Data or batch size; the order of the examples is a function of their number, the seed and the step."""
    before, after = saved["data"], now["data"]
    sizes = tuple(record["config"]["batch_size"] for record in (saved, now))
    lines = []
    if before["examples"] != after["examples"]:
        lines.append(
            f"the data has {after['examples']:,} examples instead of {before['examples']:,}: an epoch has another length and "
            "order from here on, and what of this one was seen is not known"
        )
    elif before != after:
        what = "names or sizes of shards" if before.get("sizes") != after.get("sizes") else "examples"
        lines.append(f"the data is other than it was ({what}), in the same number of examples")
    shuffles = [_shuffle(from_json(record["config"]).data) for record in (saved, now)]
    if shuffles[0] != shuffles[1]:
        lines.append(
            f"examples are shuffled otherwise ({shuffles[1]} instead of {shuffles[0]}): the order goes on at the same place of "
            "another one, so that some examples of this epoch come again and others are left out"
        )
    seen, place = (_seen(record, step) for record in (saved, now))
    shares = [_shares(record, seen) for record in (saved, now)]
    if all(shares) and shares[0] != shares[1]:
        lines.append(
            "weights of sources are others: the order goes on where they would have led from the start, so that some examples "
            "come again and others are left out; data.sources.NAME.changes changes a weight from a step on, and nothing else"
        )
    if before.get("shards") != after.get("shards"):
        lines.append(f"the data has {after.get('shards')} shards instead of {before.get('shards')}")
    if seen != place:
        what = f"batches of {sizes[1]} instead of {sizes[0]}" if sizes[0] != sizes[1] else "other batches in the stages before"
        epochs = seen / before["examples"], place / after["examples"]
        lines.append(
            f"{what}: {epochs[0]:.2f} epochs were seen, and the order goes on at {epochs[1]:.2f}: "
            + ("what lies between is seen again" if epochs[1] < epochs[0] else "what lies between is left out")
        )
    return lines


def _shuffle(data: Data) -> str:
    """The way in which the examples of a run are shuffled, for people."""
    return "all at once" if data.shuffle == "full" else f"in {data.lanes} lanes of blocks of {data.block_shards} shards"


def _seen(record: Mapping[str, Any], step: int) -> int:
    """Examples of the endless order before a step, by the plan of a record."""
    plan = record["plan"]
    return int(plan.get("skipped", 0) + (step - plan.get("first", 0)) * record["config"]["batch_size"])


def _shares(record: Mapping[str, Any], seen: int) -> list[Any]:
    """The weights of a mixture's sources up to a place of the order."""
    return [shares for shares in record["plan"].get("shares", []) if shares[0] < seen]


def _sample(source: Source) -> str:
    """The digest of a few examples' keys and fields, in hexadecimal: other data or another order most likely shows."""
    if isinstance(source, Mixture):  # of a small source among large ones no example might be one of those that are read
        return _hash(f"{name} {_sample(one)}\n" for name, one in source.sources.items())
    n = len(source)
    places = sorted({i * (n - 1) // max(1, SAMPLES - 1) for i in range(SAMPLES)}) if n else []
    return _hash(text for place in places for text in _example_text(source, place))


def _example_text(source: Source, place: int) -> Iterable[str]:
    try:
        example = source[place]
        fields = sorted(example)
    except BadExample:
        yield f"{place} broken\n"
        return
    for name in fields:
        try:
            yield f"{place} {name} {_value_text(example[name])}\n"
        except BadExample:
            yield f"{place} {name} broken\n"


def _value_text(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype}{value.shape} {hashlib.blake2b(value.tobytes(), digest_size=16).hexdigest()}"
    if isinstance(value, (bytes, bytearray, memoryview)):
        return hashlib.blake2b(value, digest_size=16).hexdigest()
    try:
        return json.dumps(value, sort_keys=True)
    except (TypeError, ValueError):
        return type(value).__name__  # what it shows of itself may be its address


def _vocabularies(config: Config) -> dict[str, str]:
    """The digest of each text tower's vocabulary, where it is a file."""
    towers = {name: tower for name, tower in config.model.towers.items() if isinstance(tower, TokenTower)}
    files = {name: tower.tokenizer.file for name, tower in towers.items() if tower.tokenizer.file}
    return {name: hashlib.blake2b(read_whole(file), digest_size=16).hexdigest() for name, file in files.items()}


def _files(config: Config) -> list[str]:
    """Paths that views are made of beside the examples: folders of embeddings, files of synonyms."""
    views = config.inputs().values()
    return sorted({path for view in views for path in (view.stored, view.text_augment.synonyms) if path})


def weights_digest(path: str | Path) -> str:
    """The digest of some blocks of the files at a path, with their names and sizes; "" where there is no such path here."""
    root = Path(path)
    if not str(path) or not root.exists():
        return ""
    files = [root] if root.is_file() else sorted(file for file in root.rglob("*") if file.is_file())
    if (root / "checkpoints").is_dir():  # a run, which may go on meanwhile: what its checkpoints say of themselves
        files = [file for file in files if file.name == "_CHECKPOINT_METADATA"]
    return _hash(f"{file.relative_to(root)} {_block_digest(file)}\n" for file in files)


def _block_digest(file: Path) -> str:
    size = file.stat().st_size
    found = hashlib.blake2b(str(size).encode(), digest_size=16)
    with file.open("rb") as opened:
        for i in range(BLOCKS):
            opened.seek(i * max(0, size - BLOCK) // (BLOCKS - 1))
            found.update(opened.read(BLOCK))
    return found.hexdigest()


def _hash(texts: Iterable[str]) -> str:
    found = hashlib.blake2b(digest_size=16)
    for text in texts:
        found.update(text.encode("utf-8", "backslashreplace"))
    return found.hexdigest()
