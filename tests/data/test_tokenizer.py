"""The tokenizer: ids against open_clip's."""

import dataclasses
import hashlib
import html
import json
import pickle
import sys
import threading
import time
from pathlib import Path
from typing import Any

import ftfy
import numpy as np
import pytest
from vocabularies import strings

from jclip.config import ConfigError, TextTower, TokenizerConfig
from jclip.data import detokenize, eval_transform, get_tokenizer
from jclip.data import tokenizer as module
from jclip.data.clean import RULES
from jclip.data.vocabulary import load_vocabulary

pytest.importorskip("instant_clip_tokenizer", reason="there is no instant-clip-tokenizer for this Python")

GOLDEN = json.loads((Path(__file__).parent / "golden" / "tokens.json").read_text())
FOLDER = Path(__file__).parent / "golden" / "tokenizers"
FILES = json.loads((FOLDER / "ids.json").read_text())


@pytest.mark.parametrize("length", [77, 16])
def test_ids_equal_the_fixed_ones_of_open_clip(length: int) -> None:
    ids = get_tokenizer(TokenizerConfig())([row["text"] for row in GOLDEN], length)
    assert ids.dtype == np.int32
    assert ids.shape == (len(GOLDEN), length)
    for row, mine in zip(GOLDEN, ids.tolist(), strict=True):
        assert mine == row[str(length)], row["text"]


def tokenizer_of(fields: dict[str, Any]) -> TokenizerConfig:
    return TokenizerConfig(**fields | ({"file": str(FOLDER / fields["file"])} if "file" in fields else {}))


@pytest.mark.parametrize("row", FILES["rows"], ids=lambda row: "-".join(map(str, row["tokenizer"].values())))
def test_ids_of_every_kind_equal_the_fixed_ones_of_its_library(row: dict[str, Any]) -> None:
    tokenize = get_tokenizer(tokenizer_of(row["tokenizer"]))
    length = len(row["ids"][0])
    ids = tokenize(FILES["texts"], length)
    assert ids.dtype == np.int32
    assert sum(map(bool, row["ids"])) > 120
    for text, mine, theirs in zip(FILES["texts"], ids.tolist(), row["ids"], strict=True):
        assert not theirs or mine == theirs, text
    again = pickle.loads(pickle.dumps(tokenize))
    np.testing.assert_array_equal(again(FILES["texts"][:5], length), ids[:5])


@pytest.mark.parametrize(
    ("text", "whitespace", "lower", "canonicalize", "siglip"),
    [
        ("", "", "", "", "▁"),
        (" A\tb \n", "A b", "a b", "a b", "▁ a b"),
        ("It's_a cat!", "It's_a cat!", "it's_a cat!", "its a cat", "▁itsa cat"),
        ("_A", "_A", "_a", "a", "▁a"),
        ("&amp;lt; SchÃ¶n", "< Schön", "< schön", "schön", "▁amplt schã¶n"),
        ("&amp;amp;", "&", "&", "", "▁ampamp"),
        ("! ▁X \u3000 y", "! ▁X y", "! ▁x y", "▁x y", "▁ x y"),
        ("¿“Ünï” – …?", '¿"Ünï" – …?', '¿"ünï" – …?', "¿ünï – …", "▁¿“ünï” – …"),
    ],
)
def test_texts_are_cleaned_by_rule(text: str, whitespace: str, lower: str, canonicalize: str, siglip: str) -> None:
    rules = ("whitespace", "lower", "canonicalize", "siglip", "none", "siglip2")
    assert [RULES[rule](text) for rule in rules] == [whitespace, lower, canonicalize, siglip, text, text]


def test_plain_texts_are_what_ftfy_makes_of_them() -> None:
    rng = np.random.default_rng(0)
    for length in rng.integers(0, 40, 3000):
        text = "".join(map(chr, rng.choice([9, 10, 13, 27, 127, *range(32, 127)], length)))
        assert RULES["whitespace"](text) == " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split())


KINDS = {
    "sentencepiece": TokenizerConfig("sentencepiece", str(FOLDER / "t5.model"), eos_id=1, pad_id=7),
    "bert": TokenizerConfig("hugging_face", str(FOLDER / "bert.json"), pad_id=7),
    "gemma": TokenizerConfig("hugging_face", str(FOLDER / "gemma.json"), pad_id=7),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_stands_around_a_text_is_kept_when_it_is_cut(kind: str) -> None:
    tokenize = get_tokenizer(KINDS[kind])
    whole = tokenize("a red circle", 64).tolist()
    assert whole[-1] == 7
    ids = whole[: whole.index(7)]
    for length in range(2, len(ids)):
        assert tokenize("a red circle", length).tolist() == [*ids[: length - 1], ids[-1]]
    assert tokenize("a red circle", len(ids) + 1).tolist() == [*ids, 7]
    np.testing.assert_array_equal(tokenize(["a red circle"], 8), tokenize("a red circle", 8)[None])
    assert tokenize([], 8).shape == (0, 8)


def test_ids_around_a_text_are_those_of_the_configuration() -> None:
    plain = get_tokenizer(TokenizerConfig("sentencepiece", str(FOLDER / "t5.model")))("a cat", 16).tolist()
    ids = plain[: plain.index(0)]
    framed = dataclasses.replace(KINDS["sentencepiece"], bos_id=5, eos_id=6, last_id=9)
    assert get_tokenizer(framed)("a cat", len(ids) + 5).tolist() == [5, *ids, 6, 7, 7, 9]
    assert get_tokenizer(framed)("a cat", 4).tolist() == [5, ids[0], 6, 9]
    assert get_tokenizer(framed)("a cat", 3).tolist() == [5, 6, 9]
    with pytest.raises(ValueError, match="at least 3"):
        get_tokenizer(framed)("a cat", 2)
    with pytest.raises(ValueError, match="at least 2"):
        get_tokenizer(KINDS["bert"])("a cat", 1)
    stripped = get_tokenizer(dataclasses.replace(KINDS["bert"], strip_id=3))("a cat", 16).tolist()
    assert [0 if i == 3 else i for i in get_tokenizer(KINDS["bert"])("a cat", 16).tolist()] == stripped


WITHOUT_ENDS = {
    "sentencepiece": TokenizerConfig("sentencepiece", str(FOLDER / "t5.model")),
    "sentencepiece, a word pads": TokenizerConfig("sentencepiece", str(FOLDER / "t5.model"), pad_id=7),
    "sentencepiece, an id behind the padding": TokenizerConfig("sentencepiece", str(FOLDER / "gemma.model"), last_id=20),
    "WordPiece": TokenizerConfig("hugging_face", str(FOLDER / "bert.json"), clean="whitespace"),
    "WordPiece, end stripped": TokenizerConfig("hugging_face", str(FOLDER / "bert.json"), clean="whitespace", strip_id=3),
    "unigram": TokenizerConfig("hugging_face", str(FOLDER / "xlm.json"), clean="whitespace", pad_id=1),
    "BPE": TokenizerConfig("hugging_face", str(FOLDER / "gemma.json")),
    "BPE, ends of words": TokenizerConfig("hugging_face", str(FOLDER / "clip.json")),
}
"""Tokenizers of which the configuration names neither bos_id nor eos_id."""


@pytest.mark.parametrize("kind", WITHOUT_ENDS)
def test_a_text_comes_back_from_the_ids_of_a_tokenizer_that_names_no_ends(kind: str) -> None:
    tower = TextTower(context_length=32, vocab_size=1000, tokenizer=WITHOUT_ENDS[kind])
    texts = ["a photo of a red circle", "", "square"]
    ids = get_tokenizer(tower.tokenizer)(texts, 32)
    if kind == "sentencepiece, a word pads":
        assert ids[0, 3] == 7  # "of", between other words
    assert detokenize(tower, ids) == texts
    (cut,) = detokenize(tower, get_tokenizer(tower.tokenizer)(texts[:1], 6))
    assert cut
    assert texts[0].startswith(cut)


def test_a_text_without_eos_id_ends_where_its_tower_finds_the_end() -> None:
    tower = TextTower(context_length=8, vocab_size=1000, tokenizer=WITHOUT_ENDS["sentencepiece"], eot_id=7)
    ids = get_tokenizer(tower.tokenizer)(["a photo of a red circle"], 8)
    assert detokenize(tower, ids) == ["a photo"]


def test_truncation_and_padding_in_the_file_change_nothing(tmp_path: Path) -> None:
    import tokenizers

    texts = FILES["texts"]
    stored = tokenizers.Tokenizer.from_file(str(FOLDER / "bert.json"))
    stored.enable_truncation(4, direction="left")
    stored.enable_padding(direction="left", pad_id=3, length=9)
    stored.save(str(tmp_path / "tokenizer.json"))
    other = dataclasses.replace(KINDS["bert"], file=str(tmp_path / "tokenizer.json"))
    np.testing.assert_array_equal(get_tokenizer(other)(texts, 16), get_tokenizer(KINDS["bert"])(texts, 16))


@pytest.mark.parametrize("kind", KINDS)
def test_many_threads_get_the_ids_of_one(kind: str) -> None:
    texts = strings(200)
    tokenize = get_tokenizer(KINDS[kind])
    expected = {length: tokenize(texts, length) for length in (8, 16)}
    wrong: list[int] = []

    def work(length: int) -> None:
        for _ in range(5):
            if (tokenize(texts, length) != expected[length]).any():
                wrong.append(length)

    threads = [threading.Thread(target=work, args=(8 + 8 * (i % 2),)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_vocabulary_is_read_once_and_only_if_it_is_the_right_one(tmp_path: Path) -> None:
    file = tmp_path / "bert.json"
    file.write_bytes((FOLDER / "bert.json").read_bytes())
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    right = TokenizerConfig("hugging_face", str(file), digest.upper())
    expected = get_tokenizer(right)("a cat", 8)
    assert load_vocabulary(right) is load_vocabulary(right)
    with pytest.raises(ConfigError, match=f"another vocabulary.*{digest}, not {'0' * 64}"):
        get_tokenizer(dataclasses.replace(right, sha256="0" * 64))("a cat", 8)
    file.unlink()
    np.testing.assert_array_equal(get_tokenizer(right)("a cat", 8), expected)


@pytest.mark.parametrize("kind", ["sentencepiece", "hugging_face"])
@pytest.mark.parametrize("content", [b"", b"{}", b"\xff\xfe", bytes(100), b"[1, 2", b"\n\x0ax"])
def test_a_damaged_vocabulary_is_found_when_the_transform_is_made(kind: Any, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "file"
    with pytest.raises(ConfigError, match=r"file' cannot be read \(No such file"):
        eval_transform(TextTower(tokenizer=TokenizerConfig(kind, str(path))))
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="or damaged"):
        eval_transform(TextTower(tokenizer=TokenizerConfig(kind, str(path))))


def test_a_cut_vocabulary_is_damaged(tmp_path: Path) -> None:
    for kind, name in (("sentencepiece", "t5.model"), ("hugging_face", "bert.json")):
        data = (FOLDER / name).read_bytes()
        (tmp_path / name).write_bytes(data[: len(data) // 2])
        with pytest.raises(ConfigError, match="or damaged"):
            eval_transform(TextTower(tokenizer=TokenizerConfig(kind, str(tmp_path / name))))  # type: ignore[arg-type]


def test_a_vocabulary_larger_than_the_tower_is_refused() -> None:
    eval_transform(TextTower(vocab_size=400, tokenizer=KINDS["bert"]))
    with pytest.raises(ConfigError, match="has ids up to 399, and vocab_size is 99"):
        eval_transform(TextTower(vocab_size=99, tokenizer=KINDS["bert"]))


@pytest.mark.parametrize(("kind", "package"), [("sentencepiece", "sentencepiece"), ("bert", "tokenizers")])
def test_a_missing_package_is_named(kind: str, package: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.write_bytes(Path(KINDS[kind].file).read_bytes())
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=r"pip install 'jclip\[tokenizers\]'"):
        get_tokenizer(dataclasses.replace(KINDS[kind], file=str(copy)))("a", 8)


def test_one_text_gives_the_row_that_a_list_gives() -> None:
    tokenize = get_tokenizer(TokenizerConfig())
    one = tokenize("a red circle", 10)
    # Fixed: start of text, "a", "red", "circle", end of text, padding.
    assert one.tolist() == [49406, 320, 736, 7117, 49407, 0, 0, 0, 0, 0]
    np.testing.assert_array_equal(tokenize(["a red circle"], 10), one[None])
    assert tokenize([], 10).shape == (0, 10)


def test_a_text_too_long_ends_in_end_of_text() -> None:
    tokenize = get_tokenizer(TokenizerConfig())
    assert tokenize("cat " * 100, 5).tolist() == [49406, 2368, 2368, 2368, 49407]
    assert tokenize("cat", 2).tolist() == [49406, 49407]
    with pytest.raises(ValueError, match="at least 2"):
        tokenize("cat", 1)


@pytest.mark.parametrize("tokenizer", [TokenizerConfig(), *KINDS.values()], ids=lambda tokenizer: Path(tokenizer.file).name)
@pytest.mark.parametrize("unit", ["a cat ", "a", "!", "Ã©", "&amp;", "\x00", "\n", "<end_of_text>", "'s"])
def test_captions_of_100_kB_are_cut_in_bounded_time(unit: str, tokenizer: TokenizerConfig) -> None:
    tokenize = get_tokenizer(tokenizer)
    text = unit * (100_000 // len(unit))
    began = time.perf_counter()
    tokenize(text, 77)
    assert time.perf_counter() - began < 60  # what is quadratic takes minutes: this is a guard, not a measurement


def test_lone_surrogates_do_not_raise() -> None:
    assert get_tokenizer(TokenizerConfig())("a \ud800 b \udfff", 16)[-1] == 0
    for tokenizer in KINDS.values():
        assert get_tokenizer(tokenizer)("a \ud800 b \udfff", 32)[-1] == 7


def test_tokenizers_can_be_pickled() -> None:
    tokenize = get_tokenizer(TokenizerConfig())
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(tokenize))("a cat", 8), tokenize("a cat", 8))


def test_errors_say_what_to_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "instant_clip_tokenizer", None)
    module.built_in_tokenizer.cache_clear()
    with pytest.raises(ModuleNotFoundError, match=r"3\.11 and 3\.12"):
        get_tokenizer(TokenizerConfig())("a", 8)
