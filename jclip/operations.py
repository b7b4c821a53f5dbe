"""The arithmetic of a train step: its floating-point operations, and how many steps a second the devices could do at most."""

from collections.abc import Collection

from jax.sharding import Mesh

from jclip.config import Config
from jclip.models import towers_flops
from jclip.objectives import make_objective
from jclip.optim import split
from jclip.peaks import peak_flops
from jclip.state import param_shapes
from jclip.tree import flatten


def step_flops(config: Config, locked: Collection[str] = ()) -> int:
    """Floating-point operations of the matrix products of a train step, in which the `locked` towers are not trained."""
    return towers_flops(config, locked) + make_objective(config).flops()


def trained_flops(config: Config) -> int:
    """Floating-point operations of a step, of which frozen towers have no backward pass."""
    trained = flatten(split(config.optim, param_shapes(config))[0])
    parts = {name: (f"{name}/", f"{name}_projection/") for name in config.model.towers}
    return step_flops(config, [name for name, part in parts.items() if not any(path.startswith(part) for path in trained)])


def peak_steps(config: Config, mesh: Mesh) -> float | None:
    """Steps a second at the peak rate of all devices; None where that is not known, or objectives that begin later change it."""
    peak = peak_flops(mesh.devices.flat[0])
    if peak is None or any(objective.begin for objective in config.objectives.values()):
        return None
    return peak * mesh.size / trained_flops(config)
