"""Weights as jclip keeps them outside of training: `jclip.json` (architecture, preprocessing, tokenizer) and safetensors."""

import hashlib
import json
import re
from collections.abc import Collection, Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jclip import __version__
from jclip.config import Caption, ConfigError, Model, TokenTower, from_json, to_saved
from jclip.config.ranges import value_problems
from jclip.weights.errors import WeightsError
from jclip.weights.io.files import Lazy, read_json
from jclip.weights.layout import Rule
from jclip.weights.texts.tokenizer_files import copy_vocabularies, find_vocabularies

CONFIG = "jclip.json"
FILES = ("jclip.safetensors",)
MARK = ".*"
BUFFERS = ""


def read_model(folder: Path, config: Mapping[str, Any], names: Iterable[str] = ()) -> tuple[Model, tuple[str, ...]]:
    """The architecture of a `jclip.json`, with its preprocessing, and with tokenizers whose vocabularies lie beside it.

    Also the parameters of its objectives, such as "image_text/logit_scale". The `names` of arrays say no more.
    """
    if missing := {"model", "scales"} - config.keys():
        raise WeightsError(f"{folder / CONFIG}: has no {' and no '.join(sorted(missing))}")
    model = _model(folder, config["model"])
    pairs = [f"{a}_{b}" for a in model.towers for b in model.towers]
    allowed = [f"{pair}/{leaf}" for pair in pairs for leaf in ("logit_scale", "logit_bias")]
    scales = config["scales"]
    if not isinstance(scales, list) or any(path not in allowed for path in scales):
        raise WeightsError(f"{folder / CONFIG}: scales is {scales!r}; allowed is a list of some of {', '.join(allowed)}")
    return find_vocabularies(model, folder), tuple(scales)


def read_captioners(folder: Path, config: Mapping[str, Any]) -> dict[str, Caption]:
    """Captioners by the name of their parameters."""
    try:
        found = config.get("captioners", {}).items()
        captioners = {name: from_json(how, Caption, f"{folder / CONFIG}: captioners.{name}") for name, how in found}
    except ConfigError as error:
        raise WeightsError(str(error)) from None
    except AttributeError:
        raise WeightsError(f"{folder / CONFIG}: its captioners are not by name") from None
    towers = config.get("model", {}).get("towers", {})
    for name, how in captioners.items():
        if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or name in {*towers, *(f"{tower}_projection" for tower in towers)}:
            raise WeightsError(f"{folder / CONFIG}: {name!r} cannot name a captioner")
        for problem in value_problems(how):
            raise WeightsError(f"{folder / CONFIG}: captioners.{name}.{problem}")
    return captioners


def _model(folder: Path, config: Any) -> Model:
    try:
        return from_json(config, Model, f"{folder / CONFIG}: model")
    except ConfigError as error:
        raise WeightsError(str(error)) from None


def vocabularies(folder: Path) -> list[str]:
    """The names of the vocabularies that have to lie beside `jclip.json`; none where there is no such file."""
    path = folder / CONFIG
    model = _model(folder, read_json(path).get("model")) if path.is_file() else Model()
    tokenizers = [tower.tokenizer for tower in model.towers.values() if isinstance(tower, TokenTower)]
    return sorted({tokenizer.file for tokenizer in tokenizers if tokenizer.kind != "clip"})


def opened(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Lazy]) -> dict[str, Lazy]:
    """See Format: the arrays, which are compared with their digests when they are read."""
    return with_digests(folder, config, tensors)


def finish(folder: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """See Format: the digests of the arrays are added."""
    write_digests(folder, arrays)


def with_digests(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Lazy]) -> dict[str, Lazy]:
    """Arrays that are compared, when they are read, with the digests of `jclip.json`; a file of before these has none."""
    digests = config.get("digests", {})
    if not isinstance(digests, dict) or (digests and digests.keys() != tensors.keys()):
        raise WeightsError(f"{folder / CONFIG}: its digests are not those of the arrays in {FILES[0]}")

    def checked(name: str, tensor: Lazy) -> Lazy:
        def read() -> NDArray[Any]:
            array = np.asarray(tensor)
            if digest_of(array) != digests[name]:
                raise WeightsError(f"{folder / FILES[0]}: {name} is damaged: it is not what was written; copy the folder again")
            return array

        return Lazy(tensor.shape, read)

    return {name: checked(name, tensor) for name, tensor in tensors.items()} if digests else dict(tensors)


def digest_of(array: NDArray[Any]) -> str:
    """SHA-256 of an array's numbers, hex."""
    return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()


def write_digests(folder: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Adds the digests of the arrays to `jclip.json`."""
    config = read_json(folder / CONFIG) | {"digests": {name: digest_of(array) for name, array in arrays.items()}}
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")


def write_config(
    model: Model, folder: Path, scales: Sequence[str], captioners: Mapping[str, Caption] | None = None
) -> Collection[str]:
    """Writes `jclip.json`, and the vocabularies of the tokenizers beside it. Returns the names of the captioners, of all."""
    model = copy_vocabularies(model, folder)
    config = {"jclip": __version__, "model": to_saved(model), "scales": scales}
    if captioners:
        config["captioners"] = {name: to_saved(how) for name, how in captioners.items()}
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    return tuple(captioners or ())


def rules(model: Model, paths: Iterable[str], names: Container[str] | None = None) -> list[Rule]:
    """Every parameter of `paths` under its own; neither the model nor the `names` in a file say more."""
    return [Rule(path, path) for path in paths]
