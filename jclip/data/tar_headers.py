"""One pass over the headers of a tar file (POSIX ustar and pax, GNU): name, offset and size of each file in it."""

from collections import Counter
from dataclasses import dataclass, field

from jclip.data.local_files import File
from jclip.data.storage import open_file

BLOCK = 512
MAX_EXTENSION = 1 << 20
"""Largest pax header or GNU long name; a shard is corrupt where a longer one is."""

PAX_KEYS = (b"path", b"linkpath", b"size")
"""Pax records that count, if they are of one member: a global name would be that of every member. See also SPARSE."""

SPARSE = b"GNU.sparse."
"""Prefix of the keys of pax records of sparse files."""

OTHER_KINDS = {b"2": "symbolic links", b"3": "devices", b"4": "devices", b"6": "pipes", b"S": "sparse files"}
"""Members that are no files, by their type flag; directories (5) are not counted."""

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
    left_out: Counter[str] = field(default_factory=Counter)
    """Number of members that are no files, by what they are."""


def list_members(tar: str | File) -> Listing:
    """Reads the headers of a tar, in time linear in its length.

    A hard link to a file before it in the same tar is that file under another name. Symbolic links, devices and sparse files are
    left out, and counted.

    Raises:
        NotTar: it does not begin with a tar header, nor with the zeros that end an empty tar.
        CompressedTar: it is compressed.
        OSError: it cannot be read.
    """
    file = open_file(tar) if isinstance(tar, str) else tar
    return _Scan(file.onward(), file.state[0]).run()


class _Scan:
    """The state of a pass: what the last extension headers said of the next member."""

    def __init__(self, file: File, length: int) -> None:
        self.file = file
        self.length = length
        self.members: list[Member] = []
        self.places: dict[str, Member] = {}
        self.left_out: Counter[str] = Counter()
        self.next: dict[bytes, bytes] = {}
        self.all_sparse = False

    def run(self) -> Listing:
        offset = 0
        while True:
            block = self.file.read(offset, BLOCK)
            if len(block) == BLOCK and not any(block):
                return self._listing()
            if len(block) < BLOCK or not _checksum_holds(block):
                if offset == 0:
                    _refuse(block)
                return self._listing(cut=offset)
            try:
                data, size = offset + BLOCK, _number(block[124:136])
                kind = block[156:157]
                if kind in b"xgLK":
                    self._extend(kind, size, data)
                else:
                    if kind in b"\x000\x007":
                        size = _decimal(self.next[b"size"]) if b"size" in self.next else size
                    elif kind != b"S":
                        size = 0
                    name = self._name(block)
                    if data + size > self.length:
                        return self._listing(cut=offset, cut_name=name)
                    self._take(kind, name, Member(name, data, size), block)
                    if kind == b"S":
                        data += _sparse_extension(self.file, block, data)
                    self.next = {}
            except ValueError:
                return self._listing(cut=offset)
            offset = data + -(-size // BLOCK) * BLOCK

    def _listing(self, cut: int = -1, cut_name: str = "") -> Listing:
        return Listing(self.members, cut, cut_name, self.left_out)

    def _name(self, block: bytes) -> str:
        if b"path" in self.next:
            return _string(self.next[b"path"])
        name = _string(block[:100])
        prefix = _string(block[345:500]) if block[257:263] == b"ustar\0" else ""
        return f"{prefix}/{name}" if prefix else name

    def _take(self, kind: bytes, name: str, member: Member, block: bytes) -> None:
        """Adds a member, if it is a file or a link to one."""
        if kind in b"\x0007":
            if name.endswith("/"):
                return
            if self.all_sparse or any(key.startswith(SPARSE) for key in self.next):
                self.left_out["sparse files"] += 1
                return
        elif kind == b"1":
            target = self.places.get(_string(self.next.get(b"linkpath", block[157:257])))
            if target is None:
                self.left_out["hard links to files that are not in the shard"] += 1
                return
            member = Member(name, target.offset, target.size)
        elif kind != b"5":
            self.left_out[OTHER_KINDS.get(kind, "members of unknown kinds")] += 1
            return
        else:
            return
        self.members.append(member)
        self.places[name] = member

    def _extend(self, kind: bytes, size: int, place: int) -> None:
        """Takes in an extension header: pax records (x for the next member, g for all), a GNU long name (L) or link (K)."""
        if size > MAX_EXTENSION:
            raise ValueError("longer than a header can be")
        data = self.file.read(place, size)
        if len(data) < size:
            raise ValueError("cut within a header")
        if kind == b"L":
            self.next[b"path"] = data
        elif kind == b"K":
            self.next[b"linkpath"] = data
        else:
            records = _pax_records(data)
            if kind == b"x":
                self.next.update(records)
            elif any(key.startswith(SPARSE) for key in records):
                self.all_sparse = True


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


def _decimal(field: bytes) -> int:
    """A number of a pax record. Raises ValueError for what is none, is negative or beyond 62 bits."""
    if not field.isdigit() or len(field) > 20 or int(field) >= 1 << 62:
        raise ValueError("not a number in range")
    return int(field)


def _pax_records(data: bytes) -> dict[bytes, bytes]:
    """The records that count, of "LENGTH KEY=VALUE\\n" after each other, where LENGTH counts the whole record.

    Raises:
        ValueError: a record has no key, or a length that is none or beyond the end.
    """
    records: dict[bytes, bytes] = {}
    place, end = 0, len(data.rstrip(b"\0"))
    while place < end:
        space = data.find(b" ", place, place + 20)
        past = place + _decimal(data[place:space])
        equals = data.find(b"=", space + 1, past - 1) if place < space < past <= len(data) else -1
        if equals < 0:
            raise ValueError("not a pax record")
        key = data[space + 1 : equals]
        if key in PAX_KEYS or key.startswith(SPARSE):
            records[key] = data[equals + 1 : past - 1]
        place = past
    return records


def _sparse_extension(file: File, block: bytes, offset: int) -> int:
    """Bytes of the blocks that go on with the map of an old GNU sparse file."""
    size, more = 0, block[482:483] != b"\0"
    while more:
        extension = file.read(offset + size, BLOCK)
        if len(extension) < BLOCK:
            raise ValueError("cut within a sparse map")
        size, more = size + BLOCK, extension[504:505] != b"\0"
    return size
