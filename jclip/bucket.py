"""A folder in a bucket: its files are listed, put, fetched and removed, each tried again where the store does not answer."""

import errno
import json
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from jclip.data.addresses import Address
from jclip.data.answers import Transient
from jclip.data.caches import cache_folder, write_atomically
from jclip.data.remote import persistently
from jclip.data.stores import Store, deadline
from jclip.files import read_whole

T = TypeVar("T")

COMPLETE = "complete"
"""Folder of a run's bucket with STEP.json for each checkpoint that is whole there: {file: bytes}. It is written last."""

CHECKPOINTS = "checkpoints"
LOCK = "run.lock"
STATE = ".bucket.json"
"""File of a local copy that says of which bucket it is, which checkpoints that had, and which local files these were."""

TOKEN = ".bucket-run"
"""File of a local copy with a number that is drawn anew for each start."""

FileState = tuple[int, int]
"""Bytes of a local file, and its time of modification in ns: another file has another one."""

AT_A_TIME = 8
"""Files that are copied at a time."""

OLD_SECONDS = 86400.0
"""Age from which the copy of a state of a bucket is removed, when another one is fetched."""

SMALL = 1 << 24
"""Bytes of the largest list of files that is read."""


class Bucket:
    """A folder in a bucket of S3 or Google Cloud Storage. All methods raise OSError (jclip.data.answers) or Missing."""

    def __init__(self, address: str) -> None:
        self.address = address.rstrip("/")

    def files(self) -> dict[str, int]:
        """Bytes of each file, by its path below the folder."""

        def look(store: Any) -> dict[str, int]:
            store.forget()
            found = store.ask(store.fs._find, self.address, detail=True)
            above = len(store.fs._strip_protocol(self.address)) + 1
            return {path[above:]: int(info["size"]) for path, info in found.items() if info["type"] == "file"}

        found = self._ask("", look)
        if odd := [name for name in found if not _is_below(name)]:
            raise OSError(f"{self.address} has files of unusable names, such as {odd[0]!r}")
        return found

    def read(self, name: str) -> bytes | None:
        """The bytes of a small file; None where there is none."""
        try:
            return self._ask(name, lambda store: store.whole(self._at(name), SMALL))
        except OSError as error:
            if error.errno == errno.ENOENT:
                return None
            raise

    def write(self, name: str, content: bytes) -> None:
        """Puts a file there, whole or not at all."""
        self._ask(name, lambda store: store.ask(store.fs._pipe_file, self._at(name), content, seconds=deadline(len(content))))

    def put(self, name: str, path: Path) -> int:
        """Puts a local file there, whole or not at all; returns its bytes."""
        size = path.stat().st_size
        self._ask(name, lambda store: store.ask(store.fs._put_file, str(path), self._at(name), seconds=deadline(size)))
        return size

    def fetch(self, name: str, size: int, path: Path) -> None:
        """Fetches a file of so many bytes."""

        def get(part: Path, store: Any) -> None:
            store.ask(store.fs._get_file, self._at(name), str(part), seconds=deadline(size))
            if (have := part.stat().st_size) != size:
                raise Transient(f"{have} bytes came of {size}")

        write_atomically(path, lambda part: self._ask(name, partial(get, part)))

    def remove(self, name: str) -> None:
        """Removes a file; one that is gone already is no error."""
        try:
            self._ask(name, lambda store: store.ask(store.fs._rm_file, self._at(name)))
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise

    def _at(self, name: str) -> str:
        return f"{self.address}/{name}" if name else self.address

    def _ask(self, name: str, request: Callable[[Any], T]) -> T:
        def ask(store: Store) -> T:
            return request(store)

        return persistently(Address(self._at(name)), ask)


def each(function: Callable[[T], object], over: Collection[T]) -> None:
    """Calls a function for each, several at a time; raises the first error."""
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        for _ in pool.map(function, over):
            pass


def complete_steps(bucket: Bucket, files: Mapping[str, int]) -> dict[int, dict[str, int]]:
    """The files of each checkpoint that is whole in the bucket, with their bytes.

    Raises:
        OSError: the list of one cannot be read, or the bucket has not what it says.
    """
    found: dict[int, dict[str, int]] = {}
    for name in files:
        folder, _, step = name.removesuffix(".json").partition("/")
        if folder != COMPLETE or not step.isdigit():
            continue
        try:
            listed = {str(path): int(size) for path, size in json.loads(bucket.read(name) or b"").items()}
        except (ValueError, TypeError, AttributeError, RecursionError):
            raise OSError(f"{bucket.address}/{name} is damaged; remove it, and the checkpoint counts as incomplete") from None
        at = f"{CHECKPOINTS}/{step}/"
        if wrong := [path for path, size in listed.items() if not path.startswith(at) or files.get(path) != size]:
            raise OSError(
                f"{bucket.address}/{wrong[0]} is missing or not as long as {name} says; remove {name}, and that checkpoint "
                "counts as incomplete"
            )
        found[int(step)] = listed
    return found


def copied_states(folder: Path) -> dict[str, FileState] | None:
    """The states in STATE of the files of checkpoints; None where an older jclip has written it."""
    try:
        return {str(name): (int(size), int(mtime)) for name, (size, mtime) in read_state(folder)["files"].items()}
    except (AttributeError, KeyError, TypeError, ValueError):
        return None


def digest_of(steps: Mapping[int, Mapping[str, int]]) -> dict[str, str]:
    """Digests of the lists of files, by step."""
    return {str(step): sha256(json.dumps(sorted(files.items())).encode()).hexdigest() for step, files in steps.items()}


def read_state(folder: Path) -> dict[str, Any]:
    """Content of STATE; {} where there is none."""
    try:
        state = json.loads(read_whole(folder / STATE))
    except (OSError, ValueError, RecursionError):
        return {}
    return state if isinstance(state, dict) else {}


def write_state(folder: Path, address: str, complete: Sequence[Mapping[str, str]], files: Mapping[str, FileState]) -> None:
    """Writes STATE: the digests of the bucket's lists by step, and the states of the local files that they name.

    While the bucket is being changed there are two `complete`, before and after: a run that is killed meanwhile has a copy of
    either.
    """
    text = json.dumps({"address": address, "complete": complete, "files": files})
    write_atomically(folder / STATE, lambda part: part.write_text(text, encoding="utf-8"))


def write_token(folder: Path) -> None:
    """Writes TOKEN."""
    write_atomically(folder / TOKEN, lambda part: part.write_text(str(1 + secrets.randbits(30)), encoding="utf-8"))


def read_token(folder: Path) -> int:
    """The number in TOKEN; 0 where there is none."""
    try:
        return int(read_whole(folder / TOKEN))
    except (OSError, ValueError):
        return 0


def is_copy(folder: Path, address: str, complete: Mapping[str, str]) -> bool:
    """True where a folder has the checkpoints of a bucket, which no other machine has gone on with since."""
    state = read_state(folder)
    known = state.get("complete")
    there = all((folder / CHECKPOINTS / step).is_dir() for step in complete)
    return there and state.get("address") == address and complete in (known if isinstance(known, list) else [known])


def fetch_run(bucket: Bucket, folder: Path, files: Mapping[str, int], steps: Mapping[int, Mapping[str, int]]) -> None:
    """Makes a local folder what the bucket has: all checkpoints that are whole, and all other files."""
    wanted = {name: size for name, size in files.items() if name.split("/")[0] not in (CHECKPOINTS, COMPLETE, LOCK)}
    for listed in steps.values():
        wanted |= listed
    each(lambda name: bucket.fetch(name, wanted[name], folder / name), list(wanted))
    (folder / CHECKPOINTS).mkdir(parents=True, exist_ok=True)


def local_run(address: str) -> Path:
    """A copy of a run in a bucket, in the cache: one for each state that the bucket has had.

    Raises:
        OSError: there is no run, or it cannot be read.
    """
    bucket = Bucket(address)
    files = bucket.files()
    steps = complete_steps(bucket, files)
    if not steps:
        raise OSError(
            f"{bucket.address} holds no run of jclip with a whole checkpoint; give the --workdir of one, or copy weights to a "
            "folder"
        )
    state = json.dumps(sorted((name, size) for name, size in files.items() if name != LOCK)) + json.dumps(digest_of(steps))
    place = cache_folder("fetched") / sha256(bucket.address.encode()).hexdigest()[:20]
    folder = place / sha256(state.encode()).hexdigest()[:20]
    if folder.is_dir():
        return folder
    place.mkdir(parents=True, exist_ok=True)
    _remove_old(place)
    with tempfile.TemporaryDirectory(dir=place, prefix=".part-") as part:
        fetch_run(bucket, Path(part, "run"), files, steps)
        try:
            os.rename(Path(part, "run"), folder)
        except OSError:
            if not folder.is_dir():  # another process was faster
                raise
    return folder


def _remove_old(place: Path) -> None:
    """Removes the copies that are older than OLD_SECONDS: nobody reads them any more."""
    for path in place.iterdir():
        if time.time() - path.stat().st_mtime > OLD_SECONDS:
            shutil.rmtree(path, ignore_errors=True)


def clear(folder: Path, but: Collection[str] = ()) -> None:
    """Removes what is in a folder, except files of some names."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.name in but:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _is_below(name: str) -> bool:
    """True for a path that stays in its folder."""
    return (
        bool(name) and "\\" not in name and not os.path.isabs(name) and ".." not in PurePosixPath(name).parts and "\0" not in name
    )
