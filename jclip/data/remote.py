"""Remote files: looked for, and read with requests that are made again where they fail for a while."""

import errno
import logging
import random
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar
from uuid import uuid4

from jclip.data.addresses import Address, State
from jclip.data.answers import RefusedRequest, RemoteError, Transient
from jclip.data.local_files import File
from jclip.data.stores import Facts, Store, store_of

log = logging.getLogger("jclip.data.remote")

LOOKS = 5
"""Times that a file is looked for at the start, at most: somebody may be waiting for the answer."""

FIRST_SECONDS, MOST_SECONDS = 0.2, 10.0
"""Pause before a request is made again the first time, and at most; it doubles each time, and is drawn from its upper half, so
that many who failed together do not come back together. All pauses take 25 s at most, or more where a server asks for it."""

ASKED_SECONDS = 60.0
"""Longest pause that a server may ask for."""

LOST_SECONDS = 60.0
"""Time in which a file that could not be read is asked for once only: a file that is gone for good stalls a run no longer."""

SAID_SECONDS = 60.0
"""Time between two lines that say how many requests were made again."""

THREADS = 32
"""Requests at a time that look for files."""

BLOCK = 4 << 20
"""Bytes of a request that reads on; also the largest gap that is read rather than left out by another request."""

BEHIND_A_GAP = 256 << 10
"""Bytes of the first request behind a gap: headers, and members that may be large as well."""

TOGETHER = 32 << 20
"""Bytes of the largest sample that is read with one request."""

UNKNOWN = "unknown "
"""Beginning of the version of a file that has none; the rest is another one each time that the file is looked at."""

S = TypeVar("S")
T = TypeVar("T")


class _Retries:
    """The count of requests that were made again, which is said now and then."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.total = self._unsaid = 0
        self._said = -SAID_SECONDS

    def add(self, address: str, reason: str) -> None:
        with self._lock:
            self.total += 1
            self._unsaid += 1
            now = time.monotonic()
            if now < self._said + SAID_SECONDS:
                return
            count, self._unsaid, self._said = self._unsaid, 0, now
        what = "a request is" if count == 1 else f"{count:,} requests were"
        log.warning(
            "%s made again; the last: %s: %s (%d in all; more are reported once a minute)", what, address, reason, self.total
        )


retries = _Retries()
"""The count of this process."""

_lost: dict[str, float] = {}
"""Times until which files that could not be read are asked for once only, by address."""


def persistently(address: Address, request: Callable[[Store], T], most: int = 100) -> T:
    """The result of a request, made again after a pause where it fails for a reason that may pass.

    Raises:
        Refused: it will not succeed.
        Transient: it has failed as often as it is made; or once, where the last one of the same file has failed lately.
        Missing: a package of the extra is not installed.
    """
    place = address.exact
    store = store_of(place)
    attempts = 1 if _lost.get(place, 0.0) > time.monotonic() else min(store.attempts, most)
    pause = FIRST_SECONDS
    for attempt in range(1, attempts + 1):
        try:
            result = request(store)
            _lost.pop(place, None)
            return result
        except RefusedRequest as problem:
            problem.filename = str(address)
            raise
        except Transient as problem:
            if attempt == attempts:
                _lost[place] = time.monotonic() + LOST_SECONDS
                _forget_lost()
                failure = Transient(f"{problem.strerror} (tried {attempt} times)")
                failure.filename = str(address)
                raise failure from None
            retries.add(str(address), str(problem.strerror))
            time.sleep(max(pause * random.uniform(0.5, 1.0), min(problem.wait, ASKED_SECONDS)))
            pause = min(2 * pause, MOST_SECONDS)
    raise AssertionError("unreachable")


def _forget_lost() -> None:
    """Drops what is over: a set of images may lose any number of them."""
    now = time.monotonic()
    for place, until in list(_lost.items()):
        if until <= now:
            _lost.pop(place, None)


def look(path: str) -> Address:
    """An address with its size and version. Raises OSError."""
    address = Address(path.exact if isinstance(path, Address) else path)
    facts = persistently(address, lambda store: store.look(address.exact), LOOKS)
    # Where nothing says that a file is the one of before, nothing that is kept of that one is taken for it.
    address.size, address.version, address.pin = facts.size, facts.version or f"{UNKNOWN}{uuid4().hex}", facts.pin
    return address


def find_each(paths: Sequence[str]) -> list[Address | None]:
    """The files of addresses, many looked at together; None where there is none. Raises OSError."""

    def look_for(path: str) -> Address | None:
        try:
            return look(path)
        except RemoteError as error:
            if error.errno in (errno.ENOENT, errno.EISDIR):
                return None
            raise

    return together(look_for, paths)


def together(function: Callable[[S], T], over: Iterable[S]) -> list[T]:
    """The results of requests, THREADS at a time, in order. Raises the first error, behind which no request is begun."""
    pool = ThreadPoolExecutor(THREADS)
    try:
        return list(pool.map(function, over))
    finally:
        pool.shutdown(cancel_futures=True)


def read_address(path: str, most: int) -> bytes:
    """The bytes of a whole file, of which there may be `most`. Raises OSError."""
    address = path if isinstance(path, Address) else Address(path)
    return persistently(address, lambda store: store.whole(address.exact, most))


class RemoteFile:
    """A file that is read by requests of ranges; see File."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self.state = address.state

    def current(self) -> State:
        return self.state

    def read(self, offset: int, size: int) -> bytes:
        size = min(size, self.address.size - offset)
        if size <= 0:
            return b""
        version = "" if self.address.version.startswith(UNKNOWN) else self.address.version
        place, facts = self.address.exact, Facts(self.address.size, version, self.address.pin)
        return persistently(self.address, lambda store: store.get(place, offset, size, facts))

    def around(self, spans: Sequence[tuple[int, int]]) -> File:
        start = min((offset for offset, _ in spans), default=0)
        end = max((offset + size for offset, size in spans), default=0)
        # What lies far apart, in a tar that is sorted by extensions, is no one request.
        near = end - start <= min(TOGETHER, 2 * sum(size for _, size in spans) + (64 << 10))
        return _Window(self, start, end) if near and len(spans) > 1 else self

    def onward(self) -> File:
        return _Ahead(self)


class _Part:
    """A file of which bytes that were read are kept; see File."""

    def __init__(self, file: RemoteFile) -> None:
        self.file = file
        self.state = file.state
        self.lock = threading.Lock()

    def current(self) -> State:
        return self.state

    def around(self, spans: Sequence[tuple[int, int]]) -> File:
        return self.file.around(spans)

    def onward(self) -> File:
        return self.file.onward()


class _Window(_Part):
    """Part of a file, read as a whole when anything of it is asked for."""

    def __init__(self, file: RemoteFile, start: int, end: int) -> None:
        super().__init__(file)
        self._start, self._end = start, end
        self._data: bytes | None = None

    def read(self, offset: int, size: int) -> bytes:
        if not self._start <= offset <= offset + size <= self._end:
            return self.file.read(offset, size)
        with self.lock:
            if self._data is None:
                self._data = self.file.read(self._start, self._end - self._start)
        place = offset - self._start
        return self._data[place : place + size]


class _Ahead(_Part):
    """A file from its beginning to its end, in blocks; gaps that are larger than a block are left out."""

    def __init__(self, file: RemoteFile) -> None:
        super().__init__(file)
        self._start, self._data = 0, b""

    def read(self, offset: int, size: int) -> bytes:
        with self.lock:
            end = self._start + len(self._data)
            if not self._start <= offset <= offset + size <= end:
                kept = self._data[offset - self._start :] if self._start <= offset < end else b""
                block = BLOCK if offset - end <= BLOCK else BEHIND_A_GAP
                more = self.file.read(offset + len(kept), max(size - len(kept), block))
                self._start, self._data = offset, kept + more
            return self._data[offset - self._start : offset - self._start + size]
