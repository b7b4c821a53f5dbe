"""Text towers that open_clip takes from transformers by name (`hf_model_name`): RoBERTa, XLM-R and BERT."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

from jclip.config import BertTower, TokenizerConfig, hf_text
from jclip.config.architectures import HF_TEXTS
from jclip.weights.bert_names import bert_rules
from jclip.weights.errors import WeightsError
from jclip.weights.layout import LINEAR, Rule
from jclip.weights.options import COUNT, TEXT, Values, check_options, one_of, optional

POOLS = {"mean_pooler": "mean", "cls_pooler": "pooler", "cls_last_hidden_state_pooler": "first"}
PROJECTIONS = {"mlp": "mlp_gelu", "linear": "linear"}
"""Poolings and projections: open_clip's name, and ours."""

READ: Mapping[str, Values] = {
    **{"hf_model_name": one_of(HF_TEXTS), "hf_proj_type": one_of(PROJECTIONS), "hf_pooler_type": one_of(POOLS)},
    **{"context_length": COUNT, "hf_tokenizer_name": optional(TEXT)},
}
INERT = {"hf_model_pretrained", "output_tokens", "width", "heads", "layers", "vocab_size", "tokenizer_kwargs", "tokenizer_mode"}
"""Options on which nothing depends where transformers has the sizes, and those that `read_open_clip` reads."""


def bert_of(at: str, cfg: Mapping[str, Any], tokenizer: TokenizerConfig) -> BertTower:
    """The tower of a `text_cfg`.

    Args:
        at: where it stands, for messages.
        cfg: its options.
        tokenizer: of the folder.

    Raises:
        WeightsError: an option has a value that is not reproduced.
    """
    check_options(f"{at}.", cfg, READ, {}, INERT)
    tower = hf_text(cfg["hf_model_name"], cast(Any, POOLS[cfg.get("hf_pooler_type", "mean_pooler")]))
    if tower.tokenizer.pad_id != tokenizer.pad_id:
        raise WeightsError(
            f"{at}.hf_model_name {cfg['hf_model_name']!r} pads with {tower.tokenizer.pad_id}, and the tokenizer with "
            f"{tokenizer.pad_id}"
        )
    projection = PROJECTIONS[cfg.get("hf_proj_type", "mlp")]
    length = cfg.get("context_length", 77)
    return replace(tower, context_length=length, projection=cast(Any, projection), tokenizer=tokenizer)


def bert_cfg(text: BertTower) -> dict[str, Any]:
    """Content of a `text_cfg` from which open_clip makes the tower.

    Raises:
        WeightsError: open_clip knows no such tower.
    """
    pools = {ours: theirs for theirs, ours in POOLS.items()}
    projections = {ours: theirs for theirs, ours in PROJECTIONS.items()}
    free: dict[str, Any] = {"context_length": text.context_length, "projection": text.projection, "tokenizer": text.tokenizer}
    free |= {"dropout": text.dropout}
    for name in HF_TEXTS:
        if text.projection in projections and replace(hf_text(name, text.pool), **free) == text:
            how = {"hf_model_name": name, "hf_pooler_type": pools[text.pool], "hf_proj_type": projections[text.projection]}
            return {**how, "context_length": text.context_length}
    raise WeightsError(
        f"open_clip takes towers of BERT's kind by name, {', '.join(HF_TEXTS)}, with a projection of "
        f"{' or '.join(projections)}; this one has other sizes or another projection"
    )


def bert_text_rules(text: BertTower) -> list[Rule]:
    """A rule for every parameter of the tower and its projection."""
    projection = [Rule("text_projection/kernel", "text.proj.weight", LINEAR)]
    if text.projection == "mlp_gelu":
        projection = [Rule(f"text_projection/fc{i}/kernel", f"text.proj.{2 * i - 2}.weight", LINEAR) for i in (1, 2)]
    return [*bert_rules(text, "text", "text.transformer."), *projection]
