"""Files written of a tokenizer, opened by open_clip and transformers in the same process: the ids are ours."""

import json
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from peers import peer
from vocabularies import strings

from jclip.config import TokenizerConfig
from jclip.data import get_tokenizer
from jclip.data.clean import lower
from jclip.weights.texts.clip_vocabulary import clip_vocabulary
from jclip.weights.texts.tokenizer_files import write_hugging_face, write_open_clip
from jclip.weights.texts.tokenizers import read_hugging_face

pytestmark = pytest.mark.parity
open_clip, transformers = peer("open_clip"), peer("transformers")

GOLDEN = Path(__file__).parents[1] / "data" / "golden" / "tokenizers"
TEXTS = ["", *strings(1000, seed=2), "a cat " * 100]
LENGTH = 24


def file(name: str, **fields: Any) -> TokenizerConfig:
    return TokenizerConfig("sentencepiece" if name.endswith(".model") else "hugging_face", str(GOLDEN / name), **fields)


@pytest.mark.parametrize(
    "tokenizer",
    [
        file("bert.json", clean="whitespace", strip_id=3),
        file("bert.json", clean="lower", bos_id=1, eos_id=3, last_id=2),
        file("bert.json", clean="canonicalize", pad_id=4),
        file("t5.json", clean="canonicalize", pad_id=1),
        file("gemma.json", clean="canonicalize"),
        file("xlm.json", clean="whitespace", pad_id=1),
        file("clip.json", clean="lower", pad_id=1),
        TokenizerConfig(clean="canonicalize"),
    ],
    ids=lambda tokenizer: f"{Path(tokenizer.file).name}-{tokenizer.clean}",
)
def test_open_clip_makes_the_same_ids_of_what_is_written(tokenizer: TokenizerConfig, tmp_path: Path) -> None:
    section = {**write_open_clip(tokenizer, tmp_path), "context_length": LENGTH}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": {"text_cfg": section}}))
    theirs = open_clip.get_tokenizer(f"local-dir:{tmp_path}")
    texts = ["".join(c for c in text if c not in "\u017f\ufb05\u0345") for text in TEXTS]
    np.testing.assert_array_equal(get_tokenizer(tokenizer)(texts, LENGTH), np.asarray(theirs(texts)))


@pytest.mark.parametrize(
    ("tokenizer", "model_type"),
    [
        (file("clip.json", clean="none", pad_id=1), "clip"),
        (file("bert.json", clean="none"), "clip"),
        (file("gemma.json", clean="none"), "siglip"),
        (file("t5.json", clean="none", pad_id=1), "siglip"),
        (file("gemma.json", clean="siglip2"), "siglip2"),
        (file("t5.model", clean="siglip", eos_id=1, pad_id=1), "siglip"),
        (file("t5.model", clean="siglip", eos_id=1, pad_id=0), "siglip"),
    ],
)
def test_transformers_makes_the_same_ids_of_what_is_written(tokenizer: TokenizerConfig, model_type: str, tmp_path: Path) -> None:
    write_hugging_face(tokenizer, tmp_path, model_type)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    theirs = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    ids = theirs(TEXTS, max_length=LENGTH, padding="max_length", truncation=True).input_ids
    np.testing.assert_array_equal(get_tokenizer(tokenizer)(TEXTS, LENGTH), np.asarray(ids))


def test_transformers_reads_clips_own_tokenizer_from_what_is_written(tmp_path: Path) -> None:
    write_hugging_face(TokenizerConfig(), tmp_path, "clip")
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    theirs = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    clean = [unicodedata.normalize("NFC", lower(text)) for text in TEXTS]  # transformers composes letters and mends nothing
    clean = [text for text in clean if text == lower(text) and "of_text>" not in text and "oftext|>" not in text]
    assert len(clean) > 0.9 * len(TEXTS)
    rows = get_tokenizer(TokenizerConfig())(clean, LENGTH)
    ids = np.asarray(theirs(clean, max_length=LENGTH, padding="max_length", truncation=True).input_ids)
    padding = np.arange(LENGTH) > rows.argmax(axis=1)[:, None]
    assert (ids[padding] == 49407).all()
    np.testing.assert_array_equal(np.where(padding, 0, ids), rows)
    theirs.save_pretrained(tmp_path / "again")  # which writes a tokenizer.json
    again = get_tokenizer(read_hugging_face(tmp_path / "again", "clip"))(clean, LENGTH)
    np.testing.assert_array_equal(again, ids)


def test_the_vocabulary_is_that_of_open_clip() -> None:
    theirs = open_clip.SimpleTokenizer()
    assert list(theirs.bpe_ranks) == clip_vocabulary().merges
    assert [*theirs.encoder][:-2] == [*clip_vocabulary().ids][:-2]
