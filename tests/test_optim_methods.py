"""Optimizers and schedules by name: against their formulas in f64, layer by layer, on meshes, and restored."""

import math
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import tiny_config

from jclip import train
from jclip.checkpoint import CheckpointError, Checkpoints
from jclip.config import Config, ConfigError, MeshConfig, Optim, check, make_plan, replace_each
from jclip.optim import _adafactor_decay, make_optimizer, make_schedule
from jclip.program import make_program
from jclip.sharding import make_mesh, moment_shardings, param_shardings
from jclip.tree import flatten, unflatten

METHODS = ("adamw", "lamb", "lion", "adafactor", "muon")
LR, DECAY, STEPS = 0.01, 0.5, 4
SHAPES = {
    "image/blocks/mlp/kernel": (2, 136, 128),
    "image/blocks/mlp/bias": (2, 128),
    "image/patch_embed/kernel": (128, 144),
    "image/norm/scale": (8,),
}
"""Two layers in a stack, of which each counts by itself; sizes from 128 on, which Adafactor takes apart."""

Array = np.ndarray


def arrays(seed: int, scale: float = 1.0) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    rows = {path: rng.normal(size=shape) * scale for path, shape in SHAPES.items()}
    for path in rows:
        if "/blocks/" in path:
            rows[path][1] *= 7  # layers of different sizes: what is shared between them shows
    return rows


PARAMS, GRADS = arrays(0), [arrays(step, 0.1) for step in range(1, STEPS + 1)]


def updates_of(config: Optim) -> dict[str, Array]:
    """Moves of the parameters in these steps, by jclip."""
    to_tree = lambda flat: unflatten({path: jnp.asarray(x, jnp.float32) for path, x in flat.items()})  # noqa: E731
    params = to_tree(PARAMS)
    tx = make_optimizer(config, lambda step: LR, params)
    state = tx.init(params)
    for grads in GRADS:
        updates, state = tx.update(to_tree(grads), state, params)
        params = jax.tree.map(jnp.add, params, updates)
    return {path: np.asarray(p, np.float64) - PARAMS[path] for path, p in flatten(params).items()}


def layers(path: str, x: Array) -> list[Array]:
    return list(x) if "/blocks/" in path else [x]


def by_hand(config: Optim, direction: Callable[[str, list[Array]], Array], *, lamb: bool = False) -> dict[str, Array]:
    """The same in f64: each layer by itself, along the direction that its gradients so far give."""
    moved = {}
    for path, start in PARAMS.items():
        decay = 0.0 if path.endswith(("bias", "scale")) else config.weight_decay
        ends = []
        for i, layer in enumerate(layers(path, start)):
            p = layer.copy()
            for step in range(1, STEPS + 1):
                u = direction(path, [layers(path, grads[path])[i] for grads in GRADS[:step]]) + decay * p
                p = p - LR * u * (np.linalg.norm(p) / np.linalg.norm(u) if lamb else 1)
            ends.append(p - layer)
        moved[path] = np.stack(ends) if "/blocks/" in path else ends[0]
    return moved


def adam(config: Optim, path: str, grads: list[Array]) -> Array:
    """Kingma and Ba 2015, algorithm 1; with clip_update Wortsman et al. 2023, algorithm 2."""
    m = v = np.zeros_like(grads[0])
    for g in grads:
        m, v = config.b1 * m + (1 - config.b1) * g, config.b2 * v + (1 - config.b2) * g * g
    m, v = m / (1 - config.b1 ** len(grads)), v / (1 - config.b2 ** len(grads))
    u = m / (np.sqrt(v) + config.eps)
    if config.clip_update is None:
        return u
    rms = math.sqrt(np.mean(grads[-1] ** 2 / np.maximum(v, config.eps**2)))
    return u / max(1.0, rms / config.clip_update)


def lion(config: Optim, path: str, grads: list[Array]) -> Array:
    """Chen et al. 2023, program 1."""
    m = np.zeros_like(grads[0])
    for g in grads:
        u = np.sign(config.b1 * m + (1 - config.b1) * g)
        m = config.b2 * m + (1 - config.b2) * g
    return u


def adafactor(config: Optim, path: str, grads: list[Array]) -> Array:
    """Shazeer and Stern 2018, algorithms 4 and 5, with momentum and without the size of the parameter."""
    v = rows = columns = momentum = 0.0
    for t, g in enumerate(grads, 1):
        beta, square = 1 - t**-0.8, g * g + 1e-30
        if g.ndim == 2:
            rows = beta * rows + (1 - beta) * square.mean(axis=1)
            columns = beta * columns + (1 - beta) * square.mean(axis=0)
            v = np.outer(rows, columns) / np.mean(rows)
        else:
            v = beta * v + (1 - beta) * square
        u = g / np.sqrt(v)
        if config.clip_update is not None:
            u = u / max(1.0, math.sqrt(np.mean(u * u)) / config.clip_update)
        momentum = config.b1 * momentum + (1 - config.b1) * u
    return momentum


def muon(config: Optim, path: str, grads: list[Array]) -> Array:
    """Jordan et al. 2024: Nesterov's momentum made orthogonal by five steps of Newton and Schulz; AdamW for all but matrices."""
    if path != "image/blocks/mlp/kernel":
        return adam(config, path, grads)
    m = np.zeros_like(grads[0])
    for g in grads:
        m = config.b1 * m + (1 - config.b1) * g
    t = len(grads)
    x = config.b1 * m / (1 - config.b1 ** (t + 1)) + (1 - config.b1) * grads[-1] / (1 - config.b1**t)
    x = x.T / np.linalg.norm(x)  # the shorter side first: 128 x 136
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.775 * a + 2.0315 * a @ a) @ x
    return 0.2 * math.sqrt(136) * x.T


FORMULAS = {"adamw": adam, "lamb": adam, "lion": lion, "adafactor": adafactor, "muon": muon}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_its_formula_in_every_layer(method: Any) -> None:
    config = Optim(lr=LR, weight_decay=DECAY, method=method)
    want = by_hand(config, partial(FORMULAS[method], config), lamb=method == "lamb")
    for path, moved in updates_of(config).items():
        np.testing.assert_allclose(moved, want[path], rtol=2e-4, atol=2e-6, err_msg=path)


@pytest.mark.parametrize("method", ["adamw", "adafactor"])
def test_an_update_is_clipped_by_its_root_mean_square_in_every_layer(method: Any) -> None:
    config = Optim(lr=LR, weight_decay=DECAY, method=method, clip_update=0.7)
    want, free = by_hand(config, partial(FORMULAS[method], config)), updates_of(replace_each(config, {"clip_update": None}))
    for path, moved in updates_of(config).items():
        np.testing.assert_allclose(moved, want[path], rtol=2e-4, atol=2e-6, err_msg=path)
        assert np.abs(moved - free[path]).max() > 1e-3  # it was clipped


def test_the_decay_of_adafactor_ends_at_a_thousand_steps_of_memory() -> None:
    assert float(_adafactor_decay(jnp.int32(0), 0.8)) == 0  # the first moment is the first gradient alone
    assert float(_adafactor_decay(jnp.int32(99), 0.8)) == pytest.approx(1 - 100**-0.8)
    assert float(_adafactor_decay(jnp.int32(100_000), 0.8)) == pytest.approx(0.999)


def test_a_matrix_of_muon_moves_as_far_as_adamw_would_move_it() -> None:
    config = Optim(lr=LR, weight_decay=0.0, method="muon")
    moved = updates_of(config)["image/blocks/mlp/kernel"]
    for layer in moved:
        assert math.sqrt(np.mean(layer**2)) == pytest.approx(0.2 * LR * STEPS, rel=0.5)


@pytest.mark.parametrize("method", METHODS)
def test_a_first_moment_in_bfloat16_takes_half_the_memory_and_changes_little(method: Any) -> None:
    config = Optim(lr=LR, weight_decay=0.0, method=method, mu_dtype="bfloat16")
    whole = replace_each(config, {"mu_dtype": "float32"})
    params = unflatten({path: jnp.zeros(shape, jnp.float32) for path, shape in SHAPES.items()})
    bytes_of = lambda c: sum(x.nbytes for x in jax.tree.leaves(make_optimizer(c, lambda step: LR, params).init(params)))  # noqa: E731
    assert bytes_of(whole) - bytes_of(config) == 2 * sum(math.prod(shape) for shape in SHAPES.values())
    half, full = updates_of(config), updates_of(whole)
    for path in SHAPES:
        assert np.linalg.norm(half[path] - full[path]) < 0.1 * np.linalg.norm(full[path])


@pytest.mark.parametrize("method", METHODS)
def test_state_lies_with_the_parameters_and_updates_do_not_depend_on_the_mesh(method: Any) -> None:
    config, mesh = Optim(lr=LR, weight_decay=DECAY, method=method), make_mesh(MeshConfig(2, 4), jax.devices()[:8])
    params = unflatten({path: jnp.asarray(x, jnp.float32) for path, x in PARAMS.items()})
    grads = unflatten({path: jnp.asarray(x, jnp.float32) for path, x in GRADS[0].items()})
    tx = make_optimizer(config, lambda step: LR, params)
    where = param_shardings(params, MeshConfig(2, 4), mesh)
    state_where = moment_shardings(jax.eval_shape(tx.init, params), params, MeshConfig(2, 4), mesh)
    sharded = jax.jit(tx.init, out_shardings=state_where)(jax.device_put(params, where))
    updates, state = jax.jit(tx.update, out_shardings=(where, state_where))(
        jax.device_put(grads, where), sharded, jax.device_put(params, where)
    )
    want, _ = tx.update(grads, tx.init(params), params)
    for path, update in flatten(updates).items():
        np.testing.assert_allclose(update, flatten(want)[path], rtol=1e-4, atol=1e-7, err_msg=path)
    large = [leaf for leaf in jax.tree.leaves(state) if leaf.size >= 128 * 128]
    assert all(leaf.addressable_shards[0].data.size == leaf.size // 4 for leaf in large)
    assert large


def test_a_field_that_a_method_does_not_read_is_refused() -> None:
    for method, field, value in (("lion", "eps", 1e-8), ("adafactor", "b2", 0.9), ("muon", "clip_update", 1.0)):
        with pytest.raises(ConfigError, match=rf"optim\.{field} {value} is not read by {method}; leave it"):
            check(Config(optim=replace_each(Optim(), {"method": method, field: value})))
    with pytest.raises(ConfigError, match=r'optim\.cooldown "10%" is not read by the schedule cosine'):
        check(Config(optim=Optim(cooldown="10%")))
    with pytest.raises(ConfigError, match=r'final_lr 0\.1: nothing falls to it, with a cooldown of "0"'):
        check(Config(optim=Optim(schedule="wsd", cooldown="0", final_lr=0.1)))
    with pytest.raises(ConfigError, match="a constant learning rate does not fall"):
        check(Config(optim=Optim(schedule="constant", final_lr=0.1)))


def test_schedules_are_their_formulas() -> None:
    def rates(how: Any, **steps: int) -> list[float]:
        schedule = make_schedule(Optim(lr=2.0, final_lr=0.1, schedule=how), warmup_steps=4, total_steps=12, **steps)
        return [float(schedule(k)) for k in range(13)]

    rise = [2.0 * (k + 1) / 4 for k in range(4)]
    fall = [1 - 0.9 * k / 5 for k in range(6)]  # from 1 after 7 steps to 0.1 after 12
    assert rates("constant") == pytest.approx(rise + [2.0] * 9)
    assert rates("wsd", cooldown_steps=5) == pytest.approx(rise + [2.0] * 3 + [2 * f for f in fall])
    root = [2.0 * math.sqrt(4 / (k + 1)) for k in range(4, 13)]
    want = rise + [r * f for r, f in zip(root, [1.0] * 3 + fall, strict=True)]
    assert rates("inverse_sqrt", cooldown_steps=5) == pytest.approx(want)
    assert rates("inverse_sqrt")[3:5] == pytest.approx([2.0, 2.0 * math.sqrt(4 / 5)])  # and goes on where the warm-up ends


def test_a_plan_counts_the_cooldown_and_begins_where_the_other_run_was_left() -> None:
    wsd = tiny_config(**{"optim.schedule": "wsd", "optim.cooldown": "25%"})
    assert (make_plan(wsd, 200).total, make_plan(wsd, 200).cooldown) == (12, 3)
    with pytest.raises(ConfigError, match=r'optim\.warmup "3" and optim\.cooldown "10" are 13 steps, longer than the run of 12'):
        make_plan(replace_each(wsd, {"optim.cooldown": "10"}), 200)
    cooling = tiny_config(**{"optim.schedule": "cooldown", "init_from.path": "run", "init_from.step": 8, "duration": "4"})
    plan = make_plan(cooling, 200)
    assert (plan.total, plan.warmup, plan.cooldown) == (12, 0, 4)
    with pytest.raises(ConfigError, match=r"cooldown: of which run, and from where on\? give init_from\.path"):
        check(tiny_config(**{"optim.schedule": "cooldown"}))
    with pytest.raises(ConfigError, match="a cooldown goes on from a whole run; leave out all but path and step"):
        check(replace_each(cooling, {"init_from.rules": (("image/.*", "load"), (".*", "scratch"))}))


PLAIN: dict[str, Any] = {"evals": {}, "checkpoint.best": None, "checkpoint.keep": 3, "optim.warmup": "2"}


@pytest.mark.exhaustive
def test_a_cooldown_from_a_constant_run_ends_as_the_run_that_was_planned_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = {**PLAIN, "optim.method": "muon", "optim.ema": 0.9}
    planned = tiny_config(**changes, **{"optim.schedule": "wsd", "optim.cooldown": "4", "duration": "8"})
    train.main(planned, tmp_path / "planned")
    train.main(tiny_config(**changes, **{"optim.schedule": "constant", "duration": "8"}), tmp_path / "constant")
    start = {"init_from.path": str(tmp_path / "constant"), "init_from.step": 4, "duration": "4"}
    cooling = tiny_config(**changes, **{"optim.schedule": "cooldown", **start})
    capsys.readouterr()
    train.main(cooling, tmp_path / "cooled")
    said = capsys.readouterr().out
    assert "cooling down from step 4 of" in said
    assert "the run that is taken up was trained with another configuration" in said
    assert "optim.schedule: 'constant' -> 'cooldown'" in said
    assert "missing" not in said  # nothing of the steps that are another run's
    assert "lost" not in said
    program = make_program(planned, make_mesh(MeshConfig()), warmup_steps=2, total_steps=8, cooldown_steps=4)
    ends = []
    for name in ("planned", "cooled"):
        with Checkpoints(tmp_path / name, read_only=True) as checkpoints:
            ends.append(checkpoints.restore(8, program.state.saved()))
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, *ends)))

    ended = replace_each(cooling, {"init_from.path": str(tmp_path / "planned"), "init_from.step": 8})
    with pytest.raises(CheckpointError, match=r"has cooled down at step 8 already; give an earlier init_from\.step"):
        train.main(ended, tmp_path / "ended")
    with pytest.raises(CheckpointError, match=r"would jump to 0\.005; give --optim\.lr 0\.01"):
        train.main(replace_each(cooling, {"optim.lr": 0.005}), tmp_path / "jump")
    with pytest.raises(CheckpointError, match=r"optimizer state of optim\.method muon, not of adamw"):
        train.main(replace_each(cooling, {"optim.method": "adamw"}), tmp_path / "other")


@pytest.mark.slow
@pytest.mark.parametrize("method", [pytest.param(name, marks=pytest.mark.exhaustive) for name in ("adafactor", "lamb", "lion")])
def test_a_run_goes_on_with_the_state_of_every_method(method: str, tmp_path: Path) -> None:
    config = tiny_config(**PLAIN, **{"optim.method": method, "optim.mu_dtype": "bfloat16", "duration": "6"})
    config = replace_each(config, {"optim.lr": 1e-3, "checkpoint.every": "3", "mesh.fsdp": 2})
    train.main(config, tmp_path / "whole")
    train.main(config, tmp_path / "parts")
    shutil.rmtree(tmp_path / "parts" / "checkpoints" / "6")
    train.main(config, tmp_path / "parts")
    with Checkpoints(tmp_path / "whole") as whole, Checkpoints(tmp_path / "parts") as parts:
        assert whole._digests(6) == parts._digests(6)
