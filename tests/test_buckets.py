"""Text buckets: the same loss and gradients as padded texts, on every mesh and in parts, for less work."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest
from test_objectives import config_of, gradients, one_batch
from tiny import tiny_config

from jclip.config import Config, ConfigError, MeshConfig, TextTower, check
from jclip.models import TextTransformer, bucketed_views, fits_buckets, towers_flops
from jclip.sharding import make_mesh
from jclip.state import init_params, new_extra, param_shapes
from jclip.step import make_loss_and_grads

POOLS: dict[str, dict[str, Any]] = {
    "eot": {},
    "first": {"causal": False, "mask_padding": True},
    "mean": {},
    "map": {"mask_padding": True, "causal": False},
    "cls": {},
}


@pytest.mark.parametrize("pool", POOLS)
def test_what_ignores_padding_says_the_same_of_shorter_rows(pool: Any) -> None:
    tower = TextTower(context_length=12, width=32, depth=2, heads=2, pool=pool, **POOLS[pool])
    assert tower.ignores_padding
    ids = np.zeros((3, 12), np.int32)
    for row, length in enumerate((2, 4, 5)):
        ids[row, : length - 1] = np.arange(1, length) + row
        ids[row, length - 1] = 49407
    model = TextTransformer(tower)
    see = jax.jit(model.apply, static_argnames="cut")
    variables = jax.jit(model.init)(jax.random.key(0), ids)
    whole, short = see(variables, ids), see(variables, ids[:, :5], cut=True)
    np.testing.assert_allclose(short.pooled, whole.pooled, atol=1e-5)
    real = np.asarray(short.mask)
    np.testing.assert_array_equal(real, np.asarray(whole.mask)[:, :5])
    np.testing.assert_allclose(np.asarray(short.tokens)[real], np.asarray(whole.tokens)[:, :5][real], atol=1e-5)


@pytest.mark.parametrize(
    ("pool", "more"), [("last", {}), ("cls_legacy", {}), ("mean", {"causal": False}), ("eot", {"causal": False})]
)
def test_a_tower_that_sees_padding_has_no_buckets(pool: Any, more: dict[str, Any]) -> None:
    tower = TextTower(context_length=12, width=32, depth=1, heads=2, pool=pool, **more)
    assert not tower.ignores_padding
    config = tiny_config()
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, towers={**config.model.towers, "text": tower}))
    with pytest.raises(ConfigError, match="buckets: text sees its padding"):
        check(dataclasses.replace(config, buckets=(("text", 4, 0.5),)))


@pytest.mark.parametrize(
    ("buckets", "said"),
    [
        ((("image", 4, 0.5),), "buckets: image is no text tower of the model; towers: image, text"),
        ((("text", 5, 0.5), ("text", 4, 0.2)), "groups of 5, 4 tokens; give each once, the shortest first"),
        ((("text", 8, 0.5),), "buckets: text 8: the last group, of 8 tokens, is there by itself; leave it out"),
        ((("text", 4, 0.5), ("text", 5, 0.6)), "has shares of 1.1 together; they are at most 1"),
        ((("text", 4, 0.05),), "buckets: text 4 0.05 is no row of the 16 rows of a device that its tower sees at once"),
    ],
)
def test_buckets_that_contradict_the_model_are_refused(buckets: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check(tiny_config(buckets=buckets), devices=1)


@pytest.fixture(scope="module")
def padded() -> Any:
    """Objectives that read the pooled text, its tokens, hidden words and captions; 16 texts of 2 to 8 tokens."""
    config = config_of("contrastive", "tokens", "masked", "caption", **{"model.towers.text.mask_padding": True})
    batch = one_batch(config)
    rng = np.random.default_rng(0)
    lengths = np.array([2, 4, 5, 3, 8, 4, 2, 3, 6, 4, 2, 4, 3, 8, 5, 2])
    for view in ("text", "written"):
        ids = np.zeros_like(batch[view])
        for row, length in zip(ids, lengths, strict=True):
            row[: length - 1], row[length - 1] = rng.integers(1, 40, length - 1), ids.dtype.type(end_id(config, view))
        batch[view] = ids
    params = init_params(config, jax.tree.map(lambda _: None, param_shapes(config)))
    extra = new_extra(config, params)
    return config, params, extra, batch, gradients(config, 1, 1, params, extra, batch)


def end_id(config: Config, view: str) -> int:
    tower = config.model.towers[view]
    assert isinstance(tower, TextTower)
    return tower.vocab_size - 1 if tower.eot_id is None else tower.eot_id


# Of every two rows that share a device and a part at most one is longer than 4.
FURTHER = [pytest.param(2, 2, 2, marks=pytest.mark.slow), pytest.param(2, 4, 1, marks=pytest.mark.exhaustive)]
HALVES = (("text", 4, 0.5), ("written", 5, 0.5))


@pytest.mark.parametrize(
    ("data", "fsdp", "parts"),
    [pytest.param(1, 1, 1, marks=pytest.mark.exhaustive), *FURTHER],
)
def test_loss_and_gradients_are_those_of_padded_texts(padded: Any, data: int, fsdp: int, parts: int) -> None:
    config, params, extra, batch, (loss, metrics, grads) = padded
    in_parts = dataclasses.replace(config, accumulate=parts)
    if (data, fsdp, parts) != (1, 1, 1):  # sums over devices and parts are rounded in another order, by more than 1e-6
        here, metrics, grads = gradients(in_parts, data, fsdp, params, extra, batch)
        assert here == pytest.approx(loss, rel=1e-6)
    bucketed = dataclasses.replace(in_parts, buckets=HALVES)
    got_loss, got_metrics, got = gradients(bucketed, data, fsdp, params, extra, batch)
    assert got_metrics.pop("in_buckets") == 1
    assert got_loss == pytest.approx(loss, rel=1e-6)
    assert got_metrics == pytest.approx(metrics, rel=1e-5, abs=1e-6)
    assert_equal(got, grads)


def assert_equal(got: dict[str, np.ndarray], want: dict[str, np.ndarray]) -> None:
    """Asserts equality to 1e-6 of the largest gradient: those of a key's bias are rounding alone."""
    largest = max(np.abs(gradient).max() for gradient in want.values())
    for path, gradient in want.items():
        np.testing.assert_allclose(got[path], gradient, rtol=1e-6, atol=1e-6 * largest, err_msg=path)


@pytest.mark.slow
def test_a_batch_with_too_many_long_texts_is_seen_padded(padded: Any) -> None:
    config, params, extra, batch, (loss, _, grads) = padded
    bucketed = dataclasses.replace(config, buckets=(("text", 2, 0.5),))
    got_loss, metrics, got = gradients(bucketed, 1, 1, params, extra, batch)
    assert metrics["in_buckets"] == 0
    assert got_loss == pytest.approx(loss, rel=1e-7)
    assert_equal(got, grads)


@pytest.mark.parametrize(("tokens", "share", "fits"), [(4, 0.6875, True), (4, 0.75, False), (5, 0.8125, True), (5, 0.875, False)])
def test_a_batch_fits_while_the_longest_of_a_group_does(padded: Any, tokens: int, share: float, fits: bool) -> None:
    config, _, _, batch, _ = padded
    bucketed = dataclasses.replace(config, buckets=(("text", tokens, share),))
    assert bool(fits_buckets(bucketed, batch, make_mesh(MeshConfig(1, 1), jax.devices()[:1]))) == fits


def test_a_text_that_no_tower_sees_forbids_no_buckets(padded: Any) -> None:
    """Vocabulary reads the ids of a text, and no tower sees them."""
    batch = padded[3]
    config = config_of("contrastive", "words", **{"model.towers.text.mask_padding": True})
    both = dataclasses.replace(config, buckets=(("text", 4, 0.5),))
    assert bucketed_views(both) == {"text": ["text"]}
    only = {name: how for name, how in both.objectives.items() if name == "words"}
    alone = dataclasses.replace(both, objectives=only)
    assert bucketed_views(alone) == {}
    assert bool(fits_buckets(both, batch, make_mesh(MeshConfig(1, 1), jax.devices()[:1])))


def test_buckets_save_the_work_of_padding(padded: Any) -> None:
    batch, config = padded[3], config_of("contrastive", **{"model.towers.text.mask_padding": True})
    mesh = make_mesh(MeshConfig(1, 1), jax.devices()[:1])
    bucketed = dataclasses.replace(config, buckets=(("text", 5, 0.75),))
    assert towers_flops(bucketed) < towers_flops(config)
    params = init_params(config, jax.tree.map(lambda _: None, param_shapes(config)))
    batch = {view: batch[view] for view in ("image", "text")}
    texts = [str(jax.make_jaxpr(make_loss_and_grads(c, mesh))(params, batch, jax.random.key(0), {})) for c in (bucketed, config)]
    assert ["[12,5,32]" in text for text in texts] == [True, False]  # rows, tokens and width of the first group
