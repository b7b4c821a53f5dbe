"""Embeddings that `jclip embed` has written, by the keys of their examples."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jclip.data.source import BadExample, SourceError


@dataclass(frozen=True)
class StoredEmbedding:
    """The key of an example to its embedding f32[E]; a BadExample where there is none, or more than one."""

    folder: str
    tower: str

    def __call__(self, value: Any, rng: np.random.Generator | None = None) -> NDArray[np.float32]:
        embeddings, rows = _open(self.folder, self.tower)
        row = rows.get(value)
        if row is None:
            raise BadExample(f"{self.folder} has {'several embeddings' if value in rows else 'no embedding'} of this key")
        embedding = np.array(embeddings[row])
        if not np.isfinite(embedding).all():
            raise BadExample(f"its embedding in {self.folder} is not finite: what it was made of could not be read")
        return embedding


def stored_embeddings(folder: str, tower: str, size: int) -> StoredEmbedding:
    """The transform of a view that is stored.

    Raises:
        SourceError: the folder has no such embeddings, or they have another size.
    """
    embeddings, _ = _open(folder, tower)
    if embeddings.shape[1] != size:
        found = f"{folder}/{tower}.npy holds embeddings of size {embeddings.shape[1]}"
        raise SourceError(f"{found}; let the view's stored_size be that, not {size}")
    return StoredEmbedding(folder, tower)


@lru_cache
def _open(folder: str, tower: str) -> tuple[NDArray[np.float32], Mapping[str, int | None]]:
    """Embeddings f32[n,E], mapped from the file, and the row of each key; None for a key of several rows."""
    file, names = Path(folder, f"{tower}.npy"), Path(folder, "keys.jsonl")
    try:
        embeddings = np.load(file, mmap_mode="r", allow_pickle=False)
        keys = [json.loads(line) for line in names.read_text(encoding="utf-8").splitlines()]
    except FileNotFoundError as error:
        raise SourceError(f"{error.filename} is not there; `jclip embed` writes it, with --out {folder}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise SourceError(f"{folder} does not hold what `jclip embed` writes: {error}") from None
    if not isinstance(embeddings, np.ndarray) or not all(isinstance(key, str) for key in keys):
        raise SourceError(f"{folder} does not hold what `jclip embed` writes: an array, and a key of each row")
    if embeddings.ndim != 2 or embeddings.dtype != np.float32 or len(embeddings) != len(keys):
        what = f"{embeddings.dtype}{list(embeddings.shape)} and {len(keys)} keys"
        raise SourceError(f"{file} and {names.name} do not belong together: {what}")
    rows: dict[str, int | None] = {}
    for row, key in enumerate(keys):
        rows[key] = None if key in rows else row
    return embeddings, rows
