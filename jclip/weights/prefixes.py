"""Prefixes that wrappers put before the name of every tensor: "module.", "_orig_mod.", "base_model.model.", one or nested."""

import logging
from collections.abc import Callable, Collection, Mapping
from itertools import takewhile
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

log = logging.getLogger(__name__)


def without_prefix(path: Path, tensors: Mapping[str, T], known: Callable[[Collection[str]], Collection[str]]) -> dict[str, T]:
    """The tensors by their names without the prefix that all have in common, if that is what makes them known; it is said.

    Args:
        path: the file, for the message.
        tensors: by name.
        known: names of a file -> those that its format would give it.
    """

    def stripped(prefix: str) -> dict[str, T]:
        return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}

    ends = zip(min(tensors, default=""), max(tensors, default=""), strict=False)  # in alphabetical order all others lie between
    common = "".join(a for a, _ in takewhile(lambda pair: pair[0] == pair[1], ends))
    cuts = [0, *(i + 1 for i, letter in enumerate(common) if letter == ".")]

    def fitting(cut: int) -> int:
        names = stripped(common[:cut]).keys()
        return len(names & set(known(names)))

    best = max(cuts, key=fitting)  # the shortest of equal ones
    if best:
        log.warning("%s: all names begin with %r, which is taken off", path, common[:best])
    return stripped(common[:best])


def prefix_of(missing: Collection[str], unknown: Collection[str]) -> str | None:
    """The prefix of most of the missing names where they are found among the unknown ones; None: they are not."""
    counts: dict[str, int] = {}
    for name in unknown:
        for i, letter in enumerate(name):
            if letter == "." and name[i + 1 :] in missing:
                counts[name[: i + 1]] = counts.get(name[: i + 1], 0) + 1
    return max(counts, key=lambda prefix: counts[prefix]) if counts else None
