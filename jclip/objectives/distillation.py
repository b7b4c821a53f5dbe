"""Distillation from another model, whose embeddings come from towers that are not trained, or are stored."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh

from jclip import config, losses
from jclip.models import Compute, Dense, unit
from jclip.objectives.contrastive import LOG_SCALE_RANGE
from jclip.objectives.objective import Metrics, Objective, Params, Part, Setting
from jclip.sharding import BATCH_AXES


class FeatureDistillationObjective(Objective):
    """See `config.FeatureDistillation`. Where the sizes differ a linear map of its own takes the student's to the teacher's."""

    def __init__(self, name: str, how: config.FeatureDistillation, setting: Setting, mesh: Mesh | None) -> None:
        self.how, self.setting = how, setting
        self.compute = Compute.of(setting.model, mesh)

    def init(self, key: Array, part: Part) -> Params:
        """The linear map, or nothing."""
        student, teacher = part.encoded[self.how.student].z, teacher_embedding(part, self.how.teacher)
        if student.shape == teacher.shape:
            return {}
        return {"projection": self._projection(teacher.shape[1]).init(key, student)["params"]}

    def rows(self, params: Params, extra: Params, part: Part) -> tuple[Any, Metrics]:
        """2 - 2 cos of the student's and the teacher's embedding."""
        student, teacher = part.encoded[self.how.student].z, teacher_embedding(part, self.how.teacher)
        if "projection" in params:
            student = unit(self._projection(teacher.shape[1]).apply({"params": params["projection"]}, student))
        return {}, {"loss": 2.0 * len(student) - 2 * (student * teacher).sum()}

    def _projection(self, features: int) -> Dense:
        return Dense(features, nn.initializers.normal(self.setting.model.embed_dim**-0.5), False, self.compute)


class AffinityDistillationObjective(Objective):
    """See `config.AffinityDistillation`."""

    def __init__(self, name: str, how: config.AffinityDistillation, setting: Setting, mesh: Mesh | None) -> None:
        self.how, self.setting, self.mesh = how, setting, mesh

    def init(self, key: Array, part: Part) -> Params:
        """The student's scale."""
        return {"logit_scale": jnp.log(jnp.float32(self.how.logit_scale))}

    def rows(self, params: Params, extra: Params, part: Part) -> tuple[Any, Metrics]:
        """The embeddings of student and teacher, f32 [b, E] and [b, F] of both views."""
        student = tuple(part.encoded[view].z for view in (self.how.a, self.how.b))
        return (student, tuple(teacher_embedding(part, view) for view in self.how.teachers())), {}

    def batch(self, params: Params, extra: Params, rows: Any, batch: Mapping[str, Array]) -> tuple[Array, Metrics]:
        """The divergence from the teacher, and the scale."""
        (za, zb), (ta, tb) = rows
        scale, teacher_scale = jnp.exp(params["logit_scale"]), self.how.teacher_scale
        loss = losses.affinity(za, zb, scale, ta, tb, teacher_scale, mesh=self.mesh, axes=BATCH_AXES, block=self.how.block)
        return loss, {"loss": loss, "logit_scale": scale}

    def bound(self, old: Params, new: Params) -> Params:
        """The scale within its range."""
        return new | {"logit_scale": jnp.clip(new["logit_scale"], *LOG_SCALE_RANGE)} if "logit_scale" in new else new

    def flops(self) -> int:
        """Both directions of the student forward, again and backward; of the teacher forward and again."""
        views = self.setting.inputs
        stored, size = views[self.how.teacher_a], self.setting.model.embed_dim
        teacher = stored.stored_size if stored.stored else size
        return 2 * 2 * self.setting.batch_size**2 * (4 * size + 2 * teacher)


def teacher_embedding(part: Part, view: str) -> Array:
    """f32 [b, F] unit vectors that no gradient reaches."""
    seen = part.encoded.get(view)
    return jax.lax.stop_gradient(unit(part.batch[view]) if seen is None else seen.z)
