"""One pass over the headers of a tar file (POSIX ustar and pax, GNU): name, offset and size of each file in it."""

import os
from dataclasses import dataclass

BLOCK = 512
MAX_EXTENSION = 1 << 20
"""Largest pax header or GNU long name that is read; a longer one is no name."""

COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
    b"PK\x03\x04": "zip",
}


class NotTar(ValueError):
    """A file is not a tar that can be indexed; the text is the reason."""


class CompressedTar(NotTar):
    """A file is compressed: its members cannot be read at random."""


@dataclass(frozen=True)
class Member:
    """One regular file in a tar. Its name is a text, and never a path to write to."""

    name: str
    offset: int
    size: int


@dataclass(frozen=True)
class Listing:
    """The regular files of a tar, in order."""

    members: list[Member]
    cut: int = -1
    """Byte at which the tar is cut short or corrupt; -1: it is whole."""
    cut_name: str = ""
    """Name of the member within which that is, where it is known."""


def list_members(path: str) -> Listing:
    """Reads the headers of a tar. Directories, links, devices and sparse files are left out.

    Raises:
        NotTar: it does not begin with a tar header, nor with the zeros that end an empty tar.
        CompressedTar: it is compressed.
    """
    file = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    try:
        return _Scan(file, os.fstat(file).st_size).run()
    finally:
        os.close(file)


class _Scan:
    """The state of a pass: what the last extension headers said of the next member."""

    def __init__(self, file: int, length: int) -> None:
        self.file = file
        self.length = length
        self.members: list[Member] = []
        self.everywhere: dict[str, str] = {}
        self.next: dict[str, str] = {}

    def run(self) -> Listing:
        offset = 0
        while True:
            block = os.pread(self.file, BLOCK, offset)
            if len(block) == BLOCK and not any(block):
                return Listing(self.members)
            if len(block) < BLOCK or not _checksum_holds(block):
                if offset == 0:
                    _refuse(block)
                return Listing(self.members, cut=offset)
            try:
                data, size = offset + BLOCK, _number(block[124:136])
                kind = block[156:157]
                if kind in b"xgLK":
                    self._extend(kind, os.pread(self.file, min(size, MAX_EXTENSION), data))
                else:
                    size = int(self.next.get("size", size)) if kind in b"\x000\x007" else size if kind == b"S" else 0
                    name = self._name(block)
                    if data + size > self.length:
                        return Listing(self.members, cut=offset, cut_name=name)
                    if kind in b"\x0007" and not self._sparse() and not name.endswith("/"):
                        self.members.append(Member(name, data, size))
                    if kind == b"S":
                        data += _sparse_extension(self.file, block, data)
                    self.next = dict(self.everywhere)
            except ValueError:
                return Listing(self.members, cut=offset)
            offset = data + -(-size // BLOCK) * BLOCK

    def _name(self, block: bytes) -> str:
        if "path" in self.next:
            return self.next["path"]
        name = _string(block[:100])
        prefix = _string(block[345:500]) if block[257:263] == b"ustar\0" else ""
        return f"{prefix}/{name}" if prefix else name

    def _sparse(self) -> bool:
        return any(key.startswith("GNU.sparse.") for key in self.next)

    def _extend(self, kind: bytes, data: bytes) -> None:
        """Takes in an extension header: pax records (x for the next member, g for all) or a GNU long name (L)."""
        if kind == b"L":
            self.next["path"] = _string(data)
        elif kind in b"xg":
            records = _pax_records(data)
            self.next.update(records)
            if kind == b"g":
                self.everywhere.update(records)


def _refuse(block: bytes) -> None:
    for magic, name in COMPRESSED.items():
        if block.startswith(magic):
            raise CompressedTar(f"it is compressed ({name}), so its members cannot be read at random: unpack it to a plain .tar")
    if block:
        raise NotTar("it is not a tar")


def _checksum_holds(block: bytes) -> bool:
    try:
        # The checksum counts its own eight bytes as spaces.
        return sum(block) - sum(block[148:156]) + 256 == _number(block[148:156])
    except ValueError:
        return False


def _number(field: bytes) -> int:
    """An octal number; or, with the first bit set (GNU), a binary one. Raises ValueError for anything else."""
    if field[0] & 0x80:
        number = int.from_bytes(field, "big", signed=False) - (0x80 << 8 * (len(field) - 1))
    else:
        number = int(field.split(b"\0", 1)[0].strip() or b"0", 8)
    if not 0 <= number < 1 << 62:
        raise ValueError("number out of range")
    return number


def _string(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


def _pax_records(data: bytes) -> dict[str, str]:
    """Records of "LENGTH KEY=VALUE\\n", where LENGTH counts the whole record."""
    records: dict[str, str] = {}
    while data.strip(b"\0"):
        digits, space, _ = data.partition(b" ")
        length = int(digits)
        key, equals, value = data[len(digits) + 1 : length - 1].partition(b"=")
        if not space or not equals or length <= len(digits) + 1:
            raise ValueError("not a pax record")
        records[key.decode("utf-8", "surrogateescape")] = value.decode("utf-8", "surrogateescape")
        data = data[length:]
    return records


def _sparse_extension(file: int, block: bytes, offset: int) -> int:
    """Bytes of the blocks that go on with the map of an old GNU sparse file."""
    size, more = 0, block[482:483] != b"\0"
    while more:
        extension = os.pread(file, BLOCK, offset + size)
        if len(extension) < BLOCK:
            raise ValueError("cut within a sparse map")
        size, more = size + BLOCK, extension[504:505] != b"\0"
    return size
