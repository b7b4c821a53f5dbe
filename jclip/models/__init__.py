"""Pure-functional encoders: towers of any modality, and the model that holds them."""

from jclip.models.compute import Backend, Compute
from jclip.models.decoder import CaptionDecoder, caption_decoder, decoder_config, decoder_shapes
from jclip.models.flops import decoder_flops, output_tokens, tower_flops, towers_flops
from jclip.models.heads import ProjectionHead
from jclip.models.layers import Dense
from jclip.models.multi_tower import Encoded, MultiTower, apart, example_inputs, together, unit
from jclip.models.output import TowerOutput
from jclip.models.resnet import ModifiedResNet
from jclip.models.text import TextTransformer, end_of_text
from jclip.models.vit import VisionTransformer, class_tokens

__all__ = [
    "Backend",
    "CaptionDecoder",
    "Compute",
    "Dense",
    "Encoded",
    "ModifiedResNet",
    "MultiTower",
    "ProjectionHead",
    "TextTransformer",
    "TowerOutput",
    "VisionTransformer",
    "apart",
    "caption_decoder",
    "class_tokens",
    "decoder_config",
    "decoder_flops",
    "decoder_shapes",
    "end_of_text",
    "example_inputs",
    "output_tokens",
    "together",
    "tower_flops",
    "towers_flops",
    "unit",
]
