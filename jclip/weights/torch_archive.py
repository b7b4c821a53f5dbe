"""Torch's zip archives (`torch.save` and TorchScript) read without torch, and without running anything that is in them.

Such an archive holds a pickle, data.pkl, which says what tensors there are, and each tensor's numbers in a file of its own. A
pickle is a program; this reader lets it call nothing but the functions below, all of which only describe a tensor.
"""

import collections
import io
import pickle
import pickletools
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from jclip.weights.errors import WeightsError
from jclip.weights.zip_views import stored_bytes

Array = NDArray[Any]

STORAGES: Mapping[str, Any] = {
    "DoubleStorage": np.dtype("<f8"),
    "FloatStorage": np.dtype("<f4"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}
"""Types of tensors that are read."""

MAX_PICKLE = 64 * 2**20
"""Bytes of data.pkl: that of a model of ten thousand tensors has two megabytes."""


def open_torch_archive(path: Path) -> dict[str, Array]:
    """The tensors of a state dict, or of a TorchScript module, by name, each a view into the mapped file.

    A state dict may lie under the key "state_dict", as training programs save it; the prefix "module." is taken off.

    Raises:
        WeightsError: it is no such archive, is cut short, or its pickle asks for anything but tensors.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            pickles = [
                info for info in archive.infolist() if info.filename.count("/") == 1 and info.filename.endswith("/data.pkl")
            ]
            if len(pickles) != 1:
                raise WeightsError(f"{path}: a zip archive, but no torch checkpoint: it has {len(pickles)} files */data.pkl")
            if pickles[0].file_size > MAX_PICKLE:
                raise WeightsError(f"{path}: its data.pkl has {pickles[0].file_size} bytes, more than {MAX_PICKLE}")
            folder = pickles[0].filename.removesuffix("data.pkl")
            members = {info.filename.removeprefix(folder): info for info in archive.infolist()}
            if "byteorder" in members and (order := archive.read(members["byteorder"])[:10]) != b"little":
                raise WeightsError(f"{path}: its numbers are {order!r} endian; save it again on a little-endian machine")
            data = archive.read(pickles[0])
            _check_memo(data)
            tensors = _by_name(_Reader(io.BytesIO(data), _Storages(path, members)).load())
    except zipfile.BadZipFile as error:
        raise WeightsError(f"{path}: no zip archive, or cut short: {error}") from None
    except WeightsError:
        raise
    except Exception as error:  # a pickle that is none fails in many ways
        raise WeightsError(f"{path}: its data.pkl cannot be read: {type(error).__name__}: {error}") from None
    if not tensors:
        raise WeightsError(f"{path}: holds no tensor by name; give the state dict of a model")
    return tensors


def _check_memo(data: bytes) -> None:
    """Refuses a place in the memo that no pickler gives: for place 2^32 of it a few bytes would take 64 GB of memory."""
    for count, (opcode, place, _) in enumerate(pickletools.genops(data)):
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(place or 0) > count:
            raise WeightsError(f"the pickle remembers something at place {place}: this file is not to be trusted")


class _Storages:
    """The numbers of the tensors, mapped."""

    def __init__(self, path: Path, members: dict[str, zipfile.ZipInfo]) -> None:
        self._path, self._members = path, members
        self._bytes = np.memmap(path, np.uint8, "r")

    def __call__(self, key: str, dtype: np.dtype[Any], count: int) -> Array:
        info = self._members.get(f"data/{key}")
        if info is None:
            raise WeightsError(f"{self._path}: the numbers of tensor {key} are missing")
        data, size = stored_bytes(self._path, self._bytes, info), count * dtype.itemsize
        if count < 0 or size > len(data):
            raise WeightsError(f"{self._path}: cut short: tensor {key} has {len(data)} bytes, not {size}")
        return data[:size].view(dtype)


class _Object:
    """What stands for an object of TorchScript: its attributes, none of its code."""

    def __setstate__(self, state: Any) -> None:
        self.__dict__.update(state if isinstance(state, dict) else {})


class _Reader(pickle.Unpickler):
    """Calls nothing but what describes a tensor."""

    def __init__(self, file: io.BytesIO, storages: _Storages) -> None:
        super().__init__(file, encoding="utf-8")
        self._storages = storages

    def find_class(self, module: str, name: str) -> Any:
        known: dict[str, Any] = {
            "collections.OrderedDict": collections.OrderedDict,
            "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
            "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
            "torch.Size": tuple,
            "torch.jit._pickle.build_intlist": list,
            "torch.jit._pickle.build_doublelist": list,
            "torch.jit._pickle.build_boollist": list,
            "torch.jit._pickle.restore_type_tag": lambda value, _: value,
        }
        if f"{module}.{name}" in known:
            return known[f"{module}.{name}"]
        if module in ("torch", "torch.storage") and name in STORAGES:
            return STORAGES[name]
        if module == "__torch__" or module.startswith("__torch__."):
            return _Object
        raise WeightsError(f"the pickle asks for {module}.{name}, which is no tensor: this file is not to be trusted")

    def persistent_load(self, pid: Any) -> Array:
        kind, dtype, key, _, count = pid
        if kind != "storage" or not isinstance(dtype, np.dtype):
            raise WeightsError(f"the pickle refers to {kind!r} of type {dtype!r}, which is no tensor that can be read")
        return self._storages(str(key), dtype, int(count))


def _rebuild_tensor(storage: Array, offset: int, shape: Sequence[int], stride: Sequence[int], *_: Any) -> Array:
    """A view of the storage; as_strided does not look at its ends, so they are looked at here."""
    last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
    empty = 0 in shape
    if min([offset, *shape, *stride], default=0) < 0 or (not empty and last >= len(storage)):
        raise WeightsError(f"a tensor of shape {list(shape)} does not lie within its {len(storage)} numbers")
    if empty:
        return np.zeros(tuple(shape), storage.dtype)
    steps = tuple(step * storage.itemsize for step in stride)
    return np.lib.stride_tricks.as_strided(storage[offset:], tuple(shape), steps, writeable=False)


def _by_name(root: Any) -> dict[str, Array]:
    tensors: dict[str, Array] = {}
    seen = set()

    def walk(value: Any, name: str) -> None:
        if isinstance(value, np.ndarray):
            tensors[name] = value
        elif isinstance(value, (_Object, Mapping)) and id(value) not in seen:
            seen.add(id(value))
            for key, inner in (value.__dict__ if isinstance(value, _Object) else value).items():
                walk(inner, f"{name}.{key}" if name else str(key))

    walk(root.get("state_dict", root) if isinstance(root, Mapping) else root, "")
    if tensors and all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): array for name, array in tensors.items()}
    return tensors
