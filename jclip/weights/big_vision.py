"""Weights as big_vision keeps them: an `.npz` of SigLIP's two towers, or of one vision transformer; the names say which."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jclip.config import Model, Preprocess, TextTower, TokenizerConfig, Tower, VisionTower
from jclip.weights.errors import WeightsError
from jclip.weights.io.files import Lazy
from jclip.weights.io.npz import open_npz
from jclip.weights.layout import BIAS, FLAT, LEADING, SCALAR, SCALE, Rule, heads_layout, merge_layout, patch_layout
from jclip.weights.texts.vocabularies import with_file

VOCABULARIES: Mapping[int, tuple[str, TokenizerConfig]] = {
    32_000: ("c4_en", TokenizerConfig("sentencepiece", clean="canonicalize", eos_id=1, pad_id=1)),
    250_000: ("mc4", TokenizerConfig("sentencepiece", clean="canonicalize", eos_id=1, pad_id=1)),
    256_000: ("gemma", TokenizerConfig("sentencepiece", clean="lower", eos_id=1, pad_id=0)),
}
"""Vocabularies of big_vision by the number of their ids: their names, and how SigLIP's towers were trained to read them.

SigLIP 2's texts were lower case, with their punctuation (Tschannen et al. 2025); open_clip deletes that, too.
"""

ROOTS = ("params/", "opt/target/", "")
"""Prefixes of all parameters' names; what an optimizer keeps lies elsewhere."""

CLASSIFIER = ("img/head/kernel", "img/head/bias")
"""The last map of an image classifier, to its classes: no part of a tower."""

PARTS = ("MultiHeadDotProductAttention_0", "LayerNorm_1", "MlpBlock_0")
"""Names of a block's attention, second norm and MLP."""

FIRST_PARTS = ("MultiHeadDotProductAttention_1", "LayerNorm_2", "MlpBlock_3")
"""The same in the first published ViTs (Dosovitskiy et al. 2021; Steiner et al. 2022), which number all parts together."""

SIZES = {(27, 14): 384}
"""Side of the images, by grid and patch, where it is not their product: SigLIP's so400m leaves out what fills no patch."""

NORM, DENSE = ("scale", "bias"), ("kernel", "bias")


def open_model(path: Path, tokenizer: str | Path | None = None) -> tuple[Model, list[Rule], Mapping[str, Lazy]]:
    """The model of a file, where its parameters are, and its arrays by name.

    A file of one vision transformer is a model of one tower, `image`, without the classifier: its features are what is pooled.
    Activations are the tanh form of GELU, and every epsilon is 1e-6, as everywhere in big_vision.

    Args:
        path: of the `.npz`.
        tokenizer: the sentencepiece model of the vocabulary, which the file leaves out.

    Raises:
        WeightsError: it is no such file, or the vocabulary is missing or unknown.
    """
    file = _File(path, _by_name(path))
    two = "txt/Embed_0/embedding" in file.arrays
    if not two and tokenizer is not None:
        raise WeightsError(f"{path}: has no text tower, and no use for the vocabulary {tokenizer}")
    _flatten_positions(file)
    image, rules = _image(file, Preprocess((0.5,) * 3, (0.5,) * 3, resize="squash" if two else "shortest"))
    towers: dict[str, Tower] = {"image": image}
    if two:
        towers["text"], of_text = _text(file, _vocabulary(file, tokenizer))
        rules += [*of_text, Rule(SCALE, "t", SCALAR), Rule(BIAS, "b", SCALAR)]
    heads = (file.arrays[f"{name}/head/kernel"].shape[-1] for name in ("txt", "img") if f"{name}/head/kernel" in file.arrays)
    return Model(towers, embed_dim=next(heads, image.width)), rules, file.arrays


@dataclass(frozen=True)
class _File:
    """Arrays by name, as in a file of two towers: "img/...", "txt/..."."""

    path: Path
    arrays: dict[str, Lazy]

    def shape(self, name: str, rank: int) -> tuple[int, ...]:
        """Shape of an array that must be there, with `rank` axes."""
        found = self.arrays[name].shape if name in self.arrays else None
        if found is None or len(found) != rank:
            what = "is missing" if found is None else f"is {list(found)}, not of {rank} axes"
            raise WeightsError(f"{self.path}: neither a vision transformer of big_vision nor a SigLIP: {name} {what}")
        return found

    def blocks(self, prefix: str) -> tuple[str, int]:
        """Name and number of the blocks below a prefix; a name without {} is of all in one array."""
        if f"{prefix}/encoderblock/LayerNorm_0/scale" in self.arrays:
            return f"{prefix}/encoderblock", self.shape(f"{prefix}/encoderblock/LayerNorm_0/scale", 2)[0]
        named = sum(name.startswith(f"{prefix}/encoderblock_") and name.endswith("/LayerNorm_0/scale") for name in self.arrays)
        return f"{prefix}/encoderblock_{{}}", named


def _by_name(path: Path) -> dict[str, Lazy]:
    """All arrays under the names that they have in a file of two towers, without a classifier."""
    given = open_npz(path)
    root = next(root for root in ROOTS if not root or any(name.startswith(root) for name in given))
    found = {name.removeprefix(root): array for name, array in given.items() if name.startswith(root)}
    if "embedding/kernel" in found:
        found = {f"img/{name}": array for name, array in found.items()}
        found = {name: array for name, array in found.items() if name not in CLASSIFIER}
        found = {name.replace("Transformer/posembed_input/", ""): array for name, array in found.items()}  # the first ViTs
    return {name: Lazy(array.shape, partial(np.asarray, array)) for name, array in found.items()}


def _flatten_positions(file: _File) -> None:
    """Makes the positions [extra + n * n, width]; a class token has one in the first ViTs, and in later ones none: zeros here."""
    _, length, width = file.shape("img/pos_embedding", 3)
    positions = file.arrays.pop("img/pos_embedding")
    missing = int("img/cls" in file.arrays and math.isqrt(length) ** 2 == length)

    def read() -> NDArray[Any]:
        table = np.zeros((missing + length, width), np.float32)
        table[missing:] = np.asarray(positions)[0]
        return table

    file.arrays["img/pos_embedding"] = Lazy((missing + length, width), read)


def _image(file: _File, preprocess: Preprocess) -> tuple[VisionTower, list[Rule]]:
    patch_size, _, _, width = file.shape("img/embedding/kernel", 4)
    name, depth = file.blocks("img/Transformer")
    extra = int("img/cls" in file.arrays)
    parts = FIRST_PARTS if f"{name.format(0)}/{FIRST_PARTS[0]}/query/kernel" in file.arrays else PARTS
    heads, hidden = _sizes(file, name, parts)
    pool_by_map, head = "img/MAPHead_0/probe" in file.arrays, "img/head/kernel" in file.arrays
    patches = file.shape("img/pos_embedding", 2)[0] - extra
    grid = math.isqrt(patches)
    if grid**2 != patches:
        raise WeightsError(
            f"{file.path}: img/pos_embedding is of {patches} patches, which are no square, and nothing says their rows"
        )
    image_size = SIZES.get((grid, patch_size), grid * patch_size)
    tower = VisionTower(
        image_size=image_size,
        patch_size=patch_size,
        width=width,
        depth=depth,
        heads=heads,
        mlp_ratio=hidden / width,
        activation="gelu_tanh",
        pool="map" if pool_by_map else "cls" if extra else "avg",
        class_token=bool(extra),
        pre_norm=False,
        crop=image_size % patch_size > 0,
        patch_bias=True,
        norm_eps=1e-6,
        projection="affine" if head else "none",
        preprocess=preprocess,
    )
    rules = [
        Rule("image/patch_embed/kernel", "img/embedding/kernel", patch_layout(patch_size)),
        Rule("image/patch_embed/bias", "img/embedding/bias"),
        Rule("image/pos_embed", "img/pos_embedding"),
        *([Rule("image/cls", "img/cls", FLAT)] if extra else []),
        *_blocks("image/blocks", name, heads, parts),
        *_leaves("image/norm", "img/Transformer/encoder_norm", NORM),
        *(_map_pool("image/map", "img/MAPHead_0", heads) if pool_by_map else []),
        *(_leaves("image_projection", "img/head", DENSE) if head else []),
    ]
    return tower, rules


def _text(file: _File, tokenizer: TokenizerConfig) -> tuple[TextTower, list[Rule]]:
    vocab_size, width = file.shape("txt/Embed_0/embedding", 2)
    name, depth = file.blocks("txt/Encoder_0")
    heads, hidden = _sizes(file, name, PARTS)
    head = "txt/head/kernel" in file.arrays
    tower = TextTower(
        context_length=file.shape("txt/pos_embedding", 3)[1],
        vocab_size=vocab_size,
        width=width,
        depth=depth,
        heads=heads,
        mlp_ratio=hidden / width,
        activation="gelu_tanh",
        causal=False,
        pool="last",
        norm_eps=1e-6,
        projection="affine" if head else "none",
        eot_id=tokenizer.eos_id,
        tokenizer=tokenizer,
    )
    rules = [
        Rule("text/token_embed", "txt/Embed_0/embedding"),
        Rule("text/pos_embed", "txt/pos_embedding", LEADING),
        *_blocks("text/blocks", name, heads, PARTS),
        *_leaves("text/norm", "txt/Encoder_0/encoder_norm", NORM),
        *(_leaves("text_projection", "txt/head", DENSE) if head else []),
    ]
    return tower, rules


def _vocabulary(file: _File, path: str | Path | None) -> TokenizerConfig:
    vocab_size = file.shape("txt/Embed_0/embedding", 2)[0]
    if vocab_size not in VOCABULARIES:
        known = ", ".join(f"{size:,} ({name})" for size, (name, _) in VOCABULARIES.items())
        raise WeightsError(f"{file.path}: a vocabulary of {vocab_size:,} ids; those that big_vision's SigLIP reads have {known}")
    name, tokenizer = VOCABULARIES[vocab_size]
    if path is None:
        raise WeightsError(
            f"{file.path}: leaves out its vocabulary {name}; give that sentencepiece model: --tokenizer FILE (tokenizer=FILE)"
        )
    return with_file(tokenizer, path)


def _sizes(file: _File, block: str, parts: tuple[str, str, str]) -> tuple[int, int]:
    """Heads of the attention, and hidden size of the MLP."""
    stacked = int("{}" not in block)
    heads = file.shape(f"{block.format(0)}/{parts[0]}/query/kernel", 3 + stacked)[-2]
    return heads, file.shape(f"{block.format(0)}/{parts[2]}/Dense_0/kernel", 2 + stacked)[-1]


def _blocks(ours: str, theirs: str, heads: int, parts: tuple[str, str, str]) -> list[Rule]:
    attention, norm2, mlp = parts
    return [
        *_leaves(f"{ours}/norm1", f"{theirs}/LayerNorm_0", NORM),
        *_attention(f"{ours}/attn", f"{theirs}/{attention}", heads),
        *_leaves(f"{ours}/norm2", f"{theirs}/{norm2}", NORM),
        *_mlp(f"{ours}/mlp", f"{theirs}/{mlp}"),
    ]


def _map_pool(ours: str, theirs: str, heads: int) -> list[Rule]:
    return [
        Rule(f"{ours}/probe", f"{theirs}/probe"),
        *_attention(f"{ours}/attn", f"{theirs}/{PARTS[0]}", heads),
        *_leaves(f"{ours}/norm", f"{theirs}/LayerNorm_0", NORM),
        *_mlp(f"{ours}/mlp", f"{theirs}/{PARTS[2]}"),
    ]


def _attention(ours: str, theirs: str, heads: int) -> list[Rule]:
    layout = heads_layout(heads)
    inputs = [(f"{ours}/{name[0]}/{leaf}", f"{theirs}/{name}/{leaf}") for name in ("query", "key", "value") for leaf in DENSE]
    return [
        *(Rule(*names, layout) for names in inputs),
        Rule(f"{ours}/out/kernel", f"{theirs}/out/kernel", merge_layout(heads)),
        Rule(f"{ours}/out/bias", f"{theirs}/out/bias"),
    ]


def _mlp(ours: str, theirs: str) -> list[Rule]:
    return [rule for i in (0, 1) for rule in _leaves(f"{ours}/fc{i + 1}", f"{theirs}/Dense_{i}", DENSE)]


def _leaves(ours: str, theirs: str, leaves: tuple[str, str]) -> list[Rule]:
    """Rules of parameters with the same name and order in both."""
    return [Rule(f"{ours}/{leaf}", f"{theirs}/{leaf}") for leaf in leaves]
