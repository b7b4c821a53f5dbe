"""The source `webdataset`: tar files of samples, read at random through an index of their headers."""

import json
import logging
import os
import resource
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import partial
from itertools import accumulate
from typing import Any

from jclip.data.addresses import by_ranges, is_copied, shown
from jclip.data.files import MAX_BYTES, unread
from jclip.data.fingerprint import combine, file_digests
from jclip.data.local_files import File, is_deleted
from jclip.data.patterns import short_names
from jclip.data.samples import FIELDS, RARE_IMAGES, SOUNDS, with_sounds
from jclip.data.shards import Loaded, load_shards
from jclip.data.source import BadExample, LazyExample, SourceError, decode_text, text_readers
from jclip.data.storage import open_file
from jclip.data.tar_headers import NotTar
from jclip.data.tar_index import Indexes

log = logging.getLogger("jclip.data")

OPEN_SHARDS = 128
"""Shards whose file and index are held open by a process at a time, at most; see also `most_open`."""

RECOUNT = 64
"""Shards that are opened between two looks at how many files the process may have open."""

LET_GO = 256
"""Reads after which copies of shards that were deleted meanwhile are closed, whose room on the disk is free only then."""


class WebDataset:
    """The samples of tar files, in the order of the files' names.

    Members that share a name up to the first dot of their last part are one sample (webdataset's rule, and that of
    jclip.data.samples where a name comes twice); its key is "SHARD:NAME". Fields: see FIELDS, RARE_IMAGES and
    SOUNDS; of several images or sounds the first member counts. Each is read and decoded when it is asked for, which raises
    BadExample if it is broken. Nothing is ever extracted, and names are no more than text.
    """

    classes: tuple[str, ...] = ()
    templates: tuple[str, ...] = ()

    def __init__(self, loaded: Loaded, lines: bool = False) -> None:
        self.lines = lines
        """True: each line of a text is a caption, see `text_readers`."""
        self.skipped_shards = tuple(loaded.skipped)
        """ "path: reason" of each file that is no tar, and was left out."""
        self.cut_shards = tuple(
            f"{shard.path}: cut short or corrupt after {shard.cut} bytes" for shard in loaded.shards if shard.cut >= 0
        )
        """ "path: reason" of each file that is cut short or corrupt, and is used up to there."""
        self.fields = with_sounds(loaded.total("fields"))
        """Number of samples by their fields, whose names are joined by a space."""
        self.left_out = dict(loaded.total("left_out"))
        """Number of things in the shards that are in no sample, by the reason."""
        self.shard_count = len(loaded.shards)
        """Files that are used."""
        self._paths = [shard.path for shard in loaded.shards]
        self._sizes = [shard.size for shard in loaded.shards]
        self._names = short_names(self._paths)
        self._ends = list(accumulate(shard.samples for shard in loaded.shards))
        self._start()

    def _start(self) -> None:
        """Open files, which every process has of its own."""
        self._open: OrderedDict[int, _OpenShard] = OrderedDict()
        self._indexes = Indexes()
        self._lock = threading.Lock()
        self._reads = 0
        self._opens, self._most = RECOUNT, OPEN_SHARDS

    def __getstate__(self) -> dict[str, Any]:
        """Open files stay in this process."""
        return {name: value for name, value in vars(self).items() if name not in ("_open", "_lock", "_indexes")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._start()

    @property
    def waits(self) -> bool:
        """True: each example is a request to a store."""
        return by_ranges(self._paths)

    @property
    def shards(self) -> dict[str, int]:
        """Bytes of each shard, by name."""
        return dict(zip(self._names, self._sizes, strict=True))

    @property
    def shard_paths(self) -> list[str]:
        """Path or address of each shard."""
        return self._paths

    @property
    def shard_ends(self) -> list[int]:
        """Number of samples up to the end of each shard."""
        return self._ends

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> LazyExample:
        if not 0 <= index < len(self):
            raise IndexError(f"webdataset has no example {index}; it has {len(self)}")
        number = bisect_right(self._ends, index)
        shard = self._shard(number)
        name, members = shard.index.sample(index - (self._ends[number - 1] if number else 0))
        file = shard.file.around([(offset, size) for _, offset, size in members])
        readers = {extension: partial(_read, file, extension, offset, size) for extension, offset, size in members}
        return lazy_example(f"{self._names[number]}:{printable(name)}", readers, self.lines)

    def fingerprint(self) -> str:
        """See Source: over the shards' bytes, in order."""
        return combine("webdataset", *file_digests(self._paths))

    def _shard(self, number: int) -> "_OpenShard":
        """Shard `number`, open. One that is closed here lives on until its last reader lets go of it."""
        shard = self._open.get(number)
        if shard is None or shard.copied != is_copied(self._paths[number]):
            samples = self._ends[number] - (self._ends[number - 1] if number else 0)
            shard = _OpenShard(self._paths[number], self._indexes, samples)
            self._opens += 1
        with self._lock:
            self._reads += 1
            if self._reads % LET_GO == 0:
                for other in [other for other, opened in self._open.items() if is_deleted(opened.file)]:
                    del self._open[other]
            if self._open.setdefault(number, shard).copied != shard.copied:
                self._open[number] = shard
            shard = self._open[number]
            self._open.move_to_end(number)
            if self._opens >= RECOUNT:
                self._most, self._opens = most_open(len(self._open)), 0
            while len(self._open) > self._most:
                self._open.popitem(last=False)
        return shard


def most_open(held: int) -> int:
    """OPEN_SHARDS, or less where a process may have few files open: a shard takes two, of half of those that others leave.

    Args:
        held: shards that are open now.
    """
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit == resource.RLIM_INFINITY:
        return OPEN_SHARDS
    try:
        others = len(os.listdir("/proc/self/fd")) - 2 * held
    except OSError:  # no Linux
        others = limit // 2
    return max(1, min(OPEN_SHARDS, (limit - others) // 4))


def printable(name: str) -> str:
    """A member's name as one line of text: bytes that are no UTF-8 and control characters are escaped."""
    text = name.encode("utf-8", "backslashreplace").decode()
    return text if text.isprintable() else text.encode("unicode_escape").decode()


def lazy_example(key: str, members: Mapping[str, Callable[[], Any]], lines: bool) -> LazyExample:
    """An example of members, by extension the function that reads each; `lines`: each line of its text is a caption."""
    readers: dict[str, Callable[[], Any]] = {}
    for extension, read in members.items():
        field = FIELDS.get(extension, extension)
        if field != "key":
            readers.setdefault(field, read)
    if "image" not in readers and (rare := next((extension for extension in readers if extension in RARE_IMAGES), None)):
        readers["image"] = readers[rare]
    sounds = [readers[extension] for extension in readers if extension in SOUNDS]
    aliases = {"sound": sounds[0]} if sounds and "sound" not in readers else {}
    if lines and "text" in readers:
        readers |= text_readers(readers["text"], lines=True)
    return LazyExample(key, readers, aliases)


class _OpenShard:
    """A shard's file and index. Raises BadExample where it is not what it was when the source was opened, or Unreachable."""

    def __init__(self, path: str, indexes: Indexes, samples: int) -> None:
        self.copied = is_copied(path)
        try:
            self.file = open_file(path)
            self.index = indexes.read(path, self.file.state)
        except NotTar as error:
            raise BadExample(f"its shard {path} cannot be read: {error}") from None
        except OSError as error:
            raise unread(f"its shard {path} cannot be read: {error}", error) from None
        if len(self.index) != samples:
            raise BadExample(f"its shard {path} was changed: it had {samples} samples, and has {len(self.index)}")


def _read(file: File, extension: str, offset: int, size: int) -> Any:
    """The decoded value of one member."""
    if size > MAX_BYTES:
        raise BadExample(f"its .{extension} has {size} bytes, more than {MAX_BYTES}")
    try:
        value = file.read(offset, size)
    except OSError as error:
        raise unread(f"its .{extension} cannot be read: {error}", error) from None
    if len(value) != size:
        raise BadExample(f"its shard ends within its .{extension}: the shard was changed while it was read")
    return decoded(extension, value)


def decoded(extension: str, value: bytes) -> Any:
    """The value of a member by its extension: texts, labels and JSON are read, all else stays bytes. Raises BadExample."""
    match FIELDS.get(extension):
        case "text":
            return decode_text(value)
        case "label":
            try:
                return int(value)
            except ValueError:
                raise BadExample(f"label is not a whole number: {value[:40]!r}") from None
        case "json":
            try:
                return json.loads(value)
            except (ValueError, RecursionError) as error:
                raise BadExample(f"json cannot be parsed: {error}") from None
    return value


def open_shards(paths: list[str], pattern: str, lines: bool = False) -> WebDataset:
    """Opens the shards at `paths`, in that order; `pattern` is what an error names. Raises SourceError as `open_webdataset`."""
    loaded = load_shards(paths)
    if not any(shard.samples for shard in loaded.shards):
        reasons = [*loaded.skipped[:3], *(f"{count} {what}" for what, count in loaded.total("left_out").items())]
        raise SourceError(
            f"source 'webdataset:{shown(pattern)}': no sample in {len(paths)} files: {'; '.join(reasons) or 'all are empty'}"
        )
    source = WebDataset(loaded, lines)
    if source.left_out:
        log.warning("left out of the shards: %s", "; ".join(f"{count} {what}" for what, count in source.left_out.items()))
    return source
