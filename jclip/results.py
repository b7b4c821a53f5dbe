"""The file of results: what was measured, by which protocol, of which weights and data, for `jclip report` and for going on."""

import contextlib
import json
import math
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np

from jclip import __version__
from jclip.config import ConfigError, Tower, from_json, to_json
from jclip.config.same import changed_towers
from jclip.data.caches import write_atomically
from jclip.eval import Evaluator, Result, tower_facts
from jclip.eval.cache import digest
from jclip.files import read_whole

FORMAT = "jclip results 1"
"""Format of the file; `jclip report` reads this one."""


@dataclass(frozen=True)
class Results:
    """Results by name, written to a file after each. What the file has is not computed again, if all it depends on is equal."""

    header: Mapping[str, Any]
    """Facts beside the results: model, versions, devices."""
    weights: Callable[[str], str]
    """A tower's name -> the digest of its parameters."""
    path: Path | None = None
    """The file; None: nothing is kept."""
    gather: Callable[[np.ndarray], np.ndarray] = lambda rows: rows
    """See Functions: hosts agree on what they compute."""
    host: int = 0
    """Number of this host; the first alone writes."""
    _found: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if not self.path.exists():
            return
        content = kept_results(self.path)
        theirs, ours = content["model"], self.header["model"]
        if theirs["weights"] != ours["weights"]:
            raise ConfigError(
                f"{self.path}: holds results of other weights ({theirs['name']}, step {theirs['step']}) than those of "
                f"{ours['name']}, step {ours['step']}; give another --json, or remove it"
            )
        if changes := _changes(theirs, ours):
            raise ConfigError(
                f"{self.path}: holds results of the same weights under another configuration: {'; '.join(changes)} (here); give "
                "another --json, or remove it"
            )
        self._found.update(content["results"])

    def run(self, name: str, evaluator: Evaluator, params: Any) -> Result:
        """The result of an evaluator: from the file, or new."""
        if self.path is None:
            return evaluator.run(params)
        entry = self._describe(evaluator)
        old = self._found.get(name, {})
        whole = all(isinstance(old.get(part), dict) for part in ("metrics", "counts", "details"))
        known = whole and old.get("key") == entry["key"] and evaluator.is_saved(self.weights)
        if self.gather(np.array([known], np.uint8)).all():
            return Result(old["metrics"], old["counts"], old["details"])
        began = time.perf_counter()
        result = evaluator.run(params, details=True)
        entry |= {"seconds": round(time.perf_counter() - began, 2)}
        entry |= {"metrics": result.metrics, "counts": result.counts, "details": result.details}
        self._found[name] = entry
        self.write()
        return result

    def write(self) -> None:
        """Writes the file, as all that it holds at once."""
        if self.host == 0 and self.path is not None:
            text = json.dumps({"format": FORMAT, **self.header, "results": self._found}, indent=1)
            write_atomically(self.path, lambda path: path.write_text(text, encoding="utf-8"))

    def _describe(self, evaluator: Evaluator) -> dict[str, Any]:
        config = evaluator.config
        settings, specs = {k: v for k, v in to_json(config).items() if k not in ("type", "every")}, config.sources()
        data = {
            role: {"spec": specs[role], "fingerprint": source.fingerprint()} for role, source in evaluator.bench.sources.items()
        }
        protocol = " ".join([type(config).__name__, *([settings["protocol"]] if "protocol" in settings else [])])
        weights = {tower: self.weights(tower) for tower in config.towers()}
        facts = {tower: tower_facts(evaluator.bench.model.towers[tower]) for tower in weights}
        if config.captions() is not None:
            weights |= {name: self.weights(name) for name in evaluator.bench.functions.captioners}
        entry = {"protocol": protocol, "settings": settings, "data": data, "dtype": "float32", "weights": weights}
        machine = {name: self.header[name] for name in ("versions", "devices")}
        return {**entry, **machine, "key": digest({**entry, "towers": facts, "max_pixels": evaluator.bench.functions.max_pixels})}


def _changes(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    """Fields of towers that two files' models do not share, as far as features depend on them; none where one says no towers."""
    if theirs.get("towers", {}).keys() != ours.get("towers", {}).keys():
        return []
    towers = {name: from_json(tower, cast(Any, Tower)) for name, tower in ours.get("towers", {}).items()}
    return changed_towers(theirs.get("towers", {}), towers)


def read_results(path: Path, advice: str = "give another --json, or remove it") -> dict[str, Any]:
    """The content of a file of results, of which the format alone is known.

    Raises:
        ConfigError: it is none; the message ends with `advice`.
    """
    try:
        content = json.loads(read_whole(path))
    except FileNotFoundError:
        raise ConfigError(f"there is no file {path}; {advice}") from None
    except IsADirectoryError:
        raise ConfigError(f"{path} is a folder, not a file of results; {advice}") from None
    except OSError as error:
        raise ConfigError(f"{path} is no file of results ({error}); {advice}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is no file of results, it is not JSON ({error}); {advice}") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        given = content.get("format") if isinstance(content, dict) else type(content).__name__
        raise ConfigError(f'{path} is no file of results, it has the format {given!r}, where "{FORMAT}" is read; {advice}')
    return content


def kept_results(path: Path) -> dict[str, Any]:
    """The content of a file of results that an evaluation goes on with; raises as `read_results`, also where it is damaged."""
    content = read_results(path)
    model, results = content.get("model"), content.get("results")
    known = isinstance(model, dict) and {"weights", "name", "step"} <= model.keys()
    if not (known and isinstance(results, dict) and all(isinstance(result, dict) for result in results.values())):
        raise ConfigError(f"{path} is no file of results, or damaged; give another --json, or remove it")
    return content


def describe_machine() -> dict[str, Any]:
    """Versions and devices."""
    versions = {"jclip": __version__, "jax": jax.__version__, "numpy": np.__version__, "python": platform.python_version()}
    devices = jax.devices()
    return {"versions": versions, "devices": f"{len(devices)} {devices[0].device_kind}"}


def training_curves(workdir: Path, most: int = 500) -> list[dict[str, float]]:
    """Lines of a run's metrics.jsonl, each value a number: all evaluations, and of the others about `most` at equal distances."""
    path = workdir / "metrics.jsonl"
    if not path.is_file():
        return []
    lines = []
    for text in read_whole(path).splitlines():
        with contextlib.suppress(ValueError, RecursionError):  # half a line, cut off when the run was killed
            lines.append(json.loads(text))
    whole = [line for line in lines if isinstance(line, dict)]
    numbers = [{k: v for k, v in line.items() if isinstance(v, (int, float)) and math.isfinite(v)} for line in whole]
    every = max(1, len(numbers) // most)
    return [line for i, line in enumerate(numbers) if i % every == 0 or "loss" not in line]
