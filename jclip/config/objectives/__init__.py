"""The dataclasses of what is learned: views of each example, and the objectives that read them."""

import re
from collections.abc import Iterator, Mapping

from jclip.config.objectives.family import Family
from jclip.config.objectives.images import BYOL, SimCLR, SimSiam
from jclip.config.objectives.pairs import Contrastive, NearestNeighbour, Triplet
from jclip.config.objectives.views import View, view_problems
from jclip.config.objectives.words import Caption, Vocabulary
from jclip.config.towers import Tower

__all__ = [
    "BYOL",
    "Caption",
    "Contrastive",
    "Family",
    "NearestNeighbour",
    "Objective",
    "SimCLR",
    "SimSiam",
    "Triplet",
    "View",
    "Vocabulary",
    "objective_problems",
    "view_problems",
]

Objective = Contrastive | Triplet | SimCLR | SimSiam | BYOL | NearestNeighbour | Vocabulary | Caption
"""What is learned, one dataclass a family; its key in `Config.objectives` names its parameters and metrics."""


def objective_problems(
    objectives: Mapping[str, Objective], views: Mapping[str, View], towers: Mapping[str, Tower], batch_size: int
) -> Iterator[str]:
    """Problems of the names of objectives, and of what they read."""
    if not objectives:
        yield ".objectives is empty: there is nothing to learn; use {'image_text': Contrastive('image', 'text')}"
    taken = {*towers, *(f"{tower}_projection" for tower in towers)}
    tower_of = {**{tower: tower for tower in towers}, **{name: view.tower for name, view in views.items()}}
    read, trained = set[str](), set[str | None]()
    for name, objective in objectives.items():
        at = f".objectives.{name}"
        if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or name in ("ema", "loss", "lr"):
            yield f"{at}: {name!r} cannot name an objective; use lower-case letters, other than ema, loss and lr"
        if name in taken:
            yield f"{at}: the name is that of a tower or of its projection; use another"
        unknown = [view for view in objective.views() if view not in tower_of]
        yield from (f"{at}: there is no view {view!r}; views: {', '.join(tower_of)}" for view in unknown)
        if not unknown:
            yield from (f"{at}{problem}" for problem in objective.misfits(tower_of, towers, batch_size))
        read.update(objective.views())
        trained.update(tower_of.get(view) for view in objective.trains())
    if unused := set(views) - read:
        yield f".views: no objective reads {', '.join(sorted(unused))}"
    if untrained := set(towers) - trained:
        yield f".objectives: none trains the tower {', '.join(sorted(untrained))}"
