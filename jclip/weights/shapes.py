"""Shapes of a model's parameters by path, which weights of any library have to have."""

from collections.abc import Mapping

import jax

from jclip.config import Caption, Model
from jclip.models import MultiTower, decoder_shapes, example_inputs
from jclip.tree import flatten
from jclip.weights.errors import WeightsError


def tower_shapes(model: Model) -> dict[str, tuple[int, ...]]:
    """Shapes of the parameters of all towers and projections, by path; nothing is allocated."""
    batch = {name: jax.ShapeDtypeStruct(*like) for name, like in example_inputs(model, 1).items()}
    towers = jax.eval_shape(lambda batch: MultiTower(model).init(jax.random.key(0), batch)["params"], batch)
    return {path: leaf.shape for path, leaf in flatten(towers).items()}


def caption_shapes(model: Model, captioners: Mapping[str, Caption]) -> dict[str, tuple[int, ...]]:
    """Shapes of the captioners' parameters, by path.

    Raises:
        WeightsError: it does not fit the towers.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for name, how in captioners.items():
        if strange := [view for view in how.views() if view not in model.towers]:
            raise WeightsError(f"{name}: there is no tower {strange[0]!r}; towers: {', '.join(model.towers)}")
        for problem in how.misfits({tower: tower for tower in model.towers}, model.towers, 1):
            raise WeightsError(f"{name}{problem}")
        shapes |= {f"{name}/decoder/{path}": shape for path, shape in decoder_shapes(how, model).items()}
    return shapes
