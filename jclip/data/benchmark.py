"""The layout of CLIP_benchmark's data sets: numbered tar files in a folder for each split, and text files beside the folders.

    ROOT/dataset_type.txt                            classification (also where it is missing), multilabel or retrieval
    ROOT/classnames.txt                              a line for each class, in the order of the labels
    ROOT/zeroshot_classification_templates.txt       a line for each prompt, with {c} for the name of a class
    ROOT/{train,test}/nshards.txt                    the number of shards
    ROOT/{train,test}/{0,1,...}.tar                  KEY.{webp,png,jpg} and KEY.{cls,npy,txt}, by the type of the data set

Source of the layout: clip_benchmark/webdataset_builder.py and build_wds_dataset in clip_benchmark/datasets/builder.py.
"""

import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jclip.data.fingerprint import combine
from jclip.data.source import BadExample, LazyExample, SourceError, caption_lines, read_lines
from jclip.data.webdataset import WebDataset, open_shards

TYPES = ("classification", "multilabel", "retrieval")
"""Content that dataset_type.txt may have."""


@dataclass(frozen=True)
class Benchmark:
    """One split. Fields are those of its shards (see jclip.data.webdataset), and by the type of the data set:

    - classification: "label", int, from KEY.cls.
    - multilabel: "label", bool[C], from KEY.npy, true for each class that is there.
    - retrieval: "captions", a tuple of one or more str, from the lines of KEY.txt, and "text", the first of them.

    A label that does not fit the classes is a SourceError when it is read, because then all labels are in doubt; one that cannot
    be decoded is a BadExample.
    """

    root: Path
    kind: str
    """One of TYPES."""
    samples: WebDataset
    classes: tuple[str, ...]
    templates: tuple[str, ...]
    """Prompts, with {} for the name of a class."""

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def shards(self) -> dict[str, int]:
        """Bytes of each shard, by name."""
        return self.samples.shards

    @property
    def shard_paths(self) -> list[str]:
        """Path of each shard."""
        return self.samples.shard_paths

    @property
    def shard_ends(self) -> list[int]:
        """Number of samples up to the end of each shard."""
        return self.samples.shard_ends

    def __getitem__(self, index: int) -> LazyExample:
        example = self.samples[index]
        readers: dict[str, Callable[[], Any]] = {name: partial(example.__getitem__, name) for name in example if name != "key"}
        match self.kind:
            case "classification" if "label" in example:
                readers["label"] = partial(self._index, example)
            case "multilabel" if "npy" in example:
                readers["label"] = partial(self._multi_hot, example)
            case "retrieval" if "text" in example:
                readers["captions"] = lambda: caption_lines(example["text"])
                readers["text"] = lambda: caption_lines(example["text"])[0]
        return LazyExample(example["key"], readers, example.aliases)

    def fingerprint(self) -> str:
        """See Source: over the shards' bytes, the type and the names of the classes."""
        return combine("benchmark", self.samples.fingerprint(), self.kind, *self.classes)

    def _index(self, example: LazyExample) -> int:
        label: int = example["label"]
        if self.classes and not 0 <= label < len(self.classes):
            raise SourceError(
                f"{self._of(example)}: its label is {label}, but {self.root / 'classnames.txt'} has {len(self.classes)} lines, "
                "for the labels from 0 on; mend that file"
            )
        return label

    def _multi_hot(self, example: LazyExample) -> NDArray[np.bool_]:
        label = _array(example["npy"])
        if label.ndim != 1:
            raise BadExample(f"its .npy is an array of shape {label.shape}, not a row of a number for each class")
        if self.classes and label.size != len(self.classes):
            raise SourceError(
                f"{self._of(example)}: its label has {label.size} numbers, but {self.root / 'classnames.txt'} has "
                f"{len(self.classes)} lines, and there is one for each class; mend that file"
            )
        if not np.isin(label, (0, 1)).all():
            raise BadExample("its label has numbers other than 0 and 1")
        return label.astype(np.bool_)

    def _of(self, example: LazyExample) -> str:
        return f"{self.root}: {example['key']}"


def _array(data: bytes) -> NDArray[Any]:
    """A .npy of numbers; nothing in it is ever run."""
    try:
        array = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
    except Exception as error:  # its header is a piece of Python, and a damaged one meets whatever the tokenizer raises
        raise BadExample(f"its .npy cannot be read: {error}") from None
    if array.dtype.kind not in "biuf":
        raise BadExample(f"its .npy is of {array.dtype}, not of numbers")
    return array


def open_benchmark(folder: str) -> Benchmark:
    """Opens ROOT/SPLIT, where nshards.txt is.

    Raises:
        SourceError: a file says what cannot be, or a shard is missing, cut short, or one too many: numbers of a part of a data
            set cannot be compared with anybody's.
    """
    root = Path(os.path.abspath(folder)).parent
    written = root / "dataset_type.txt"
    kind = read_lines(written)[0].lower() if written.exists() else "classification"
    if kind not in TYPES:
        raise SourceError(f"{written}: the type {kind!r} is unknown; use {', '.join(TYPES)}")
    classes: tuple[str, ...] = ()
    templates: tuple[str, ...] = ()
    if kind != "retrieval":
        if (names := root / "classnames.txt").exists():
            classes = read_lines(names)
        if (prompts := root / "zeroshot_classification_templates.txt").exists():
            templates = _templates(prompts)
    shards = open_shards(_paths(folder), folder)
    if damaged := (*shards.skipped_shards, *shards.cut_shards):
        raise SourceError(f"source 'webdataset:{folder}': {damaged[0]}; get this file again")
    return Benchmark(root, kind, shards, classes, templates)


def _paths(folder: str) -> list[str]:
    """The shards, in the order of their numbers."""
    counted = Path(folder, "nshards.txt")
    text = read_lines(counted)[0]
    if not text.isascii() or not text.isdigit() or not int(text):
        raise SourceError(f"{counted} says {text[:40]!r}; write the number of shards, 1 or more")
    count = int(text)
    there = {path.name for path in Path(folder).glob("*.tar")}
    wanted = [f"{number}.tar" for number in range(min(count, len(there) + 1))]
    if missing := next((name for name in wanted if name not in there), None):
        raise SourceError(
            f"{counted} says {count}, but there is no {missing} beside it; get it, or write how many shards there are"
        )
    if len(there) > count:
        more = sorted(there - set(wanted))[0]
        raise SourceError(f"{counted} says {count}, but {more} is there as well; write how many there are, or take it away")
    return [os.path.join(folder, name) for name in wanted]


def _templates(path: Path) -> tuple[str, ...]:
    templates = read_lines(path)
    for number, template in enumerate(templates, 1):
        if "{c}" not in template:
            raise SourceError(f"{path}: line {number} has no {{c}}, where the name of a class goes: {template!r}")
    return tuple(template.replace("{c}", "{}") for template in templates)
