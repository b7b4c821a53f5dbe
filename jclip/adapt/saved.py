"""Adapted models on disk: a head, changed parameters and learned arrays beside the name of the model that they belong to."""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from jclip import __version__
from jclip.adapt.heads import HEADS, OF_MODELS, Features, Head
from jclip.config import ConfigError
from jclip.files import ADAPTED, read_whole

FORMAT = "jclip adapted 1"
ARRAYS = "adapted.safetensors"
PARTS = ("head", "changed", "arrays")


@dataclass(frozen=True)
class Adapted:
    """A model's adaptation: its head, and what was changed."""

    classes: tuple[str, ...]
    """Names of the classes."""
    image: str
    """Tower whose embeddings the head sees."""
    text: str
    """Tower of the prompts."""
    head: Head
    """Classifier of these."""
    base: Mapping[str, Any]
    """The model: "model", as `jclip.load` takes it, "options", further arguments of that, and "weights", digests by tower."""
    facts: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """Method, shots, seed, choices, words: as JSON."""
    changed: Mapping[str, np.ndarray] = field(default_factory=dict, repr=False)
    """Parameters of towers by path that differ from the model's."""
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict, repr=False)
    """Further arrays, such as learned contexts, by name."""

    def digest(self) -> str:
        """32 hexadecimal digits of the head and the names of the classes."""
        found = hashlib.blake2b(json.dumps([self.head.kind, *self.classes]).encode(), digest_size=16)
        for name, array in sorted(self.head.arrays.items()):
            found.update(f"{name} {array.dtype} {array.shape};".encode() + np.array(array, order="C").tobytes())
        return found.hexdigest()

    def logits(self, features: Features) -> np.ndarray:
        """Logits f32 [n, C] of embeddings."""
        return self.head.logits(features)


def write_adapted(folder: Path, adapted: Adapted) -> None:
    """Writes a folder, which appears whole or not at all; one that is there is replaced."""
    draft = folder.parent / f".{folder.name}-{os.getpid()}"
    draft.mkdir(parents=True)
    try:
        parts = {"head": adapted.head.arrays, "changed": adapted.changed, "arrays": adapted.arrays}
        arrays = {f"{part}/{name}": np.array(array, order="C") for part in PARTS for name, array in parts[part].items()}
        (draft / ARRAYS).write_bytes(save(arrays))
        content = {
            "format": FORMAT,
            "jclip": __version__,
            "base": dict(adapted.base),
            "classes": list(adapted.classes),
            "image": adapted.image,
            "text": adapted.text,
            "head": adapted.head.kind,
            **adapted.facts,
        }
        (draft / ADAPTED).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        if folder.exists():
            shutil.rmtree(folder)
        draft.rename(folder)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def read_adapted(folder: str | Path) -> Adapted:
    """The adapted model of a folder.

    Raises:
        ConfigError: it is none, is damaged, or of a kind that this jclip does not know.
    """
    folder = Path(folder)
    try:
        content = json.loads(read_whole(folder / ADAPTED))
        if content["format"] != FORMAT:
            raise ValueError(f"its format is {content['format']!r}, and this jclip reads {FORMAT!r}")
        if content["head"] not in (*HEADS, *OF_MODELS):
            raise ValueError(f"its head is {content['head']!r}; known are {', '.join((*HEADS, *OF_MODELS))}")
        parts: dict[str, dict[str, np.ndarray]] = {part: {} for part in PARTS}
        with safe_open(folder / ARRAYS, "numpy") as file:
            names = file.keys()
            for name in names:
                part, _, rest = name.partition("/")
                parts[part][rest] = file.get_tensor(name)
        own = ("format", "jclip", "base", "classes", "image", "text", "head")
        return Adapted(
            tuple(content["classes"]),
            content["image"],
            content["text"],
            Head(content["head"], parts["head"]),
            content["base"],
            {name: value for name, value in content.items() if name not in own},
            parts["changed"],
            parts["arrays"],
        )
    except (OSError, ValueError, KeyError, TypeError, RecursionError, SafetensorError) as error:
        raise ConfigError(f"{folder}: no adapted model, or damaged: {error}; run jclip adapt again") from None
