"""Tip-Adapter and Tip-Adapter-F: a cache of the shots' embeddings beside the zero-shot classifier."""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jclip.adapt.heads import Features, Head, cache, right, scalar
from jclip.adapt.task import Fitted, LabelledFeatures, Task
from jclip.adapt.training import cosine_adamw, scan_steps, weighted_loss, whole_epochs
from jclip.config.adapt_methods import TipAdapter, TipAdapterF
from jclip.eval.blocks import map_rows


def fit_tip(method: TipAdapter, task: Task) -> Fitted:
    """The cache of the shots, with alpha and beta from the search."""
    return searched(method, cached_head(method, task), task.selection, 0, keep=task.select == "val")


def cached_head(method: TipAdapter, task: Task) -> Head:
    """The head with alpha and beta of before the search."""
    arrays = {
        "classifier": task.classifier,
        "keys": mean_keys(task.encode.views(method.views, 0)),
        "values": np.eye(len(task.names), dtype=np.float32)[task.labels],
        "alpha": scalar(method.alpha),
        "beta": scalar(method.beta),
        "scale": scalar(task.scale),
    }
    return Head("cache", arrays)


def mean_keys(views: Features) -> np.ndarray:
    """Keys f32 [n, E]: unit vectors of the mean over views [V, n, E] of embeddings before their norm."""
    mean = np.mean(views.z.astype(np.float64) * views.norm[..., None], axis=0)
    if len(views.z) == 1:
        return np.asarray(views.z[0])
    return (mean / np.linalg.norm(mean, axis=-1, keepdims=True)).astype(np.float32)


def grids(method: TipAdapter) -> tuple[np.ndarray, np.ndarray]:
    """Values of beta and of alpha that are tried: 0.1 + i (most - 0.1) / steps."""
    beta, alpha = (0.1 + np.arange(n) * (most - 0.1) / n for n, most in zip(method.steps, method.most, strict=True))
    return beta, alpha


def searched(
    method: TipAdapter,
    head: Head,
    selection: LabelledFeatures,
    parameters: int,
    choice: dict[str, Any] | None = None,
    *,
    keep: bool = True,
) -> Fitted:
    """The head with the best alpha and beta: of equally good ones the first, beta the outer loop, as published.

    Those of before stay where no pair of the grids is better. The published search begins at an accuracy of 0, and so takes the
    best pair of the grids also where that is worse: without `keep` it is so here, unless no pair is ever right.
    """
    beta, alpha = method.beta, method.alpha
    best = selection.score(head)
    tried = {"before": best}
    if method.steps[0]:
        betas, alphas = grids(method)
        scores = search(head, selection, betas, alphas)
        i, j = np.unravel_index(int(np.argmax(scores)), scores.shape)
        if scores[i, j] > (best if keep else 0):
            beta, alpha, best = float(betas[i]), float(alphas[j]), float(scores[i, j])
    chosen = replace(head, arrays={**head.arrays, "alpha": scalar(alpha), "beta": scalar(beta)})
    return Fitted(chosen, parameters, {**(choice or {}), "alpha": alpha, "beta": beta, "accuracy": best, **tried})


def search(head: Head, selection: LabelledFeatures, betas: np.ndarray, alphas: np.ndarray) -> np.ndarray:
    """Accuracies [B, A] of every pair on the examples to choose by. Affinities are computed once."""
    z, labels = selection.features.z, selection.labels.astype(np.int32)
    shared = [head.arrays[name] for name in ("classifier", "keys", "values", "scale")]
    grid = [betas.astype(np.float32), alphas.astype(np.float32)]
    widest = max(len(head.arrays["keys"]), len(alphas) * len(head.arrays["classifier"]))
    block = min(len(z), max(1, 2**24 // widest))
    (found,) = map_rows(_right_by_pair, lambda rows: (z[rows], labels[rows]), len(z), [*shared, *grid], block=block)
    return np.asarray(found.mean(axis=0, dtype=np.float64))


def _right_by_pair(
    z: Array, labels: Array, classifier: Array, keys: Array, values: Array, scale: Array, betas: Array, alphas: Array
) -> tuple[Array]:
    """bool [b, B, A]."""
    plain = jnp.matmul(z, classifier.T, precision="highest") * scale
    affinities = jnp.matmul(z, keys.T, precision="highest")

    def of_beta(beta: Array) -> Array:
        cached = jnp.matmul(jnp.exp(-beta * (1 - affinities)), values, precision="highest")
        return jax.vmap(lambda alpha: right(plain + alpha * cached, labels, scale), out_axes=1)(alphas)

    return (jnp.swapaxes(jax.lax.map(of_beta, betas), 0, 1),)


def fit_tip_f(method: TipAdapterF, task: Task) -> Fitted:
    """The cache whose keys are trained, of the epoch that is best on validation, and alpha and beta from the search after it."""
    head = cached_head(method, task)
    views = task.encode.views(method.training_views, method.epochs)
    rows = whole_epochs(len(task.labels), method.batch_size, method.epochs, task.seed)
    keys = _train_keys(method, dict(head.arrays), views, task.labels.astype(np.int32), *rows)
    scores = [task.selection.score(_with_keys(head, each)) for each in keys]
    best = int(np.argmax(scores))
    choice = {"epoch": best + 1, "epochs": method.epochs}
    # The published code reports the better of the epoch and the search: so what was before stays, whatever it chooses on.
    fitted = searched(method, _with_keys(head, keys[best]), task.selection, head.arrays["keys"].size, choice)
    return replace(fitted, details={"curve": {"x_name": "epoch", "x": list(range(1, len(scores) + 1)), "y": scores}})


def _with_keys(head: Head, keys: Any) -> Head:
    return replace(head, arrays={**head.arrays, "keys": np.asarray(keys)})


@partial(jax.jit, static_argnames="method")
def _train_keys(
    method: TipAdapterF, arrays: dict[str, Array], views: Features, labels: Array, rows: Array, weights: Array
) -> Array:
    """Keys [epochs, n, E] after each epoch of rows [epochs, steps, b], which weigh so much; no norm is kept, as published."""
    fixed = {name: jnp.asarray(array) for name, array in arrays.items() if name != "keys"}
    optimizer = cosine_adamw(method.lr, method.weight_decay, rows.shape[0] * rows.shape[1], eps=method.eps)
    seen = jnp.arange(rows.shape[0]) % views.z.shape[0]

    def epoch(carry: Any, now: tuple[Array, Array, Array]) -> tuple[Any, Array]:
        z = views.z[now[2]]

        def loss(keys: Array, step: tuple[Array, Array]) -> Array:
            batch, weights = step
            return weighted_loss(cache(z[batch], z[batch, 0], keys=keys, **fixed), labels[batch], weights)

        keys, state = scan_steps(loss, optimizer, carry[0], carry[1], (now[0], now[1]))
        return (keys, state), keys

    keys = jnp.asarray(arrays["keys"])
    trained: Array = jax.lax.scan(epoch, (keys, optimizer.init(keys)), (rows, weights, seen))[1]
    return trained
