"""Models as compiled functions: computed operation by operation they would take ten times as long."""

from collections.abc import Callable
from typing import Any

import jax

from jclip.config import Model
from jclip.models import MultiTower


def encoder(model: Model) -> Callable[..., Any]:
    """(variables, batch, normalised=...) -> the encoded views by name."""
    return jax.jit(MultiTower(model).apply, static_argnames="normalised")
