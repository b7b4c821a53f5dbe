"""Remote files of a source: found at the start, and opened the way that is chosen there, by ranges or as copies."""

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from jclip.data.addresses import Address, public
from jclip.data.answers import Missing, RemoteError
from jclip.data.copies import choose_way, open_copy
from jclip.data.local_files import File
from jclip.data.remote import LOOKS, THREADS, RemoteFile, look, persistently
from jclip.data.source import SourceError
from jclip.data.stores import store_of

log = logging.getLogger("jclip.data.ways")


def open_address(address: Address) -> File:
    """Opens a file that `find` has found, the way that is chosen there. Raises OSError."""
    if address.whole:
        return open_copy(address)
    return RemoteFile(address)


def find(at: str, patterns: Sequence[str]) -> list[Address]:
    """The files that addresses and patterns of addresses name, sorted, each looked at once, and the way they are read chosen.

    Args:
        at: what an error begins with.
        patterns: addresses without braces; those with * or [ are listed by their store.

    Raises:
        SourceError: a file is not there or cannot be reached; nothing matches; two addresses differ in their queries alone; a
            package of the extra is missing; a setting in the environment is wrong.
    """
    try:
        store_of(patterns[0]).forget()
        with ThreadPoolExecutor(THREADS) as pool:
            names = [name for found in pool.map(_names, patterns) for name in found]
            addresses = list(pool.map(look, sorted(set(names))))
    except RemoteError as error:
        raise SourceError(f"{at}: {error.filename}: {error.strerror}") from None
    except Missing as error:
        raise SourceError(f"{at}: {error}") from None
    if not addresses:
        raise SourceError(f"{at}: no file matches; check the address, globs and ranges such as {{00..09}}")
    if len({public(address) for address in addresses}) < len(addresses):
        raise SourceError(f"{at}: some of its addresses differ in their queries alone, and keys need names; fetch them to files")
    whole, why = choose_way(at, addresses)
    log.info("%s: %s", at, why)
    for address in addresses:
        address.whole = whole
    return addresses


def _names(pattern: str) -> list[str]:
    """The addresses that a pattern without braces names. Raises RemoteError."""
    address = Address(pattern)
    path = pattern.partition("://")[2].partition("?")[0].partition("/")[2]
    if not any(letter in path for letter in "*["):  # a host may be one of IPv6, such as [::1]
        return [pattern]
    return persistently(address, lambda store: store.glob(pattern), LOOKS)
