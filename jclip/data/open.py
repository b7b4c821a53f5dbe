"""Sources by name: the table of schemes, which is open, and what names one of them."""

import importlib
import os
from collections.abc import Callable
from typing import NamedTuple

from jclip.data.addresses import SCHEMES as STORES
from jclip.data.addresses import is_address, shown
from jclip.data.source import Source, SourceError


class Scheme(NamedTuple):
    """A kind of source, which the name of a source begins with."""

    open: Callable[[str], Source]
    """Opener: (what is behind "SCHEME:") -> the source. Raises SourceError."""
    example: str
    """Name of a source, as errors show it."""


def _later(module: str, function: str) -> Callable[[str], Source]:
    """A function that is imported when it is called: no format brings what the others need."""

    def opened(rest: str) -> Source:
        source: Source = getattr(importlib.import_module(f"jclip.data.{module}"), function)(rest)
        return source

    return opened


SCHEMES: dict[str, Scheme] = {
    "shapes": Scheme(_later("shapes", "open_shapes"), "shapes:train?size=64"),
    "webdataset": Scheme(_later("webdataset_layouts", "open_webdataset"), "webdataset:/data/train-{00000..00099}.tar"),
    "arrayrecord": Scheme(_later("array_records", "open_array_records"), "arrayrecord:/data/packed"),
    "tfds": Scheme(_later("tfds", "open_tfds"), "tfds:cifar10:test"),
    "folder": Scheme(_later("folder", "open_folder"), "folder:/data/photos"),
    "parquet": Scheme(_later("parquet", "open_parquet"), "parquet:/data/train-*.parquet"),
    "csv": Scheme(_later("rows", "open_csv"), "csv:/data/train.csv?image=filepath&images=/data/photos"),
    "jsonl": Scheme(_later("rows", "open_jsonl"), "jsonl:/data/metadata.jsonl"),
    "sugarcrepe": Scheme(_later("selection", "open_sugarcrepe"), "sugarcrepe:/data/swap_obj.json?images=/data/val2017"),
    "winoground": Scheme(_later("selection", "open_winoground"), "winoground:/data/examples.jsonl?images=/data/images"),
    "esc50": Scheme(_later("esc50", "open_esc50"), "esc50:/data/ESC-50-master?folds=1,2,3,4"),
}
"""Every scheme. A row of your own, added by a recipe or before `train.main` is called, is one of them."""


def open_source(spec: str) -> Source:
    """Opens the source that `spec` names, of a scheme in SCHEMES.

    - `shapes:SPLIT[?size=64&length=N&seed=0&classes=seen]`: drawn scenes, see jclip.data.shapes; the splits counting and
      left_right are for selection, see jclip.data.shapes_selection.
    - `webdataset:PATTERN`: tar files; PATTERN has globs and ranges such as {00000..00099}, see jclip.data.patterns.
    - `webdataset:ROOT/SPLIT`: a folder of CLIP_benchmark's layout, with nshards.txt, see jclip.data.benchmark.
    - `webdataset:FILE.json`, `webdataset:DIR[/.nv-meta]?split=NAME`: shards by the lists of webdataset's wids and of Energon, see
      jclip.data.shard_lists.
    - `arrayrecord:DIR`, `arrayrecord:PATTERN`: array_record files of tf.train.Example, see jclip.data.array_records.
    - `tfds:NAME[/CONFIG]:SPLIT[?data_dir=FOLDER]`: a prepared TensorFlow Dataset, see jclip.data.tfds.
    - `folder:DIR`: images in a folder and those below it, see jclip.data.folder.
    - `folder:DIR?labels=folders`: the same, labelled by the folders right below DIR.
    - `webdataset:PATTERN?captions=lines`, `folder:DIR?captions=lines`: each line of a text is a caption of its image.
    - `parquet:PATTERN`, `csv:FILE`, `jsonl:FILE`: rows of tables, whose columns are fields, and images bytes or paths:
      `?image=COLUMN&text=COLUMN&label=COLUMN&key=COLUMN&images=DIR&captions=lines`, see jclip.data.parquet and jclip.data.rows.
      With `captions=rows` the rows of an image are one example, see jclip.data.grouped; with `urls=yes` images may be addresses.
    - PATTERN and FILE of webdataset, parquet, csv and jsonl may be addresses, and `images` one of a folder: `https://`, `s3://`,
      `gs://`, `hf://datasets/ORG/NAME/`; see jclip.data.ways.
    - `esc50:DIR[?folds=1,2][&esc10=1]`: sounds in ESC-50's layout, with their folds, see jclip.data.esc50.
    - `sugarcrepe:FILE?images=DIR`, `winoground:FILE?images=DIR`: images beside right and wrong captions, see
      jclip.data.selection.

    Raises:
        SourceError: no such scheme, split, option or file.
    """
    scheme, colon, rest = spec.partition(":")
    if scheme not in SCHEMES or not colon:
        examples = "; ".join(scheme.example for scheme in SCHEMES.values())
        raise SourceError(f"source {shown(spec)!r}: {_hint(spec)}; use one of, for example: {examples}")
    return SCHEMES[scheme].open(rest)


TABLES = ((".parquet", "parquet"), (".csv", "csv"), (".tsv", "csv"), (".jsonl", "jsonl"))
"""Endings of names of tables, and the scheme of each."""


def _hint(spec: str) -> str:
    """Problem of a source's name that has no scheme, or one that is none."""
    if "::" in spec:
        return "'::' joins nothing; name several patterns of shards in braces, as in 'webdataset:{a,b}.tar'"
    if spec.startswith("pipe:") or "://" in spec.partition("?")[0]:
        return _hint_at_address(spec)
    if spec.partition("?")[0].endswith((".tar", "}", "*")):
        return f"a pattern of shards has its scheme before it, 'webdataset:{spec}', in quotes: a shell would expand it"
    for ending, kind in TABLES:
        if spec.partition("?")[0].endswith(ending):
            return f"a table has its scheme before it, '{kind}:{spec}'"
    if os.path.isdir(os.path.expanduser(spec)):
        return f"a folder has its scheme before it, 'folder:{spec}'"
    scheme, colon, _ = spec.partition(":")
    return f"the scheme {scheme!r} is unknown" if colon else "there is no such folder, and no scheme"


def _hint_at_address(spec: str) -> str:
    """Problem of an address, or a command, that has no scheme of a source before it."""
    at = spec.removeprefix("pipe:")
    if not is_address(at):
        stores = ", ".join(f"{name}://" for name in STORES)
        what = "commands are not run" if at != spec else "no such store is read"
        return f"{what}; webdataset, parquet, csv and jsonl read addresses of {stores}"
    kind = next((kind for ending, kind in TABLES if at.partition("?")[0].endswith(ending)), "webdataset")
    return f"an address has its scheme before it, '{kind}:{shown(at)}'"
