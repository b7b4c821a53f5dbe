"""Parts of the towers by themselves, each against its formula: dropout, attention's masks and types, the end of text, pooling."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jclip.config import Preprocess, TextTower, TokenizerConfig, VisionTower
from jclip.models.attention import attend
from jclip.models.compute import Compute
from jclip.models.layers import ACTIVATIONS, Attention, Block, Dropout, uniform_of_rows
from jclip.models.multi_tower import unit
from jclip.models.pixels import normalise
from jclip.models.text import end_of_text, mean
from jclip.models.transformer import run_block
from jclip.models.vit import kept_patches, patchify, sincos_positions

P = 0.25


def dropped(rows: list[int], key: int = 0, shape: tuple[int, ...] = (40, 50)) -> np.ndarray:
    """Ones after dropout."""
    x = jnp.ones((len(rows), *shape))
    return np.asarray(Dropout(P).apply({}, x, jnp.asarray(rows), rngs={"dropout": jax.random.key(key)}))


def test_dropout_zeroes_its_share_and_scales_up_what_it_keeps() -> None:
    """Srivastava et al. 2014: with 1 / (1 - p) the expected value of each number is what it was."""
    y = dropped([0, 1, 2, 3, 4])
    np.testing.assert_allclose(np.unique(y), [0, 1 / (1 - P)], rtol=1e-6)
    assert abs((y == 0).mean() - P) < 5 * (P * (1 - P) / y.size) ** 0.5
    x = jnp.asarray(np.random.default_rng(0).normal(size=(5, 40, 50)), jnp.float32)
    np.testing.assert_allclose(Dropout(P).apply({}, x, jnp.arange(5), rngs={"dropout": jax.random.key(0)}), x * y, rtol=1e-6)


def test_dropout_is_a_function_of_key_and_row_and_of_nothing_else() -> None:
    y = dropped([3, 7, 3])
    np.testing.assert_array_equal(y[0], y[2])
    assert (y[0] != y[1]).any()
    np.testing.assert_array_equal(y[1], dropped([7])[0])
    assert (y != dropped([3, 7, 3], key=1)).any()
    x = jnp.ones((2, 3))
    assert Dropout(P).apply({}, x, None) is x  # in use
    assert Dropout(0.0).apply({}, x, jnp.arange(2)) is x


def one_block(rate: float = P, **options: Any) -> Block:
    how: dict[str, Any] = {"heads": 1, "hidden": 4, "activation": "gelu", "norm_eps": 1e-5, "residual_scale": 1.0}
    how |= {"causal": False, "dropout": rate, "layer_scale": None, "how": Compute(), "parent": None}
    return Block(**(how | options))


def params_of(block: Block, value: Callable[[tuple[int, ...]], np.ndarray]) -> dict[str, Any]:
    """Parameters of a block of width 8, a function of their shapes."""
    shapes = jax.eval_shape(block.init, jax.random.key(0), jnp.zeros((1, 6, 8)), None, None)["params"]
    return jax.tree.map(lambda like: value(like.shape).astype(np.float32), shapes)


def adding_ones() -> dict[str, Any]:
    """Attention and MLP each add 1 to every number, whatever goes in."""
    params = params_of(one_block(), np.zeros)
    params["attn"]["out"]["bias"] = params["mlp"]["fc2"]["bias"] = np.ones(8, np.float32)
    return params


def test_a_block_drops_of_what_attention_adds_and_of_what_the_mlp_adds_each_by_itself() -> None:
    params, x, one = adding_ones(), jnp.zeros((60, 20, 8)), 1 / (1 - P)
    train = jax.jit(lambda rows: one_block().apply({"params": params}, x, None, rows, rngs={"dropout": jax.random.key(0)}))
    y = np.asarray(train(jnp.arange(60)))
    values, counts = np.unique(np.round(y / one), return_counts=True)
    np.testing.assert_allclose(y, np.round(y / one) * one, atol=1e-5)
    assert values.tolist() == [0, 1, 2]
    np.testing.assert_allclose(counts / y.size, [P**2, 2 * P * (1 - P), (1 - P) ** 2], atol=0.02)  # two independent draws
    np.testing.assert_array_equal(jax.jit(one_block().apply)({"params": params}, x, None, None), 2)  # in use


def test_no_two_blocks_drop_the_same() -> None:
    params, x = adding_ones(), jnp.zeros((3, 20, 8))
    run = jax.jit(
        lambda i: run_block(one_block(), Compute(), x, (i, params), lengths=None, rows=jnp.arange(3), key=jax.random.key(0))[0]
    )
    assert (np.asarray(run(0)) != np.asarray(run(1))).mean() > 0.2


def test_random_numbers_of_rows_are_uniform() -> None:
    x = np.asarray(uniform_of_rows(jax.random.key(1), jnp.arange(100), (50,)))
    assert x.shape == (100, 50)
    assert x.min() >= 0
    assert x.max() < 1
    np.testing.assert_allclose(np.quantile(x, [0.1, 0.5, 0.9]), [0.1, 0.5, 0.9], atol=0.03)
    assert abs(np.corrcoef(x[:-1].ravel(), x[1:].ravel())[0, 1]) < 0.06


def test_activations_are_their_formulas() -> None:
    from math import erf, exp, pi, sqrt, tanh

    xs = [-4.0, -1.5, -0.3, 0.0, 0.7, 2.0, 5.0]
    exact = {
        "gelu": [x * 0.5 * (1 + erf(x / sqrt(2))) for x in xs],
        "gelu_tanh": [0.5 * x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x**3))) for x in xs],
        "quick_gelu": [x / (1 + exp(-1.702 * x)) for x in xs],
    }
    assert exact.keys() == ACTIVATIONS.keys()
    for name, want in exact.items():
        np.testing.assert_allclose(ACTIVATIONS[name](jnp.asarray(xs)), want, atol=2e-6, err_msg=name)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("padded", [False, True])
def test_one_token_of_a_block_is_that_token_of_all(causal: bool, padded: bool) -> None:
    """The last block computes a pooled token alone: it sees itself, the tokens before it if causal, and no padding."""
    block = one_block(0.0, heads=2, causal=causal)
    x = np.random.default_rng(0).normal(size=(3, 6, 8)).astype(np.float32)
    params = params_of(block, lambda shape: np.random.default_rng(len(shape)).normal(size=shape) * 0.5)
    lengths = jnp.asarray([6, 2, 4]) if padded else None
    apply = jax.jit(lambda at: block.apply({"params": params}, x, lengths, None, at))
    every = np.asarray(apply(None))
    for place in ([0, 0, 0], [5, 1, 3], [3, 0, 2]):
        np.testing.assert_allclose(apply(jnp.asarray(place))[:, 0], every[np.arange(3), place], atol=1e-5)
    last = block.apply({"params": params}, x, lengths, None, 5)  # a place that is the same in every example
    np.testing.assert_allclose(last[0, 0], every[0, 5], atol=1e-5)


def test_attention_of_padding_is_exactly_that_without_it() -> None:
    q, k, v = (jnp.asarray(np.random.default_rng(i).normal(size=(2, 7, 2, 4)), jnp.float32) for i in range(3))
    padded = attend(q, k, v, jnp.asarray([3, 7]))
    np.testing.assert_allclose(padded[0], attend(q[:1], k[:1, :3], v[:1, :3])[0], atol=1e-6)
    np.testing.assert_allclose(padded[1], attend(q[1:], k[1:], v[1:])[0], atol=1e-6)


@pytest.mark.parametrize("lengths", [None, (5, 2)])
def test_an_extra_key_is_one_more_token_that_all_see_and_nobody_asks_for(lengths: tuple[int, ...] | None) -> None:
    dice = np.random.default_rng(0)
    x = dice.normal(size=(2, 5, 8))
    limits = None if lengths is None else jnp.array(lengths)
    module = Attention(2, 1.0, extra_key=True)
    params = module.init(jax.random.key(0), x, x)["params"]
    assert params["extra_k"].shape == params["extra_v"].shape == (2, 4)
    y, kept = module.apply({"params": params}, x.astype(np.float32), x.astype(np.float32), limits, mutable=["attention"])
    w = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    found = np.zeros((2, 5, 8))
    for example in range(2):
        q, k, v = (x[example] @ w[name]["kernel"] + w[name]["bias"] for name in "qkv")
        seen = 5 if lengths is None else lengths[example]
        for head in range(2):
            part = slice(4 * head, 4 * head + 4)
            keys, values = (np.vstack([w[f"extra_{n}"][head], rows[:seen, part]]) for n, rows in (("k", k), ("v", v)))
            weights = np.exp(q[:, part] @ keys.T / 2)
            weights /= weights.sum(axis=1, keepdims=True)
            found[example, :, part] = weights @ values
            np.testing.assert_allclose(kept["attention"]["weights"][example, head, :, :seen], weights[:, 1:], atol=1e-6)
    np.testing.assert_allclose(y, found @ w["out"]["kernel"] + w["out"]["bias"], atol=1e-6)


def test_logits_of_attention_are_float32_where_all_else_is_bfloat16() -> None:
    """Two keys whose logits, 300 and 300.5, are one number in bfloat16: its neighbours there are 2 apart."""
    q = jnp.full((1, 1, 1, 4), 1.0, jnp.bfloat16) * 2
    k = jnp.asarray([[[[75.0] * 4]], [[[75.0, 75.0, 75.0, 75.5]]]], jnp.bfloat16).reshape(1, 2, 1, 4)
    v = jnp.asarray([[[[0.0] * 4]], [[[1.0] * 4]]], jnp.bfloat16).reshape(1, 2, 1, 4)
    weight = 1 / (1 + np.exp(-0.5))  # of the second; the logits are (q / 2) k
    np.testing.assert_allclose(np.asarray(attend(q, k, v), np.float32), weight, atol=4e-3)


ENDS = [
    # eot_id, pad_id, ids, index
    (None, 0, [5, 9, 9, 0], 1),  # the first of the largest
    (2, 0, [5, 2, 7, 2], 1),  # the first end
    (2, 0, [5, 7, 8, 2], 3),
    (2, 0, [5, 7, 0, 0], 1),  # no end: the last that is no padding
    (2, 1, [5, 0, 1, 1], 1),  # a padding that is not 0
    (2, 1, [5, 7, 8, 9], 3),
    (2, 2, [5, 7, 2, 2], 2),  # the padding is the end as well
]


@pytest.mark.parametrize(("eot_id", "pad_id", "ids", "index"), ENDS)
def test_the_end_of_text_is_the_first_end_or_else_the_last_real_token(
    eot_id: int | None, pad_id: int, ids: list[int], index: int
) -> None:
    config = TextTower(4, tokenizer=TokenizerConfig("hugging_face", file="x", pad_id=pad_id), eot_id=eot_id)
    assert end_of_text(jnp.asarray([ids]), config).tolist() == [index]


def test_the_mean_of_tokens_is_of_the_real_ones() -> None:
    tokens = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 3)), jnp.float32)
    mask = jnp.asarray([[True, True, False, False, False], [True] * 5])
    got = np.asarray(mean(tokens, mask))
    np.testing.assert_allclose(got, [np.asarray(tokens)[0, :2].mean(0), np.asarray(tokens)[1].mean(0)], atol=1e-6)


def test_embeddings_are_normalised_in_float32() -> None:
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 200)), jnp.bfloat16)
    z = unit(x)
    assert z.dtype == jnp.float32
    exact = np.asarray(x, np.float64)
    np.testing.assert_allclose(z, exact / np.linalg.norm(exact, axis=1, keepdims=True), rtol=1e-6)
    assert not np.isnan(unit(jnp.zeros((1, 3)))).any()


def test_pixels_are_normalised_with_the_numbers_that_openai_published() -> None:
    """OpenAI's preprocessing (clip.py of openai/CLIP), and another that a tower states."""
    image = np.random.default_rng(0).integers(0, 256, (2, 4, 3, 3)).astype(np.uint8)
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    np.testing.assert_allclose(normalise(jnp.asarray(image), Preprocess()), (image / 255 - mean) / std, atol=1e-5)
    other = Preprocess(mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    want = (image / 255 - (0.1, 0.2, 0.3)) / (0.4, 0.5, 0.6)
    np.testing.assert_allclose(normalise(jnp.asarray(image), other), want, atol=1e-5)


def test_patches_are_row_by_row_and_so_are_their_pixels() -> None:
    image = np.arange(5 * 7 * 2).reshape(1, 5, 7, 2)  # a row and a column too many
    want = [image[0, 2 * r : 2 * r + 2, 2 * c : 2 * c + 2].ravel() for r in range(2) for c in range(3)]
    np.testing.assert_array_equal(patchify(jnp.asarray(image), 2)[0], want)


@pytest.mark.parametrize(("grid", "share", "kept"), [(3, 0.5, 4), (4, 0.3, 11), (14, 0.5, 98), (2, 0.99, 1), (3, 0.0, 9)])
def test_patches_kept_are_rounded_down_and_never_none(grid: int, share: float, kept: int) -> None:
    assert kept_patches(VisionTower(image_size=8 * grid, patch_size=8, patch_dropout=share)) == kept


def test_fixed_positions_are_sines_and_cosines_of_column_then_row() -> None:
    table = np.asarray(sincos_positions(3, 2, 8)).reshape(3, 2, 8)
    for row in range(3):
        for column in range(2):
            want = [f(p * w) for p in (column, row) for f in (np.sin, np.cos) for w in (1.0, 1e-4)]
            np.testing.assert_allclose(table[row, column], want, atol=1e-6)
