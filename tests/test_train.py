"""Whole runs, as a user starts them: killed, stopped, resumed, on other meshes, and gone wrong."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from tiny import tiny_config

from jclip import evaluate, train
from jclip.checkpoint import CheckpointError, Checkpoints
from jclip.config import Mesh, from_json
from jclip.metrics import NonFiniteLoss
from jclip.optim import make_optimizer, make_schedule
from jclip.sharding import make_mesh, param_shardings, to_global
from jclip.step import TrainState, abstract, make_encode, param_shapes, state_shapes, state_shardings
from jclip.tree import flatten

HERE = Path(__file__).parent


def start_jclip(workdir: Path, *overrides: str, devices: int = 1) -> subprocess.Popen[str]:
    environment = {
        **os.environ,
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": f"{HERE.parent}{os.pathsep}{HERE}",
    }
    command = [sys.executable, "-m", "jclip.cli", "train", str(HERE / "recipe_tiny.py"), "--workdir", str(workdir), *overrides]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True)


def finish(process: subprocess.Popen[str]) -> tuple[str, str]:
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out, err


def lines(workdir: Path) -> list[dict[str, float]]:
    path = workdir / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def losses(workdir: Path) -> dict[float, float]:
    found = [line for line in lines(workdir) if "loss" in line]
    assert len({line["step"] for line in found}) == len(found), "a step is written twice"
    return {line["step"]: line["loss"] for line in found}


def wait_for_step(workdir: Path, step: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 240
    while not any(line["step"] >= step for line in whole_lines(workdir)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "no progress"
        time.sleep(0.01)


def whole_lines(workdir: Path) -> list[dict[str, float]]:
    path = workdir / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.split("\n")[:-1]]


def final_params(workdir: Path) -> dict[str, np.ndarray]:
    _, step, params, _ = evaluate.load_run(workdir)
    assert step == 12
    return {path: np.asarray(leaf) for path, leaf in flatten(params).items()}


@pytest.fixture(scope="module", params=[(1, 1), (8, 4)], ids=["1 device", "8 devices"])
def uninterrupted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int, str]:
    devices, fsdp = request.param
    workdir = tmp_path_factory.mktemp("whole")
    finish(start_jclip(workdir, "--mesh.fsdp", str(fsdp), devices=devices))
    return workdir, devices, str(fsdp)


@pytest.mark.parametrize(("kill_at", "workers"), [(3, "0"), (9, "2")], ids=["before the first checkpoint", "between checkpoints"])
def test_killed_and_started_again_ends_bit_equal(
    uninterrupted: tuple[Path, int, str], tmp_path: Path, kill_at: int, workers: str
) -> None:
    whole, devices, fsdp = uninterrupted
    process = start_jclip(tmp_path, "--mesh.fsdp", fsdp, devices=devices)
    wait_for_step(tmp_path, kill_at, process)
    process.kill()  # SIGKILL
    process.communicate()
    assert "loss" in lines(tmp_path)[0]
    finish(start_jclip(tmp_path, "--mesh.fsdp", fsdp, "--data.workers", workers, devices=devices))
    want, got = final_params(whole), final_params(tmp_path)
    assert want.keys() == got.keys()
    for path in want:
        np.testing.assert_array_equal(want[path], got[path], err_msg=path)
    assert losses(whole) == losses(tmp_path)


def test_the_workdir_tells_the_whole_run(uninterrupted: tuple[Path, int, str]) -> None:
    workdir, devices, fsdp = uninterrupted
    written = lines(workdir)
    assert [line["step"] for line in written if "loss" in line] == list(range(1, 13))
    assert {"loss", "lr", "grad_norm", "logit_scale", "examples_per_second", "seconds_left"} <= written[0].keys()
    assert [line["step"] for line in written if "seen/top1" in line] == [6, 12]
    assert [line["step"] for line in written if "pairs/image_to_text/recall@1" in line] == [12]
    assert from_json(json.loads((workdir / "config.json").read_text())) == tiny_config(**{"mesh.fsdp": int(fsdp)})
    best = max((6, 12), key=lambda step: next(x["seen/top1"] for x in written if x["step"] == step and "seen/top1" in x))
    with Checkpoints(workdir) as checkpoints:
        assert checkpoints.steps[-2:] == [8, 12]
        assert best in checkpoints.steps


def test_eval_of_a_checkpoint_gives_the_numbers_of_the_loop(
    uninterrupted: tuple[Path, int, str], capsys: pytest.CaptureFixture[str]
) -> None:
    workdir = uninterrupted[0]
    config, *_ = evaluate.load_run(workdir)
    results = evaluate.main(workdir, as_json=True)
    printed = json.loads(capsys.readouterr().out)
    assert printed == {"step": 12, **results}
    last = {name: value for line in lines(workdir) if line["step"] == 12 and "loss" not in line for name, value in line.items()}
    assert results == pytest.approx({name: last[name] for name in results}, abs=1e-6)
    assert {name.split("/")[0] for name in results} == set(config.evals)


def test_a_checkpoint_of_eight_devices_restores_on_any_number(tmp_path: Path) -> None:
    config = tiny_config(**{"mesh.fsdp": 4, "evals": {}, "checkpoint.best": None})
    train.main(config, tmp_path)
    images = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3)).astype(np.uint8)
    shapes, found = param_shapes(config.model), []
    with Checkpoints(tmp_path) as checkpoints:
        for data, fsdp in ((8, 1), (1, 1), (2, 1), (1, 4)):
            mesh = make_mesh(Mesh(data, fsdp), jax.devices()[: data * fsdp])
            shardings = param_shardings(shapes, Mesh(data, fsdp), mesh)
            params = checkpoints.restore(12, {"params": abstract(shapes, shardings)})["params"]
            z = make_encode(config.model, mesh)(params, to_global({"image": images}, mesh))["image"][1]
            found.append((jax.device_get(params), np.asarray(z)))
    for params, z in found[1:]:
        jax.tree.map(np.testing.assert_array_equal, params, found[0][0])
        np.testing.assert_allclose(z, found[0][1], atol=1e-6)


def test_training_goes_on_from_one_device_on_eight_and_back(tmp_path: Path) -> None:
    """The optimizer's state moves too: 8 steps on one device and 4 on eight give the curve of twelve on eight."""
    finish(start_jclip(tmp_path / "both", "--checkpoint.every", "100", "--duration", "12", devices=8))
    process = start_jclip(tmp_path / "moved", devices=1)
    wait_for_step(tmp_path / "moved", 5, process)
    process.send_signal(signal.SIGTERM)
    finish(process)
    assert 5 <= max(losses(tmp_path / "moved")) < 12
    finish(start_jclip(tmp_path / "moved", devices=8))
    want, got = losses(tmp_path / "both"), losses(tmp_path / "moved")
    assert want.keys() == got.keys()
    assert list(got.values()) == pytest.approx(list(want.values()), rel=1e-4)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_signal_saves_and_exits_cleanly(tmp_path: Path, number: int) -> None:
    process = start_jclip(tmp_path, "--duration", "100000", "--checkpoint.every", "100000", "--evals.seen.every", "100000")
    wait_for_step(tmp_path, 4, process)
    process.send_signal(number)
    out, _ = finish(process)
    with Checkpoints(tmp_path) as checkpoints:
        (step,) = checkpoints.steps
    assert f"stopped after step {step}" in out.replace(",", "")
    assert max(losses(tmp_path)) == step


def test_a_loss_that_is_no_number_stops_the_run_and_says_where(tmp_path: Path) -> None:
    config = tiny_config(**{"optim.lr": 1e30, "optim.clip_norm": None, "checkpoint.every": "1", "duration": "50"})
    with pytest.raises(NonFiniteLoss) as error:
        train.main(config, tmp_path)
    message = str(error.value)
    with Checkpoints(tmp_path) as checkpoints:
        last = checkpoints.latest
        assert last is not None
        step = int(message.split(":")[0].removeprefix("step "))
        assert step == last + 1
        assert f"The last good checkpoint is {tmp_path / 'checkpoints' / str(last)}" in message
    assert message.count("shapes:train:") == 16


def test_another_model_in_the_workdir_is_refused(tmp_path: Path) -> None:
    short = {"duration": "1", "evals": {}, "checkpoint.best": None}
    train.main(tiny_config(**short), tmp_path)
    with pytest.raises(CheckpointError, match="holds another model"):
        train.main(tiny_config(**short, **{"model.embed_dim": 8}), tmp_path)


def test_a_checkpoint_with_missing_or_misshapen_parameters_lists_them(tmp_path: Path) -> None:
    train.main(tiny_config(**{"duration": "1", "evals": {}, "checkpoint.best": None}), tmp_path)
    other = tiny_config(**{"model.embed_dim": 8, "model.towers.image.pool": "map"})
    mesh, shapes = make_mesh(Mesh()), param_shapes(other.model)
    wanted = abstract(shapes, param_shardings(shapes, Mesh(), mesh))
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(CheckpointError) as error:
        checkpoints.restore(1, {"params": wanted})
    message = str(error.value)
    assert "missing image/map/probe (1, 1, 32)" in message
    assert "extra image/cls (32,)" in message
    assert "image_projection/kernel is (32, 16), not (32, 8)" in message


def test_broken_examples_are_replaced_counted_and_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_shard(tmp_path / "shard.tar", broken=(1, 5))
    changes: dict[str, Any] = {"data.source": f"webdataset:{tmp_path}/shard.tar", "duration": "6ep", "evals": {}}
    train.main(tiny_config(**changes, **{"checkpoint.best": None}), tmp_path / "run")
    assert lines(tmp_path / "run")[-1]["broken_examples"] == 12  # two in each of six epochs
    assert "replaced a broken example: shard.tar:1: " in capsys.readouterr().out


def write_shard(path: Path, broken: tuple[int, ...]) -> None:
    import io
    import tarfile

    from PIL import Image

    with tarfile.open(path, "w") as tar:
        for i in range(16):
            picture = io.BytesIO()
            Image.new("RGB", (20, 20), (i, 2 * i, 3 * i)).save(picture, "PNG")
            for name, data in ((f"{i}.png", b"no image" if i in broken else picture.getvalue()), (f"{i}.txt", f"number {i}".encode())):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def test_the_restored_state_is_the_saved_one(tmp_path: Path) -> None:
    config = tiny_config(**{"evals": {}, "checkpoint.best": None})
    train.main(config, tmp_path)
    shapes, mesh = param_shapes(config.model), make_mesh(Mesh())
    tx = make_optimizer(config.optim, make_schedule(config.optim, warmup_steps=3, total_steps=12), shapes)
    shardings = state_shardings(shapes, tx, config, mesh)
    with Checkpoints(tmp_path) as checkpoints:
        state = TrainState.restored(12, checkpoints.restore(12, abstract(state_shapes(config, tx), shardings).saved()), shardings)
        assert checkpoints.config(12) == config
    assert int(state.step) == 12
    assert int(state.opt_state[1].count) == 12
