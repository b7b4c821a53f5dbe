"""Numpy's archives of arrays (`.npz`), mapped; arrays of Python objects, which are pickles, are refused."""

import io
import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from jclip.weights.errors import WeightsError, errors_of
from jclip.weights.io.zip_views import stored_bytes

MAX_HEADER = 10_000
"""Bytes of what precedes the numbers of an array: type and shape."""


def open_npz(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays by name, each a view into the mapped file.

    Raises:
        WeightsError: it is no such archive, is compressed or cut short, or holds anything but plain numbers.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = [info for info in archive.infolist() if info.filename.endswith(".npy")]
    except (OSError, zipfile.BadZipFile) as error:
        raise WeightsError(f"{path}: no npz archive, or cut short: {error}") from None
    mapped = np.memmap(path, np.uint8, "r")
    with errors_of(path):
        return {info.filename.removesuffix(".npy"): _view(info.filename, stored_bytes(mapped, info)) for info in members}


def _view(name: str, data: NDArray[Any]) -> NDArray[Any]:
    start = io.BytesIO(bytes(data[:MAX_HEADER]))
    try:
        version = np.lib.format.read_magic(start)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, fortran, dtype = read(start)
    except (ValueError, KeyError) as error:
        raise WeightsError(f"{name} is no array of numpy: {error}") from None
    if dtype == np.dtype("V2"):  # as numpy, which does not know the type, writes bfloat16
        dtype = np.dtype(ml_dtypes.bfloat16)
    if dtype.kind not in "fiub" and dtype != ml_dtypes.bfloat16:
        raise WeightsError(f"{name} holds {dtype}, not numbers: a pickle, say, may run any program when it is read")
    numbers = data[start.tell() :]
    if any(n < 0 for n in shape) or len(numbers) != dtype.itemsize * int(np.prod(shape, dtype=object)):
        raise WeightsError(f"{name} is {dtype} {list(shape)}, but holds {len(numbers)} bytes")
    return numbers.view(dtype).reshape(shape, order="F" if fortran else "C")
