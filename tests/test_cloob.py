"""Retrieval and CLOOB against their formulas in f64, on every mesh, and what they are at the ends of beta."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from differences import slopes_by_differences
from products import multiply_adds
from test_losses import make_mesh, matching_rows, unit_rows
from test_objectives import config_of, gradients, one_batch

from jclip.config import CLOOB, MeshConfig
from jclip.losses import retrieve
from jclip.models import MultiTower
from jclip.objectives import Setting, cloob, make_objective
from jclip.objectives.objective import Params
from jclip.program import make_program
from jclip.sharding import make_mesh as mesh_of

MESHES = [None, (8, 1), (2, 4)]


def retrieved(q: np.ndarray, s: np.ndarray, beta: float) -> np.ndarray:
    """The unit vector along softmax(beta q s^T) s, of any vectors."""
    weights = np.exp(beta * q @ s.T)
    z = weights / weights.sum(1, keepdims=True) @ s
    return z / np.linalg.norm(z, axis=1, keepdims=True)


def by_hand(x: np.ndarray, y: np.ndarray, beta: float, inv_tau: float) -> float:
    """CLOOB's loss, from the paper's equations 3 to 8."""

    def leave_one_out(p: np.ndarray, q: np.ndarray) -> float:
        logits = inv_tau * p @ q.T
        others = np.where(np.eye(len(p), dtype=bool), -np.inf, logits)
        return float((np.log(np.exp(others).sum(1)) - np.diag(logits)).mean()) / inv_tau

    of_x, of_y = ([retrieved(z, stored, beta) for z in (x, y)] for stored in (x, y))
    return leave_one_out(of_x[0], of_x[1]) + leave_one_out(of_y[1], of_y[0])


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_retrieval_and_its_gradients_are_those_of_the_formula_on_every_mesh(mesh: tuple[int, int] | None) -> None:
    """Sixteen queries of twenty-four patterns in blocks of five."""
    (q, _), (s, _), (along, _) = unit_rows(1, 16, 6), unit_rows(2, 24, 6), unit_rows(3, 16, 6)
    where = {} if mesh is None else {"mesh": make_mesh(*mesh), "axes": ("data", "fsdp")}
    value, slopes = jax.jit(
        jax.value_and_grad(lambda q, s: (retrieve(q, s, 8.0, block=5, **where) * along).sum(), argnums=(0, 1))
    )(q, s)
    wide = [q.astype(np.float64), s.astype(np.float64)]
    assert value == pytest.approx((retrieved(*wide, 8.0) * along).sum(), rel=1e-5)
    for slope, want in zip(slopes, slopes_by_differences(lambda q, s: (retrieved(q, s, 8.0) * along).sum(), wide), strict=True):
        np.testing.assert_allclose(slope, want, rtol=0, atol=1e-5 * np.abs(want).max())


def test_with_beta_near_0_the_mean_is_retrieved_and_with_a_large_one_the_nearest() -> None:
    q, s = matching_rows(4, 20, 40, 0.7)
    mean = s.mean(0) / np.linalg.norm(s.mean(0))
    np.testing.assert_allclose(retrieve(q, s, 0.0, block=7), np.tile(mean, (20, 1)), atol=1e-6)
    np.testing.assert_allclose(retrieve(q, q, 40.0, block=7), q, atol=1e-5)
    np.testing.assert_allclose(retrieve(q, s, 40.0, block=7), s[(q @ s.T).argmax(1)], atol=0.02)
    opposite = retrieve(-s[:1], s[:1], 40.0)  # weights of exp(-80)
    np.testing.assert_allclose(opposite, s[:1], atol=1e-6)


def loss_of(how: CLOOB, mesh: tuple[int, int] | None) -> object:
    config = dataclasses.replace(config_of("cloob"), objectives={"cloob": how})
    objective = cloob.CLOOBObjective("cloob", how, Setting.of(config), None if mesh is None else make_mesh(*mesh))
    empty: Params = {}
    return lambda x, y: objective.batch(empty, empty, (x, y), {})[0]


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_the_loss_and_its_gradients_are_those_of_the_formula_on_every_mesh(mesh: tuple[int, int] | None) -> None:
    x, y = matching_rows(5, 16, 6, 1.0)
    value, slopes = jax.jit(jax.value_and_grad(loss_of(CLOOB(block=5), mesh), argnums=(0, 1)))(x, y)
    wide = [x.astype(np.float64), y.astype(np.float64)]
    assert value == pytest.approx(by_hand(*wide, 8.0, 30.0), rel=1e-5)
    for slope, want in zip(slopes, slopes_by_differences(partial(by_hand, beta=8.0, inv_tau=30.0), wide), strict=True):
        np.testing.assert_allclose(slope, want, rtol=0, atol=1e-5 * np.abs(want).max())


@pytest.mark.slow
def test_the_objective_reads_the_embeddings_and_counts_its_products() -> None:
    config = config_of("cloob")
    program = make_program(config, mesh_of(MeshConfig(1, 1), jax.devices()[:1]), warmup_steps=1, total_steps=4)
    params, batch = jax.device_get(program.init().params), one_batch(config)
    loss = gradients(config, 2, 1, params, {}, batch)[1]["cloob/loss"]
    encoded = jax.jit(MultiTower(config.model).apply)({"params": params}, batch)
    x, y = (np.asarray(encoded[tower].z, np.float64) for tower in ("image", "text"))
    assert loss == pytest.approx(by_hand(x, y, 8.0, 30.0), rel=1e-5)
    rows = jax.ShapeDtypeStruct((512, 32), jnp.float32)
    jaxpr = jax.make_jaxpr(jax.value_and_grad(loss_of(CLOOB(), None), argnums=(0, 1)))(rows, rows).jaxpr
    alone = dataclasses.replace(config, objectives={"cloob": CLOOB()})
    flops = make_objective(alone).flops() / config.batch_size**2 / config.model.embed_dim
    assert 2 * multiply_adds(jaxpr) / 512**2 / 32 == pytest.approx(flops, rel=0.03)


def test_memory_is_linear_in_the_batch() -> None:
    sizes = []
    for batch in (4096, 16384):
        rows = jax.ShapeDtypeStruct((batch, 64), jnp.float32)
        loss = jax.jit(jax.grad(loss_of(CLOOB(), (8, 1)), argnums=(0, 1)))
        sizes.append(loss.lower(rows, rows).compile().memory_analysis().temp_size_in_bytes)
    assert sizes[1] < 4.5 * sizes[0]
    assert sizes[1] < 4 * 16384**2 / 8 / 2  # half of a device's share of one of the six matrices


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"beta": 50.0}, "beta 50.0 must be at least 0 and at most 40"),
        ({"patterns": np.zeros((6, 4), np.float32)}, r"queries \(6, 3\) and patterns \(6, 4\) must be"),
        ({"mesh": make_mesh(4, 1)}, "6 queries of 6 patterns are not divisible by 4 devices"),
    ],
)
def test_bad_arguments_are_refused(how: dict[str, object], message: str) -> None:
    q, s = unit_rows(0, 6, 3)
    with pytest.raises(ValueError, match=message):
        retrieve(**{"queries": q, "patterns": s, "beta": 8.0} | how)
