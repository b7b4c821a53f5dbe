"""Small vocabularies of every kind, trained here, and strings that are hard on a tokenizer."""

import itertools
import json
import random
import unicodedata
from pathlib import Path
from typing import Any

GOLDEN = Path(__file__).parent / "data" / "golden"

COLOURS = ("red", "blue", "green", "yellow", "dark", "light", "striped", "Großer", "petit", "маленький")
THINGS = ("circle", "square", "cat", "dog", "running horses", "photograph", "drawings", "Häuser", "дом", "日本語", "🙂 smile")

RULES = "FF21\t41\nFF22\t42\nFF41\t61\nFB01\t66 69\nA0\t20\nB2\t32\n200B\t20\nC4\t41 308\n"
"""Rules of normalisation for sentencepiece, a few of nmt_nfkc's 200 kB; code points."""


def corpus() -> list[str]:
    """A few hundred sentences."""
    texts = [row["text"] for row in json.loads((GOLDEN / "tokens.json").read_text())]
    lines = [f"a photo of a {a} {b}, {i}" for i, (a, b) in enumerate(itertools.product(COLOURS, THINGS))]
    return [text.replace("\0", " ").replace("\n", " ") for text in texts if len(text) < 200] + lines


def strings(count: int, seed: int = 0) -> list[str]:
    """Words, HTML entities, emoji, any Unicode, controls, special tokens, mojibake, white space; some empty, some long.

    No character that Unicode does not know yet: the libraries know different versions of it.
    """
    dice = random.Random(seed)
    ranges = [range(32, 127), range(32, 0x250), range(0x370, 0x700), range(0x2000, 0x2C00), range(0x3000, 0x9FFF)]
    ranges += [range(0x1F300, 0x1FAFF), range(0xA000, 0xD7FF), range(1, 0xD7FF), range(0, 32), range(0xE000, 0x10FFFF)]
    words = [word for line in corpus() for word in line.split()]
    odd = [
        "&amp;",
        "&amp;lt;",
        "&#233;",
        "&nbsp;",
        "schÃ¶n",
        "snake_case",
        "İstanbul",
        "ΣΊΣΥΦΟΣ",
        "don't",
        "\u3000",
        "\t",
        "  ",
        "...",
    ]
    odd += [
        "e\u0301\u0302",
        "👩‍👩‍👧‍👦",
        "🇫🇷",
        "\u200b",
        "\ufeffx",
        "\x85",
        "ﬁne",
        "ＡＢ",
        "x²",
        "Ä",
        "\u2581",
        "_",
        "'s",
        "[SEP]",
        "[CLS]",
        "<",
    ]

    def piece() -> str:
        kind = dice.random()
        if kind < 0.5:
            return dice.choice(words)
        if kind < 0.7:
            return dice.choice(odd)
        letters = dice.choice(ranges[: dice.randint(1, len(ranges))])
        return "".join(chr(dice.choice(letters)) for _ in range(dice.randint(0, 12)))

    texts = [dice.choice(["", " "]).join(piece() for _ in range(dice.choice([0, 1, 2, 4, 8, 16, 40]))) for _ in range(count)]
    return ["".join(c for c in text if unicodedata.category(c) != "Cn") for text in texts]


def without_exceptions(text: str) -> str:
    """The text without the three characters where ClipTokenizer's ids are not open_clip's."""
    return "".join(c for c in text if c not in "\u017f\ufb05\u0345")


def train_unigram(path: Path, rules: str = "custom") -> None:
    """A sentencepiece model like SigLIP's of c4-en: pad 0, end 1, unknown 2. rules: "custom" (RULES), or one of the library."""
    import sentencepiece

    tsv = path.with_suffix(".tsv")
    tsv.write_text(RULES)
    how = {"normalization_rule_tsv": str(tsv)} if rules == "custom" else {"normalization_rule_name": rules}
    ids = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
    _train(sentencepiece, path, vocab_size=400, model_type="unigram", character_coverage=0.98, **ids, **how)
    tsv.unlink()


def train_gemma(path: Path) -> None:
    """A sentencepiece model like Gemma's: byte-pair encoding with bytes, nothing normalised, no space put first."""
    import sentencepiece

    names = {f"{name}_piece": f"<{name}>" for name in ("pad", "eos", "bos", "unk")}
    ids = {"pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3}
    flags = {"byte_fallback": True, "split_digits": True, "allow_whitespace_only_pieces": True}
    none = {"normalization_rule_name": "identity", "add_dummy_prefix": False, "remove_extra_whitespaces": False}
    _train(
        sentencepiece, path, vocab_size=700, model_type="bpe", user_defined_symbols=["<mask>"], **names, **ids, **flags, **none
    )


def _train(sentencepiece: Any, path: Path, **options: Any) -> None:
    with path.open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(corpus()), model_writer=file, minloglevel=2, hard_vocab_limit=False, **options
        )


def train_bert(path: Path) -> None:
    """A tokenizer.json like that of bert-base-uncased."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.train_from_iterator(
        corpus(), trainers.WordPieceTrainer(vocab_size=400, special_tokens=special, show_progress=False)
    )
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    tokenizer.save(str(path))


def train_clip(path: Path) -> None:
    """A tokenizer.json like that of OpenAI's CLIP."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

    start, end = "<|startoftext|>", "<|endoftext|>"
    tokenizer = Tokenizer(models.BPE(continuing_subword_prefix="", end_of_word_suffix="</w>", unk_token=end))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    split = Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(split, "removed", invert=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[start, end],
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer.post_processor = processors.RobertaProcessing((end, 1), (start, 0), trim_offsets=False, add_prefix_space=False)
    tokenizer.save(str(path))


def train_xlm(path: Path) -> None:
    """A tokenizer.json like that of xlm-v: start 0, padding 1, end 2, unknown 3."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=400, special_tokens=special, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    tokenizer.save(str(path))


CLASSES: dict[str, dict[str, Any]] = {
    "t5": {"tokenizer_class": "T5Tokenizer", "pad_token": "</s>", "extra_ids": 0, "legacy": False},
    "siglip": {"tokenizer_class": "SiglipTokenizer", "pad_token": "</s>"},
    "gemma": {"tokenizer_class": "GemmaTokenizer", "padding_side": "right", "add_bos_token": False, "add_eos_token": True}
    | {f"{name}_token": f"<{name}>" for name in ("pad", "eos", "bos", "unk")},
    "bert": {"tokenizer_class": "BertTokenizer", "do_lower_case": True}
    | {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "cls", "sep", "unk")},
    "clip": {"tokenizer_class": "CLIPTokenizer", "bos_token": "<|startoftext|>"}
    | {f"{name}_token": "<|endoftext|>" for name in ("pad", "eos", "unk")},
    "xlm": {"tokenizer_class": "XLMRobertaTokenizer", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"},
}
"""`tokenizer_config.json` of a small vocabulary of this kind."""

FILES = {"t5": "spiece.model", "siglip": "spiece.model", "gemma": "tokenizer.model"}
"""Names of the vocabulary in transformers; tokenizer.json for all others."""


def write_folder(folder: Path, name: str, vocabulary: Path, **changes: Any) -> Path:
    """A folder of a tokenizer of CLASSES, as its owner would publish it; `changes` to tokenizer_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    file = "tokenizer.json" if vocabulary.suffix == ".json" else FILES[name]
    (folder / file).write_bytes(vocabulary.read_bytes())
    (folder / "tokenizer_config.json").write_text(json.dumps(CLASSES[name] | changes))
    return folder
