"""Fine-tuning with WiSE-FT: a tower and the classifier are trained, and weights between the first and the last are measured."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from jclip.adapt.changes import with_changes
from jclip.adapt.heads import linear, linear_head
from jclip.adapt.task import Fitted, Task
from jclip.adapt.training import weighted_loss
from jclip.adapt.tuning import batches_of, chosen_params, run_steps, towers_of
from jclip.config import ConfigError
from jclip.config.adapt_methods import FineTune
from jclip.tree import flatten, unflatten

CLASSIFIER = ""
"""Key of the classifier among trained arrays, which else are known by their paths."""

Weights = Mapping[str, np.ndarray]


def fit_fine_tune(method: FineTune, task: Task) -> Fitted:
    """The weights of the best point between the first and the last, of the best learning rate, or of a soup of all."""
    factors = chosen_params(task, method.rules, "methods.rules")
    if strange := next((p for p in factors if p.split("/")[0] not in (task.image, f"{task.image}_projection")), None):
        raise ConfigError(f"adapt: {strange} is not of tower {task.image!r}; the classifier stands for the tower of texts")
    flat = flatten(task.params)
    first = {path: np.asarray(flat[path]) for path in factors} | {CLASSIFIER: task.classifier}
    last = [train(method, task, lr, first, factors) for lr in method.lr]

    def score(weights: Weights) -> float:
        changed = {path: array for path, array in weights.items() if path != CLASSIFIER}
        chosen = task.encode.selection(with_changes(task.params, changed))
        return chosen.score(linear_head(weights[CLASSIFIER], task.scale))

    facts: dict[str, Any] = {}
    trained = last[0]
    if len(last) > 1:
        trained, facts = soup(method.soup, last, score)
        facts["lr"] = [method.lr[i] for i in facts.pop("members")]
    points = [mixed(first, trained, alpha) for alpha in method.alphas]
    best, details = 0, dict[str, Any]()
    if len(points) > 1:
        scores = [score(point) for point in points]
        best = int(np.argmax(scores))
        details = {"curve": {"x_name": "alpha of WiSE-FT", "x": list(method.alphas), "y": scores}}
        facts["accuracy"] = scores[best]
    chosen = dict(points[best])
    head = linear_head(chosen.pop(CLASSIFIER), task.scale)
    number = sum(array.size for array in first.values())
    return Fitted(head, number, {"alpha": method.alphas[best], **facts}, chosen, details)


def mixed(first: Weights, last: Weights, alpha: float) -> Weights:
    """(1 - alpha) first + alpha last, array by array; with 0 and 1 these very arrays."""
    if alpha in (0.0, 1.0):
        return last if alpha else first
    return {name: ((1 - alpha) * first[name] + alpha * last[name]).astype(np.float32) for name in first}


def soup(kind: str, models: Sequence[Weights], score: Callable[[Weights], float]) -> tuple[Weights, dict[str, Any]]:
    """The best model, the mean of all, or the greedy mean, with its "members" by index.

    Greedy (Wortsman et al. 2022b, recipe 1): from the best on down, a model is added where the mean is no worse with it.
    """
    if kind == "uniform":
        return mean(models), {"members": list(range(len(models)))}
    scores = [score(model) for model in models]
    order = sorted(range(len(models)), key=lambda i: (-scores[i], i))
    members, best = order[:1], scores[order[0]]
    if kind == "greedy":
        for i in order[1:]:
            found = score(mean([models[j] for j in [*members, i]]))
            if found >= best:
                members, best = [*members, i], found
    return mean([models[i] for i in members]), {"members": members}


def mean(models: Sequence[Weights]) -> Weights:
    """Mean of each array, in f64."""
    if len(models) == 1:
        return models[0]
    stacked = {name: np.stack([model[name] for model in models]) for name in models[0]}
    return {name: np.asarray(np.mean(arrays, axis=0, dtype=np.float64), np.float32) for name, arrays in stacked.items()}


def train(method: FineTune, task: Task, lr: float, first: Weights, factors: Mapping[str, float]) -> Weights:
    """The trained arrays after the last step."""
    each = max(1, len(task.labels) // min(method.batch_size, len(task.labels)))
    steps = each * method.epochs
    encode = towers_of(task, remat=method.remat)

    def loss(learned: Any, batch: tuple[Array, Array, Array], given: Any) -> Array:
        params, scale = given
        pixels, labels, weights = batch
        trained = {path: array for path, array in learned.items() if path != CLASSIFIER}
        z = encode(unflatten({**flatten(params), **trained}), {task.image: pixels})[task.image]
        return weighted_loss(linear(z, labels, learned[CLASSIFIER], scale), labels, weights)

    optimizer = _optimizer(method, lr, steps, {**factors, CLASSIFIER: 1.0})
    batches = batches_of(task, method.augment, method.batch_size, steps)
    key = (method, lr, steps, task.names)
    trained = run_steps(task, key, loss, optimizer, dict(first), (task.params, np.float32(task.scale)), batches)
    return {name: np.asarray(array) for name, array in trained.items()}


def _optimizer(method: FineTune, lr: float, steps: int, factors: Mapping[str, float]) -> optax.GradientTransformation:
    """AdamW whose rate rises linearly and falls as a cosine to 0; each array has its factor on the rate."""
    warmup = round(method.warmup * steps)

    def rate(count: Array) -> Array:
        progress = (count - warmup) / max(1, steps - warmup)
        return lr * jnp.where(count < warmup, (count + 1) / max(1, warmup), 0.5 * (1 + jnp.cos(jnp.pi * progress)))

    def by_factor(updates: Any, params: Any = None) -> Any:
        return {name: factors[name] * update for name, update in updates.items()}

    return optax.chain(
        optax.clip_by_global_norm(method.clip_norm),
        optax.scale_by_adam(),
        optax.add_decayed_weights(method.weight_decay),
        optax.stateless(by_factor),
        optax.scale_by_learning_rate(rate),
    )
