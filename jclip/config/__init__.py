"""Recipes as data: the dataclasses, the table of named architectures, loading, overrides, JSON and the one check."""

from jclip.config.architectures import architecture, architecture_names, siglip_image
from jclip.config.augment import Augment
from jclip.config.check import check, check_model, check_suite
from jclip.config.durations import Duration, Length, Plan, make_plan, to_steps
from jclip.config.errors import ConfigError
from jclip.config.evals import (
    Captioning,
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
from jclip.config.objectives import (
    BYOL,
    Caption,
    Contrastive,
    NearestNeighbour,
    Objective,
    SimCLR,
    SimSiam,
    Triplet,
    View,
    Vocabulary,
)
from jclip.config.ranges import Range
from jclip.config.recipes import load, load_suite
from jclip.config.schema import (
    Checkpoint,
    Config,
    Data,
    InitFrom,
    Mesh,
    Optim,
    replace,
)
from jclip.config.towers import (
    ImageSize,
    ImageTower,
    Model,
    Preprocess,
    ResNetTower,
    TextTower,
    Tokenizer,
    Tower,
    VisionTower,
    as_image_size,
)

Pair = Contrastive
"""The name in recipes of before objectives had names."""

__all__ = [
    "BYOL",
    "Augment",
    "Caption",
    "Captioning",
    "Checkpoint",
    "Choice",
    "Config",
    "ConfigError",
    "Contrastive",
    "Data",
    "Duration",
    "Eval",
    "FewShot",
    "ImageSize",
    "ImageTower",
    "InitFrom",
    "Labels",
    "Length",
    "LinearProbe",
    "Mesh",
    "Model",
    "NearestNeighbour",
    "NearestNeighbours",
    "Objective",
    "Optim",
    "Pair",
    "Plan",
    "Preprocess",
    "Range",
    "ResNetTower",
    "Retrieval",
    "Robustness",
    "SimCLR",
    "SimSiam",
    "Suite",
    "TextTower",
    "Tokenizer",
    "Tower",
    "Triplet",
    "View",
    "VisionTower",
    "Vocabulary",
    "ZeroShot",
    "architecture",
    "architecture_names",
    "as_image_size",
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
