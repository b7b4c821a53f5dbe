"""Text towers of BERT's kind, and the further projections, against an independent f64 implementation."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from jax.interpreters.partial_eval import dce_jaxpr
from products import multiply_adds
from test_models import as_f64, params_like

from jclip.config import BertTower, ConfigError, Model, TextTower, TokenizerConfig, VisionTower, check_model, from_json, to_saved
from jclip.models import MultiTower, tower_flops
from jclip.models.bert import BertTransformer
from jclip.models.compute import Compute
from jclip.models.flops import projection_flops
from jclip.models.heads import make_projection

PAD = 3
WORDS = TokenizerConfig("hugging_face", "tokenizer.json", clean="none", pad_id=PAD)
BERT = BertTower(context_length=9, vocab_size=40, width=24, depth=2, heads=3, mlp_ratio=2.5, max_positions=14, tokenizer=WORDS)
ROBERTA = {"positions_from": "pad_id", "token_types": 1}
OPTIONS: list[dict[str, Any]] = [
    {"pool": "pooler"},
    {"pool": "first", "activation": "gelu_tanh"},
    {"pool": "mean", **ROBERTA, "norm_eps": 1e-5},
    {"pool": "pooler", **ROBERTA},
    {"pool": "first", **ROBERTA, "final_norm": True, "output_width": 10},
    {"pool": "mean", "final_norm": True},
]


def texts() -> np.ndarray:
    """Four texts, of 1 to 9 tokens."""
    ids = np.random.default_rng(0).integers(4, 40, (4, 9)).astype(np.int32)
    for row, length in zip(ids, (9, 4, 1, 8), strict=True):
        row[length:] = PAD
    return ids


def made(**options: Any) -> tuple[BertTower, BertTransformer, Any]:
    config = dataclasses.replace(BERT, **options)
    tower = BertTransformer(config)
    return config, tower, params_like(tower.init, texts())


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(map(str, options.values())))
def test_the_tower_equals_the_reference(options: dict[str, Any]) -> None:
    config, tower, params = made(**options)
    output = jax.jit(tower.apply)({"params": params}, texts())
    for i, ids in enumerate(texts()):
        pooled, tokens = reference.bert(as_f64(params), ids, config)
        np.testing.assert_allclose(output.pooled[i], pooled, atol=1e-5)
        np.testing.assert_allclose(output.tokens[i, : len(tokens)], tokens, atol=1e-5)
        assert output.mask[i].tolist() == [k < len(tokens) for k in range(9)]
    assert output.pooled.shape[1] == config.pooled_width


@pytest.mark.parametrize("options", OPTIONS[:3], ids=lambda options: "-".join(map(str, options.values())))
def test_neither_padding_nor_its_length_nor_a_loop_changes_anything(options: dict[str, Any]) -> None:
    config, tower, params = made(**options)
    whole = jax.jit(tower.apply)({"params": params}, texts()[1:3])
    cut = BertTransformer(config).apply({"params": params}, texts()[1:3, :4], cut=True)
    np.testing.assert_allclose(cut.pooled, whole.pooled, atol=1e-6)
    looped = BertTransformer(config, Compute(scan=True)).apply({"params": params}, texts()[1:3])
    np.testing.assert_allclose(looped.pooled, whole.pooled, atol=1e-6)
    with pytest.raises(ValueError, match="length 4 is not context_length 9"):
        tower.apply({"params": params}, texts()[1:3, :4])


@pytest.mark.parametrize("positions", ["zero", "pad_id"])
def test_embeddings_are_texts_too(positions: Any) -> None:
    _, tower, params = made(positions_from=positions)
    ids = texts()
    ends = jnp.asarray([8, 3, 0, 7])
    given = tower.apply({"params": params}, params["token_embed"][ids], ends)
    np.testing.assert_allclose(given.pooled, tower.apply({"params": params}, ids).pooled, atol=1e-6)
    with pytest.raises(ValueError, match="need eot"):
        tower.apply({"params": params}, params["token_embed"][ids])


def test_a_hidden_word_is_seen_as_what_stands_for_it() -> None:
    _, tower, params = made()
    ids, hidden = texts(), np.zeros((4, 9), bool)
    hidden[0, 2] = True
    token = np.tile(params["token_embed"][17], (4, 1))
    other = ids.copy()
    other[0, 2] = 17
    masked = tower.apply({"params": params}, ids, hidden=(hidden, token))
    np.testing.assert_allclose(masked.pooled, tower.apply({"params": params}, other).pooled, atol=1e-6)


def test_dropout_depends_on_the_row_alone() -> None:
    _, tower, params = made(dropout=0.3)
    ids, rngs = texts(), {"dropout": jax.random.key(3)}
    whole = tower.apply({"params": params}, ids, rows=jnp.arange(4), rngs=rngs).pooled
    half = tower.apply({"params": params}, ids[2:], rows=jnp.arange(2, 4), rngs=rngs).pooled
    np.testing.assert_allclose(half, whole[2:], atol=1e-6)
    assert not np.allclose(whole, tower.apply({"params": params}, ids).pooled, atol=1e-2)


@pytest.mark.parametrize("kind", ["linear", "affine", "mlp", "mlp_gelu", "residual"])
def test_projections_equal_their_formulas(kind: Any) -> None:
    tower, x = dataclasses.replace(BERT, projection=kind), np.random.default_rng(2).normal(size=(3, 24)).astype(np.float32)
    module = make_projection(tower, 10, Compute(), "text_projection")
    params = params_like(module.init, x)
    p, y = as_f64(params), x.astype(np.float64)
    if kind in ("linear", "affine"):
        expected = reference.dense(p, y)
    elif kind == "residual":
        y = y @ p["fc1"]["kernel"]
        expected = reference.layer_norm(p["norm"], y + reference.gelu(y) @ p["fc2"]["kernel"], 1e-5)
    else:
        hidden = reference.dense(p["fc1"], y)
        assert hidden.shape[1] == (10 if kind == "mlp" else 17)
        expected = reference.dense(p["fc2"], np.maximum(hidden, 0) if kind == "mlp" else reference.gelu(hidden))
    np.testing.assert_allclose(module.apply({"params": params}, x), expected, atol=1e-5)
    assert ("bias" in p.get("fc1", p)) == (kind in ("affine", "mlp"))
    traced = jax.make_jaxpr(lambda x: module.apply({"params": params}, x))(x)
    assert projection_flops(tower, 10) * 3 == 2 * multiply_adds(traced.jaxpr)


@pytest.mark.parametrize("options", [OPTIONS[0], OPTIONS[2], OPTIONS[4]], ids=str)
def test_operations_are_those_of_the_program(options: dict[str, Any]) -> None:
    """The count of all tokens, and that of the pooled output alone, whose last block is smaller where one token is pooled."""
    config, _, params = made(**options)
    for scan in (False, True):
        looped = BertTransformer(config, Compute(scan=scan))
        traced = jax.make_jaxpr(lambda params, looped=looped: looped.apply({"params": params}, jnp.asarray(texts())).pooled)(
            params
        )
        program, _ = dce_jaxpr(traced.jaxpr, [True])
        counted = tower_flops(config, tokens=scan)
        if scan and config.output_width is not None and config.pool != "mean":  # nobody asks for the map of the others
            counted -= 2 * 8 * config.width * config.output_width
        assert counted * 4 == 2 * multiply_adds(program)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenizer": TokenizerConfig()}, "kind 'clip' pads with the id of a word"),
        ({"context_length": 15}, "max_positions 14: 15 tokens need 15; shorten context_length"),
        ({"context_length": 11, "positions_from": "pad_id"}, "max_positions 14: 11 tokens need 15"),
        ({"heads": 5}, "heads 5 does not divide width 24"),
        ({"vocab_size": 3}, r"tokenizer.pad_id 3 is no id of a vocabulary of 3"),
        ({"output_width": 10, "projection": "none"}, "'none' needs width 10 to be embed_dim 24"),
    ],
)
def test_contradictions_are_reported(changes: dict[str, Any], message: str) -> None:
    model = Model({"image": VisionTower(width=24), "text": dataclasses.replace(BERT, **changes)}, 24)
    with pytest.raises(ConfigError, match=message):
        check_model(model)


def test_it_is_saved_and_read_again() -> None:
    model = Model({"image": VisionTower(), "text": dataclasses.replace(BERT, **OPTIONS[4], projection="mlp")})  # type: ignore[arg-type]
    assert from_json(to_saved(model), Model) == model
    assert not isinstance(model.towers["text"], TextTower)


def test_a_whole_model_maps_texts_to_unit_vectors() -> None:
    model = Model({"text": dataclasses.replace(BERT, projection="residual")}, 16)
    z = MultiTower(model).init_with_output(jax.random.key(0), {"text": texts()})[0]["text"].z
    np.testing.assert_allclose(np.linalg.norm(z, axis=1), 1, atol=1e-6)
