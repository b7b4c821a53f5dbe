"""Processes of one run that would not train the same: refused on all of them before the first step, with the difference."""

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from test_processes import two_processes
from test_train import HERE, start_jclip, write_shard
from tiny import flags_for

from jclip.facts import between_hosts

STEPS = ("--duration", "3", "--optim.warmup", "1", "--checkpoint.every", "3")


def both_refuse(first: subprocess.Popen[str], second: subprocess.Popen[str]) -> list[str]:
    """Standard error of both, which have ended with status 1 and have not trained."""
    said = [process.communicate(timeout=240) for process in (first, second)]
    assert [process.returncode for process in (first, second)] == [1, 1], said
    assert not any("loss" in out for out, _ in said)
    return [err for _, err in said]


def test_another_option_is_refused_on_both_with_host_and_difference(tmp_path: Path) -> None:
    first, second = two_processes()
    processes = (
        start_jclip(tmp_path, *STEPS, devices=1, **first),
        start_jclip(tmp_path, *STEPS, "--optim.lr", "0.02", devices=1, **second),
    )
    for err in both_refuse(*processes):
        assert "jclip: Refused: the processes of the run differ" in err
        assert "config.optim.lr is 0.01 on process 0 (" in err
        assert "and 0.02 on process 1 (" in err
    assert not (tmp_path / "run.lock").exists()


@pytest.mark.slow
def test_another_step_to_go_on_from_is_refused_on_both(tmp_path: Path) -> None:
    first, second = two_processes()
    processes = (
        start_jclip(tmp_path, *STEPS, devices=1, **first),
        start_jclip(tmp_path, *STEPS, "--resume-from", "3", devices=1, **second),
    )
    for err in both_refuse(*processes):
        assert "command.resume_from is None on process 0 (" in err


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (("--optim.lr", "many"), "its command line, or its recipe, asks it to exit; it has said why"),
        pytest.param(("--evals", "unknown"), "ConfigError: config: there is no evaluation 'unknown'", marks=pytest.mark.slow),
        pytest.param(("--data.source", "folder:/none"), "SourceError: ", marks=pytest.mark.slow),
    ],
    ids=["option", "recipe", "data"],
)
def test_what_one_process_cannot_read_ends_the_other_with_a_line(tmp_path: Path, given: tuple[str, ...], why: str) -> None:
    first, second = two_processes()
    processes = (start_jclip(tmp_path, *STEPS, devices=1, **first), start_jclip(tmp_path, *STEPS, *given, devices=1, **second))
    said = [process.communicate(timeout=240)[1] for process in processes]
    assert [process.returncode != 0 for process in processes] == [True, True], said
    (line,) = [line for line in said[0].splitlines() if line.startswith("jclip: Refused: process 1 (")]
    assert why in line
    assert not any("Traceback" in err for err in said)


@pytest.mark.slow
def test_a_shorter_copy_of_the_data_is_refused_on_both_with_the_shard(tmp_path: Path) -> None:
    for host in ("a", "b"):
        (tmp_path / host).mkdir()
        write_shard(tmp_path / host / "one.tar", broken=())
        shutil.copy(tmp_path / host / "one.tar", tmp_path / host / "two.tar")
    with tarfile.open(tmp_path / "b" / "two.tar") as whole:
        cut = whole.getmembers()[20].offset
    data = (tmp_path / "b" / "two.tar").read_bytes()
    (tmp_path / "b" / "two.tar").write_bytes(data[:cut])
    source = ("--data.source", "webdataset:data/*.tar")
    started = []
    for host, variables in zip(("a", "b"), two_processes(), strict=True):
        (tmp_path / f"at-{host}").mkdir()
        (tmp_path / f"at-{host}" / "data").symlink_to(tmp_path / host)
        command = [
            sys.executable,
            "-c",
            "import os, sys; os.chdir(sys.argv.pop(1)); from jclip.cli import main; sys.exit(main())",
        ]
        started.append(start_in(tmp_path / f"at-{host}", command, tmp_path / "run", *STEPS, *source, **variables))
    for err in both_refuse(*started):
        assert "data.examples is 32 on process 0" in err
        assert "shards.two.tar is" in err


@pytest.mark.slow
def test_another_version_and_another_recipe_are_refused_on_both(tmp_path: Path) -> None:
    first, second = two_processes()
    other = "import sys, jclip; jclip.__version__ = '9.9'; from jclip.cli import main; sys.exit(main())"
    processes = (
        start_jclip(tmp_path, *STEPS, devices=1, **first),
        start_in(tmp_path, [sys.executable, "-c", other], tmp_path, *STEPS, "--model.embed-dim", "8", **second),
    )
    for err in both_refuse(*processes):
        assert "config.model.embed_dim is 16 on process 0" in err
        assert "versions.jclip is " in err
        assert "'9.9' on process 1" in err


def start_in(folder: Path, command: list[str], workdir: Path, *overrides: str, **variables: str) -> subprocess.Popen[str]:
    """`jclip train` by another way of starting it; the command takes the folder as its first argument where it wants it."""

    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": f"{HERE.parent}{os.pathsep}{HERE}", **variables}
    environment["XLA_FLAGS"] = flags_for(1)
    arguments = ["train", str(HERE / "recipe_tiny.py"), "--workdir", str(workdir), *overrides]
    at = [str(folder)] if "chdir" in command[-1] else []
    return subprocess.Popen(
        [*command, *at, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True
    )


def test_differences_are_named_by_field_and_process() -> None:
    records = [
        {"config": {"optim": {"lr": 0.1}}, "data": {"examples": 5}, "versions": {"python": "3.11.1"}},
        {"config": {"optim": {"lr": 0.1}}, "data": {"examples": 5}, "versions": {"python": "3.11.2"}},
        {"config": {"optim": {"lr": 0.2}}, "data": {"examples": 4, "shards": 1}, "versions": {"python": "3.11.1"}},
    ]
    assert between_hosts(["a", "b", "process 2 (c)"], records) == [
        "config.optim.lr is 0.1 on a and 0.2 on process 2 (c)",
        "data.examples is 5 on a and 4 on process 2 (c)",
        "data.shards is None on a and 1 on process 2 (c)",
    ]
