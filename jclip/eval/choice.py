"""Image-caption selection: does a model prefer a caption to another that differs in what matters (SugarCrepe, Winoground)?"""

import numpy as np

from jclip.config import ConfigError
from jclip.eval.ranks import TIE


def choose(za: np.ndarray, zb: np.ndarray) -> dict[str, np.ndarray]:
    """Right choices by example, with strict comparison: nearer by more than the margin of a tie (see `ranks`).

    Image i matches caption i for i < I; further captions match none. "text_score": for every image, its caption is strictly the
    nearest of the T captions. "image_score": for each of the first I captions, its image is strictly the nearest of the I images.
    "group_score": both. These are the definitions of Thrush et al. 2022 (Winoground: I = T = 2); with I = 1 and T = 2
    text_score is the accuracy of Hsieh et al. 2023 (SugarCrepe), and there are no others. NaN is never right.

    Args:
        za: [n, I, E] float32 unit vectors of the images.
        zb: [n, T, E] float32 unit vectors of the captions.

    Returns:
        {name: [n] bool}.

    Raises:
        ConfigError: there are fewer captions than images, or there is nothing to choose from.
    """
    images, captions = za.shape[1], zb.shape[1]
    if captions < max(2, images):
        raise ConfigError(
            f"choice: {images} image(s) and {captions} caption(s) an example; "
            "there must be at least 2 captions, and one for each image"
        )
    scores = np.einsum("nie,nte->nit", za.astype(np.float64), zb.astype(np.float64))
    own = np.diagonal(scores, axis1=1, axis2=2)  # [n, I]
    other = ~np.eye(images, captions, dtype=bool)
    below = scores < own[:, :, None] - TIE
    result = {"text_score": np.all(below | ~other, axis=(1, 2))}
    if images > 1:
        below = scores[:, :, :images] < own[:, None, :] - TIE
        result["image_score"] = np.all(below | ~other[:, :images], axis=(1, 2))
        result["group_score"] = result["text_score"] & result["image_score"]
    return result


def choice_metrics(za: np.ndarray, zb: np.ndarray) -> dict[str, float]:
    """The fractions of n >= 1 examples that `choose` finds right."""
    return {name: float(np.mean(right)) for name, right in choose(za, zb).items()}
