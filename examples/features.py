"""A jitted extractor of features, and its gradients to the pixels: which of them speak for a text.

    python examples/features.py [MODEL]

MODEL is whatever `jclip.load` takes; without it a tiny model of random weights. With the weights of a real model the map of
gradients is a picture of where the text is.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np

import jclip


def main(name: str = "ViT-tiny-test") -> jax.Array:
    """Prints the features' shape, and returns how much each pixel says for the text, f32 [H, W]."""
    model = jclip.load(name)
    scene = jclip.open_source("shapes:test")[0]
    image, text = model.preprocess(scene["image"]), model.tokenize(scene["text"])

    @jax.jit
    def features(pixels: jax.Array) -> jax.Array:
        return model.apply(model.params, {model.image_tower: pixels})[model.image_tower].output.pooled

    print("features", features(jnp.asarray(image[None])).shape)
    zb = model.encode_text(model.params, text)

    @jax.jit
    @jax.grad
    def saliency(pixels: jax.Array) -> jax.Array:
        return (model.encode_image(model.params, model.normalise(pixels)[None], normalised=True) @ zb.T).sum()

    heat = jnp.abs(saliency(jnp.asarray(image, jnp.float32))).sum(axis=-1)
    row, column = np.unravel_index(np.argmax(heat), heat.shape)
    print(f"{scene['text']!r} depends most on the pixel in row {row}, column {column}")
    return heat


if __name__ == "__main__":
    main(*sys.argv[1:])
