"""The Parquet files of a pattern, or of a split of a folder."""

import os
import re

from jclip.data.patterns import expand
from jclip.data.source import SourceError


def find_tables(at: str, pattern: str, split: str) -> list[str]:
    """The files of a pattern, or of one split of a folder.

    Raises:
        SourceError: there is no file, none of that split, or there are several splits and none is named.
    """
    folder = os.path.expanduser(pattern)
    if not os.path.isdir(folder):
        if split:
            raise SourceError(f"{at}: split= chooses among the files of a folder, and this is none; name the files")
        return expand(pattern, "parquet")
    place, names = folder, _tables(folder)
    if not names:
        place = os.path.join(folder, "data")
        names = _tables(place)
    splits: dict[str, list[str]] = {}
    for name in names:
        match = re.fullmatch(r"(.+?)(-\d+-of-\d+)?(-[0-9a-f]{16})?\.parquet", name)
        splits.setdefault(match[1] if match and match[2] else "", []).append(os.path.join(place, name))
    if not splits:
        raise SourceError(f"{at}: there is no .parquet file in it, nor in its folder data")
    if split and split not in splits:
        raise SourceError(f"{at}: there is no split {split!r}; splits: {', '.join(splits)}")
    if not split and len(splits) > 1:
        raise SourceError(f"{at}: it has several splits; add ?split= one of {', '.join(filter(None, splits))}")
    return splits[split] if split else next(iter(splits.values()))


def _tables(folder: str) -> list[str]:
    """The names of the Parquet files right below a folder, sorted; none where there is no such folder."""
    return sorted(name for name in os.listdir(folder) if name.endswith(".parquet")) if os.path.isdir(folder) else []
