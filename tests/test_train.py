"""Whole runs, as a user starts them: killed, stopped, resumed, on other meshes, and gone wrong."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import flags_for, tiny_config

import jclip
from jclip import convert, runs, train
from jclip.checkpoint import CheckpointError, Checkpoints
from jclip.config import ConfigError, MeshConfig, from_json
from jclip.data import BadExample, SourceError, make_run_loader, open_source
from jclip.encode import make_encode
from jclip.metrics import NonFiniteLoss
from jclip.program import make_program
from jclip.sharding import make_mesh, param_shardings, to_global
from jclip.state import abstract, param_shapes
from jclip.tree import flatten

HERE = Path(__file__).parent
STEPS = 40
SHORT: dict[str, Any] = {"evals": {}, "checkpoint.best": None}  # of one length, so that the step is compiled once
LONG = ("--duration", str(STEPS), "--evals.seen.every", "20")


@pytest.mark.slow
def test_a_run_of_images_that_are_not_square_is_trained_evaluated_and_converted(tmp_path: Path) -> None:
    size, short = {"model.towers.image.image_size": (24, 16)}, {**SHORT, "optim.warmup": "1"}
    train.main(tiny_config(**short, **size, duration="2"), tmp_path / "w")
    encoder = jclip.load(tmp_path / "w")
    assert encoder.params["image"]["pos_embed"].shape == (1 + 3 * 2, 32)
    images = np.random.default_rng(0).integers(0, 256, (3, 30, 20, 3), np.uint8)
    convert.main(tmp_path / "w", tmp_path / "square", image_size=16)
    convert.main(tmp_path / "w", tmp_path / "same")
    np.testing.assert_array_equal(jclip.load(tmp_path / "same").embed_image(images), encoder.embed_image(images))
    assert jclip.load(tmp_path / "square").params["image"]["pos_embed"].shape == (1 + 2 * 2, 32)
    with pytest.raises(CheckpointError, match=r"image_size: \(24, 16\) -> \(16, 24\)"):
        train.main(tiny_config(**short, duration="3", **{"model.towers.image.image_size": (16, 24)}), tmp_path / "w")


def start_jclip(workdir: Path, *overrides: str, devices: int = 1, **variables: str) -> subprocess.Popen[str]:
    arguments = ("train", str(HERE / "recipe_tiny.py"), "--workdir", str(workdir), *overrides)
    return start_command(*arguments, devices=devices, **variables)


def start_command(*arguments: str, devices: int, **variables: str) -> subprocess.Popen[str]:
    environment = {
        **os.environ,
        "XLA_FLAGS": flags_for(devices),
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": f"{HERE.parent}{os.pathsep}{HERE}",
        **variables,
    }
    command = [sys.executable, "-m", "jclip.cli", *arguments]
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
    _, step, params, _ = runs.load_run(workdir)
    assert step == STEPS
    return {path: np.asarray(leaf) for path, leaf in flatten(params).items()}


@pytest.fixture(
    scope="module", params=[pytest.param((1, 1), marks=pytest.mark.exhaustive), (8, 4)], ids=["1 device", "8 devices"]
)
def uninterrupted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int, str]:
    devices, fsdp = request.param
    workdir = tmp_path_factory.mktemp("whole")
    finish(start_jclip(workdir, "--mesh.fsdp", str(fsdp), *LONG, devices=devices))
    return workdir, devices, str(fsdp)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kill_at", "workers"),
    [pytest.param(2, "0", marks=pytest.mark.exhaustive), (10, "2"), pytest.param(None, "0", marks=pytest.mark.exhaustive)],
    ids=["at once", "between checkpoints", "saving"],
)
def test_killed_and_started_again_ends_bit_equal(
    uninterrupted: tuple[Path, int, str], tmp_path: Path, kill_at: int | None, workers: str
) -> None:
    whole, devices, fsdp = uninterrupted
    process = start_jclip(tmp_path, "--mesh.fsdp", fsdp, *LONG, devices=devices)
    if kill_at is None:
        wait_for_unfinished_save(tmp_path, process)
    else:
        wait_for_step(tmp_path, kill_at, process)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert max((line["step"] for line in whole_lines(tmp_path)), default=0) < STEPS
    finish(start_jclip(tmp_path, "--mesh.fsdp", fsdp, *LONG, "--data.workers", workers, devices=devices))
    want, got = final_params(whole), final_params(tmp_path)
    assert want.keys() == got.keys()
    for path in want:
        np.testing.assert_array_equal(want[path], got[path], err_msg=path)
    assert losses(whole) == losses(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kill_at", [pytest.param(step, marks=pytest.mark.exhaustive) for step in (3, 9)])
def test_a_teacher_a_target_a_queue_and_an_average_are_bit_equal_after_a_kill(kill_at: int, tmp_path: Path) -> None:
    """Killed before and after the teacher begins: parameters, optimizer and all state of the last checkpoint, by digest."""
    options = ("--state", "--evals", "none", "--checkpoint.best", "None", "--checkpoint.keep", "3")
    finish(start_jclip(tmp_path / "whole", *options, devices=2))
    process = start_jclip(tmp_path / "killed", *options, devices=2)
    wait_for_step(tmp_path / "killed", kill_at, process)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    finish(start_jclip(tmp_path / "killed", *options, devices=2))
    want, got = (last_arrays(tmp_path / run) for run in ("whole", "killed"))
    assert {"byol", "neighbours", "taught", "ema"} <= {path.split("/")[1] for path in want if path.startswith("extra/")}
    assert want == got
    assert losses(tmp_path / "whole") == losses(tmp_path / "killed")


def last_arrays(workdir: Path) -> dict[str, Any]:
    """The digest of every array of the last checkpoint, which is compared with the array when it is read."""
    with Checkpoints(workdir, read_only=True) as checkpoints:
        step = checkpoints.steps[-1]
        assert step == 12
        return dict(checkpoints._digests(step)["arrays"])


def wait_for_unfinished_save(workdir: Path, process: subprocess.Popen[str]) -> None:
    """Waits until a checkpoint is being written that is not yet one: Orbax renames it when it is whole."""
    deadline = time.monotonic() + 240
    while not any(not path.name.isdigit() for path in (workdir / "checkpoints").glob("*")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "no save"


def test_the_workdir_tells_the_whole_run(uninterrupted: tuple[Path, int, str]) -> None:
    workdir, _, fsdp = uninterrupted
    written = lines(workdir)
    assert [line["step"] for line in written if "loss" in line] == list(range(1, STEPS + 1))
    assert {"loss", "lr", "grad_norm", "image_text/logit_scale", "examples_per_second", "seconds_left"} <= written[0].keys()
    assert 0 < written[0]["data_wait"] <= 1  # the first batch is always waited for
    accuracies = {line["step"]: line["seen/top1"] for line in written if "seen/top1" in line}
    assert list(accuracies) == [20, 40]
    assert [line["step"] for line in written if "pairs/image_to_text/recall@1" in line] == [STEPS]
    changes = {"mesh.fsdp": int(fsdp), "duration": str(STEPS), "evals.seen.every": "20"}
    assert from_json(json.loads((workdir / "config.json").read_text())) == tiny_config(**changes)
    with Checkpoints(workdir, read_only=True) as checkpoints:
        best = max(accuracies, key=lambda step: (accuracies[step], step))
        assert checkpoints.steps == sorted({best, 36, 40})


@pytest.mark.parametrize("devices", [1, pytest.param(8, marks=pytest.mark.slow)])
def test_eval_gives_the_numbers_of_the_loop_on_any_number_of_devices(uninterrupted: tuple[Path, int, str], devices: int) -> None:
    workdir = uninterrupted[0]
    command = [sys.executable, "-m", "jclip.cli", "eval", str(workdir), "--json"]
    environment = {**os.environ, "XLA_FLAGS": flags_for(devices)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, cwd=HERE.parent)
    results = json.loads(done.stdout)
    last = {
        name: value for line in lines(workdir) if line["step"] == STEPS and "loss" not in line for name, value in line.items()
    }
    assert results == pytest.approx(last, abs=1e-6)
    assert {name.split("/")[0] for name in results} == {"step", "seen", "pairs"}


@pytest.fixture(scope="module")
def short_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workdir of 12 steps on 8 devices; to be read."""
    workdir = tmp_path_factory.mktemp("short")
    train.main(tiny_config(**SHORT), workdir)
    return workdir


@pytest.mark.slow
def test_a_reader_leaves_an_unfinished_save_alone(short_run: Path, tmp_path: Path) -> None:
    shutil.copytree(short_run, tmp_path, dirs_exist_ok=True)
    unfinished = tmp_path / "checkpoints" / "16.orbax-checkpoint-tmp"
    shutil.copytree(tmp_path / "checkpoints" / "12", unfinished)
    runs.load_run(tmp_path)
    assert unfinished.exists()


def test_an_evaluation_that_fails_costs_no_training(tmp_path: Path) -> None:
    changes = {"evals.seen.labels.field": "nonsense", "evals.seen.every": "5", "checkpoint.best": None}
    with pytest.raises(ConfigError, match="no example has a label: no nonsense: fields are"):
        train.main(tiny_config(**changes), tmp_path)
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert checkpoints.latest == 5


def test_a_best_metric_that_no_evaluation_gives_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'seen/top_1' is none of the metrics: seen/top1"):
        train.main(tiny_config(**{"checkpoint.best": "seen/top_1"}), tmp_path)


def test_another_configuration_goes_on_and_is_said(short_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(short_run, tmp_path, dirs_exist_ok=True)
    train.main(tiny_config(**SHORT, log_every=2), tmp_path)
    assert "another configuration; from here on\n  log_every: 1 -> 2" in capsys.readouterr().out


def test_a_run_that_is_done_says_so_and_a_shorter_one_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short = {"evals": {}, "checkpoint.best": None, "duration": "2", "optim.warmup": "1"}
    train.main(tiny_config(**short), tmp_path)
    capsys.readouterr()
    train.main(tiny_config(**short), tmp_path)
    assert "all 2 steps are done" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"duration 1 ends at step 1, and .* has come to step 2"):
        train.main(tiny_config(**{**short, "duration": "1"}), tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="file is a file; give a folder"):
        train.main(tiny_config(**short), tmp_path / "file")


@pytest.mark.exhaustive
def test_a_checkpoint_of_eight_devices_restores_on_any_number(tmp_path: Path) -> None:
    config = tiny_config(**SHORT, **{"mesh.fsdp": 4})
    train.main(config, tmp_path)
    images = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3)).astype(np.uint8)
    shapes, found = param_shapes(config), []
    with Checkpoints(tmp_path) as checkpoints:
        for data, fsdp in ((8, 1), (1, 1), (2, 1), (1, 4)):
            mesh = make_mesh(MeshConfig(data, fsdp), jax.devices()[: data * fsdp])
            shardings = param_shardings(shapes, MeshConfig(data, fsdp), mesh)
            params = checkpoints.restore(12, {"params": abstract(shapes, shardings)})["params"]
            z = make_encode(config.model, mesh)(params, to_global({"image": images}, mesh))["image"][1]
            found.append((jax.device_get(params), np.asarray(z)))
    for params, z in found[1:]:
        jax.tree.map(np.testing.assert_array_equal, params, found[0][0])
        np.testing.assert_allclose(z, found[0][1], atol=1e-6)


@pytest.mark.exhaustive
def test_training_goes_on_from_one_device_on_eight_and_back(tmp_path: Path) -> None:
    """The optimizer's state moves too: 8 steps on one device and 4 on eight give the curve of twelve on eight."""
    finish(start_jclip(tmp_path / "both", "--checkpoint.every", "100", "--duration", "12", devices=8))
    process = start_jclip(tmp_path / "moved", devices=1)
    wait_for_step(tmp_path / "moved", 5, process)
    process.send_signal(signal.SIGTERM)
    out, _ = finish(process)
    step = Checkpoints(tmp_path / "moved", read_only=True).latest
    assert step in range(5, 12)
    assert f"stopped after step {step}" in out
    assert max(losses(tmp_path / "moved")) == step
    finish(start_jclip(tmp_path / "moved", devices=8))
    want, got = losses(tmp_path / "both"), losses(tmp_path / "moved")
    assert want.keys() == got.keys()
    assert list(got.values()) == pytest.approx(list(want.values()), rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.exhaustive)])
def test_a_stop_signal_saves_and_exits_cleanly(tmp_path: Path, number: int) -> None:
    process = start_jclip(tmp_path, "--duration", "100000", "--checkpoint.every", "100000", "--evals.seen.every", "100000")
    wait_for_step(tmp_path, 4, process)
    process.send_signal(number)
    out, _ = finish(process)
    with Checkpoints(tmp_path) as checkpoints:
        (step,) = checkpoints.steps
    assert f"stopped after step {step}" in out.replace(",", "")
    assert max(losses(tmp_path)) == step


def test_a_loss_that_is_no_number_stops_the_run_and_says_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # no configuration may ask for a rate that is sure to diverge
    monkeypatch.setattr("jclip.program.make_schedule", lambda *args, **kwargs: lambda step: jnp.float32(1e30))
    config = tiny_config(**{"optim.clip_norm": None, "optim.warmup": "0", "checkpoint.every": "1", "duration": "50"})
    with pytest.raises(NonFiniteLoss) as error:
        train.main(config, tmp_path)
    message = str(error.value)
    step = int(message.split(":")[0].removeprefix("step "))
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest == step - 1
    if step > 2:
        assert f"The last good checkpoint is {tmp_path / 'checkpoints' / str(step - 2)}; " in message
    else:
        assert "There is no good checkpoint" in message
    assert f"remove {tmp_path / 'checkpoints' / str(step - 1)}, which is not" in message
    assert message.count("shapes:train:") == 8
    assert message.endswith(" and 8 more")


def test_another_model_in_the_workdir_is_refused(short_run: Path) -> None:
    with pytest.raises(CheckpointError, match="holds another model"):
        train.main(tiny_config(**SHORT, **{"model.embed_dim": 8}), short_run)


def test_a_checkpoint_with_missing_or_misshapen_parameters_lists_them(short_run: Path) -> None:
    other = tiny_config(**{"model.embed_dim": 8, "model.towers.image.pool": "map"})
    mesh, shapes = make_mesh(MeshConfig()), param_shapes(other)
    wanted = abstract(shapes, param_shardings(shapes, MeshConfig(), mesh))
    with Checkpoints(short_run) as checkpoints, pytest.raises(CheckpointError) as error:
        checkpoints.restore(12, {"params": wanted})
    message = str(error.value)
    assert "missing params/image/map/probe float32[1,1,32]" in message
    assert "extra params/image/cls float32[32]" in message
    assert "params/image_projection/kernel is float32[32,16], not float32[32,8]" in message


def test_broken_examples_are_replaced_counted_and_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_shard(tmp_path / "shard.tar", broken=(1, 5))
    changes: dict[str, Any] = {"data.source": f"webdataset:{tmp_path}/shard.tar", "duration": "12ep", "evals": {}}
    config = tiny_config(**changes, **{"checkpoint.best": None})
    train.main(config, tmp_path / "run")
    with make_run_loader(config) as loader:
        problems = [problem for _, batch in zip(range(12), loader, strict=False) for problem in batch.problems]
    assert len(problems) >= 24  # two in each of twelve epochs, and substitutes that are broken too
    assert lines(tmp_path / "run")[-1]["broken_examples"] == len(problems)
    assert "replaced a broken example: shard.tar:1: " in capsys.readouterr().out


def write_shard(path: Path, broken: tuple[int, ...]) -> None:
    import io
    import tarfile

    from PIL import Image

    with tarfile.open(path, "w") as tar:
        for i in range(16):
            picture = io.BytesIO()
            Image.new("RGB", (20, 20), (i, 2 * i, 3 * i)).save(picture, "PNG")
            for name, data in (
                (f"{i}.png", b"no image" if i in broken else picture.getvalue()),
                (f"{i}.txt", f"number {i}".encode()),
            ):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def test_the_restored_state_is_the_saved_one(short_run: Path) -> None:
    config = tiny_config(**SHORT)
    program = make_program(config, make_mesh(MeshConfig()), warmup_steps=3, total_steps=12)
    with Checkpoints(short_run) as checkpoints:
        state = program.restored(12, checkpoints.restore(12, program.state.saved()))
        assert checkpoints.config(12) == config
    assert int(state.step) == 12
    assert int(state.opt_state[1].count) == 12


@pytest.mark.slow
def test_a_run_says_first_what_its_data_lack(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changes = {
        "data.source": "shapes:train?size=16&length=10",
        "duration": "1",
        "optim.warmup": "0",
        "evals": {},
        "checkpoint.best": None,
    }
    train.main(tiny_config(**changes), tmp_path)
    out = capsys.readouterr().out
    assert "shapes:train?size=16&length=10: 10 examples, an epoch is 0.6 steps" in out
    assert out.index("jclip: only 10 examples for a batch of 16: one is in it up to 2 times") < out.index("step      1/1")


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({"config.json": '{"architectures": ["CLIPModel"]}', "model.safetensors": "w"}, "config.json of something else"),
        ({"open_clip_model.safetensors": "w"}, "open_clip_model.safetensors"),
    ],
)
def test_a_workdir_that_holds_foreign_weights_is_refused_and_left_alone(
    files: dict[str, str], found: str, tmp_path: Path
) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError, match=f"is no run of jclip's, it holds {found}; give a folder of its own"):
        train.main(tiny_config(), tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == files


def test_a_run_without_data_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.source names no data to train on; give --data\.source webdataset:PATTERN"):
        train.main(tiny_config(**{"data.source": ""}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


class OneBroken:
    """Drawn scenes, of which one cannot be read."""

    classes: tuple[str, ...] = ()
    templates: tuple[str, ...] = ()

    def __init__(self, spec: str, broken: str) -> None:
        self.scenes, self.broken = open_source(spec), broken

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> Any:
        if self.scenes[index]["key"] == self.broken:
            raise BadExample("gone")
        return self.scenes[index]

    def fingerprint(self) -> str:
        return self.scenes.fingerprint()


def test_a_run_that_is_to_stop_at_a_broken_example_saves_its_steps_and_goes_on_when_it_is_mended(tmp_path: Path) -> None:
    config = tiny_config(evals={}, **{"checkpoint.best": None, "checkpoint.every": "100%", "data.broken": "stop"})
    with make_run_loader(config) as loader:
        batches = [next(loader).keys for _ in range(6)]
    first = {key: i for i, keys in reversed(list(enumerate(batches))) for key in keys}
    broken = next(key for key, i in first.items() if i == 4)
    with pytest.raises(
        SourceError, match=r"gone; with data\.broken replace .*\nstep 4 is saved: the same command goes on from there"
    ):
        train.main(config, tmp_path / "run", source=OneBroken(config.data.source, broken))
    train.main(config, tmp_path / "run")
    train.main(config, tmp_path / "whole")
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
