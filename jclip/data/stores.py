"""Stores of remote files, over fsspec: what is there, how long a file is, and a range of its bytes, each by one request or few.

Nothing is tried again here, and nothing is believed: every answer is held against what was asked
for. `jclip.data.remote` tries again.
"""

import errno
import os
import threading
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from jclip.data.answers import Changed, Missing, RefusedRequest, Transient, check_status, judged

ATTEMPTS = 8
"""Times that a request is made, at most."""

CONNECT_SECONDS = 10.0
"""Time that a connection may take."""

STALLED_SECONDS = 30.0
"""Time without a byte after which a request is given up."""

SLICED = 64 << 20
"""Bytes of the largest file that a server without ranges may have: each request for a part of it brings the whole."""


class Facts(NamedTuple):
    """Findings about a file."""

    size: int
    version: str
    """See Address.version."""
    pin: str = ""
    """See Address.pin."""


class Store(Protocol):
    """One kind of store. All methods raise Transient or Refused."""

    attempts: int
    """Times that a request is made here, at most; fewer where the library below makes it again by itself."""

    def forget(self) -> None:
        """Lists of files that were asked for before are not believed any more."""
        ...

    def look(self, address: str) -> Facts:
        """Facts of a file."""
        ...

    def get(self, address: str, start: int, size: int, facts: Facts) -> bytes:
        """The `size` bytes from `start` on. Raises Changed if the file has other facts."""
        ...

    def whole(self, address: str, most: int) -> bytes:
        """All bytes of a file, of which there may be `most`."""
        ...

    def glob(self, pattern: str) -> list[str]:
        """The addresses that match."""
        ...


def store_of(address: str) -> Store:
    """The store of an address: one for each process, because connections live in no other. Raises Missing."""
    scheme = address.partition("://")[0]
    key = (os.getpid(), "http" if scheme == "https" else scheme)
    with _lock:
        if key not in _stores:
            try:
                _stores[key] = STORES[key[1]]()
            except ImportError as error:
                raise Missing(f"a package is missing ({error}); pip install 'jclip[remote]'") from None
        return _stores[key]


_stores: dict[tuple[int, str], Store] = {}
_lock = threading.Lock()


def _forget_parent() -> None:
    """A forked process has the parent's connections, which it must not use, and perhaps its lock, which nobody would open."""
    global _lock
    _stores.clear()
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_forget_parent)


class _Asynchronous:
    """A file system of fsspec that works in an event loop of its own thread."""

    attempts = ATTEMPTS
    fs: Any

    def forget(self) -> None:
        self.fs.invalidate_cache()

    def ask(self, function: Callable[..., Any], *arguments: Any, seconds: float = 0.0, **options: Any) -> Any:
        """The result of a coroutine. Raises Transient or Refused."""
        from fsspec.asyn import sync

        try:
            return sync(self.fs.loop, function, *arguments, timeout=seconds or 4 * STALLED_SECONDS, **options)
        except Exception as error:
            raise judged(error) from None


class Http(_Asynchronous):
    """Servers of files, by http and https."""

    def __init__(self) -> None:
        import aiohttp
        import fsspec

        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=STALLED_SECONDS)
        options = {"timeout": timeout, "trust_env": True}
        self.fs = fsspec.filesystem("http", skip_instance_cache=True, client_kwargs=options)

    def look(self, address: str) -> Facts:
        return self.ask(self._look, address)

    async def _look(self, address: str) -> Facts:
        session = await self.fs.set_session()
        url, headers = self.fs.encode_url(address), {"Accept-Encoding": "identity"}
        async with session.head(url, headers=headers, allow_redirects=True) as answer:
            known = answer.headers.get("Content-Length", "")
            if answer.status == 200 and known.isdigit() and answer.headers.get("Content-Encoding", "identity") == "identity":
                return Facts(int(known), _version(answer.headers))
            check_status(answer, (403, 405, 501))
        # Signed addresses are often good for GET alone, and some servers give no length before they send.
        async with session.get(url, headers={**headers, "Range": "bytes=0-0"}) as answer:
            total = answer.headers.get("Content-Range", "").rpartition("/")[2]
            if answer.status not in (206, 416):
                check_status(answer)
                total = answer.headers.get("Content-Length", "")
            if not total.isdigit():
                raise RefusedRequest("the server does not say how long it is; put it on one that does, or fetch it to a file")
            return Facts(int(total), _version(answer.headers))

    def get(self, address: str, start: int, size: int, facts: Facts) -> bytes:
        return self.ask(self._get, address, start, size, facts, seconds=deadline(size))

    async def _get(self, address: str, start: int, size: int, facts: Facts) -> bytes:
        session = await self.fs.set_session()
        headers = {"Accept-Encoding": "identity", "Range": f"bytes={start}-{start + size - 1}"}
        async with session.get(self.fs.encode_url(address), headers=headers) as answer:
            check_status(answer)
            if facts.version and _version(answer.headers) not in ("", facts.version):
                raise Changed
            if answer.status != 206:
                return await self._slice(answer, start, size, facts)
            given, slash, total = answer.headers.get("Content-Range", "").partition("/")
            if slash and total.isdigit() and int(total) != facts.size:
                raise Changed
            if given != f"bytes {start}-{start + size - 1}":
                raise Transient(f"another range was sent than bytes {start}-{start + size - 1}: {given[:60]!r}")
            return _exactly(await _begin(answer.content, size), size)

    async def _slice(self, answer: Any, start: int, size: int, facts: Facts) -> bytes:
        """Part of the whole, which a server without ranges sends."""
        length = int(answer.headers.get("Content-Length", -1))
        if length not in (-1, facts.size):
            raise Changed
        if not 0 <= length <= SLICED:
            reason = f"the server ignores ranges, and of larger files than {SLICED >> 20} MiB"
            raise RefusedRequest(f"{reason} no part can be read; put them on a server that has ranges, or fetch them to files")
        return _exactly(await _begin(answer.content, length), length)[start : start + size]

    def whole(self, address: str, most: int) -> bytes:
        return self.ask(self._whole, address, most, seconds=deadline(most))

    async def _whole(self, address: str, most: int) -> bytes:
        session = await self.fs.set_session()
        async with session.get(self.fs.encode_url(address), headers={"Accept-Encoding": "identity"}) as answer:
            check_status(answer)
            length = int(answer.headers.get("Content-Length", -1))
            _within(length, most)
            body = await _begin(answer.content, most)
            _within(len(body), most)
            return _exactly(body, length if length >= 0 else len(body))

    def glob(self, pattern: str) -> list[str]:
        raise RefusedRequest("a server has no list of files for * and [; name them in braces, as in {00000..00099}")


class S3(_Asynchronous):
    """Buckets with the interface of Amazon S3; boto's environment, profile and files say where and with which keys."""

    def __init__(self) -> None:
        import fsspec

        # Tries are counted in one place, which is not this.
        config = {"connect_timeout": CONNECT_SECONDS, "read_timeout": STALLED_SECONDS, "retries": {"total_max_attempts": 1}}
        self.fs = fsspec.filesystem("s3", skip_instance_cache=True, config_kwargs=config)
        self.fs.retries = 1

    def look(self, address: str) -> Facts:
        info = self.ask(self.fs._info, address)
        if info.get("type") == "directory":
            raise RefusedRequest("there is no such file, but a folder", errno.EISDIR)
        return Facts(int(info["size"]), str(info.get("ETag") or info.get("LastModified") or ""))

    def get(self, address: str, start: int, size: int, facts: Facts) -> bytes:
        return self.ask(self._get, address, size, facts, seconds=deadline(size), Range=f"bytes={start}-{start + size - 1}")

    def whole(self, address: str, most: int) -> bytes:
        return self.ask(self._get, address, most, None, seconds=deadline(most))

    async def _get(self, address: str, size: int, facts: Facts | None, **wanted: str) -> bytes:
        """`size` bytes of a file with these facts; at most so many of one whose facts are not known."""
        bucket, key, _ = self.fs.split_path(address)
        answer = await self.fs._call_s3("get_object", Bucket=bucket, Key=key, **wanted)
        try:
            if facts and facts.version and answer.get("ETag", facts.version) != facts.version:
                raise Changed
            length = int(answer["ContentLength"])
            if facts and length != size:
                raise Transient(f"{length} bytes are sent of {size}")
            _within(length, size)
            return _exactly(await answer["Body"].read(), length)
        finally:
            answer["Body"].close()

    def glob(self, pattern: str) -> list[str]:
        return [f"s3://{path}" for path in self.ask(self.fs._glob, pattern)]


class Google(_Asynchronous):
    """Buckets of Google Cloud Storage; gcsfs finds the credentials of the machine, of gcloud, or none."""

    attempts = 2

    def __init__(self) -> None:
        # Not what fsspec has for "gs": that asks before each request what kind of bucket it is, which credentials of a reader,
        # or none, do not suffice for, and warns each time.
        from gcsfs.core import GCSFileSystem  # type: ignore[import-untyped]

        self.fs = GCSFileSystem(skip_instance_cache=True)

    def look(self, address: str) -> Facts:
        info = self.ask(self.fs._info, address)
        if info.get("type") == "directory":
            raise RefusedRequest("there is no such file, but a folder", errno.EISDIR)
        return Facts(int(info["size"]), str(info.get("generation") or info.get("etag") or ""))

    def get(self, address: str, start: int, size: int, facts: Facts) -> bytes:
        # A generation is one state of an object for ever: of another one there is nothing to be had.
        pinned = {"generation": facts.version} if facts.version.isdigit() else {}
        end = start + size
        return _exactly(self.ask(self.fs._cat_file, address, start=start, end=end, seconds=deadline(size), **pinned), size)

    def whole(self, address: str, most: int) -> bytes:
        return _of_facts(self, address, most)

    def glob(self, pattern: str) -> list[str]:
        return [f"gs://{path}" for path in self.ask(self.fs._glob, pattern)]


class Hub:
    """Repositories of data on the Hugging Face hub: hf://datasets/ORG/NAME[@REVISION]/FILE."""

    attempts = 2

    def __init__(self) -> None:
        from huggingface_hub import HfFileSystem

        self.fs = HfFileSystem(skip_instance_cache=True)
        self._commits: dict[tuple[str, str, str], str] = {}

    def forget(self) -> None:
        self.fs.invalidate_cache()
        self._commits.clear()

    def ask(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """The result of a call. Raises Transient or Refused."""
        try:
            return function(*arguments, **options)
        except Exception as error:
            raise judged(error) from None

    def look(self, address: str) -> Facts:
        commit = self.ask(self._commit, address)
        info = self.ask(self.fs.info, self.ask(self._at, address, commit))
        if info.get("type") == "directory":
            raise RefusedRequest("there is no such file, but a folder", errno.EISDIR)
        large = info.get("lfs") or {}
        return Facts(int(info["size"]), str(large.get("sha256") or info.get("blob_id") or ""), commit)

    def _commit(self, address: str) -> str:
        """The commit that a branch is now, and stays until lists are forgotten; "" of what has none."""
        place = self.fs.resolve_path(address)
        if not getattr(place, "revision", ""):
            return ""
        key = (place.repo_type, place.repo_id, place.revision)
        if key not in self._commits:
            found = self.fs._api.repo_info(place.repo_id, repo_type=place.repo_type, revision=place.revision)
            self._commits.setdefault(key, str(found.sha))
        return self._commits[key]

    def _at(self, address: str, commit: str) -> str:
        """The address of a file at a commit."""
        from huggingface_hub.constants import REPO_TYPES_URL_PREFIXES

        if not commit:
            return address
        place = self.fs.resolve_path(address)
        return f"{REPO_TYPES_URL_PREFIXES.get(place.repo_type, '')}{place.repo_id}@{commit}/{place.path_in_repo}"

    def get(self, address: str, start: int, size: int, facts: Facts) -> bytes:
        return _exactly(self.ask(self._range, address, start, start + size, facts.pin), size)

    def whole(self, address: str, most: int) -> bytes:
        return _of_facts(self, address, most)

    def _range(self, address: str, start: int, end: int, commit: str) -> bytes:
        with self.fs.open(self._at(address, commit), "rb", cache_type="none") as file:
            file.seek(start)
            return bytes(file.read(end - start))

    def glob(self, pattern: str) -> list[str]:
        return [f"hf://{path}" for path in self.ask(self.fs.glob, pattern)]


def _version(headers: Any) -> str:
    return str(headers.get("ETag") or headers.get("Last-Modified") or "")


async def _begin(content: Any, most: int) -> bytes:
    """A body of aiohttp; of one that has more than `most` bytes its beginning, which has more as well."""
    body = bytearray()
    async for block in content.iter_chunked(1 << 18):
        body += block
        if len(body) > most:
            break
    return bytes(body)


def _of_facts(store: Store, address: str, most: int) -> bytes:
    """`Store.whole` where one request does not say how long a file is before it is sent."""
    facts = store.look(address)
    _within(facts.size, most)
    return store.get(address, 0, facts.size, facts) if facts.size else b""


def _within(size: int, most: int) -> None:
    if size > most:
        raise RefusedRequest(f"it has {size} bytes, more than {most}", errno.EFBIG)


def _exactly(body: bytes, size: int) -> bytes:
    if len(body) != size:
        raise Transient(f"{len(body)} bytes came of {size}")
    return body


def deadline(size: int) -> float:
    """Seconds in which a request must be done, at 1 MB/s if need be."""
    return 4 * STALLED_SECONDS + size / 1e6


STORES: dict[str, Callable[[], Store]] = {"http": Http, "s3": S3, "gs": Google, "hf": Hub}
"""The store of each scheme; https is http."""
