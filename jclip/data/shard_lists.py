"""Lists of shards that other loaders write beside their tars: the JSON of webdataset's wids, and Energon's folder .nv-meta.

    FILE.json                       {"shardlist": [{"url": PATH, "nsamples": N}, ...]}, with "base_path" before the paths if given
    DIR/.nv-meta/.info.json         {"shard_counts": {PATH: N, ...}}; older versions write the same as .info.yaml
    DIR/.nv-meta/split.yaml         split_parts: {SPLIT: [PATH, ...]}, exclude: [PATH, ...]; or the same as split.json

Sources of the formats: wids/wids_specs.py of webdataset, and flavors/webdataset/structs.py and metadata.py of Megatron Energon.
Lists are not trusted: paths have to lie in the folder of the list, and the shards to have as many samples as it says.
"""

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jclip.data.addresses import shown
from jclip.data.patterns import expand_braces
from jclip.data.source import SourceError, split_options
from jclip.data.webdataset import WebDataset, open_shards
from jclip.files import read_whole

META = ".nv-meta"
"""Folder of Energon's files."""

MOST = 2**28
"""Bytes of a list: ten million shards have some 200 MB."""

MOST_SHARDS = 1_000_000
"""Shards of a list, with its braces expanded."""

SHOWN = 3
"""Shards that a message names."""


class Listed(NamedTuple):
    """The shards of a list, in its order, which is that of the examples."""

    paths: list[str]
    counts: list[int]
    """Samples of each, as the list says."""


def is_list(name: str) -> bool:
    """True for the name of a list of shards: a JSON file, a folder .nv-meta, or a folder that has one."""
    path = os.path.expanduser(name)
    folder = os.path.basename(path.rstrip("/")) == META or os.path.isdir(os.path.join(path, META))
    return folder or name.endswith(".json")


def open_list(spec: str) -> WebDataset:
    """Opens the shards of a list: "FILE.json[?captions=lines]", "DIR[/.nv-meta][?split=NAME][&captions=lines]".

    Raises:
        SourceError: the list cannot be read, says what cannot be, or asks for what is not done here; a shard is missing, damaged,
            or has another number of samples than the list says.
    """
    at = f"source 'webdataset:{shown(spec)}'"
    name, options = split_options(spec, ("split", "captions"))
    path = Path(os.path.expanduser(name))
    if options.get("captions", "lines") != "lines":
        raise SourceError(f"{at}: captions={options['captions']} is unknown; use captions=lines")
    if path.suffix == ".json":
        if "split" in options:
            raise SourceError(f"{at}: a list of wids has no splits; leave out split=")
        listed = _read_wids(at, path)
    else:
        root = path.parent if path.name == META else path
        listed = _read_energon(at, root, options.get("split"))
    source = open_shards(listed.paths, name, "captions" in options)
    _verify(at, listed, source)
    return source


def _read_wids(at: str, path: Path) -> Listed:
    content = _mapping(at, path, _parse(at, path))
    if content.get("wids_version", 1) != 1:
        raise SourceError(f"{at}: its wids_version is {content['wids_version']!r}, and 1 is read; name the shards by a pattern")
    if "datasets" in content:
        raise SourceError(f"{at}: it lists data sets, which is not read; make a mixture, data.sources, of their own lists")
    rows, base = content.get("shardlist"), content.get("base_path", "")
    if not isinstance(rows, list) or not isinstance(base, str):
        raise SourceError(f"{at}: its shardlist has to be a list, and base_path a path")
    names, counts = list[str](), dict[str, int]()
    for row in rows:
        if not isinstance(row, dict) or not isinstance(name := row.get("url"), str):
            raise SourceError(f"{at}: entry {len(names)} of its shardlist has no url")
        names.append(os.path.join(base, name))
        counts[names[-1]] = _count(at, name, row.get("nsamples"))
    return _listed(at, path.parent, names, counts)


def _read_energon(at: str, root: Path, split: str | None) -> Listed:
    info = _first_of(at, root / META, (".info.json", ".info.yaml"))
    counted = _mapping(at, info, _mapping(at, info, _parse(at, info)).get("shard_counts"))
    counts = {str(name): _count(at, name, count) for name, count in counted.items()}
    path = _first_of(at, root / META, ("split.yaml", "split.json"))
    content = _mapping(at, path, _parse(at, path))
    parts = _mapping(at, path, content.get("split_parts"))
    filled = [str(name) for name, shards in parts.items() if shards]
    if split is None and len(filled) != 1:
        raise SourceError(f"{at}: add ?split=NAME; {path.name} has {', '.join(filled) or 'none'}")
    split = filled[0] if split is None else split
    if split not in filled:
        raise SourceError(f"{at}: there is no split {split!r} with shards; {path.name} has {', '.join(filled) or 'none'}")
    excluded = set(_names(at, path, content.get("exclude") or []))
    if samples := sorted(excluded - counts.keys()):
        raise SourceError(
            f"{at}: {path.name} excludes {samples[0]!r}, which is no shard; single samples are left out by data.subset, "
            "so take this entry away"
        )
    names = [name for name in _names(at, path, parts[split]) if name not in excluded]
    if unknown := [name for name in names if name not in counts]:
        raise SourceError(f"{at}: {path.name} names {unknown[0]!r}, which {info.name} does not count; prepare the set again")
    return _listed(at, root, names, counts)


def _listed(at: str, root: Path, names: list[str], counts: Mapping[str, int]) -> Listed:
    """The shards by their paths, each once and below the folder of the list."""
    if not names:
        raise SourceError(f"{at}: it names no shard")
    if (most := Counter(names).most_common(1)[0])[1] > 1:
        raise SourceError(f"{at}: it names {most[0]!r} {most[1]} times; a shard can be there once")
    paths = [_place(at, root, name) for name in names]
    if len(set(paths)) < len(paths):
        raise SourceError(f"{at}: two of its names are those of one file; a shard can be there once")
    return Listed(paths, [counts[name] for name in names])


def _place(at: str, root: Path, name: str) -> str:
    """The path of a shard; links below the folder are followed."""
    if "://" in name or name.startswith("pipe:"):
        raise SourceError(f"{at}: it names {shown(name[:200])!r}; paths below its folder are read; name addresses by a pattern")
    folder = os.path.abspath(root)
    path = os.path.normpath(os.path.join(folder, name))
    if not path.startswith(folder.rstrip(os.sep) + os.sep) or "\0" in name:
        raise SourceError(f"{at}: its shard {name[:200]!r} lies outside {folder}; put the list into the folder that holds all")
    if not name.endswith(".tar"):
        raise SourceError(f"{at}: it names {name[:200]!r}, which is no .tar; other data of such lists are not read")
    if not os.path.isfile(path):
        raise SourceError(f"{at}: there is no file {path!r}, which it names; get it, or write the list anew")
    return path


def _verify(at: str, listed: Listed, source: WebDataset) -> None:
    """Raises SourceError where the shards are not those that the list counts."""
    if source.skipped_shards or source.cut_shards:
        raise SourceError(f"{at}: {(*source.skipped_shards, *source.cut_shards)[0]}; get this file again")
    ends = source.shard_ends
    found = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    wrong = [
        f"{path} has {there:,} samples, and the list says {said:,}"
        for path, said, there in zip(listed.paths, listed.counts, found, strict=True)
        if said != there
    ]
    if wrong:
        more = f"; and {len(wrong) - SHOWN:,} more" if len(wrong) > SHOWN else ""
        raise SourceError(f"{at}: {'; '.join(wrong[:SHOWN])}{more}; write the list anew, or name the shards by a pattern")


def _names(at: str, path: Path, names: Any) -> list[str]:
    """Names of shards, whose braces are expanded."""
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise SourceError(f"{at}: {path.name} has {_brief(names)} where a list of shards belongs")
    found = list[str]()
    for name in names:
        found += expand_braces(at, name)
        if len(found) > MOST_SHARDS:
            raise SourceError(f"{at}: {path.name} names more than {MOST_SHARDS:,} shards; make fewer of them, or lists of parts")
    return found


def _count(at: str, name: object, count: Any) -> int:
    if isinstance(count, bool) or not isinstance(count, int) or not 0 <= count < 2**63:
        raise SourceError(f"{at}: it says that {str(name)[:200]!r} has {_brief(count)} samples; write a number from 0 on")
    return count


def _brief(value: object) -> str:
    """A value in a message: a text or a small number, and else its type, because aliases can make a few bytes a huge list."""
    small = isinstance(value, (str, bool, float, type(None))) or (isinstance(value, int) and abs(value) < 2**63)
    return repr(str(value)[:60]) if small else f"something of type {type(value).__name__}"


def _first_of(at: str, folder: Path, names: Iterable[str]) -> Path:
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise SourceError(f"{at}: {folder} has no {' or '.join(names)}; run `energon prepare`, or name the shards by a pattern")


def _mapping(at: str, path: Path, value: Any) -> Mapping[Any, Any]:
    if not isinstance(value, Mapping):
        raise SourceError(f"{at}: {path.name} has {_brief(value)} where names and their values belong")
    return value


def _parse(at: str, path: Path) -> Any:
    try:
        data = read_whole(path, MOST)
        if path.suffix == ".json":
            return json.loads(data)
        import yaml  # flax needs it too

        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # both make nothing but plain values
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(data, loader)):
            raise ValueError("it has aliases, by which a few bytes can be a huge list")
        return yaml.load(data, loader)
    except OSError as error:
        raise SourceError(f"{at}: {path} cannot be read: {error.strerror}") from None
    except Exception as error:  # those of YAML, and whatever its constructors raise
        raise SourceError(f"{at}: {path} cannot be parsed: {' '.join(str(error).split())[:200]}") from None
