"""Pure-functional encoders: towers of any modality, and the model that holds them."""

from jclip.models.buckets import bucketed_views, fits_buckets
from jclip.models.compute import Backend, Compute, Taps
from jclip.models.decoder import CaptionDecoder, caption_decoder, decoder_config, decoder_shapes
from jclip.models.flops import decoder_flops, mel_flops
from jclip.models.heads import ProjectionHead, WordHead
from jclip.models.layers import Dense, uniform_of_rows
from jclip.models.mel import as_waveform, log_mel, mask_bands, mel_bank
from jclip.models.multi_tower import Encoded, Masked, MultiTower, apart, example_input, example_inputs, together, unit
from jclip.models.output import Tap, TowerOutput
from jclip.models.resnet import ModifiedResNet
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

__all__ = [
    "TOWERS",
    "Backend",
    "CaptionDecoder",
    "Compute",
    "Dense",
    "Encoded",
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
