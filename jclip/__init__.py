"""jclip: pre-train, evaluate and use CLIP-style models in JAX."""

import importlib
from typing import Any

__version__ = "0.1.0"

_LAZY = {"load": "jclip.inference", "losses": "jclip", "config": "jclip"}


def __getattr__(name: str) -> Any:
    """Imports `jclip.load`, `jclip.losses` and `jclip.config` on first use: jax takes seconds to import."""
    if name not in _LAZY:
        raise AttributeError(f"module 'jclip' has no attribute {name!r}")
    if _LAZY[name] == "jclip":
        return importlib.import_module(f"jclip.{name}")
    return getattr(importlib.import_module(_LAZY[name]), name)
