"""Errors of requests to stores, and what statuses of HTTP and exceptions of libraries mean."""

import errno
from typing import Any

from jclip.data.addresses import shown


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


class RefusedRequest(RemoteError):
    """A request that will not succeed."""

    def __init__(self, reason: str, number: int = errno.EACCES) -> None:
        super().__init__(number, reason)


class Changed(RefusedRequest):
    """A file is another one than it was when its source was opened."""

    def __init__(self) -> None:
        super().__init__("it was changed since it was opened", errno.EBADMSG)


class Missing(ImportError):
    """A package of the extra `remote` is not installed."""


def check_status(answer: Any, passed: tuple[int, ...] = ()) -> None:
    """Raises Transient or Refused where an answer of aiohttp is no success, nor has a status that is passed over."""
    if answer.status >= 400 and answer.status not in passed:
        wait = answer.headers.get("Retry-After", "")
        raise _of_status(answer.status, answer.reason or "", float(wait) if wait.isdigit() else 0.0)


def _of_status(status: int, reason: str, wait: float = 0.0) -> OSError:
    if status in (408, 425, 429) or status >= 500:
        return Transient(f"HTTP {status} {reason}".strip(), wait)
    if status in (412, 416):  # no range is asked for beyond the end of what was there
        return Changed()
    known = {401: "credentials are missing or wrong", 403: "access is denied", 404: "there is no such file", 410: "it is gone"}
    number = errno.ENOENT if status in (404, 410) else errno.EACCES
    return RefusedRequest(f"{known.get(status, reason or 'it is refused')} (HTTP {status})", number)


def judged(error: Exception) -> OSError:
    """Meaning of an exception of fsspec, or of a library below it."""
    if isinstance(error, (Transient, RefusedRequest)):
        return error
    text = shown((str(error).strip() or type(error).__name__).splitlines()[0])[:200]
    status = next(filter(None, map(_status, (error, error.__cause__, error.__context__))), 0)
    if status >= 400:
        return _of_status(status, "")
    if isinstance(error, FileNotFoundError) or type(error).__name__ == "NoSuchBucket":
        return RefusedRequest("there is no such file", errno.ENOENT)
    if isinstance(error, FileExistsError):  # gcsfs, of a precondition that fails
        return Changed()
    if isinstance(error, PermissionError) or "Credential" in type(error).__name__ or text.startswith("Forbidden"):
        return RefusedRequest(f"access is denied: {text}")
    if isinstance(error, (TypeError, ValueError, AttributeError, LookupError, ImportError)):
        return RefusedRequest(f"{type(error).__name__}: {text}")
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
