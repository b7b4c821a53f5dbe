"""The learner: what a configuration becomes for its train step, made once; the step itself knows no configuration."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

from jax import Array
from jax.sharding import Mesh

from jclip.config import Config, groups_of
from jclip.models import Backend, MultiTower, bucketed_views, fits_buckets
from jclip.objectives import Params, WeightedSum, make_objective
from jclip.optim import split
from jclip.sharding import Gather
from jclip.state import make_towers


class Learner(NamedTuple):
    """The parts of a configuration that loss and gradients are made of.

    Attributes:
        towers: the model.
        bucketed: the model for a batch whose texts fit into their buckets; None where there are no buckets.
        fits: global batch -> bool [], whether they do.
        objective: the weighted sum of all objectives.
        views: names of the inputs that towers see in training.
        teacher_views: those of them whose towers only teach: no dropout, and no objective makes views for them.
        split: parameters -> (those that are trained, those that are frozen).
        parts: number of parts in which the towers see a batch.
        batch_size: examples in the global batch, B.
        mesh: the devices.
    """

    towers: MultiTower
    bucketed: MultiTower | None
    fits: Callable[[Mapping[str, Array]], Array]
    objective: WeightedSum
    views: tuple[str, ...]
    teacher_views: tuple[str, ...]
    split: Callable[[Params], tuple[Params, Params]]
    parts: int
    batch_size: int
    mesh: Mesh


def make_learner(config: Config, mesh: Mesh, gather: Gather | None) -> Learner:
    """The learner of all objectives of a configuration on a mesh; `gather` makes the parameters of a block whole, see
    `make_gather`."""
    towers = partial(make_towers, config, gather, Backend.of(mesh, config.model.attention))
    inputs, teachers = config.inputs(), config.teachers()
    seen = [view for view in config.encoded_views() if view in inputs]
    teacher_views = [view for view in seen if inputs[view].tower in teachers]
    return Learner(
        towers=towers(),
        bucketed=towers(groups_of(config.buckets)) if bucketed_views(config) else None,
        fits=partial(fits_buckets, config, mesh=mesh),
        objective=make_objective(config, mesh),
        views=tuple(view for view in seen if view not in teacher_views),
        teacher_views=tuple(teacher_views),
        split=partial(split, config.optim),
        parts=config.accumulate,
        batch_size=config.batch_size,
        mesh=mesh,
    )
