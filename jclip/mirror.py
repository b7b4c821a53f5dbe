"""A run whose workdir is in a bucket: it is trained in a folder of this machine, which is copied to the bucket meanwhile.

Checkpoints need a disk that can rename and append, which no bucket can. So all of a run is as ever in a local folder, and a
thread keeps the bucket up with it. What counts is the bucket: a checkpoint is there once its list of files is, which is written
last, and any machine goes on from the last such one.
"""

import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from jclip.bucket import (
    CHECKPOINTS,
    COMPLETE,
    LOCK,
    Bucket,
    clear,
    complete_steps,
    digest_of,
    each,
    fetch_run,
    is_copy,
    write_state,
    write_token,
)
from jclip.bucket_lock import BucketLock
from jclip.data.caches import cache_folder

EVERY = 15.0
"""Seconds between two looks at what is new in the local folder."""

LEFT_OUT = re.compile(rf"^(\.|{re.escape(LOCK)}|{COMPLETE}/)|(^|/)\.jclip-|\.tmp$|\.orbax-checkpoint-tmp")
"""Files that are not copied: locks and hidden files, what is being written, and the lists of files, which are written here."""


OF_A_RUN = (CHECKPOINTS, COMPLETE, "config.json", "metrics.jsonl", "evaluations.json", "tensorboard", "set_aside")
"""Files and folders, one of which shows that a folder of a bucket is that of a run."""


class NotCopied(RuntimeError):
    """A run has ended, and its last files are not in the bucket; the message says where they are."""


def local_folder(address: str) -> Path:
    """The local folder of a run in a bucket: in $JCLIP_CACHE/runs, or in the user's cache."""
    return cache_folder("runs") / hashlib.sha256(address.rstrip("/").encode()).hexdigest()[:20]


class Mirror:
    """Copies a local folder to a bucket, in a thread, until it is closed."""

    def __init__(self, bucket: Bucket, folder: Path, say: Callable[[str], object], check: Callable[[], object]) -> None:
        """
        Args:
            bucket: where the run is kept.
            folder: where it is trained.
            say: shows a message.
            check: raises where the bucket is another run's by now.
        """
        self._bucket, self._folder, self._say, self._check = bucket, folder, say, check
        self._there: dict[str, tuple[int, int]] = {}
        """Size and mtime of each file of the run when it was copied; of what was there before (size, -1)."""
        self._steps: dict[int, dict[str, int]] = {}
        self._ended, self._problem = threading.Event(), ""

    def begin(self) -> None:
        """Makes the local folder what the bucket is, unless it is a copy with which no other machine has gone on.

        Raises:
            OSError: the bucket cannot be read, or holds files and no run.
        """
        files = {name: size for name, size in self._bucket.files().items() if name != LOCK}
        if files and not any(name.split("/")[0] in OF_A_RUN for name in files):
            some = next(iter(files))
            raise OSError(f"it holds {len(files):,} files of something else, such as {some}; give a folder of its own")
        self._steps = complete_steps(self._bucket, files)
        complete = digest_of(self._steps)
        if not is_copy(self._folder, self._bucket.address, complete):
            clear(self._folder, but=(LOCK,))
            if self._steps:
                at = ", ".join(f"{step:,}" for step in sorted(self._steps))
                self._say(f"fetching the checkpoints of {self._bucket.address} (step {at}) to {self._folder}")
            fetch_run(self._bucket, self._folder, files, self._steps)
            write_state(self._folder, self._bucket.address, complete)
        write_token(self._folder)
        # Other files that somebody has put there are left alone; of a checkpoint that a killed run did not finish nothing stays.
        ours = [name for name in files if self._of_step(name) or (self._folder / name).is_file()]
        self._there = {name: (files[name], -1) for name in ours if not LEFT_OUT.search(name)}
        self._thread = threading.Thread(target=self._go_on, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Copies what is left.

        Raises:
            NotCopied: it could not be done.
        """
        self._ended.set()
        self._thread.join()
        try:
            self._copy()
        except OSError as error:
            raise NotCopied(
                f"the last files of the run are in {self._folder}, and could not be copied to {self._bucket.address}: {error}; "
                "the same command on this machine copies them"
            ) from error

    def _go_on(self) -> None:
        while not self._ended.wait(EVERY):
            try:
                self._copy()
                if self._problem:
                    self._say(f"{self._bucket.address} is up to date again")
                self._problem = ""
            except FileNotFoundError:
                continue  # a file of the folder that was removed meanwhile
            except Exception as error:
                if not self._problem:
                    self._say(f"not copied to {self._bucket.address}: {error}; training goes on, and it is tried again")
                self._problem = str(error)

    def _copy(self) -> None:
        """Brings the bucket up to the folder: whole checkpoints, each ended by its list; what else has changed; removals."""
        self._check()
        now = self._files()
        for step in sorted(self._local_steps(now) - self._steps.keys()):
            self._copy_step(step, now)
        rest = [name for name in now if not self._of_step(name) and self._there.get(name) != now[name]]
        each(lambda name: self._put(name, now[name]), rest)
        self._remove(now)

    def _copy_step(self, step: int, now: dict[str, tuple[int, int]]) -> None:
        names = [name for name in now if name.startswith(f"{CHECKPOINTS}/{step}/")]
        each(lambda name: self._put(name, now[name]), names)
        self._check()
        listed = {name: now[name][0] for name in names}
        self._bucket.write(f"{COMPLETE}/{step}.json", json.dumps(listed, indent=0).encode())
        self._steps[step] = listed
        write_state(self._folder, self._bucket.address, digest_of(self._steps))

    def _put(self, name: str, state: tuple[int, int]) -> None:
        self._bucket.put(name, self._folder / name)
        self._there[name] = state

    def _remove(self, now: dict[str, tuple[int, int]]) -> None:
        """Removes what the folder has no more; of a checkpoint its list first, so that no half of one counts."""
        for step in sorted(self._steps.keys() - self._local_steps(now)):
            self._bucket.remove(f"{COMPLETE}/{step}.json")
            del self._steps[step]
            write_state(self._folder, self._bucket.address, digest_of(self._steps))
        gone = [name for name in self._there if name not in now]
        each(self._bucket.remove, gone)
        for name in gone:
            del self._there[name]

    def _files(self) -> dict[str, tuple[int, int]]:
        """Size and mtime of the files of the folder that are copied, by path."""
        found = {}
        for path in sorted(self._folder.rglob("*")):
            name = path.relative_to(self._folder).as_posix()
            if path.is_file() and not LEFT_OUT.search(name):
                status = path.stat()
                found[name] = (status.st_size, status.st_mtime_ns)
        return found

    def _of_step(self, name: str) -> bool:
        return name.startswith(f"{CHECKPOINTS}/")

    def _local_steps(self, now: dict[str, tuple[int, int]]) -> set[int]:
        steps = {name.split("/")[1] for name in now if self._of_step(name)}
        return {int(step) for step in steps if step.isdigit()}


@contextmanager
def mirrored(address: str, folder: Path, say: Callable[[str], object]) -> Iterator[Callable[[], object]]:
    """Keeps a bucket up with a local folder; yields what raises LockedWorkdir where another run has the bucket by now.

    Raises:
        LockedWorkdir: another run writes to the bucket.
        NotCopied: at the end, where the last files could not be copied.
        OSError: the bucket cannot be read or written.
    """
    bucket = Bucket(address)
    with ExitStack() as stack:
        lock = BucketLock(bucket, say)
        stack.callback(lock.release)
        mirror = Mirror(bucket, folder, say, lock.check)
        mirror.begin()
        stack.callback(mirror.close)
        yield lock.check
