"""Cells of Parquet files as values of examples."""

from typing import Any

import numpy as np

from jclip.data.columns import Columns, as_f32
from jclip.data.source import BadExample, Lacking


def plain(scalar: Any, columns: Columns) -> Any:
    """A cell (pyarrow.Scalar) as jclip has it, see Parquet; None where it is null.

    Raises:
        BadExample: it is no UTF-8, or has nulls or rows of several lengths among its numbers; an image's file cannot be read.
    """
    import pyarrow as pa

    if not scalar.is_valid:
        return None
    if isinstance(scalar, (pa.DictionaryScalar, pa.ExtensionScalar)):
        return plain(scalar.value, columns)
    if pa.types.is_struct(scalar.type):
        if is_image(scalar.type):
            inside, path = scalar["bytes"], path_of(scalar)
            if not inside.is_valid and not path:
                raise Lacking("its bytes and its path are null")
            return inside.as_py() if inside.is_valid else columns.read_image(path or "")
        values = {field.name: plain(scalar[field.name], columns) for field in scalar.type}
        return {name: value for name, value in values.items() if value is not None}
    if is_list(scalar.type):
        return _list(scalar.values, columns)
    try:
        return dict(scalar.as_py()) if pa.types.is_map(scalar.type) else scalar.as_py()
    except (UnicodeDecodeError, ValueError, OverflowError) as error:
        raise BadExample(f"the cell cannot be decoded: {error}") from None


def _list(values: Any, columns: Columns) -> Any:
    """A list's values (pyarrow.Array): an array of numbers, or a tuple of anything else."""
    import pyarrow as pa

    leaf = values.type
    while is_list(leaf):
        leaf = leaf.value_type
    if not (pa.types.is_floating(leaf) or pa.types.is_integer(leaf) or pa.types.is_boolean(leaf)):
        return tuple(plain(value, columns) for value in values)
    if values.null_count:
        raise BadExample(f"{values.null_count} of its {len(values)} numbers are null")
    if not is_list(values.type):
        array = values.to_numpy(zero_copy_only=False)
        return as_f32(array) if pa.types.is_floating(leaf) else array.copy()
    rows = [_list(row.values, columns) for row in values]
    if len({row.shape for row in rows}) != 1:
        raise BadExample("its lists of numbers have several lengths, or none")
    return np.stack(rows)


def path_of(scalar: Any) -> str | None:
    """The path of an image's cell: a text, or the path of a struct without bytes."""
    import pyarrow as pa

    if not scalar.is_valid:
        return None
    if is_image(scalar.type):
        return None if scalar["bytes"].is_valid or not scalar["path"].is_valid else str(scalar["path"].as_py())
    value = scalar.as_py() if not pa.types.is_nested(scalar.type) and not is_bytes(scalar.type) else None
    return value if isinstance(value, str) else None


def is_bytes(kind: Any) -> bool:
    """True for a type (pyarrow.DataType) of bytes."""
    import pyarrow as pa

    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind))


def is_text(kind: Any) -> bool:
    """True for a type of texts."""
    import pyarrow as pa

    inner = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(inner) or pa.types.is_large_string(inner))


def is_image(kind: Any) -> bool:
    """True for the type of Hugging Face's images."""
    import pyarrow as pa

    return bool(pa.types.is_struct(kind)) and {field.name for field in kind} == {"bytes", "path"}


def is_list(kind: Any) -> bool:
    """True for a type of lists."""
    import pyarrow as pa

    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))
