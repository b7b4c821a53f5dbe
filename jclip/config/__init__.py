"""Recipes as data: the dataclasses, the table of named architectures, loading, overrides, JSON and the one check."""

from jclip.config.architectures import architecture, architecture_names, siglip_image
from jclip.config.check import check, check_model, check_suite
from jclip.config.durations import Duration, Length, Plan, make_plan, to_steps
from jclip.config.errors import ConfigError
from jclip.config.evals import (
    Choice,
    Eval,
    FewShot,
    Labels,
    LinearProbe,
    NearestNeighbours,
    Retrieval,
    Robustness,
    Suite,
    ZeroShot,
    towers_of,
)
from jclip.config.io import differences, from_json, to_json, to_saved
from jclip.config.ranges import Range
from jclip.config.recipes import load, load_suite
from jclip.config.schema import (
    Augment,
    Checkpoint,
    Config,
    Data,
    InitFrom,
    Mesh,
    Optim,
    Pair,
    replace,
)
from jclip.config.towers import ImageTower, Model, Preprocess, ResNetTower, TextTower, Tokenizer, Tower, VisionTower

__all__ = [
    "Augment",
    "Checkpoint",
    "Choice",
    "Config",
    "ConfigError",
    "Data",
    "Duration",
    "Eval",
    "FewShot",
    "ImageTower",
    "InitFrom",
    "Labels",
    "Length",
    "LinearProbe",
    "Mesh",
    "Model",
    "NearestNeighbours",
    "Optim",
    "Pair",
    "Plan",
    "Preprocess",
    "Range",
    "ResNetTower",
    "Retrieval",
    "Robustness",
    "Suite",
    "TextTower",
    "Tokenizer",
    "Tower",
    "VisionTower",
    "ZeroShot",
    "architecture",
    "architecture_names",
    "check",
    "check_model",
    "check_suite",
    "differences",
    "from_json",
    "load",
    "load_suite",
    "make_plan",
    "replace",
    "siglip_image",
    "to_json",
    "to_saved",
    "to_steps",
    "towers_of",
]
