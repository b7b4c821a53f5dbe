"""CLIP's own vocabulary as transformers keeps it in files, worked out from the tokenizer that has it built in."""

import functools
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jclip.data.tokenizer import END_OF_TEXT, START_OF_TEXT, built_in_tokenizer
from jclip.weights.errors import WeightsError
from jclip.weights.io.files import read_json

START, END = "<|startoftext|>", "<|endoftext|>"
"""Names that transformers has for the tokens around a text."""

VOCABULARY, MERGES = "vocab.json", "merges.txt"

LAST = "</w>"
"""Ends a token that ends a word."""

BEFORE = (b"", b"\xc3", b"\xe3", b"\xe3\x81", b"\xf0", b"\xf0\x9f", b"\xf0\x9f\x98")
AFTER = (b"", b"\xa0", b"\x90", b"\xa0\xa0", b"\x90\xa0", b"\xa0\xa0\xa0", b"\x90\xa0\xa0")
"""Bytes that make whole characters of the parts of some, from 2 to 4 bytes long."""


class ClipVocabulary(NamedTuple):
    """The tokens, each byte of their UTF-8 written as a printable letter.

    Attributes:
        ids: of all tokens; first the 256 bytes, then the same at the end of a word, then what has been merged.
        merges: the two tokens that make each of the others, in their order.
    """

    ids: Mapping[str, int]
    merges: Sequence[tuple[str, str]]


@functools.cache
def clip_vocabulary() -> ClipVocabulary:
    """Content of vocab.json and merges.txt of OpenAI's models; it takes a second, once a process."""
    decode = built_in_tokenizer().decode
    whole = [*range(33, 127), *range(161, 173), *range(174, 256)]  # bytes that are printable letters of Latin-1
    others = [byte for byte in range(256) if byte not in whole]
    letters = {byte: chr(byte) for byte in whole} | {byte: chr(256 + i) for i, byte in enumerate(others)}
    numbers = {byte: i for i, byte in enumerate(letters)}
    tokens = [*letters.values(), *(letter + LAST for letter in letters.values())]
    for number in range(len(tokens), START_OF_TEXT):
        data = _bytes(decode, number, numbers)
        end = LAST if data.endswith(b" ") else ""
        tokens.append("".join(letters[byte] for byte in data.removesuffix(b" ")) + end)
    ids = {token: number for number, token in enumerate([*tokens, START, END])}
    if ids[END] != END_OF_TEXT:
        raise ValueError("two tokens of CLIP's vocabulary are spelt alike")
    return ClipVocabulary(ids, [_parts(token, ids) for token in tokens[2 * len(letters) :]])


def write_clip_vocabulary(folder: Path) -> None:
    """Writes vocab.json and merges.txt."""
    vocabulary = clip_vocabulary()
    (folder / VOCABULARY).write_text(json.dumps(vocabulary.ids, ensure_ascii=False), "utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in vocabulary.merges)]
    (folder / MERGES).write_text("\n".join(lines) + "\n", "utf-8")


def check_clip_vocabulary(folder: Path) -> None:
    """Raises WeightsError where a folder holds another vocab.json or merges.txt; neither is as good as both."""
    found = [name for name in (VOCABULARY, MERGES) if (folder / name).is_file()]
    if len(found) == 1:
        raise WeightsError(f"{folder}: holds {found[0]} alone; put both {VOCABULARY} and {MERGES} there")
    if not found:
        return
    vocabulary = clip_vocabulary()
    lines = (folder / MERGES).read_text("utf-8", "replace").splitlines()
    merges = [tuple(line.split()) for line in lines if line and not line.startswith("#version")]
    if read_json(folder / VOCABULARY) != vocabulary.ids or merges != vocabulary.merges:
        raise WeightsError(
            f"{folder}: {VOCABULARY} and {MERGES} are another vocabulary than CLIP's own; save the tokenizer with transformers' "
            "save_pretrained, which writes a tokenizer.json"
        )


def _bytes(decode: Any, number: int, numbers: Mapping[int, int]) -> bytes:
    """The UTF-8 of a token, be it a part of a character: shown alone that is U+FFFD, and itself within a whole one only."""
    for before, after in itertools.product(BEFORE, AFTER):
        text: str = decode([*(numbers[byte] for byte in before), number, *(numbers[byte] for byte in after)])
        if "\ufffd" not in text:
            return text.encode()[len(before) :].removesuffix(after)
    return str(decode([number])).encode()  # which is U+FFFD


def _parts(token: str, ids: Mapping[str, int]) -> tuple[str, str]:
    """The two parts that a token was merged of: what its letters are merged to by the tokens before it."""
    word = token.removesuffix(LAST)
    parts = [*word[:-1], word[-1] + token[len(word) :]]
    while len(parts) > 2:
        pairs = [ids.get(a + b, len(ids)) for a, b in itertools.pairwise(parts)]
        first = pairs.index(min(pairs))
        parts[first : first + 2] = [parts[first] + parts[first + 1]]
    return parts[0], parts[1]
