"""Features kept on disk, each under a name that says all they were computed from."""

import functools
import hashlib
import json
import logging
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import PIL

import jclip
from jclip.data.caches import write_atomically

log = logging.getLogger(__name__)

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class FeatureCache:
    """Arrays in files of a folder. A file's name is a digest of what its numbers depend on, so it is never out of date."""

    folder: Path

    def load(self, facts: Mapping[str, Any]) -> Arrays | None:
        """The arrays of these facts, if they are there and whole."""
        try:
            with self._path(facts).open("rb") as file, np.load(file, allow_pickle=False) as found:
                arrays = {name: found[name] for name in found.files}
        except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
            return None
        return arrays if arrays.pop("facts", np.array("")).item() == _text(facts) else None

    def save(self, facts: Mapping[str, Any], arrays: Arrays) -> None:
        """Writes arrays; a reader finds all of them or nothing."""
        everything = {**arrays, "facts": np.array(_text(facts))}
        try:
            write_atomically(self._path(facts), lambda path: np.savez(path, allow_pickle=False, **everything))
        except OSError as error:
            log.warning("evaluation: features are not kept, because %s cannot be written: %s", self.folder, error)

    def _path(self, facts: Mapping[str, Any]) -> Path:
        return self.folder / f"{digest(facts)}.npz"


def digest(facts: Mapping[str, Any]) -> str:
    """32 hexadecimal digits of what can be written as JSON, and of the program."""
    return hashlib.blake2b(_text(facts).encode(), digest_size=16).hexdigest()


def _text(facts: Mapping[str, Any]) -> str:
    return json.dumps({**_program(), **facts}, sort_keys=True)


@functools.cache
def _program() -> dict[str, str]:
    """What computes: this package's code, byte by byte, and the libraries that numbers come from."""
    code = hashlib.blake2b(digest_size=16)
    for path in sorted(Path(jclip.__file__).parent.rglob("*.py")):
        code.update(path.read_bytes())
    return {"code": code.hexdigest(), "jax": jax.__version__, "backend": jax.default_backend(), "pillow": PIL.__version__}
