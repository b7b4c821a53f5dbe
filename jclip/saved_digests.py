"""The digests that a checkpoint has beside its arrays: what these, and the record of the run, were when they were saved."""

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Iterable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jclip.digests import array_paths, tree_digests
from jclip.processes import is_first

DIGESTS = "digests"
"""The part of a checkpoint that holds them."""

FILE = "digests.json"
"""File of this part: {"record": digest, "arrays": {path: type, shape and digest}}."""


class SavedDigests:
    """The digests that Orbax writes beside the arrays, in the background: they are still being computed when a save begins."""

    def __init__(self, parts: Mapping[str, "tuple[Any, Future[np.ndarray]]"], record: Mapping[str, Any]) -> None:
        self._parts = {name: (_abstract(part), digests) for name, (part, digests) in parts.items()}
        self._record = record_digest(record)

    async def save(self, directory: Any) -> Awaitable[None]:
        """Orbax's protocol `StatefulCheckpointable`."""

        async def write() -> None:
            folder = await directory.await_creation()
            if is_first():
                arrays: dict[str, str] = {}
                for name, (part, digests) in self._parts.items():
                    arrays |= _texts(name, part, await asyncio.wrap_future(digests))
                Path(folder, FILE).write_text(json.dumps({"record": self._record, "arrays": arrays}, indent=0))

        return write()

    async def load(self, directory: Any) -> Awaitable[None]:
        """Unused: the file is read without Orbax, which would need to know its shapes."""
        raise NotImplementedError


def array_digests(part: str, tree: Any) -> dict[str, str]:
    """Type, shape and digest of each array of a part by path: "params/image/cls" -> "float32[32] 0f1e2d3c4b5a6978"."""
    return _texts(part, tree, np.asarray(tree_digests(tree)))


def named_arrays(tree: Any) -> Iterable[tuple[str, Any]]:
    """The arrays of a tree after their names; see `array_paths`."""
    return zip(array_paths(tree), jax.tree.leaves(tree), strict=True)


def type_and_shape(leaf: Any) -> str:
    """ "float32[32,8]" of an array, or of what has its dtype and shape."""
    return f"{np.dtype(leaf.dtype)}[{','.join(map(str, leaf.shape))}]"


def record_digest(record: Mapping[str, Any]) -> str:
    """The digest of a record, in hexadecimal: the same however its keys are ordered."""
    return hashlib.blake2b(json.dumps(record, sort_keys=True).encode(), digest_size=16).hexdigest()


def _texts(part: str, tree: Any, digests: np.ndarray) -> dict[str, str]:
    rows = zip(named_arrays(tree), digests, strict=True)
    return {f"{part}/{path}": f"{type_and_shape(leaf)} {a:08x}{b:08x}" for (path, leaf), (a, b) in rows}


def _abstract(tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)
