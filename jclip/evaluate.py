"""Evaluation as the training loop does it, and `jclip eval`: the same evaluators on a checkpoint."""

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh as DeviceMesh
from rich.console import Console

from jclip.checkpoint import CheckpointError, Checkpoints
from jclip.config import Config, ConfigError, Mesh, check
from jclip.eval import Embedding, Evaluator, Functions, make_evaluator, run_evaluators
from jclip.metrics import results_table
from jclip.processes import is_first
from jclip.sharding import by_host, gather_rows, make_gather, make_mesh, param_shardings, to_global
from jclip.step import abstract, make_encode, param_shapes


def make_evaluators(config: Config, mesh: DeviceMesh) -> dict[str, Evaluator]:
    """The evaluators of a configuration, by name."""
    encode = make_encode(config.model, mesh, make_gather(param_shapes(config), config.mesh, mesh))

    def embed(params: Any, rows: Mapping[str, np.ndarray]) -> dict[str, Embedding]:
        encoded = jax.device_get(encode(params, to_global(rows, mesh)))
        return {tower: Embedding(by_host(pooled, mesh), by_host(z, mesh)) for tower, (pooled, z) in encoded.items()}

    batch_size = -(-config.eval_batch_size // mesh.size) * mesh.size
    functions = Functions(embed, batch_size, gather_rows, jax.process_index(), jax.process_count())
    return {name: make_evaluator(evaluation, config.model, functions) for name, evaluation in config.evals.items()}


def main(workdir: str | Path, *, names: Sequence[str] = (), step: int | None = None, as_json: bool = False) -> dict[str, float]:
    """Runs the evaluations of a workdir's configuration on one of its checkpoints, and prints the results.

    Args:
        workdir: folder of a training run.
        names: which evaluations; none given means all.
        step: which checkpoint; None means the last.
        as_json: print one JSON object instead of a table.

    Raises:
        CheckpointError: there is no such checkpoint.
        ConfigError: there is no such evaluation.
    """
    config, step, params, mesh = load_run(workdir, step)
    if unknown := [name for name in names if name not in config.evals]:
        raise ConfigError(f"config: there is no evaluation {unknown[0]!r}; evaluations: {', '.join(config.evals) or 'none'}")
    wanted = {name: evaluation for name, evaluation in config.evals.items() if not names or name in names}
    evaluators = make_evaluators(dataclasses.replace(config, evals=wanted), mesh)
    results: dict[str, float] = {}
    with Console(stderr=True).status("evaluating ...") as status:
        for name, value in run_evaluators(evaluators, params):
            results[name] = value
            status.update(f"evaluating ... {name} {value:.4f}")
    if not is_first():
        return results
    if as_json:
        print(json.dumps({"step": step, **results}))
    else:
        Console(highlight=False).print(results_table(f"{workdir}, step {step:,}", results))
    return results


def is_run(path: str | Path) -> bool:
    """Whether it is the workdir of a training run."""
    return (Path(path) / "checkpoints").is_dir()


def load_run(workdir: str | Path, step: int | None = None, mesh: DeviceMesh | None = None) -> tuple[Config, int, Any, DeviceMesh]:
    """The configuration, step and parameters of a checkpoint of a run, on a mesh: by default over the devices of this machine.

    Raises:
        CheckpointError: there is none, or not that one.
    """
    with _open_run(workdir, step) as (checkpoints, config, step):
        # The machine that evaluates need not have the devices of the one that trained.
        mesh = mesh or make_mesh(Mesh(data=-1, fsdp=math.gcd(config.mesh.fsdp, jax.device_count())))
        shapes = param_shapes(config)
        params = checkpoints.restore(step, {"params": abstract(shapes, param_shardings(shapes, config.mesh, mesh))})["params"]
    return config, step, params, mesh


def run_config(workdir: str | Path, step: int | None = None) -> Config:
    """The configuration that a run was trained with; raises as `load_run` does."""
    with _open_run(workdir, step) as (_, config, _):
        return config


@contextmanager
def _open_run(workdir: str | Path, step: int | None) -> Iterator[tuple[Checkpoints, Config, int]]:
    if not is_run(workdir):
        raise CheckpointError(f"{workdir} holds no checkpoints; give the --workdir of a `jclip train`")
    with Checkpoints(workdir, read_only=True) as checkpoints:
        if not checkpoints.steps:
            raise CheckpointError(f"{workdir} holds no finished checkpoint; let `jclip train` reach its first one")
        step = checkpoints.steps[-1] if step is None else step
        if step not in checkpoints.steps:
            raise CheckpointError(f"{workdir} has no checkpoint of step {step}; it has {', '.join(map(str, checkpoints.steps))}")
        config = checkpoints.config(step)
        check(config)
        yield checkpoints, config, step
