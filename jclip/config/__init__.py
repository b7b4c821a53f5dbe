"""Recipes as data: the dataclasses, the table of named architectures, loading, overrides, JSON and the one check."""

import importlib
from typing import TYPE_CHECKING, Any

from jclip.config.architectures import architecture, architecture_names, hf_text, siglip_image
from jclip.config.augment import Augment, SoundAugment, SoundMix, TextAugment
from jclip.config.bert import BertTower
from jclip.config.buckets import Groups, groups_of
from jclip.config.check import check, check_adapt, check_filter, check_model, check_suite
from jclip.config.clap import Cnn14Tower, HtsatTower
from jclip.config.data import LEAST_SHARE, Data, Portion, source_of
from jclip.config.durations import Duration, Length, Plan, make_plan, to_steps
from jclip.config.errors import ConfigError
from jclip.config.evals import (
    Captioning,
    Choice,
    Evaluation,
    FewShot,
    Labels,
    LinearProbe,
    NearestNeighbours,
    Overlap,
    Retrieval,
    Robustness,
    Suite,
    ZeroShot,
)
from jclip.config.filter import Filter
from jclip.config.history import STORED
from jclip.config.inputs import Preprocess, TokenizerConfig
from jclip.config.io import differences, from_json, to_json, to_saved
from jclip.config.objectives import (
    BYOL,
    CLOOB,
    AffinityDistillation,
    Caption,
    Contrastive,
    Family,
    FeatureDistillation,
    MaskedText,
    MultiView,
    NearestNeighbour,
    SelfDistillation,
    SimCLR,
    SimReg,
    SimSiam,
    TokenWise,
    Triplet,
    View,
    Vocabulary,
    valid_name,
)
from jclip.config.optim import Optim
from jclip.config.ranges import Range
from jclip.config.recipes import beside, load, load_adapt, load_filter, load_suite
from jclip.config.schema import (
    Checkpoint,
    Config,
    InitFrom,
    Input,
    MeshConfig,
    replace,
    replace_each,
)
from jclip.config.sensors import DepthTower, ImuTower, PlaneTower, SensorTower, ThermalTower
from jclip.config.sound import (
    IMAGEBIND_MEL,
    IMAGEBIND_WAVEFORM,
    LAION_FUSED_MEL,
    LAION_MEL,
    LAION_WAVEFORM,
    MSCLAP_2022_MEL,
    MSCLAP_2022_WAVEFORM,
    MSCLAP_2023_MEL,
    MSCLAP_2023_WAVEFORM,
    Mel,
    SoundTower,
    SpecAugment,
    SpectrogramTower,
    Waveform,
    mel_problems,
)
from jclip.config.stages import Stage, make_plans, stage_configs, stage_names
from jclip.config.subset import Subset
from jclip.config.towers import (
    ImageSize,
    ImageTower,
    Model,
    ResNetTower,
    TextTower,
    TokenTower,
    Tower,
    VisionTower,
    as_image_size,
)

if TYPE_CHECKING:
    from jclip.config.adapt import Adapt
    from jclip.config.adapt_methods import (
        ClipAdapter,
        CoCoOp,
        CoOp,
        CrossModal,
        FineTune,
        LinearHead,
        LoRA,
        PromptSearch,
        TipAdapter,
        TipAdapterF,
        Views,
    )

Pair = Contrastive
"""The name in recipes of before objectives had names."""

__all__ = [
    "BYOL",
    "CLOOB",
    "IMAGEBIND_MEL",
    "IMAGEBIND_WAVEFORM",
    "LAION_FUSED_MEL",
    "LAION_MEL",
    "LAION_WAVEFORM",
    "LEAST_SHARE",
    "MSCLAP_2022_MEL",
    "MSCLAP_2022_WAVEFORM",
    "MSCLAP_2023_MEL",
    "MSCLAP_2023_WAVEFORM",
    "Adapt",
    "AffinityDistillation",
    "Augment",
    "BertTower",
    "Caption",
    "Captioning",
    "Checkpoint",
    "Choice",
    "ClipAdapter",
    "Cnn14Tower",
    "CoCoOp",
    "CoOp",
    "Config",
    "ConfigError",
    "Contrastive",
    "CrossModal",
    "Data",
    "DepthTower",
    "Duration",
    "Evaluation",
    "Family",
    "FeatureDistillation",
    "FewShot",
    "Filter",
    "FineTune",
    "Groups",
    "HtsatTower",
    "ImageSize",
    "ImageTower",
    "ImuTower",
    "InitFrom",
    "Input",
    "Labels",
    "Length",
    "LinearHead",
    "LinearProbe",
    "LoRA",
    "MaskedText",
    "Mel",
    "MeshConfig",
    "Model",
    "MultiView",
    "NearestNeighbour",
    "NearestNeighbours",
    "Optim",
    "Overlap",
    "Pair",
    "Plan",
    "PlaneTower",
    "Portion",
    "Preprocess",
    "PromptSearch",
    "Range",
    "ResNetTower",
    "Retrieval",
    "Robustness",
    "SelfDistillation",
    "SensorTower",
    "SimCLR",
    "SimReg",
    "SimSiam",
    "SoundAugment",
    "SoundMix",
    "SoundTower",
    "SpecAugment",
    "SpectrogramTower",
    "Stage",
    "Subset",
    "Suite",
    "TextAugment",
    "TextTower",
    "ThermalTower",
    "TipAdapter",
    "TipAdapterF",
    "TokenTower",
    "TokenWise",
    "TokenizerConfig",
    "Tower",
    "Triplet",
    "View",
    "Views",
    "VisionTower",
    "Vocabulary",
    "Waveform",
    "ZeroShot",
    "architecture",
    "architecture_names",
    "as_image_size",
    "beside",
    "check",
    "check_adapt",
    "check_filter",
    "check_model",
    "check_suite",
    "differences",
    "from_json",
    "groups_of",
    "hf_text",
    "load",
    "load_adapt",
    "load_filter",
    "load_suite",
    "make_plan",
    "make_plans",
    "mel_problems",
    "replace",
    "replace_each",
    "siglip_image",
    "source_of",
    "stage_configs",
    "stage_names",
    "to_json",
    "to_saved",
    "to_steps",
    "valid_name",
]

_METHODS = (
    "ClipAdapter",
    "CoCoOp",
    "CoOp",
    "CrossModal",
    "FineTune",
    "LinearHead",
    "LoRA",
    "PromptSearch",
    "TipAdapter",
    "TipAdapterF",
    "Views",
)
_ADAPTATION = {"Adapt": "adapt", **dict.fromkeys(_METHODS, "adapt_methods")}
"""Modules of names that are imported when they are asked for: who loads a model does without."""


_RENAMED = {before: now for now, before in STORED.items()}


def __getattr__(name: str) -> Any:
    if name in _RENAMED:  # a recipe of an older jclip
        return globals()[_RENAMED[name]]
    if name not in _ADAPTATION:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_ADAPTATION[name]}"), name)
