"""LoRA: products of two small matrices beside kernels of any tower, merged into them in the end."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jclip.adapt.changes import with_changes
from jclip.adapt.heads import linear, linear_head
from jclip.adapt.task import Fitted, Task
from jclip.adapt.training import cosine_adamw, weighted_loss
from jclip.adapt.tuning import batches_of, chosen_params, run_steps, towers_of
from jclip.config import ConfigError
from jclip.config.adapt_methods import LoRA
from jclip.data import get_tokenizer
from jclip.eval.zero_shot import class_embeddings
from jclip.tree import flatten, unflatten


def fit_lora(method: LoRA, task: Task) -> Fitted:
    """The towers with merged products after the last step, and the classifier of their prompts; nothing is chosen."""
    flat = flatten(task.params)
    paths = tuple(chosen_params(task, method.rules, "methods.rules"))
    _check(paths, flat, task)
    if not method.rank:
        return Fitted(linear_head(task.classifier, task.scale), 0, {"steps": 0})
    start = first_factors({path: flat[path].shape for path in paths}, method.rank, task.seed)
    factor = method.alpha / method.rank**0.5
    reads = any(path.split("/")[0] in (task.text, f"{task.text}_projection") for path in paths)
    ids, owner = prompt_ids(task)
    encode = towers_of(task, remat=method.remat)

    def loss(learned: Any, batch: tuple[Array, Array, Array], given: Any) -> Array:
        params, ids, classifier, scale = given
        pixels, labels, weights = batch
        merged = unflatten({**flatten(params), **merge(flatten(params), learned, factor)})
        z = encode(merged, {task.image: pixels, **({task.text: ids} if reads else {})})
        texts = class_means(z[task.text], owner, len(task.names)) if reads else classifier
        return weighted_loss(linear(z[task.image], labels, texts, scale), labels, weights)

    steps = method.steps_per_shot * task.shots
    optimizer = cosine_adamw(method.lr, method.weight_decay, steps)
    given = (task.params, ids, task.classifier, np.float32(task.scale))
    batches = batches_of(task, method.augment, method.batch_size, steps)
    key = (method, task.shots, task.names, task.prompts)
    learned = jax.tree.map(np.asarray, run_steps(task, key, loss, optimizer, start, given, batches))
    own = {path: np.asarray(flat[path]) for path in paths}
    changed = {path: np.asarray(array) for path, array in merge(own, learned, factor).items()}
    classifier = prompt_classifier(task, with_changes(task.params, changed)) if reads else task.classifier
    number = sum(array.size for pair in learned.values() for array in pair.values())
    return Fitted(linear_head(classifier, task.scale), number, {"steps": steps, "kernels": len(paths)}, changed)


def _check(paths: tuple[str, ...], flat: Mapping[str, Any], task: Task) -> None:
    """Raises ConfigError where a parameter is no kernel of a tower that the task has."""
    for path in paths:
        if flat[path].ndim < 2 or not path.endswith("/kernel"):
            raise ConfigError(f"adapt: {path} of shape {flat[path].shape} is no kernel; LoRA's rules choose kernels")
        if path.split("/")[0].removesuffix("_projection") not in (task.image, task.text):
            raise ConfigError(f"adapt: {path} is of a tower that the task does not see; choose kernels of image and text")


def first_factors(shapes: Mapping[str, tuple[int, ...]], rank: int, seed: int) -> dict[str, dict[str, np.ndarray]]:
    """ "a" [..., in, rank], uniform within 1 / sqrt(in) as in the published code, and "b" [..., rank, out] of zeros, by path."""
    rng = np.random.default_rng([seed, 8])
    made = {}
    for path, shape in sorted(shapes.items()):
        a = rng.uniform(-1, 1, (*shape[:-1], rank)) / shape[-2] ** 0.5
        made[path] = {"a": a.astype(np.float32), "b": np.zeros((*shape[:-2], rank, shape[-1]), np.float32)}
    return made


def merge(flat: Mapping[str, Any], learned: Mapping[str, Mapping[str, Any]], factor: float) -> dict[str, Array]:
    """Kernels plus factor a b, by path."""
    return {path: flat[path] + factor * jnp.matmul(pair["a"], pair["b"], precision="highest") for path, pair in learned.items()}


def prompt_ids(task: Task) -> tuple[np.ndarray, np.ndarray]:
    """Token ids [n, L] of all prompts, as many as fill the devices, and the class [n] of each; -1 of filling."""
    tower: Any = task.model.towers[task.text]
    texts = [text for of_class in task.prompts for text in of_class]
    owner = np.repeat(np.arange(len(task.names)), [len(of_class) for of_class in task.prompts])
    filler = -len(texts) % task.mesh.size
    ids = get_tokenizer(tower.tokenizer)(texts + texts[:1] * filler, tower.context_length)
    return ids, np.r_[owner, np.full(filler, -1)].astype(np.int32)


def class_means(z: Array, owner: np.ndarray, classes: int) -> Array:
    """Unit vectors [C, E]: of each class the mean of its prompts' unit vectors [n, E]."""
    belongs = jnp.asarray((owner[None, :] == np.arange(classes)[:, None]).astype(np.float32))
    mean = jnp.matmul(belongs, z, precision="highest")
    return mean / jnp.sqrt(jnp.maximum(jnp.sum(mean * mean, axis=-1, keepdims=True), 1e-24))


def prompt_classifier(task: Task, params: Any) -> np.ndarray:
    """The zero-shot classifier [C, E] of other parameters."""
    ids, owner = prompt_ids(task)
    encode = task.compiled.setdefault("prompt classifier", jax.jit(towers_of(task, remat=False)))
    z = np.asarray(encode(params, {task.text: ids})[task.text])
    return np.concatenate([class_embeddings(z[owner == c][None]) for c in range(len(task.names))])
