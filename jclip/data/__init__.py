"""The data room: sources of examples, transforms of one example, the tokenizer, and the loader of batches."""

from jclip.data.fields import Found, find
from jclip.data.loader import Batch, LostWorker, make_loader, make_run_loader
from jclip.data.mixture import Mixture, Shares, in_numbers, open_data, planned
from jclip.data.open import SCHEMES, Scheme, open_source
from jclip.data.reader import EvalBatch, read_field, read_once
from jclip.data.source import BadExample, Source, SourceError, lookup
from jclip.data.subset import SelectedExamples, open_part, select
from jclip.data.tokenizer import detokenize, get_tokenizer, text_ends, text_parts
from jclip.data.transforms import INPUTS, Reading, Transform, eval_transform, train_transform

__all__ = [
    "INPUTS",
    "SCHEMES",
    "BadExample",
    "Batch",
    "EvalBatch",
    "Found",
    "LostWorker",
    "Mixture",
    "Reading",
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
    "text_ends",
    "text_parts",
    "train_transform",
]
