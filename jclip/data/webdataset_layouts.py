"""The source `webdataset`: a pattern of shards, a list of them, or a folder of CLIP_benchmark's layout."""

import os
import re

from jclip.data.addresses import is_address, shown
from jclip.data.patterns import expand
from jclip.data.source import Source, SourceError, split_options
from jclip.data.webdataset import open_shards


def open_webdataset(spec: str) -> Source:
    """Opens all shards that a pattern or a list of shards names, or a folder of CLIP_benchmark's layout.

    Nothing that lies beside shards which a pattern names is looked at: their labels have no names.

    Args:
        spec: "PATTERN[?captions=lines]", see jclip.data.patterns for the patterns, and `text_readers` for the option; or a
            list of shards, see jclip.data.shard_lists, or the folder of a split of that layout, see jclip.data.benchmark.

    Raises:
        SourceError: no such file; a compressed tar; no sample in any of them; a folder that is no benchmark; no such option.
    """
    pattern, lines = spec, False
    if is_address(spec):
        if spec.partition("?")[0].endswith(".json"):
            raise SourceError(f"source 'webdataset:{shown(spec)}': lists of shards are read from files; use a pattern")
        pattern, options = split_options(spec, ("captions",))
        if options.get("captions", "lines") != "lines":
            raise SourceError(f"source 'webdataset:{shown(spec)}': captions={options['captions']} is unknown; use captions=lines")
        return open_shards(expand(pattern), pattern, bool(options))
    name = spec.partition("?")[0]
    if not os.path.isfile(os.path.join(os.path.expanduser(name), "nshards.txt")):
        from jclip.data.shard_lists import is_list, open_list

        if is_list(name):
            return open_list(spec)
    if match := re.fullmatch(r"(.*)\?([a-z]+)=(.*)", spec):  # a question mark alone is a glob
        if (match[2], match[3]) != ("captions", "lines"):
            raise SourceError(f"source 'webdataset:{spec}': the option {match[2]}={match[3]} is unknown; use captions=lines")
        pattern, lines = match[1], True
    folder = os.path.expanduser(pattern)
    if os.path.isfile(os.path.join(folder, "nshards.txt")):
        from jclip.data.benchmark import open_benchmark

        if lines:
            raise SourceError(f"source 'webdataset:{spec}': dataset_type.txt says what lines are; leave out captions=")
        return open_benchmark(folder)
    return open_shards(expand(pattern), pattern, lines)
