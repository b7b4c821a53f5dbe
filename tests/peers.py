"""Other libraries, for the tests that compare with them in the same process: skipped, with the reason, where they are missing."""

import importlib
import re
import sys
from typing import Any

import pytest

_libraries: list[Any] = []  # torch forgets the operators of a library that nobody holds


def peer(name: str) -> Any:
    """The module `name`, after torch and a torchvision that can be imported."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    if importlib.util.find_spec("torchvision") is not None:
        _import_torchvision(torch)
    return pytest.importorskip(name, reason=f"{name} is not installed")


def _import_torchvision(torch: Any) -> None:
    """Declares the operators it misses where its compiled part is of another build than torch; transforms need none of them."""
    while True:
        try:
            importlib.import_module("torchvision")
            return
        except RuntimeError as error:
            missing = re.search(r"operator torchvision::(\w+) does not exist", str(error))
            if missing is None:
                raise
        _libraries.append(torch.library.Library("torchvision", "FRAGMENT"))
        _libraries[-1].define(f"{missing[1]}(Tensor x) -> Tensor")
        for module in [module for module in sys.modules if module.split(".")[0] == "torchvision"]:
            del sys.modules[module]
