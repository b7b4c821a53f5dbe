"""Pure-functional encoders: towers of any modality, and the model that holds them."""

from jclip.models.compute import Backend, Compute
from jclip.models.flops import token_count, tower_flops, towers_flops
from jclip.models.heads import ProjectionHead
from jclip.models.layers import Dense
from jclip.models.multi_tower import Encoded, MultiTower, apart, example_inputs, together, unit
from jclip.models.output import TowerOutput
from jclip.models.resnet import ModifiedResNet
from jclip.models.text import TextTransformer, end_of_text
from jclip.models.vit import VisionTransformer, class_tokens

__all__ = [
    "Backend",
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
    "class_tokens",
    "end_of_text",
    "example_inputs",
    "together",
    "token_count",
    "tower_flops",
    "towers_flops",
    "unit",
]
