"""The tokenizer in a folder of weights, written so that jclip, open_clip or transformers makes the same ids of it."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jclip.config import ConfigError, Model, TokenizerConfig, TokenTower
from jclip.data.vocabulary import read_pieces, read_vocabulary
from jclip.weights.errors import WeightsError
from jclip.weights.texts.clip_vocabulary import write_clip_vocabulary
from jclip.weights.texts.tokenizers import CLASSES, CLEANS, CLIP_TOKENS, CONFIG, JSON, PIECES, WORDS, TokenizerFile

JSON_KINDS = ("clip", "siglip", "chinese_clip", "altclip", "clap")
"""Types of models whose tokenizer transformers reads from a tokenizer.json."""

OWN = "jclip"
"""Value of `hf_tokenizer_name` in what is written: open_clip asks only whether there is a name, and reads the folder itself."""


def write_open_clip(tokenizer: TokenizerConfig, folder: Path) -> dict[str, Any]:
    """Writes tokenizer.json and tokenizer_config.json, unless it is CLIP's own tokenizer; returns what `text_cfg` has to say.

    open_clip then makes the same ids for `local-dir:FOLDER`. For `hf-hub:`, `hf_tokenizer_name` has to be the repository's name.

    Raises:
        WeightsError: open_clip has no such tokenizer, or the vocabulary file is missing or another one.
    """
    clean = {"clean": tokenizer.clean}
    if tokenizer.kind == "clip":
        return {} if tokenizer.clean == "lower" else {"tokenizer_kwargs": clean}
    around = {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id, "cls": tokenizer.last_id}
    given = [name for name, value in around.items() if value is not None]
    clips = len(given) == len(around)
    if tokenizer.kind != "hugging_face" or tokenizer.clean not in CLEANS or (given and (not clips or tokenizer.strip_id)):
        raise WeightsError(
            f"open_clip cannot make the ids of this model: it reads a {JSON} (kind 'hugging_face'), cleans the texts "
            f"({', '.join(CLEANS)}), and puts all of bos_id, eos_id and last_id around a text or none; here is {tokenizer}. "
            f"Where the vocabulary is CLIP's own, take {JSON} out of the folder it comes from: then it is read as open_clip does"
        )
    names = around if clips else {"sep": tokenizer.strip_id}
    _write_json_tokenizer(tokenizer, folder, {**names, "pad": tokenizer.pad_id})
    kwargs = {**clean, **({} if tokenizer.strip_id is None else {"strip_sep_token": True})}
    return {"hf_tokenizer_name": OWN, "tokenizer_kwargs": kwargs, **({"tokenizer_mode": "clips"} if clips else {})}


def write_hugging_face(tokenizer: TokenizerConfig, folder: Path, model_type: str, longest: int | None = None) -> None:
    """Writes the files from which transformers makes the same ids.

    Of CLIP's own tokenizer these are OpenAI's: the ids are the same for clean texts, while what RULES of cleaning mend before
    (entities of HTML, say), and padding, which nothing depends on, have others there.

    `longest`: tokens that a text is cut to, where that is not in the model's configuration.

    Raises:
        WeightsError: transformers has no such tokenizer for `model_type`, or the vocabulary file is missing or another one.
    """
    if tokenizer == TokenizerConfig() and model_type == "clip":
        write_clip_vocabulary(folder)
        _write_config(folder, {"tokenizer_class": CLASSES["clip"], **CLIP_TOKENS})
        return
    length = {} if longest is None else {"model_max_length": longest}
    single = tokenizer.bos_id is None and tokenizer.last_id is None and tokenizer.strip_id is None
    match tokenizer.kind, tokenizer.clean, model_type:
        case "sentencepiece", "siglip", "siglip" if single and tokenizer.eos_id is not None:
            _write_siglip(tokenizer, folder)
        case "hugging_face", "none", "chinese_clip" if single and tokenizer.eos_id is None and Path(tokenizer.file).name == WORDS:
            (folder / WORDS).write_bytes(_bytes(tokenizer))
            _write_config(folder, {"tokenizer_class": CLASSES["chinese_clip"], "do_lower_case": True, **length})
        case "hugging_face", "none", kind if kind in JSON_KINDS and single and tokenizer.eos_id is None:
            _write_json_tokenizer(tokenizer, folder, {"pad": tokenizer.pad_id}, length)
        case "hugging_face", "siglip2", "siglip2" if single and tokenizer.eos_id is None:
            _write_siglip2(tokenizer, folder)
        case _:
            raise WeightsError(
                f"transformers cannot make the ids of this model: for {model_type!r} it reads the tokenizer of that library or "
                f"a {JSON}, and cleans no texts; here is {tokenizer}"
            )


def _write_json_tokenizer(
    tokenizer: TokenizerConfig, folder: Path, ids: Mapping[str, int | None], more: Mapping[str, int] | None = None
) -> None:
    """`ids`: of the special tokens that are needed, by name; `more`: what else the configuration says."""
    (folder / JSON).write_bytes(_bytes(tokenizer))
    names = {number: token for token, number in TokenizerFile(folder).ids.items()}
    tokens = {f"{name}_token": _name_of(names, number, name) for name, number in ids.items() if number is not None}
    _write_config(folder, {"tokenizer_class": "PreTrainedTokenizerFast", **tokens, **(more or {})})


def _write_siglip2(tokenizer: TokenizerConfig, folder: Path) -> None:
    (folder / JSON).write_bytes(_bytes(tokenizer))
    file = TokenizerFile(folder)
    model, around = file.content["model"], file.around
    normalizer = file.content.get("normalizer") or {}
    last = (normalizer.get("normalizers") or [normalizer])[-1]
    gemma = model.get("type") == "BPE" and model.get("byte_fallback") and model.get("fuse_unk")
    if not gemma or last.get("content") != "\u2581" or around is None or max(map(len, around)) > 1:
        raise WeightsError(f"transformers takes Gemma's tokenizer for every siglip2 model; {tokenizer.file} is another")
    pad = _name_of({number: token for token, number in file.ids.items()}, tokenizer.pad_id, "pad")
    flags = {f"add_{name}_token": bool(tokens) for name, tokens in zip(("bos", "eos"), around, strict=True)}
    names = {f"{name}_token": tokens[0] for name, tokens in zip(("bos", "eos"), around, strict=True) if tokens}
    _write_config(folder, {"tokenizer_class": "Siglip2Tokenizer", "pad_token": pad, **flags, **names})


def _write_siglip(tokenizer: TokenizerConfig, folder: Path) -> None:
    (folder / PIECES).write_bytes(_bytes(tokenizer))
    names = dict(enumerate(read_pieces(tokenizer.file)))
    tokens = {
        f"{name}_token": _name_of(names, number, name) for name, number in (("eos", tokenizer.eos_id), ("pad", tokenizer.pad_id))
    }
    _write_config(folder, {"tokenizer_class": "SiglipTokenizer", "do_lower_case": True, **tokens})


def _name_of(names: Mapping[int, str], number: int | None, what: str) -> str:
    if number is None or number not in names:
        raise WeightsError(f"{what}_id {number} is no id of the tokenizer's vocabulary")
    return names[number]


def _write_config(folder: Path, content: Mapping[str, Any]) -> None:
    sides = {"padding_side": "right", "truncation_side": "right", "clean_up_tokenization_spaces": False}
    (folder / CONFIG).write_text(json.dumps({**content, **sides}, indent=2) + "\n")


def _bytes(tokenizer: TokenizerConfig) -> bytes:
    try:
        return read_vocabulary(tokenizer.file, tokenizer.sha256)
    except ConfigError as error:
        raise WeightsError(str(error)) from None


def copy_vocabularies(model: Model, folder: Path) -> Model:
    """Copies the vocabulary files of all towers into `folder`; returns the model that names these copies, without folder.

    Raises:
        WeightsError: a vocabulary file is missing, or another one than its sha256 says.
    """
    towers = dict(model.towers)
    for name, tower in model.towers.items():
        if not isinstance(tower, TokenTower) or tower.tokenizer.kind == "clip":
            continue
        data, file = _bytes(tower.tokenizer), Path(tower.tokenizer.file).name
        taken = (folder / file).exists() and (folder / file).read_bytes() != data
        if taken or file.startswith("jclip."):  # as the files that lie beside it
            file = f"{name}-{file}"
        (folder / file).write_bytes(data)
        tokenizer = dataclasses.replace(tower.tokenizer, file=file, sha256=hashlib.sha256(data).hexdigest())
        towers[name] = dataclasses.replace(tower, tokenizer=tokenizer)
    return dataclasses.replace(model, towers=towers)


def find_vocabularies(model: Model, folder: Path) -> Model:
    """The model of `copy_vocabularies`, with the paths of its vocabulary files.

    Raises:
        WeightsError: a file is not in `folder`, or would be looked for outside of it.
    """
    towers = dict(model.towers)
    for name, tower in model.towers.items():
        if not isinstance(tower, TokenTower) or tower.tokenizer.kind == "clip":
            continue
        file = tower.tokenizer.file
        if file in ("", "..") or Path(file).name != file:
            raise WeightsError(f"{folder}: the vocabulary {file!r} of tower {name} does not lie in this folder; copy it there")
        if not (folder / file).is_file():
            raise WeightsError(f"{folder}: the vocabulary {file} of tower {name} is missing; put it there")
        tokenizer = dataclasses.replace(tower.tokenizer, file=str((folder / file).absolute()))
        towers[name] = dataclasses.replace(tower, tokenizer=tokenizer)
    return dataclasses.replace(model, towers=towers)
