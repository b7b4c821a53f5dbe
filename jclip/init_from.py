"""Fine-tuning: a run that starts from the parameters of another run, or of anyone's weights (see `InitFrom`)."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jclip.config import ConfigError, InitFrom, Model, TextTower
from jclip.config.same import parameter_changes
from jclip.files import is_run
from jclip.program import Program
from jclip.runs import load_run, run_config
from jclip.sharding import replicated
from jclip.state import TrainState, new_extra, param_shapes
from jclip.tree import flatten, match_rules, require_used, unflatten
from jclip.weights import extend_positions, local_path, read_weights, resize_positions

RESIZED = ("image_size", "context_length")
"""Fields of a tower that may differ, because positions are resized."""


class Origin(NamedTuple):
    """Origin of parameters, none of which has been read.

    Attributes:
        name: path and kind, for messages.
        model: the model they belong to.
        shapes: of all that there is, by path.
        read: mesh -> the parameters one by one, each with its path.
    """

    name: str
    model: Model
    shapes: Mapping[str, tuple[int, ...]]
    read: Callable[[Mesh], Iterable[tuple[str, Any]]]


def start_from(init: InitFrom, program: Program) -> tuple[TrainState, str]:
    """The state at step 0 with the parameters that `init` names, and a line that says what came from where.

    Each array goes to the devices as it is read, each device its share. All is checked before anything is allocated.

    Raises:
        ConfigError: there is nothing at the path, it has another model, a parameter is missing or of another shape (all are
            listed), a rule matches no parameter, or a parameter no rule.
        CheckpointError: the workdir holds no such checkpoint.
        WeightsError: weights are damaged, or have an option that is not reproduced.
    """
    wanted, mesh, model = flatten(program.state.params), program.mesh, program.config.model
    loaded = _loaded(init, program.state.params)
    source = _renamed(_open(init), init.towers)
    _check_model(model, source, loaded, set(wanted))
    _check_shapes(source, {path: wanted[path].shape for path in loaded})

    state = program.init()
    params = flatten(state.params)
    state = state._replace(params={}, extra={})
    extend = init.text_positions == "extend"
    texts = {f"{name}/pos_embed" for name, tower in model.towers.items() if isinstance(tower, TextTower) and extend}
    begun = {path: _on_host(params[path], mesh) for path in texts & loaded}
    for path in loaded:
        del params[path]  # what is random leaves the devices before what takes its place is read
    for path, array in source.read(mesh):
        if path in loaded:
            if path in begun:
                tower = model.towers[path.partition("/")[0]]
                assert isinstance(tower, TextTower)
                array = extend_positions(_on_host(array, mesh), begun[path], tower)
            elif path.endswith("/pos_embed"):  # as many positions may be another grid
                array = resize_positions({path: _on_host(array, mesh)}, source.model, model)[path]
            params[path] = _placed(array, wanted[path].sharding)
    state = state._replace(params=unflatten(params), extra=_extra_of(program, unflatten(params)))
    return state, _summary(source, loaded, wanted)


def _extra_of(program: Program, params: Mapping[str, Any]) -> dict[str, Any]:
    """The moving average and the state of objectives as these parameters begin them; in memory of its own, for the parameters'
    is donated to the first step."""
    shardings = jax.tree.map(lambda like: like.sharding, program.state.extra)
    made: dict[str, Any] = jax.jit(lambda p: jax.tree.map(jnp.copy, new_extra(program.config, p)), out_shardings=shardings)(
        params
    )
    return made


def _loaded(init: InitFrom, params: Mapping[str, Any]) -> set[str]:
    """The paths that the rules say to load."""
    require_used(params, init.rules, "init_from.rules")
    return {path for path, what in flatten(match_rules(params, init.rules)).items() if what == "load"}


def _open(init: InitFrom) -> Origin:
    path = Path(local_path(init.path))
    if not path.exists():
        raise ConfigError(
            f"config: there is nothing at init_from.path {path}; give a workdir, a folder of weights or a weight file"
        )
    if not is_run(path):
        if init.step is not None:
            raise ConfigError(f"config: init_from.path {path} is no workdir; leave out init_from.step")
        weights = read_weights(path, init.architecture, init.tokenizer)
        return Origin(f"{path} ({weights.format})", weights.model, weights.shapes, lambda mesh: weights)
    for field in ("architecture", "tokenizer"):
        if getattr(init, field) is not None:
            raise ConfigError(f"config: init_from.path {path} is a workdir; leave out init_from.{field}")

    def read(mesh: Mesh) -> Iterator[tuple[str, Any]]:
        _, _, params, _ = load_run(path, init.step, mesh, heads=True)
        yield from flatten(params).items()

    config = run_config(path, init.step)
    shapes = {path: leaf.shape for path, leaf in flatten(param_shapes(config)).items()}
    return Origin(f"{path} (a training run)", config.model, shapes, read)


def _renamed(source: Origin, towers: Mapping[str, str]) -> Origin:
    """The source with further towers: `towers` are their names, and those of the towers there that they are."""
    if unknown := set(towers.values()) - source.model.towers.keys():
        there = ", ".join(source.model.towers)
        raise ConfigError(f"config: init_from.towers: {source.name} has no tower {', '.join(sorted(unknown))}; it has {there}")

    taken = tuple(f"{here}{part}/" for here in towers for part in ("", "_projection"))

    def names(path: str) -> Iterator[str]:
        if not path.startswith(taken):  # another tower takes that name
            yield path
        for here, there in towers.items():
            for part in ("", "_projection"):
                if path.startswith(f"{there}{part}/"):
                    yield path.replace(there, here, 1)

    def read(mesh: Mesh) -> Iterator[tuple[str, Any]]:
        for path, array in source.read(mesh):
            yield from ((name, array) for name in names(path))

    further = {here: source.model.towers[there] for here, there in towers.items()}
    model = dataclasses.replace(source.model, towers={**source.model.towers, **further})
    return Origin(source.name, model, {name: shape for path, shape in source.shapes.items() for name in names(path)}, read)


def _check_model(model: Model, source: Origin, loaded: set[str], wanted: set[str]) -> None:
    """Raises ConfigError where what is loaded would not be computed as it was where it comes from."""
    changes = []
    for name, tower in model.towers.items():
        there = source.model.towers.get(name)
        if there is not None and any(path.startswith(f"{name}/") for path in loaded):
            projection = {path for path in wanted if path.startswith(f"{name}_projection/")}
            new_projection = bool(projection) and not projection & loaded
            free = (*RESIZED, "projection") if new_projection else RESIZED
            changes += parameter_changes(f"model.towers.{name}", there, tower, free)
    if changes:
        raise ConfigError(
            f"config: the parameters of {source.name} are not for this model: {'; '.join(changes)} (there -> here); "
            "give the model what is there, or let init_from.rules say 'scratch' for the whole tower"
        )


def _check_shapes(source: Origin, wanted: Mapping[str, tuple[int, ...]]) -> None:
    problems = [f"missing {path} {shape}" for path, shape in wanted.items() if path not in source.shapes]
    problems += [
        f"{path} is {source.shapes[path]}, not {shape}"
        for path, shape in wanted.items()
        if path in source.shapes and source.shapes[path] != shape and not path.endswith("/pos_embed")  # which is resized
    ]
    if problems:
        raise ConfigError(
            f"config: {source.name} does not have all that init_from.rules say to load: {'; '.join(sorted(problems))}; "
            "let a rule say 'scratch' for what is to be new"
        )


def _on_host(array: Any, mesh: Mesh) -> np.ndarray:
    """Whole, on each host."""
    return np.asarray(jax.device_put(array, replicated(mesh)) if isinstance(array, jax.Array) else array)


def _placed(array: Any, sharding: jax.sharding.Sharding) -> jax.Array:
    """The arrays on the devices, each of which takes its share."""
    if isinstance(array, jax.Array):
        return jax.device_put(array, sharding)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def _summary(source: Origin, loaded: set[str], wanted: Mapping[str, Any]) -> str:
    size = {True: 0, False: 0}
    for path, leaf in wanted.items():
        size[path in loaded] += leaf.size
    line = f"{size[True] / 1e6:.1f}M parameters come from {source.name}"
    if new := wanted.keys() - loaded:
        line += f"; {size[False] / 1e6:.1f}M are new ({_by_part(new)})"
    if unused := source.shapes.keys() - loaded:
        line += f"; not used of what is there: {_by_part(unused)}"
    return line


def _by_part(paths: Iterable[str]) -> str:
    """ "text 16, text_projection 1": how many arrays of each part of the model."""
    counts = Counter(path.partition("/")[0] for path in sorted(paths))
    return ", ".join(f"{part} {count}" for part, count in counts.items())
