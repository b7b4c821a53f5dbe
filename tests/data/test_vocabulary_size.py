"""A vocabulary with an id that the table of embeddings has not is refused when it is opened: no id is clamped."""

import json
from pathlib import Path
from typing import Any

import pytest

from jclip.config import ConfigError, TextTower, TokenizerConfig
from jclip.data import eval_transform

WORDS = {"[UNK]": 0, "a": 1, "cat": 2, "[END]": 3}


def write(path: Path, **changes: Any) -> Path:
    """A tokenizer.json of four words."""
    model = {"type": "WordLevel", "vocab": WORDS, "unk_token": "[UNK]"}
    content = {"version": "1.0", "added_tokens": [], "normalizer": None, "pre_tokenizer": {"type": "Whitespace"}, "model": model}
    content |= {"post_processor": None, "decoder": None, "truncation": None, "padding": None}
    path.write_text(json.dumps(content | changes))
    return path


def added(number: int) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"added_tokens": [{"id": number, "content": "<extra>", "special": True, **flags}]}


def template(number: int) -> dict[str, Any]:
    single = [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "[E]", "type_id": 0}}]
    tokens = {"[E]": {"id": "[E]", "ids": [number], "tokens": ["[END]"]}}
    return {"post_processor": {"type": "TemplateProcessing", "single": single, "pair": [], "special_tokens": tokens}}


def transform(path: Path, vocab_size: int) -> Any:
    return eval_transform(TextTower(8, vocab_size, tokenizer=TokenizerConfig("hugging_face", str(path), clean="none")))


@pytest.mark.parametrize(
    ("changes", "largest"),
    [
        ({}, 3),
        ({"model": {"type": "WordLevel", "vocab": {**WORDS, "far": 900}, "unk_token": "[UNK]"}}, 900),
        (added(4), 4),
        (template(70), 70),
    ],
    ids=["whole", "gap", "added", "template"],
)
def test_the_largest_id_has_to_be_in_the_table(changes: dict[str, Any], largest: int, tmp_path: Path) -> None:
    path = write(tmp_path / "tokenizer.json", **changes)
    ids = transform(path, largest + 1)("a cat <extra> far")
    assert ids.max() <= largest
    with pytest.raises(ConfigError, match=rf"tokenizer\.json has ids up to {largest}, and vocab_size is {largest}; use the file"):
        transform(path, largest)
