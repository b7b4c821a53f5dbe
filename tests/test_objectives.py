"""Objectives on one design: the same on any mesh and in any parts, against their formulas, and what each says of itself."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import tiny_config

import jclip
from jclip import convert, train
from jclip.checkpoint import CheckpointError, Checkpoints
from jclip.config import (
    BYOL,
    Augment,
    Caption,
    Config,
    ConfigError,
    Contrastive,
    Mesh,
    NearestNeighbour,
    Optim,
    SimCLR,
    SimSiam,
    Triplet,
    View,
    Vocabulary,
    check,
    replace,
)
from jclip.data import make_loader, open_source, train_transform
from jclip.data.loader import _apply
from jclip.data.sources import lookup
from jclip.data.transforms import Decode
from jclip.init_from import start_from
from jclip.models import MultiTower, apart, class_tokens, together
from jclip.objectives import OBJECTIVES, make_objective
from jclip.objectives.nearest_neighbour import nearest
from jclip.optim import moving_average
from jclip.runs import load_run
from jclip.sharding import make_mesh, to_global
from jclip.step import evaluated_params, make_loss_and_grads, make_program, new_extra, step_flops
from jclip.tree import flatten

VIEWS = {"image@1": View("image", augment=Augment(scale=(0.3, 1.0))), "image@2": View("image")}
PLAIN: dict[str, Any] = {"evals": {}, "checkpoint.best": None, "checkpoint.keep": 3}
HEAD: dict[str, Any] = {"hidden": 16, "features": 8}
EACH = {
    "contrastive": Contrastive(block=3),
    "decoupled": Contrastive("text", "image", decoupled=True, equal="ignore"),
    "views": Contrastive("image@1", "text", loss="sigmoid"),
    "triplet": Triplet(equal_by="text", block=5),
    "simclr": SimCLR(**HEAD, block=7),
    "simsiam": SimSiam(**HEAD),
    "byol": BYOL(**HEAD, decay=0.5),
    "neighbours": NearestNeighbour(size=32, block=5),
    "words": Vocabulary("image@2"),
    "caption": Caption("image@2", depth=1, label_smoothing=0.1, block=5),
}


SMALL = {"model.towers.image.depth": 1, "model.towers.text.depth": 1, "model.towers.image.patch_dropout": 0.0}


def config_of(*names: str, **changes: Any) -> Config:
    """Towers of one block, which compile fast."""
    objectives = {name: EACH[name] for name in names or EACH}
    if not {"contrastive", "decoupled", "views", "triplet", "neighbours"} & objectives.keys():
        objectives["contrastive"] = EACH["contrastive"]
    used = {view for objective in objectives.values() for view in objective.views()}
    views = {name: view for name, view in VIEWS.items() if name in used}
    return tiny_config(objectives=objectives, views=views, **SMALL, **changes)


def one_batch(config: Config) -> dict[str, np.ndarray]:
    with make_loader(config) as loader:
        return next(loader).arrays


def gradients(config: Config, data: int, fsdp: int, params: Any, extra: Any, batch: dict[str, np.ndarray]) -> Any:
    mesh = make_mesh(Mesh(data, fsdp), jax.devices()[: data * fsdp])
    config = dataclasses.replace(config, mesh=Mesh(data, fsdp))
    loss, metrics, grads, _ = jax.jit(make_loss_and_grads(config, mesh))(params, to_global(batch, mesh), jax.random.key(1), extra)
    return float(loss), {k: float(v) for k, v in metrics.items()}, {k: np.asarray(v) for k, v in flatten(grads).items()}


@pytest.fixture(scope="module")
def everything() -> Any:
    """All families together, on one device at once, after three steps: with dropout, a target, a full queue, and counts."""
    config = config_of(**{"model.towers.image.dropout": 0.1})
    weighed = {name: dataclasses.replace(how, weight=1 + i / 4) for i, (name, how) in enumerate(config.objectives.items())}
    config = dataclasses.replace(config, objectives=weighed)
    mesh = make_mesh(Mesh(1, 1), jax.devices()[:1])
    program = make_program(config, mesh, warmup_steps=1, total_steps=4)
    state, batch = program.init(), one_batch(config)
    for _ in range(3):
        state, _ = program.train_step(state, to_global(batch, mesh))
    state = jax.device_get(state)
    return config, state.params, state.extra, batch, gradients(config, 1, 1, state.params, state.extra, batch)


def test_there_is_a_case_of_every_family() -> None:
    assert {type(objective) for objective in EACH.values()} == set(OBJECTIVES)


FURTHER = [pytest.param(*how, marks=pytest.mark.slow) for how in ((4, 1, 1), (1, 1, 2))]


@pytest.mark.parametrize(("data", "fsdp", "parts"), [(2, 2, 4), *FURTHER])
def test_every_objective_is_the_same_on_any_mesh_and_in_any_parts(everything: Any, data: int, fsdp: int, parts: int) -> None:
    config, params, extra, batch, (loss, metrics, grads) = everything
    config = dataclasses.replace(config, accumulate=parts)
    same, same_metrics, same_grads = gradients(config, data, fsdp, params, extra, batch)
    assert same == pytest.approx(loss, rel=1e-5)
    assert same_metrics == pytest.approx(metrics, rel=1e-4, abs=1e-6)
    assert same_grads.keys() == grads.keys()
    for path, grad in grads.items():
        tolerance = 1e-5 * max(1.0, np.abs(grad).max())
        np.testing.assert_allclose(same_grads[path], grad, rtol=0, atol=tolerance, err_msg=path)


def test_the_loss_is_the_weighted_sum_of_all(everything: Any) -> None:
    config, *_, (loss, metrics, _) = everything
    total = sum(how.weight * metrics[f"{name}/loss"] for name, how in config.objectives.items())
    assert loss == pytest.approx(total, rel=1e-5)
    assert loss != pytest.approx(sum(metrics[f"{name}/loss"] for name in EACH), rel=1e-2)


def head(params: Any, x: np.ndarray, layers: int) -> np.ndarray:
    """A projection head in f64, from its definition."""
    for i in range(1, layers):
        x = x @ params[f"fc{i}"]["kernel"].astype(np.float64)
        x = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)
        x = np.maximum(0, x * params[f"norm{i}"]["scale"] + params[f"norm{i}"]["bias"])
    return x @ params[f"fc{layers}"]["kernel"] + params[f"fc{layers}"]["bias"]


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def pooled(config: Config, params: Any, batch: dict[str, np.ndarray], view: str) -> np.ndarray:
    encoded = jax.jit(MultiTower(config.model).apply)({"params": params}, {"image": batch[view]})
    return np.asarray(encoded["image"].output.pooled, np.float64)


def test_the_losses_of_two_views_are_their_formulas_in_f64() -> None:
    config = config_of("simclr", "simsiam", "byol")
    program = make_program(config, make_mesh(Mesh(1, 1), jax.devices()[:1]), warmup_steps=1, total_steps=4)
    params = jax.device_get(program.init().params)
    extra = jax.tree.map(lambda x: 0.5 * x + 0.01, new_extra(config, params))
    batch = one_batch(config)
    metrics = gradients(config, 2, 1, params, extra, batch)[1]
    a, b = (pooled(config, params, batch, view) for view in ("image@1", "image@2"))

    za, zb = (unit(head(params["simclr"]["head"], x, 3)) for x in (a, b))
    both = np.concatenate([za, zb])
    logits = both @ both.T / 0.1
    np.fill_diagonal(logits, -np.inf)
    n = len(za)
    right = logits[np.arange(2 * n), (np.arange(2 * n) + n) % (2 * n)]
    assert metrics["simclr/loss"] == pytest.approx((np.log(np.exp(logits).sum(1)) - right).mean(), rel=1e-5)
    assert metrics["simclr/spread"] == pytest.approx(za.std(axis=0).mean() * 8**0.5, rel=1e-4)

    za, zb = (head(params["simsiam"]["head"], x, 3) for x in (a, b))
    pa, pb = (unit(head(params["simsiam"]["predictor"], z, 2)) for z in (za, zb))
    want = -0.5 * ((pa * unit(zb)).sum(1) + (pb * unit(za)).sum(1)).mean()
    assert metrics["simsiam/loss"] == pytest.approx(want, rel=1e-5)

    pa, pb = (unit(head(params["byol"]["predictor"], head(params["byol"]["head"], x, 2), 2)) for x in (a, b))
    target = {name: extra["byol"][name] for name in ("image", "image_projection")}
    ta, tb = (unit(head(extra["byol"]["head"], pooled(config, target, batch, view), 2)) for view in ("image@1", "image@2"))
    want = (((pa - tb) ** 2).sum(1) + ((pb - ta) ** 2).sum(1)).mean()
    assert metrics["byol/loss"] == pytest.approx(want, rel=1e-5)


def trained(config: Config, steps: int) -> Any:
    mesh = make_mesh(config.mesh)
    program = make_program(config, mesh, warmup_steps=1, total_steps=steps)
    states = [program.init()]
    with make_loader(config) as loader:
        for _, batch in zip(range(steps), loader, strict=False):
            before = jax.device_get(states[-1])
            state, _ = program.train_step(states[-1], to_global(batch.arrays, mesh))
            states[-1:] = [before, state]
    return [*states[:-1], jax.device_get(states[-1])]


def test_a_target_without_momentum_is_the_student_and_with_momentum_its_average() -> None:
    old, new = (np.random.default_rng(seed).normal(size=99).astype(np.float32) for seed in (1, 2))
    np.testing.assert_array_equal(moving_average(old, new, jnp.zeros(())), new)
    states = trained(config_of("byol", **{"objectives.byol.decay": 0.9}), 2)
    decay = 1 - 0.1 * (np.cos(np.pi / 2) + 1) / 2
    for path, leaf in flatten(states[1].extra["byol"]["head"]).items():
        old, new = (flatten(state.params["byol"]["head"])[path] for state in states[:2])
        np.testing.assert_allclose(leaf, decay * old + (1 - decay) * new, atol=1e-6)


def test_the_moving_average_is_that_of_its_formula_and_evaluations_use_it_if_asked() -> None:
    config = tiny_config(**SMALL, **{"optim.ema": 0.15, "optim.lr_rules": ((".*/pos_embed", 0.0), (".*", 1.0))})
    states = trained(config, 3)
    want = {path: leaf.astype(np.float64) for path, leaf in flatten(states[0].params).items()}
    for step, state in enumerate(states[1:]):
        decay = min(0.15, (1 + step) / (10 + step))
        want = {path: decay * old + (1 - decay) * flatten(state.params)[path] for path, old in want.items()}
    have = flatten(states[-1].extra["ema"])
    assert have.keys() == {path for path in want if not path.endswith("/pos_embed")}
    for path, leaf in have.items():
        np.testing.assert_allclose(leaf, want[path], rtol=1e-6, atol=1e-7)
    for asked in (False, True):
        params = evaluated_params(dataclasses.replace(config, evaluate_ema=asked), states[-1].params, states[-1].extra)
        used = flatten(params)["text/token_embed"]
        assert np.array_equal(used, have["text/token_embed"]) == asked
        assert flatten(params).keys() == flatten(states[-1].params).keys()


def test_a_frozen_tower_stays_bit_equal_under_every_family() -> None:
    rules = (("(image|image_projection)/.*", 0.0), (".*", 1.0))
    states = trained(config_of(batch_size=8, optim=Optim(lr=1e-2, lr_rules=rules)), 2)
    for path, leaf in flatten(states[-1].params).items():
        same = np.array_equal(leaf, flatten(states[0].params)[path])
        assert same == path.startswith(("image/", "image_projection/")), path


def test_a_view_is_drawn_by_itself_and_changes_no_other() -> None:
    batches = [one_batch(config) for config in (tiny_config(**SMALL), config_of("simclr"))]
    assert batches[1].keys() == {"image", "text", "image@1", "image@2"}
    for tower in ("image", "text"):
        np.testing.assert_array_equal(batches[0][tower], batches[1][tower])
    for other in ("image", "image@2"):
        assert (batches[1]["image@1"] != batches[1][other]).any()


def test_an_image_is_decoded_once_for_all_its_views(monkeypatch: pytest.MonkeyPatch) -> None:
    config, decode, count = config_of("simclr"), Decode.__call__, []
    views = config.inputs()
    transforms = {name: train_transform(config.model.towers[view.tower], view.augment) for name, view in views.items()}
    fields = {name: view.field for name, view in views.items()}
    example = open_source(config.data.source)[3]
    rng = np.random.default_rng(1)
    want = {name: transforms[name](lookup(example, fields[name]), rng) for name in ("image", "text")}
    gentle = {**transforms, "image@1": transforms["image@2"]}
    want["image@2"] = _apply(gentle, example, fields, np.random.default_rng(1))["image@2"]  # whatever the other views draw

    def counted(self: Decode, value: Any, *more: Any) -> Any:
        count.extend([1] if value is example["image"] else [])  # threads of other tests may still read ahead
        return decode(self, value, *more)

    monkeypatch.setattr(Decode, "__call__", counted)
    have = _apply(transforms, example, fields, np.random.default_rng(1))
    assert len(count) == 1
    assert have.keys() == {"image", "text", "image@1", "image@2"}
    for name, value in want.items():
        np.testing.assert_array_equal(have[name], value)


def test_views_of_a_tower_are_encoded_as_if_alone() -> None:
    config = tiny_config(**SMALL)
    program = make_program(config, make_mesh(Mesh(1, 1), jax.devices()[:1]), warmup_steps=1, total_steps=4)
    params = program.init().params
    images = np.random.default_rng(0).integers(0, 256, (2, 4, 16, 16, 3)).astype(np.uint8)
    one = jax.jit(MultiTower(config.model).apply)
    alone = [one({"params": params}, {"image": x})["image"] for x in images]
    views = MultiTower(config.model, views={"image@2": "image"})
    both = jax.jit(views.apply)({"params": params}, {"image": images[0], "image@2": images[1]})
    for single, view in zip(alone, ("image", "image@2"), strict=True):
        for leaf, want in zip(jax.tree.leaves(both[view]), jax.tree.leaves(single), strict=True):
            np.testing.assert_allclose(leaf, want, atol=1e-6)
    back = apart(together([jnp.arange(4), jnp.arange(4) + 10]), 2)
    assert [x.tolist() for x in back] == [[0, 1, 2, 3], [10, 11, 12, 13]]


@pytest.mark.parametrize("name", ["simclr", "simsiam", "byol"])
def test_the_operations_of_heads_are_counted(name: str) -> None:
    config = config_of(name)
    own = make_objective(dataclasses.replace(config, objectives={name: EACH[name]})).flops()
    width, rows = 32, 2 * config.batch_size
    assert config.model.towers["image"].width == width
    parts = {
        "simclr": rows * 3 * 2 * (width * 16 + 16 * 16 + 16 * 8) + 8 * rows**2 * 8,
        "simsiam": rows * 3 * 2 * (width * 8 + 8 * 8 + 8 * 8 + 8 * 16 + 16 * 8),
    }
    if name in parts:
        assert own == parts[name]
    plain = tiny_config(**SMALL)
    assert step_flops(config) > step_flops(plain) + own  # two more views of the image tower too


def test_the_order_of_two_views_does_not_matter() -> None:
    losses = []
    for a, b in (("image@1", "image@2"), ("image@2", "image@1")):
        config = config_of("byol")
        config = dataclasses.replace(config, objectives={"byol": dataclasses.replace(EACH["byol"], a=a, b=b)})
        program = make_program(config, make_mesh(Mesh(1, 1), jax.devices()[:1]), warmup_steps=1, total_steps=4)
        params = jax.device_get(program.init().params)
        extra = jax.tree.map(lambda x: 0.5 * x + 0.01, new_extra(config, params))
        batch = one_batch(config_of("byol"))
        losses.append(gradients(config, 1, 1, params, extra, {name: batch[name] for name in (a, b)})[0])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_the_state_of_a_fine_tuning_begins_at_the_parameters_that_are_loaded(run: tuple[Config, Path]) -> None:
    config, workdir = run
    config = replace(replace(config, "init_from.path", str(workdir)), "seed", 5)
    mesh = make_mesh(config.mesh)
    program = make_program(config, mesh, warmup_steps=1, total_steps=2)
    state, _ = start_from(config, program, mesh)
    want = flatten(new_extra(config, state.params))
    assert want.keys() == flatten(state.extra).keys()
    for path, leaf in flatten(state.extra).items():
        np.testing.assert_array_equal(leaf, want[path], err_msg=path)
    program.train_step(state, to_global(one_batch(config), mesh))  # what is donated is not the same memory


def test_state_lies_where_the_parameters_of_its_name_do() -> None:
    rules = (("text/.*|image/.*", "replicate"), (".*", "fsdp"))
    config = config_of("byol", **{"optim.ema": 0.9, "mesh.fsdp": 2, "mesh.rules": rules})
    shapes = make_program(config, make_mesh(config.mesh), warmup_steps=1, total_steps=2).state
    params = flatten(shapes.params)
    for path, leaf in flatten(shapes.extra).items():
        name = path if path in params else path.partition("/")[2]
        assert leaf.sharding == params[name].sharding, path
    assert any(leaf.sharding.spec for leaf in params.values())


def objective_of(name: str) -> Any:
    config = config_of(name)
    return make_objective(config).objectives[name]


def test_the_queue_is_first_in_first_out_and_goes_round() -> None:
    objective = objective_of("neighbours")
    extra = objective.init_extra(jax.random.key(0), {})
    size, embed_dim = extra["queue"].shape
    pushed = np.random.default_rng(0).normal(size=(7, 16, embed_dim)).astype(np.float32)
    for i, rows in enumerate(pushed, 1):
        extra = objective.update(extra, {}, {"b": jnp.asarray(rows)}, {}, jnp.ones(()))
        assert 0 < int(extra["seen"]) < 2 * size
        assert min(int(extra["seen"]), size) == min(16 * i, size)
    last = {tuple(row) for row in pushed[-2:].reshape(-1, embed_dim)}
    assert {tuple(row) for row in np.asarray(extra["queue"])} == last
    np.testing.assert_array_equal(extra["queue"][:16], pushed[6])  # the oldest gave way
    twice = jnp.asarray(np.concatenate(pushed[:2]))  # another batch size, which does not end where the queue does
    extra = objective.update(extra, {}, {"b": twice}, {}, jnp.ones(()))
    assert {tuple(row) for row in np.asarray(extra["queue"])} == {tuple(row) for row in np.asarray(twice)}


@pytest.mark.parametrize("filled", [0, 3, 11])
def test_the_nearest_is_that_of_the_whole_matrix(filled: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jclip.objectives.nearest_neighbour.BLOCK", 4)
    z, queue = (unit(np.random.default_rng(seed).normal(size=(n, 5))).astype(np.float32) for seed, n in ((0, 6), (1, 11)))
    best, at = nearest(jnp.asarray(z), jnp.asarray(queue), jnp.int32(filled))
    cosines = z @ queue[:filled].T if filled else np.zeros((6, 1))
    np.testing.assert_allclose(best, cosines.max(1), atol=1e-6)
    np.testing.assert_array_equal(at, cosines.argmax(1))


def test_neighbours_are_answers_that_no_gradient_reaches() -> None:
    """At the first step the queue is empty and the answer is the text's own embedding, as in a plain softmax."""
    config = config_of("neighbours", "contrastive")
    program = make_program(config, make_mesh(Mesh(1, 1), jax.devices()[:1]), warmup_steps=1, total_steps=4)
    state, batch = jax.device_get(program.init()), one_batch(config)
    alone = dataclasses.replace(config, objectives={"neighbours": EACH["neighbours"]})
    _, metrics, both = gradients(config, 1, 1, state.params, state.extra, batch)
    assert metrics["neighbours/loss"] == pytest.approx(metrics["contrastive/loss"], rel=1e-6)
    _, _, grads = gradients(alone, 1, 1, state.params, state.extra, batch)
    assert all(np.any(grad) == path.startswith(("image", "neighbours")) for path, grad in grads.items() if "/k/bias" not in path)
    assert both.keys() > {"neighbours/logit_scale"}


def test_the_words_of_a_caption_are_classified_by_their_rarity() -> None:
    config = config_of("words")
    mesh = make_mesh(Mesh(1, 1), jax.devices()[:1])
    program = make_program(config, mesh, warmup_steps=1, total_steps=4)
    state, batch = program.init(), one_batch(config)
    state, _ = program.train_step(state, to_global(batch, mesh))
    state = jax.device_get(state)
    words = [sorted({int(i) for i in ids if i not in (49406, 49407, 0)}) for ids in batch["text"]]  # no "!" in these captions
    having = np.zeros(49408)
    for ids in words:
        having[ids] += 1
    np.testing.assert_array_equal(state.extra["words"]["having"], having)
    assert state.extra["words"]["captions"] == len(words)

    loss = gradients(config, 1, 1, state.params, state.extra, batch)[1]["words/loss"]
    towers = jax.jit(MultiTower(config.model).apply)
    output = towers({"params": state.params}, {"image": batch["image@2"]})["image"].output
    patches = np.asarray(output.tokens, np.float64)[:, class_tokens(config.model.towers["image"]) :].mean(1)
    head = state.params["words"]["head"]
    logits = patches @ head["kernel"] + head["bias"]
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    rarities = np.log((1 + len(words)) / (1 + having)) + 1
    want = [-(rarities[ids] * log_p[i, ids]).sum() / rarities[ids].sum() for i, ids in enumerate(words)]
    assert loss == pytest.approx(np.mean(want), rel=1e-5)


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        (SimCLR("image", "text"), r"objectives\.x: its views are of the towers image and text; use two views of one"),
        (BYOL("image", "image"), r"objectives\.x: both views are 'image'"),
        (Triplet("text", "text"), r"objectives\.x: both sides are 'text'"),
        (NearestNeighbour(size=40), r"objectives\.x\.size 40 is no multiple of batch_size 16; use 32"),
        (SimSiam("image@1", "text"), r"objectives\.x: there is no view 'image@1'; views: image, text"),
        (Vocabulary("text", "text"), r"objectives\.x\.image 'text' is of a text tower; use a view of images"),
        (Vocabulary("image", "image"), r"objectives\.x\.text 'image' is not of a text tower; use a view of texts"),
        (Contrastive(loss="sigmoid", decoupled=True), r"objectives\.x\.decoupled: a sigmoid has no sum to leave"),
        (Triplet(mining="soft"), r"objectives\.x\.mining 'soft' must be 'all' or 'hardest' or 'semi_hard'"),
    ],
)
def test_what_an_objective_cannot_be_is_an_error(objective: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check(tiny_config(objectives={"x": objective, "y": Contrastive()}))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Path]:
    """A run of twelve steps with heads, a target and a moving average; checkpoints 4, 8 and 12."""
    config = config_of("views", "byol", "neighbours", **PLAIN, **{"optim.ema": 0.9, "evaluate_ema": True})
    workdir = tmp_path_factory.mktemp("run")
    train.main(config, workdir)
    return config, workdir


def saved(workdir: Path, config: Config) -> dict[str, np.ndarray]:
    program = make_program(config, make_mesh(config.mesh), warmup_steps=1, total_steps=12)
    with Checkpoints(workdir, read_only=True) as checkpoints:
        parts = checkpoints.restore(12, program.state.saved())
    leaves, _ = jax.tree_util.tree_flatten_with_path(parts)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def test_heads_target_and_average_go_on_bit_equal(run: tuple[Config, Path], tmp_path: Path) -> None:
    config, whole = run
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    train.main(config, tmp_path, resume_from=4)
    want, have = saved(whole, config), saved(tmp_path, config)
    assert want.keys() == have.keys()
    assert {path.split("'")[1] for path in want} == {"params", "opt_state", "extra"}
    for path, leaf in want.items():
        np.testing.assert_array_equal(have[path], leaf, err_msg=path)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"optim.ema": None, "evaluate_ema": False}, r"another moving average \(extra/ema/"),
        ({"objectives.byol.features": 9}, r"other objectives, or another moving average \(byol/head/fc2/bias, "),
    ],
)
def test_a_resume_with_other_parameters_or_state_is_refused_and_they_are_named(
    run: tuple[Config, Path], changes: dict[str, Any], named: str
) -> None:
    config, workdir = run
    for path, value in changes.items():
        config = replace(config, path, value)
    with pytest.raises(CheckpointError, match=named):
        train.main(config, workdir)


def test_who_reads_a_run_sees_its_model_alone_as_it_was_evaluated(run: tuple[Config, Path], tmp_path: Path) -> None:
    config, workdir = run
    arrays = saved(workdir, config)
    params = flatten(jax.device_get(load_run(workdir)[2]))
    towers = ("image/", "image_projection/", "text/", "text_projection/")
    assert {path for path in params if not path.startswith(towers)} == set()  # its pair is not of two towers' own views
    np.testing.assert_array_equal(params["text/token_embed"], arrays["['extra']['ema']['text']['token_embed']"])
    assert {path.split("/")[0] for path in flatten(load_run(workdir, heads=True)[2])} >= {"byol", "views"}
    convert.main(workdir, tmp_path / "model")
    images = np.random.default_rng(0).integers(0, 256, (3, 20, 20, 3)).astype(np.uint8)
    read = [jclip.load(path).embed_image(list(images)) for path in (workdir, tmp_path / "model")]
    np.testing.assert_array_equal(*read)
