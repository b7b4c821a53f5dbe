"""Vocabularies from files: sentencepiece's models and Hugging Face's tokenizer.json, by the libraries of their owners."""

import functools
import hashlib
from dataclasses import dataclass
from typing import Any, Protocol

from jclip import config
from jclip.config import ConfigError
from jclip.files import read_whole

INSTALL = "pip install 'jclip[tokenizers]'"

UNKNOWN = "<unk>"


class TokenVocabulary(Protocol):
    """Makes ids of cleaned text; safe to call from several threads."""

    @property
    def size(self) -> int:
        """One more than the largest id that a text may get, of tokens that were added to the file too."""
        ...

    def encode(self, text: str, room: int, *, bare: bool) -> list[int]:
        """The ids of `text`, at most `room`; not bare: with what the file puts around a text, which is kept when it is cut.

        Raises ValueError if that alone is more than `room`.
        """
        ...

    def decode(self, ids: list[int]) -> str:
        """The text of ids, of which those that the file puts around a text are none."""
        ...


def load_vocabulary(tokenizer: config.TokenizerConfig) -> TokenVocabulary:
    """The vocabulary of a tokenizer that has a file; it is read once a process.

    Raises:
        ConfigError: the file is missing or damaged, is not the one that `sha256` names, or its library is not installed.
    """
    return _load(tokenizer.kind, tokenizer.file, tokenizer.sha256, tokenizer.clean, tokenizer.pad_id)


@functools.cache
def _load(kind: str, file: str, sha256: str, clean: str, pad_id: int) -> TokenVocabulary:
    data = read_vocabulary(file, sha256)
    match kind:
        case "sentencepiece":
            return _open_sentencepiece(file, data, siglip=clean == "siglip")
        case "hugging_face":
            return _open_tokenizer_json(file, data, lower=clean == "siglip2", apart=pad_id if clean == "msclap" else None)
        case _:
            raise ConfigError(f"tokenizer: kind {kind!r} has no vocabulary file; use 'sentencepiece' or 'hugging_face'")


def read_vocabulary(file: str, sha256: str = "") -> bytes:
    """The bytes of a vocabulary file. Raises ConfigError if it is missing, or is not the one that `sha256` names."""
    try:
        data = read_whole(file)
    except OSError as error:
        raise ConfigError(f"tokenizer: the vocabulary {file!r} cannot be read ({error.strerror}); put the file there") from None
    found = hashlib.sha256(data).hexdigest()
    if sha256 and found != sha256.lower():
        raise ConfigError(
            f"tokenizer: {file} is another vocabulary than the model was made with: its sha256 is {found}, not {sha256}"
        )
    return data


@dataclass(frozen=True)
class SentencePiece:
    """A sentencepiece model; it puts nothing around a text.

    A model like Gemma's gives the ids of transformers' GemmaTokenizer. One like T5's gives those of T5Tokenizer but for a few
    texts: those that spell META_SPACE, combine marks with letters, or have two equally good divisions.
    """

    processor: Any
    size: int
    siglip: bool
    """True: texts begin with META_SPACE, as the rules "siglip" make them, in place of the space that the model puts first."""
    skipped: int
    """Ids of UNKNOWN, spelt out."""

    def encode(self, text: str, room: int, *, bare: bool) -> list[int]:
        if not self.siglip:
            ids: list[int] = self.processor.encode(text)
            return ids[:room]
        # transformers' way: behind these few letters, the model takes no META_SPACE for white space to be removed.
        ids = self.processor.encode(UNKNOWN + text)
        return ids[self.skipped :][:room] if len(ids) >= self.skipped else ids[:room]

    def decode(self, ids: list[int]) -> str:
        text: str = self.processor.decode(ids)
        return text


def read_pieces(file: str) -> list[str]:
    """The pieces of a sentencepiece model; the place of each is its id. Raises ConfigError as `load_vocabulary` does."""
    processor = _open_sentencepiece(file, read_vocabulary(file), siglip=False).processor
    return [processor.id_to_piece(i) for i in range(processor.get_piece_size())]


def _open_sentencepiece(file: str, data: bytes, *, siglip: bool) -> SentencePiece:
    try:
        import sentencepiece
    except ImportError:
        raise ConfigError(f"tokenizer: kind 'sentencepiece' needs a package that is not installed: {INSTALL}") from None
    processor = sentencepiece.SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(data)
        size = processor.get_piece_size()
    except (RuntimeError, OSError) as error:
        raise ConfigError(f"tokenizer: {file} is no sentencepiece model, or damaged: {error}") from None
    return SentencePiece(processor, size, siglip, len(processor.encode(UNKNOWN)) if siglip else 0)


@dataclass(frozen=True)
class TokenizerJson:
    """A tokenizer.json. What it says about truncation and padding is left out: the tower decides.

    Where a unigram model has two equally good divisions of a text, transformers 5 may take the other one: it reads the scores
    from JSON by itself, and their last digits decide.
    """

    tokenizer: Any
    size: int

    def encode(self, text: str, room: int, *, bare: bool) -> list[int]:
        encoding = self.tokenizer.encode(text, add_special_tokens=False)
        if not bare:
            around = self.tokenizer.num_special_tokens_to_add(False)
            if around > room:
                raise ValueError(f"context_length {room} has no room for what is put around a text; use at least {around}")
            encoding.truncate(room - around)
            encoding = self.tokenizer.post_process(encoding)
        ids: list[int] = encoding.ids
        return ids[:room]

    def decode(self, ids: list[int]) -> str:
        text: str = self.tokenizer.decode(ids)
        suffix = getattr(self.tokenizer.model, "end_of_word_suffix", None)  # of BPE: CLIP's file has no decoder that knows it
        return text.replace(suffix, " ") if suffix else text


def _open_tokenizer_json(file: str, data: bytes, *, lower: bool, apart: int | None = None) -> TokenizerJson:
    """`apart`: an id that is a token by itself wherever it is spelt."""
    try:
        import tokenizers
    except ImportError:
        raise ConfigError(f"tokenizer: kind 'hugging_face' needs a package that is not installed: {INSTALL}") from None
    try:
        tokenizer = _words(data.decode()) if file.endswith(".txt") else tokenizers.Tokenizer.from_str(data.decode())
    except Exception as error:  # the library raises nothing more special
        what = "vocab.txt of BERT's" if file.endswith(".txt") else "tokenizer.json"
        raise ConfigError(f"tokenizer: {file} is no {what}, or damaged: {error}") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if lower:  # within the tokenizer, because special tokens are looked for in the text as it came
        rules = [tokenizers.normalizers.Lowercase(), *([tokenizer.normalizer] if tokenizer.normalizer else [])]
        tokenizer.normalizer = tokenizers.normalizers.Sequence(rules)
    if apart is not None and (word := tokenizer.id_to_token(apart)) is not None:
        tokenizer.add_tokens([tokenizers.AddedToken(word, normalized=False)])
    around = tokenizer.encode("").ids  # ids that stand in the post-processor alone
    return TokenizerJson(tokenizer, 1 + max([*tokenizer.get_vocab(with_added_tokens=True).values(), *around], default=-1))


def _words(text: str) -> Any:
    """The tokenizer of an uncased BERT (Devlin et al. 2019), of its vocab.txt: a word a line, whose number is its id."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    words = {word: i for i, word in enumerate(text.removesuffix("\n").replace("\r\n", "\n").split("\n"))}
    special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    if missing := [word for word in special if word not in words]:
        raise ValueError(f"it has no {' and no '.join(missing)}")
    tokenizer = Tokenizer(models.WordPiece(words, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", words["[SEP]"]), ("[CLS]", words["[CLS]"]))
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens([AddedToken(word, special=True) for word in special])
    return tokenizer
