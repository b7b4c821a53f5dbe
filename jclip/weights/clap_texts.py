"""Text towers in weight files of CLAP: RoBERTa, BERT and GPT-2, as transformers names their parameters."""

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from jclip.config import BertTower, TextTower, TokenizerConfig, TokenTower
from jclip.weights.bert_names import bert_rules
from jclip.weights.errors import WeightsError
from jclip.weights.layout import SAME, Layout, Rule, norm_rules
from jclip.weights.texts.vocabularies import with_file

Shapes = Mapping[str, tuple[int, ...]]

LENGTHS = {"laion": 77, "bert": 100, "gpt2": 77}
"""Tokens of a text: of LAION-CLAP, and of MS-CLAP 2022 and 2023."""

OWNERS = {"roberta": "roberta-base", "bert": "bert-base-uncased", "gpt2": "gpt2"}
"""Repositories on the hub whose tokenizer.json a file needs."""


def text_of(at: str, shapes: Shapes, vocabulary: str | Path | None, *, laion: bool) -> tuple[TokenTower, list[Rule]]:
    """The text tower and its rules.

    Args:
        at: what its names begin with.
        shapes: of all arrays, by name.
        vocabulary: its tokenizer.json.
        laion: whether the file is LAION-CLAP's; or MS-CLAP's.

    Raises:
        WeightsError: the vocabulary is missing.
        KeyError: an array is missing.
    """
    if f"{at}wte.weight" in shapes:
        return _gpt2(at, shapes, vocabulary)
    roberta = shapes[f"{at}embeddings.token_type_embeddings.weight"][0] == 1
    tokenizer = _tokenizer("roberta" if roberta else "bert", vocabulary, pad_id=1 if roberta else 0)
    vocab_size, width = shapes[f"{at}embeddings.word_embeddings.weight"]
    positions = shapes[f"{at}embeddings.position_embeddings.weight"][0]
    tower = BertTower(
        context_length=min(LENGTHS["laion" if laion else "bert"], positions - (2 if roberta else 0)),
        vocab_size=vocab_size,
        width=width,
        depth=_blocks(shapes, rf"{re.escape(at)}encoder\.layer\.\d+\.output\.dense\.weight"),
        heads=max(1, width // 64),
        mlp_ratio=shapes[f"{at}encoder.layer.0.intermediate.dense.weight"][0] / width,
        max_positions=positions,
        positions_from="pad_id" if roberta else "zero",
        token_types=1 if roberta else 2,
        pool="pooler" if laion else "first",
        norm_eps=1e-5 if roberta else 1e-12,
        projection="mlp" if laion else "residual",
        tokenizer=tokenizer,
    )
    return tower, bert_rules(tower, "text", at)


def _gpt2(at: str, shapes: Shapes, vocabulary: str | Path | None) -> tuple[TextTower, list[Rule]]:
    """GPT-2 (Radford et al. 2019) as MS-CLAP 2023 has it: a text ends in its end of text, and is padded with "!", id 0."""
    (vocab_size, width), positions = shapes[f"{at}wte.weight"], shapes[f"{at}wpe.weight"][0]
    tower = TextTower(
        context_length=min(LENGTHS["gpt2"], positions),
        vocab_size=vocab_size,
        width=width,
        depth=_blocks(shapes, rf"{re.escape(at)}h\.\d+\.ln_1\.weight"),
        heads=max(1, width // 64),
        mlp_ratio=shapes[f"{at}h.0.mlp.c_fc.weight"][1] / width,
        activation="gelu_tanh",
        projection="residual",
        eot_id=vocab_size - 1,
        tokenizer=_tokenizer("gpt2", vocabulary, pad_id=0, eos_id=vocab_size - 1),
    )
    return tower, gpt2_rules(tower, at)


def gpt2_rules(tower: TextTower, at: str) -> list[Rule]:
    """A rule for every parameter of GPT-2, of whose positions the first `context_length` are read; matrices are [in, out]."""
    block, theirs = "text/blocks", f"{at}h.{{}}"
    matrices = (("attn/out", "attn.c_proj"), ("mlp/fc1", "mlp.c_fc"), ("mlp/fc2", "mlp.c_proj"))
    return [
        Rule("text/token_embed", f"{at}wte.weight"),
        Rule("text/pos_embed", f"{at}wpe.weight", Layout(lambda x: x[: tower.context_length], _one_way)),
        *norm_rules(f"{block}/norm1", f"{theirs}.ln_1"),
        *norm_rules(f"{block}/norm2", f"{theirs}.ln_2"),
        *(Rule(f"{block}/attn/{name}/kernel", f"{theirs}.attn.c_attn.weight", _third(i)) for i, name in enumerate("qkv")),
        *(Rule(f"{block}/attn/{name}/bias", f"{theirs}.attn.c_attn.bias", SAME, (i, 3)) for i, name in enumerate("qkv")),
        *(
            Rule(f"{block}/{ours}/{leaf}", f"{theirs}.{name}.{kind}")
            for ours, name in matrices
            for leaf, kind in (("kernel", "weight"), ("bias", "bias"))
        ),
        *norm_rules("text/norm", f"{at}ln_f"),
    ]


def _third(i: int) -> Layout:
    """Queries, keys or values of [in, 3 out]."""
    return Layout(lambda x: np.split(x, 3, axis=1)[i], _one_way)


def _one_way(x: np.ndarray) -> np.ndarray:
    """Raises WeightsError: such files are read alone."""
    raise WeightsError("MS-CLAP's weights are read, not written")


def _tokenizer(kind: str, vocabulary: str | Path | None, *, pad_id: int, eos_id: int | None = None) -> TokenizerConfig:
    if vocabulary is None:
        raise WeightsError(
            f"it does not bring the vocabulary of its texts, the tokenizer.json of {OWNERS[kind]}; give --tokenizer FILE "
            "(tokenizer=FILE)"
        )
    clean = "none" if eos_id is None else "msclap"
    return with_file(TokenizerConfig("hugging_face", clean=clean, pad_id=pad_id, eos_id=eos_id), vocabulary)  # type: ignore[arg-type]


def _blocks(shapes: Shapes, pattern: str) -> int:
    return sum(re.fullmatch(pattern, name) is not None for name in shapes)
