"""Options that x-clip adds to a pair: extra projections, further views, similarities that agree, a decoupled sum with a bound."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dense import dense
from jax.sharding import NamedSharding, PartitionSpec
from test_losses import make_mesh, unit_rows
from test_objectives import config_of, gradients, one_batch

from jclip.config import Config, Contrastive, MeshConfig, MultiView
from jclip.losses import sim_reg
from jclip.models import MultiTower
from jclip.objectives import make_objective
from jclip.program import make_program
from jclip.sharding import make_mesh as mesh_of


def encoded(name: str) -> tuple[Config, Any, dict[str, np.ndarray], Any]:
    """(configuration of one objective, parameters, a batch, what the towers make of it)."""
    config = config_of(name)
    program = make_program(config, mesh_of(MeshConfig(1, 1), jax.devices()[:1]), warmup_steps=1, total_steps=4)
    params, batch = jax.device_get(program.init().params), one_batch(config)
    towers = MultiTower(config.model, views={name: view.tower for name, view in config.inputs().items()})
    return config, params, batch, jax.device_get(jax.jit(towers.apply)({"params": params}, batch))


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def flops_of(config: Config, name: str) -> int:
    return make_objective(dataclasses.replace(config, objectives={name: config.objectives[name]})).flops()


@pytest.mark.slow
def test_with_extra_projections_each_side_asks_through_its_own_pair() -> None:
    config, params, batch, towers = encoded("extra")
    metrics = gradients(config, 2, 1, params, {}, batch)[1]
    za, zb = (towers[tower].z.astype(np.float64) for tower in ("image", "text"))
    own = params["extra"]
    xa, xb = (
        unit(towers[tower].output.pooled.astype(np.float64) @ own[f"{side}_projection"]["kernel"])
        for side, tower in (("a", "image"), ("b", "text"))
    )
    of_a, of_b = (dense(*pair, 1 / 0.07, direction="a_to_b").loss for pair in ((xa, xb), (zb, za)))
    assert abs(of_a - of_b) > 1e-3
    assert metrics["extra/loss"] == pytest.approx((of_a + of_b) / 2, rel=1e-5)
    batch_size, features = config.batch_size, config.model.embed_dim
    width = sum(tower.width for tower in config.model.towers.values())
    assert flops_of(config, "extra") == 16 * batch_size**2 * features + 6 * batch_size * width * features


@pytest.mark.slow
def test_further_views_add_the_mean_of_their_pairs_with_one_scale() -> None:
    config, params, batch, towers = encoded("multi")
    metrics = gradients(config, 2, 1, params, {}, batch)[1]
    first, *others = (dense(towers[view].z, towers["text"].z, 1 / 0.07).loss for view in ("image", "image@1", "image@2"))
    assert metrics["multi/loss"] == pytest.approx(first + np.mean(others) / 9, rel=1e-5)
    assert (metrics["multi/first"], metrics["multi/further"]) == pytest.approx((first, np.mean(others)), rel=1e-5)
    assert params["multi"].keys() == {"logit_scale"}
    assert flops_of(config, "multi") == 3 * 8 * config.batch_size**2 * config.model.embed_dim


def by_hand(za: np.ndarray, zb: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """The mean squared difference off the diagonal, and its gradients."""
    za, zb, n = za.astype(np.float64), zb.astype(np.float64), len(za)
    difference = np.where(np.eye(n, dtype=bool), 0, za @ za.T - zb @ zb.T) / (n * (n - 1))
    return float((difference**2).sum() * n * (n - 1)), 4 * difference @ za, -4 * difference @ zb


@pytest.mark.parametrize("noise", [1.0, 1e-3])
@pytest.mark.parametrize("mesh", [None, (8, 1), (2, 4)], ids=str)
def test_the_difference_of_similarities_is_that_of_all_pairs_on_every_mesh(mesh: tuple[int, int] | None, noise: float) -> None:
    """Sides that are unlike, and nearly equal ones, where no digit is lost; rows that are no unit vectors too."""
    za, other = unit_rows(1, 24, 7)
    zb = 1.1 * za + noise * other
    if mesh is not None:
        rows = NamedSharding(make_mesh(*mesh), PartitionSpec(("data", "fsdp")))
        za, zb = jax.device_put(za, rows), jax.device_put(zb.astype(np.float32), rows)
    value, slopes = jax.jit(jax.value_and_grad(sim_reg, argnums=(0, 1)))(za, zb.astype(np.float32))
    want, *wanted = by_hand(np.asarray(za), np.asarray(zb, np.float32))
    assert value == pytest.approx(want, rel=1e-5)
    for got, expected in zip(slopes, wanted, strict=True):
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_sides_turned_as_a_whole_agree() -> None:
    z, _ = unit_rows(2, 30, 8)
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(8, 8)))[0].astype(np.float32)
    assert abs(float(sim_reg(z, z @ turn))) < 1e-7
    assert float(sim_reg(z, unit_rows(3, 30, 8)[0])) > 0.1


def test_of_similarities_nothing_is_as_large_as_all_pairs() -> None:
    rows = jax.ShapeDtypeStruct((16384, 64), jnp.float32)
    compiled = jax.jit(jax.value_and_grad(sim_reg, argnums=(0, 1))).lower(rows, rows).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 8 * 16384 * 64 * 4


def test_the_objective_reads_both_embeddings() -> None:
    config, params, batch, towers = encoded("sim_reg")
    loss = gradients(config, 2, 1, params, {}, batch)[1]["sim_reg/loss"]
    assert loss == pytest.approx(by_hand(towers["image"].z, towers["text"].z)[0], rel=1e-4)


@pytest.mark.parametrize("how", [Contrastive(decoupled=True), MultiView(decoupled=True, b=("text",))], ids=["pair", "views"])
def test_the_scale_of_a_decoupled_loss_stays_bounded_whatever_the_step(how: Contrastive | MultiView) -> None:
    config = dataclasses.replace(config_of("multi"), objectives={"x": how})
    objective = make_objective(config)
    for start, end in ((1 / 0.07, 100.0), (100.0, 100.0)):
        old, new = ({"x": {"logit_scale": jnp.log(scale)}} for scale in (start, 1e6))
        assert float(jnp.exp(objective.bound(old, new)["x"]["logit_scale"])) == pytest.approx(end, rel=1e-5)
