"""The index of a tar file: where each member of each sample lies, kept as a memory-mapped array beside the file or in a cache."""

import hashlib
import logging
import os
import stat
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jclip.data.caches import cache_folder, write_atomically
from jclip.data.sources import SourceError
from jclip.data.tar_headers import CompressedTar, NotTar, list_members

log = logging.getLogger("jclip.data")

VERSION = 1
"""Of the format below; an index of another version is built anew."""

HEADER = 8
"""Numbers before the tables: version, the shard's size and mtime in ns, counts of samples and members, bytes of text, where the
shard is cut (-1: it is whole), and one to spare."""


@dataclass(frozen=True)
class ShardIndex:
    """The samples of one shard, as views of one array.

    The array is i64: HEADER numbers; where the members of each sample begin, and their total; where each name begins in the
    text, and where the names end; (extension, offset, size) of each member; then the text in UTF-8, padded to 8 bytes: the
    names without separators, and the extensions, a line each.
    """

    data: NDArray[np.int64]

    def __len__(self) -> int:
        return int(self.data[3])

    @property
    def cut(self) -> int:
        """Byte at which the shard is cut short or corrupt; -1 if it is whole."""
        return int(self.data[6])

    def sample(self, number: int) -> tuple[str, list[tuple[str, int, int]]]:
        """Name and (extension, offset, size) of each member of a sample."""
        samples, members, text = self.data[3:6].tolist()
        names = HEADER + samples + 1
        table = names + samples + 1
        first, past = self.data[HEADER + number : HEADER + number + 2].tolist()
        start, end = self.data[names + number : names + number + 2].tolist()
        words = self.data[table + 3 * members :].view(np.uint8)
        extensions = _text(words[int(self.data[table - 1]) : text]).split("\n")
        rows = self.data[table + 3 * first : table + 3 * past].reshape(-1, 3).tolist()
        return _text(words[start:end]), [(extensions[extension], offset, size) for extension, offset, size in rows]


@dataclass(frozen=True)
class Loaded:
    """What `load_or_build` found."""

    indexes: dict[str, ShardIndex]
    """By path, of every file that is a tar."""
    skipped: list[str]
    """ "path: reason" of the others."""
    cut: list[str]
    """ "path: reason" of those that are cut short or corrupt, and are used up to there."""


def load_or_build(paths: list[str]) -> Loaded:
    """The indexes of all `paths`, built where they are missing or older than the file; shows progress if that takes long.

    Raises:
        SourceError: a file is a compressed tar.
    """
    loaded = Loaded({}, [], [])
    for path in _progress(paths):
        try:
            index = read_index(path)
        except CompressedTar as error:
            raise SourceError(f"shard {path}: {error}") from None
        except NotTar as error:
            loaded.skipped.append(f"{path}: {error}")
            log.warning("shard skipped: %s: %s", path, error)
            continue
        loaded.indexes[path] = index
        if index.cut >= 0:
            loaded.cut.append(f"{path}: cut short or corrupt after {index.cut} bytes")
            log.warning("shard %s is cut short or corrupt: its %d samples up to byte %d are used", path, len(index), index.cut)
        elif not len(index):
            log.warning("shard %s has no samples", path)
    return loaded


def read_index(path: str) -> ShardIndex:
    """The index of one shard: from its file if that is newer than the shard's last change, else built and saved.

    Raises:
        NotTar: the file is not a tar, or a compressed one.
    """
    status = os.stat(path)
    places = list(_places(path))
    for place in places:
        try:
            data = np.load(place, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError):
            continue
        fits = data.dtype == np.int64 and data.ndim == 1 and data.size >= HEADER
        if fits and data[:3].tolist() == [VERSION, status.st_size, status.st_mtime_ns]:
            return ShardIndex(np.asarray(data))  # a plain view: slices of np.memmap itself take 5 us each
    data = _build(path, status)
    for place in places:
        if _save(place, data):
            break
    return ShardIndex(data)


def _build(path: str, status: os.stat_result) -> NDArray[np.int64]:
    listing = list_members(path)
    samples: dict[str, list[tuple[int, int, int]]] = {}
    extensions: dict[str, int] = {}
    last: dict[str, str] = {}
    for member in listing.members:
        name, extension = _split(member.name)
        if not extension:
            continue
        number = extensions.setdefault(extension, len(extensions))
        key = last.get(name, name)
        if any(number == other for other, _, _ in samples.get(key, ())):
            last[name] = key = _unused(name, samples)
        samples.setdefault(key, []).append((number, member.offset, member.size))
    lost, _ = _split(listing.cut_name)
    samples.pop(last.get(lost, lost), None)

    names = [name.encode("utf-8", "surrogateescape") for name in samples]
    rows = [row for group in samples.values() for row in group]
    text = b"".join(names) + "\n".join(extensions).encode("utf-8", "surrogateescape")
    tables: list[ArrayLike] = [
        [VERSION, status.st_size, status.st_mtime_ns, len(samples), len(rows), len(text), listing.cut, 0],
        np.cumsum([0, *map(len, samples.values())]),
        np.cumsum([0, *map(len, names)]),
        np.array(rows, np.int64).ravel(),
        np.frombuffer(text + bytes(-len(text) % 8), np.int64),
    ]
    return np.concatenate(tables, dtype=np.int64)


def _split(name: str) -> tuple[str, str]:
    """A member's name, split at the first dot of its last part; no extension for what belongs to no sample."""
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return folder + slash + stem, extension.lower().replace("\n", " ") if stem else ""


def _unused(name: str, samples: dict[str, list[tuple[int, int, int]]]) -> str:
    """A key for a second sample of one name."""
    return next(key for key in (f"{name}#{i}" for i in count(2)) if key not in samples)


def _places(path: str) -> Iterator[Path]:
    """Where the index of a shard may lie: in $JCLIP_CACHE if that is set; else beside the shard, or in the user's cache."""
    shard = Path(path).resolve()
    name = f"{hashlib.sha256(os.fsencode(shard)).hexdigest()[:20]}-{shard.name[-60:]}.npy"
    # The permission bits are asked as well, because a superuser may write even where the owner wanted nothing written.
    writable = shard.parent.stat().st_mode & stat.S_IWUSR and os.access(shard.parent, os.W_OK)
    if writable and not os.environ.get("JCLIP_CACHE"):
        yield shard.with_name(f".{shard.name}.jclip.npy")
    yield cache_folder("index") / name


def _save(place: Path, data: NDArray[np.int64]) -> bool:
    """Writes an index in one step, so that no process ever reads half of one; False where nothing can be written."""
    try:
        write_atomically(place, lambda part: np.save(part, data))
    except OSError as error:
        log.info("index not saved: %s", error)
        return False
    return True


def _progress(paths: list[str]) -> Iterable[str]:
    """The paths, with a bar on a terminal after the first seconds, and a line in the log otherwise."""
    if not sys.stderr.isatty():
        return paths
    from rich.console import Console
    from rich.progress import track

    return track(paths, "indexing shards", console=Console(stderr=True), transient=True, disable=len(paths) < 4)


def _text(words: NDArray[np.uint8]) -> str:
    return words.tobytes().decode("utf-8", "surrogateescape")
