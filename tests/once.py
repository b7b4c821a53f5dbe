"""Programs and models of one configuration, made once a process: those that come again neither trace nor compile."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import pytest

_made: dict[Any, Any] = {}


def once(name: str, make: Callable[..., Any], *key: Any) -> Any:
    """The result of `make`, or what it was for an equal key: pure functions of a configuration, which hold no arrays."""
    if (name, *key) not in _made:
        _made[name, *key] = make()
    return _made[name, *key]


def make_program(config: Any, mesh: Any, **steps: int) -> Any:
    """`jclip.program.make_program`, whose `compile` compiles once."""
    from jclip import program as room

    def make() -> Any:
        program = room.make_program(config, mesh, **steps)
        return type("Program", (type(program),), {"compile": staticmethod(cache(program.compile))})(*program)

    parts = (
        config.model,
        config.optim,
        config.objectives,
        config.views,
        config.mesh,
        config.batch_size,
        config.accumulate,
        config.seed,
    )
    return once("program", make, repr(parts), mesh, *steps.items(), room.make_schedule)._replace(config=config)


def make_encode(model: Any, mesh: Any, gather: Any = None) -> Any:
    """`jclip.encode.make_encode`; with `gather`, which is new each time, always anew."""
    from jclip import encode

    if gather is not None:
        return encode.make_encode(model, mesh, gather)
    return once("encode", lambda: encode.make_encode(model, mesh), repr(model), mesh)


@contextmanager
def everything_made_once() -> Iterator[None]:
    """Puts these functions where runs, evaluations and loaded models take them from, as far as they have been imported."""
    users = {"train": make_program, "evaluate": make_encode, "inference": make_encode}
    with pytest.MonkeyPatch.context() as patch:
        for name, function in users.items():
            if (module := sys.modules.get(f"jclip.{name}")) is not None:
                patch.setattr(module, function.__name__, function)
        yield
