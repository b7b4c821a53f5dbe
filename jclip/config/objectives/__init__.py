"""The dataclasses of what is learned: views of each example, and the objectives that read them."""

import re
from collections.abc import Collection, Iterator, Mapping

from jclip.config.objectives.family import Family
from jclip.config.objectives.images import BYOL, SelfDistillation, SimCLR, SimSiam
from jclip.config.objectives.pairs import CLOOB, Contrastive, MultiView, NearestNeighbour, SimReg, TokenWise, Triplet
from jclip.config.objectives.teachers import AffinityDistillation, FeatureDistillation
from jclip.config.objectives.views import View, mix_problems, optional_problems, same_problems, valid_name, view_problems
from jclip.config.objectives.words import Caption, MaskedText, Vocabulary
from jclip.config.towers import Tower

__all__ = [
    "BYOL",
    "CLOOB",
    "AffinityDistillation",
    "Caption",
    "Contrastive",
    "Family",
    "FeatureDistillation",
    "MaskedText",
    "MultiView",
    "NearestNeighbour",
    "SelfDistillation",
    "SimCLR",
    "SimReg",
    "SimSiam",
    "TokenWise",
    "Triplet",
    "View",
    "Vocabulary",
    "mix_problems",
    "objective_problems",
    "optional_problems",
    "valid_name",
    "view_problems",
]


def objective_problems(
    objectives: Mapping[str, Family],
    views: Mapping[str, View],
    towers: Mapping[str, Tower],
    batch_size: int,
    frozen: Collection[str] = (),
) -> Iterator[str]:
    """Problems of the names of objectives, and of what they read; `frozen` towers need none that trains them."""
    if not objectives:
        yield ".objectives is empty: there is nothing to learn; use {'image_text': Contrastive('image', 'text')}"
    elif all(objective.begin > 0 for objective in objectives.values()):
        yield ".objectives: none takes part from the start; let `begin` of one be 0"
    taken = {*towers, *(f"{tower}_projection" for tower in towers)}
    tower_of = {**{tower: tower for tower in towers}, **{name: view.tower for name, view in views.items()}}
    read, trained, teaching = set[str](), set[str | None](), set[str | None]()
    for name, objective in objectives.items():
        at = f".objectives.{name}"
        if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or name in ("ema", "loss", "lr"):
            yield f"{at}: {name!r} cannot name an objective; use lower-case letters, other than ema, loss and lr"
        if name in taken:
            yield f"{at}: the name is that of a tower or of its projection; use another"
        taken_views = [view for view in objective.makes(name) if view in views]
        yield from (f"{at} makes a view {view!r}, and .views has one too; name it otherwise" for view in taken_views)
        unknown = [view for view in objective.views() if view not in tower_of]
        yield from (f"{at}: there is no view {view!r}; views: {', '.join(tower_of)}" for view in unknown)
        stored = [view for view in objective.views() if view in views and views[view].stored and view not in objective.teachers()]
        yield from (f"{at} needs the input of {view!r}, and .views.{view} is stored" for view in stored)
        sized = [view for view in objective.sees_whole() if view in views and views[view].size is not None]
        larger = "as large as the tower's: leave out its size"
        yield from (f"{at} shows {view!r} to a moving average, {larger}" for view in sized)
        if not unknown:
            yield from (f"{at}{problem}" for problem in objective.misfits(tower_of, towers, batch_size))
        read.update(objective.views())
        teaching.update(tower_of.get(view) for view in objective.teachers())
        trained.update(tower_of.get(view) for view in objective.trains())
    yield from same_problems({name: view for name, view in views.items() if name in read}, read)
    if unused := set(views) - read:
        yield f".views: no objective reads {', '.join(sorted(unused))}"
    if untrained := set(towers) - trained - teaching - {*frozen}:
        first = min(untrained)
        freeze = f"let optim.lr_rules begin with ('{first}(_projection)?/.*', 0.0), or leave it out"
        yield f".objectives: none trains the tower {', '.join(sorted(untrained))}; where it is for evaluations alone, {freeze}"
