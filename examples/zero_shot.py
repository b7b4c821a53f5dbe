"""A zero-shot classifier: prompts of each class, their mean as its weights, and softmax over the logits.

    python examples/zero_shot.py [MODEL]

MODEL is whatever `jclip.load` takes, such as the folder of the quickstart's run; without it a tiny model of random weights.
"""

import sys
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

import jclip


def class_weights(model: jclip.Encoder, classes: Sequence[str], templates: Sequence[str]) -> jax.Array:
    """Unit vectors f32 [C, E]: the mean of the embeddings of a class's prompts."""
    prompts = [template.format(name) for name in classes for template in templates]
    means = model.embed_text(prompts).reshape(len(classes), len(templates), -1).mean(axis=1)
    return jnp.asarray(means / np.linalg.norm(means, axis=1, keepdims=True))


def main(name: str = "ViT-tiny-test", *, images: int = 64) -> float:
    """Prints some answers, and returns the share of right ones."""
    model, source = jclip.load(name), jclip.open_source("shapes:test")
    weights = class_weights(model, source.classes, ("a {}", "a picture of a {}"))

    @jax.jit
    def classify(pixels: jax.Array) -> jax.Array:
        return jax.nn.softmax(model.logits(model.params, model.encode_image(model.params, pixels), weights))

    pixels = np.stack([model.preprocess(source[i]["image"]) for i in range(images)])
    probabilities = np.asarray(classify(jnp.asarray(pixels)))
    right = [bool(row.argmax() == source[i]["label"]) for i, row in enumerate(probabilities)]
    for i in range(4):
        best = int(probabilities[i].argmax())
        print(f"{source.classes[best]:24} {probabilities[i, best]:.2f}  ({source.classes[source[i]['label']]})")
    print(f"{sum(right)} of {images} right" + (", by chance: the weights are random" if name == "ViT-tiny-test" else ""))
    return sum(right) / images


if __name__ == "__main__":
    main(*sys.argv[1:])
