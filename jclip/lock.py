"""The lock on a workdir: one run at a time writes there. It holds on storage that hosts share, and does not outlive its run."""

import hashlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from jclip.files import read_whole

FILE = "run.lock"

BEAT = 10.0
"""Seconds between two signs of life of the run that holds a lock."""

SILENT = 60.0
"""Seconds without one, after which the lock of another machine counts as left behind."""


class LockedWorkdir(RuntimeError):
    """Another run writes to the workdir; the message says which."""


class Hold:
    """The lock while a run holds it: a thread gives signs of life, and `check` says whether it still is this run's.

    A run that is paused (a frozen container, a suspended machine, storage that does not answer) gives no signs. Another one may
    take its lock then, train on and end before the first wakes up, which must write nothing any more.
    """

    def __init__(self, path: Path, owner: dict[str, Any], beat: float, silent: float) -> None:
        self._path, self._owner, self._beat, self._silent = path, owner, beat, silent
        self._ended = threading.Event()
        threading.Thread(target=self._give_signs, daemon=True).start()

    def check(self) -> None:
        """Raises LockedWorkdir if another run has taken the lock, or had it and has ended."""
        try:
            holder = self._holder()
        except OSError:  # the storage's fault, which says nothing of the lock; whatever is to be written will fail by itself
            return
        if holder is not None and holder.get("id") == self._owner["id"]:
            return
        who = "another run" if not holder else f"process {holder.get('pid')} on {holder.get('host')}"
        raise LockedWorkdir(
            f"{self._path} was taken over by {who}, because this run gave no sign of life for {self._silent:.0f} s "
            "(was it paused?); it ends here and writes nothing more; the same command goes on from the last checkpoint once the "
            "other has ended"
        )

    def release(self) -> None:
        """Removes the lock, unless it is another run's."""
        self._ended.set()
        holder = self._holder()
        if holder is not None and holder.get("id") == self._owner["id"]:
            with suppress(OSError):
                self._path.unlink()

    def _holder(self) -> dict[str, Any] | None:
        content = _read(self._path)
        return None if content is None else parse(content)

    def _give_signs(self) -> None:
        """Signs of life, until the lock is released, or another run's: this one was taken for dead."""
        last = time.time()  # which goes on while the machine is suspended
        while not self._ended.wait(self._beat):
            with suppress(OSError):
                holder, now = self._holder(), time.time()
                if holder is None and now - last < self._silent / 2:
                    _create(self._path, self._owner)  # somebody removed the lock of a run that lives
                elif holder is None or holder.get("id") != self._owner["id"]:
                    return
                os.utime(self._path)
                last = now


@contextmanager
def lock(
    workdir: Path, *, beat: float = BEAT, silent: float = SILENT, say: Callable[[str], object] = lambda message: None
) -> Iterator[Hold]:
    """Holds W/run.lock: who has it, as JSON. It is made in one step, so that of two that try at once one succeeds.

    A lock is left behind if its process is gone, on this machine; or if it has given no sign of life for `silent` seconds, on
    another one, which is waited for, and `say` is called. Such a lock is taken over.

    Raises:
        LockedWorkdir: another run holds it.
        OSError: nothing can be written to the workdir.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    path, owner = workdir / FILE, this_process()
    _acquire(path, owner, silent, say)
    hold = Hold(path, owner, beat, silent)
    try:
        yield hold
    finally:
        hold.release()


def _acquire(path: Path, owner: dict[str, Any], silent: float, say: Callable[[str], object]) -> None:
    """Makes the lock, after the removal of one that was left behind; LockedWorkdir if its holder lives."""
    while not _create(path, owner):
        try:
            content = _read(path)
        except OSError as error:
            raise LockedWorkdir(
                f"{path} cannot be read ({error.strerror}); remove it, if no run writes to {path.parent}"
            ) from None
        if content is None:
            continue  # let go of in this moment
        holder = parse(content)
        if holder.get("machine") != owner["machine"]:
            say(
                f"{path} is of process {holder.get('pid')} on {holder.get('host')}; "
                f"waiting for a sign of life, {silent:.0f} s at most"
            )
        if _is_alive(path, content, holder, owner, silent):
            raise LockedWorkdir(
                f"{path.parent} is in use by process {holder.get('pid')} on {holder.get('host')}, since {holder.get('start')}; "
                f"wait for it or stop it, or give another --workdir (if no such process runs anywhere, remove {path})"
            )
        # Only who holds the lock on the removal of this very lock may remove it. Of two that found it left behind, the slower one
        # would otherwise remove what the faster one has made since.
        removal = path.with_name(f".{FILE}-removal-{hashlib.sha256(content).hexdigest()[:32]}")
        _acquire(removal, owner, silent, say)
        try:
            if _read(path) == content:
                path.unlink(missing_ok=True)
        finally:
            removal.unlink(missing_ok=True)


def this_process() -> dict[str, Any]:
    """Identity of this process: host, number, and the start time that no later process of that number shares."""
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "start": time.strftime("%Y-%m-%d %H:%M:%S"),
        "machine": _machine(),
        "born": _born(os.getpid()),
        "id": uuid.uuid4().hex,
    }


def _machine() -> str:
    """Identity shared by processes that can see each other: the machine, since it was started, and the container."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def _born(pid: int) -> str:
    """Start of a process, in ticks since the machine was started; "" where that cannot be known."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def _create(path: Path, owner: dict[str, Any]) -> bool:
    """Makes the lock with all that it says, in one step; False where there is one."""
    part = path.with_name(f".{FILE}-{owner['id']}")
    part.write_text(json.dumps(owner))
    try:
        os.link(part, path)  # atomic also where O_EXCL is not (NFS)
    except FileExistsError:
        return False
    except OSError:  # a file system without hard links
        return _create_exclusively(path, owner)
    finally:
        part.unlink()
    return True


def _create_exclusively(path: Path, owner: dict[str, Any]) -> bool:
    try:
        with path.open("x") as file:
            file.write(json.dumps(owner))
    except FileExistsError:
        return False
    return True


def _read(path: Path) -> bytes | None:
    try:
        return read_whole(path)
    except FileNotFoundError:
        return None


def parse(content: bytes) -> dict[str, Any]:
    """Contents of a lock; empty where it is damaged, as by a full disk."""
    try:
        holder = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return holder if isinstance(holder, dict) else {}


def _is_alive(path: Path, content: bytes, holder: dict[str, Any], owner: dict[str, Any], silent: float) -> bool:
    if holder.get("machine") == owner["machine"]:
        return runs_here(holder)
    first = _age(path)
    while (age := _age(path)) is not None and age < silent and _read(path) == content:
        if first is not None and age < first:  # it has given a sign of life since
            return True
        time.sleep(min(1.0, silent / 10))
    return _read(path) not in (content, None)  # another one was faster


def runs_here(holder: Mapping[str, Any]) -> bool:
    """True where the holder of a lock, a process of this machine, has not ended."""
    pid = holder.get("pid")
    return isinstance(pid, int) and _exists(pid) and _born(pid) == holder.get("born")


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _age(path: Path) -> float | None:
    """Seconds since the last sign of life, both by the clock of the file system; None where the lock is gone."""
    probe = path.with_name(f".{FILE}-{uuid.uuid4().hex}")
    try:
        probe.touch()
        with path.open("rb") as file:  # opening asks the server of shared storage anew
            return probe.stat().st_mtime - os.fstat(file.fileno()).st_mtime
    except FileNotFoundError:
        return None
    finally:
        probe.unlink(missing_ok=True)
