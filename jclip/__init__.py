"""jclip: pre-train, evaluate and use CLIP-style models in JAX."""

import importlib
import importlib.util
from typing import Any

__version__ = "0.1.0"

_LAZY = {
    "load": "jclip.inference",
    "list_models": "jclip.info",
    "find_model": "jclip.info",
    "CheckpointError": "jclip.checkpoint",
    "BadExample": "jclip.data",
    "SourceError": "jclip.data",
    "ConfigError": "jclip.config",
    "WeightsError": "jclip.weights",
}


def __getattr__(name: str) -> Any:
    """Imports on first use: jax takes seconds. `jclip.losses` and other modules are found here too."""
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    if importlib.util.find_spec(f"{__name__}.{name}") is not None:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
