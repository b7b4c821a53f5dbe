"""The contrastive loss against a dense one in f64, on every mesh; its memory by the compiler's own account."""

from functools import partial

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dense import dense
from hypothesis import given, settings
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from products import multiply_adds

from jclip.losses import contrastive

MESHES = [(1, 1), (2, 1), (4, 1), (8, 1), (1, 8), (2, 4), (4, 2)]
FEW_MESHES = [(1, 1), (8, 1), (1, 8), (2, 4)]  # one device, either axis alone, and both; the others are more of the same


def make_mesh(data: int, fsdp: int) -> Mesh:
    devices = jax.devices()[: data * fsdp]
    return jax.make_mesh((data, fsdp), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2, devices=devices)


def unit_rows(seed: int, batch: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    sides = np.random.default_rng(seed).normal(size=(2, batch, size))
    za, zb = sides / np.linalg.norm(sides, axis=2, keepdims=True)
    return za.astype(np.float32), zb.astype(np.float32)


def matching_rows(seed: int, batch: int, size: int, noise: float) -> tuple[np.ndarray, np.ndarray]:
    za, other = unit_rows(seed, batch, size)
    zb = za + noise * other
    return za, (zb / np.linalg.norm(zb, axis=1, keepdims=True)).astype(np.float32)


def assert_equals_dense(
    za: np.ndarray,
    zb: np.ndarray,
    scale: float,
    bias: float | None = None,
    *,
    where: dict[str, object] | None = None,
    **what: object,
) -> None:
    """`where` says how it is computed, `what` which loss it is."""
    numbers = (za, zb, jnp.float32(scale)) if bias is None else (za, zb, jnp.float32(scale), jnp.float32(bias))
    loss = jax.jit(jax.value_and_grad(lambda *n: contrastive(*n, **(where or {}), **what), argnums=tuple(range(len(numbers)))))
    value, (da, db, *rest) = loss(*numbers)
    want = dense(za, zb, scale, bias or 0.0, **what)
    # In a batch of a few rows nothing averages the rounding of the logits: half a unit in the last place of a cosine near 1.
    rounding = 2**-24 * scale / len(za)
    assert value == pytest.approx(want.loss, rel=1e-6, abs=1e-6 + 4 * rounding)
    for got, wanted in ((da, want.za), (db, want.zb)):
        tolerance = 1e-5 * max(np.abs(wanted).max(), 0.1 * scale / len(za)) + 4 * rounding * scale
        np.testing.assert_allclose(got, wanted, rtol=0, atol=tolerance)
    for got, wanted in zip(rest, want[3:], strict=False):
        assert got == pytest.approx(wanted, rel=1e-4, abs=1e-6)


KINDS = [("softmax", None), ("sigmoid", -10.0), ("sigmoid", 1.5)]
METHODS = ["gather", "ring"]


def options(seed: int, batch: int) -> dict[str, dict[str, object]]:
    """The options of the loss, alone and together."""
    dice = np.random.default_rng(seed)
    ids, ids_b = dice.integers(0, max(2, batch // 3), (2, batch)).astype(np.int32)
    valid = np.where(dice.random(batch) < 0.3, 0, dice.uniform(0.5, 2, batch)).astype(np.float32)
    return {
        "plain": {},
        "smoothing": {"label_smoothing": 0.1},
        "ignore": {"ids": ids, "equal": "ignore"},
        "positive": {"ids": ids, "equal": "positive"},
        "valid": {"valid": valid},
        "other-ids": {"ids": ids, "ids_b": ids_b, "valid": valid, "label_smoothing": 0.1},
        "all-ignore": {"label_smoothing": 0.2, "ids": ids, "equal": "ignore", "valid": valid},
        "all-positive": {"label_smoothing": 0.2, "ids": ids, "equal": "positive", "valid": valid},
    }


def check_option(kind: str, bias: float | None, method: str, mesh: tuple[int, int], option: str) -> None:
    """Seven rows a device, thirteen numbers, blocks of three: nothing divides."""
    batch = 7 * mesh[0] * mesh[1]
    za, zb = matching_rows(batch, batch, 13, 2.0)
    where = {"mesh": make_mesh(*mesh), "axes": ("data", "fsdp"), "method": method, "block": 3}
    assert_equals_dense(za, zb, 20.0, bias, where=where, kind=kind, **options(batch, batch)[option])


@pytest.mark.parametrize(
    "mesh",
    [mesh if mesh in FEW_MESHES else pytest.param(mesh, marks=pytest.mark.exhaustive) for mesh in MESHES],
    ids=lambda m: f"{m[0]}x{m[1]}",
)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("kind", "bias"), KINDS[:2])
def test_every_kind_and_method_equals_the_dense_loss_on_every_mesh(
    kind: str, bias: float | None, method: str, mesh: tuple[int, int]
) -> None:
    check_option(kind, bias, method, mesh, "all-positive")


@pytest.mark.parametrize("option", options(0, 3))
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("kind", "bias"), [*KINDS[:2], pytest.param(*KINDS[2], marks=pytest.mark.exhaustive)])
def test_every_option_equals_the_dense_loss(kind: str, bias: float | None, method: str, option: str) -> None:
    check_option(kind, bias, method, (2, 4), option)


@pytest.mark.parametrize("mesh", [(1, 1), (2, 4)], ids=lambda m: f"{m[0]}x{m[1]}")
@pytest.mark.parametrize("option", options(0, 3))
@pytest.mark.parametrize("method", METHODS)
def test_a_decoupled_softmax_equals_the_dense_one(method: str, option: str, mesh: tuple[int, int]) -> None:
    batch = 7 * mesh[0] * mesh[1]
    za, zb = matching_rows(batch, batch, 13, 2.0)
    where = {"mesh": make_mesh(*mesh), "axes": ("data", "fsdp"), "method": method, "block": 3}
    assert_equals_dense(za, zb, 20.0, where=where, decoupled=True, **options(batch, batch)[option])


@pytest.mark.parametrize("mesh", [(1, 1), (2, 4)], ids=lambda m: f"{m[0]}x{m[1]}")
@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("option", ["plain", "other-ids", "all-positive"])
def test_a_softmax_of_one_direction_equals_the_dense_one(option: str, decoupled: bool, mesh: tuple[int, int]) -> None:
    batch = 7 * mesh[0] * mesh[1]
    za, zb = matching_rows(batch, batch, 13, 2.0)
    where = {"mesh": make_mesh(*mesh), "axes": ("data", "fsdp"), "block": 3}
    what = {"decoupled": decoupled, "direction": "a_to_b", **options(batch, batch)[option]}
    assert_equals_dense(za, zb, 20.0, where=where, **what)


def test_a_decoupled_row_without_negatives_has_its_own_distance_for_a_loss() -> None:
    za, zb = unit_rows(0, 4, 3)
    alike = np.zeros(4, np.int32)
    want = 20 * (1 - (za * zb).sum(axis=1).mean())
    assert contrastive(za, zb, 20.0, decoupled=True, ids=alike) == pytest.approx(want, rel=1e-5)


def test_the_decoupled_loss_has_no_bound_below_where_the_softmax_ends_at_0() -> None:
    """The scale has to have a bound for this reason."""
    za = np.eye(8, dtype=np.float32)
    losses = [(float(contrastive(za, za, s)), float(contrastive(za, za, s, decoupled=True))) for s in (14.3, 100.0)]
    assert losses[0] == pytest.approx((np.log1p(7 * np.exp(-14.3)), np.log(7) - 14.3), abs=1e-5)
    assert losses[1] == pytest.approx((0, np.log(7) - 100), abs=1e-4)


@pytest.mark.exhaustive
@pytest.mark.parametrize("option", options(0, 3))
@pytest.mark.parametrize("mesh", MESHES, ids=lambda m: f"{m[0]}x{m[1]}")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("kind", "bias"), KINDS)
def test_every_kind_and_method_equals_the_dense_loss_on_every_mesh_with_every_option(
    kind: str, bias: float | None, method: str, mesh: tuple[int, int], option: str
) -> None:
    check_option(kind, bias, method, mesh, option)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    local=st.sampled_from([1, 2, 7, 63]),
    size=st.integers(2, 17),
    block=st.sampled_from([1, 3, 8, 63, 64, 1000]),
    scale=st.floats(1, 100),
    kind=st.sampled_from(KINDS),
    where=st.sampled_from([("gather", None), ("gather", (2, 1)), ("ring", (2, 1)), ("ring", (1, 1))]),
    twins=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_size_equals_the_dense_loss(
    local: int,
    size: int,
    block: int,
    scale: float,
    kind: tuple[str, float | None],
    where: tuple[str, tuple[int, int] | None],
    twins: bool,
    seed: int,
) -> None:
    method, mesh = where
    za, zb = matching_rows(seed, local * (mesh[0] if mesh else 1), size, 1.0)
    if twins:
        za[1::2], zb[1::2] = za[: len(za) // 2 * 2 : 2], zb[: len(zb) // 2 * 2 : 2]
    how = {"mesh": make_mesh(*mesh) if mesh else None, "method": method, "block": block}
    assert_equals_dense(za, zb, scale, kind[1], where=how, kind=kind[0])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("block", [4, 7, 64])
def test_loss_of_identical_embeddings_is_the_logarithm_of_the_batch(block: int, method: str) -> None:
    za = np.tile(unit_rows(0, 1, 8)[0], (24, 1))
    mesh = make_mesh(8, 1)
    loss = jax.jit(partial(contrastive, mesh=mesh, method=method, block=block))
    assert loss(za, za, 100.0) == pytest.approx(np.log(24), rel=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_one_axis_of_two_leaves_the_other_replicated(method: str) -> None:
    where = {"mesh": make_mesh(4, 2), "axes": ("data",), "method": method, "block": 5}
    assert_equals_dense(*unit_rows(3, 12, 9), 20.0, where=where)


@pytest.mark.parametrize("noise", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(("kind", "bias"), KINDS)
def test_pairs_that_match_have_the_gradients_of_the_reference_too(kind: str, bias: float | None, noise: float) -> None:
    where = {"mesh": make_mesh(4, 2), "axes": ("data", "fsdp"), "block": 10}
    assert_equals_dense(*matching_rows(0, 48, 24, noise), 30.0, bias, where=where, kind=kind)


def test_a_sure_sigmoid_keeps_its_digits() -> None:
    """Positives at logit 40 and negatives at -40: every term is some 4e-18, far below the rounding of 1."""
    za = np.eye(8, dtype=np.float32)
    value, da = jax.value_and_grad(lambda a: contrastive(a, za, 80.0, -40.0, kind="sigmoid", block=3))(za)
    want = dense(za, za, 80.0, -40.0, kind="sigmoid")
    assert value == pytest.approx(want.loss, rel=1e-5)
    np.testing.assert_allclose(da, want.za, rtol=1e-5)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("kind", "bias"), KINDS)
def test_bf16_embeddings_give_the_f32_loss_of_the_same_numbers(kind: str, bias: float | None, method: str) -> None:
    za, zb = (x.astype(jnp.bfloat16) for x in unit_rows(1, 64, 32))
    where = {"mesh": make_mesh(4, 2), "axes": ("data", "fsdp"), "method": method, "block": 16}
    loss = jax.value_and_grad(lambda a, b: contrastive(a, b, 20.0, bias, kind=kind, **where), argnums=(0, 1))
    value, (da, db) = jax.jit(loss)(za, zb)
    want = dense(za, zb, 20.0, bias or 0.0, kind=kind)
    assert da.dtype == db.dtype == jnp.bfloat16
    assert value == pytest.approx(want.loss, rel=1e-5)  # the products of bf16 numbers are exact in f32
    np.testing.assert_allclose(da.astype(np.float32), want.za, atol=2**-8 * np.abs(want.za).max())
    np.testing.assert_allclose(db.astype(np.float32), want.zb, atol=2**-8 * np.abs(want.zb).max())


def test_bf16_gradients_of_matching_pairs_keep_their_leading_digits() -> None:
    za, zb = (x.astype(jnp.bfloat16) for x in matching_rows(0, 64, 32, 1.0))
    da, db = jax.grad(lambda a, b: contrastive(a, b, 30.0, block=20), argnums=(0, 1))(za, zb)
    want = dense(za, zb, 30.0)
    assert want.loss < 0.05  # most p are 1 in bf16, and p - 1 is all there is
    for got, wanted in ((da, want.za), (db, want.zb)):
        assert np.linalg.norm(got.astype(np.float32) - wanted) < 0.01 * np.linalg.norm(wanted)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
@pytest.mark.parametrize("alike", [0.0, 3.0, 10.0])
def test_bf16_gradients_of_scale_and_bias_are_those_of_the_same_numbers_in_f64(kind: str, method: str, alike: float) -> None:
    """The cosines nearly cancel where all embeddings lie within a narrow cone, as at the start of training."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(2, 128, 32)) + alike * rng.normal(size=32)
    za, zb = jnp.asarray(rows / np.linalg.norm(rows, axis=-1, keepdims=True), jnp.bfloat16)
    where = {"mesh": make_mesh(4, 2), "axes": ("data", "fsdp"), "method": method, "block": 16}
    bias = -3.0 if kind == "sigmoid" else 0.0
    one = partial(contrastive, kind=kind, **where)
    slopes = jax.jit(jax.grad(lambda s, b: one(za, zb, s, b if kind == "sigmoid" else None), argnums=(0, 1)))(14.3, bias)
    want = dense(np.asarray(za, np.float64), np.asarray(zb, np.float64), 14.3, bias, kind=kind)
    assert slopes[0] == pytest.approx(want.scale, rel=1e-4)
    assert slopes[1] == pytest.approx(want.bias, rel=1e-4, abs=1e-7)


def test_identical_embeddings_have_no_gradient() -> None:
    z = jnp.tile(jnp.asarray([[0.6, 0.8]], jnp.float32), (64, 1))
    slopes = jax.grad(lambda a, b, s: contrastive(a, b, s, block=9), argnums=(0, 1, 2))(z, z, 100.0)
    for slope in slopes:
        np.testing.assert_allclose(slope, 0, atol=1e-6)


@pytest.mark.parametrize("weight", [0.0, -1.0, np.nan])
def test_a_weight_that_is_none_is_that_of_an_absent_row(weight: float) -> None:
    za, zb = unit_rows(5, 12, 9)
    valid = np.where(np.arange(12) % 3 > 0, 1.0, weight).astype(np.float32)
    want = dense(za[valid > 0], zb[valid > 0], 10.0)
    assert contrastive(za, zb, 10.0, valid=jnp.asarray(valid), block=5) == pytest.approx(want.loss, rel=1e-6)


def test_gradients_follow_what_is_done_with_the_loss() -> None:
    """Minus thrice the loss has minus thrice the gradient, in every argument."""
    za, zb = unit_rows(6, 8, 5)
    want = dense(za, zb, 7.0, -2.0, kind="sigmoid")
    slopes = jax.grad(lambda *numbers: -3 * contrastive(*numbers, kind="sigmoid", block=3), argnums=(0, 1, 2, 3))(
        za, zb, 7.0, -2.0
    )
    for got, one in zip(slopes, want[1:], strict=True):
        np.testing.assert_allclose(got, -3 * one, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["gather", pytest.param("ring", marks=pytest.mark.exhaustive)])
def test_axes_are_a_name_or_several_in_any_order(method: str) -> None:
    za, zb = unit_rows(5, 24, 9)
    mesh, want = make_mesh(4, 2), dense(za, zb, 10.0).loss
    for axes in ("data", ["data"], ("fsdp", "data"), ["data", "fsdp"]):
        assert contrastive(za, zb, 10.0, mesh=mesh, axes=axes, method=method, block=5) == pytest.approx(want, rel=1e-6)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_what_is_not_valid_changes_nothing_not_even_as_nan(kind: str, method: str) -> None:
    za, zb = unit_rows(5, 24, 9)
    valid = (np.arange(24) % 3 > 0).astype(np.float32)
    broken = np.where(valid[:, None] > 0, za, np.nan).astype(np.float32)
    where = {"mesh": make_mesh(4, 1), "method": method, "block": 4}
    loss = jax.jit(jax.value_and_grad(lambda a, b, v: contrastive(a, b, 10.0, kind=kind, valid=v, **where), argnums=(0, 1)))
    value, (da, db) = loss(broken, zb, jnp.asarray(valid))
    here = valid > 0
    want = dense(za[here], zb[here], 10.0, kind=kind)  # as if those rows were not there
    assert value == pytest.approx(want.loss, rel=1e-6)
    np.testing.assert_allclose(da[here], want.za, atol=1e-6)
    np.testing.assert_allclose(db[here], want.zb, atol=1e-6)
    assert not np.any([da[~here], db[~here]])
    value, (da, db) = loss(broken, zb, jnp.zeros(24))
    assert value == 0
    assert not np.any([da, db])


def value_and_grad(batch: int, size: int, **options: object) -> tuple[object, tuple[jax.ShapeDtypeStruct, ...]]:
    """The jitted loss and gradients on 8 devices, and the shapes to lower them for."""
    mesh = make_mesh(8, 1)
    rows, everywhere = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
    side = jax.ShapeDtypeStruct((batch, size), jnp.float32, sharding=rows)
    scale = jax.ShapeDtypeStruct((), jnp.float32, sharding=everywhere)
    loss = jax.value_and_grad(lambda a, b, s: contrastive(a, b, s, mesh=mesh, **options), argnums=(0, 1, 2))
    return jax.jit(loss, out_shardings=(everywhere, (rows, rows, everywhere))), (side, side, scale)


def temporary_bytes(batch: int, **options: object) -> int:
    loss, shapes = value_and_grad(batch, 512, **options)
    return loss.lower(*shapes).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
@pytest.mark.parametrize(("method", "megabytes"), [("gather", 75), ("ring", 25)])
def test_temporary_memory_is_bounded_and_linear_in_the_batch(method: str, megabytes: int, kind: str) -> None:
    small, large = (temporary_bytes(batch, method=method, kind=kind) for batch in (16_384, 32_768))
    assert small <= megabytes * 1e6  # the dense loss takes 570e6
    assert large / small == pytest.approx(2, rel=0.03)


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
@pytest.mark.parametrize("method", METHODS)
def test_value_and_gradient_take_four_products(method: str, kind: str) -> None:
    batch, size = 4096, 64
    loss, shapes = value_and_grad(batch, size, method=method, kind=kind)
    jaxpr = jax.make_jaxpr(loss)(*shapes).jaxpr
    assert 4.0 <= multiply_adds(jaxpr) / (batch**2 * size) <= 4.1


def test_right_answers_of_equal_embeddings_give_the_loss_of_negatives() -> None:
    """A softmax, where the columns of a row's right answers are the same: their mean is each of them."""
    za, zb = unit_rows(0, 12, 8)
    ids = np.arange(12, dtype=np.int32) % 5
    z, names = zb[ids], jnp.asarray(ids)
    positive, negative = (contrastive(za, z, 20.0, **more) for more in ({"ids": names, "equal": "positive"}, {}))
    assert positive == pytest.approx(float(negative), rel=1e-6)
    assert abs(contrastive(za, z, 20.0, ids=names, equal="ignore") - negative) > 0.1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "hinge"}, "kind 'hinge' is unknown; use 'softmax' or 'sigmoid'"),
        ({"method": "dense"}, "method 'dense' is unknown; use 'gather' or 'ring'"),
        ({"equal": "maybe"}, "equal 'maybe' is unknown; use 'ignore' or 'positive'"),
        ({"bias": 1.0}, "does not depend on a bias"),
        ({"scale": np.ones(1, np.float32)}, r"scale has shape \(1,\); it is one number"),
        ({"kind": "sigmoid", "direction": "a_to_b"}, "the pairs of a sigmoid have no direction"),
        ({"direction": "b_to_a"}, "direction 'b_to_a' is unknown; use 'both' or 'a_to_b'"),
        ({"block": 0}, "block 0 must be at least 1"),
        ({"label_smoothing": 1.0}, "label_smoothing 1.0 is a share"),
        ({"ids": np.zeros(7, np.int32)}, "ids has shape"),
        ({"ids": np.zeros(8, np.float32)}, "use integers"),
        ({"ids_b": np.zeros(8, np.int32)}, "ids_b are the ids of the other side; give ids too"),
        ({"ids": np.arange(8), "ids_b": np.arange(8), "equal": "positive"}, "both sides have the same ids; leave ids_b out"),
        ({"valid": np.zeros((8, 1), np.float32)}, "valid has shape"),
        ({"axes": ("model",)}, "no axis 'model'; axes: data, fsdp"),
        ({"zb": np.zeros((8, 5), np.float32)}, "must be equal"),
        ({"za": np.zeros((8, 4), np.float16), "zb": np.zeros((8, 4), np.float16)}, "use float32 or bfloat16"),
        ({"za": np.zeros((6, 4), np.float32), "zb": np.zeros((6, 4), np.float32)}, "not divisible by the 4 devices"),
    ],
)
def test_bad_arguments_are_refused(change: dict[str, object], message: str) -> None:
    za, zb = unit_rows(0, 8, 4)
    arguments = {"za": za, "zb": zb, "scale": 1.0, "mesh": make_mesh(4, 2)} | change
    with pytest.raises(ValueError, match=message):
        contrastive(**arguments)
