"""The files that a pattern names: braces, globs, and the clear word where it is no pattern of files."""

import glob
import os
import re
from collections.abc import Iterator
from itertools import product

from jclip.data.addresses import SCHEMES, is_address, public, shown
from jclip.data.source import SourceError

MOST = 1_000_000
"""Files that braces may name."""


def expand(pattern: str, scheme: str = "webdataset") -> list[str]:
    """The sorted paths, or addresses, that a pattern names.

    Args:
        pattern: a path with globs (*, ?, [ab]) and braces ({00000..00099}, zero-padded as its first number is, or {a,b}); ~ is
            the home folder. Folders at its beginning that exist as they are written are taken so, whatever is in their names.
            A path that braces name must exist.
            Addresses have braces, and globs where their store has lists of files: s3, gs and hf.
        scheme: the source whose pattern it is, as errors name it.

    Raises:
        SourceError: there is no such file, braces name too many, it is an address that cannot be read, or a command.
    """
    at = f"source '{scheme}:{shown(pattern)}'"
    _refuse_others(at, pattern)
    if is_address(pattern):
        from jclip.data.ways import find

        return list[str](find(at, list(expand_braces(at, pattern))))
    prefix, rest = _split(os.path.expanduser(pattern))
    paths: set[str] = set()
    for part in expand_braces(at, rest):
        path = prefix + part
        if os.path.exists(path):
            paths.add(path)
        elif glob.has_magic(part):
            paths.update(glob.glob(glob.escape(prefix) + part))
        else:
            raise SourceError(f"{at}: there is no file {path!r}; folder: {os.path.dirname(path) or '.'!r}")
    folders = [path for path in paths if os.path.isdir(path)]
    if folders:
        tars = scheme == "webdataset"
        hint = "; folder:DIR is one of images (and one of CLIP_benchmark's layout has nshards.txt in it)" if tars else ""
        suffix = "tar" if tars else scheme
        raise SourceError(f"{at}: {folders[0]!r} is a folder; name its files, as in {folders[0].rstrip('/')}/*.{suffix}{hint}")
    if not paths:
        raise SourceError(f"{at}: no file matches; check the path, globs and ranges such as {{00..09}}")
    return sorted(paths)


def short_names(paths: list[str]) -> list[str]:
    """The files' names; with as much of the folders as tells them apart, where names are equal."""
    paths = [public(path) for path in paths]
    names = [os.path.basename(path) for path in paths]
    if len(set(names)) == len(names):
        return names
    common = os.path.commonpath([os.path.abspath(path) for path in paths])
    return [os.path.relpath(os.path.abspath(path), common) for path in paths]


def _refuse_others(at: str, pattern: str) -> None:
    """Says what to do with what other loaders read: commands, other stores, lists of patterns."""
    if pattern.startswith("pipe:"):
        raise SourceError(f"{at}: commands are not run; name the addresses of the shards, as in https://, s3://, gs:// and hf://")
    if is_address(pattern):
        return
    if scheme := re.match(r"([A-Za-z0-9+.-]+)://", pattern):
        others = ", ".join(f"{name}://" for name in SCHEMES)
        raise SourceError(f"{at}: {scheme[0]} is not read, but {others}; mount it or fetch the shards to files, and name these")
    if "::" in pattern and not os.path.exists(pattern):
        raise SourceError(f"{at}: '::' joins nothing; name several patterns in braces: {{{','.join(pattern.split('::'))}}}")


def _split(pattern: str) -> tuple[str, str]:
    """The folders at the beginning of a pattern that exist as they are written, and the rest, which has braces and globs."""
    if os.path.exists(pattern):
        return pattern, ""
    place = 0
    while (slash := pattern.find("/", place)) >= 0 and os.path.isdir(pattern[: slash + 1]):
        place = slash + 1
    return pattern[:place], pattern[place:]


def expand_braces(at: str, pattern: str) -> Iterator[str]:
    """Names with {00..99} and {a,b} expanded; braces around one word are letters. Raises SourceError, beginning with `at`."""
    parts: list[list[str] | range] = []
    widths: list[int] = []
    count = 1
    for i, part in enumerate(re.split(r"\{([^{}]*)\}", pattern)):
        width = 0
        if i % 2 == 0:
            choices: list[str] | range = [part]
        elif ends := re.fullmatch(r"(\d{1,18})\.\.(\d{1,18})", part):
            low, high = ends.groups()
            if int(low) > int(high):
                raise SourceError(f"{at}: the range {{{part}}} is empty; write {{{high}..{low}}}")
            choices, width = range(int(low), int(high) + 1), len(low) if low.startswith("0") else 0
        else:
            choices = part.split(",") if "," in part else [f"{{{part}}}"]
        count *= len(choices)
        if count > MOST:
            raise SourceError(f"{at}: the braces name {count:,} files or more; at most {MOST:,} can be")
        parts.append(choices)
        widths.append(width)
    for choice in product(*parts):
        yield "".join(str(part).zfill(width) for part, width in zip(choice, widths, strict=True))
