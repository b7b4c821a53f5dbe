"""Copies of whole remote files in a cache with a limit, and the rule that says when they are made."""

import errno
import fcntl
import hashlib
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from shutil import disk_usage

from jclip.data.addresses import Address, public
from jclip.data.answers import RefusedRequest
from jclip.data.caches import cache_folder, opened_for_blocks
from jclip.data.local_files import LocalFile
from jclip.data.remote import RemoteFile
from jclip.data.source import SourceError

WAY, LIMIT = "JCLIP_REMOTE", "JCLIP_CACHE_GB"
"""Variables of the environment: whole or ranges, in place of the rule; and the limit of the copies."""

USUAL_LIMIT = 50e9
"""Bytes of all copies together where nothing is said. Ways are chosen as if it were no more than half of what the disk has for
them; that is no limit of copies, which would move in a run with all that others write."""

BLOCK = 16 << 20
"""Bytes of a request of a copy."""

RESERVED = 0o100
"""Bit of the mode of a part whose fetcher has room for all of the file; without it, it waits for room."""

_chosen: dict[str, int] = {}
"""Bytes of each file of which this process makes copies, by address; and of the copies that blocks of shards need at a time."""


def choose_way(at: str, addresses: Sequence[Address]) -> tuple[bool, str]:
    """True where the files of a source are read from copies of them as a whole; and a line that says so, and why.

    The rule: copies, if all the files together, with those of the sources that were opened before, are within the limit. Examples
    are drawn from all files alike: of files that do not all find room, nearly every example would fetch one anew.

    Raises:
        SourceError: a file is larger than the limit, and copies are asked for; a variable of the environment is wrong.
    """
    limit, way = _limit(at), asked_way(at)
    total = sum(address.size for address in addresses)
    together = sum(({public(address): address.size for address in addresses} | _chosen).values())
    what = f"{len(addresses):,} files, {_gb(total)} GB,"
    more = f" (with those of other sources {_gb(together)} GB)" if together > total else ""
    copied = f"{what} are copied to {_folder()} when they are first read"
    by_ranges = f"{what} are read by a request for each example or row group"
    if way == "ranges":
        return False, f"{by_ranges}, because of {WAY}=ranges"
    if together > limit and opened_for_blocks():
        return False, f"{what} are copied to {_folder()} a few shards at a time, because data.shuffle is blocks"
    if way == "whole":
        largest = max(addresses, key=lambda address: address.size)
        if largest.size > limit:
            raise SourceError(f"{at}: {largest} has {_gb(largest.size)} GB, more than the {_gb(limit)} GB of copies; set {LIMIT}")
        again = f"; they are more than {LIMIT}={_gb(limit)}, and are fetched again and again" if together > limit else ""
        why = f", because of {WAY}=whole{again}"
    elif together > limit:
        return False, f"{by_ranges}, because{more} they are more than {_gb(limit)} GB; set {LIMIT} or {WAY} to change that"
    else:
        why = f", because{more} they are within {_gb(limit)} GB; set {LIMIT} or {WAY} to change that"
    _chosen.update({public(address): address.size for address in addresses})
    return True, copied + why


def asked_way(at: str) -> str:
    """The way that the environment asks for: "whole", "ranges", or "" where the rule holds. Raises SourceError."""
    way = os.environ.get(WAY, "")
    if way not in ("", "whole", "ranges"):
        raise SourceError(f"{at}: {WAY}={way} is unknown; let it be whole or ranges, or leave it out")
    return way


def reserve(at: str, addresses: Sequence[Address], total: int, need: int) -> bool:
    """Counts copies that are made of a few files at a time; True where all of them find room for good.

    Args:
        at: what an error names.
        addresses: files that are not counted by themselves any more.
        total: bytes of those that are ever copied.
        need: bytes of those that are needed at a time, at most.

    Raises:
        SourceError: there is no room for that within the limit.
    """
    limit = _limit(at)
    for address in addresses:
        _chosen.pop(public(address), None)
    _chosen.pop(at, None)
    rest = limit - sum(_chosen.values())
    if min(total, need) > rest:
        others = f", of which other sources have {_gb(sum(_chosen.values()))}" if _chosen else ""
        raise SourceError(
            f"{at}: copies of two blocks of shards in each lane of this host are up to {_gb(need)} GB, more than the "
            f"{_gb(limit)} GB of copies{others}; set {LIMIT}, or use fewer data.block_shards, fewer data.lanes, or more hosts"
        )
    _chosen[at] = min(total, need) if total > rest else total
    return total <= rest


def drop_copy(address: Address) -> None:
    """Deletes the copy of a file; who has it open can read it on."""
    with suppress(OSError):
        _place(address).unlink()


def touch_copy(address: Address) -> None:
    """Marks the copy of a file, where there is one, as used now."""
    with suppress(OSError):
        os.utime(_place(address))


def _place(address: Address) -> Path:
    """Path of the copy of a file."""
    return _folder() / f"{_name(address)}-{os.path.basename(public(address))[-60:]}"


def _name(address: Address) -> str:
    return hashlib.sha256(repr((public(address), address.state)).encode("utf-8", "surrogatepass")).hexdigest()[:20]


def open_copy(address: Address) -> LocalFile:
    """The copy of a file, which is fetched where there is none; one that is deleted meanwhile can still be read.

    Any number of threads and processes of one machine may do so at once: one of them fetches, and others wait. What is fetched in
    part is gone on with; it has another name, so that nobody takes it for the whole.

    Raises:
        OSError: it cannot be read, written, or is larger than the limit.
    """
    folder = _folder()
    folder.mkdir(parents=True, exist_ok=True)
    place = _place(address)
    part = folder / f"{_name(address)}-{address.size}.part"
    while True:
        with suppress(FileNotFoundError):
            file = LocalFile(place, address.state)
            if os.stat(place).st_size == address.size:
                with suppress(PermissionError):  # in a cache of several users it may be another's
                    os.utime(place)
                return file
            os.unlink(place)
        with _held(part) as descriptor:
            # Who waited for the lock of a part finds that it has become the whole, or was deleted to make room.
            if descriptor is None:
                continue
            if place.exists():  # a part was begun between the fetcher's last two steps
                part.unlink(missing_ok=True)
                continue
            _mark(descriptor, reserved=False)
            _make_room(folder, part, address.size, descriptor)
            _fetch(address, descriptor)
            with _alone(folder):
                _mark(descriptor, reserved=False)
                os.replace(part, place)
                return LocalFile(place, address.state)


def _fetch(address: Address, descriptor: int) -> None:
    """Fetches what a part lacks."""
    status = os.fstat(descriptor)
    # What was written before the machine has crashed may be zeros now.
    since_boot = time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))
    done = status.st_size if status.st_size <= address.size and status.st_mtime > time.time() - since_boot else 0
    os.ftruncate(descriptor, done)
    remote = RemoteFile(address)
    while done < address.size:
        data = memoryview(remote.read(done, BLOCK))
        while data:
            written = os.pwrite(descriptor, data, done)
            data, done = data[written:], done + written
    os.fsync(descriptor)


def _make_room(folder: Path, own: Path, size: int, descriptor: int) -> None:
    """Reserves the bytes of a file for its part, which is held.

    The copies that were opened longest ago, and parts that nobody fetches, are deleted until it is within the limit, and the disk
    has room for it. Raises Refused where that cannot be.
    """
    limit = _given(str(folder)) or USUAL_LIMIT
    if size > limit:
        raise RefusedRequest(f"it has {_gb(size)} GB, more than the {_gb(limit)} GB of copies; set {LIMIT}")
    while True:
        with _alone(folder):
            files = []
            for entry in os.scandir(folder):
                if entry.name != own.name and entry.name != "lock":
                    with suppress(FileNotFoundError):
                        files.append((entry.stat().st_mtime, _reserved(entry), Path(entry.path)))
            used = sum(bytes_ for _, bytes_, _ in files)
            missing = size - os.fstat(descriptor).st_size
            fetched = False
            for _, bytes_, path in sorted(files):
                if used + size <= limit and missing <= disk_usage(folder).free:
                    break
                if path.suffix != ".part":
                    path.unlink(missing_ok=True)
                elif not _unlink_left(path):
                    fetched = fetched or bytes_ > 0  # who waits has none
                    continue
                used -= bytes_
            free = disk_usage(folder).free
            if used + size <= limit and missing <= free:
                _mark(descriptor, reserved=True)
                return
            if not fetched:
                raise RefusedRequest(f"its disk has {_gb(free)} GB for a copy of {_gb(size)} GB", errno.ENOSPC)
        # All the room is that of files which others fetch just now. Who waits has nothing, lest two wait for each other.
        os.ftruncate(descriptor, 0)
        time.sleep(0.1)


def _mark(descriptor: int, reserved: bool) -> None:
    """Says in the mode of a part whether it has room for all of the file; one of another user stays as it is."""
    mode = os.fstat(descriptor).st_mode & 0o777
    with suppress(PermissionError):
        os.fchmod(descriptor, mode | RESERVED if reserved else mode & ~RESERVED)


def _reserved(entry: os.DirEntry[str]) -> int:
    """Bytes that a file has, or will have when all of it is fetched."""
    status, size = entry.stat(), entry.name.removesuffix(".part").rpartition("-")[2]
    fetched = entry.name.endswith(".part") and size.isdigit() and status.st_mode & RESERVED
    return int(size) if fetched else status.st_size


def _unlink_left(part: Path) -> bool:
    """Deletes a part that nobody fetches, and nobody may begin to meanwhile; False where somebody does."""
    try:
        descriptor = os.open(part, os.O_RDWR)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with suppress(FileNotFoundError):
            if os.path.samestat(os.stat(part), os.fstat(descriptor)):
                part.unlink()
        return True
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)


@contextmanager
def _held(path: Path) -> Iterator[int | None]:
    """The descriptor of a file that nobody else holds; None where that file is no longer the one of its name."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # ends with the process, whatever ends that
        try:
            same = os.path.samestat(os.stat(path), os.fstat(descriptor))
        except FileNotFoundError:
            same = False
        yield descriptor if same else None
    finally:
        os.close(descriptor)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Nobody else of the machine makes room, or gives a copy its name, meanwhile."""
    with _held(folder / "lock"):
        yield


def _folder() -> Path:
    return cache_folder("files")


def _limit(at: str) -> float:
    """Bytes of all copies together, by which ways are chosen. Raises SourceError as `_given`."""
    if given := _given(at):
        return given
    try:
        return min(USUAL_LIMIT, (_kept(_folder()) + disk_usage(_folder()).free) / 2)
    except OSError:  # nothing can be written there
        return 0.0


def _given(at: str) -> float:
    """Bytes that the environment says; 0 where it says nothing. Raises SourceError where it says nonsense."""
    given = os.environ.get(LIMIT, "")
    if not given:
        return 0.0
    try:
        limit = float(given) * 1e9
    except ValueError:
        limit = -1.0
    if not 0 < limit < float("inf"):
        raise SourceError(f"{at}: {LIMIT}={given} is no number of gigabytes above 0")
    return limit


def _kept(folder: Path) -> int:
    """Bytes of the files in the folder of copies, which is made where it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    total = 0
    for entry in os.scandir(folder):
        with suppress(FileNotFoundError):
            total += entry.stat().st_size
    return total


def _gb(size: float) -> str:
    return f"{size / 1e9:.3g}"
