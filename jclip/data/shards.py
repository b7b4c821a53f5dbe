"""The shards of a source: how many samples each has, known without opening the indexes of those that have not changed."""

import hashlib
import json
import logging
import os
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, NamedTuple

from jclip.data.addresses import Address, State, is_address, public
from jclip.data.caches import cache_folder, write_atomically
from jclip.data.source import SourceError
from jclip.data.storage import state_at
from jclip.data.tar_headers import CompressedTar, NotTar
from jclip.data.tar_index import Indexes
from jclip.files import read_whole

log = logging.getLogger("jclip.data")

VERSION = 2
"""Version of the files of `_Folder`; others are not read."""

MANY = 64
"""Shards of a folder from which on their counts are kept in one file."""

AT_A_TIME = 8
"""Remote shards that are indexed at a time."""


class Shard(NamedTuple):
    """Facts of a shard that are known without its index."""

    path: str
    size: int
    """Bytes."""
    samples: int
    cut: int
    """Byte at which it is cut short or corrupt; -1 if it is whole."""
    notes: Mapping[str, Mapping[str, int]]
    """See ShardIndex.notes."""


class Loaded(NamedTuple):
    """Findings of `load_shards`."""

    shards: list[Shard]
    """Shards that are tars, in the order of the paths."""
    skipped: list[str]
    """ "path: reason" of each path that is no tar."""

    def total(self, what: str) -> Counter[str]:
        """The sum of a kind of notes over all shards."""
        found: Counter[str] = Counter()
        for shard in self.shards:
            found.update(shard.notes[what])
        return found


def load_shards(paths: Sequence[str]) -> Loaded:
    """The counts of all shards; indexes are built where they are missing, which is shown if it takes long.

    Raises:
        SourceError: a file is a compressed tar, or cannot be read.
    """
    shards, skipped, indexes = list[Shard](), list[str](), Indexes()
    places = list(map(_folder_of, paths))
    folders = {folder: _Folder(folder) for folder, size in Counter(places).items() if size >= MANY}
    kept = [folders.get(place) for place in places]
    _index_remote([path for path, folder in zip(paths, kept, strict=True) if not folder or not folder.has(path)], indexes)
    for path, folder in zip(_progress(paths), kept, strict=True):
        try:
            state = state_at(path)
            shard = folder.find(path, state) if folder else None
            if shard is None:
                index = indexes.read(path, state)
                shard = Shard(path, state[0], len(index), index.cut, index.notes())
                if folder:
                    folder.add(shard, index.state)
        except CompressedTar as error:
            raise SourceError(f"shard {path}: {error}") from None
        except NotTar as error:
            skipped.append(f"{path}: {error}")
            log.warning("shard skipped: %s: %s", path, error)
            continue
        except OSError as error:
            raise SourceError(f"shard {path} cannot be read: {error.strerror}; mend it or take it out of the source") from None
        shards.append(shard)
        if shard.cut >= 0:
            log.warning("shard %s is cut short or corrupt: its %d samples up to byte %d are used", path, shard.samples, shard.cut)
        elif not shard.samples:
            log.warning("shard %s has no samples", path)
    for folder in folders.values():
        folder.save()
    return Loaded(shards, skipped)


def _index_remote(paths: Sequence[str], indexes: Indexes) -> None:
    """Builds the indexes of remote shards, several at a time because most of it is waiting; problems show when they are read."""

    def build(path: str) -> None:
        with suppress(NotTar, OSError):
            indexes.read(path)

    if remote := [path for path in paths if isinstance(path, Address)]:
        with ThreadPoolExecutor(AT_A_TIME) as pool:
            for _ in pool.map(build, _progress(remote)):
                pass


class _Folder:
    """The counts of the shards in one folder: file name to [state of the file, samples, cut, notes]."""

    def __init__(self, folder: str) -> None:
        self.folder = folder if is_address(folder) else os.path.realpath(folder)
        self.place = cache_folder("shards") / f"{hashlib.sha256(os.fsencode(self.folder)).hexdigest()[:20]}.json"
        self.rows = self._load()
        self.new: dict[str, Any] = {}

    def _load(self) -> dict[str, Any]:
        try:
            content = json.loads(read_whole(self.place))
            rows, digest = content["files"], content["digest"]
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            return {}
        whole = content.get("folder") == self.folder and content.get("version") == VERSION and digest == _digest(rows)
        return rows if whole else {}

    def has(self, path: str) -> bool:
        """True where the counts of a remote shard are known."""
        return isinstance(path, Address) and self.find(path, path.state) is not None

    def find(self, path: str, state: State) -> Shard | None:
        """The counts of a shard that has not changed since."""
        row = self.rows.get(os.path.basename(public(path)))
        if row is None or tuple(row[0]) != state:
            return None
        return Shard(path, state[0], *row[1:])

    def add(self, shard: Shard, state: State) -> None:
        self.new[os.path.basename(public(shard.path))] = [state, *shard[2:]]

    def save(self) -> None:
        """Adds the new rows to those that are there by now; where nothing can be written, nothing is kept."""
        if not self.new:
            return
        rows = {**self._load(), **json.loads(json.dumps(self.new))}
        content = json.dumps({"version": VERSION, "folder": self.folder, "digest": _digest(rows), "files": rows})
        try:
            write_atomically(self.place, lambda part: part.write_text(content, encoding="ascii"))
        except OSError as error:
            log.info("counts of shards not saved: %s", error)


def _folder_of(path: str) -> str:
    return os.path.dirname(public(path))


def _digest(rows: Any) -> str:
    return hashlib.blake2b(json.dumps(rows, sort_keys=True).encode(), digest_size=16).hexdigest()


def _progress(paths: Sequence[str]) -> Iterable[str]:
    """The paths, with a bar on a terminal after the first seconds."""
    if not sys.stderr.isatty():
        return paths
    from rich.console import Console
    from rich.progress import track

    return track(paths, "indexing shards", console=Console(emoji=False, stderr=True), transient=True, disable=len(paths) < 4)
