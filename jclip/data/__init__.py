"""The data room: sources of examples, transforms of one example, the tokenizer, and the loader of batches."""

import importlib
from typing import TYPE_CHECKING, Any

from jclip.data.inputs import INPUTS, eval_transform, train_transform
from jclip.data.reading import Reading, Transform
from jclip.data.source import BadExample, Example, Source, SourceError, lookup
from jclip.data.tokenizer import detokenize, get_tokenizer, text_ends, text_parts

if TYPE_CHECKING:  # imported at first use: who embeds pictures needs no loader
    from jclip.data.fields import Found as Found
    from jclip.data.fields import find as find
    from jclip.data.loader import Batch as Batch
    from jclip.data.loader import LostWorker as LostWorker
    from jclip.data.loader import make_loader as make_loader
    from jclip.data.loader import make_run_loader as make_run_loader
    from jclip.data.mixture import Mixture as Mixture
    from jclip.data.mixture import Shares as Shares
    from jclip.data.mixture import in_numbers as in_numbers
    from jclip.data.mixture import open_data as open_data
    from jclip.data.mixture import planned as planned
    from jclip.data.open import SCHEMES as SCHEMES
    from jclip.data.open import Scheme as Scheme
    from jclip.data.open import open_source as open_source
    from jclip.data.reader import EvalBatch as EvalBatch
    from jclip.data.reader import read_field as read_field
    from jclip.data.reader import read_once as read_once
    from jclip.data.run_data import RunData as RunData
    from jclip.data.subset import SelectedExamples as SelectedExamples
    from jclip.data.subset import open_part as open_part
    from jclip.data.subset import select as select
    from jclip.data.subset import source_name as source_name

_LAZY = {
    **dict.fromkeys(("Found", "find"), "fields"),
    **dict.fromkeys(("Batch", "LostWorker", "make_loader", "make_run_loader"), "loader"),
    **dict.fromkeys(("Mixture", "Shares", "in_numbers", "open_data", "planned"), "mixture"),
    **dict.fromkeys(("SCHEMES", "Scheme", "open_source"), "open"),
    **dict.fromkeys(("EvalBatch", "read_field", "read_once"), "reader"),
    "RunData": "run_data",
    **dict.fromkeys(("SelectedExamples", "open_part", "select", "source_name"), "subset"),
}
"""Names that are imported at first use, with their modules."""

__all__ = [
    "INPUTS",
    "SCHEMES",
    "BadExample",
    "Batch",
    "EvalBatch",
    "Example",
    "Found",
    "LostWorker",
    "Mixture",
    "Reading",
    "RunData",
    "Scheme",
    "SelectedExamples",
    "Shares",
    "Source",
    "SourceError",
    "Transform",
    "detokenize",
    "eval_transform",
    "find",
    "get_tokenizer",
    "in_numbers",
    "lookup",
    "make_loader",
    "make_run_loader",
    "open_data",
    "open_part",
    "open_source",
    "planned",
    "read_field",
    "read_once",
    "select",
    "source_name",
    "text_ends",
    "text_parts",
    "train_transform",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
