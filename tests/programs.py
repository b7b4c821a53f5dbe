"""The programs of tools/, which are no package, as modules."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType


def load_program(name: str) -> ModuleType:
    """The module of tools/NAME.py, made anew."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[1] / "tools" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look up their annotations
    spec.loader.exec_module(module)
    return module
