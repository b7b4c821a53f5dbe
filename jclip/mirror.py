"""A run whose workdir is in a bucket: it is trained in a folder of this machine, which is copied to the bucket meanwhile.

Checkpoints need a disk that can rename and append, which no bucket can. So all of a run is as ever in a local folder, and a
thread keeps the bucket up with it. What counts is the bucket: a checkpoint is there once its list of files is, which is written
last, and any machine goes on from the last such one.
"""

import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from jclip.bucket import (
    CHECKPOINTS,
    COMPLETE,
    LOCK,
    Bucket,
    FileState,
    clear,
    complete_steps,
    copied_states,
    digest_of,
    each,
    fetch_run,
    is_copy,
    write_state,
    write_token,
)
from jclip.bucket_lock import BucketLock
from jclip.data.caches import cache_folder
from jclip.files import is_run_config

EVERY = 15.0
"""Seconds between two looks at what is new in the local folder."""

MISSED = 3
"""Checkpoints in a row that are removed before they are copied until that is said."""

LEFT_OUT = re.compile(rf"^(\.|{re.escape(LOCK)}|{COMPLETE}/)|(^|/)\.jclip-|\.tmp$|\.orbax-checkpoint-tmp")
"""Files that are not copied: locks and hidden files, what is being written, and the lists of files, which are written here."""


OF_A_RUN = (CHECKPOINTS, COMPLETE, "metrics.jsonl", "evaluations.json", "tensorboard", "set_aside")
"""Files and folders, one of which shows that a folder of a bucket is that of a run, as does a config.json of ours."""


class NotCopied(RuntimeError):
    """A run has ended, and its last files are not in the bucket; the message says where they are."""


def local_folder(address: str) -> Path:
    """The local folder of a run in a bucket: in $JCLIP_CACHE/runs, or in the user's cache."""
    return cache_folder("runs") / hashlib.sha256(address.rstrip("/").encode()).hexdigest()[:20]


class _Gone(Exception):
    """A file of the folder was removed, or replaced, before it was copied."""


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
        self._there: dict[str, FileState] = {}
        """The state of each file of the run when it was copied; of one that was there before, and is none of a checkpoint,
        (size, -1)."""
        self._steps: dict[int, dict[str, int]] = {}
        """The list of files of each checkpoint that counts in the bucket."""
        self._missed = 0
        """Checkpoints in a row that were removed from the folder before they were copied."""
        self._ended, self._problem = threading.Event(), ""

    def begin(self) -> None:
        """Makes the local folder what the bucket is, unless it is a copy with which no other machine has gone on.

        Raises:
            OSError: the bucket cannot be read, or holds files and no run.
        """
        files = {name: size for name, size in self._bucket.files().items() if name != LOCK}
        ours = any(name.split("/")[0] in OF_A_RUN for name in files) or is_run_config(self._bucket.read("config.json") or b"")
        if files and not ours:
            some = next(iter(files))
            raise OSError(f"it holds {len(files):,} files of something else, such as {some}; give a folder of its own")
        self._steps = complete_steps(self._bucket, files)
        complete = digest_of(self._steps)
        known = copied_states(self._folder)
        if not is_copy(self._folder, self._bucket.address, complete):
            clear(self._folder, but=(LOCK,))
            if self._steps:
                at = ", ".join(f"{step:,}" for step in sorted(self._steps))
                self._say(f"fetching the checkpoints of {self._bucket.address} (step {at}) to {self._folder}")
            fetch_run(self._bucket, self._folder, files, self._steps)
            known = None
        if known is None:
            known = {name: state for name, state in self._files().items() if files.get(name) == state[0]}
        write_token(self._folder)
        # Other files that somebody has put there are left alone; of a checkpoint that a killed run did not finish nothing stays.
        kept = [name for name in files if _step_of(name) is not None or (self._folder / name).is_file()]
        self._there = {name: (files[name], -1) for name in kept if not LEFT_OUT.search(name)}
        self._there |= {name: known[name] for listed in self._steps.values() for name in listed if name in known}
        self._write_state(self._steps)
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
        except (OSError, _Gone) as error:
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
            except _Gone:
                continue
            except Exception as error:
                if not self._problem:
                    self._say(f"not copied to {self._bucket.address}: {error}; training goes on, and it is tried again")
                self._problem = str(error)

    def _copy(self) -> None:
        """Brings the bucket up to the folder: whole checkpoints, each ended by its list; what else has changed; removals."""
        self._check()
        now = self._files()
        for step, listed in list(self._steps.items()):
            files = {name: state for name, state in now.items() if _step_of(name) == step}
            if files.keys() != listed.keys() or any(self._there.get(name) != state for name, state in files.items()):
                self._unlist(step)  # it is removed, or being so, or another one has taken its place
        # The newest first: where copying is slower than training, it is the one that counts.
        here = {at for name in now if (at := _step_of(name)) is not None and at >= 0}
        for step in sorted(here - self._steps.keys(), reverse=True):
            self._copy_step(step, now)
        rest = [name for name in now if _step_of(name) is None and self._there.get(name) != now[name]]
        each(lambda name: self._put(name, now[name]), rest)
        gone = [name for name in self._there if name not in now]
        each(self._bucket.remove, gone)
        for name in gone:
            del self._there[name]

    def _copy_step(self, step: int, now: Mapping[str, FileState]) -> None:
        """Copies a checkpoint and lists it, unless it is removed or replaced meanwhile."""
        wanted = {name: state for name, state in now.items() if _step_of(name) == step}
        try:
            each(lambda name: self._put(name, wanted[name]), [name for name in wanted if self._there.get(name) != wanted[name]])
            if {name: state for name, state in self._files().items() if _step_of(name) == step} != wanted:
                raise _Gone(f"{CHECKPOINTS}/{step} was replaced while it was copied")
        except _Gone:
            self._missed += 1
            if self._missed == MISSED:
                last = f"step {max(self._steps):,}" if self._steps else "none"
                self._say(
                    f"{MISSED} checkpoints in a row were removed before they were copied to {self._bucket.address}, which has "
                    f"{last}; save less often (--checkpoint.every) or keep more of them (--checkpoint.keep)"
                )
            return
        self._check()
        self._missed = 0
        listed = {name: size for name, (size, _) in wanted.items()}
        with self._changed({**self._steps, step: listed}):
            self._bucket.write(f"{COMPLETE}/{step}.json", json.dumps(listed, indent=0).encode())

    def _unlist(self, step: int) -> None:
        """Removes the list of a checkpoint, before any of its files, so that no half of one counts."""
        with self._changed({other: listed for other, listed in self._steps.items() if other != step}):
            self._bucket.remove(f"{COMPLETE}/{step}.json")

    @contextmanager
    def _changed(self, steps: dict[int, dict[str, int]]) -> Iterator[None]:
        """Says in the folder what the bucket had before and has after the change of its lists that is made inside."""
        self._write_state(self._steps, steps)
        yield
        self._steps = steps
        self._write_state(steps)

    def _put(self, name: str, state: FileState) -> None:
        try:
            self._bucket.put(name, self._folder / name)
        except OSError:
            if (self._folder / name).exists():
                raise
            raise _Gone(f"{name} was removed before it was copied") from None
        self._there[name] = state

    def _write_state(self, *lists: dict[int, dict[str, int]]) -> None:
        names = {name for steps in lists for listed in steps.values() for name in listed}
        files = {name: self._there[name] for name in sorted(names & self._there.keys())}
        write_state(self._folder, self._bucket.address, [digest_of(steps) for steps in lists], files)

    def _files(self) -> dict[str, FileState]:
        """The states of the files of the folder that are copied, by path."""
        found = {}
        for path in sorted(self._folder.rglob("*")):
            name = path.relative_to(self._folder).as_posix()
            if path.is_file() and not LEFT_OUT.search(name):
                with suppress(FileNotFoundError):  # removed between the two looks
                    status = path.stat()
                    found[name] = (status.st_size, status.st_mtime_ns)
        return found


def _step_of(name: str) -> int | None:
    """The step of the checkpoint that a file is of; None where it is of none, -1 of what is no step."""
    folder, _, rest = name.partition("/")
    step = rest.partition("/")[0]
    return None if folder != CHECKPOINTS else int(step) if step.isdigit() else -1


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
