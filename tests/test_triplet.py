"""The triplet losses against their formulas in f64, on every mesh."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from differences import slopes_by_differences
from test_losses import make_mesh, matching_rows, unit_rows

from jclip.losses import triplet

MESHES = [None, (1, 1), (8, 1), (2, 4)]


def by_hand(za: np.ndarray, zb: np.ndarray, ids: np.ndarray, margin: float, mining: str, distance: str) -> float:
    """The loss from the formula, row by row."""
    za, zb = za.astype(np.float64), zb.astype(np.float64)
    s = za @ zb.T if distance == "cosine" else -np.linalg.norm(za[:, None] - zb[None], axis=2)
    total = 0.0
    for scores in (s, s.T):
        for i in range(len(za)):
            others = scores[i, ids != ids[i]]
            if not len(others):
                continue
            hinges = np.maximum(0, margin - scores[i, i] + others)
            if mining == "all":
                total += hinges.sum()
            elif mining == "hardest" or not (others < scores[i, i]).any():
                total += hinges.max() if mining == "hardest" else hinges[others.argmin()]
            else:
                total += hinges[others < scores[i, i]].max()
    return total / len(za)


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
@pytest.mark.parametrize("mining", ["all", "hardest", "semi_hard"])
@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_every_form_equals_its_formula_in_f64_on_every_mesh(mesh: tuple[int, int] | None, mining: str, distance: str) -> None:
    """Twenty-four rows, blocks of five: nothing divides. Some rows have one thing in common, some none."""
    za, zb = matching_rows(3, 24, 7, 1.5)
    ids = np.random.default_rng(0).integers(0, 9, 24).astype(np.int32)
    where = {} if mesh is None else {"mesh": make_mesh(*mesh), "axes": ("data", "fsdp")}
    loss = partial(triplet, margin=0.3, mining=mining, distance=distance, ids=ids, block=5, **where)
    value, slopes = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(za, zb)
    want = partial(by_hand, ids=ids, margin=0.3, mining=mining, distance=distance)
    assert value == pytest.approx(want(za, zb), rel=1e-5)
    for side, slope in enumerate(slopes):
        for i, k in ((0, 0), (5, 3), (23, 6)):
            ends = []
            for step in (1e-6, -1e-6):  # the gradient by differences, of the loss as a function of vectors that are not unit
                z = [za.astype(np.float64), zb.astype(np.float64)]
                z[side][i, k] += step
                ends.append(unbound(*z, ids, 0.3, mining, distance))
            assert slope[i, k] == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-3, abs=2e-5), (side, i, k)


def unbound(za: np.ndarray, zb: np.ndarray, ids: np.ndarray, margin: float, mining: str, distance: str) -> float:
    """`by_hand`, with the distance as a function of the cosine, whatever the length of the vectors."""
    if distance == "cosine":
        return by_hand(za, zb, ids, margin, mining, distance)
    cosines = za @ zb.T
    a, s = np.eye(len(za)), -np.sqrt(np.maximum(2 - 2 * cosines, 1e-12))
    return by_hand(a, s.T, ids, margin, mining, "cosine")


def test_far_negatives_have_neither_loss_nor_gradient() -> None:
    z = jnp.eye(8)
    value, slope = jax.value_and_grad(lambda a: triplet(a, z, margin=0.2))(z)
    assert float(value) == 0
    assert not np.any(slope)


def test_of_two_rows_the_hardest_are_all() -> None:
    za, zb = unit_rows(1, 2, 5)
    values = [float(triplet(za, zb, mining=mining, margin=0.9)) for mining in ("all", "hardest")]
    assert values[0] == pytest.approx(values[1], rel=1e-6)
    assert values[0] > 0


@pytest.mark.parametrize("block", [2, 6])
def test_without_a_semi_hard_negative_the_farthest_counts(block: int) -> None:
    za, zb = unit_rows(1, 6, 5)
    za[0], zb[0] = zb[1:].mean(0) / np.linalg.norm(zb[1:].mean(0)), -za[0]
    s = za.astype(np.float64) @ zb.T
    assert (s[0, 1:] > s[0, 0]).all()
    loss = partial(triplet, mining="semi_hard", margin=0.3, block=block)
    value, slope = jax.value_and_grad(lambda row: loss(jnp.asarray(za).at[0].set(row), zb))(za[0])
    assert value == pytest.approx(by_hand(za, zb, np.arange(6), 0.3, "semi_hard", "cosine"), rel=1e-5)

    def of_row(row: np.ndarray) -> float:
        return by_hand(np.concatenate([row[None], za[1:]]), zb, np.arange(6), 0.3, "semi_hard", "cosine")

    np.testing.assert_allclose(slope, slopes_by_differences(of_row, [za[0].astype(np.float64)])[0], atol=1e-5)


def test_a_batch_of_one_thing_has_no_loss() -> None:
    za, zb = unit_rows(1, 6, 5)
    for mining in ("all", "hardest", "semi_hard"):
        assert float(triplet(za, zb, mining=mining, ids=np.zeros(6, np.int32), block=4)) == 0


@pytest.mark.parametrize("mining", ["all", "hardest", "semi_hard"])
def test_memory_is_linear_in_the_batch(mining: str) -> None:
    """Blocks of 8, of which there are many: what is kept of each would be seen."""
    sizes = []
    for batch in (4096, 16384):
        rows = jax.ShapeDtypeStruct((batch, 64), jnp.float32)
        loss = jax.grad(lambda a, b: triplet(a, b, mining=mining, mesh=make_mesh(8, 1), block=8), argnums=(0, 1))
        sizes.append(jax.jit(loss).lower(rows, rows).compile().memory_analysis().temp_size_in_bytes)
    assert sizes[1] < 4.02 * sizes[0]


@pytest.mark.parametrize(
    ("how", "message"), [({"mining": "soft"}, "mining 'soft' is unknown"), ({"distance": "l1"}, "distance 'l1' is unknown")]
)
def test_what_is_unknown_is_an_error(how: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        triplet(*unit_rows(0, 4, 3), **how)


@pytest.mark.parametrize("block", [1, 2, 3, 4, 7])
def test_of_negatives_that_are_equally_near_the_first_counts_whatever_the_block(block: int) -> None:
    za, zb = jnp.eye(7), jnp.eye(7).at[1:4].set(jnp.eye(7)[0])
    slope = jax.grad(lambda zb: triplet(za, zb, mining="hardest", block=block))(zb)
    # Of the first component: the hinge of row 0 of za, and each row's own hinge, whose nearest is row 0 of za.
    np.testing.assert_allclose(slope[1:4, 0], [2 / 7, 1 / 7, 1 / 7], rtol=1e-6)
