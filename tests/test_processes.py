"""Real processes that train together: one curve, checkpoints that move between them, and what happens when one goes."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recipe_families import STORED
from test_objectives import FOLDER
from test_train import HERE, finish, lines, losses, start_command, start_jclip, wait_for_step

import jclip
from jclip.checkpoint import Checkpoints
from jclip.config import load
from jclip.program import make_program
from jclip.sharding import make_mesh
from jclip.tree import flatten
from jclip.weights import write_weights

STEPS = ("--duration", "10", "--checkpoint.every", "5", "--evals.seen.every", "5", "--optim.warmup", "3")


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return int(found.getsockname()[1])


def start_two(workdir: Path, *overrides: str) -> list[subprocess.Popen[str]]:
    """Two processes of four devices each; the first coordinates."""
    return [start_jclip(workdir, *overrides, "--mesh.fsdp", "2", devices=4, **variables) for variables in two_processes()]


def two_processes() -> list[dict[str, str]]:
    """The environment of each."""
    both = {"JAX_COORDINATOR_ADDRESS": f"localhost:{free_port()}", "JAX_NUM_PROCESSES": "2", "JCLIP_HEARTBEAT_TIMEOUT": "10"}
    return [{**both, "JAX_PROCESS_ID": str(process)} for process in range(2)]


def finish_all(processes: list[subprocess.Popen[str]]) -> list[tuple[str, str]]:
    return [finish(process) for process in processes]


@pytest.fixture(scope="module")
def one_workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("one")
    finish(start_jclip(workdir, *STEPS, devices=8))
    return workdir


@pytest.fixture(scope="module")
def one_process(one_workdir: Path) -> dict[float, float]:
    return losses(one_workdir)


def results(workdir: Path) -> dict[str, float]:
    """Results of the last evaluations."""
    return {name: value for line in lines(workdir) if "loss" not in line for name, value in line.items()}


@pytest.mark.slow
def test_two_processes_train_as_one_and_one_of_them_writes(
    tmp_path: Path, one_workdir: Path, one_process: dict[float, float]
) -> None:
    (out, _), (other, _) = finish_all(start_two(tmp_path, *STEPS))
    assert_same_curve(tmp_path, one_process)
    assert results(tmp_path) == pytest.approx(results(one_workdir), abs=0.041)  # two of 50 examples
    assert "10 steps of 16 examples" in out
    assert "jclip" not in other  # what is left is said by libraries


@pytest.mark.slow
@pytest.mark.exhaustive
def test_two_processes_have_the_losses_and_the_state_of_one_with_every_objective(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(FOLDER.name, tmp_path / "stored")
    monkeypatch.setenv(STORED, str(tmp_path / "stored"))
    command = ("train", str(HERE / "recipe_families.py"), "--duration", "4", "--checkpoint.every", "2", "--optim.warmup", "1")

    def start(workdir: str, devices: int, **variables: str) -> subprocess.Popen[str]:
        return start_command(*command, "--workdir", str(tmp_path / workdir), devices=devices, **variables)

    finish(start("one", 2))
    finish_all([start("two", 1, **variables) for variables in two_processes()])
    (tmp_path / "on").mkdir()
    shutil.copytree(tmp_path / "two", tmp_path / "on", dirs_exist_ok=True)
    resume = [*command, "--resume-from", "2", "--workdir", str(tmp_path / "on")]
    finish_all([start_command(*resume, devices=1, **variables) for variables in two_processes()])
    assert_same_curve(tmp_path / "two", losses(tmp_path / "one"))
    one, two, on = (arrays_of(tmp_path / workdir) for workdir in ("one", "two", "on"))
    assert {"byol", "neighbours", "taught", "words", "ema"} <= {path.split("/")[1] for path in one if path.startswith("extra/")}
    assert one.keys() == two.keys() == on.keys()
    for path, leaf in two.items():
        np.testing.assert_array_equal(on[path], leaf, err_msg=path)
        np.testing.assert_allclose(leaf, one[path], rtol=0, atol=1e-3 * max(1.0, np.abs(leaf).max()), err_msg=path)


@pytest.mark.exhaustive
def test_two_processes_go_through_stages_and_on_at_a_border(tmp_path: Path) -> None:
    command = ("train", str(HERE / "recipe_stages.py"), "--workdir", str(tmp_path))
    runs = list[dict[int, Any]]()
    for begun in (False, True):
        for step in (6, 8) if begun else ():
            shutil.rmtree(tmp_path / "checkpoints" / str(step))
        out, _ = finish_all([start_command(*command, devices=1, **variables) for variables in two_processes()])[0]
        assert ("stage small: steps 1 to 4" in out) != begun  # what is done is not begun again
        assert "stage last: steps 5 to 8" in out
        with Checkpoints(tmp_path, read_only=True) as checkpoints:
            runs.append({step: checkpoints._digests(step)["arrays"] for step in checkpoints.steps})
    assert list(runs[0]) == [2, 4, 6, 8]
    assert runs[0] == runs[1]


def arrays_of(workdir: Path) -> dict[str, np.ndarray]:
    """The arrays of the last checkpoint, parameters and state, by path."""
    config = load(HERE / "recipe_families.py")
    program = make_program(config, make_mesh(config.mesh), warmup_steps=1, total_steps=4)
    with Checkpoints(workdir, read_only=True) as checkpoints:
        parts = checkpoints.restore(4, program.state.saved())
    return {path: np.asarray(leaf) for part in ("params", "extra") for path, leaf in flatten({part: parts[part]}).items()}


@pytest.mark.parametrize(
    "alone",
    [
        pytest.param((1,), marks=pytest.mark.slow),
        pytest.param((1, 2, 8), marks=[pytest.mark.slow, pytest.mark.exhaustive]),
    ],
)
def test_a_suite_gives_identical_numbers_on_any_number_of_devices_and_in_two_processes(
    tmp_path: Path, alone: tuple[int, ...]
) -> None:
    """Two processes of four devices each, beside one process of as many devices as `alone` says."""
    model = jclip.load("ViT-tiny-test")  # whose features are made to differ: those of a tower that has learned nothing are tied
    image = model.params["image"]
    image = {**image, "patch_embed": {**image["patch_embed"], "kernel": 20 * image["patch_embed"]["kernel"]}}
    write_weights(tmp_path / "weights", "jclip", model.config, {**model.params, "image": image})

    def start(name: str, devices: int, **variables: str) -> subprocess.Popen[str]:
        out = ("--json", str(tmp_path / f"{name}.json"), "--cache", str(tmp_path / name))
        command = ("eval", str(tmp_path / "weights"), "--suite", str(HERE / "suite_tiny.py"), "--protocol", "logistic", *out)
        return start_command(*command, devices=devices, **variables)

    for devices in alone:
        finish(start(str(devices), devices))
    finish_all([start("two", 4, **variables) for variables in two_processes()])
    found = [json.loads((tmp_path / f"{name}.json").read_text())["results"] for name in (*map(str, alone), "two")]
    numbers = [{name: (result["metrics"], result["counts"]) for name, result in results.items()} for results in found]
    assert len(numbers[0]) == 6
    for other in numbers:
        assert other == numbers[0]


@pytest.mark.slow
def test_two_processes_go_on_where_one_was_and_when_one_is_killed_the_other_stops_and_both_resume(
    tmp_path: Path, one_process: dict[float, float]
) -> None:
    process = start_jclip(tmp_path, *STEPS, devices=8)
    wait_for_step(tmp_path, 2, process)
    process.send_signal(signal.SIGTERM)
    finish(process)
    saved = max(losses(tmp_path))
    assert saved < 9
    first, second = start_two(tmp_path, *STEPS)
    wait_for_step(tmp_path, int(saved) + 1, first)
    second.kill()
    killed = time.monotonic()
    out, err = first.communicate(timeout=60)
    assert time.monotonic() - killed < 30  # heartbeats are missed for 10 s
    second.communicate()
    assert first.returncode != 0
    greeting, _, end = out.partition("start the same command again on all hosts")
    assert f"resuming after step {saved:.0f}" in greeting + end
    # Whichever comes first: a collective fails, which is explained, or JAX misses heartbeats, and explains itself.
    if "has lost another one" in end:
        assert "start the same command again on all hosts" in end
    else:
        assert "another task died" in err
    finish_all(start_two(tmp_path, *STEPS))
    assert_same_curve(tmp_path, one_process)


@pytest.mark.exhaustive
def test_a_signal_to_one_process_stops_both_after_the_same_step_and_one_process_goes_on(
    tmp_path: Path, one_process: dict[float, float]
) -> None:
    processes = start_two(tmp_path, *STEPS)
    wait_for_step(tmp_path, 2, processes[0])
    processes[1].send_signal(signal.SIGTERM)  # they agree at step 5
    (out, _), _ = finish_all(processes)
    assert "the same command goes on from there" in out
    last = max(losses(tmp_path))
    assert last == 5
    assert (tmp_path / "checkpoints" / f"{last:.0f}").exists()
    finish(start_jclip(tmp_path, *STEPS, devices=8))
    assert_same_curve(tmp_path, one_process)


def assert_same_curve(workdir: Path, want: dict[float, float]) -> None:
    found = losses(workdir)
    assert found.keys() == want.keys()
    assert list(found.values()) == pytest.approx(list(want.values()), rel=1e-4)


def test_a_coordinator_without_numbers_is_explained(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "jclip.cli", "train", str(HERE / "recipe_tiny.py"), "--workdir", str(tmp_path)]
    environment = {**os.environ, "JAX_COORDINATOR_ADDRESS": "localhost:1", "PYTHONPATH": f"{HERE.parent}{os.pathsep}{HERE}"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "set JAX_NUM_PROCESSES and JAX_PROCESS_ID too" in done.stderr
