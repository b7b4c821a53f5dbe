"""What every tower of images begins with: pixels, normalised on the device."""

import jax.numpy as jnp
from jax import Array

from jclip.config import Preprocess


def as_pixels(images: Array, image_size: int, preprocess: Preprocess) -> Array:
    """f32 [b, S, S, 3], normalised, of images u8 [b, S, S, 3], or f32 that are so already.

    Raises:
        ValueError: they have another size.
    """
    if images.shape[1:] != (image_size, image_size, 3):
        raise ValueError(f"image: shape {images.shape} is not [b, {image_size}, {image_size}, 3]")
    return normalise(images, preprocess) if images.dtype == jnp.uint8 else images


def normalise(images: Array, preprocess: Preprocess) -> Array:
    """u8 [b, H, W, 3] -> f32 of mean 0 and standard deviation 1 a channel."""
    mean, std = jnp.asarray(preprocess.mean), jnp.asarray(preprocess.std)
    return (images.astype(jnp.float32) / 255 - mean[None, None, None]) / std[None, None, None]
