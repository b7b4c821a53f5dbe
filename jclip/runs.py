"""Training runs as folders: the configuration and the parameters of a checkpoint."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from jclip.checkpoint import CheckpointError, Checkpoints
from jclip.config import Config, MeshConfig, check_model
from jclip.files import is_run
from jclip.sharding import extra_shardings, make_mesh, param_shardings
from jclip.state import abstract, evaluated_params, new_extra, param_shapes


def load_run(
    workdir: str | Path, step: int | None = None, mesh: Mesh | None = None, *, heads: bool = False
) -> tuple[Config, int, Any, Mesh]:
    """The configuration, step and parameters of a checkpoint of a run, on a mesh: by default over the devices of this machine.

    With config.evaluate_ema the parameters are the moving average. They are those of the model: of its objectives only the scales
    between two towers, under the names of both, such as "image_text/logit_scale", and what writes captions; with `heads` all, as
    in training.

    Raises:
        CheckpointError: there is none, or not that one.
    """
    with open_run(workdir, step) as (checkpoints, config, step):
        # The machine that evaluates need not have the devices of the one that trained.
        mesh = mesh or make_mesh(MeshConfig(data=-1, fsdp=math.gcd(config.mesh.fsdp, jax.device_count())))
        shapes = param_shapes(config)
        parts = {"params": abstract(shapes, param_shardings(shapes, config.mesh, mesh))}
        if config.evaluate_ema:
            extra = jax.eval_shape(partial(new_extra, config), shapes)
            parts["extra"] = abstract(extra, extra_shardings(extra, shapes, config.mesh, mesh))
        saved = checkpoints.restore(step, parts)
    params = evaluated_params(config, saved["params"], saved.get("extra", {}))
    if heads:
        return config, step, params, mesh
    return without_teachers(config), step, _of_model(config, params), mesh


def without_teachers(config: Config) -> Config:
    """The configuration of the student alone: without towers that only teach, and what sees them."""
    teachers = config.teachers()
    if not teachers:
        return config
    views = {name: view for name, view in config.views.items() if view.tower not in teachers}
    known = {*views, *config.model.towers} - teachers
    objectives = {name: how for name, how in config.objectives.items() if set(how.views()) <= known}
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, towers={n: t for n, t in config.model.towers.items() if n not in teachers}),
        views=views,
        objectives=objectives,
        evals={name: how for name, how in config.evals.items() if not teachers & {*how.towers()}},
    )


def _of_model(config: Config, params: Mapping[str, Any]) -> dict[str, Any]:
    left = {*config.objectives, *config.teachers(), *(f"{tower}_projection" for tower in config.teachers())}
    towers = {name: tree for name, tree in params.items() if name not in left}
    scales = {both: params[name] for both, name in config.scales().items()}
    return {**towers, **scales, **{name: params[name] for name in config.captioners()}}


def run_config(workdir: str | Path, step: int | None = None) -> Config:
    """The configuration that a run was trained with; raises as `load_run` does."""
    with open_run(workdir, step) as (_, config, _):
        return config


@contextmanager
def open_run(workdir: str | Path, step: int | None) -> Iterator[tuple[Checkpoints, Config, int]]:
    """The checkpoints of a run, to be read, with the configuration and the step of one of them, by default the last.

    Raises:
        CheckpointError: there is none, or not that one.
    """
    if not is_run(workdir):
        raise CheckpointError(f"{workdir} holds no checkpoints; give the --workdir of a `jclip train`")
    with Checkpoints(workdir, read_only=True) as checkpoints:
        if not checkpoints.steps:
            raise CheckpointError(f"{workdir} holds no finished checkpoint; let `jclip train` reach its first one")
        step = checkpoints.steps[-1] if step is None else step
        if step not in checkpoints.steps:
            raise CheckpointError(f"{workdir} has no checkpoint of step {step}; it has {', '.join(map(str, checkpoints.steps))}")
        config = checkpoints.config(step)
        check_model(config.model)  # the rest was right when it was trained, by the rules of then
        yield checkpoints, config, step
