"""A linear probe, and the file it is kept in: safetensors, whose metadata says how it came about."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from jclip.config import ConfigError
from jclip.data.caches import write_atomically

_FORMAT = "jclip probe 1"
_FACTS = ("protocol", "strength", "tried", "converged", "iterations", "normalised")


@dataclass(frozen=True)
class Probe:
    """A linear classifier of features, and how it came about."""

    weights: np.ndarray
    """[D, C] float64."""
    bias: np.ndarray
    """[C] float64; -inf for a class that is never predicted."""
    protocol: str
    strength: float
    """Strength of the penalty, as the protocol counts it."""
    tried: tuple[tuple[float, float], ...] = ()
    """Strengths and their scores on validation, ascending; empty where the strength was given."""
    converged: bool = True
    iterations: int = 0
    """Facts of the fit that made the weights."""
    normalised: bool = False
    """True: features are divided by their L2 norm first."""

    def scores(self, features: np.ndarray) -> np.ndarray:
        """The classes' scores [n, C] float64 of features [n, D]."""
        scores: np.ndarray = (unit(features) if self.normalised else features) @ self.weights + self.bias
        return scores

    def predict(self, features: np.ndarray) -> np.ndarray:
        """The classes [n] of features [n, D]."""
        classes: np.ndarray = np.argmax(self.scores(features), axis=1)
        return classes


def unit(features: np.ndarray) -> np.ndarray:
    """Features [n, D] divided by their L2 norm; zeros stay zeros."""
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    divided: np.ndarray = features / np.where(norms > 0, norms, 1)
    return divided


def save_probe(path: str | os.PathLike[str], probe: Probe, classes: tuple[str, ...], facts: dict[str, str]) -> None:
    """Writes a probe; where the file exists it is replaced in one step, so that nobody reads half of it.

    Args:
        path: the file; its folder is made.
        probe: what to write.
        classes: names of the C classes.
        facts: what else to remember: of which model, of which data.

    Raises:
        ValueError: the number of classes is not the probe's.
    """
    if len(classes) != probe.weights.shape[1]:
        raise ValueError(f"probe: {len(classes)} names for {probe.weights.shape[1]} classes; give a name for each class")
    about = {name: getattr(probe, name) for name in _FACTS}
    metadata = {"format": _FORMAT, "probe": json.dumps(about), "classes": json.dumps(classes), "facts": json.dumps(facts)}
    arrays = {"weights": np.ascontiguousarray(probe.weights, np.float64), "bias": np.ascontiguousarray(probe.bias, np.float64)}
    write_atomically(Path(path), lambda draft: draft.write_bytes(save(arrays, metadata)))


def load_probe(path: str | os.PathLike[str]) -> tuple[Probe, tuple[str, ...], dict[str, str]]:
    """A probe of `save_probe`, the names of its classes, and the facts.

    Raises:
        ConfigError: there is no such file, or it holds something else.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"{path}: there is no such file; give one that save_probe has written")
    try:
        with safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != _FORMAT:
                given = metadata.get("format", "no format")
                raise ConfigError(f"{path}: {given!r} in the metadata where {_FORMAT!r} is needed; give a file of save_probe")
            about = json.loads(metadata["probe"])
            about["tried"] = tuple((float(strength), float(score)) for strength, score in about["tried"])
            probe = Probe(file.get_tensor("weights"), file.get_tensor("bias"), **about)
            return probe, tuple(json.loads(metadata["classes"])), json.loads(metadata["facts"])
    except (SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ConfigError(f"{path}: no file of save_probe, or cut short: {error}") from None
