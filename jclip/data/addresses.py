"""Addresses of files in buckets and on servers, and how they are shown: without what may be secret in them."""

import hashlib
import re
from collections.abc import Iterable

SCHEMES = ("https", "http", "s3", "gs", "hf")
"""Stores that are read; see `jclip.data.stores`."""

_BEGINNINGS = tuple(f"{scheme}://" for scheme in SCHEMES)

State = tuple[int, int, int, int]
"""Marks of a file that change when it does: its size, mtime and ctime (which nobody can set back) in ns, and inode. Of a
remote file -1 and two numbers of a digest of its version, one negative, stand for the last three: no local file has them."""


class Address(str):
    """The address of a file, with what was found out about it when its source was opened.

    It is the whole address to whatever takes it as a str, and `str`, `repr` and f-strings show it without user, password and
    query: no error or log can have them by mistake. Everything that is known goes along where it is pickled.
    """

    size: int = -1
    """Bytes; -1: unknown."""
    version: str = ""
    """ETag, generation, or whatever the store has that changes with the bytes; "" where it has nothing."""
    pin: str = ""
    """A name of this version, such as a commit, by which it can be read when the address has become that of another one."""
    whole: bool = False
    """True: it is read from a copy of the whole file in a cache; False: by requests of ranges."""

    @property
    def exact(self) -> str:
        """The whole address, as a plain str."""
        return str.__str__(self)

    @property
    def state(self) -> State:
        """See State."""
        digest = hashlib.blake2b(f"{self.size} {self.version}".encode(), digest_size=16).digest()
        high, low = (int.from_bytes(half, "little") >> 1 for half in (digest[:8], digest[8:]))
        return self.size, -1, -1 - high, low

    def __str__(self) -> str:
        return _cut(self.exact, "?...")

    def __repr__(self) -> str:
        return repr(str(self))

    def __format__(self, spec: str) -> str:
        return format(str(self), spec)


def is_address(text: str) -> bool:
    """True for what begins with the scheme of one of the stores."""
    return text.startswith(_BEGINNINGS)


def is_copied(path: str) -> bool:
    """True where a remote file is read from a copy of it; what was opened before that was so asks for ranges still."""
    return isinstance(path, Address) and path.whole


def by_ranges(paths: Iterable[str]) -> bool:
    """True where some of the files are remote and read by requests of ranges."""
    return any(isinstance(path, Address) and not path.whole for path in paths)


def shown(text: str) -> str:
    """A text whose addresses have neither user and password nor a query of http, which often is a signature."""
    return re.sub(r"(?i)\b(https?://[^?\n'\"]*)\?[^\s'\"]*", r"\1?...", _without_user(text))


def public(path: str) -> str:
    """A path as it is, and an address without what is left out of one: what files of caches and examples are named by."""
    return _cut(path.exact if isinstance(path, Address) else path, "") if is_address(path) else path


def _cut(address: str, end: str) -> str:
    """One address as it is shown, with `end` for the query of http: unlike those in a text, it may have blanks and quotes."""
    place, query, _ = address.partition("?") if address.startswith(("http://", "https://")) else (address, "", "")
    return _without_user(place) + (end if query else "")


def _without_user(text: str) -> str:
    return re.sub(r"(?i)\b([a-z][a-z0-9+.-]*://)[^/\s?#]*@", r"\1", text) if "@" in text else text
