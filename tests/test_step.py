"""The train step gives one curve on any mesh; the state is sharded as the rules say."""

from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from tiny import tiny_config

from jclip.config import Config, Mesh
from jclip.data import make_loader
from jclip.optim import make_optimizer, make_schedule
from jclip.sharding import make_mesh, to_global
from jclip.step import init_state, make_encode, make_train_step, param_shapes, state_shardings
from jclip.tree import flatten

MESHES = [(1, 1), (2, 1), (4, 1), (8, 1), (1, 2), (2, 2), (1, 8), (2, 4)]


def start(config: Config, data: int, fsdp: int) -> tuple[Any, Any, Any, Any]:
    mesh = make_mesh(Mesh(data, fsdp), jax.devices()[: data * fsdp])
    shapes = param_shapes(config.model)
    schedule = make_schedule(config.optim, warmup_steps=3, total_steps=20)
    tx = make_optimizer(config.optim, schedule, shapes)
    shardings = state_shardings(shapes, tx, config, mesh)
    return mesh, shardings, init_state(config, tx, shardings), make_train_step(config, tx, schedule, mesh, shardings)


def curve(config: Config, data: int, fsdp: int, steps: int) -> tuple[list[float], Any]:
    mesh, _, state, train_step = start(config, data, fsdp)
    losses = []
    with make_loader(config) as loader:
        for _, batch in zip(range(steps), loader, strict=False):
            state, metrics = train_step(state, to_global(batch.arrays, mesh))
            losses.append(float(metrics["loss"]))
    return losses, state


@pytest.fixture(scope="module")
def one_device() -> list[float]:
    return curve(tiny_config(), 1, 1, 20)[0]


@pytest.mark.parametrize("mesh", MESHES[1:], ids=lambda m: f"{m[0]}x{m[1]}")
def test_the_loss_curve_is_the_same_on_every_mesh(one_device: list[float], mesh: tuple[int, int]) -> None:
    losses, _ = curve(tiny_config(), *mesh, 20)
    assert losses[0] == pytest.approx(one_device[0], rel=1e-6)
    assert losses == pytest.approx(one_device, rel=1e-4)


def test_the_loss_falls(one_device: list[float]) -> None:
    assert np.mean(one_device[-4:]) < np.mean(one_device[:4]) - 0.2


def test_scan_and_remat_give_the_same_curve(one_device: list[float]) -> None:
    how = {"model.scan": True, "model.remat": "nothing_saveable"}
    losses, _ = curve(tiny_config(**how), 2, 2, 6)
    assert losses == pytest.approx(one_device[:6], rel=1e-4)


def test_parameters_and_moments_are_sharded_by_rule_and_nothing_is_whole() -> None:
    _, shardings, state, _ = start(tiny_config(), 2, 4)
    params = flatten(state.params)
    assert params["image/blocks/mlp/fc1/kernel"].sharding.spec == PartitionSpec(None, None, "fsdp")
    assert params["text/token_embed"].sharding.spec == PartitionSpec("fsdp")
    assert params["logit_scale"].sharding.spec == PartitionSpec()
    moments = flatten(state.opt_state[1].mu)
    for path, leaf in params.items():
        assert moments[path].sharding == leaf.sharding, path
        whole = leaf.addressable_shards[0].data.size == leaf.size
        assert whole == (leaf.sharding.spec == PartitionSpec()), path
    big = sum(leaf.nbytes for leaf in params.values())
    here = sum(leaf.addressable_shards[0].data.nbytes for leaf in params.values())
    assert here < 0.3 * big
    same = jax.tree.map(lambda leaf, sharding: leaf.sharding.is_equivalent_to(sharding, leaf.ndim), state, shardings)
    assert all(jax.tree.leaves(same))


def test_the_logit_scale_stops_at_its_bounds() -> None:
    """Adam's first step is lr long, up or down as the sign of lr says, and would pass either bound."""
    reached = []
    for lr in (10.0, -10.0):
        mesh, _, state, train_step = start(tiny_config(**{"optim.lr": lr}), 1, 1)
        with make_loader(tiny_config()) as loader:
            state, _ = train_step(state, to_global(next(loader).arrays, mesh))
        reached.append(float(state.params["logit_scale"]))
    assert sorted(reached) == [0.0, pytest.approx(np.log(100))]


def test_the_state_is_donated() -> None:
    mesh, _, state, train_step = start(tiny_config(), 2, 1)
    with make_loader(tiny_config()) as loader:
        batch = to_global(next(loader).arrays, mesh)
    new, _ = train_step(state, batch)
    assert int(new.step) == 1
    assert jax.tree.leaves(state.params)[0].is_deleted()


def test_evaluation_is_in_float32_and_the_same_on_every_mesh() -> None:
    config = tiny_config(**{"model.dtype": "bfloat16"})
    results = []
    for data, fsdp in ((1, 1), (2, 4)):
        mesh, _, state, _ = start(config, data, fsdp)
        batch = np.random.default_rng(0).integers(0, 256, (16, 16, 16, 3)).astype(np.uint8)
        results.append(jax.device_get(make_encode(config.model, mesh)(state.params, to_global({"image": batch}, mesh))["image"]))
    for one, eight in zip(*results, strict=True):
        assert one.dtype == np.float32
        np.testing.assert_allclose(one, eight, atol=1e-6)
