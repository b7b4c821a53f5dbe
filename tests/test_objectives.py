"""Objectives on one design: the same on any mesh and in any parts, against their formulas, and what each says of itself."""

import dataclasses
import shutil
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf
from tiny import tiny_config

import jclip
from jclip import convert, train
from jclip.checkpoint import CheckpointError, Checkpoints
from jclip.config import (
    BYOL,
    CLOOB,
    AffinityDistillation,
    Augment,
    Caption,
    Config,
    ConfigError,
    Contrastive,
    FeatureDistillation,
    MaskedText,
    MeshConfig,
    MultiView,
    NearestNeighbour,
    Optim,
    SelfDistillation,
    SimCLR,
    SimReg,
    SimSiam,
    TokenWise,
    Triplet,
    View,
    Vocabulary,
    check,
    replace,
)
from jclip.data import make_run_loader, open_source, train_transform
from jclip.data.reader import make_arrays
from jclip.data.source import lookup
from jclip.data.transforms import Decode
from jclip.init_from import start_from
from jclip.models import Masked, MultiTower, apart, class_tokens, together
from jclip.models.vit import resized
from jclip.objectives import OBJECTIVES, Objective, WeightedSum, make_objective
from jclip.objectives.masked_text import choose
from jclip.objectives.nearest_neighbour import nearest
from jclip.operations import step_flops
from jclip.optim import moving_average
from jclip.program import make_program
from jclip.runs import load_run
from jclip.sharding import make_mesh, to_global
from jclip.state import evaluated_params, new_extra
from jclip.step import make_loss_and_grads
from jclip.tree import flatten

FOLDER = tempfile.TemporaryDirectory()  # of embeddings that are stored, until the process ends
for tower, size in (("image", 5), ("text", 5)):
    np.save(Path(FOLDER.name, f"{tower}.npy"), np.random.default_rng(size).normal(size=(200, size)).astype(np.float32))
Path(FOLDER.name, "keys.jsonl").write_text("".join(f'"shapes:train:{i}"\n' for i in range(200)))

VIEWS = {
    "image@1": View("image", augment=Augment(scale=(0.3, 1.0))),
    "image@2": View("image"),
    "image@3": View("image", size=8),
    "image@teacher": View("image", stored=FOLDER.name, stored_size=5),
    "text@teacher": View("text", stored=FOLDER.name, stored_size=5),
}
PLAIN: dict[str, Any] = {"evals": {}, "checkpoint.best": None, "checkpoint.keep": 3}
HEAD: dict[str, Any] = {"hidden": 16, "features": 8}
EACH = {
    "contrastive": Contrastive(block=3),
    "decoupled": Contrastive("text", "image", decoupled=True, equal="ignore"),
    "views": Contrastive("image@1", "text", loss="sigmoid"),
    "triplet": Triplet(equal_by="text", block=5),
    "tokens": TokenWise(features=8, block=3),
    "cloob": CLOOB(block=5),
    "extra": Contrastive(extra_projections=True, block=5),
    "multi": MultiView(("image", "image@1", "image@2"), ("text",), block=5),
    "sim_reg": SimReg(),
    "simclr": SimCLR(**HEAD, block=7),
    "simsiam": SimSiam(**HEAD),
    "byol": BYOL(**HEAD, decay=0.5),
    "neighbours": NearestNeighbour(size=32, block=5),
    "words": Vocabulary("image@2"),
    "taught": SelfDistillation(
        parts=("image@1", "image@3"), decay=0.9, final_decay=0.95, prototypes=24, size=16, features=8, layers=2, block=1
    ),
    "like": FeatureDistillation(),
    "affine": AffinityDistillation(teacher_scale=20.0, block=7),
    "masked": MaskedText(share=0.4, hidden=0.6, other=0.2, block=2),
    "caption": Caption("image@2", "written", depth=1, label_smoothing=0.1, block=5),
}


SMALL = {
    "model.towers.image.depth": 1,
    "model.towers.image.patch_dropout": 0.0,
    "model.towers.text.depth": 1,
    "model.towers.text.causal": False,
}


def config_of(*names: str, **changes: Any) -> Config:
    """Towers of one block, which compile fast."""
    objectives = {name: EACH[name] for name in names or EACH}
    if not {"text", "image"} <= {view for objective in objectives.values() for view in objective.views()}:
        objectives["contrastive"] = EACH["contrastive"]
    used = {view for objective in objectives.values() for view in objective.views()}
    views = {name: view for name, view in VIEWS.items() if name in used}
    config = tiny_config(objectives=objectives, views=views, **SMALL, **changes)
    if "caption" not in objectives:
        return config
    towers = config.model.towers
    written = dataclasses.replace(towers["text"], causal=True)  # words are predicted one after the other
    model = dataclasses.replace(config.model, towers={**towers, "written": written})
    return dataclasses.replace(config, model=model, data=dataclasses.replace(config.data, fields={"written": "text"}))


def one_batch(config: Config) -> dict[str, np.ndarray]:
    with make_run_loader(config) as loader:
        return next(loader).arrays


def gradients(config: Config, data: int, fsdp: int, params: Any, extra: Any, batch: dict[str, np.ndarray]) -> Any:
    mesh = make_mesh(MeshConfig(data, fsdp), jax.devices()[: data * fsdp])
    config = dataclasses.replace(config, mesh=MeshConfig(data, fsdp))
    loss, metrics, grads, _ = jax.jit(make_loss_and_grads(config, mesh))(params, to_global(batch, mesh), jax.random.key(1), extra)
    return float(loss), {k: float(v) for k, v in metrics.items()}, {k: np.asarray(v) for k, v in flatten(grads).items()}


@pytest.fixture(scope="module")
def everything() -> Any:
    """All families together, on one device at once, after three steps: with dropout, a target, a full queue, and counts."""
    config = config_of(**{"model.towers.image.dropout": 0.1})
    weighed = {name: dataclasses.replace(how, weight=1 + i / 4) for i, (name, how) in enumerate(config.objectives.items())}
    config = dataclasses.replace(config, objectives=weighed)
    mesh = make_mesh(MeshConfig(1, 1), jax.devices()[:1])
    program = make_program(config, mesh, warmup_steps=1, total_steps=4)
    state, batch = program.init(), one_batch(config)
    for _ in range(3):
        state, _ = program.train_step(state, to_global(batch, mesh))
    state = jax.device_get(state)
    return config, state.params, state.extra, batch, gradients(config, 1, 1, state.params, state.extra, batch)


def test_there_is_a_case_of_every_family() -> None:
    assert {type(objective) for objective in EACH.values()} == set(OBJECTIVES)


FURTHER = [pytest.param(*how, marks=pytest.mark.exhaustive) for how in ((8, 1, 2), (4, 1, 1), (1, 1, 4))]


@pytest.mark.slow
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


IN_CI = ("simclr", "multi", "neighbours")
"""Families whose losses have no test of their memory elsewhere."""


@pytest.mark.parametrize(
    "name", [pytest.param(x, marks=pytest.mark.slow if x in IN_CI else pytest.mark.exhaustive) for x in EACH]
)
def test_memory_is_linear_in_the_batch(name: str) -> None:
    """Temporaries of value and gradients, towers included, whose blocks are small: what is kept of each pair or block is seen."""
    sizes = []
    for batch in (4096, 16384):
        config = dataclasses.replace(config_of(name), batch_size=batch, mesh=MeshConfig(1, 1))
        if name == "neighbours":
            config = replace(config, "objectives.neighbours.size", 16384)
        program = make_program(config, make_mesh(config.mesh, jax.devices()[:1]), warmup_steps=1, total_steps=2)
        step = jax.jit(make_loss_and_grads(config, program.mesh))
        key = jax.eval_shape(lambda: jax.random.key(1))
        compiled = step.lower(program.state.params, program.batch, key, program.state.extra).compile()
        sizes.append(compiled.memory_analysis().temp_size_in_bytes)
    assert sizes[1] < 4.02 * sizes[0]


@pytest.mark.slow
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
    program = make_program(config, make_mesh(MeshConfig(1, 1), jax.devices()[:1]), warmup_steps=1, total_steps=4)
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
    with make_run_loader(config) as loader:
        for _, batch in zip(range(steps), loader, strict=False):
            before = jax.device_get(states[-1])
            state, _ = program.train_step(states[-1], to_global(batch.arrays, mesh))
            states[-1:] = [before, state]
    return [*states[:-1], jax.device_get(states[-1])]


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_frozen_tower_stays_bit_equal_under_every_family() -> None:
    rules = (("(image|image_projection)/.*", 0.0), (".*", 1.0))
    states = trained(config_of(batch_size=8, optim=Optim(lr=1e-2, lr_rules=rules)), 2)
    for path, leaf in flatten(states[-1].params).items():
        same = np.array_equal(leaf, flatten(states[0].params)[path])
        assert same == path.startswith(("image/", "image_projection/")), path


@pytest.mark.slow
def test_an_objective_that_begins_later_takes_no_part_before_and_then_begins_at_the_parameters_of_that_step() -> None:
    late = {name: dataclasses.replace(EACH[name], begin=0.5) for name in ("byol", "masked")}
    config = config_of("contrastive", "byol", "masked", **{"optim.ema": 0.5})
    config = dataclasses.replace(config, objectives={**config.objectives, **late})
    alone = dataclasses.replace(config, objectives={"contrastive": EACH["contrastive"]}, views={})
    with make_run_loader(config) as loader:
        batches = [next(loader).arrays for _ in range(4)]
    mesh = make_mesh(config.mesh)
    program, plain = (make_program(each, mesh, warmup_steps=1, total_steps=4) for each in (config, alone))
    assert [(phase.first, phase.views) for phase in program.phases] == [(0, ("image", "text")), (2, tuple(config.inputs()))]
    state, other = program.init(), plain.init()
    start = jax.device_get(state)
    assert flatten(start.params).keys() > flatten(jax.device_get(other).params).keys()
    for batch in batches[:2]:
        views = to_global({view: batch[view] for view in ("image", "text")}, mesh)
        state, metrics = program.phases[0].train_step(state, views)
        other, same = plain.train_step(other, views)
        assert metrics.keys() == same.keys()  # what takes no part has no metrics
    middle = jax.device_get(state)
    for path, leaf in flatten(middle.params).items():
        name = path.partition("/")[0]
        of = start if name in late else jax.device_get(other)  # neither trained nor decayed; and no other changes
        np.testing.assert_array_equal(leaf, flatten(of.params)[path], err_msg=path)

    state, metrics = program.train_step(state, to_global(batches[2], mesh))
    assert {"byol/loss", "masked/loss"} <= metrics.keys()
    # BYOL's target was the model of this moment and has followed it by one step, of two that it has.
    decay = 1 - (1 - EACH["byol"].decay) * (np.cos(np.pi / 2) + 1) / 2
    last = jax.device_get(state)
    for path in ("image/patch_embed/kernel", "head/fc1/kernel"):
        at = f"byol/{path}" if path.startswith("head") else path
        want = decay * flatten(middle.params)[at] + (1 - decay) * flatten(last.params)[at]
        np.testing.assert_allclose(flatten(last.extra["byol"])[path], want, atol=1e-6)
    for path, leaf in flatten(last.params).items():
        assert not np.array_equal(leaf, flatten(middle.params)[path]) or path.endswith("k/bias"), path

    target = last.extra["byol"]
    state, _ = program.train_step(state, to_global(batches[3], mesh))  # it begins once
    decay = 1 - (1 - EACH["byol"].decay) * (np.cos(np.pi) + 1) / 2
    want = decay * target["head"]["fc1"]["kernel"] + (1 - decay) * np.asarray(state.params["byol"]["head"]["fc1"]["kernel"])
    np.testing.assert_allclose(state.extra["byol"]["head"]["fc1"]["kernel"], want, atol=1e-6)


def test_the_words_chosen_are_as_many_as_asked_and_depend_on_row_and_key_alone() -> None:
    how = MaskedText(share=0.4, hidden=0.6, other=0.2)
    lengths = np.array([0, 1, 2, 5, 12, 20] * 200)
    words = np.arange(22)[None] < lengths[:, None]
    words = np.roll(words, 1, axis=1)  # the first is none
    ids = np.random.default_rng(0).integers(0, 50, words.shape).astype(np.int32)
    find = jax.jit(lambda ids, words, rows: choose(ids, words, jax.random.key(3), rows, how, 50))
    rows = np.arange(len(ids))
    chosen = jax.device_get(find(ids, words, rows))
    wanted = np.array([min(n, max(1, round(0.4 * n))) for n in lengths])
    assert chosen.places.shape == (len(ids), 9)
    np.testing.assert_array_equal(chosen.real.sum(1), wanted)
    told = np.zeros(ids.shape, bool)
    for row in range(len(ids)):
        told[row, chosen.places[row][chosen.real[row]]] = True
    np.testing.assert_array_equal(told.sum(1), wanted)  # no place twice
    assert not told[~words].any()
    assert not chosen.hidden[~told].any()
    np.testing.assert_array_equal(chosen.seen[~told], ids[~told])
    np.testing.assert_array_equal(chosen.seen[chosen.hidden], ids[chosen.hidden])  # what the tower sees there is not the id
    hidden = chosen.hidden.sum(1)
    assert (np.abs(hidden - 0.6 * wanted) < 1).all()
    assert hidden.sum() == pytest.approx(0.6 * wanted.sum(), rel=0.02)
    exchanged = chosen.seen != ids
    assert exchanged.sum() == pytest.approx(0.2 * wanted.sum() * 49 / 50, rel=0.1)
    for n, share in ((12, 5 / 12), (20, 8 / 20)):  # every word is as likely as any
        each = told[lengths == n][:, 1 : n + 1].mean(0)
        np.testing.assert_allclose(each, share, atol=0.15)
    some = np.arange(400, 500)
    again = jax.device_get(find(ids[some], words[some], rows[some]))
    for whole, part in zip(chosen, again, strict=True):
        np.testing.assert_array_equal(whole[some], part)


def test_hidden_words_are_predicted_from_those_around_them_alone() -> None:
    """Loss and what it depends on, against the head in f64 on the tower's tokens of a text made by hand."""
    config = config_of("masked")
    mesh = make_mesh(MeshConfig(1, 1), jax.devices()[:1])
    program = make_program(config, mesh, warmup_steps=1, total_steps=4)
    state, batch = jax.device_get(program.init()), one_batch(config)
    assert set(config.all_views()) == {"image", "text", "text@masked"}
    loss = gradients(config, 1, 1, state.params, state.extra, batch)[1]["masked/loss"]
    objective = objective_of("masked")
    ids = batch["text"]
    made = objective.views(state.params["masked"], {"text": jnp.asarray(ids)}, jnp.arange(16), jax.random.key(1))["text@masked"]
    table, token = state.params["text"]["token_embed"], state.params["masked"]["mask"]["bias"]
    seen = np.where(np.asarray(made.hidden)[:, :, None], token, table[np.asarray(made.input)])
    eot = ids.argmax(1)
    tower = jax.jit(MultiTower(config.model).apply)
    tokens = np.asarray(tower({"params": state.params}, {"text": (seen, jnp.asarray(eot))})["text"].output.tokens, np.float64)
    head = state.params["masked"]["head"]
    h = tokens @ head["fc"]["kernel"] + head["fc"]["bias"]
    h = h * 0.5 * (1 + erf(h / np.sqrt(2)))
    h = (h - h.mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + config.model.towers["text"].norm_eps)
    logits = (h * head["norm"]["scale"] + head["norm"]["bias"]) @ head["vocabulary"].astype(np.float64)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    chosen = jax.device_get(objective._choose(jnp.asarray(ids), jnp.arange(16), jax.random.key(1)))
    want = []
    for row in range(16):
        places = chosen.places[row][chosen.real[row]]
        assert ((places > 0) & (places < eot[row])).all()  # neither begin nor end
        want.append(-log_p[row, places, ids[row, places]].mean())
    assert loss == pytest.approx(np.mean(want), rel=1e-5)


@pytest.mark.slow
def test_parts_and_hidden_patches_are_predicted_as_the_teacher_sees_the_whole() -> None:
    """Losses, centres and what is hidden, in f64 from the tokens of towers applied by themselves."""
    config = config_of("taught")
    mesh = make_mesh(MeshConfig(1, 1), jax.devices()[:1])
    program = make_program(config, mesh, warmup_steps=1, total_steps=4)
    state, batch, random = jax.device_get(program.init()), one_batch(config), np.random.default_rng(0)
    extra = jax.tree.map(lambda x: x + 0.02 * random.normal(size=x.shape).astype(np.float32), state.extra)
    _, metrics, _ = gradients(config, 1, 1, state.params, extra, batch)
    how, mine, teacher = config.objectives["taught"], state.params["taught"], extra["taught"]
    objective = make_objective(config).objectives["taught"]
    made = objective.views(mine, {"image": jnp.asarray(batch["image"])}, jnp.arange(16), jax.random.key(1))["image@taught"]
    hidden = np.asarray(made.hidden)
    assert hidden.shape == (16, 4)
    assert (hidden.sum(1) == 2).all()
    assert len({tuple(row) for row in hidden}) > 2  # drawn image by image

    towers = MultiTower(config.model, views={name: view.tower for name, view in config.all_views().items()})
    encode = jax.jit(towers.apply)
    seen = encode({"params": teacher["towers"]}, {"image": batch["image"]})["image"].output
    views = {view: batch[view] for view in how.parts} | {"image@taught": made}
    student = encode({"params": state.params}, views, rows=np.arange(16))

    def compared(params: Any, x: Any, head: Any) -> np.ndarray:
        h = np.asarray(x, np.float64) @ params["fc1"]["kernel"]
        h = (h - h.mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + 1e-5)
        h = np.maximum(h * params["norm1"]["scale"] + params["norm1"]["bias"], 0)
        prototypes = np.asarray(head["prototypes"]["kernel"], np.float64)
        return unit(h @ params["fc2"]["kernel"] + params["fc2"]["bias"]) @ (prototypes / np.linalg.norm(prototypes, axis=0))

    def told(name: str, x: Any, target: Any) -> np.ndarray:
        p = compared(mine[name]["head"], x, mine[name]) / how.temperature
        q = compared(teacher["heads"][name]["head"], target, teacher["heads"][name]) - teacher["centres"][name]
        q = np.exp(q / how.teacher_temperature)
        return -(q / q.sum(-1, keepdims=True) * (p - np.log(np.exp(p).sum(-1, keepdims=True)))).sum(-1)

    parts = [told("parts", student[view].output.pooled, seen.pooled) for view in how.parts]
    assert metrics["taught/parts"] == pytest.approx(np.mean(parts), rel=1e-4)
    first = class_tokens(config.model.towers["image"])
    patches = [np.asarray(output.tokens)[:, first:][hidden] for output in (student["image@taught"].output, seen)]
    assert metrics["taught/hidden"] == pytest.approx(np.mean(told("hidden", *patches)), rel=1e-4)
    assert metrics["taught/loss"] == pytest.approx(metrics["taught/parts"] + metrics["taught/hidden"], rel=1e-5)

    after, _ = jax.device_get(program.train_step(state._replace(extra=extra), to_global(batch, mesh)))
    key = jax.random.fold_in(jax.random.key(config.seed), 0)  # the step's
    made = objective.views(mine, {"image": jnp.asarray(batch["image"])}, jnp.arange(16), key)["image@taught"]
    for name, x in (("parts", seen.pooled), ("hidden", np.asarray(seen.tokens)[:, first:][np.asarray(made.hidden)])):
        mean = compared(teacher["heads"][name]["head"], x, teacher["heads"][name]).mean(0)
        want = 0.9 * teacher["centres"][name] + 0.1 * mean
        np.testing.assert_allclose(after.extra["taught"]["centres"][name], want, atol=1e-5)
    decay = 0.95 - 0.05 * (np.cos(np.pi / 4) + 1) / 2
    want = decay * teacher["towers"]["image"]["pos_embed"] + (1 - decay) * after.params["image"]["pos_embed"]
    np.testing.assert_allclose(after.extra["taught"]["towers"]["image"]["pos_embed"], want, atol=1e-6)


def test_hidden_patches_are_not_seen_and_positions_are_resized_to_a_view() -> None:
    config = tiny_config(**SMALL)
    tower = config.model.towers["image"]
    params = make_program(config, make_mesh(MeshConfig(1, 1), jax.devices()[:1]), warmup_steps=1, total_steps=4).init().params
    encode = jax.jit(MultiTower(config.model).apply)
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3)).astype(np.uint8)
    other = images.copy()
    other[:, :8, 8:] = 255 - other[:, :8, 8:]  # the second of four patches; the stem's convolutions see across its edge
    hidden = np.array([[False, True, False, False]] * 2)
    token = np.zeros((2, tower.width), np.float32)
    model = dataclasses.replace(config.model, towers={**config.model.towers, "image": dataclasses.replace(tower, stem=())})
    params = {
        **params,
        "image": {
            **params["image"],
            "patch_embed": {"kernel": np.random.default_rng(1).normal(size=(192, 32)).astype(np.float32) / 8},
        },
    }
    encode = jax.jit(MultiTower(model).apply)
    seen, same, plain = (
        encode({"params": params}, {"image": x})["image"].z
        for x in (Masked(images, hidden, token), Masked(other, hidden, token), other)
    )
    np.testing.assert_array_equal(seen, same)
    assert np.abs(np.asarray(seen) - plain).max() > 1e-3
    ramp = jnp.asarray(np.mgrid[:4, :6].reshape(2, -1).T, jnp.float32)
    np.testing.assert_array_equal(resized(ramp, (4, 6), (4, 6)), ramp)
    halved = np.asarray(resized(ramp, (4, 6), (2, 3))).reshape(2, 3, 2)
    np.testing.assert_allclose(halved[0, :, 1], [0.5, 2.5, 4.5], atol=0.1)  # centres of the larger patches
    np.testing.assert_allclose(halved[:, 1, 0], [0.5, 2.5], atol=0.15)


def test_a_view_is_drawn_by_itself_and_changes_no_other() -> None:
    batches = [one_batch(config) for config in (tiny_config(**SMALL), config_of("simclr"))]
    assert batches[1].keys() == {"image", "text", "image@1", "image@2"}
    for tower in ("image", "text"):
        np.testing.assert_array_equal(batches[0][tower], batches[1][tower])
    for other in ("image", "image@2"):
        assert (batches[1]["image@1"] != batches[1][other]).any()


def test_a_view_repeats_the_draws_of_another_whatever_else_it_is() -> None:
    views = {"image@2": View("image", same_as="image"), "image@3": View("image"), "text@2": View("text", same_as="text")}
    pairs = {
        f"p{i}": Contrastive(a, b) for i, (a, b) in enumerate((("image", "text"), ("image@2", "text@2"), ("image@3", "text")))
    }
    batch, plain = one_batch(tiny_config(views=views, objectives=pairs, **SMALL)), one_batch(tiny_config(**SMALL))
    for view in ("image", "text"):
        np.testing.assert_array_equal(batch[view], plain[view])
        np.testing.assert_array_equal(batch[f"{view}@2"], plain[view])
    assert (batch["image@3"] != batch["image"]).any()


@pytest.mark.slow
def test_a_tower_that_only_later_objectives_train_stays_as_it_is_until_then() -> None:
    config = config_of("contrastive", "caption")
    objectives = {"contrastive": config.objectives["contrastive"], "caption": dataclasses.replace(EACH["caption"], begin=0.5)}
    config = dataclasses.replace(config, objectives=objectives)
    mesh = make_mesh(config.mesh)
    program = make_program(config, mesh, warmup_steps=1, total_steps=4)
    state, batch = program.init(), one_batch(config)
    before = jax.device_get(state.params)
    state, _ = program.phases[0].train_step(state, to_global(program.phases[0].views_of(batch), mesh))
    same = {name for name, tree in before.items() if all(map(np.array_equal, *map(jax.tree.leaves, (tree, state.params[name]))))}
    assert same == {"written", "written_projection", "caption"}


def test_an_image_is_decoded_once_for_all_its_views(monkeypatch: pytest.MonkeyPatch) -> None:
    config, decode, count = config_of("simclr"), Decode.__call__, []
    views = config.inputs()
    transforms = {name: train_transform(config.model.towers[view.tower], view.augment) for name, view in views.items()}
    fields = {name: view.field for name, view in views.items()}
    example = open_source(config.data.source)[3]
    rng = np.random.default_rng(1)
    want = {name: transforms[name](lookup(example, fields[name]), rng) for name in ("image", "text")}
    gentle = {**transforms, "image@1": transforms["image@2"]}
    want["image@2"] = make_arrays(gentle, example, fields, np.random.default_rng(1))["image@2"]  # whatever the other views draw

    def counted(self: Decode, value: Any, *more: Any) -> Any:
        count.extend([1] if value is example["image"] else [])  # threads of other tests may still read ahead
        return decode(self, value, *more)

    monkeypatch.setattr(Decode, "__call__", counted)
    have = make_arrays(transforms, example, fields, np.random.default_rng(1))
    assert len(count) == 1
    assert have.keys() == {"image", "text", "image@1", "image@2"}
    for name, value in want.items():
        np.testing.assert_array_equal(have[name], value)


def test_views_of_a_tower_are_encoded_as_if_alone() -> None:
    config = tiny_config(**SMALL)
    program = make_program(config, make_mesh(MeshConfig(1, 1), jax.devices()[:1]), warmup_steps=1, total_steps=4)
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
        config = replace(config, "optim.lr_rules", (("text(_projection)?/.*", 0.0), (".*", 1.0)))
        program = make_program(config, make_mesh(MeshConfig(1, 1), jax.devices()[:1]), warmup_steps=1, total_steps=4)
        params = jax.device_get(program.init().params)
        extra = jax.tree.map(lambda x: 0.5 * x + 0.01, new_extra(config, params))
        batch = one_batch(config_of("byol"))
        losses.append(gradients(config, 1, 1, params, extra, {name: batch[name] for name in (a, b)})[0])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


@pytest.mark.exhaustive
def test_the_state_of_a_fine_tuning_begins_at_the_parameters_that_are_loaded(run: tuple[Config, Path]) -> None:
    config, workdir = run
    config = replace(replace(config, "init_from.path", str(workdir)), "seed", 5)
    mesh = make_mesh(config.mesh)
    program = make_program(config, mesh, warmup_steps=1, total_steps=2)
    state, _ = start_from(config.init_from, program)
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
    """The queue is empty at the first step, and the answer is the text's own embedding, as in a plain softmax."""
    config = config_of("neighbours", "contrastive")
    program = make_program(config, make_mesh(MeshConfig(1, 1), jax.devices()[:1]), warmup_steps=1, total_steps=4)
    state, batch = jax.device_get(program.init()), one_batch(config)
    alone = dataclasses.replace(config, objectives={"neighbours": EACH["neighbours"]})
    _, metrics, both = gradients(config, 1, 1, state.params, state.extra, batch)
    assert metrics["neighbours/loss"] == pytest.approx(metrics["contrastive/loss"], rel=1e-6)
    _, _, grads = gradients(alone, 1, 1, state.params, state.extra, batch)
    assert all(np.any(grad) == path.startswith(("image", "neighbours")) for path, grad in grads.items() if "/k/bias" not in path)
    assert both.keys() > {"neighbours/logit_scale"}


@pytest.mark.slow
def test_the_words_of_a_caption_are_classified_by_their_rarity() -> None:
    config = config_of("words")
    mesh = make_mesh(MeshConfig(1, 1), jax.devices()[:1])
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
        (MultiView(("image", "text"), ("text",)), r"objectives\.x: text is there twice"),
        (MultiView(("image",), ("text",)), r"objectives\.x: it needs a view of each side and one more; use Contrastive"),
        (Contrastive(loss="sigmoid", extra_projections=True), r"objectives\.x\.extra_projections: the pairs of a sigmoid"),
        (
            Contrastive(decoupled=True, logit_scale=200.0),
            r"logit_scale 200\.0 must be a number at least 1 and at most 100",
        ),
        (Contrastive(loss="sigmoid", decoupled=True), r"objectives\.x\.decoupled: a sigmoid has no sum to leave"),
        (SelfDistillation(parts=("text",)), r"objectives\.x: its views are of the towers image and text; use views of one"),
        (SelfDistillation(whole="text", parts=()), r"objectives\.x: text is not a vision transformer"),
        (SelfDistillation(parts=(), hidden=0.0), r"objectives\.x: without parts and without hidden patches"),
        (BYOL("image", "image@small"), r"objectives\.x shows 'image@small' to a moving average, as large as the tower's"),
        (Triplet(equal_by="image@stored"), r"objectives\.x needs the input of 'image@stored', and \.views.* is stored"),
        (Contrastive("image@odd"), r"views\.image@odd\.size 9 is not divisible by the patch_size 8"),
        (Contrastive("image@again"), r"views\.image@again\.same_as 'image@small' is no view that draws by itself and is read"),
        (MaskedText("image"), r"objectives\.x\.text 'image' is not of a text tower; use a view of texts"),
        (MaskedText(), r"objectives\.x\.text 'text' is of a causal tower, which cannot predict a word from what follows it"),
        (MaskedText(hidden=0.8, other=0.3), r"objectives\.x\.hidden 0\.8 and other 0\.3 are more than all"),
        (SimSiam("image", "image", begin=1.0), r"objectives\.x\.begin 1\.0 must be"),
        (Triplet(mining="soft"), r"objectives\.x\.mining 'soft' must be 'all' or 'hardest' or 'semi_hard'"),
    ],
)
def test_what_an_objective_cannot_be_is_an_error(objective: Any, message: str) -> None:
    views = {
        "image@small": View("image", size=8),
        "image@stored": View("image", stored="x"),
        "image@odd": View("image", size=9),
        "image@again": View("image", same_as="image@small"),
    }
    used = {name: view for name, view in views.items() if name in objective.views()}
    with pytest.raises(ConfigError, match=message):
        check(tiny_config(objectives={"x": objective, "y": Contrastive()}, views=used))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Path]:
    """A run of twelve steps with heads, a target after the sixth, and a moving average; checkpoints 4, 8 and 12."""
    late = {"optim.ema": 0.9, "evaluate_ema": True, "objectives.byol.begin": 0.5}
    config = config_of("views", "byol", "neighbours", **PLAIN, **late)
    workdir = tmp_path_factory.mktemp("run")
    train.main(config, workdir)
    return config, workdir


def saved(workdir: Path, config: Config) -> dict[str, np.ndarray]:
    program = make_program(config, make_mesh(config.mesh), warmup_steps=1, total_steps=12)
    with Checkpoints(workdir, read_only=True) as checkpoints:
        parts = checkpoints.restore(12, program.state.saved())
    leaves, _ = jax.tree_util.tree_flatten_with_path(parts)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


@pytest.mark.slow
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
        ({"duration": "40"}, r"whose objective byol begins with step 7, and here it begins with step 21"),
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


def test_states_are_updated_in_the_order_of_their_objectives() -> None:
    """Not in that of a set, which differs from process to process: hosts would compile different programs."""
    asked: list[str] = []

    class Noted(Objective):
        def __init__(self, name: str) -> None:
            self.name = name

        def update(self, extra: Any, params: Any, rows: Any, batch: Any, progress: Any) -> Any:
            asked.append(self.name)
            return extra

    names = [f"objective_{i}" for i in range(16)]
    whole = WeightedSum({name: Noted(name) for name in names}, dict.fromkeys(names, Contrastive()), 2)
    whole.update({name: {} for name in reversed(names)}, {}, dict.fromkeys(names), {}, jnp.zeros(()))
    assert asked == names


def test_rows_in_which_no_loss_can_be_differentiated_are_refused_whatever_the_parts() -> None:
    class Whole(Objective):
        def rows(self, params: Any, extra: Any, part: Any) -> Any:
            return {"z": jnp.zeros((2, 3)), "ids": jnp.arange(2)}, {}

    objective = WeightedSum({"ids": Whole()}, {"ids": Contrastive()}, 2)
    with pytest.raises(TypeError, match="objective ids: `rows` returns int32; convert them to float32"):
        objective.rows({}, {}, None)  # type: ignore[arg-type]
