"""Weights as jclip keeps them outside of training: `jclip.json` (architecture, preprocessing, tokenizer) and safetensors."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jclip import __version__
from jclip.config import ConfigError, Model, from_json, to_json
from jclip.weights.errors import WeightsError
from jclip.weights.layout import SAME, SCALAR, Rule

CONFIG = "jclip.json"
FILES = ("jclip.safetensors",)
BUFFERS = ()


def read_model(folder: Path, config: Mapping[str, Any]) -> Model:
    """The architecture of a `jclip.json`, with its preprocessing and tokenizer."""
    if "model" not in config:
        raise WeightsError(f"{folder / CONFIG}: has no model")
    try:
        return from_json(config["model"], Model, f"{folder / CONFIG}: model")
    except ConfigError as error:
        raise WeightsError(str(error)) from None


def write_config(model: Model, folder: Path, *, bias: bool) -> None:
    """Writes `jclip.json`."""
    (folder / CONFIG).write_text(json.dumps({"jclip": __version__, "model": to_json(model)}, indent=2) + "\n")


def rules(paths: list[str]) -> list[Rule]:
    """Every parameter under its own path."""
    return [Rule(path, path, SCALAR if path.endswith(("/logit_scale", "/logit_bias")) else SAME) for path in paths]
