"""Self-distillation: a teacher's output for the whole image, predicted from its parts and from what is not hidden of it."""

import math
import zlib
from collections.abc import Mapping
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh

from jclip import config, losses
from jclip.models import (
    Compute,
    Masked,
    ProjectionHead,
    first_patch,
    tower_flops,
    uniform_of_rows,
    unit,
    without_dropout,
)
from jclip.objectives.objective import Metrics, Objective, Params, Part, Setting
from jclip.objectives.two_views import spread
from jclip.optim import moving_average


class SelfDistillationObjective(Objective):
    """See `config.SelfDistillation`. Its state is the teacher, and of each head the centre f32 [K]."""

    def __init__(self, name: str, how: config.SelfDistillation, setting: Setting, mesh: Mesh | None) -> None:
        self.name, self.how, self.setting, self.salt = name, how, setting, zlib.crc32(name.encode())
        self.tower_name = setting.inputs[how.whole].tower
        self.tower = setting.model.towers[self.tower_name]
        compute = Compute.of(setting.model, mesh)
        self.head = ProjectionHead(how.size, how.features, how.layers, compute)
        self.view = next(iter(how.makes(name)), None)
        self.weights = {"parts": 1.0, "hidden": how.hidden_weight}
        self.heads = [*(["parts"] if how.parts else []), *(["hidden"] if self.view else [])]

    def init(self, key: Array, part: Part) -> Params:
        """A head with prototypes for each part of the loss, and what stands for a hidden patch."""
        params, widths = dict[str, Any](), {"parts": self.tower.pooled_width, "hidden": self.tower.width}
        for name, one in zip(self.heads, jax.random.split(key, len(self.heads)), strict=True):
            head, prototypes = jax.random.split(one)
            kernel = nn.initializers.normal(1.0)(prototypes, (self.how.features, self.how.prototypes))
            params[name] = {
                "head": self.head.init(head, jnp.zeros((1, widths[name])))["params"],
                "prototypes": {"kernel": kernel},
            }
        if self.view:
            hidden = nn.initializers.normal(0.02)(jax.random.fold_in(key, 1), (self.tower.width,))
            params["mask"] = {"bias": hidden}  # a name that the rules never decay
        return params

    def init_extra(self, key: Array, params: Params) -> Params:
        """The student as it is, and no centre."""
        return {**self._teacher(params), "centres": {name: jnp.zeros(self.how.prototypes) for name in self.heads}}

    def _teacher(self, params: Params) -> Params:
        """The parameters that the teacher is a moving average of."""
        names = (self.tower_name, f"{self.tower_name}_projection")
        return {"towers": {n: params[n] for n in names if n in params}, "heads": {n: params[self.name][n] for n in self.heads}}

    def views(self, params: Params, batch: Mapping[str, Array], rows: Array, key: Array) -> Mapping[str, Any]:
        """The whole with patches hidden."""
        if self.view is None:
            return {}
        images, patch = batch[self.how.whole], params["mask"]["bias"]
        hidden = jnp.zeros((len(images), self._patches()), bool)
        hidden = hidden.at[jnp.arange(len(images))[:, None], self._places(rows, key)].set(True)
        return {self.view: Masked(images, hidden, jnp.broadcast_to(patch, (len(images), *patch.shape)))}

    def rows(self, params: Params, extra: Params, part: Part) -> tuple[Any, Metrics]:
        """The cross-entropies of parts and of hidden patches, means of an image; the teacher's features, for the centres."""
        seen = part.encode(extra["towers"], [self.how.whole])[self.how.whole].output
        sums, kept = dict[str, Array](), dict[str, Array]()
        if self.how.parts:
            kept["parts"] = self._features(extra["heads"]["parts"], seen.pooled)
            pooled = jnp.stack([part.encoded[view].output.pooled for view in self.how.parts], axis=1)
            sums["parts"] = self._loss("parts", params, extra, pooled, kept["parts"][:, None])
        if self.view is not None:
            places = (self._places(part.rows, part.key) + first_patch(self.tower))[:, :, None]
            tokens, wanted = (jnp.take_along_axis(x.tokens, places, axis=1) for x in (part.encoded[self.view].output, seen))
            targets = self._features(extra["heads"]["hidden"], wanted)
            sums["hidden"] = self._loss("hidden", params, extra, tokens, targets)
            kept["hidden"] = targets.mean(axis=1)
        loss = sum((self.weights[name] * value for name, value in sums.items()), jnp.zeros(()))
        return jax.lax.stop_gradient(kept), {"loss": loss, **sums}

    def batch(self, params: Params, extra: Params, rows: Any, batch: Mapping[str, Array]) -> tuple[Array, Metrics]:
        """Spread of the teacher's features; the loss is of each row by itself."""
        return jnp.zeros(()), {f"{name}_spread": spread(unit(features)) for name, features in rows.items()}

    def update(self, extra: Params, params: Params, rows: Any, batch: Mapping[str, Array], progress: Array) -> Params:
        """The teacher follows the student, and the centres the mean of its cosines with the prototypes."""
        begin, end = self.how.decay, self.how.final_decay
        decay = end - (end - begin) * (jnp.cos(jnp.pi * progress) + 1) / 2
        teacher = moving_average({name: extra[name] for name in ("towers", "heads")}, self._teacher(params), decay)
        centres = dict[str, Array]()
        for name, features in rows.items():  # the mean of products is the product with the mean
            mean = features.mean(axis=0) @ _unit_columns(extra["heads"][name]["prototypes"]["kernel"])
            centres[name] = moving_average(extra["centres"][name], mean, jnp.float32(self.how.centre_decay))
        return {**teacher, "centres": centres}

    def flops(self) -> int:
        """The heads of student, forward and backward, and of the teacher; and the teacher's tower."""
        how, compared = self.how, 2 * self.how.features * self.how.prototypes
        total = tower_flops(without_dropout(self.tower))
        for width, student, teacher in (
            (self.tower.pooled_width, len(how.parts), min(1, len(how.parts))),
            (self.tower.width, self._hidden() if self.view else 0, self._hidden() if self.view else 0),
        ):
            head = self.head.flops(width)
            total += 3 * student * (head + compared) + teacher * head + student * compared
        return self.setting.batch_size * total

    def _features(self, params: Params, x: Array) -> Array:
        """Unit vectors f32 [..., F] that are compared with the prototypes."""
        return unit(self.head.apply({"params": params["head"]}, x))

    def _loss(self, name: str, params: Params, extra: Params, x: Array, targets: Array) -> Array:
        """Sum over the images of the mean cross-entropy of their m parts or patches: x [b, m, d], targets [b, m or 1, F]."""
        student = self._features(params[name], x)
        total = losses.prototype_cross_entropy(
            student,
            jnp.broadcast_to(targets, student.shape),
            _unit_columns(params[name]["prototypes"]["kernel"]),
            _unit_columns(extra["heads"][name]["prototypes"]["kernel"]),
            extra["centres"][name],
            temperature=self.how.temperature,
            teacher_temperature=self.how.teacher_temperature,
            block=self.how.block,
        )
        return total / student.shape[1]

    def _places(self, rows: Array, key: Array) -> Array:
        """The hidden patches of each image, i32 [b, k]; a function of the key and of the row."""
        draws = uniform_of_rows(jax.random.fold_in(key, self.salt), rows, (self._patches(),))
        return jnp.argsort(draws, axis=1)[:, : self._hidden()]

    def _patches(self) -> int:
        return math.prod(cast(config.VisionTower, self.setting.inputs[self.how.whole].seen_by).grid)

    def _hidden(self) -> int:
        """Number of hidden patches, at least one."""
        return max(1, round(self.how.hidden * self._patches()))


def _unit_columns(kernel: Array) -> Array:
    return unit(kernel.T).T
