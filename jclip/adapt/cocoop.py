"""CoCoOp: contexts that each image shifts by a small network of its embedding, and the head that they make."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from jclip.adapt.contexts import first_contexts, layout, nearest_words, prompt_encoder, reading_tower
from jclip.adapt.coop import train
from jclip.adapt.heads import Features, Head, scalar
from jclip.adapt.task import Fitted, Task
from jclip.adapt.training import cross_entropy
from jclip.config import Model
from jclip.config.adapt_methods import CoCoOp
from jclip.sharding import replicated

LEARNED = ("contexts", "weights_1", "bias_1", "weights_2", "bias_2")
PROMPTS_AT_A_TIME = 512
"""Prompts that are read at a time where a head is used."""


def fit_cocoop(method: CoCoOp, task: Task) -> Fitted:
    """Contexts and network after the last step; nothing is chosen."""
    tower = reading_tower(task.model, task.text)
    table = np.asarray(task.params[task.text]["token_embed"])
    made = layout(tower, task.names, method.contexts, method.words, "end")
    contexts = first_contexts(table, tower, method.words, (made.contexts, table.shape[1]), task.seed)
    start = {"contexts": contexts, **first_network(task.classifier.shape[1], method.reduction, table.shape[1], task.seed)}
    encode = prompt_encoder(task.model, task.mesh, task.text, remat=method.remat)

    def loss(learned: dict[str, Array], batch: tuple[Array, Array], given: Any) -> Array:
        params, arrays, scale = given
        return cross_entropy(conditional(encode, params, learned, arrays, batch[0], scale), batch[1])

    given = (task.params, made.arrays(), np.float32(task.scale))
    learned, steps = train(method, task, loss, start, given)
    arrays = {name: np.asarray(array) for name, array in learned.items()}
    where = dict(zip(("ids", "gather", "eot"), made.arrays(), strict=True))
    head = Head("conditional", {**arrays, **where, "scale": scalar(task.scale)})
    return Fitted(
        bind(head, task.model, task.params, task.mesh, task.text, task.compiled),
        sum(array.size for array in arrays.values()),
        {"steps": steps, "contexts": made.contexts},
        details={"words": nearest_words(table, tower, arrays["contexts"])},
    )


def first_network(width: int, reduction: int, out: int, seed: int) -> dict[str, np.ndarray]:
    """Both layers, uniform within 1 / sqrt(inputs), as torch makes linear layers."""
    rng = np.random.default_rng([seed, 6])
    middle = max(1, width // reduction)
    made = {}
    for name, inputs, outputs in (("1", width, middle), ("2", middle, out)):
        made[f"weights_{name}"] = (rng.uniform(-1, 1, (inputs, outputs)) / inputs**0.5).astype(np.float32)
        made[f"bias_{name}"] = (rng.uniform(-1, 1, outputs) / inputs**0.5).astype(np.float32)
    return made


def conditional(
    encode: Any, params: Any, learned: dict[str, Array], arrays: tuple[Array, Array, Array], z: Array, scale: Array
) -> Array:
    """Logits f32 [b, C] of unit vectors [b, E]: each against the prompts of all classes that its own shift makes."""
    count, classes = z.shape[0], arrays[0].shape[0]
    middle = jax.nn.relu(jnp.matmul(z, learned["weights_1"], precision="highest") + learned["bias_1"][None, :])
    shift = jnp.matmul(middle, learned["weights_2"], precision="highest") + learned["bias_2"][None, :]
    contexts = learned["contexts"][None] + shift[:, None, :]  # [b, M, d]
    everything = jnp.repeat(contexts, classes, axis=0)
    prompts = tuple(jnp.tile(x, (count,) + (1,) * (x.ndim - 1)) for x in arrays)
    texts = encode(params, everything, prompts).reshape(count, classes, -1)
    return scale * jnp.einsum("be,bce->bc", z, texts, precision="highest", preferred_element_type=jnp.float32)


def bind(head: Head, model: Model, params: Any, mesh: Mesh, text: str, compiled: dict[Any, Any] | None = None) -> Head:
    """The head as a function of embeddings, by the tower of texts of a model."""
    compiled = {} if compiled is None else compiled
    encode = prompt_encoder(model, mesh, text, remat=False)

    def run(learned: Any, arrays: Any, z: Array, scale: Array, params: Any) -> Array:
        return conditional(encode, params, learned, arrays, z, scale)

    program = compiled.setdefault(("conditional", text), jax.jit(run, out_shardings=replicated(mesh)))
    learned = {name: head.arrays[name] for name in LEARNED}
    arrays = tuple(head.arrays[name] for name in ("ids", "gather", "eot"))

    def logits(features: Features) -> np.ndarray:
        n, size = len(features.z), max(1, PROMPTS_AT_A_TIME // len(arrays[0]))
        parts = []
        for start in range(0, n, size):
            rows = np.arange(start, start + size) % n
            parts.append(np.asarray(program(learned, arrays, features.z[rows], head.arrays["scale"], params))[: n - start])
        return np.concatenate(parts)

    return replace(head, run=logits)
