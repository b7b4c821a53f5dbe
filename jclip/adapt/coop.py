"""CoOp: contexts in place of a prompt's words, learned through the tower of texts."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.sharding import Mesh

from jclip.adapt.contexts import first_contexts, layout, nearest_words, prompt_encoder, reading_tower
from jclip.adapt.heads import linear, linear_head
from jclip.adapt.task import Fitted, Task
from jclip.adapt.training import coop_optimizer, cross_entropy, epochs_of, scan_steps
from jclip.config import TokenTower
from jclip.config.adapt_methods import CoOp, OfCoOp
from jclip.sharding import replicated

SHOWN_CLASSES = 20
"""Classes whose own contexts are shown in words."""


def fit_coop(method: CoOp, task: Task) -> Fitted:
    """The contexts after the last step, and the classifier that they make; nothing is chosen."""
    tower = reading_tower(task.model, task.text)
    table = np.asarray(task.params[task.text]["token_embed"])
    made = layout(tower, task.names, method.contexts, method.words, method.position)
    shape = (*((len(task.names),) if method.per_class else ()), made.contexts, table.shape[1])
    start = first_contexts(table, tower, method.words, shape, task.seed)
    encode = prompt_encoder(task.model, task.mesh, task.text, remat=method.remat)
    loss = prompt_loss(encode)
    given = (task.params, made.arrays(), np.float32(task.scale))
    contexts, steps = train(method, task, loss, start, given)
    key = ("prompts", task.text, method.remat)
    program = task.compiled.setdefault(key, jax.jit(encode))
    classifier = np.asarray(program(task.params, contexts, made.arrays()))
    contexts = np.asarray(contexts)
    words = _by_class(table, tower, contexts, task) if method.per_class else {"words": nearest_words(table, tower, contexts)}
    return Fitted(
        linear_head(classifier, task.scale),
        contexts.size,
        {"steps": steps, "contexts": made.contexts},
        details=words,
        arrays={"contexts": contexts},
    )


def prompt_loss(encode: Callable[..., Array]) -> Callable[..., Array]:
    """Cross-entropy of a batch: (contexts, (z [b, E], labels [b]), (params, arrays of a Layout, scale)) -> scalar."""

    def loss(contexts: Array, batch: tuple[Array, Array], given: Any) -> Array:
        z, labels = batch
        params, arrays, scale = given
        return cross_entropy(linear(z, labels, encode(params, contexts, arrays), scale), labels)

    return loss


def _by_class(table: np.ndarray, tower: TokenTower, contexts: np.ndarray, task: Task) -> dict[str, Any]:
    """Nearest words of each class's own contexts, of the first classes."""
    few = zip(task.names[:SHOWN_CLASSES], contexts, strict=False)
    return {"class_words": {name: nearest_words(table, tower, own) for name, own in few}}


def train(method: OfCoOp, task: Task, loss: Callable[..., Array], start: Any, given: Any) -> tuple[Any, int]:
    """Learned arrays after the last step of CoOp's trainer, and the number of steps.

    Args:
        method: schedule and batches.
        task: the shots.
        loss: (learned, (embeddings [b, E], labels [b]), given) -> the loss of a batch.
        start: learned arrays, a tree.
        given: all else, an argument of the compiled epoch.
    """
    epochs = method.passes(task.shots)
    rows = epochs_of(len(task.labels), method.batch_size, epochs, task.seed)
    views = task.encode.views(method.views, epochs)
    optimizer = coop_optimizer(method, epochs, rows.shape[1])
    key = (method, epochs, rows.shape[1:], task.text, task.names)
    program = task.compiled.setdefault(key, make_epoch(loss, optimizer, task.mesh))
    learned, state = jax.tree.map(jnp.asarray, start), optimizer.init(start)
    labels = task.labels.astype(np.int32)
    for number, batches in enumerate(rows):
        z = views.z[number % len(views.z)][batches]
        learned, state = program(learned, state, z, labels[batches], given)
    return learned, rows.shape[0] * rows.shape[1]


def make_epoch(loss: Callable[..., Array], optimizer: optax.GradientTransformation, mesh: Mesh) -> Any:
    """The jitted steps of an epoch: (learned, state, z [s, b, E], labels [s, b], given) -> (learned, state).

    No array but `given` and what is learned outlives a step; the largest of one are the activations of the prompts.
    """

    def epoch(learned: Any, state: Any, z: Array, labels: Array, given: Any) -> tuple[Any, Any]:
        return scan_steps(lambda learned, batch: loss(learned, batch, given), optimizer, learned, state, (z, labels))

    return jax.jit(epoch, out_shardings=replicated(mesh))
