"""The files of a zip archive as views into the mapped archive: nothing is unpacked, and nothing can be a bomb."""

import struct
import zipfile
from typing import Any

from numpy.typing import NDArray

from jclip.weights.errors import WeightsError


def stored_bytes(mapped: NDArray[Any], info: zipfile.ZipInfo) -> NDArray[Any]:
    """u8 [n]: the contents of a file that is stored without compression; `mapped`: the bytes of the archive.

    Raises:
        WeightsError: it is compressed, or does not lie within the archive.
    """
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
        raise WeightsError(f"{info.filename} is compressed or encrypted; weights are read from plain archives alone")
    # The lengths of name and extra field may differ between a file's own header and the directory of the archive.
    header = bytes(mapped[info.header_offset : info.header_offset + 30])
    start = info.header_offset + 30 + sum(struct.unpack("<HH", header[26:30])) if len(header) == 30 else len(mapped)
    if start + info.file_size > len(mapped):
        raise WeightsError(f"cut short: {info.filename} has {info.file_size} bytes, and they are not there")
    return mapped[start : start + info.file_size]
