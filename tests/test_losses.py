"""The contrastive loss against a dense one in f64, on every mesh; its memory by the compiler's own account."""

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jclip.losses import contrastive

MESHES = [(1, 1), (2, 1), (4, 1), (8, 1), (1, 8), (2, 4), (4, 2)]


def make_mesh(data: int, fsdp: int) -> Mesh:
    devices = jax.devices()[: data * fsdp]
    return jax.make_mesh((data, fsdp), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2, devices=devices)


def unit_rows(seed: int, batch: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    sides = np.random.default_rng(seed).normal(size=(2, batch, size))
    za, zb = sides / np.linalg.norm(sides, axis=2, keepdims=True)
    return za.astype(np.float32), zb.astype(np.float32)


def dense_f64(za: np.ndarray, zb: np.ndarray, scale: float) -> tuple[float, np.ndarray, np.ndarray, float]:
    """Loss and gradients of za, zb and scale with the whole matrix of logits in f64."""
    za, zb = za.astype(np.float64), zb.astype(np.float64)
    batch = len(za)
    cosines = za @ zb.T
    rows = np.exp(scale * cosines - (scale * cosines).max(1, keepdims=True))
    columns = np.exp(scale * cosines - (scale * cosines).max(0, keepdims=True))
    rows, columns = rows / rows.sum(1, keepdims=True), columns / columns.sum(0, keepdims=True)
    loss = -(np.log(np.diag(rows)) + np.log(np.diag(columns))).sum() / (2 * batch)
    slope = (rows + columns - 2 * np.eye(batch)) / (2 * batch)
    return loss, scale * slope @ zb, scale * slope.T @ za, float((slope * cosines).sum())


def assert_equals_dense(za: np.ndarray, zb: np.ndarray, scale: float, **options: object) -> None:
    value_and_grad = jax.jit(jax.value_and_grad(lambda a, b, s: contrastive(a, b, s, **options), argnums=(0, 1, 2)))
    value, (da, db, ds) = value_and_grad(za, zb, jnp.float32(scale))
    want, want_a, want_b, want_s = dense_f64(za, zb, scale)
    assert value == pytest.approx(want, rel=1e-6, abs=1e-6)
    for got, wanted in ((da, want_a), (db, want_b)):
        np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5 * max(np.abs(wanted).max(), 0.1 * scale / len(za)))
    assert ds == pytest.approx(want_s, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("mesh", MESHES, ids=lambda m: f"{m[0]}x{m[1]}")
@pytest.mark.parametrize(("local", "size", "block", "scale"), [(1, 5, 1024, 10.0), (7, 33, 3, 100.0), (24, 16, 32, 14.3)])
def test_loss_and_gradients_equal_a_dense_f64_reference_on_every_mesh(
    mesh: tuple[int, int], local: int, size: int, block: int, scale: float
) -> None:
    za, zb = unit_rows(local, local * mesh[0] * mesh[1], size)
    assert_equals_dense(za, zb, scale, mesh=make_mesh(*mesh), axes=("data", "fsdp"), block=block)


@settings(max_examples=15, deadline=None)
@given(
    batch=st.integers(1, 63), size=st.integers(1, 17), block=st.integers(1, 80), scale=st.floats(1, 100), seed=st.integers(0, 99)
)
def test_loss_without_a_mesh_equals_the_reference_for_any_size(
    batch: int, size: int, block: int, scale: float, seed: int
) -> None:
    assert_equals_dense(*unit_rows(seed, batch, size), scale, block=block)


@pytest.mark.parametrize("block", [4, 7, 64])
def test_loss_of_identical_embeddings_is_the_logarithm_of_the_batch(block: int) -> None:
    za = np.tile(unit_rows(0, 1, 8)[0], (24, 1))
    mesh = make_mesh(8, 1)
    assert contrastive(za, za, 100.0, mesh=mesh, block=block) == pytest.approx(np.log(24), rel=1e-6)


def test_one_axis_of_two_leaves_the_other_replicated() -> None:
    assert_equals_dense(*unit_rows(3, 12, 9), 20.0, mesh=make_mesh(4, 2), axes=("data",), block=5)


def test_bf16_embeddings_give_the_f32_loss_of_the_same_numbers() -> None:
    za, zb = (x.astype(jnp.bfloat16) for x in unit_rows(1, 64, 32))
    mesh = make_mesh(4, 2)

    def loss(a: jax.Array, b: jax.Array) -> jax.Array:
        return contrastive(a, b, 20.0, mesh=mesh, axes=("data", "fsdp"), block=16)

    value, (da, db) = jax.value_and_grad(loss, argnums=(0, 1))(za, zb)
    want, want_a, want_b, _ = dense_f64(za, zb, 20.0)
    assert da.dtype == db.dtype == jnp.bfloat16
    assert value == pytest.approx(want, rel=1e-5)  # the products of bf16 numbers are exact in f32
    np.testing.assert_allclose(da.astype(np.float32), want_a, atol=2**-8 * np.abs(want_a).max())
    np.testing.assert_allclose(db.astype(np.float32), want_b, atol=2**-8 * np.abs(want_b).max())


def matching_rows(seed: int, batch: int, size: int, noise: float) -> tuple[np.ndarray, np.ndarray]:
    za, other = unit_rows(seed, batch, size)
    zb = za + noise * other
    return za, (zb / np.linalg.norm(zb, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("noise", [0.0, 0.3, 1.0])
def test_pairs_that_match_have_the_gradients_of_the_reference_too(noise: float) -> None:
    assert_equals_dense(*matching_rows(0, 48, 24, noise), 30.0, mesh=make_mesh(4, 2), axes=("data", "fsdp"), block=10)


def test_bf16_gradients_of_matching_pairs_keep_their_leading_digits() -> None:
    za, zb = (x.astype(jnp.bfloat16) for x in matching_rows(0, 64, 32, 1.0))
    da, db = jax.grad(lambda a, b: contrastive(a, b, 30.0, block=20), argnums=(0, 1))(za, zb)
    loss, want_a, want_b, _ = dense_f64(za, zb, 30.0)
    assert loss < 0.05  # most p are 1 in bf16, and p - 1 is all there is
    for got, want in ((da, want_a), (db, want_b)):
        assert np.linalg.norm(got.astype(np.float32) - want) < 0.01 * np.linalg.norm(want)


def temporary_bytes(batch: int, **options: object) -> int:
    mesh = make_mesh(8, 1)
    rows, everywhere = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
    side = jax.ShapeDtypeStruct((batch, 512), jnp.float32, sharding=rows)
    scale = jax.ShapeDtypeStruct((), jnp.float32, sharding=everywhere)
    value_and_grad = jax.value_and_grad(lambda a, b, s: contrastive(a, b, s, mesh=mesh, **options), argnums=(0, 1, 2))
    compiled = jax.jit(value_and_grad, out_shardings=(everywhere, (rows, rows, everywhere))).lower(side, side, scale).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_temporary_memory_is_bounded_and_linear_in_the_batch() -> None:
    small, large = temporary_bytes(16_384), temporary_bytes(32_768)
    assert small <= 80e6  # the dense loss takes 570e6
    assert temporary_bytes(16_384, block=256) <= 75e6
    assert large / small == pytest.approx(2, rel=0.03)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "hinge"}, "kind 'hinge' is unknown; use 'softmax'"),
        ({"method": "dense"}, "method 'dense' is unknown; use 'gather'"),
        ({"bias": 1.0}, "does not depend on a bias"),
        ({"block": 0}, "block 0 must be at least 1"),
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
