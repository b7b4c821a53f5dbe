"""Adaptation to a few examples a class: a function for each method, from a task to a head and parameters."""

from collections.abc import Callable
from typing import Any

from jclip.adapt.clip_adapter import fit_clip_adapter
from jclip.adapt.cocoop import fit_cocoop
from jclip.adapt.coop import fit_coop
from jclip.adapt.fine_tune import fit_fine_tune
from jclip.adapt.linear import fit_linear
from jclip.adapt.lora import fit_lora
from jclip.adapt.prompt_search import fit_prompts
from jclip.adapt.task import Fitted, Task
from jclip.adapt.tip import fit_tip, fit_tip_f
from jclip.config import ConfigError
from jclip.config.adapt import Method
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
)

__all__ = ["METHODS", "Fitted", "Task", "fit"]

METHODS: dict[type[Method], Callable[[Any, Task], Fitted]] = {
    TipAdapter: fit_tip,
    TipAdapterF: fit_tip_f,
    ClipAdapter: fit_clip_adapter,
    LinearHead: fit_linear,
    CrossModal: fit_linear,
    CoOp: fit_coop,
    CoCoOp: fit_cocoop,
    LoRA: fit_lora,
    FineTune: fit_fine_tune,
    PromptSearch: fit_prompts,
}
"""Functions (the dataclass, the task) -> what was fitted. A row of your own is one of them."""


def fit(method: Method, task: Task) -> Fitted:
    """Adapts by a method.

    Raises:
        ConfigError: the method has no row in METHODS, or does not fit the model.
    """
    if type(method) not in METHODS:
        raise ConfigError(f"adapt: nothing fits a {type(method).__name__}; give jclip.adapt.METHODS a row for it")
    return METHODS[type(method)](method, task)
