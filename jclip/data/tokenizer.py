"""Text to token ids: CLIP's byte-pair encoding with exactly the ids of open_clip's, and vocabularies from files."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from jclip import config
from jclip.config import ConfigError, TokenTower
from jclip.data.clean import RULES
from jclip.data.vocabulary import load_vocabulary

START_OF_TEXT = 49406
END_OF_TEXT = 49407


class Tokenizer(Protocol):
    """Makes token ids of one text or several; picklable, and safe to call from several threads."""

    def __call__(self, text: str | Sequence[str], context_length: int) -> NDArray[np.int32]:
        """i32[L] of a str, i32[n,L] of n texts, where L is `context_length`; cut to L, or padded."""
        ...


def get_tokenizer(config: config.TokenizerConfig) -> Tokenizer:
    """The tokenizer of a tower. A vocabulary file is read at the first call in a process, and once."""
    return ClipTokenizer(config.clean) if config.kind == "clip" else FileTokenizer(config)


def text_ends(tower: TokenTower) -> tuple[int, int, int]:
    """The ids that start a text of a tower, end it, and fill what is left, of towers that a `Caption` may be of."""
    start, end = _ends(tower)
    assert start is not None
    assert end is not None
    return start, end, tower.tokenizer.pad_id


def detokenize(tower: TokenTower, rows: NDArray[np.int32]) -> list[str]:
    """The texts of token ids i32 [n, L], from behind the start to before the end; cleaned as they were, not as they were written.

    A text without an end, which was cut or whose tokenizer puts none, ends before its padding.

    Raises:
        ConfigError: the vocabulary file is missing, damaged or another one, or its library is not installed.
    """
    tokenizer = tower.tokenizer
    decode = built_in_tokenizer().decode if tokenizer.kind == "clip" else load_vocabulary(tokenizer).decode
    return [" ".join(decode(_words(tower, row)).split()) for row in rows.tolist()]


def text_parts(tower: TokenTower, text: str) -> tuple[list[int], list[int], list[int]]:
    """Ids before a text, of its words, and of its end, without padding.

    Raises:
        ConfigError: the text fills the context, and so may have been cut, or the tokenizer puts something behind the padding.
    """
    if tower.tokenizer.last_id is not None:
        raise ConfigError("tokenizer: it puts an id behind the padding (last_id); prompts cannot be put together")
    row = get_tokenizer(tower.tokenizer)(text, tower.context_length).tolist()
    words, (start, end) = _words(tower, row), _ends(tower)
    first = int(row[0] == start)
    after = [id_ for id_ in row[first + len(words) :][:1] if id_ == end]
    if first + len(words) + len(after) >= tower.context_length and text:
        raise ConfigError(f"tokenizer: {text[:80]!r} fills the context of {tower.context_length} tokens; shorten it")
    return row[:first], words, after


def _ends(tower: TokenTower) -> tuple[int | None, int | None]:
    """The ids that start a text and end it; None where the configuration names none."""
    how = tower.tokenizer
    if how.kind == "clip":
        return START_OF_TEXT, END_OF_TEXT
    return how.bos_id, tower.eot_id if how.eos_id is None else how.eos_id


def _words(tower: TokenTower, ids: list[int]) -> list[int]:
    """The ids between the start of a text and its end, or its padding."""
    how, (start, end) = tower.tokenizer, _ends(tower)
    ids = ids[1:] if ids[0] == start else ids
    if end in ids:
        return ids[: ids.index(end)]
    if how.kind == "clip":  # 0 is a word too, and fills what is left behind an end alone
        return ids
    ids = ids[:-1] if ids[-1:] == [how.last_id] else ids
    while ids and ids[-1] == how.pad_id:  # only those behind the text, within which the same id may be a word
        ids = ids[:-1]
    return ids


def check_vocabulary(tower: TokenTower) -> None:
    """Raises ConfigError where the vocabulary file of `tower` is missing, damaged, another one, or has too many ids."""
    tokenizer = tower.tokenizer
    if tokenizer.kind == "clip":
        return
    size = load_vocabulary(tokenizer).size
    if size > tower.vocab_size:
        raise ConfigError(
            f"tokenizer: {tokenizer.file} has ids up to {size - 1}, and vocab_size is {tower.vocab_size}; "
            "use the file that the model was trained with"
        )


@dataclass(frozen=True)
class ClipTokenizer:
    """OpenAI's CLIP tokenizer: start of text 49406, ids, end of text 49407, then zeros.

    A text with more than L-2 ids keeps the first L-2 of them, and ends in 49407 nevertheless. The ids are those of
    open_clip's SimpleTokenizer, but for three characters (U+017F and U+FB05 after an apostrophe, U+0345) and for letters newer
    than Unicode 15, which are also other ids from one version of its regular expressions to the next.
    """

    clean: str = "lower"
    """One of RULES; all of them but those that make lower case are refused by config.check."""

    def __call__(self, text: str | Sequence[str], context_length: int) -> NDArray[np.int32]:
        """See Tokenizer. Raises ValueError if context_length is below 2, where start and end have no room."""
        return _rows(text, context_length, self._row)

    def _row(self, text: str, length: int) -> NDArray[np.int32]:
        if length < 2:
            raise ValueError(f"context_length {length} has no room for the start and end of text; use at least 2")
        # Every word has at least one id, so the ids that fit lie within the first `length` words: a caption of 100 kB
        # costs no more than its beginning.
        words = RULES[self.clean](text).split(" ", length)[:length]
        ids = built_in_tokenizer().encode(" ".join(words))[: length - 2]
        row = np.zeros(length, np.int32)
        row[: len(ids) + 2] = [START_OF_TEXT, *ids, END_OF_TEXT]
        return row


@dataclass(frozen=True)
class FileTokenizer:
    """A tokenizer whose vocabulary is a file: sentencepiece, or Hugging Face's tokenizer.json.

    Ids that do not fit into L are cut off at the end; those that config (bos_id, eos_id, last_id), or else the tokenizer.json,
    puts around every text are kept. The rest of L is filled with pad_id; last_id comes behind that.
    """

    config: config.TokenizerConfig

    def __call__(self, text: str | Sequence[str], context_length: int) -> NDArray[np.int32]:
        """See Tokenizer.

        Raises:
            ConfigError: the vocabulary file is missing, damaged or another one, or its library is not installed.
            ValueError: context_length has no room for what is put around every text.
        """
        return _rows(text, context_length, self._row)

    def _row(self, text: str, length: int) -> NDArray[np.int32]:
        config, vocabulary = self.config, load_vocabulary(self.config)
        clean = RULES[config.clean](text.encode("utf-8", "replace").decode())  # no library takes half a surrogate pair
        before = [] if config.bos_id is None else [config.bos_id]
        after = [] if config.eos_id is None else [config.eos_id]
        last = [] if config.last_id is None else [config.last_id]
        room = length - len(before) - len(after) - len(last)
        if room < 0:
            raise ValueError(f"context_length {length} has no room for what is put around a text; use at least {length - room}")
        ids = [*before, *vocabulary.encode(clean, room, bare=bool(before or after or last)), *after]
        row = np.full(length, config.pad_id, np.int32)
        row[: len(ids)] = ids
        if last:
            row[-1] = last[0]
        if config.strip_id is not None:
            row[row == config.strip_id] = 0
        return row


def _rows(text: str | Sequence[str], length: int, row: Callable[[str, int], NDArray[np.int32]]) -> NDArray[np.int32]:
    if isinstance(text, str):
        return row(text, length)
    rows = np.zeros((len(text), length), np.int32)
    for target, one in zip(rows, text, strict=True):
        target[:] = row(one, length)
    return rows


@functools.cache
def built_in_tokenizer() -> Any:
    """CLIP's byte-pair encoding, made once a process, in 0.1 s: `encode` gives the ids of cleaned text, without start and end."""
    try:
        import instant_clip_tokenizer
    except ImportError:
        raise ModuleNotFoundError(
            "tokenizer 'clip' needs the package instant-clip-tokenizer, which has wheels for Python 3.11 and 3.12: "
            "use one of these and `pip install instant-clip-tokenizer`"
        ) from None
    return instant_clip_tokenizer.Tokenizer()
