"""jclip: pre-train, evaluate and use CLIP-style models in JAX."""

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what type checkers and editors see; imported at first use, because jax takes seconds
    from jclip.checkpoint import CheckpointError as CheckpointError
    from jclip.clip import CLIP as CLIP
    from jclip.clip import Params as Params
    from jclip.clip import create_model as create_model
    from jclip.config import ConfigError as ConfigError
    from jclip.data import BadExample as BadExample
    from jclip.data import SourceError as SourceError
    from jclip.data import make_loader as make_loader
    from jclip.data import open_source as open_source
    from jclip.inference import Encoder as Encoder
    from jclip.inference import load as load
    from jclip.info import find_model as find_model
    from jclip.info import list_models as list_models
    from jclip.weights import WeightsError as WeightsError

__version__ = "0.1.0"

_LAZY = {
    "CLIP": "jclip.clip",
    "Params": "jclip.clip",
    "create_model": "jclip.clip",
    "load": "jclip.inference",
    "Encoder": "jclip.inference",
    "list_models": "jclip.info",
    "find_model": "jclip.info",
    "make_loader": "jclip.data",
    "open_source": "jclip.data",
    "CheckpointError": "jclip.checkpoint",
    "BadExample": "jclip.data",
    "SourceError": "jclip.data",
    "ConfigError": "jclip.config",
    "WeightsError": "jclip.weights",
}


_OF_OPEN_CLIP = {
    **dict.fromkeys(
        ("create_model_and_transforms", "create_model_from_pretrained", "load_checkpoint"),
        'jclip.load("hf://ORG/NAME") has parameters, preprocess and tokenize',
    ),
    "get_tokenizer": "models have `tokenize`",
    "image_transform": "models have `preprocess`",
    **dict.fromkeys(("list_pretrained", "list_openai_models"), "weights are files, or repositories of the Hugging Face hub"),
    "build_zero_shot_classifier": "`jclip classify` and the evaluation ZeroShot have it",
}
"""Names of open_clip, and where what they do is found here."""


def __getattr__(name: str) -> Any:
    """Imports on first use: jax takes seconds. `jclip.losses` and other modules are found here too."""
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    if importlib.util.find_spec(f"{__name__}.{name}") is not None:
        return importlib.import_module(f"{__name__}.{name}")
    here = _OF_OPEN_CLIP.get(name)
    advice = f", which is open_clip's; here {here} (docs/tutorials/from_open_clip.md)" if here else ""
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}{advice}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
