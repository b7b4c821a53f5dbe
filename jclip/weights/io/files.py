"""Arrays by name in the files that weights come in: safetensors, and torch's archives without running what is in them."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from jclip.files import read_whole
from jclip.weights.errors import WeightsError
from jclip.weights.io.torch_archive import open_torch_archive

DTYPES: Mapping[str, Any] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
"""Names that safetensors has for the types that are read."""


@dataclass(frozen=True)
class Lazy:
    """An array in a file: its shape is known, its numbers are read by `np.asarray`."""

    shape: tuple[int, ...]
    read: Callable[[], NDArray[Any]]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.asarray(self.read(), dtype)


def open_tensors(path: Path) -> dict[str, Lazy]:
    """The arrays of a weight file, or of all that an index file (`*.index.json`) names.

    Raises:
        WeightsError: it is no weight file, is cut short, or holds what is not allowed.
    """
    if not path.name.endswith(".index.json"):
        return _open_one(path)
    file_of = read_index(path)
    parts = {file: _open_one(path.parent / file) for file in sorted(set(file_of.values()))}
    problems = [f"{file} has no {name}" for name, file in file_of.items() if name not in parts[file]]
    problems += [f"{file} has {name}, which is not listed" for file in parts for name in parts[file] if file_of.get(name) != file]
    if problems:
        more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise WeightsError(f"{path}: does not list what the files hold: {'; '.join(problems[:5])}{more}")
    return {name: parts[file][name] for name, file in file_of.items()}


def read_index(path: Path) -> dict[str, str]:
    """File of each tensor in its folder, as an index file (`*.index.json`) lists them."""
    listed = read_json(path).get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise WeightsError(f"{path}: its weight_map is {listed!r}; it must say of each tensor in which file it is")
    if others := [file for file in listed.values() if not isinstance(file, str) or not file or Path(file).name != file]:
        raise WeightsError(f"{path}: its weight_map names {others[0]!r}, which is no file of its own folder")
    return listed


def _open_one(path: Path) -> dict[str, Lazy]:
    if not path.is_file():
        raise WeightsError(f"{path}: there is no such file")
    with path.open("rb") as file:
        start = file.read(16)
    if start[:4] == b"PK\x03\x04":
        return {name: Lazy(array.shape, partial(np.asarray, array)) for name, array in open_torch_archive(path).items()}
    if start[:1] == b"\x80" and start[8:9] != b"{":  # the length of a safetensors header may begin so, too
        raise WeightsError(
            f"{path}: a bare pickle, which may run any program when it is opened; ask its owner for safetensors, or load it "
            "with torch.load(..., weights_only=True) and save it again"
        )
    if path.suffix != ".safetensors" and start[8:9] != b"{":
        raise WeightsError(f"{path}: neither safetensors nor a torch archive; its first bytes are {start[:8]!r}")
    return _open_safetensors(path)


def _open_safetensors(path: Path) -> dict[str, Lazy]:
    try:
        with safe_open(path, framework="numpy"):  # which checks that names, types, shapes and lengths fit the file
            pass
    except SafetensorError as error:
        raise WeightsError(f"{path}: no safetensors file, or cut short: {error}") from None
    with path.open("rb") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
        tensors = json.loads(file.read(start - 8))
    tensors.pop("__metadata__", None)
    return {name: Lazy(tuple(info["shape"]), partial(_map, path, start, name, info)) for name, info in tensors.items()}


def _map(path: Path, start: int, name: str, info: Mapping[str, Any]) -> NDArray[Any]:
    """A tensor as a view of the file, mapped for itself alone: its pages leave the memory with it."""
    if info["dtype"] not in DTYPES:
        raise WeightsError(f"{path}: {name} is of type {info['dtype']}; types that are read: {', '.join(DTYPES)}")
    first, last = info["data_offsets"]
    if first == last:
        return np.zeros(info["shape"], DTYPES[info["dtype"]])
    data = np.memmap(path, np.uint8, "r", start + first, (last - first,))
    return np.asarray(data).view(DTYPES[info["dtype"]]).reshape(info["shape"])


def write_safetensors(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Writes arrays by name; the metadata says, as torch's users expect, that they have torch's format."""
    save_file(dict(arrays), path, {"format": "pt"})


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file whose top is an object."""
    try:
        data = json.loads(read_whole(path))
    except OSError as error:
        raise WeightsError(f"{path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError among them
        raise WeightsError(f"{path}: no JSON, or damaged: {error}") from None
    if not isinstance(data, dict):
        raise WeightsError(f"{path}: holds no JSON object")
    return data
