"""The vocabularies of architectures and files that leave them out: `tokenizer=FILE` gives them."""

import dataclasses
from pathlib import Path

from jclip.config import Model, TokenizerConfig, TokenTower, architecture
from jclip.weights.errors import WeightsError
from jclip.weights.io.files import read_json
from jclip.weights.texts.tokenizers import sha256_of, template

FILES = {
    "sentencepiece": "a sentencepiece model, or a tokenizer.json that ends each text alike",
    "hugging_face": "a tokenizer.json",
}
"""Files that a tokenizer of each kind is given."""


def named_model(name: str, vocabulary: str | Path | None = None) -> Model:
    """The architecture of that name, with the vocabulary of its texts.

    Args:
        name: see `config.architecture`.
        vocabulary: file of a tokenizer other than CLIP's own, which alone needs none.

    Raises:
        ConfigError: no architecture has that name.
        WeightsError: the file is missing, is not of the kind that the architecture reads, or it reads none.
    """
    model = architecture(name)
    without = {
        key: tower for key, tower in model.towers.items() if isinstance(tower, TokenTower) and tower.tokenizer.kind != "clip"
    }
    if not without and vocabulary is not None:
        raise WeightsError(f"{name} has CLIP's own tokenizer; leave out the tokenizer {vocabulary}")
    if without and vocabulary is None:
        kinds = " and ".join(sorted({FILES[tower.tokenizer.kind] for tower in without.values()}))
        raise WeightsError(f"{name} does not bring the vocabulary of its texts, {kinds}; give --tokenizer FILE (tokenizer=FILE)")
    towers = {key: dataclasses.replace(tower, tokenizer=_given(tower.tokenizer, vocabulary)) for key, tower in without.items()}
    return dataclasses.replace(model, towers={**model.towers, **towers})


def with_file(tokenizer: TokenizerConfig, path: str | Path) -> TokenizerConfig:
    """The tokenizer with that vocabulary. Raises WeightsError where there is no such file."""
    try:
        return dataclasses.replace(tokenizer, file=str(path), sha256=sha256_of(Path(path)))
    except OSError as error:
        raise WeightsError(f"tokenizer {path}: {error.strerror}") from None


def _given(tokenizer: TokenizerConfig, path: str | Path | None) -> TokenizerConfig:
    """A tokenizer of the table with the file that is given for it, whose kind may be the other one."""
    assert path is not None
    given = with_file(tokenizer, path)
    is_json = Path(path).suffix == ".json"
    if is_json == (tokenizer.kind == "hugging_face"):
        return given
    if not is_json:
        raise WeightsError(f"tokenizer {path}: the architecture reads {FILES[tokenizer.kind]}")
    content = read_json(Path(path))
    try:
        around = template(content.get("post_processor"))
        ids = {token["content"]: token["id"] for token in content.get("added_tokens") or []}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise WeightsError(f"tokenizer {path}: no tokenizer.json, or damaged: {type(error).__name__}: {error}") from None
    if around is None or around[0] or [ids.get(token) for token in around[1]] != [tokenizer.eos_id]:
        raise WeightsError(
            f"tokenizer {path}: puts {around} around a text; the architecture reads id {tokenizer.eos_id} behind it"
        )
    return dataclasses.replace(given, kind="hugging_face", eos_id=None)
