"""The train step gives one curve on any mesh; the state is sharded as the rules say."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from tiny import tiny_config

from jclip.config import Config, Contrastive, MeshConfig, Model, architecture
from jclip.data import make_run_loader
from jclip.encode import make_encode
from jclip.models import example_inputs
from jclip.objectives.contrastive import hash_rows
from jclip.program import make_program
from jclip.sharding import batch_sharding, make_mesh, param_shardings, to_global
from jclip.state import param_shapes
from jclip.step import make_loss_and_grads
from jclip.tree import flatten

MESHES = [(2, 4)]
FURTHER_MESHES = [(8, 1), (2, 1), (4, 1), (1, 2), (2, 2), (1, 8)]


def start(config: Config, data: int, fsdp: int) -> tuple[Any, Any]:
    mesh = make_mesh(MeshConfig(data, fsdp), jax.devices()[: data * fsdp])
    return mesh, make_program(config, mesh, warmup_steps=3, total_steps=20)


def curve(config: Config, data: int, fsdp: int, steps: int) -> tuple[list[float], Any]:
    mesh, program = start(config, data, fsdp)
    state, losses = program.init(), []
    with make_run_loader(config) as loader:
        for _, batch in zip(range(steps), loader, strict=False):
            state, metrics = program.train_step(state, to_global(batch.arrays, mesh))
            losses.append(float(metrics["loss"]))
    return losses, state


@pytest.fixture(scope="module")
def one_device() -> list[float]:
    return curve(tiny_config(), 1, 1, 20)[0]


@pytest.mark.parametrize(
    "mesh", MESHES + [pytest.param(mesh, marks=pytest.mark.exhaustive) for mesh in FURTHER_MESHES], ids=lambda m: f"{m[0]}x{m[1]}"
)
def test_the_loss_curve_is_the_same_on_every_mesh(one_device: list[float], mesh: tuple[int, int]) -> None:
    losses, _ = curve(tiny_config(), *mesh, 20)
    assert losses[0] == pytest.approx(one_device[0], rel=1e-6)
    assert losses == pytest.approx(one_device, rel=1e-4)


def test_the_loss_falls(one_device: list[float]) -> None:
    assert np.mean(one_device[-4:]) < np.mean(one_device[:4]) - 0.2


@pytest.mark.exhaustive
def test_scan_and_remat_give_the_same_curve(one_device: list[float]) -> None:
    how = {"model.scan": True, "model.remat": "nothing_saveable"}
    losses, _ = curve(tiny_config(**how), 2, 2, 6)
    assert losses == pytest.approx(one_device[:6], rel=1e-4)


def test_parameters_and_moments_are_sharded_by_rule_and_nothing_is_whole() -> None:
    _, program = start(tiny_config(), 2, 4)
    state = program.init()
    params = flatten(state.params)
    assert params["image/blocks/mlp/fc1/kernel"].sharding.spec == PartitionSpec(None, None, "fsdp")
    assert params["text/token_embed"].sharding.spec == PartitionSpec("fsdp")
    assert params["image_text/logit_scale"].sharding.spec == PartitionSpec()
    moments = flatten(state.opt_state[1].mu)
    for path, leaf in params.items():
        assert moments[path].sharding == leaf.sharding, path
        whole = leaf.addressable_shards[0].data.size == leaf.size
        assert whole == (leaf.sharding.spec == PartitionSpec()), path
    big = sum(leaf.nbytes for leaf in params.values())
    here = sum(leaf.addressable_shards[0].data.nbytes for leaf in params.values())
    assert here < 0.3 * big
    same = jax.tree.map(lambda leaf, like: leaf.sharding.is_equivalent_to(like.sharding, leaf.ndim), state, program.state)
    assert all(jax.tree.leaves(same))


def test_layers_are_gathered_one_at_a_time_and_never_kept() -> None:
    """Parameters are nearly all the memory there is, with deep towers and a small batch."""
    tower = architecture("ViT-tiny-test").towers
    towers = {name: dataclasses.replace(t, width=128, depth=16) for name, t in tower.items()}
    towers["text"] = dataclasses.replace(towers["text"], vocab_size=64)
    for scan, remat in ((False, "none"), (True, "nothing_saveable")):
        config = tiny_config(model=Model(towers, 16, scan=scan, remat=remat), batch_size=8, **{"mesh.fsdp": 8})
        mesh, shapes = make_mesh(config.mesh), param_shapes(config)
        whole = sum(4 * leaf.size for leaf in jax.tree.leaves(shapes))
        shardings = param_shardings(shapes, config.mesh, mesh)
        loss_and_grads = jax.jit(
            make_loss_and_grads(config, mesh),
            in_shardings=(shardings, batch_sharding(mesh), None),
            out_shardings=(None, None, shardings, None),
        )
        batch = {name: jax.ShapeDtypeStruct(*like) for name, like in example_inputs(config.model, 8).items()}
        compiled = loss_and_grads.lower(shapes, batch, jax.eval_shape(jax.random.key, 0)).compile()
        assert compiled.memory_analysis().temp_size_in_bytes < 0.4 * whole, (scan, remat)


DROPOUT = {"model.towers.image.dropout": 0.2, "model.towers.text.dropout": 0.1, "batch_size": 64}


@pytest.mark.slow
def test_gradients_in_parts_are_those_of_the_whole_batch_dropout_included() -> None:
    config = tiny_config(**DROPOUT)
    mesh, program = start(config, 2, 4)
    params = program.init().params
    with make_run_loader(config) as loader:
        batch = to_global(next(loader).arrays, mesh)

    how = {parts: jax.jit(make_loss_and_grads(tiny_config(**DROPOUT, accumulate=parts), mesh)) for parts in (1, 8)}

    def gradients(parts: int, key: int) -> tuple[float, dict[str, np.ndarray]]:
        loss, _, grads, _ = how[parts](params, batch, jax.random.key(key))
        return float(loss), {path: np.asarray(leaf) for path, leaf in flatten(grads).items()}

    loss, whole = gradients(1, key=3)
    same, in_parts = gradients(8, key=3)
    assert same == pytest.approx(loss, rel=1e-6)
    for path, grad in whole.items():
        tolerance = 1e-5 * max(1.0, np.abs(grad).max())
        np.testing.assert_allclose(in_parts[path], grad, rtol=0, atol=tolerance, err_msg=path)
    assert gradients(8, key=4)[0] != pytest.approx(loss, rel=1e-3)  # the dropout is on


@pytest.mark.slow
def test_the_memory_of_the_towers_falls_with_the_parts() -> None:
    sizes = []
    for parts in (1, 8):
        config = tiny_config(model=architecture("ViT-mini-test"), batch_size=8192, accumulate=parts)
        mesh = make_mesh(MeshConfig(8, 1))
        shapes = param_shapes(config)
        loss_and_grads = jax.jit(make_loss_and_grads(config, mesh), in_shardings=(None, batch_sharding(mesh), None))
        batch = {name: jax.ShapeDtypeStruct(*like) for name, like in example_inputs(config.model, 8192).items()}
        lowered = loss_and_grads.lower(shapes, batch, jax.eval_shape(jax.random.key, 0))
        sizes.append(lowered.compile().memory_analysis().temp_size_in_bytes)
    assert sizes[1] < 0.3 * sizes[0]


@pytest.mark.slow
def test_every_objective_learns_with_a_scale_of_its_own() -> None:
    model = architecture("ViT-tiny-test")
    model = dataclasses.replace(model, towers={**model.towers, "again": model.towers["text"]})
    objectives = {
        "image_text": Contrastive(label_smoothing=0.1, equal="positive", equal_by="image", weight=2.0),
        "image_again": Contrastive("image", "again", "sigmoid", logit_bias="batch", method="ring", block=3, weight=0.5),
        "text_again": Contrastive("text", "again", "sigmoid", equal="ignore", dtype="bfloat16", logit_scale=5.0),
    }
    config = tiny_config(model=model, objectives=objectives, **{"data.fields": {"again": "text"}})
    mesh, program = start(config, 2, 2)
    state = program.init()
    scales = {name: float(np.exp(state.params[name]["logit_scale"])) for name in objectives}
    assert scales == pytest.approx({"image_text": 1 / 0.07, "image_again": 10, "text_again": 5}, rel=1e-6)
    biases = {name: float(state.params[name]["logit_bias"]) for name in ("image_again", "text_again")}
    assert biases == pytest.approx({"image_again": -np.log(15), "text_again": -10}, rel=1e-6)
    found = []
    with make_run_loader(config) as loader:
        for _, batch in zip(range(12), loader, strict=False):
            state, metrics = program.train_step(state, to_global(batch.arrays, mesh))
            found.append({name: float(value) for name, value in metrics.items()})
    for line in found:
        total = 2 * line["image_text/loss"] + 0.5 * line["image_again/loss"] + line["text_again/loss"]
        assert line["loss"] == pytest.approx(total, rel=1e-6)
    for name in objectives:
        losses = [line[f"{name}/loss"] for line in found]
        assert np.mean(losses[-3:]) < np.mean(losses[:3]) - 0.02, name
        assert found[1][f"{name}/logit_scale"] != pytest.approx(found[0][f"{name}/logit_scale"], rel=1e-6)


def test_equal_captions_are_known_by_their_input() -> None:
    """The ids of `equal` are a hash of the whole input."""
    ids = [hash_rows(np.array(x, np.int32)).tolist() for x in ([[1, 2], [2, 1], [1, 2]], [[1, 2], [1, 2], [1, 3]])]
    assert ids[0][0] == ids[0][2] != ids[0][1]
    assert ids[1][0] == ids[1][1] != ids[1][2]


def test_the_logit_scale_stops_at_its_bounds() -> None:
    """Adam's first step is lr long, up or down, and would pass either bound."""
    mesh, program = start(tiny_config(**{"optim.lr": 10.0}), 1, 1)
    with make_run_loader(tiny_config()) as loader:
        state, _ = program.train_step(program.init(), to_global(next(loader).arrays, mesh))
    assert float(state.params["image_text"]["logit_scale"]) in (0.0, pytest.approx(np.log(100)))


@pytest.mark.parametrize("value", [np.log(117.0), pytest.param(-0.5, marks=pytest.mark.exhaustive)])
def test_a_scale_from_outside_the_bounds_goes_no_further_out(value: float) -> None:
    """SigLIP's scales are beyond 100: the first update must not change them by more than lr."""
    config = tiny_config(**{"optim.lr": 1e-3, "optim.warmup": "0"})
    mesh, program = start(config, 1, 1)
    state = program.init()
    state.params["image_text"]["logit_scale"] = jax.numpy.float32(value)
    with make_run_loader(config) as loader:
        state, _ = program.train_step(state, to_global(next(loader).arrays, mesh))
    scale = float(state.params["image_text"]["logit_scale"])
    assert abs(scale) <= abs(np.float32(value))
    assert scale == pytest.approx(value, abs=1.1e-3)


LOCKED = {"optim.lr_rules": (("(image|image_projection|image_text)/.*", 0.0), (".*", 1.0))}


@pytest.mark.parametrize("accumulate", [pytest.param(1, marks=pytest.mark.exhaustive), 2])
def test_what_is_frozen_stays_bit_identical_and_has_no_optimizer_state(accumulate: int) -> None:
    config = tiny_config(**LOCKED, accumulate=accumulate)
    mesh, program = start(config, 2, 4)
    state = program.init()
    state.params["image_text"]["logit_scale"] = jax.device_put(
        np.float32(5.0), state.params["image_text"]["logit_scale"].sharding
    )
    before = {path: np.asarray(leaf) for path, leaf in flatten(state.params).items()}
    with make_run_loader(config) as loader:
        for _, batch in zip(range(3), loader, strict=False):
            state, _ = program.train_step(state, to_global(batch.arrays, mesh))
    after = flatten(state.params)
    assert after.keys() == before.keys()
    for path in before:
        same = np.array_equal(before[path], after[path])
        assert same == path.startswith(("image/", "image_projection/", "image_text/")), path
    trained = {path for path in before if path.startswith(("text/", "text_projection/"))}
    assert flatten(state.opt_state[1].mu).keys() == flatten(state.opt_state[1].nu).keys() == trained
    assert len(jax.tree.leaves(state.opt_state)) == 2 * len(trained) + 2  # and the counts of Adam and of the schedule
    assert flatten(state.opt_state[1].mu)["text/token_embed"].sharding == after["text/token_embed"].sharding


@pytest.mark.slow
def test_gradients_and_their_norm_are_of_what_is_trained() -> None:
    whole, locked = tiny_config(), tiny_config(**LOCKED)
    mesh, program = start(locked, 2, 4)
    params = program.init().params
    with make_run_loader(whole) as loader:
        batch = to_global(next(loader).arrays, mesh)
    key = jax.random.fold_in(jax.random.key(0), 0)
    losses, grads = [], []
    for config in (whole, locked):
        loss, _, gradients, _ = jax.jit(make_loss_and_grads(config, mesh))(params, batch, key)
        losses.append(float(loss))
        grads.append({path: np.asarray(leaf) for path, leaf in flatten(gradients).items()})
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert grads[1].keys() == {path for path in grads[0] if path.startswith(("text/", "text_projection/"))}
    for path, grad in grads[1].items():
        tolerance = 1e-5 * max(1.0, np.abs(grad).max())
        np.testing.assert_allclose(grad, grads[0][path], rtol=0, atol=tolerance, err_msg=path)
    _, metrics = program.train_step(program.init(), batch)
    norm = np.sqrt(sum(float((grad.astype(np.float64) ** 2).sum()) for grad in grads[1].values()))
    assert float(metrics["grad_norm"]) == pytest.approx(norm, rel=1e-5)


IN_PARTS = pytest.param({"accumulate": 2}, marks=pytest.mark.exhaustive)
SCANNED = pytest.param({"model.scan": True, "model.remat": "nothing_saveable"}, marks=pytest.mark.exhaustive)


@pytest.mark.parametrize("how", [{}, IN_PARTS, SCANNED], ids=str)
def test_a_locked_tower_costs_less_work_and_memory(how: dict[str, Any]) -> None:
    sizes, operations = [], []
    for rules in ({}, LOCKED):
        model = architecture("ViT-mini-test")
        config = tiny_config(**{"model": model, "batch_size": 256, **how, **rules})
        _, program = start(config, 1, 1)
        compiled = program.compile()
        sizes.append(compiled.memory_analysis().temp_size_in_bytes)
        operations.append(compiled.cost_analysis()["flops"])
    assert sizes[1] < 0.8 * sizes[0]
    assert operations[1] < 0.8 * operations[0]


def test_the_state_is_donated() -> None:
    mesh, program = start(tiny_config(), 8, 1)
    state = program.init()
    with make_run_loader(tiny_config()) as loader:
        batch = to_global(next(loader).arrays, mesh)
    new, _ = program.train_step(state, batch)
    assert int(new.step) == 1
    assert jax.tree.leaves(state.params)[0].is_deleted()


def test_evaluation_is_in_float32_and_the_same_on_every_mesh() -> None:
    config = tiny_config(**{"model.dtype": "bfloat16"})
    results = []
    for data, fsdp in ((1, 1), (2, 4)):
        mesh, program = start(config, data, fsdp)
        batch = np.random.default_rng(0).integers(0, 256, (16, 16, 16, 3)).astype(np.uint8)
        results.append(
            jax.device_get(make_encode(config.model, mesh)(program.init().params, to_global({"image": batch}, mesh))["image"])
        )
    for one, eight in zip(*results, strict=True):
        assert one.dtype == np.float32
        np.testing.assert_allclose(one, eight, atol=1e-6)
