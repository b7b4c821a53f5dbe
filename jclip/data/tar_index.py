"""The index of a tar file: where each member of each sample lies, kept as an array in a file beside it or in a cache."""

import hashlib
import json
import logging
import mmap
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jclip.data.addresses import Address, State, public
from jclip.data.caches import cache_folder, write_atomically
from jclip.data.local_files import state_of
from jclip.data.samples import group
from jclip.data.storage import open_settled, state_at
from jclip.data.tar_headers import list_members

log = logging.getLogger("jclip.data")

VERSION = 2
"""Version of the format below; an index of another one is built anew."""

HEADER = 12
"""Numbers before the tables: version; the shard's size, mtime and ctime in ns, and inode; counts of samples and members; bytes of
text, and of the notes at its end; where the shard is cut (-1: it is whole); and two of the digest of all else."""

DIGEST = slice(10, 12)

SHOWN = 40
"""Combinations of fields that the notes count; the rarer ones are counted together."""


@dataclass(frozen=True)
class ShardIndex:
    """The samples of one shard, as views of one array.

    The array is i64: HEADER numbers; where the members of each sample begin, and their total; where each name begins in the
    text, and where the names end; (extension, offset, size) of each member; then the text in UTF-8, padded to 8 bytes: the
    names without separators, the extensions, a line each, and the notes.
    """

    data: NDArray[np.int64]

    def __len__(self) -> int:
        return int(self.data[5])

    @property
    def state(self) -> State:
        """The shard's when it was scanned."""
        size, mtime, ctime, inode = self.data[1:5].tolist()
        return size, mtime, ctime, inode

    @property
    def cut(self) -> int:
        """Byte at which the shard is cut short or corrupt; -1 if it is whole."""
        return int(self.data[9])

    def notes(self) -> dict[str, dict[str, int]]:
        """Counts: "fields", of samples by the fields they have (see `Samples.fields`), and "left_out", of the rest by reason."""
        samples, members, text, notes = self.data[5:9].tolist()
        words = self.data[HEADER + 2 * (samples + 1) + 3 * members :].view(np.uint8)
        found: dict[str, dict[str, int]] = json.loads(words[text - notes : text].tobytes())
        return found

    def sample(self, number: int) -> tuple[str, list[tuple[str, int, int]]]:
        """Name and (extension, offset, size) of each member of a sample."""
        samples, members, text, notes = self.data[5:9].tolist()
        names = HEADER + samples + 1
        table = names + samples + 1
        first, past = self.data[HEADER + number : HEADER + number + 2].tolist()
        start, end = self.data[names + number : names + number + 2].tolist()
        words = self.data[table + 3 * members :].view(np.uint8)
        extensions = _text(words[int(self.data[table - 1]) : text - notes]).split("\n")
        rows = self.data[table + 3 * first : table + 3 * past].reshape(-1, 3).tolist()
        return _text(words[start:end]), [(extensions[extension], offset, size) for extension, offset, size in rows]


class Indexes:
    """Reads the indexes of shards, and builds those that are missing, older than their shard, or damaged.

    The digest of a file of an index is looked at once in a process. An index that can be written nowhere is kept in memory.
    """

    def __init__(self) -> None:
        self._places: dict[str, list[Path]] = {}
        self._checked: dict[Path, State] = {}
        self._unsaved: dict[str, ShardIndex] = {}

    def read(self, path: str, state: State | None = None) -> ShardIndex:
        """The index of a shard, whose state is given where it is known.

        Raises:
            NotTar: the file is not a tar, or a compressed one.
            OSError: it cannot be read.
        """
        state = state or state_at(path)
        places = self._places.get(path) or self._places.setdefault(path, list(_places(path)))
        for place in places:
            data = self._load(place, state)
            if data is not None:
                return ShardIndex(data)
        kept = self._unsaved.get(path)
        if kept is not None and kept.state == state:
            return kept
        index = ShardIndex(_build(path))
        if not any(_save(place, index.data) for place in places):
            self._unsaved[path] = index
        return index

    def _load(self, place: Path, state: State) -> NDArray[np.int64] | None:
        """The array in a file, without the map of np.load that keeps a file open; None where it is none of this shard."""
        try:
            file = os.open(place, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        except OSError:
            return None
        try:
            own = state_of(os.fstat(file))
            content = mmap.mmap(file, 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError):
            return None
        finally:
            os.close(file)
        start = 10 + int.from_bytes(content[8:10], "little")
        if content[:8] != b"\x93NUMPY\x01\x00" or (len(content) - start) % 8 or len(content) < start + 8 * HEADER:
            return None
        data = np.frombuffer(content, "<i8", offset=start)
        if int(data[0]) != VERSION or tuple(data[1:5].tolist()) != state:
            return None
        if self._checked.get(place) != own:
            if not np.array_equal(data[DIGEST], _digest(data)):
                log.warning("index %s is damaged, and is built again", place)
                return None
            self._checked[place] = own
        return data


def _build(path: str) -> NDArray[np.int64]:
    file = open_settled(path)
    listing = list_members(file)
    samples = group(listing.members, listing.cut_name)
    extensions: dict[str, int] = {}
    rows = [
        (extensions.setdefault(extension, len(extensions)), member.offset, member.size)
        for members in samples.members.values()
        for extension, member in members
    ]
    names = [name.encode("utf-8", "surrogateescape") for name in samples.members]
    fields = samples.fields().most_common()
    counts: dict[str, Any] = dict(fields[:SHOWN])
    if rest := sum(count for _, count in fields[SHOWN:]):
        counts["..."] = rest
    notes = json.dumps({"fields": counts, "left_out": listing.left_out + samples.left_out}).encode()
    text = b"".join(names) + "\n".join(extensions).encode("utf-8", "surrogateescape") + notes
    tables: list[ArrayLike] = [
        [VERSION, *file.state, len(names), len(rows), len(text), len(notes), listing.cut, 0, 0],
        np.cumsum([0, *map(len, samples.members.values())]),
        np.cumsum([0, *map(len, names)]),
        np.array(rows, np.int64).ravel(),
        np.frombuffer(text + bytes(-len(text) % 8), np.int64),
    ]
    data = np.concatenate(tables, dtype=np.int64)
    data[DIGEST] = _digest(data)
    return data


def _digest(data: NDArray[np.int64]) -> NDArray[np.int64]:
    """Two numbers that stand for all others of an index."""
    found = hashlib.blake2b(data[: DIGEST.start].tobytes(), digest_size=16)
    found.update(np.ascontiguousarray(data[DIGEST.stop :]).data)
    return np.frombuffer(found.digest(), np.int64)


def _places(path: str) -> Iterator[Path]:
    """Paths of a shard's index, best first: in $JCLIP_CACHE if that is set; else beside the shard, or in the user's cache."""
    if isinstance(path, Address):
        yield cache_folder("index") / _name(public(path))
        return
    shard = Path(path).resolve()
    name = _name(os.fspath(shard))
    # The permission bits are asked as well, because a superuser may write even where the owner wanted nothing written.
    writable = shard.parent.stat().st_mode & stat.S_IWUSR and os.access(shard.parent, os.W_OK)
    if writable and not os.environ.get("JCLIP_CACHE"):
        yield shard.with_name(f".{shard.name}.jclip.npy")
    yield cache_folder("index") / name


def _name(shard: str) -> str:
    return f"{hashlib.sha256(os.fsencode(shard)).hexdigest()[:20]}-{os.path.basename(shard)[-60:]}.npy"


def _save(place: Path, data: NDArray[np.int64]) -> bool:
    """Writes an index in one step, so that no process ever reads half of one; False where nothing can be written."""
    try:
        write_atomically(place, lambda part: np.save(part, data))
    except OSError as error:
        log.info("index not saved: %s", error)
        return False
    return True


def _text(words: NDArray[np.uint8]) -> str:
    return words.tobytes().decode("utf-8", "surrogateescape")
