"""Pure-functional encoders: towers of any modality, and the model that holds them."""

from jclip.models.compute import Backend, Compute
from jclip.models.flops import step_flops
from jclip.models.multi_tower import Encoded, MultiTower, example_inputs
from jclip.models.output import TowerOutput
from jclip.models.resnet import ModifiedResNet
from jclip.models.text import TextTransformer
from jclip.models.vit import VisionTransformer

__all__ = [
    "Backend",
    "Compute",
    "Encoded",
    "ModifiedResNet",
    "MultiTower",
    "TextTransformer",
    "TowerOutput",
    "VisionTransformer",
    "example_inputs",
    "step_flops",
]
