"""The tokenizer of a folder of weights, read from open_clip's and Hugging Face's files.

What these libraries add to a vocabulary file stands in `tokenizer_config.json`. What is not reproduced in it is refused.
"""

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jclip.config import ConfigError, TokenizerConfig
from jclip.data.vocabulary import read_pieces
from jclip.files import read_whole
from jclip.weights.errors import WeightsError
from jclip.weights.io.files import read_json
from jclip.weights.texts.clip_vocabulary import END, MERGES, START, VOCABULARY, check_clip_vocabulary

CONFIG = "tokenizer_config.json"
SPECIAL = "special_tokens_map.json"
ADDED = "added_tokens.json"
JSON = "tokenizer.json"
PIECES = "spiece.model"
WORDS = "vocab.txt"
FILES = (CONFIG, SPECIAL, ADDED, JSON, PIECES, WORDS, VOCABULARY, MERGES)
"""All that is read."""

CLASSES = {"clip": "CLIPTokenizer", "siglip": "SiglipTokenizer", "siglip2": "Siglip2Tokenizer"}
CLASSES |= {"chinese_clip": "BertTokenizer", "altclip": "XLMRobertaTokenizer", "clap": "RobertaTokenizer"}
"""transformers' class for a model type, where `tokenizer_config.json` names none."""

CLIP_TOKENS = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
"""The special tokens of CLIP's own tokenizer."""

PADS = {"CLIPTokenizer": "<|endoftext|>", "BertTokenizer": "[PAD]", "SiglipTokenizer": "</s>"}
PADS |= dict.fromkeys(("T5Tokenizer", "XLMRobertaTokenizer", "RobertaTokenizer", "GemmaTokenizer", "Siglip2Tokenizer"), "<pad>")
"""The padding of a class where nothing is said."""

LEFT = ("GemmaTokenizer", "Siglip2Tokenizer", "LlamaTokenizer")
"""Classes that pad on the left where nothing is said."""

FIXED = ("CLIPTokenizer", "BertTokenizer", "T5Tokenizer", "XLMRobertaTokenizer", "RobertaTokenizer")
"""Classes that put the same tokens around every text, whatever add_bos_token and add_eos_token say."""

CLEANS = ("whitespace", "lower", "canonicalize")
"""Rules that open_clip has."""


def read_open_clip(folder: Path, text: Mapping[str, Any]) -> TokenizerConfig:
    """The tokenizer that open_clip makes for `local-dir:FOLDER`.

    Args:
        folder: holds tokenizer.json and tokenizer_config.json, unless it is CLIP's own tokenizer.
        text: `text_cfg` of open_clip_config.json. `pool_type`, `eos_id` and `pad_id` in it are the tower's.

    Raises:
        WeightsError: a file is missing or damaged, or an option is not reproduced.
    """
    at = f"{folder}: text_cfg"
    kwargs, mode = dict(text.get("tokenizer_kwargs") or {}), text.get("tokenizer_mode") or ""
    name = text.get("hf_tokenizer_name") or ""
    strip = bool(kwargs.pop("strip_sep_token", False))
    clean = kwargs.pop("clean", "whitespace" if name else "lower")
    if kwargs or mode not in ("", "clips") or clean not in CLEANS:
        raise WeightsError(
            f"{at}: tokenizer_mode {mode!r} with tokenizer_kwargs {text.get('tokenizer_kwargs')} is not reproduced; what is: "
            f"tokenizer_mode 'clips', and tokenizer_kwargs.clean ({', '.join(CLEANS)}) and strip_sep_token"
        )
    if not name:
        if clean == "whitespace" or strip:
            raise WeightsError(f"{at}.tokenizer_kwargs {text['tokenizer_kwargs']}: CLIP's tokenizer knows lower case only")
        return TokenizerConfig(clean=clean)
    if not (folder / JSON).is_file():
        raise WeightsError(f"{at}.hf_tokenizer_name is {name!r}: put its {JSON} and {CONFIG} into {folder}")
    file = TokenizerFile(folder)
    if file.kind == "SiglipTokenizer":
        raise WeightsError(f"{folder / CONFIG}: tokenizer_class {file.kind} beside open_clip's rules is not reproduced")
    tokenizer = dataclasses.replace(file.tokenizer(), clean=clean)
    if mode == "clips":
        ids = {name: file.required(name) for name in ("bos", "eos", "cls")}
        tokenizer = dataclasses.replace(tokenizer, bos_id=ids["bos"], eos_id=ids["eos"], last_id=ids["cls"])
    elif strip:
        tokenizer = dataclasses.replace(tokenizer, strip_id=file.required("sep"))
    return tokenizer


def read_hugging_face(folder: Path, model_type: str) -> TokenizerConfig:
    """The tokenizer that transformers makes of a folder.

    A `clip` model without tokenizer.json has CLIP's own, as open_clip has it, unless the folder has another; with one, it has
    that one, whose ids differ on some Unicode. GemmaTokenizer keeps capitals, though SigLIP 2 was trained without:
    transformers' Siglip2Tokenizer, which stands for every `siglip2` model, makes lower case.

    Args:
        folder: holds tokenizer.json, or spiece.model for SiglipTokenizer, or at most vocab.json and merges.txt for CLIP's own.
        model_type: `model_type` of config.json: clip, siglip or siglip2.

    Raises:
        WeightsError: a file is missing or damaged, or an option is not reproduced.
    """
    kind = CLASSES.get(model_type, "") if model_type == "siglip2" else _class(folder) or CLASSES.get(model_type, "")
    if kind == "SiglipTokenizer":
        return _read_siglip(folder)
    if not (folder / JSON).is_file():
        if model_type == "clip":
            return _read_clip(folder)
        if kind == "BertTokenizer" and (folder / WORDS).is_file():
            return _read_words(folder)
        raise WeightsError(f"{folder}: the tokenizer is missing; put its {JSON} and {CONFIG} there")
    tokenizer = TokenizerFile(folder, kind).tokenizer()
    return dataclasses.replace(tokenizer, clean="siglip2" if kind == "Siglip2Tokenizer" else "none")


def longest_text(folder: Path) -> int | None:
    """Tokens that transformers cuts a text to, `model_max_length`; None where nothing is said."""
    length = _config(folder).get("model_max_length")
    return length if type(length) is int and length > 0 else None


def _read_clip(folder: Path) -> TokenizerConfig:
    """CLIP's own, which nothing in the folder may contradict."""
    config, kind = _config(folder), _class(folder)
    if kind not in ("", CLASSES["clip"]):
        raise WeightsError(
            f"{folder / CONFIG}: the tokenizer is a {kind}, which is read from a {JSON} alone; save it with transformers' "
            "save_pretrained, which writes one"
        )
    _check_sides(folder, config, "right")
    given = {name: _content(config[name]) for name in CLIP_TOKENS if name in config}
    added = [*read_json(folder / ADDED)] if (folder / ADDED).is_file() else []
    added += [_content(token) for token in (config.get("added_tokens_decoder") or {}).values()]
    if given != {name: CLIP_TOKENS[name] for name in given} or not {*added} <= {*CLIP_TOKENS.values()}:
        raise WeightsError(f"{folder}: CLIP's own tokenizer has {CLIP_TOKENS}; here are {given} and the added tokens {added}")
    check_clip_vocabulary(folder)
    return TokenizerConfig()


def _read_words(folder: Path) -> TokenizerConfig:
    """BERT's, of a vocab.txt alone, with the rules of uncased models, which nothing in the folder may contradict."""
    config, path = _config(folder), folder / WORDS
    rules = {"do_lower_case": True, "do_basic_tokenize": True, "tokenize_chinese_chars": True, "strip_accents": None}
    names = {"unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]", "mask_token": "[MASK]"}
    given = {name: _content(value) if name in names else value for name, value in config.items()}
    if wrong := {name: given[name] for name, value in {**rules, **names}.items() if given.get(name, value) != value}:
        raise WeightsError(
            f"{folder / CONFIG}: a {WORDS} with {wrong} is not reproduced; save it with transformers' save_pretrained, "
            f"which writes a {JSON}"
        )
    _check_sides(folder, config, "right")
    words = read_whole(path).decode("utf-8", "replace").split("\n")
    if "[PAD]" not in words:
        raise WeightsError(f"{path}: has no [PAD], the word for padding")
    return TokenizerConfig("hugging_face", str(path.absolute()), sha256_of(path), clean="none", pad_id=words.index("[PAD]"))


def _read_siglip(folder: Path) -> TokenizerConfig:
    path = folder / PIECES
    if not path.is_file():
        raise WeightsError(f"{folder}: SiglipTokenizer needs {PIECES}; put it there")
    config = _config(folder)
    wrong = {
        name: config[name]
        for name, reproduced in (("do_lower_case", True), ("legacy", True), ("sp_model_kwargs", {}))
        if config.get(name, reproduced) != reproduced
    }
    if wrong:
        raise WeightsError(f"{folder / CONFIG}: SiglipTokenizer with {wrong} is not reproduced")
    _check_sides(folder, config, "right")
    try:
        pieces = read_pieces(str(path))
    except ConfigError as error:
        raise WeightsError(str(error)) from None
    ids = {}
    for name in ("eos_token", "pad_token"):
        token = _content(config.get(name)) or PADS["SiglipTokenizer"]
        if token not in pieces:
            raise WeightsError(f"{folder / CONFIG}: {name} {token!r} is no piece of {PIECES}")
        ids[name] = pieces.index(token)
    return TokenizerConfig(
        "sentencepiece",
        str(path.absolute()),
        sha256_of(path),
        clean="siglip",
        eos_id=ids["eos_token"],
        pad_id=ids["pad_token"],
    )


class TokenizerFile:
    """A tokenizer.json with its tokenizer_config.json: `ids` by token, and the tokens that it puts `around` a text, if known."""

    def __init__(self, folder: Path, kind: str | None = None) -> None:
        self.folder, self.path = folder, folder / JSON
        self.config = _config(folder)
        self.kind = _class(folder) if kind is None else kind
        self.content = read_json(self.path)
        try:
            vocabulary = self.content["model"]["vocab"]
            if isinstance(vocabulary, list):  # of sentencepiece, with scores
                vocabulary = {piece: i for i, (piece, _) in enumerate(vocabulary)}
            added = {token["content"]: token["id"] for token in self.content.get("added_tokens") or []}
            self.ids: dict[str, int] = {**vocabulary, **added}
            self.around = template(self.content.get("post_processor"))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise WeightsError(f"{self.path}: no {JSON}, or damaged: {type(error).__name__}: {error}") from None

    def tokenizer(self) -> TokenizerConfig:
        """Tokenizer of this file, with the padding; its rules of cleaning are still to be said."""
        padding = self.content.get("padding") or {}
        direction = str(padding.get("direction", "left" if self.kind in LEFT else "right")).lower()
        _check_sides(self.folder, self.config, direction)
        self._check_around()
        self._check_bert()
        for number, token in (self.config.get("added_tokens_decoder") or {}).items():
            if self.ids.get(_content(token)) != int(number):
                raise WeightsError(f"{self.folder / CONFIG}: token {_content(token)!r} has no id {number} in {JSON}")
        pad = self.token("pad") or padding.get("pad_token") or PADS.get(self.kind, "")
        if pad not in self.ids:
            raise WeightsError(f"{self.folder / CONFIG}: pad_token {pad!r} is no token of {JSON}; name the one for padding")
        return TokenizerConfig(
            "hugging_face", str(self.path.absolute()), sha256_of(self.path), clean="none", pad_id=self.ids[pad]
        )

    def token(self, name: str) -> str:
        """The special token of this name, e.g. "pad"; empty where none is said."""
        return _content(self.config.get(f"{name}_token"))

    def required(self, name: str) -> int:
        """The id of a special token."""
        token = self.token(name) or ({"sep": "[SEP]", "cls": "[CLS]"}.get(name, "") if self.kind == "BertTokenizer" else "")
        if token not in self.ids:
            raise WeightsError(f"{self.folder / CONFIG}: {name}_token {token!r} is no token of {JSON}; it is needed here")
        return self.ids[token]

    def _check_around(self) -> None:
        """Raises WeightsError where the file puts other ids around a text than the configuration, which transformers follows."""
        if self.kind in FIXED or self.around is None:
            return
        for name, tokens in zip(("bos", "eos"), self.around, strict=True):
            wanted = self.config.get(f"add_{name}_token")
            if wanted is not None and bool(wanted and self.token(name)) != bool(tokens):
                raise WeightsError(
                    f"{self.folder / CONFIG}: add_{name}_token is {wanted}, but {JSON} puts {tokens or 'nothing'} there; "
                    "save the tokenizer again with transformers' save_pretrained"
                )

    def _check_bert(self) -> None:
        normalizer = self.content.get("normalizer") or {}
        if normalizer.get("type") != "BertNormalizer":
            return
        names = {"do_lower_case": "lowercase", "tokenize_chinese_chars": "handle_chinese_chars", "strip_accents": "strip_accents"}
        for name, theirs in names.items():
            if name in self.config and self.config[name] != normalizer.get(theirs):
                raise WeightsError(
                    f"{self.folder / CONFIG}: {name} is {self.config[name]}, but {theirs} in {JSON} {normalizer.get(theirs)}"
                )


def template(processor: Any) -> tuple[list[str], list[str]] | None:
    """The tokens that a post-processor puts before and after a text; None where it does so in another way than by a template."""
    if processor is None:
        return [], []
    if processor["type"] != "TemplateProcessing":
        return None
    parts: list[str] = [part["SpecialToken"]["id"] if "SpecialToken" in part else "" for part in processor["single"]]
    middle = parts.index("")  # the text
    return parts[:middle], parts[middle + 1 :]


def _config(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json over special_tokens_map.json."""
    given: dict[str, Any] = {}
    for name in (SPECIAL, CONFIG):
        if (folder / name).is_file():
            given |= {key: value for key, value in read_json(folder / name).items() if value is not None}
    return given


def _class(folder: Path) -> str:
    """transformers' class of the tokenizer; empty where neither its own configuration nor the model's says it."""
    path = folder / "config.json"
    named = _config(folder).get("tokenizer_class") or (read_json(path).get("tokenizer_class") if path.is_file() else None)
    return str(named or "").removesuffix("Fast")


def _check_sides(folder: Path, config: Mapping[str, Any], padding: str) -> None:
    for name, default in (("padding_side", padding), ("truncation_side", "right")):
        if config.get(name, default) != "right":
            raise WeightsError(f"{folder / CONFIG}: {name} is {config.get(name, default)!r}; 'right' is reproduced")


def _content(token: Any) -> str:
    """Text of a token, which is a str or an object."""
    return str(token.get("content", "")) if isinstance(token, Mapping) else str(token or "")


def sha256_of(path: Path) -> str:
    return hashlib.sha256(read_whole(path)).hexdigest()
