"""Fingerprints of sources: digests of what is in files, each file read once, and remembered for as long as it is unchanged."""

import hashlib
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jclip.data.addresses import Address, by_ranges, public
from jclip.data.caches import cache_folder, write_atomically
from jclip.data.source import BadExample, Source, SourceError
from jclip.data.storage import open_file, state_at
from jclip.files import read_whole

log = logging.getLogger("jclip.data")

DIGEST_SIZE = 16
"""Bytes of a digest (blake2b)."""

SETTLED_NS = 2_000_000_000
"""A file must have been left alone for so long before it was read, for its digest to be remembered. Its times are as coarse as
the clock of its file system (2 s on FAT, 4 ms and less elsewhere): a change within one tick of the last would not show."""

SHOWN_BYTES = 1 << 29
"""Bytes, a second or two of reading, from which on a bar shows how far it is."""


Advance = Callable[[int], object]
"""Callback for the number of further bytes that were read."""


def combine(*parts: bytes | str) -> str:
    """The fingerprint of parts in order, in hexadecimal: 32 digits.

    Each part goes in with its kind and its length, so that no two sequences of parts are the same bytes.
    """
    digest = hashlib.blake2b(digest_size=DIGEST_SIZE)
    for part in parts:
        data = _bytes(part) if isinstance(part, str) else part
        digest.update(b"%c%d:" % (b"t"[0] if isinstance(part, str) else b"b"[0], len(data)))
        digest.update(data)
    return digest.hexdigest()


def _bytes(text: str) -> bytes:
    try:
        return text.encode("utf-8", "surrogateescape")  # names of files may be any bytes
    except UnicodeEncodeError:  # half of a surrogate pair, from JSON
        return text.encode("utf-8", "surrogatepass")


def sample_fingerprint(source: Source, most: int = 64) -> str:
    """A cheap fingerprint, 32 hexadecimal digits: of the number of examples, and of the fields of `most` of them, spread evenly.

    Another source hardly ever has the same one; a change of few examples goes unseen, see `Source.fingerprint`.
    """
    count = min(most, len(source))
    parts: list[bytes | str] = [str(len(source))]
    for index in [i * (len(source) - 1) // max(1, count - 1) for i in range(count)]:
        try:
            example = source[index]
            for name in example:
                parts += [name, _content(example, name)]
        except BadExample as problem:
            parts.append(str(problem))
    return combine(*parts)


def _content(example: Mapping[str, Any], name: str) -> bytes | str:
    try:
        value = example[name]
    except BadExample as problem:
        return str(problem)
    return value if isinstance(value, (bytes, str)) else value.tobytes() if hasattr(value, "tobytes") else repr(value)


def file_digests(paths: Sequence[str | Path]) -> list[bytes]:
    """The digest of each file's bytes, 16 bytes each.

    A file whose size, times of change and inode are those it had when it was last read is not read again: what was found then
    is kept in the folder "digests" of the caches, a file of JSON for each folder of files. Several processes may do so at once.

    Raises:
        SourceError: a file cannot be read, or changes while it is.
    """
    files = [path if isinstance(path, Address) else os.path.abspath(path) for path in paths]
    places = [os.path.split(public(file)) for file in files]
    known = {folder: _Memo(folder) for folder in dict.fromkeys(folder for folder, _ in places)}
    found = [known[folder].find(name, file) for (folder, name), file in zip(places, files, strict=True)]
    missing = {place: file for place, file, digest in zip(places, files, found, strict=True) if digest is None}
    try:
        with _bar(missing.values()) as advance:

            def read(item: tuple[tuple[str, str], str]) -> None:
                (folder, name), file = item
                known[folder].read(name, file, advance)

            if by_ranges(missing.values()):
                from jclip.data.remote import together

                together(read, missing.items())
            else:
                for item in missing.items():
                    read(item)
    finally:  # what an interrupt has cut short need not begin again
        for memo in known.values():
            memo.save()
    return [known[folder].found[name] if digest is None else digest for (folder, name), digest in zip(places, found, strict=True)]


class _Memo:
    """The digests that are known of the files in one folder: name to [size, mtime, ctime, inode, digest in hexadecimal]."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.found: dict[str, bytes] = {}
        self.place = cache_folder("digests") / f"{hashlib.sha256(os.fsencode(folder)).hexdigest()[:20]}.json"
        self.rows = self._load()
        self.new: dict[str, list[Any]] = {}

    def _load(self) -> Mapping[str, Any]:
        try:
            content = json.loads(read_whole(self.place))
        except (OSError, ValueError, RecursionError):
            return {}
        rows = content.get("files") if isinstance(content, dict) and content.get("folder") == self.folder else None
        return rows if isinstance(rows, dict) else {}

    def find(self, name: str, path: str) -> bytes | None:
        """The digest of a file that has not changed since."""
        row = self.rows.get(name)
        if not isinstance(row, list) or len(row) != 5 or row[:4] != _state(path):
            return None
        try:
            digest = bytes.fromhex(row[4])
        except (TypeError, ValueError):
            return None
        return digest if len(digest) == DIGEST_SIZE else None

    def read(self, name: str, path: str, advance: Advance) -> None:
        before, now = _state(path), time.time_ns()
        digest = _digest(path, advance)
        if _state(path) != before:
            raise SourceError(f"{path} was changed while its fingerprint was taken; wait until it is written, and try again")
        self.found[name] = digest
        if max(before[1:3]) + SETTLED_NS <= now:
            self.new[name] = [*before, digest.hex()]

    def save(self) -> None:
        """Adds the new rows to those that are there by now; where nothing can be written, nothing is kept."""
        if not self.new:
            return
        content = json.dumps({"folder": self.folder, "files": {**self._load(), **self.new}})
        try:
            write_atomically(self.place, lambda part: part.write_text(content, encoding="ascii"))
        except OSError as error:
            log.info("digests not saved: %s", error)


def _state(path: str) -> list[int]:
    """Facts of a file that change when its bytes do: size, mtime, ctime (which nobody can set back) and inode."""
    try:
        return list(state_at(path))
    except OSError as error:
        raise _unreadable(path, error) from None


def _digest(path: str, advance: Advance) -> bytes:
    digest = hashlib.blake2b(digest_size=DIGEST_SIZE)
    try:
        file, place = open_file(path).onward(), 0
        while block := file.read(place, 1 << 22):
            digest.update(block)
            place += len(block)
            advance(len(block))
    except OSError as error:
        raise _unreadable(path, error) from None
    return digest.digest()


def _unreadable(path: str, error: OSError) -> SourceError:
    return SourceError(f"{path} cannot be read: {error.strerror}; mend it or take it out of the source")


@contextmanager
def _bar(paths: Iterable[str]) -> Iterator[Advance]:
    """A bar of the bytes read, on a terminal and where there are many; else nothing is shown."""
    total = sum(_state(path)[0] for path in paths)
    if total < SHOWN_BYTES or not sys.stderr.isatty():
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(emoji=False, stderr=True), transient=True) as progress:
        task = progress.add_task("taking fingerprints", total=total)
        yield lambda count: progress.update(task, advance=count)
