"""Stand-ins of the adaptation's tests: a task of random features, with references in f64 numpy."""

from dataclasses import replace
from typing import Any

import numpy as np
from jax.sharding import Mesh

from jclip.adapt.heads import Features
from jclip.adapt.task import Encoding, LabelledFeatures, Task
from jclip.config import architecture
from jclip.config.adapt_methods import Views
from jclip.sharding import make_mesh

WIDTH, CLASSES, SCALE = 16, 5, 30.0


def unit64(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def features(rng: np.random.Generator, centres: np.ndarray, labels: np.ndarray, noise: float) -> Features:
    """Embeddings around the centres of their classes, of lengths 1 to 10."""
    x = centres[labels] + noise * rng.normal(size=(*labels.shape, centres.shape[1]))
    norm = rng.uniform(1, 10, size=labels.shape).astype(np.float32)
    return Features(unit64(x).astype(np.float32), norm)


def make_task(shots: int = 4, seed: int = 0, noise: float = 0.3, text_noise: float = 0.4, **changes: Any) -> Task:
    """A task whose classes are Gaussian clouds, and whose texts lie near their centres."""
    rng = np.random.default_rng([seed, shots])
    centres = rng.normal(size=(CLASSES, WIDTH))
    labels, chosen = np.repeat(np.arange(CLASSES), shots), np.repeat(np.arange(CLASSES), 6)
    texts = unit64(centres + text_noise * rng.normal(size=centres.shape)).astype(np.float32)
    names = tuple(f"class {i}" for i in range(CLASSES))
    by_text = {f"a photo of a {name}.": z for name, z in zip(names, texts, strict=True)}

    def views(how: Views, epochs: int) -> Features:
        count = epochs if how.count is None else how.count
        draws = np.random.default_rng([seed, 7])
        made = [features(draws, centres, labels, noise) for _ in range(max(1, count))]
        return Features(*map(np.stack, zip(*made, strict=True)))

    def unused(*_: Any) -> Any:
        raise AssertionError("this method has no use for it")

    selection = LabelledFeatures(features(rng, centres, chosen, noise), chosen)
    model = architecture("ViT-tiny-test")
    task = Task(
        names=names,
        shots=shots,
        seed=seed,
        labels=labels,
        images=features(rng, centres, labels, noise),
        selection=selection,
        templates=("a photo of a {}.",),
        prompts=tuple((text,) for text in by_text),
        classifier=texts,
        scale=SCALE,
        model=model,
        params={},
        mesh=one_device(),
        image="image",
        text="text",
        encode=Encoding(views, lambda asked: np.stack([by_text[text] for text in asked]), unused, unused, unused),
    )
    return replace(task, **changes)


def one_device() -> Mesh:
    import jax

    from jclip import config

    return make_mesh(config.MeshConfig(), jax.devices()[:1])
