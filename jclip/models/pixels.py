"""The beginning of every tower of images: pixels, normalised on the device."""

import jax.numpy as jnp
from jax import Array

from jclip.config import Preprocess


def as_pixels(images: Array, size: tuple[int, int], preprocess: Preprocess, normalised: bool = False) -> Array:
    """f32 [b, H, W, 3], normalised, of images u8 [b, H, W, 3]; or of floats of that shape, if they are said to be `normalised`.

    Floats alone do not say what they are: 0 to 1, 0 to 255 and normalised pixels look alike.

    Raises:
        ValueError: they have another size or type.
    """
    if images.shape[1:] != (*size, 3):
        raise ValueError(f"image: shape {images.shape} is not [b, {size[0]}, {size[1]}, 3]")
    if images.dtype == jnp.uint8:
        return normalise(images, preprocess)
    if not (normalised and jnp.issubdtype(images.dtype, jnp.floating)):
        raise ValueError(
            f"image: {images.dtype} is not uint8, 0 to 255; give these, or floats with mean {preprocess.mean} and deviation "
            f"{preprocess.std} already taken out, with normalised=True"
        )
    return images


def normalise(images: Array, preprocess: Preprocess) -> Array:
    """Pixels 0 to 255, [..., H, W, 3], as f32 of mean 0 and standard deviation 1 a channel."""
    channels = (1,) * (images.ndim - 1) + (3,)
    mean, std = (jnp.asarray(values).reshape(channels) for values in (preprocess.mean, preprocess.std))
    return (images.astype(jnp.float32) / 255 - mean) / std
