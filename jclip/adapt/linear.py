"""Linear heads from the text classifier, of images alone or with texts, and what else names a class, as further shots."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from jclip.adapt.heads import linear, linear_head, right
from jclip.adapt.task import Fitted, Task
from jclip.adapt.training import cosine_adamw, cross_entropy, draws
from jclip.config.adapt_methods import CrossModal, LinearHead


@dataclass(frozen=True)
class LabelledVectors:
    """Unit vectors f32 [n, E] with their labels int32 [n]."""

    z: np.ndarray
    labels: np.ndarray


def fit_linear(method: LinearHead, task: Task) -> Fitted:
    """The head of the best combination at its best iteration, mixed with the text classifier as is best."""
    images = image_examples(method, task)
    others = other_examples(method, task) if isinstance(method, CrossModal) else None
    first = first_weights(method, task)
    tried: list[tuple[tuple[float, int, int], dict[str, Any], np.ndarray]] = []
    sizes = batch_sizes(method, len(images.labels), None if others is None else len(others.labels))
    for place, size in enumerate(sizes):
        rows = _rows(method, size, images, others, task.seed)
        grid = [(lr, decay) for lr in method.lr for decay in method.weight_decay]
        chosen = (task.selection.features.z, task.selection.labels.astype(np.int32))
        examples, scale = _joined(images, others), np.float32(task.scale)
        lr, decay = (np.array(column, np.float32) for column in zip(*grid, strict=True))
        weights, scores, steps = _train_each(method, lr, decay, first, examples, rows, chosen, scale)
        for i, (rate, strength) in enumerate(grid):
            facts = {"lr": rate, "weight_decay": strength, "batch_size": size, "iteration": int(steps[i])}
            tried.append(((-float(scores[i]), i, place), facts, np.asarray(weights[i])))
    _, facts, best = min(tried, key=lambda one: one[0])
    heads = [linear_head((1 - share) * best + share * task.classifier, task.scale) for share in method.wise]
    scores = [task.selection.score(head) for head in heads]
    i = int(np.argmax(scores))
    return Fitted(heads[i], first.size, {**facts, "wise": method.wise[i], "accuracy": scores[i]})


def first_weights(method: LinearHead, task: Task) -> np.ndarray:
    """Weights f32 [C, E] at the start."""
    shape = task.classifier.shape
    random = np.random.default_rng([task.seed, 9]).uniform(-1, 1, shape) / shape[1] ** 0.5
    return {"text": task.classifier, "zero": np.zeros(shape, np.float32), "random": random.astype(np.float32)}[method.start]


def image_examples(method: LinearHead, task: Task) -> LabelledVectors:
    """The shots as they are, and views of them."""
    parts = [task.images.z]
    if method.views.count:
        parts += list(task.encode.views(method.views, 0).z)
    return LabelledVectors(np.concatenate(parts), np.tile(task.labels, len(parts)).astype(np.int32))


def other_examples(method: CrossModal, task: Task) -> LabelledVectors:
    """Every prompt of every class, and shots of another tower."""
    z = task.encode.texts([text for texts in task.prompts for text in texts])
    labels = np.repeat(np.arange(len(task.names)), [len(texts) for texts in task.prompts])
    if method.extra:
        extra = task.encode.extra(method.extra, method.tower)
        z, labels = np.concatenate([z, extra.features.z]), np.concatenate([labels, extra.labels])
    return LabelledVectors(z, labels.astype(np.int32))


def batch_sizes(method: LinearHead, images: int, others: int | None) -> list[int]:
    """Sizes that leave some examples out of a batch, as published; where none does, the smallest, cut to what there is."""
    fitting = [size for size in method.batches if _fits(_shares(method, size), images, others)]
    return fitting or [min(method.batches)]


def _shares(method: LinearHead, size: int) -> tuple[int, int]:
    """Images of a batch, and others."""
    others = int(size * method.batch_share) if isinstance(method, CrossModal) else 0
    return size - others, others


def _fits(shares: tuple[int, int], images: int, others: int | None) -> bool:
    return shares[0] < images and (others is None or shares[1] < others)


def _rows(method: LinearHead, size: int, images: LabelledVectors, others: LabelledVectors | None, seed: int) -> np.ndarray:
    """Rows of the joined examples in each step, [looks, every, b]."""
    share, rest = _shares(method, size)
    rows = draws(len(images.labels), max(1, share), method.iterations, seed)
    if others is not None:
        more = draws(len(others.labels), max(1, rest), method.iterations, seed, stream=4)
        rows = np.concatenate([rows, len(images.labels) + more], axis=1)
    return rows.reshape(-1, method.every, rows.shape[1])


def _joined(images: LabelledVectors, others: LabelledVectors | None) -> tuple[np.ndarray, np.ndarray]:
    if others is None:
        return images.z, images.labels
    return np.concatenate([images.z, others.z]), np.concatenate([images.labels, others.labels])


@partial(jax.jit, static_argnames="method")
def _train_each(method: LinearHead, lr: Array, decay: Array, *rest: Any) -> tuple[Array, Array, Array]:
    """`_train` of each rate [R] with its decay [R]."""
    return jax.vmap(lambda lr, decay: _train(method, lr, decay, *rest))(lr, decay)


def _train(
    method: LinearHead,
    lr: Array,
    decay: Array,
    first: Array,
    examples: tuple[Array, Array],
    rows: Array,
    chosen: tuple[Array, Array],
    scale: Array,
) -> tuple[Array, Array, Array]:
    """Weights [C, E] of the look at validation that was best, its accuracy and its step: after steps 1, 1 + every, ..."""
    optimizer = cosine_adamw(lr, decay, method.iterations, warmup=method.warmup, warmup_lr=method.warmup_lr)

    def loss(weights: Array, batch: Array) -> Array:
        return cross_entropy(linear(examples[0][batch], batch, weights, scale), examples[1][batch])

    def step(carry: tuple[Array, Any], batch: Array) -> tuple[tuple[Array, Any], None]:
        weights, state = carry
        updates, state = optimizer.update(jax.grad(loss)(weights, batch), state, weights)
        return (optax.apply_updates(weights, updates), state), None

    def look(carry: Any, now: tuple[Array, Array]) -> tuple[Any, None]:
        training, (best, score, at) = carry
        training, _ = step(training, now[1][0])
        weights = training[0]
        found = jnp.mean(right(linear(chosen[0], chosen[1], weights, scale), chosen[1], scale))
        better = found > score
        kept = (jnp.where(better, weights, best), jnp.where(better, found, score), jnp.where(better, now[0], at))
        training, _ = jax.lax.scan(step, training, now[1][1:])
        return (training, kept), None

    steps = jnp.arange(rows.shape[0]) * method.every + 1
    start = ((first, optimizer.init(first)), (first, jnp.float32(-1.0), jnp.int32(0)))
    (_, (weights, score, at)), _ = jax.lax.scan(look, start, (steps, rows))
    return weights, score, at
