"""Records as tf.train.Example, the protocol buffer that most array_record and TFRecord files hold, without TensorFlow.

    Example { Features features = 1 }          Features { map<string, Feature> feature = 1 }
    Feature { BytesList = 1 | FloatList = 2 | Int64List = 3 }, each { repeated value = 1 }

Source of the format: tensorflow/core/example/{example,feature}.proto, and the encoding of protocol buffers.
"""

import struct
from collections.abc import Iterator, Mapping

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
"""Kinds of values on the wire."""

Values = list[bytes] | list[float] | list[int]
"""The values of a feature."""


def encode(features: Mapping[str, bytes]) -> bytes:
    """An Example of features of one value each, in their order: the same features give the same bytes."""
    entries = (_field(1, name.encode()) + _field(2, _field(1, _field(1, value))) for name, value in features.items())
    return _field(1, b"".join(_field(1, entry) for entry in entries))


def decode(data: bytes) -> dict[str, Values]:
    """The features of an Example by name; of a name that is there twice the last, as protocol buffers have it.

    Raises:
        ValueError: it is none.
    """
    found = dict[str, Values]()
    for features in _all(data, 1):
        for entry in _all(features, 1):
            name = b"".join(_all(entry, 1)).decode()
            values = [value for feature in _all(entry, 2) for value in _values(feature)]
            if len({type(value) for value in values}) > 1:
                raise ValueError(f"feature {name[:100]!r} has values of several kinds")
            found[name] = values  # type: ignore[assignment]
    return found


def _values(feature: bytes) -> Iterator[bytes | float | int]:
    for number, kind, value in _fields(feature):
        if kind != BYTES or not 1 <= number <= 3:
            raise ValueError(f"a feature has field {number} of kind {kind}")
        assert isinstance(value, bytes)
        for _, inner_kind, inner in _fields(value):
            yield from _scalars(number, inner_kind, inner)


def _scalars(number: int, kind: int, value: bytes | int) -> Iterator[bytes | float | int]:
    """Values of a list: number 1 of bytes, 2 of f32, 3 of i64; of numbers several may be packed into one field."""
    if number == 1 and isinstance(value, bytes) and kind == BYTES:
        yield value
    elif number == 2 and isinstance(value, bytes) and kind in (BYTES, FIXED32) and len(value) % 4 == 0:
        yield from (one for (one,) in struct.iter_unpack("<f", value))
    elif number == 3 and isinstance(value, int):
        yield _signed(value)
    elif number == 3 and isinstance(value, bytes) and kind == BYTES:
        place = 0
        while place < len(value):
            one, place = _varint(value, place)
            yield _signed(one)
    else:
        raise ValueError(f"a list of kind {number} has a value of kind {kind} that is none of it")


def _signed(number: int) -> int:
    return number - 2**64 if number >= 2**63 else number


def _all(data: bytes, wanted: int) -> Iterator[bytes]:
    """The values of one field, which are bytes; others are passed over."""
    for number, kind, value in _fields(data):
        if number == wanted:
            if kind != BYTES or not isinstance(value, bytes):
                raise ValueError(f"field {number} is of kind {kind}")
            yield value


def _fields(data: bytes) -> Iterator[tuple[int, int, bytes | int]]:
    """Number, kind and value of each field of a message."""
    place = 0
    while place < len(data):
        tag, place = _varint(data, place)
        number, kind = tag >> 3, tag & 7
        value: bytes | int
        if kind == VARINT:
            value, place = _varint(data, place)
        elif kind in (BYTES, FIXED64, FIXED32):
            size = 8 if kind == FIXED64 else 4
            if kind == BYTES:
                size, place = _varint(data, place)
            if place + size > len(data):
                raise ValueError(f"a field of {size} bytes ends beyond its message")
            value, place = data[place : place + size], place + size
        else:
            raise ValueError(f"a field is of kind {kind}")
        yield number, kind, value


def _varint(data: bytes, place: int) -> tuple[int, int]:
    """A number at a place, and the place behind it."""
    number = 0
    for shift in range(0, 70, 7):
        if place >= len(data):
            raise ValueError("a number ends beyond its message")
        byte = data[place]
        number, place = number | (byte & 127) << shift, place + 1
        if byte < 128:
            return number & (2**64 - 1), place
    raise ValueError("a number has more than ten bytes")


def _field(number: int, value: bytes) -> bytes:
    return bytes([number << 3 | BYTES]) + _as_varint(len(value)) + value


def _as_varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)
