"""Sounds in real processes: one curve in one and in two, and the same bits after a SIGKILL; memory as it was planned."""

import dataclasses
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from recipe_sound import get_config
from test_processes import finish_all, two_processes
from test_train import HERE, finish, losses, start_command, wait_for_step

from jclip.checkpoint import Checkpoints
from jclip.config import MeshConfig
from jclip.memory import share
from jclip.program import Program, make_program
from jclip.sharding import make_mesh

pytest.importorskip("soundfile", reason="the extra sound is not installed")
pytest.importorskip("soxr", reason="the extra sound is not installed")

STEPS = 10


def start(workdir: Path, devices: int, *more: str, **variables: str) -> subprocess.Popen[str]:
    command = ("train", str(HERE / "recipe_sound.py"), "--workdir", str(workdir), "--mesh.fsdp", "2", *more)
    return start_command(*command, devices=devices, **variables)


def start_two(workdir: Path) -> list[subprocess.Popen[str]]:
    """Two processes of two devices each."""
    return [start(workdir, 2, **variables) for variables in two_processes()]


def digests(workdir: Path) -> dict[str, Any]:
    """The digest of every array of the last checkpoint."""
    with Checkpoints(workdir, read_only=True) as checkpoints:
        assert checkpoints.steps[-1] == STEPS
        return dict(checkpoints._digests(STEPS)["arrays"])


@pytest.mark.slow
def test_a_run_of_sounds_that_is_killed_goes_on_bit_equal(tmp_path: Path) -> None:
    finish(start(tmp_path / "whole", 2))
    killed = start(tmp_path / "killed", 2)
    wait_for_step(tmp_path / "killed", 6, killed)
    killed.kill()
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    finish(start(tmp_path / "killed", 2, "--data.workers", "1"))
    assert digests(tmp_path / "killed") == digests(tmp_path / "whole")
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")


@pytest.mark.exhaustive
def test_two_processes_train_on_sounds_as_one_and_go_on_bit_equal_when_one_is_killed(tmp_path: Path) -> None:
    finish(start(tmp_path / "one", 4))
    finish_all(start_two(tmp_path / "two"))
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert one.keys() == two.keys() == set(range(1, STEPS + 1))
    assert list(two.values()) == pytest.approx(list(one.values()), rel=1e-5)
    first, second = start_two(tmp_path / "killed")
    wait_for_step(tmp_path / "killed", 6, first)
    second.kill()
    second.communicate()
    assert second.returncode == -signal.SIGKILL
    first.communicate(timeout=60)
    assert first.returncode != 0
    finish_all(start_two(tmp_path / "killed"))
    assert digests(tmp_path / "killed") == digests(tmp_path / "two")
    assert losses(tmp_path / "killed") == two


def program(devices: int) -> Program:
    """The run on a mesh, with sounds of 2 s, and of few words, whose table would be most of a device's memory."""
    config = get_config()
    sound, text = config.model.towers["sound"], config.model.towers["text"]
    sound = dataclasses.replace(sound, waveform=dataclasses.replace(sound.waveform, seconds=2.0))
    towers = {"sound": sound, "text": dataclasses.replace(text, vocab_size=64)}
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, towers=towers), batch_size=64)
    return make_program(config, make_mesh(MeshConfig(devices, 1)), warmup_steps=1, total_steps=STEPS)


def test_a_step_of_sounds_holds_what_was_planned_and_no_spectrogram_of_other_devices() -> None:
    eight = program(8)
    planned = {name: share(part) for name, part in eight.parts().items()}
    assert planned["batch"] == 64 // 8 * (2 * 2 * 8000 + 4 * 8)  # int16 of 2 s at 8 kHz, i32 of 8 tokens
    memory: Any = eight.compile().memory_analysis()
    given = sum(size for name, size in planned.items() if name != "embeddings")
    assert given <= memory.argument_size_in_bytes <= given + 4096
    assert memory.temp_size_in_bytes > planned["embeddings"]
    alone: Any = program(1).compile().memory_analysis()
    spectra = 64 * (1 + 2 * 8000 // 100) * 129 * 8  # complex64 of the whole batch
    assert alone.temp_size_in_bytes > spectra
    assert memory.temp_size_in_bytes < alone.temp_size_in_bytes / 8 * 1.5
