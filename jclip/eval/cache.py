"""Features kept on disk, each under a name that says all they were computed from."""

import hashlib
import json
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import jclip
from jclip.data.caches import write_atomically

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class FeatureCache:
    """Arrays in files of a folder. A file's name is a digest of what its numbers depend on, so it is never out of date."""

    folder: Path
    weights: Callable[[str], str]
    """A tower's name -> the digest of its parameters."""

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
        write_atomically(
            self._path(facts), lambda path: np.savez(path, allow_pickle=False, facts=np.array(_text(facts)), **arrays)
        )

    def _path(self, facts: Mapping[str, Any]) -> Path:
        return self.folder / f"{digest(facts)}.npz"


def digest(facts: Mapping[str, Any]) -> str:
    """32 hexadecimal digits of what can be written as JSON, and of jclip's version."""
    return hashlib.blake2b(_text(facts).encode(), digest_size=16).hexdigest()


def _text(facts: Mapping[str, Any]) -> str:
    return json.dumps({"jclip": jclip.__version__, **facts}, sort_keys=True)
