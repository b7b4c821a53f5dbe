"""Pure-functional encoders: towers of any modality, and the model that holds them."""

import importlib
from typing import TYPE_CHECKING, Any

from jclip.models.buckets import bucketed_views, fits_buckets
from jclip.models.compute import Backend, Compute, Taps
from jclip.models.decoder import CaptionDecoder, caption_decoder, decoder_config, decoder_shapes
from jclip.models.flops import decoder_flops, mel_flops
from jclip.models.heads import ProjectionHead, WordHead
from jclip.models.layers import Dense, uniform_of_rows
from jclip.models.mel import as_waveform, log_mel, mask_bands, mel_bank
from jclip.models.multi_tower import Encoded, Masked, MultiTower, apart, example_input, example_inputs, together, unit
from jclip.models.output import Tap, TowerOutput
from jclip.models.spectrogram import SpectrogramTransformer
from jclip.models.text import TextTransformer, end_of_text
from jclip.models.towers import (
    TOWERS,
    TowerKind,
    depth_of,
    in_groups,
    output_tokens,
    tower_flops,
    towers_flops,
    without_dropout,
)
from jclip.models.vit import VisionTransformer, class_tokens, first_patch

if TYPE_CHECKING:
    from jclip.models.bert import BertTransformer
    from jclip.models.cnn14 import Cnn14
    from jclip.models.htsat import Htsat
    from jclip.models.resnet import ModifiedResNet

__all__ = [
    "TOWERS",
    "Backend",
    "BertTransformer",
    "CaptionDecoder",
    "Cnn14",
    "Compute",
    "Dense",
    "Encoded",
    "Htsat",
    "Masked",
    "ModifiedResNet",
    "MultiTower",
    "ProjectionHead",
    "SpectrogramTransformer",
    "Tap",
    "Taps",
    "TextTransformer",
    "TowerKind",
    "TowerOutput",
    "VisionTransformer",
    "WordHead",
    "apart",
    "as_waveform",
    "bucketed_views",
    "caption_decoder",
    "class_tokens",
    "decoder_config",
    "decoder_flops",
    "decoder_shapes",
    "depth_of",
    "end_of_text",
    "example_input",
    "example_inputs",
    "first_patch",
    "fits_buckets",
    "in_groups",
    "log_mel",
    "mask_bands",
    "mel_bank",
    "mel_flops",
    "output_tokens",
    "together",
    "tower_flops",
    "towers_flops",
    "uniform_of_rows",
    "unit",
    "without_dropout",
]

_LATER = {"BertTransformer": "bert", "Cnn14": "cnn14", "Htsat": "htsat", "ModifiedResNet": "resnet"}
"""Modules of towers that most models do not have, by name, and their files."""


def __getattr__(name: str) -> Any:
    """A module of `_LATER`, imported when it is asked for."""
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LATER[name]}"), name)
