"""Adapted models on disk: a head, changed parameters and learned arrays beside the name of the model that they belong to."""

import hashlib
import inspect
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from glob import escape
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from jclip import __version__
from jclip.adapt.heads import HEADS, OF_MODELS, Features, Head
from jclip.config import ConfigError, Model, TokenTower
from jclip.config.same import changed_towers
from jclip.eval import tower_facts
from jclip.files import ADAPTED, read_whole

FORMAT = "jclip adapted 2"
ARRAYS = "adapted.safetensors"
PARTS = ("head", "changed", "arrays")
OPTIONS = ("step", "architecture_name", "image_size", "context_length", "tokenizer", "kind", "preprocess", "seed", "fsdp")
"""Arguments of `jclip.load` that a base may have."""
ARRAYS_OF = {kind: tuple(inspect.signature(function).parameters)[2:] for kind, function in HEADS.items()} | {
    "conditional": ("contexts", "weights_1", "bias_1", "weights_2", "bias_2", "ids", "gather", "eot", "scale")
}
"""Names of the arrays of each kind of head."""
OF_CLASSES = {"linear": "weights", "cache": "classifier", "adapter": "classifier", "conditional": "ids"}
"""Array of each kind of head that has a row for each class."""


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
    """The model: "model", as `jclip.load` takes it, "options", further arguments of that, and by tower "weights", digests of its
    parameters, and "towers", its configuration (see `base_towers`)."""
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
    for old in folder.parent.glob(f".{escape(folder.name)}-*"):  # of a process that was killed; process numbers come again
        shutil.rmtree(old)
    draft = folder.parent / f".{folder.name}-{os.getpid()}"
    draft.mkdir(parents=True)
    try:
        parts = {"head": adapted.head.arrays, "changed": adapted.changed, "arrays": adapted.arrays}
        arrays = {f"{part}/{name}": np.array(array, order="C") for part in PARTS for name, array in parts[part].items()}
        data = save(arrays)
        (draft / ARRAYS).write_bytes(data)
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
        content["digest"] = _digest(content, data)
        (draft / ADAPTED).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        if folder.exists():
            shutil.rmtree(folder)
        draft.rename(folder)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def base_towers(model: Model) -> dict[str, Any]:
    """Configuration of each tower, and digest of its vocabulary where that is a file, as JSON; see `other_towers`."""
    return {name: json.loads(json.dumps(tower_facts(tower))) for name, tower in model.towers.items()}


def other_towers(base: Mapping[str, Any], model: Model) -> list[str]:
    """Differences, in words, of a model's towers from those of `base_towers`, which may be of an older jclip.

    Raises:
        ConfigError: a tower of the base cannot be understood.
    """
    found = [f"{name} is only in one of them" for name in sorted({*base} ^ {*model.towers})]
    for name in sorted({*base} & {*model.towers}):
        facts, tower = dict(base[name]), model.towers[name]
        if facts.pop("vocabulary", None) != tower_facts(tower).get("vocabulary"):
            found.append(f"{name} has another vocabulary")
        elif isinstance(tower, TokenTower):  # the same one, wherever it lies
            facts["tokenizer"] = {**facts["tokenizer"], "file": tower.tokenizer.file}
        found += changed_towers({name: facts}, {name: tower})
    return found


def _digest(content: Mapping[str, Any], arrays: bytes) -> str:
    """32 hexadecimal digits of all that a folder holds."""
    text = json.dumps({name: value for name, value in content.items() if name != "digest"}, sort_keys=True)
    return hashlib.blake2b(text.encode() + b"\0" + arrays, digest_size=16).hexdigest()


def _check(content: Any) -> None:
    """Raises ValueError where the content of the JSON file has another form than `write_adapted` gives it."""
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"its format is {content.get('format') if isinstance(content, dict) else None!r}, not {FORMAT!r}")
    if content["head"] not in (*HEADS, *OF_MODELS):
        raise ValueError(f"its head is {content['head']!r}; known are {', '.join((*HEADS, *OF_MODELS))}")
    base, classes = content["base"], content["classes"]
    if not isinstance(classes, list) or len(classes) < 2 or not all(isinstance(name, str) for name in classes):
        raise ValueError("its classes are no list of two names or more")
    if not all(isinstance(content[name], str) for name in ("image", "text", "digest")):
        raise ValueError("image, text or digest are no text")
    if not isinstance(base, dict) or not isinstance(base["model"], str) or not isinstance(base["options"], dict):
        raise ValueError("its base names no model")
    if strange := [name for name in base["options"] if name not in OPTIONS]:
        raise ValueError(f"its base has the option {strange[0]!r}; known are {', '.join(OPTIONS)}")
    for part in ("weights", "towers"):
        if not isinstance(base[part], dict) or not {content["image"], content["text"]} <= base[part].keys():
            raise ValueError(f"its base has no {part} of {content['image']!r} and {content['text']!r}")


def _check_head(head: Head, classes: int) -> None:
    """Raises ValueError where a head has other arrays than its kind, or is of another number of classes."""
    arrays = ARRAYS_OF[head.kind]
    if {*head.arrays} != {*arrays}:
        raise ValueError(f"its {head.kind} head has the arrays {sorted(head.arrays)}, not {sorted(arrays)}")
    name = OF_CLASSES[head.kind]
    shape = head.arrays[name].shape
    if len(shape) != 2 or shape[0] != classes:
        raise ValueError(f"its head's {name} of shape {shape} are of other than the {classes} classes")


def read_adapted(folder: str | Path) -> Adapted:
    """The adapted model of a folder.

    Raises:
        ConfigError: it is none, is damaged, or of a kind that this jclip does not know.
    """
    folder = Path(folder)
    try:
        content = json.loads(read_whole(folder / ADAPTED))
        _check(content)
        if content["digest"] != _digest(content, read_whole(folder / ARRAYS)):
            raise ValueError("its digest is another one: something was changed, or is of another file")
        parts: dict[str, dict[str, np.ndarray]] = {part: {} for part in PARTS}
        with safe_open(folder / ARRAYS, "numpy") as file:
            names = file.keys()
            for name in names:
                part, _, rest = name.partition("/")
                parts[part][rest] = file.get_tensor(name)
        head = Head(content["head"], parts["head"])
        _check_head(head, len(content["classes"]))
        own = ("digest", "format", "jclip", "base", "classes", "image", "text", "head")
        return Adapted(
            tuple(content["classes"]),
            content["image"],
            content["text"],
            head,
            content["base"],
            {name: value for name, value in content.items() if name not in own},
            parts["changed"],
            parts["arrays"],
        )
    except KeyError as error:
        raise ConfigError(
            f"{folder}: no adapted model, or damaged: {error} is missing or strange; run jclip adapt again"
        ) from None
    except (OSError, ValueError, TypeError, RecursionError, SafetensorError) as error:
        raise ConfigError(f"{folder}: no adapted model, or damaged: {error}; run jclip adapt again") from None
