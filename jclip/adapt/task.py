"""The task of a method: what it may see of a model and of the data, and what it hands back."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from jclip.adapt.heads import Features, Head, accuracy
from jclip.config import Augment, Model
from jclip.config.adapt import Choose
from jclip.config.adapt_methods import Views


class LabelledFeatures(NamedTuple):
    """Embeddings with labels."""

    features: Features
    """Embeddings of n examples."""
    labels: np.ndarray
    """int64 [n], indices into the classes."""

    def score(self, head: Head) -> float:
        """Accuracy of a head."""
        return accuracy(head, self.features, self.labels)


@dataclass(frozen=True)
class Encoding:
    """Functions of a model that methods may call. They compute what evaluations compute, and keep it where the cache may."""

    views: Callable[[Views, int], Features]
    """(views, epochs) -> embeddings of random views of the shots, [V, n, E]; the images themselves, [1, n, E], where V is 0."""
    texts: Callable[[Sequence[str]], np.ndarray]
    """Texts -> unit vectors f32 [n, E]."""
    pixels: Callable[[Augment, np.ndarray, np.ndarray], np.ndarray]
    """(changes, rows of shots [b], views [b]) -> augmented images u8 [b, H, W, 3]; each a function of seed, image and view."""
    selection: Callable[[Any], LabelledFeatures]
    """Parameters -> the examples to choose by, as the tower of images with these parameters sees them."""
    extra: Callable[[str, str], LabelledFeatures]
    """(source, tower) -> as many shots of another tower's."""


@dataclass(frozen=True)
class Task:
    """One cell of the table: so many shots of a seed. The examples of the test are none of it."""

    names: tuple[str, ...]
    """Names of the C classes."""
    shots: int
    """Examples of each class."""
    seed: int
    """Seed of the draw, and of all that is random in a method."""
    labels: np.ndarray
    """int64 [n]: labels of the shots."""
    images: Features
    """Embeddings of the shots as evaluations see them, [n, E]."""
    selection: LabelledFeatures
    """Examples to choose by."""
    templates: tuple[str, ...]
    """Templates of the zero-shot classifier."""
    prompts: tuple[tuple[str, ...], ...]
    """Texts of each class."""
    classifier: np.ndarray
    """Zero-shot classifier, f32 [C, E] unit vectors."""
    scale: float
    """Factor on cosines."""
    model: Model
    """Towers."""
    params: Mapping[str, Any] = field(repr=False)
    """Parameters of the model."""
    mesh: Mesh
    """Devices."""
    image: str
    """Tower of the examples."""
    text: str
    """Tower of the prompts."""
    encode: Encoding
    """Functions of the model."""
    select: Choose = "val"
    """Role of the examples to choose by."""
    compiled: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)
    """Programs that methods have compiled, for those that come after."""


@dataclass(frozen=True)
class Fitted:
    """The result of a method: a head, and parameters of towers where it changes any."""

    head: Head
    """Classifier."""
    parameters: int
    """Number of trained parameters."""
    choice: Mapping[str, Any] = field(default_factory=dict)
    """Choices made on validation, as JSON."""
    changed: Mapping[str, np.ndarray] = field(default_factory=dict, repr=False)
    """New parameters by path; of all others the model's own hold."""
    details: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """Numbers for the page, as JSON: curves, words."""
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict, repr=False)
    """Further arrays that are kept with the model, such as learned contexts."""
