"""The source `arrayrecord`: files of array_record whose records are tf.train.Example, as `jclip pack` and others write them."""

import json
import os
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from jclip.data.addresses import is_address, shown
from jclip.data.files import MAX_BYTES
from jclip.data.fingerprint import combine, file_digests
from jclip.data.patterns import expand, short_names
from jclip.data.samples import FIELDS
from jclip.data.source import BadExample, LazyExample, SourceError, split_options
from jclip.data.storage import state_at
from jclip.data.tf_example import Values, decode, encode
from jclip.data.webdataset import decoded, lazy_example, most_open, printable
from jclip.files import read_whole

ENDING = ".array_record"
"""End of the names of files."""

KEY = "__key__"
"""Feature that is the key of a record, as webdataset names it."""

MANIFEST = "manifest.json"
"""File of `jclip pack` beside the shards."""

AT_RANDOM = "readahead_buffer_size:0,max_parallelism:0"
"""Options of a reader of single records."""


class ArrayRecords:
    """The records of array_record files, in the order of the files' names.

    A feature is a field by its name, as a member of a tar by its extension (see jclip.data.samples): jpg is "image", txt "text",
    cls "label". Features of one number are numbers, of several arrays (f32 or i64), and bytes stay bytes, of several a tuple.
    Keys are "SHARD:KEY" by the feature __key__, or "SHARD:NUMBER" of the record.
    """

    templates: tuple[str, ...]
    """Prompts of the manifest, with {} for the name of a class."""

    def __init__(
        self, paths: Sequence[str], counts: Sequence[int], lines: bool, classes: Sequence[str] = (), templates: Sequence[str] = ()
    ) -> None:
        self.lines, self.classes, self.templates = lines, tuple(classes), tuple(templates)
        self.shard_paths = list(paths)
        """Path of each shard."""
        self.shard_ends = list(accumulate(counts))
        """Number of records up to the end of each shard."""
        self._states = [state_at(path) for path in paths]
        self._names = short_names(self.shard_paths)
        self._start()

    def _start(self) -> None:
        """Open files, which every process has of its own."""
        self._open: OrderedDict[int, Any] = OrderedDict()
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        """Open files stay in this process."""
        return {name: value for name, value in vars(self).items() if name not in ("_open", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._start()

    @property
    def shards(self) -> dict[str, int]:
        """Bytes of each shard, by name."""
        return {name: state[0] for name, state in zip(self._names, self._states, strict=True)}

    def __len__(self) -> int:
        return self.shard_ends[-1]

    def __getitem__(self, index: int) -> LazyExample:
        if not 0 <= index < len(self):
            raise IndexError(f"arrayrecord has no example {index}; it has {len(self)}")
        number = bisect_right(self.shard_ends, index)
        place = index - (self.shard_ends[number - 1] if number else 0)
        try:
            features = decode(self._reader(number).read([place])[0])
        except (RuntimeError, ValueError) as error:  # of array_record, and of `decode`
            raise BadExample(f"record {place} of {self.shard_paths[number]} cannot be read: {str(error)[:200]}") from None
        key = features.pop(KEY, [])
        name = key[0].decode("utf-8", "backslashreplace") if key and isinstance(key[0], bytes) else str(place)
        readers: dict[str, Callable[[], Any]] = {}
        for extension, values in features.items():
            if FIELDS.get(extension, extension) != "key":
                readers[extension] = partial(_value, extension, values)
        return lazy_example(f"{self._names[number]}:{printable(name)}", readers, self.lines)

    def fingerprint(self) -> str:
        """See Source: over the shards' bytes, in order, and the names of the classes."""
        return combine("arrayrecord", *file_digests(self.shard_paths), *self.classes)

    def _reader(self, number: int) -> Any:
        """A shard, open. One that is closed here lives on until its last reader lets go of it."""
        with self._lock:
            if (reader := self._open.get(number)) is None:
                path = self.shard_paths[number]
                try:
                    state = state_at(path)
                except OSError as error:
                    raise BadExample(f"its shard {path} cannot be read: {error.strerror}") from None
                if state != self._states[number]:
                    raise BadExample(f"its shard {path} was changed since it was opened")
                reader = self._open[number] = _module().ArrayRecordReader(path, AT_RANDOM)
                while len(self._open) > most_open(len(self._open)):
                    self._open.popitem(last=False)
            self._open.move_to_end(number)
        return reader


def _value(extension: str, values: Values) -> Any:
    """The value of a feature."""
    one = values[0] if len(values) == 1 else None
    if isinstance(one, bytes):
        if len(one) > MAX_BYTES:
            raise BadExample(f"its .{extension} has {len(one)} bytes, more than {MAX_BYTES}")
        return decoded(extension, one)
    if one is not None:
        return one
    if not values:
        raise BadExample(f"its .{extension} has no value")
    if isinstance(values[0], bytes):
        return tuple(decoded(extension, value) for value in values if isinstance(value, bytes))
    return np.array(values, np.int64 if isinstance(values[0], int) else np.float32)


def _module() -> Any:
    """The module of array_record, which is imported where it is asked for.

    Raises:
        SourceError: it cannot be.
    """
    try:
        from array_record.python import array_record_module
    except ImportError as error:
        raise SourceError(f'array_record cannot be imported ({error}); pip install "jclip[tfds]"') from None
    return array_record_module


@contextmanager
def writing(path: Path) -> Iterator[Callable[[list[tuple[str, bytes]]], None]]:
    """A function that adds an example, as members KEY.EXTENSION, to a new file. Raises SourceError, OSError."""
    writer = _module().ArrayRecordWriter(str(path), "group_size:1,uncompressed")  # each record by itself; images are compressed

    def add(members: list[tuple[str, bytes]]) -> None:
        key = members[0][0].partition(".")[0]
        writer.write(encode({KEY: key.encode(), **{name.partition(".")[2]: data for name, data in members}}))
        if not writer.ok():
            raise OSError(f"array_record cannot write {path}; is there room on the disk?")

    try:
        yield add
        writer.close()
    except RuntimeError as error:  # of array_record
        raise OSError(f"array_record cannot write {path}: {error}") from None
    finally:
        with suppress(RuntimeError):
            writer.close()


def count(path: str | Path) -> int:
    """Number of records of a file; -1 where it is none, or cut short."""
    try:
        reader = _module().ArrayRecordReader(str(path), AT_RANDOM)
        found = int(reader.num_records()) if reader.ok() else -1
        reader.close()
    except RuntimeError:  # whatever is wrong with the file
        return -1
    return found


def open_array_records(spec: str) -> ArrayRecords:
    """Opens "DIR[?captions=lines]", all *.array_record of a folder, or "PATTERN[?captions=lines]", see jclip.data.patterns.

    Where the folder is one of `jclip pack`, its manifest says which files there are, how large, and the names of the classes.

    Raises:
        SourceError: the package is missing; there is no such file, or it is cut short or no array_record; the manifest is
            damaged, or says of something else; no such option.
    """
    at = f"source 'arrayrecord:{shown(spec)}'"
    name, options = split_options(spec, ("captions",))
    if options.get("captions", "lines") != "lines":
        raise SourceError(f"{at}: captions={options['captions']} is unknown; use captions=lines")
    if is_address(name):
        raise SourceError(f"{at}: addresses are not read by array_record; fetch the files, or pack the set as webdataset")
    folder, classes, templates = Path(os.path.expanduser(name)), list[str](), list[str]()
    if not folder.is_dir():
        paths = expand(name, "arrayrecord")
    elif (folder / MANIFEST).exists():
        paths, classes, templates = _packed(at, folder)
    else:
        paths = sorted(str(path) for path in folder.glob(f"*{ENDING}"))
        if not paths:
            raise SourceError(f"{at}: there is no *{ENDING} in it; give a pattern of the files")
    counts = [count(path) for path in paths]
    if broken := [path for path, records in zip(paths, counts, strict=True) if records < 0]:
        raise SourceError(f"{at}: {broken[0]} is cut short, or no array_record; get this file again")
    if not sum(counts):
        raise SourceError(f"{at}: no record in {len(paths)} files")
    return ArrayRecords(paths, counts, "captions" in options, classes, templates)


def _packed(at: str, folder: Path) -> tuple[list[str], list[str], list[str]]:
    """Paths, classes and templates of a folder that `jclip pack` has written."""
    place = folder / MANIFEST
    try:
        known = json.loads(read_whole(place))
        shards = {
            str(name): (int(facts["bytes"]), facts["examples"] + facts["broken"]) for name, facts in known["shards"].items()
        }
        total, classes, templates = int(known["examples"]), *(list(map(str, known.get(n, []))) for n in ("classes", "templates"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise SourceError(f"{at}: {place} is damaged ({error}); pack the set again, or take this file away") from None
    if sum(count for _, count in shards.values()) != total:
        raise SourceError(f"{at}: {place} says that some of {total:,} examples are not packed yet; go on with `jclip pack`")
    for name, (size, _) in shards.items():
        if os.path.basename(name) != name or not name.endswith(ENDING):
            raise SourceError(f"{at}: {place} names {name[:200]!r}, which is no *{ENDING} beside it")
        if not (folder / name).is_file() or (folder / name).stat().st_size != size:
            raise SourceError(f"{at}: {folder / name} is not of {size:,} bytes, as {MANIFEST} says; go on with `jclip pack`")
    return [str(folder / name) for name in sorted(shards)], classes, templates
