"""Objectives by name, each a file here and a dataclass in `jclip.config.objectives`."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh

from jclip import config
from jclip.config import Config
from jclip.objectives.caption import CaptionObjective
from jclip.objectives.cloob import CLOOBObjective
from jclip.objectives.contrastive import ContrastiveObjective
from jclip.objectives.distillation import AffinityDistillationObjective, FeatureDistillationObjective
from jclip.objectives.masked_text import MaskedTextObjective
from jclip.objectives.multi_view import MultiViewObjective
from jclip.objectives.nearest_neighbour import NearestNeighbourObjective
from jclip.objectives.objective import Metrics, Objective, Params, Part, Setting
from jclip.objectives.self_distillation import SelfDistillationObjective
from jclip.objectives.sim_reg import SimRegObjective
from jclip.objectives.token_wise import TokenWiseObjective
from jclip.objectives.triplet import TripletObjective
from jclip.objectives.two_views import BYOLObjective, SimCLRObjective, SimSiamObjective
from jclip.objectives.vocabulary import VocabularyObjective

__all__ = ["OBJECTIVES", "Metrics", "Objective", "Params", "Part", "Setting", "WeightedSum", "make_objective"]

OBJECTIVES: dict[type, Callable[[str, Any, Setting, Mesh | None], Objective]] = {
    config.Contrastive: ContrastiveObjective,
    config.Triplet: TripletObjective,
    config.TokenWise: TokenWiseObjective,
    config.CLOOB: CLOOBObjective,
    config.MultiView: MultiViewObjective,
    config.SimReg: SimRegObjective,
    config.SimCLR: SimCLRObjective,
    config.SimSiam: SimSiamObjective,
    config.BYOL: BYOLObjective,
    config.NearestNeighbour: NearestNeighbourObjective,
    config.Vocabulary: VocabularyObjective,
    config.MaskedText: MaskedTextObjective,
    config.SelfDistillation: SelfDistillationObjective,
    config.FeatureDistillation: FeatureDistillationObjective,
    config.AffinityDistillation: AffinityDistillationObjective,
    config.Caption: CaptionObjective,
}
"""Makers of the families: (name, its dataclass, what it may know of the run, the mesh, or None to compute nothing)."""


def make_objective(config: Config, mesh: Mesh | None = None) -> "WeightedSum":
    """The objective of a run. Without a mesh it still has its parameters and its FLOPs."""
    setting = Setting.of(config)
    objectives = {name: OBJECTIVES[type(how)](name, how, setting, mesh) for name, how in config.objectives.items()}
    return WeightedSum(objectives, config.objectives, config.batch_size)


class WeightedSum:
    """A weighted sum of objectives by name: sum_k weight_k (batch_k + 1/B sum_i local_ki); a weight is of one objective alone."""

    def __init__(self, objectives: Mapping[str, Objective], how: Mapping[str, config.Family], batch_size: int) -> None:
        self.objectives, self.batch_size = objectives, batch_size
        self.weights = {name: each.weight for name, each in how.items()}
        self.begins = {name: each.begin for name, each in how.items()}

    def init(self, key: Array, part: Part) -> Params:
        """The parameters of all, by name; of those that have any."""
        return self._of_each(key, lambda objective, key: objective.init(key, part))

    def init_extra(self, key: Array, params: Params) -> Params:
        """The state of all, by name; of those that have any."""
        return self._of_each(key, lambda objective, key: objective.init_extra(key, params))

    def _of_each(self, key: Array, make: Callable[[Objective, Array], Params]) -> Params:
        keys = jax.random.split(key, len(self.objectives))
        made = {name: make(objective, key) for key, (name, objective) in zip(keys, self.objectives.items(), strict=True)}
        return {name: tree for name, tree in made.items() if tree}

    def views(self, params: Params, batch: Mapping[str, Array], rows: Array, key: Array) -> dict[str, Any]:
        """The views that all make, by name."""
        made: dict[str, Any] = {}
        for name, objective in self.objectives.items():
            made |= objective.views(params.get(name, {}), batch, rows, key)
        return made

    def rows(self, params: Params, extra: Params, part: Part) -> tuple[dict[str, Any], dict[str, Metrics]]:
        """Results of each `rows`, by name.

        Raises:
            TypeError: one returns rows in which no loss can be differentiated.
        """
        found = {name: o.rows(params.get(name, {}), extra.get(name, {}), part) for name, o in self.objectives.items()}
        for name, (rows, _) in found.items():
            if whole := sorted({str(x.dtype) for x in jax.tree.leaves(rows) if not jnp.issubdtype(x.dtype, jnp.floating)}):
                raise TypeError(f"objective {name}: `rows` returns {', '.join(whole)}; convert them to float32")
        return {name: rows for name, (rows, _) in found.items()}, {name: sums for name, (_, sums) in found.items()}

    def batch(self, params: Params, extra: Params, rows: Mapping[str, Any], batch: Mapping[str, Array]) -> tuple[Array, Metrics]:
        """The loss of the global batch without `local_loss`, and the metrics of each as "name/metric"."""
        total, metrics = jnp.zeros(()), dict[str, Array]()
        for name, objective in self.objectives.items():
            loss, own = objective.batch(params.get(name, {}), extra.get(name, {}), rows[name], batch)
            total = total + self.weights[name] * loss
            metrics |= {f"{name}/{metric}": value for metric, value in own.items()}
        return total, metrics

    def local_loss(self, sums: Mapping[str, Metrics]) -> Array:
        """Part of the loss that some rows have by themselves, f32 []."""
        losses = (self.weights[name] * own["loss"] for name, own in sums.items() if "loss" in own)
        return sum(losses, jnp.zeros(())) / self.batch_size

    def local_metrics(self, sums: Mapping[str, Metrics]) -> Metrics:
        """Means over the batch as "name/metric", of the sums over all of its rows."""
        return {f"{name}/{metric}": value / self.batch_size for name, own in sums.items() for metric, value in own.items()}

    def update(
        self, extra: Params, params: Params, rows: Mapping[str, Any], batch: Mapping[str, Array], progress: Array
    ) -> Params:
        """The state of all after a step; what is not of one of these objectives stays. `progress` is that of the run."""
        updated = dict(extra)
        for name, objective in self.objectives.items():  # in one order: all hosts have to compile the same program
            if name in extra:
                own = (progress - self.begins[name]) / (1 - self.begins[name])
                updated[name] = objective.update(extra[name], params, rows[name], batch, own)
        return updated

    def bound(self, old: Params, new: Params) -> Params:
        """All parameters after an update, those of each objective where it lets them be."""
        return new | {name: o.bound(old[name], new[name]) for name, o in self.objectives.items() if name in new}

    def flops(self) -> int:
        """Operations of all; see `Objective.flops`."""
        return sum(objective.flops() for objective in self.objectives.values())
