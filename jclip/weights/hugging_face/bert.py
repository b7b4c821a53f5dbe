"""Text towers of BERT's kind as Hugging Face's files describe them: those of Chinese-CLIP, AltCLIP and CLAP."""

from collections.abc import Mapping
from typing import Any

from jclip.config import BertTower, TokenizerConfig
from jclip.weights.bert_names import bert_rules
from jclip.weights.errors import WeightsError
from jclip.weights.layout import Rule, dense_rules, norm_rules
from jclip.weights.options import COUNT, ID, NUMBER, Values, check_options, one_of

ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}
"""Activations: transformers' name, and ours; of several names of one the first is written."""

READ: Mapping[str, Values] = {
    **dict.fromkeys(("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"), COUNT),
    **{"hidden_act": one_of(ACTIVATIONS), "layer_norm_eps": NUMBER, "pad_token_id": ID, "project_dim": COUNT},
    **dict.fromkeys(("vocab_size", "max_position_embeddings", "type_vocab_size"), COUNT),
}
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    **{"position_embedding_type": ("absolute", None), "pruned_heads": ({}, None), "chunk_size_feed_forward": (0, None)},
    **dict.fromkeys(("is_decoder", "is_encoder_decoder", "add_cross_attention"), (False, None)),
}
"""Options that change what is computed, with the values that are reproduced."""

INERT = {"hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout", "pooler_fc_size", "directionality"}
INERT |= {"pooler_num_attention_heads", "pooler_num_fc_layers", "pooler_size_per_head", "pooler_type"}
"""Options of training, and of heads that are no part of the tower."""

BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072, "hidden_act": "gelu"}
ROBERTA = {"max_position_embeddings": 514, "type_vocab_size": 1, "pad_token_id": 1}
BERT = {"max_position_embeddings": 512, "type_vocab_size": 2, "pad_token_id": 0, "vocab_size": 30522, "layer_norm_eps": 1e-12}
LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
DEFAULTS: Mapping[str, dict[str, Any]] = {
    "chinese_clip": BASE | BERT,
    "altclip": BASE | LARGE | ROBERTA | {"vocab_size": 250002, "layer_norm_eps": 1e-5, "project_dim": 768},
    "clap": BASE | ROBERTA | {"vocab_size": 50265, "layer_norm_eps": 1e-12},
}
"""Options that a file may leave out, by the type of model."""

CONTEXT = {"chinese_clip": 52, "altclip": 77, "clap": 77}
"""Tokens that texts are cut or padded to, as by the models' authors; transformers takes as many as there are positions.
"""


def bert_tower(
    at: str, kind: str, given: Mapping[str, Any], tokenizer: TokenizerConfig, inert: set[str], length: int | None = None
) -> BertTower:
    """The text tower of a model.

    Args:
        at: where its options stand, for messages.
        kind: the type of model.
        given: its options.
        tokenizer: its tokenizer.
        inert: options on which no feature depends, of all models.
        length: tokens that a text is cut to, where it is said; as many as CONTEXT are taken at most.

    Raises:
        WeightsError: an option has a value that is not reproduced.
    """
    check_options(f"{at}.", given, READ, NEUTRAL, inert | INERT)
    how = {**DEFAULTS[kind], **given}
    width, alt, first = how["hidden_size"], kind == "altclip", kind != "chinese_clip"
    if how["pad_token_id"] != tokenizer.pad_id:
        raise WeightsError(f"{at}.pad_token_id is {how['pad_token_id']}, and the tokenizer pads with {tokenizer.pad_id}")
    room = how["max_position_embeddings"] - (how["pad_token_id"] + 1 if first else 0)
    return BertTower(
        context_length=min(CONTEXT[kind], room, length or room),
        vocab_size=how["vocab_size"],
        width=width,
        depth=how["num_hidden_layers"],
        heads=how["num_attention_heads"],
        mlp_ratio=how["intermediate_size"] / width,
        activation=ACTIVATIONS[how["hidden_act"]],  # type: ignore[arg-type]
        max_positions=how["max_position_embeddings"],
        positions_from="pad_id" if first else "zero",
        token_types=how["type_vocab_size"],
        final_norm=alt,
        output_width=how["project_dim"] if alt else None,
        pool="pooler" if kind == "clap" else "first",
        norm_eps=how["layer_norm_eps"],
        projection="mlp" if kind == "clap" else "linear",
        tokenizer=tokenizer,
    )


def bert_config(text: BertTower) -> dict[str, Any]:
    """Options from which transformers makes the tower."""
    theirs = {ours: name for name, ours in reversed(ACTIVATIONS.items())}
    return {
        "vocab_size": text.vocab_size,
        "hidden_size": text.width,
        "num_hidden_layers": text.depth,
        "num_attention_heads": text.heads,
        "intermediate_size": round(text.mlp_ratio * text.width),
        "hidden_act": theirs.get(text.activation, "gelu"),
        "layer_norm_eps": text.norm_eps,
        "max_position_embeddings": text.max_positions,
        "type_vocab_size": text.token_types,
        "pad_token_id": text.tokenizer.pad_id,
        **({} if text.output_width is None else {"project_dim": text.output_width}),
    }


def text_rules(text: BertTower, kind: str) -> list[Rule]:
    """A rule for every parameter of the tower and its projection in a model of that type; see `bert_rules`."""
    if kind == "clap":
        projection = [rule for i in (1, 2) for rule in dense_rules(f"text_projection/fc{i}", f"text_projection.linear{i}")]
        return [*bert_rules(text, "text", "text_model."), *projection]
    projection = dense_rules("text_projection", "text_projection")[:1]
    if kind == "chinese_clip":
        return [*bert_rules(text, "text", "text_model."), *projection]
    ends = [*norm_rules("text/norm", "text_model.pre_LN"), *dense_rules("text/out", "text_model.transformation")]
    return [*bert_rules(text, "text", "text_model.roberta."), *ends, *projection]
