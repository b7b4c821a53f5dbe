"""Recipes as data: the dataclasses, the table of named architectures, loading, overrides, JSON and the one check."""

from jclip.config.architectures import architecture, architecture_names, siglip_image
from jclip.config.check import check, check_model
from jclip.config.durations import Plan, make_plan, to_steps
from jclip.config.errors import ConfigError
from jclip.config.io import differences, from_json, load, to_json
from jclip.config.schema import (
    Augment,
    Checkpoint,
    Config,
    Data,
    Duration,
    Eval,
    InitFrom,
    LinearProbe,
    Mesh,
    Optim,
    Pair,
    Retrieval,
    ZeroShot,
    replace,
)
from jclip.config.towers import ImageTower, Model, Preprocess, ResNetTower, TextTower, Tokenizer, Tower, VisionTower

__all__ = [
    "Augment",
    "Checkpoint",
    "Config",
    "ConfigError",
    "Data",
    "Duration",
    "Eval",
    "ImageTower",
    "InitFrom",
    "LinearProbe",
    "Mesh",
    "Model",
    "Optim",
    "Pair",
    "Plan",
    "Preprocess",
    "ResNetTower",
    "Retrieval",
    "TextTower",
    "Tokenizer",
    "Tower",
    "VisionTower",
    "ZeroShot",
    "architecture",
    "architecture_names",
    "check",
    "check_model",
    "differences",
    "from_json",
    "load",
    "make_plan",
    "replace",
    "siglip_image",
    "to_json",
    "to_steps",
]
