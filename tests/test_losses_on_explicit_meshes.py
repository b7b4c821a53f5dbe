"""Losses on the mesh that `jax.make_mesh` makes, of explicit axes: what they are on one device, wherever the arrays lie."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jclip.losses import affinity, contrastive, nt_xent, retrieve, token_wise, triplet, word_cross_entropy

B, E, K, L = 16, 8, 3, 4

RNG = np.random.default_rng(0)
ZA, ZB = (z / np.linalg.norm(z, axis=-1, keepdims=True) for z in RNG.normal(size=(2, B, E)).astype(np.float32))
TA, TB = RNG.normal(size=(B, K, E)).astype(np.float32), RNG.normal(size=(B, L, E)).astype(np.float32)
IDS = np.arange(B, dtype=np.int32) // 2
VALID = (np.arange(B) % 5 != 0).astype(np.float32)
MASK = np.ones((B, L), bool)
WORDS = RNG.normal(size=(E, 20)).astype(np.float32)
SCALE = np.float32(10)

Loss = Callable[..., jax.Array]
LOSSES: dict[str, tuple[Loss, tuple[np.ndarray, ...]]] = {
    "softmax": (lambda a, b, **how: contrastive(a, b, SCALE, **how), (ZA, ZB)),
    "ring": (lambda a, b, **how: contrastive(a, b, SCALE, method="ring", block=3, **how), (ZA, ZB)),
    "scale": (lambda a, scale, **how: contrastive(a, ZB, scale, **how), (ZA, np.array(SCALE))),
    "sigmoid": (lambda a, b, **how: contrastive(a, b, SCALE, -10.0, kind="sigmoid", **how), (ZA, ZB)),
    "equal ids": (lambda a, b, **how: contrastive(a, b, SCALE, ids=IDS, equal="positive", valid=VALID, **how), (ZA, ZB)),
    "NT-Xent": (lambda a, b, **how: nt_xent(a, b, 0.1, **how), (ZA, ZB)),
    "triplet": (lambda a, b, **how: triplet(a, b, ids=IDS, block=5, **how), (ZA, ZB)),
    "token-wise": (lambda a, b, **how: token_wise(a, b, MASK[:, :K], MASK, SCALE, block=5, **how), (TA, TB)),
    "affinity": (lambda a, b, **how: affinity(a, b, SCALE, ZB, ZA, teacher_scale=5.0, **how), (ZA, ZB)),
    "retrieve": (lambda a, b, **how: (retrieve(a, b, 8.0, **how) ** 2)[:, 0].sum(), (ZA, ZB)),
    "words": (
        lambda x, v, **how: word_cross_entropy(x, v, np.zeros((B, L), np.int32), MASK, **how)[0].sum(),
        (TB, WORDS),
    ),
}


def put(array: np.ndarray, mesh: Mesh, split: bool) -> jax.Array:
    spec = PartitionSpec("data") if split and array.ndim and len(array) == B else PartitionSpec()
    return jax.device_put(array, NamedSharding(mesh, spec))


def cases() -> Iterator[Any]:
    """Each loss with arrays that lie split and whole; three of them are enough for every day, and compile for half a minute."""
    for name in LOSSES:
        for split in (True, False):
            quick = split and name in ("softmax", "sigmoid", "ring")
            yield pytest.param(name, split, id=f"{name}-{'split' if split else 'whole'}", marks=() if quick else pytest.mark.slow)


@pytest.mark.parametrize(("name", "split"), list(cases()))
def test_a_loss_on_a_mesh_of_explicit_axes_is_that_of_one_device(name: str, split: bool) -> None:
    loss, arrays = LOSSES[name]
    mesh = jax.make_mesh((4,), ("data",), devices=jax.devices()[:4])
    assert mesh.axis_types == (jax.sharding.AxisType.Explicit,)
    placed = [put(array, mesh, split) for array in arrays]

    def run(fn: Loss, arrays: Any, **how: Any) -> Any:
        return jax.value_and_grad(lambda *arrays: fn(*arrays, **how), argnums=(0, 1))(*arrays)

    want = run(loss, [jnp.asarray(array) for array in arrays])
    with jax.set_mesh(mesh):
        found = run(loss, placed, mesh=mesh), jax.jit(lambda *placed: run(loss, placed, mesh=mesh))(*placed)
    for got in found:
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5), got, want)
