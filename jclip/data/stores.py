"""Stores of remote files, over fsspec: what is there, how long a file is, and a range of its bytes, each by one request or few.

Nothing is tried again here, and nothing is believed: every answer is held against what was asked
for. `jclip.data.remote` tries again.
"""

import errno
import os
import threading
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from jclip.data.addresses import shown

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


class RemoteError(OSError):
    """A request has failed; `strerror` says why, and `filename` is the address as it is shown."""

    def __str__(self) -> str:
        return str(self.strerror)


class Transient(RemoteError):
    """A request that may well succeed when it is made again."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(errno.EIO, reason)
        self.wait = wait
        """Seconds after which the server wants to be asked again; 0: it does not say."""


class Refused(RemoteError):
    """A request that will not succeed."""

    def __init__(self, reason: str, number: int = errno.EACCES) -> None:
        super().__init__(number, reason)


class Changed(Refused):
    """A file is another one than it was when its source was opened."""

    def __init__(self) -> None:
        super().__init__("it was changed since it was opened", errno.EBADMSG)


class Missing(ImportError):
    """A package of the extra `remote` is not installed."""


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

    def get(self, address: str, start: int, size: int | None, facts: Facts | None, most: int | None) -> bytes:
        """Bytes from `start` on: `size` of them, or all of the file, of which there may be `most`.

        Where facts are given, Changed is raised if the file has others.
        """
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
            raise _judged(error) from None


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
            _check_status(answer, (403, 405, 501))
        # Signed addresses are often good for GET alone, and some servers tell no length before they send.
        async with session.get(url, headers={**headers, "Range": "bytes=0-0"}) as answer:
            total = answer.headers.get("Content-Range", "").rpartition("/")[2]
            if answer.status not in (206, 416):
                _check_status(answer)
                total = answer.headers.get("Content-Length", "")
            if not total.isdigit():
                raise Refused("the server does not say how long it is; put it on one that does, or fetch it to a file")
            return Facts(int(total), _version(answer.headers))

    def get(self, address: str, start: int, size: int | None, facts: Facts | None, most: int | None) -> bytes:
        return self.ask(self._get, address, start, size, facts, most, seconds=_deadline(size))

    async def _get(self, address: str, start: int, size: int | None, facts: Facts | None, most: int | None) -> bytes:
        session = await self.fs.set_session()
        headers = {"Accept-Encoding": "identity"}
        if size is not None:
            headers["Range"] = f"bytes={start}-{start + size - 1}"
        async with session.get(self.fs.encode_url(address), headers=headers) as answer:
            _check_status(answer)
            if facts and facts.version and _version(answer.headers) not in ("", facts.version):
                raise Changed
            length = int(answer.headers.get("Content-Length", -1))
            if most is not None and length > most:
                raise Refused(f"it has {length} bytes, more than {most}", errno.EFBIG)
            if size is None:
                body = await answer.content.read() if most is None else await _read_most(answer.content, most)
                return _exactly(body, length if length >= 0 else len(body))
            if answer.status != 206:
                return await self._slice(answer, length, start, size, facts)
            given, slash, total = answer.headers.get("Content-Range", "").partition("/")
            if facts and slash and total.isdigit() and int(total) != facts.size:
                raise Changed
            if given != f"bytes {start}-{start + size - 1}":
                raise Transient(f"another range was sent than bytes {start}-{start + size - 1}: {given[:60]!r}")
            return _exactly(await answer.content.read(), size)

    async def _slice(self, answer: Any, length: int, start: int, size: int, facts: Facts | None) -> bytes:
        """Part of the whole, which a server without ranges sends."""
        if facts and length not in (-1, facts.size):
            raise Changed
        if not 0 <= length <= SLICED:
            reason = f"the server ignores ranges, and of larger files than {SLICED >> 20} MiB"
            raise Refused(f"{reason} no part can be read; put them on a server that has ranges, or fetch them to files")
        return _exactly(await answer.content.read(), length)[start : start + size]

    def glob(self, pattern: str) -> list[str]:
        raise Refused("a server has no list of files for * and [; name them in braces, as in {00000..00099}")


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
            raise Refused("there is no such file, but a folder", errno.EISDIR)
        return Facts(int(info["size"]), str(info.get("ETag") or info.get("LastModified") or ""))

    def get(self, address: str, start: int, size: int | None, facts: Facts | None, most: int | None) -> bytes:
        return self.ask(self._get, address, start, size, facts, most, seconds=_deadline(size))

    async def _get(self, address: str, start: int, size: int | None, facts: Facts | None, most: int | None) -> bytes:
        bucket, key, _ = self.fs.split_path(address)
        options = {} if size is None else {"Range": f"bytes={start}-{start + size - 1}"}
        answer = await self.fs._call_s3("get_object", Bucket=bucket, Key=key, **options)
        try:
            if facts and answer.get("ETag", facts.version) != facts.version:
                raise Changed
            length = int(answer["ContentLength"])
            if most is not None and length > most:
                raise Refused(f"it has {length} bytes, more than {most}", errno.EFBIG)
            return _exactly(await answer["Body"].read(), length if size is None else size)
        finally:
            answer["Body"].close()

    def glob(self, pattern: str) -> list[str]:
        return [f"s3://{path}" for path in self.ask(self.fs._glob, pattern)]


class Google(_Asynchronous):
    """Buckets of Google Cloud Storage; gcsfs finds the credentials of the machine, of gcloud, or none."""

    attempts = 2

    def __init__(self) -> None:
        import fsspec

        self.fs = fsspec.filesystem("gs", skip_instance_cache=True)

    def look(self, address: str) -> Facts:
        info = self.ask(self.fs._info, address)
        if info.get("type") == "directory":
            raise Refused("there is no such file, but a folder", errno.EISDIR)
        return Facts(int(info["size"]), str(info.get("generation") or info.get("etag") or ""))

    def get(self, address: str, start: int, size: int | None, facts: Facts | None, most: int | None) -> bytes:
        found = facts or self.look(address)
        if most is not None and found.size > most:
            raise Refused(f"it has {found.size} bytes, more than {most}", errno.EFBIG)
        size = found.size if size is None else size
        # A generation is one state of an object for ever: of another one there is nothing to be had.
        pinned = {"generation": found.version} if found.version.isdigit() else {}
        end = start + size
        return _exactly(self.ask(self.fs._cat_file, address, start=start, end=end, seconds=_deadline(size), **pinned), size)

    def glob(self, pattern: str) -> list[str]:
        return [f"gs://{path}" for path in self.ask(self.fs._glob, pattern)]


class Hub:
    """Repositories of data on the Hugging Face hub: hf://datasets/ORG/NAME[@REVISION]/FILE."""

    attempts = 2

    def __init__(self) -> None:
        from huggingface_hub import HfFileSystem

        self.fs = HfFileSystem(skip_instance_cache=True)

    def forget(self) -> None:
        self.fs.invalidate_cache()

    def ask(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """The result of a call. Raises Transient or Refused."""
        try:
            return function(*arguments, **options)
        except Exception as error:
            raise _judged(error) from None

    def look(self, address: str) -> Facts:
        info = self.ask(self.fs.info, address)
        if info.get("type") == "directory":
            raise Refused("there is no such file, but a folder", errno.EISDIR)
        large = info.get("lfs") or {}
        return Facts(int(info["size"]), str(large.get("sha256") or info.get("blob_id") or ""))

    def get(self, address: str, start: int, size: int | None, facts: Facts | None, most: int | None) -> bytes:
        found = facts or self.look(address)
        if most is not None and found.size > most:
            raise Refused(f"it has {found.size} bytes, more than {most}", errno.EFBIG)
        size = found.size if size is None else size
        return _exactly(self.ask(self._range, address, start, start + size), size)

    def _range(self, address: str, start: int, end: int) -> bytes:
        with self.fs.open(address, "rb", cache_type="none") as file:
            file.seek(start)
            return bytes(file.read(end - start))

    def glob(self, pattern: str) -> list[str]:
        return [f"hf://{path}" for path in self.ask(self.fs.glob, pattern)]


def _version(headers: Any) -> str:
    return str(headers.get("ETag") or headers.get("Last-Modified") or "")


def _check_status(answer: Any, passed: tuple[int, ...] = ()) -> None:
    """Raises Transient or Refused where an answer of aiohttp is no success, nor has a status that is passed over."""
    if answer.status >= 400 and answer.status not in passed:
        wait = answer.headers.get("Retry-After", "")
        raise _of_status(answer.status, answer.reason or "", float(wait) if wait.isdigit() else 0.0)


async def _read_most(content: Any, most: int) -> bytes:
    blocks, total = [], 0
    async for block in content.iter_chunked(1 << 18):
        blocks.append(block)
        total += len(block)
        if total > most:
            raise Refused(f"it has more than {most} bytes", errno.EFBIG)
    return b"".join(blocks)


def _exactly(body: bytes, size: int) -> bytes:
    if len(body) != size:
        raise Transient(f"{len(body)} bytes came of {size}")
    return body


def _deadline(size: int | None) -> float:
    """Seconds in which a request must be done, at 1 MB/s if need be."""
    return 4 * STALLED_SECONDS + (size or 0) / 1e6


def _of_status(status: int, reason: str, wait: float = 0.0) -> OSError:
    if status in (408, 425, 429) or status >= 500:
        return Transient(f"HTTP {status} {reason}".strip(), wait)
    if status in (412, 416):  # no range is asked for beyond the end of what was there
        return Changed()
    known = {401: "credentials are missing or wrong", 403: "access is denied", 404: "there is no such file", 410: "it is gone"}
    number = errno.ENOENT if status in (404, 410) else errno.EACCES
    return Refused(f"{known.get(status, reason or 'it is refused')} (HTTP {status})", number)


def _judged(error: Exception) -> OSError:
    """Meaning of an exception of fsspec, or of a library below it."""
    if isinstance(error, (Transient, Refused)):
        return error
    text = shown((str(error).strip() or type(error).__name__).splitlines()[0])[:200]
    status = next(filter(None, map(_status, (error, error.__cause__, error.__context__))), 0)
    if status >= 400:
        return _of_status(status, "")
    if isinstance(error, FileNotFoundError) or type(error).__name__ == "NoSuchBucket":
        return Refused("there is no such file", errno.ENOENT)
    if isinstance(error, FileExistsError):  # gcsfs, of a precondition that fails
        return Changed()
    if isinstance(error, PermissionError) or "Credential" in type(error).__name__ or text.startswith("Forbidden"):
        return Refused(f"access is denied: {text}")
    if isinstance(error, (TypeError, ValueError, AttributeError, LookupError, ImportError)):
        return Refused(f"{type(error).__name__}: {text}")
    return Transient(f"{type(error).__name__}: {text}")


def _status(error: BaseException | None) -> int:
    """The HTTP status that an exception of aiohttp, botocore, gcsfs or huggingface_hub has; 0 where there is none."""
    answer = getattr(error, "response", None)
    if isinstance(answer, dict):
        return int(answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    # aiohttp says "code 400" of a body that was cut, which is no word of the server; gcsfs says "code" for a status.
    code = "code" if type(error).__name__ == "HttpError" else "status"
    for holder, name in ((answer, "status_code"), (error, code)):
        value = getattr(holder, name, None)
        if isinstance(value, int) or (isinstance(value, str) and value.isdigit()):
            return int(value)
    return 0


STORES: dict[str, Callable[[], Store]] = {"http": Http, "s3": S3, "gs": Google, "hf": Hub}
"""The store of each scheme; https is http."""
