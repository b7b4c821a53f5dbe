"""Runs that start from parameters of others: what is loaded, what is refused, and that it happens once."""

import dataclasses
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from tiny import tiny_config as with_stem

import jclip
from jclip import cli, runs, train
from jclip.checkpoint import CheckpointError, Checkpoints
from jclip.config import Config, ConfigError, Contrastive, InitFrom, TextTower, architecture, replace
from jclip.facts import weights_digest
from jclip.init_from import start_from
from jclip.processes import Refused
from jclip.program import Program, make_program
from jclip.resume import _require_same_weights
from jclip.sharding import make_mesh
from jclip.tree import flatten
from jclip.weights import WeightsError, extend_positions, write_weights

ROOT = Path(__file__).parents[1]
RECIPE = str(Path(__file__).parent / "recipe_tiny.py")
SHORT: dict[str, Any] = {"evals": {}, "checkpoint.best": None, "checkpoint.keep": 3}
IMAGE = r"(image|image_projection)/.*"
ONLY_IMAGE: dict[str, Any] = {"init_from.rules": ((IMAGE, "load"), (".*", "scratch"))}
LIT: dict[str, Any] = {**SHORT, **ONLY_IMAGE, "optim.lr_rules": ((IMAGE, 0.0), (".*", 1.0)), "mesh.fsdp": 4}


def arrays(params: Any) -> dict[str, np.ndarray]:
    return {path: np.asarray(leaf) for path, leaf in flatten(params).items()}


def tiny_config(**changes: Any) -> Config:
    """The tiny configuration without the stem, which the weights of others do not have."""
    return with_stem(**{"model.towers.image.stem": (), **changes})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workdir of 12 steps; to be read."""
    workdir = tmp_path_factory.mktemp("source")
    train.main(tiny_config(**SHORT, seed=1), workdir)
    return workdir


@cache
def random_params() -> dict[str, np.ndarray]:
    return arrays(jclip.load("ViT-tiny-test", seed=2).params)


def write_folder(folder: Path, to: str = "open_clip", **changes: Any) -> dict[str, np.ndarray]:
    """A folder of weights of the tiny model, random, and what is in it; `changes` by dotted path into the model."""
    params, model = random_params(), architecture("ViT-tiny-test")
    for path, value in changes.items():
        model = replace(model, path, value)
    write_weights(folder, to, model, params)
    return params


def started(config: Config) -> tuple[Any, str]:
    return start_from(config.init_from, program_of(config))


PROGRAMS: dict[str, Program] = {}


def program_of(config: Config) -> Program:
    """Each is made once: it does not depend on init_from."""
    key = repr(replace(config, "init_from", InitFrom()))
    if key not in PROGRAMS:
        PROGRAMS[key] = make_program(config, make_mesh(config.mesh), warmup_steps=3, total_steps=12)
    return PROGRAMS[key]


@pytest.mark.parametrize("fsdp", [pytest.param(1, marks=pytest.mark.exhaustive), pytest.param(4, marks=pytest.mark.slow)])
def test_a_run_starts_from_another_run(run: Path, fsdp: int) -> None:
    config = tiny_config(**{"init_from.path": str(run), "mesh.fsdp": fsdp})
    state, line = started(config)
    want = arrays(runs.load_run(run)[2])
    assert arrays(state.params).keys() == want.keys()
    for path, array in arrays(state.params).items():
        np.testing.assert_array_equal(array, want[path], err_msg=path)
    want_state = program_of(config).state
    same = jax.tree.map(lambda leaf, like: leaf.sharding.is_equivalent_to(like.sharding, leaf.ndim), state, want_state)
    assert all(jax.tree.leaves(same))
    assert int(state.step) == int(state.opt_state[1].count) == 0
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(state.opt_state))
    assert line == f"1.6M parameters come from {run} (a training run)"


def test_a_step_of_a_run_can_be_chosen(run: Path) -> None:
    state, _ = started(tiny_config(**{"init_from.path": str(run), "init_from.step": 4}))
    want = arrays(runs.load_run(run, 4)[2])
    np.testing.assert_array_equal(arrays(state.params)["image/cls"], want["image/cls"])
    with pytest.raises(CheckpointError, match="no checkpoint of step 5"):
        started(tiny_config(**{"init_from.path": str(run), "init_from.step": 5}))


@pytest.mark.parametrize("to", ["jclip", "open_clip", "hugging_face"])
def test_weights_of_others_are_loaded_by_rule_and_sharded(to: str, tmp_path: Path) -> None:
    there = write_folder(tmp_path / "w", to)
    config = tiny_config(**ONLY_IMAGE, **{"init_from.path": str(tmp_path / "w"), "mesh.fsdp": 4})
    state, line = started(config)
    new = arrays(program_of(config).init().params)
    for path, array in arrays(state.params).items():
        want = there if path.startswith(("image/", "image_projection/")) else new
        np.testing.assert_array_equal(array, want[path], err_msg=path)
    assert not np.array_equal(there["text/token_embed"], new["text/token_embed"])
    kernel = flatten(state.params)["image/blocks/mlp/fc1/kernel"]
    assert kernel.addressable_shards[0].data.size == kernel.size / 4
    texts = sum(path.startswith("text/") for path in there)
    part = f"image_text 1, text {texts}, text_projection 1"
    assert line == (
        f"0.0M parameters come from {tmp_path / 'w'} ({to}); 1.6M are new ({part}); not used of what is there: {part}"
    )


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("towers.image.activation", "quick_gelu", r"model\.towers\.image\.activation: 'quick_gelu' -> 'gelu' \(there -> here\)"),
        ("towers.text.norm_eps", 1e-6, r"model\.towers\.text\.norm_eps: 1e-06 -> 1e-05"),
        ("towers.text.tokenizer.clean", "canonicalize", r"model\.towers\.text\.tokenizer\.clean: 'canonicalize' -> 'lower'"),
        ("towers.image.preprocess.resize", "squash", r"model\.towers\.image\.preprocess\.resize: 'squash' -> 'shortest'"),
        ("towers.image.heads", 4, r"model\.towers\.image\.heads: 4 -> 2 .* give the model what is there, or .*'scratch'"),
        ("towers.text.projection", "affine", r"model\.towers\.text\.projection: 'affine' -> 'linear'"),
    ],
)
def test_what_would_be_computed_differently_is_refused(field: str, value: object, message: str, tmp_path: Path) -> None:
    folder = tmp_path / "w"
    if field == "towers.text.projection":
        model = replace(architecture("ViT-tiny-test"), field, value)
        write_weights(folder, "jclip", model, {**random_params(), "text_projection/bias": np.zeros(16, np.float32)})
    else:
        write_folder(folder, "jclip", **{field: value})
    with pytest.raises(ConfigError, match=message):
        started(tiny_config(**{"init_from.path": str(folder)}))
    if ".text." in field:
        started(tiny_config(**ONLY_IMAGE, **{"init_from.path": str(folder)}))  # nothing of that tower is loaded


def test_dropout_a_new_projection_and_another_size_are_no_obstacle(tmp_path: Path) -> None:
    """Positions are resampled; all else that both have is what was there."""
    there = write_folder(tmp_path / "w", "jclip", **{"towers.image.patch_dropout": 0.5})
    rules = ((r".*_projection/.*", "scratch"), (".*", "load"))
    changes = {"model.towers.text.dropout": 0.1, "model.embed_dim": 24, "model.towers.text.projection": "affine"}
    changes |= {"model.towers.image.image_size": 24}
    state, _ = started(tiny_config(**changes, **{"init_from.path": str(tmp_path / "w"), "init_from.rules": rules}))
    here = arrays(state.params)
    for path in here.keys() & there.keys() - {"image/pos_embed"}:
        if "_projection/" not in path:
            np.testing.assert_array_equal(here[path], there[path], err_msg=path)
    assert here["text_projection/kernel"].shape == (32, 24)
    assert here["text_projection/bias"].shape == (24,)
    expected = jclip.load(tmp_path / "w", image_size=24).params
    np.testing.assert_allclose(here["image/pos_embed"], expected["image"]["pos_embed"], atol=1e-6)
    assert here["image/pos_embed"].shape == (10, 32)


def test_missing_and_misshapen_parameters_are_all_listed(tmp_path: Path) -> None:
    write_folder(tmp_path / "w")
    objectives = {"image_text": Contrastive(loss="sigmoid")}
    config = tiny_config(objectives=objectives, **{"model.embed_dim": 24, "init_from.path": str(tmp_path / "w")})
    with pytest.raises(ConfigError) as error:
        started(config)
    for problem in (
        "missing image_text/logit_bias ()",
        "image_projection/kernel is (32, 16), not (32, 24)",
        "text_projection/kernel is (32, 16), not (32, 24)",
    ):
        assert problem in str(error.value)
    assert str(error.value).count(";") == 3


def test_as_many_positions_of_another_grid_are_resampled(tmp_path: Path) -> None:
    write_folder(tmp_path / "w", **{"towers.image.image_size": (32, 8)})
    state, _ = started(tiny_config(**{"init_from.path": str(tmp_path / "w"), "model.towers.image.image_size": 16}))
    expected = jclip.load(tmp_path / "w", image_size=16).params["image"]["pos_embed"]
    np.testing.assert_allclose(state.params["image"]["pos_embed"], expected, atol=1e-6)
    there = jclip.load(tmp_path / "w").params["image"]["pos_embed"]
    assert there.shape == expected.shape == (5, 32)
    assert np.abs(there - expected).max() > 0.01


@pytest.mark.parametrize("length", [12, 5])
def test_the_first_positions_of_a_text_are_kept_where_it_is_extended(length: int, tmp_path: Path) -> None:
    there = write_folder(tmp_path / "w", "jclip")["text/pos_embed"]
    changes = {"model.towers.text.context_length": length}
    here, _ = started(tiny_config(**changes, **{"init_from.path": str(tmp_path / "w"), "init_from.text_positions": "extend"}))
    got, new = arrays(here.params)["text/pos_embed"], program_of(tiny_config(**changes)).init().params["text"]["pos_embed"]
    kept = min(length, 8)
    np.testing.assert_array_equal(got[:kept], there[:kept])
    np.testing.assert_array_equal(got[kept:], new[kept:])
    assert got.shape == (length, 32)


def test_the_position_of_a_class_token_stays_last() -> None:
    old, new = np.arange(4.0)[:, None], 10 + np.arange(7.0)[:, None]
    tower = TextTower(context_length=6, pool="cls")
    assert extend_positions(old, new, tower)[:, 0].tolist() == [0, 1, 2, 13, 14, 15, 3]
    assert extend_positions(new, old, dataclasses.replace(tower, context_length=3))[:, 0].tolist() == [10, 11, 12, 16]


def test_a_tower_of_another_size_comes_alone(tmp_path: Path) -> None:
    """Its positions are resampled, whatever the other tower, which is new, is like."""
    write_folder(tmp_path / "w")
    there = {"init_from.path": str(tmp_path / "w"), **ONLY_IMAGE}
    state, _ = started(tiny_config(**there, **{"model.towers.image.image_size": (24, 16), "model.towers.text.width": 64}))
    assert state.params["image"]["pos_embed"].shape == (7, 32)


def test_what_is_no_source_is_refused(run: Path, tmp_path: Path) -> None:
    write_folder(tmp_path / "w")
    for changes, message in (
        ({"path": "ViT-B-32"}, "nothing at init_from.path ViT-B-32; give a workdir, a folder of weights or a weight file"),
        ({"path": str(tmp_path / "w"), "step": 3}, "no workdir; leave out init_from.step"),
        ({"path": str(run), "architecture": "ViT-B-32"}, "is a workdir; leave out init_from.architecture"),
        ({"path": str(run), "rules": (("img/.*", "scratch"), (".*", "load"))}, r"'img/\.\*' matches no parameter"),
    ):
        with pytest.raises(ConfigError, match=message):
            started(tiny_config(**{f"init_from.{name}": value for name, value in changes.items()}))
    (tmp_path / "empty").mkdir()
    with pytest.raises(WeightsError, match="no folder of weights, nor of a training run"):
        started(tiny_config(**{"init_from.path": str(tmp_path / "empty")}))


@pytest.mark.slow
def test_a_resumed_run_does_not_load_again_and_ends_bit_equal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    there = write_folder(tmp_path / "w")
    config = tiny_config(**LIT, **{"init_from.path": str(tmp_path / "w")})
    train.main(config, tmp_path / "run")
    out = capsys.readouterr().out
    assert "1.6M trained and 0.0M frozen parameters in image, text on 8 x cpu" in out
    assert f"parameters come from {tmp_path / 'w'} (open_clip); 1.6M are new" in out.replace("\n", " ")

    shutil.copytree(tmp_path / "run" / "checkpoints" / "4", tmp_path / "again" / "checkpoints" / "4")
    shutil.rmtree(tmp_path / "w")
    train.main(config, tmp_path / "again")
    assert "resuming after step 4" in capsys.readouterr().out
    whole, again = (arrays(runs.load_run(tmp_path / name)[2]) for name in ("run", "again"))
    for path, array in whole.items():
        np.testing.assert_array_equal(again[path], array, err_msg=path)
        frozen = path.startswith(("image/", "image_projection/"))
        assert np.array_equal(array, there[path]) == frozen, path


def test_a_workdir_goes_on_with_what_it_trains_only(run: Path) -> None:
    with pytest.raises(CheckpointError, match=rf"go on with these rules in another --workdir, with --init-from.path {run}"):
        train.main(tiny_config(**{**LIT, "init_from.rules": ((".*", "load"),)}, seed=1), run)


def test_the_command_line_starts_any_recipe_from_any_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    there = write_folder(tmp_path / "w")
    source = ["--model.towers.image.stem", "--init-from.path", str(tmp_path / "w")]  # no convolutions
    options = [*source, "--optim.lr-rules", IMAGE, "0", ".*", "1", "--duration", "4"]
    few = ["--evals.seen.source", "shapes:test?size=16&length=16", "--evals.pairs.source", "shapes:val?size=16&length=16"]
    assert cli.main(["train", RECIPE, "--workdir", str(tmp_path / "run"), *options, *few]) == 0, capsys.readouterr().err
    params = arrays(runs.load_run(tmp_path / "run")[2])
    np.testing.assert_array_equal(params["image/blocks/attn/q/kernel"], there["image/blocks/attn/q/kernel"])
    assert not np.array_equal(params["text/blocks/attn/q/kernel"], there["text/blocks/attn/q/kernel"])
    wrong = [*source, "--model.towers.image.activation", "quick_gelu"]
    assert cli.main(["train", RECIPE, "--workdir", str(tmp_path / "wrong"), *wrong]) == 1
    assert "activation: 'gelu' -> 'quick_gelu'" in capsys.readouterr().err


def test_a_recipe_takes_the_model_of_weights_without_touching_a_device(run: Path, tmp_path: Path) -> None:
    """Processes join after the recipe has been read, and must not have started a backend before."""
    write_folder(tmp_path / "w", **{"towers.image.activation": "quick_gelu", "towers.text.activation": "quick_gelu"})
    code = f"""
import jax
from jclip.config import load
recipes = [load("configs/lit.py", ["--weights", path]) for path in ({str(run)!r}, {str(tmp_path / "w")!r})]
jax.config.update("jax_num_cpu_devices", 3)
print(jax.device_count(), *(recipe.model.towers["image"].activation for recipe in recipes))
"""
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=ROOT)
    assert done.stdout == "3 gelu quick_gelu\n", done.stderr


def test_what_a_killed_run_left_unfinished_is_removed_by_the_next_one_alone(tmp_path: Path) -> None:
    unfinished = tmp_path / "checkpoints" / "4.orbax-checkpoint-tmp-1"
    unfinished.mkdir(parents=True)
    Checkpoints(tmp_path, read_only=True)
    assert unfinished.exists()
    Checkpoints(tmp_path)
    assert not unfinished.exists()


def test_hosts_that_see_other_weights_to_start_from_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(b"these")
    digest = weights_digest(weights)
    weights.write_bytes(b"those")
    monkeypatch.setattr("jclip.resume.gather_texts", lambda text: [digest, text])
    with pytest.raises(Refused, match=f"the processes of the run see other weights at init_from.path {weights}"):
        _require_same_weights(str(weights))
    weights.write_bytes(b"these")
    _require_same_weights(str(weights))
