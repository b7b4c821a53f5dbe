"""Features kept on disk, each under a name that says all they were computed from."""

import ast
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
    """32 hexadecimal digits of what can be written as JSON, and of the code that computes."""
    return hashlib.blake2b(_text(facts).encode(), digest_size=16).hexdigest()


def _text(facts: Mapping[str, Any]) -> str:
    return json.dumps({**_program(), **facts}, sort_keys=True)


@functools.cache
def _program() -> dict[str, str]:
    """Digest of what computes: the code of COMPUTES, and the libraries that numbers come from."""
    code = code_digest(Path(jclip.__file__).parent)
    return {"code": code, "jax": jax.__version__, "backend": jax.default_backend(), "pillow": PIL.__version__}


COMPUTES = ("models/*.py", "data/*.py", "eval/**/*.py", "step.py")
"""Files that features and results depend on; the facts beside them say weights, data and settings."""

CARRIES = (
    "data/loader.py",
    "data/reader.py",
    "data/rate.py",
    "data/allocator.py",
    "data/caches.py",
    "data/fingerprint.py",
    "eval/cache.py",
)
"""Files among these that only carry what others compute."""


def code_digest(package: Path) -> str:
    """32 hexadecimal digits of what the code of COMPUTES does: comments, docstrings and layout do not count."""
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted({path for pattern in COMPUTES for path in package.glob(pattern)}):
        if (name := path.relative_to(package).as_posix()) not in CARRIES:
            digest.update(f"{name} {_meaning(path.read_text(encoding='utf-8'))};".encode())
    return digest.hexdigest()


def _meaning(source: str) -> str:
    """A program without what changes nothing: texts that stand as statements, comments and layout."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
            node.body = [line for line in node.body if not (isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant))]
    return ast.dump(tree)
