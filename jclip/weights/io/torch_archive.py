"""Torch's zip archives (`torch.save` and TorchScript) read without torch, and without running anything that is in them.

Such an archive holds a pickle, data.pkl, which says what tensors there are, and each tensor's numbers in a file of its own. A
pickle is a program that may call, and write into, whatever it can name. Here every name is answered with a class made for it
alone, which cannot be changed: the few that describe tensors give descriptions, all others objects that ignore what is done to
them. So nothing that outlives the reading can be reached, and training checkpoints may hold what they like beside the weights.
"""

import io
import logging
import pickle
import pickletools
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from jclip.weights.errors import WeightsError, errors_of
from jclip.weights.io.zip_views import stored_bytes

log = logging.getLogger(__name__)

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

WRAPPERS = ("state_dict", "model_state_dict", "model", "module", "net", "network", "weights", "params")
"""Keys under which training programs keep a model's state dict beside optimizer, epoch and arguments; the first counts."""

MAX_PICKLE = 16 * 2**20
"""Bytes of data.pkl: that of a model of ten thousand tensors has two megabytes."""


def open_torch_archive(path: Path) -> dict[str, Array]:
    """The tensors of a state dict, or of a TorchScript module, by name, each a view into the mapped file.

    A state dict may lie under one of WRAPPERS, as training programs save it; what is beside it is not looked at.

    Raises:
        WeightsError: it is no such archive, is cut short, or what should be weights is anything but tensors.
    """
    with errors_of(path):
        try:
            with zipfile.ZipFile(path) as archive:
                data, members = _read_pickle(archive)
            _check_memo(data)
            tensors = _by_name(path, _Reader(io.BytesIO(data), encoding="utf-8").load())
        except WeightsError:
            raise
        except zipfile.BadZipFile as error:
            raise WeightsError(f"no zip archive, or cut short: {error}") from None
        except Exception as error:  # a pickle that is none fails in many ways
            raise WeightsError(f"its data.pkl cannot be read: {type(error).__name__}: {str(error)[:200]}") from None
        storages = _Storages(np.memmap(path, np.uint8, "r"), members)
        return {name: storages.view(tensor) for name, tensor in tensors.items()}


def _read_pickle(archive: zipfile.ZipFile) -> tuple[bytes, dict[str, zipfile.ZipInfo]]:
    """data.pkl, and the files of its folder by their names there."""
    pickles = [info for info in archive.infolist() if info.filename.count("/") == 1 and info.filename.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise WeightsError(f"a zip archive, but no torch checkpoint: it has {len(pickles)} files */data.pkl")
    if pickles[0].file_size > MAX_PICKLE:
        raise WeightsError(f"its data.pkl has {pickles[0].file_size} bytes, more than {MAX_PICKLE}")
    folder = pickles[0].filename.removesuffix("data.pkl")
    members = {info.filename.removeprefix(folder): info for info in archive.infolist()}
    if "byteorder" in members and (order := _start(archive, members["byteorder"], 10)) != b"little":
        raise WeightsError(f"its numbers are {order!r} endian; save it again on a little-endian machine")
    return _start(archive, pickles[0], pickles[0].file_size), members


def _start(archive: zipfile.ZipFile, info: zipfile.ZipInfo, count: int) -> bytes:
    """The first bytes of a file: no more are unpacked, however many a compressed one would give."""
    with archive.open(info) as file:
        return file.read(count)


def _check_memo(data: bytes) -> None:
    """Refuses a place in the memo that no pickler gives: for place 2^32 of it a few bytes would take 64 GB of memory."""
    for count, (opcode, place, _) in enumerate(pickletools.genops(data)):
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(place or 0) > count:
            raise WeightsError(f"the pickle remembers something at place {place}: this file is not to be trusted")


class _Storage(NamedTuple):
    """The numbers that tensors are views of."""

    key: str
    dtype: str
    """One of STORAGES, in a file that can be read."""
    length: int


class _Tensor(NamedTuple):
    """A tensor as the pickle describes it; nothing of it has been looked at."""

    storage: Any
    offset: Any
    shape: Any
    stride: Any


class _StandIn(type):
    """The type of the classes that stand for what a pickle names."""

    def __setattr__(cls, name: str, value: Any) -> None:
        raise TypeError(f"{cls.__name__} cannot be changed")

    def __delattr__(cls, name: str) -> None:
        raise TypeError(f"{cls.__name__} cannot be changed")


def _ignore(*_: Any, **__: Any) -> None:
    """Takes anything, and does nothing."""


def _inert(name: str) -> _StandIn:
    """A class whose objects take any arguments, state and items, and keep none; called, they return another such object."""
    new = lambda cls, *_, **__: object.__new__(cls)  # noqa: E731
    ignored = dict.fromkeys(("__init__", "__setstate__", "__setitem__", "append", "extend", "add", "update"), _ignore)
    called = {"__call__": lambda self, *_, **__: new(type(self))}
    return _StandIn(name, (), {"__slots__": (), "__new__": new, **ignored, **called})


def _maker(name: str, make: Callable[..., Any]) -> _StandIn:
    """A class that is called as the function `make`."""
    return _StandIn(name, (), {"__slots__": (), "__new__": lambda cls, *args: make(*args), "__setstate__": _ignore})


def _mapping(name: str, set_state: Callable[..., None]) -> _StandIn:
    """A class of dicts."""
    return _StandIn(name, (dict,), {"__slots__": (), "__setstate__": set_state})


def _set_attributes(self: dict[str, Any], state: Any) -> None:
    """The attributes of an object of TorchScript, none of its code."""
    if isinstance(state, dict):
        self.update(state)


MAKERS: Mapping[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor_v2": lambda storage, offset, shape, stride, *_: _Tensor(storage, offset, shape, stride),
    "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
    "torch._tensor._rebuild_from_type_v2": lambda make, _, arguments, __: make(*arguments),
    "torch.Size": lambda sizes=(): sizes,
    "torch.jit._pickle.build_intlist": lambda values: values,
    "torch.jit._pickle.build_doublelist": lambda values: values,
    "torch.jit._pickle.build_boollist": lambda values: values,
    "torch.jit._pickle.restore_type_tag": lambda value, _: value,
    "collections.defaultdict": lambda *_: {},
}
"""Functions that a pickle may call, none of which do more than to describe."""


class _Reader(pickle.Unpickler):
    """Answers every name with a class made for it."""

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full in MAKERS:
            return _maker(full, MAKERS[full])
        if full == "collections.OrderedDict":
            return _mapping(full, _ignore)
        if module == "__torch__" or module.startswith("__torch__."):
            return _mapping(full, _set_attributes)
        return _inert(full)

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _, count = pid
        if kind != "storage" or not isinstance(dtype, _StandIn) or not isinstance(key, str) or type(count) is not int:
            raise WeightsError(f"the pickle refers to a {kind!r}, which is no tensor: this file is not to be trusted")
        return _Storage(key, dtype.__name__.rpartition(".")[2], count)


def _by_name(path: Path, root: Any) -> dict[str, _Tensor]:
    """The tensors of the model, by dotted name."""
    tensors: dict[str, _Tensor] = {}
    others: dict[str, str] = {}
    seen = set()

    def walk(value: Any, name: str) -> None:
        if isinstance(value, _Tensor):
            if name in tensors:
                raise WeightsError(f"two tensors have the name {name}")
            tensors[name] = value
        elif isinstance(type(value), _StandIn) and not isinstance(value, dict):
            others[name] = type(value).__name__
        elif isinstance(value, dict) and id(value) not in seen:
            seen.add(id(value))
            for key, inner in value.items():
                if isinstance(key, (str, int)):
                    walk(inner, f"{name}.{key}" if name else str(key))

    walk(_state_dict(path, root), "")
    if others:
        name, kind = next(iter(others.items()))
        raise WeightsError(
            f"{name or 'it'} is a {kind}, which is no tensor: this file is not to be trusted, or holds more than a state dict; "
            "save model.state_dict() alone"
        )
    if not tensors:
        raise WeightsError("holds no tensor by name; give the state dict of a model")
    return tensors


def _state_dict(path: Path, root: Any) -> Any:
    """The part of a training checkpoint that is asked for; anything else as it is."""
    while isinstance(root, dict) and not any(isinstance(value, _Tensor) for value in root.values()):
        keys = [key for key in WRAPPERS if isinstance(root.get(key), dict) and root[key]]
        if not keys or (isinstance(type(root), _StandIn) and type(root).__name__.startswith("__torch__")):
            return root
        if len(keys) > 1:
            log.warning("%s: holds %s; %r is read", path, " and ".join(map(repr, keys)), keys[0])
        root = root[keys[0]]
    return root


class _Storages:
    """The numbers of the tensors, mapped."""

    def __init__(self, mapped: Array, members: dict[str, zipfile.ZipInfo]) -> None:
        self._mapped, self._members = mapped, members

    def view(self, tensor: _Tensor) -> Array:
        """A view of the storage; as_strided does not look at its ends, so they are looked at here."""
        whole, (_, offset, shape, stride) = self._read(tensor.storage), tensor
        listed = all(isinstance(numbers, (tuple, list)) for numbers in (shape, stride))
        if not listed or len(shape) != len(stride) or any(type(n) is not int or n < 0 for n in (offset, *shape, *stride)):
            raise WeightsError(f"a tensor of shape {shape!r:.99} and strides {stride!r:.99} is none")
        if 0 in shape:
            return np.zeros(tuple(shape), whole.dtype)
        if offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True)) >= len(whole):
            raise WeightsError(f"a tensor of shape {list(shape)} does not lie within its {len(whole)} numbers")
        steps = tuple(step * whole.itemsize for step in stride)
        return np.lib.stride_tricks.as_strided(whole[offset:], tuple(shape), steps, writeable=False)

    def _read(self, storage: Any) -> Array:
        if not isinstance(storage, _Storage):
            raise WeightsError(f"a tensor of a {type(storage).__name__} instead of numbers: this file is not to be trusted")
        if storage.dtype not in STORAGES:
            raise WeightsError(f"a tensor of type {storage.dtype}; types that are read: {', '.join(STORAGES)}")
        info, dtype = self._members.get(f"data/{storage.key}"), STORAGES[storage.dtype]
        if info is None:
            raise WeightsError(f"the numbers of tensor {storage.key} are missing")
        data, size = stored_bytes(self._mapped, info), storage.length * dtype.itemsize
        if storage.length < 0 or size > len(data):
            raise WeightsError(f"cut short: tensor {storage.key} has {len(data)} bytes, not {size}")
        return data[:size].view(dtype)
