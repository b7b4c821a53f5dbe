"""Text to token ids: CLIP's byte-pair encoding, with exactly the ids of OpenAI's and open_clip's tokenizers."""

import functools
import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from jclip import config

START_OF_TEXT = 49406
END_OF_TEXT = 49407


class Tokenizer(Protocol):
    """Makes token ids of one text or several."""

    def __call__(self, text: str | Sequence[str], context_length: int) -> NDArray[np.int32]:
        """i32[L] of a str, i32[n,L] of n texts, where L is `context_length`; cut to L, or padded."""
        ...


def get_tokenizer(config: config.Tokenizer) -> Tokenizer:
    """The tokenizer of a tower; picklable, and safe to call from several threads."""
    if config.kind != "clip":
        raise ValueError(f"tokenizer {config.kind!r} is unknown; use 'clip'")
    return ClipTokenizer()


@dataclass(frozen=True)
class ClipTokenizer:
    """OpenAI's CLIP tokenizer: start of text 49406, ids, end of text 49407, then zeros.

    A text with more than L-2 ids keeps the first L-2 of them, and ends in 49407 nevertheless. The ids are those of
    open_clip's SimpleTokenizer, but for three characters (U+017F and U+FB05 after an apostrophe, U+0345) and for letters newer
    than Unicode 15, which are also other ids from one version of its regular expressions to the next.
    """

    def __call__(self, text: str | Sequence[str], context_length: int) -> NDArray[np.int32]:
        """See Tokenizer. Raises ValueError if context_length is below 2, where start and end have no room."""
        if context_length < 2:
            raise ValueError(f"context_length {context_length} has no room for the start and end of text; use at least 2")
        if isinstance(text, str):
            return self._row(text, context_length)
        rows = np.zeros((len(text), context_length), np.int32)
        for row, one in zip(rows, text, strict=True):
            row[:] = self._row(one, context_length)
        return rows

    def _row(self, text: str, length: int) -> NDArray[np.int32]:
        # Every word has at least one id, so the ids that fit lie within the first `length` words: a caption of 100 kB
        # costs no more than its beginning.
        words = clean(text).split(" ", length)[:length]
        ids = _byte_pair_encoder()(" ".join(words))[: length - 2]
        row = np.zeros(length, np.int32)
        row[: len(ids) + 2] = [START_OF_TEXT, *ids, END_OF_TEXT]
        return row


def clean(text: str) -> str:
    """What CLIP does to a text before encoding it: mend mojibake and HTML entities, one space for white space, lower case."""
    import ftfy

    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.split()).lower()


@functools.cache
def _byte_pair_encoder() -> Callable[[str], list[int]]:
    """Cleaned text to ids, without start and end. Reading the vocabulary takes 0.1 s, so it happens once a process."""
    try:
        import instant_clip_tokenizer
    except ImportError:
        raise ModuleNotFoundError(
            "tokenizer 'clip' needs the package instant-clip-tokenizer, which has wheels for Python 3.11 and 3.12: "
            "use one of these and `pip install instant-clip-tokenizer`"
        ) from None
    encoder: Any = instant_clip_tokenizer.Tokenizer()
    encode: Callable[[str], list[int]] = encoder.encode
    return encode
