"""The token-wise loss against its formula in f64, on every mesh; its memory by the compiler's own account."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from products import multiply_adds
from test_losses import make_mesh
from test_objectives import config_of, gradients, one_batch

from jclip.config import MeshConfig
from jclip.losses import contrastive, token_wise
from jclip.models import MultiTower, end_of_text, first_patch, output_tokens
from jclip.objectives import make_objective
from jclip.program import make_program
from jclip.sharding import make_mesh as mesh_of

MESHES = [None, (2, 1), (2, 4), *(pytest.param(mesh, marks=pytest.mark.slow) for mesh in ((1, 1), (8, 1), (1, 8)))]


def sides(seed: int, batch: int, patches: int, words: int, size: int) -> tuple[np.ndarray, ...]:
    """Unit tokens of both sides, f32 [B, K, E], matches being alike; and which are real: one or more, with gaps."""
    rng = np.random.default_rng(seed)
    common = rng.normal(size=(batch, 1, size))
    tokens = [common + rng.normal(size=(batch, n, size)) for n in (patches, words)]
    tokens = [(t / np.linalg.norm(t, axis=2, keepdims=True)).astype(np.float32) for t in tokens]
    masks = [rng.random(t.shape[:2]) < 0.6 for t in tokens]
    for mask in masks:
        mask[np.arange(batch), rng.integers(0, mask.shape[1], batch)] = True
    return *tokens, *masks


def by_hand(ta: np.ndarray, tb: np.ndarray, ma: np.ndarray, mb: np.ndarray, scale: float, decoupled: bool = False) -> Any:
    """The loss and its gradients in ta, tb and the scale, pair by pair."""
    ta, tb, n = ta.astype(np.float64), tb.astype(np.float64), len(ta)
    dta, dtb, dscale, loss = np.zeros_like(ta), np.zeros_like(tb), 0.0, 0.0
    for direction in (0, 1):
        asks, x, answers, y = ((ta, ma, tb, mb), (tb, mb, ta, ma))[direction]
        ds, dt = ((dta, dtb), (dtb, dta))[direction]
        best = {}
        s = np.zeros((n, n))
        for i in range(n):
            for j in range(n):
                mine, other = np.flatnonzero(x[i]), np.flatnonzero(y[j])
                cosines = asks[i, mine] @ answers[j, other].T
                best[i, j] = mine, other[cosines.argmax(1)]
                s[i, j] = cosines.max(1).mean()
        counted = ~np.eye(n, dtype=bool) if decoupled else np.ones((n, n), bool)
        share = np.where(counted, np.exp(scale * s), 0)
        loss += (np.log(share.sum(1)) - scale * np.diag(s)).sum() / (2 * n)
        slope = (share / share.sum(1, keepdims=True) - np.eye(n)) / (2 * n)
        dscale += (slope * s).sum()
        for (i, j), (mine, nearest) in best.items():
            for k, r in zip(mine, nearest, strict=True):
                ds[i, k] += scale * slope[i, j] / len(mine) * answers[j, r]
                dt[j, r] += scale * slope[i, j] / len(mine) * asks[i, k]
    return loss, (dta, dtb, dscale)


@pytest.mark.parametrize(("method", "decoupled"), [("gather", False), ("ring", False), ("ring", True)])
@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_value_and_gradients_are_those_of_the_formula_on_every_mesh(
    mesh: tuple[int, int] | None, method: str, decoupled: bool
) -> None:
    """Twenty-four examples of seven and five tokens, in tiles of five by five: nothing divides."""
    arrays = sides(1, 24, 7, 5, 6)
    where = {} if mesh is None else {"mesh": make_mesh(*mesh), "axes": ("data", "fsdp")}
    loss = partial(token_wise, method=method, block=5 if mesh is None or mesh == (1, 1) else 2, decoupled=decoupled, **where)
    value, slopes = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 4)))(*arrays, jnp.float32(9.0))
    want, wanted = by_hand(*arrays, 9.0, decoupled)
    assert value == pytest.approx(want, rel=1e-5)
    for got, expected in zip(slopes, wanted, strict=True):
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_padding_has_neither_part_nor_gradient() -> None:
    ta, tb, ma, mb = sides(2, 6, 4, 5, 8)
    loss = jax.jit(jax.value_and_grad(partial(token_wise, block=4), argnums=(0, 1)))
    value, slopes = loss(ta, tb, ma, mb, 5.0)
    for slope, mask in zip(slopes, (ma, mb), strict=True):
        assert not slope[~mask].any()
        assert slope[mask].any()
    ta[~ma], tb[~mb] = 7.0, -3.0  # whatever lies there
    assert loss(ta, tb, ma, mb, 5.0)[0] == value


def test_of_one_token_each_it_is_the_contrastive_loss() -> None:
    ta, tb, _, _ = sides(3, 10, 1, 1, 8)
    one = np.ones((10, 1), bool)
    assert token_wise(ta, tb, one, one, 14.0, block=3) == pytest.approx(float(contrastive(ta[:, 0], tb[:, 0], 14.0)), rel=1e-6)


def test_identical_examples_cost_the_logarithm_of_the_batch() -> None:
    ta, tb, ma, mb = (np.repeat(x[:1], 12, axis=0) for x in sides(4, 2, 5, 3, 8))
    assert token_wise(ta, tb, ma, mb, 50.0, block=5) == pytest.approx(np.log(12), rel=1e-5)


def test_in_bfloat16_the_loss_is_near_that_in_float32() -> None:
    ta, tb, ma, mb = sides(5, 8, 6, 4, 16)
    low = [jnp.asarray(t, jnp.bfloat16) for t in (ta, tb)]
    value, slopes = jax.value_and_grad(partial(token_wise, block=3), argnums=(0, 1))(*low, ma, mb, 10.0)
    want, (dta, *_) = by_hand(*(np.asarray(t, np.float32) for t in low), ma, mb, 10.0)
    assert value == pytest.approx(want, rel=1e-4)
    assert slopes[0].dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(slopes[0], np.float32), dta, atol=0.02 * np.abs(dta).max())


def temporary_bytes(batch: int, method: str, devices: int) -> int:
    patches, words, size = 196, 77, 64
    shapes = [jax.ShapeDtypeStruct((batch, n, size), jnp.float32) for n in (patches, words)]
    masks = [jax.ShapeDtypeStruct((batch, n), jnp.bool_) for n in (patches, words)]
    loss = partial(token_wise, scale=10.0, mesh=make_mesh(devices, 1), method=method)
    compiled = jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(*shapes, *masks).compile()
    return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("method", ["gather", "ring"])
def test_memory_is_linear_in_the_batch_and_a_tile(method: str) -> None:
    """Memory on 8 devices, of 196 patches and 77 words; dense similarities alone take 59 GiB at 1,024 examples, 943 at 4,096."""
    small, large = (temporary_bytes(batch, method, 8) for batch in (4096, 16384))
    assert large < 4 * small
    assert small < {"gather": 240, "ring": 100}[method] * 2**20


def test_value_and_gradient_take_four_products() -> None:
    arrays = sides(6, 64, 9, 4, 32)
    jaxpr = jax.make_jaxpr(jax.value_and_grad(partial(token_wise, scale=9.0), argnums=(0, 1)))(*arrays).jaxpr
    assert 4.0 <= multiply_adds(jaxpr) / (64**2 * 9 * 4 * 32) <= 4.1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tb": np.zeros((8, 4, 5), np.float32)}, r"must be \[B, K, E\] and \[B, L, E\]"),
        ({"ta": np.zeros((8, 5, 6), np.float16)}, "must both be float32 or both bfloat16"),
        ({"mask_b": np.ones((8, 5), bool)}, r"mask_b has shape \(8, 5\); it needs one value a token, \(8, 4\)"),
        ({"method": "dense"}, "method 'dense' is unknown; use 'gather' or 'ring'"),
        ({"block": 0}, "block 0 must be at least 1"),
        ({"mesh": make_mesh(3, 1)}, "batch 8 is not divisible by the 3 devices"),
    ],
)
def test_bad_arguments_are_refused(change: dict[str, Any], message: str) -> None:
    arguments = dict(zip(("ta", "tb", "mask_a", "mask_b"), sides(0, 8, 5, 4, 6), strict=True)) | {"scale": 1.0}
    with pytest.raises(ValueError, match=message):
        token_wise(**arguments | change)


@pytest.mark.slow
def test_the_objective_compares_all_patches_and_the_words_up_to_the_end() -> None:
    config = config_of("tokens", **{"model.towers.image.pool": "cls"})
    program = make_program(config, mesh_of(MeshConfig(1, 1), jax.devices()[:1]), warmup_steps=1, total_steps=4)
    params, batch = jax.device_get(program.init().params), one_batch(config)
    loss = gradients(config, 2, 1, params, {}, batch)[1]["tokens/loss"]
    encoded = jax.jit(MultiTower(config.model).apply)({"params": params}, batch)
    patches, words = (np.asarray(encoded[tower].output.tokens, np.float64) for tower in ("image", "text"))
    projected = [x @ params["tokens"][f"{side}_projection"]["kernel"] for side, x in (("a", patches[:, 1:]), ("b", words))]
    ta, tb = (x / np.linalg.norm(x, axis=2, keepdims=True) for x in projected)
    ends = np.asarray(end_of_text(jnp.asarray(batch["text"]), config.model.towers["text"]))
    assert len(set(ends)) > 1
    masks = np.ones(ta.shape[:2], bool), np.arange(tb.shape[1]) <= ends[:, None]
    assert loss == pytest.approx(by_hand(ta, tb, *masks, 1 / 0.07)[0], rel=1e-5)

    image, text = (config.model.towers[name] for name in ("image", "text"))
    assert tuple(output_tokens(tower) - first_patch(tower) for tower in (image, text)) == (ta.shape[1], tb.shape[1])
    own = make_objective(dataclasses.replace(config, objectives={"tokens": config.objectives["tokens"]})).flops()
    tokens = ta.shape[1] * image.width + tb.shape[1] * text.width
    assert own == 6 * 16 * 8 * tokens + 8 * 16**2 * ta.shape[1] * tb.shape[1] * 8
