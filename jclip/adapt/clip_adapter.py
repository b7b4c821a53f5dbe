"""CLIP-Adapter: a small network on image features, mixed with them."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jclip.adapt.heads import Features, Head, adapter, scalar
from jclip.adapt.task import Fitted, Task
from jclip.adapt.training import coop_optimizer, cross_entropy, epochs_of, scan_steps
from jclip.config.adapt_methods import ClipAdapter


def fit_clip_adapter(method: ClipAdapter, task: Task) -> Fitted:
    """The adapter after the last step; nothing is chosen."""
    epochs, width = method.passes(task.shots), task.classifier.shape[1]
    weights = first_weights(width, max(1, width // method.reduction), task.seed)
    rows = epochs_of(len(task.labels), method.batch_size, epochs, task.seed)
    views = task.encode.views(method.views, epochs)
    fixed = {"classifier": task.classifier, "ratio": scalar(method.ratio), "scale": scalar(task.scale)}
    trained = _train(method, weights, fixed, views, task.labels.astype(np.int32), rows)
    head = Head("adapter", {**fixed, **{name: np.asarray(array) for name, array in trained.items()}})
    return Fitted(head, sum(array.size for array in weights.values()), {"steps": int(rows.shape[0] * rows.shape[1])})


def first_weights(width: int, middle: int, seed: int) -> dict[str, np.ndarray]:
    """Both layers, without bias, uniform within 1 / sqrt(inputs), as torch makes linear layers."""
    rng = np.random.default_rng([seed, 3])
    sizes = {"down": (width, middle), "up": (middle, width)}
    return {name: (rng.uniform(-1, 1, size) / size[0] ** 0.5).astype(np.float32) for name, size in sizes.items()}


@partial(jax.jit, static_argnames="method")
def _train(
    method: ClipAdapter, weights: dict[str, Array], fixed: dict[str, Array], views: Features, labels: Array, rows: Array
) -> dict[str, Array]:
    optimizer = coop_optimizer(method, rows.shape[0], rows.shape[1])

    def loss(weights: dict[str, Array], batch: tuple[Array, Array]) -> Array:
        z, norm = views.z[batch[0], batch[1]], views.norm[batch[0], batch[1]]
        return cross_entropy(adapter(z, norm, **fixed, **weights), labels[batch[1]])

    seen = jnp.repeat(jnp.arange(rows.shape[0]) % views.z.shape[0], rows.shape[1])
    steps = (seen, rows.reshape(-1, rows.shape[2]))
    trained: dict[str, Array] = scan_steps(loss, optimizer, weights, optimizer.init(weights), steps)[0]
    return trained
