"""Everything the README shows is run: its commands on little data and few steps, its Python to the letter."""

import importlib.util
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_cli import exit_status
from test_compile import jclip_compile
from test_train import write_shard

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
SHORT = ["--duration", "2", "--optim.warmup", "1", "--batch-size", "32", "--eval-batch-size", "64", "--log-every", "1"]
SHALLOW = ["--model.towers.image.depth", "2", "--model.towers.text.depth", "2"]
FEW = {
    "seen.source": "shapes:test?size=32&length=256&classes=seen",
    "heldout.source": "shapes:heldout?size=32&length=64",
    "retrieval.source": "shapes:val?size=32&length=128",
    "probe.train": "shapes:test?size=32&length=256&seed=1",
    "probe.source": "shapes:test?size=32&length=256",
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands(program: str) -> list[list[str]]:
    """All that it shows, in order, as lists of arguments."""
    joined = "\n".join(blocks("bash")).replace("\\\n", " ")
    parts = [part.strip() for line in joined.splitlines() for part in line.split("&&")]
    return [shlex.split(part, comments=True) for part in parts if part.startswith(f"{program} ")]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder with what a reader of the README would have: the recipes, shards and photos."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "configs").symlink_to(ROOT / "configs")
    for folder in ("data/clipart", "data/mine", "photos"):
        (home / folder).mkdir(parents=True)
    for name in ("clipart-train-00000", "clipart-train-00005", "clipart-val-00000"):
        write_shard(home / f"data/clipart/{name}.tar", broken=())
    for i in range(1, 5):
        write_shard(home / f"data/clipart/clipart-train-{i:05}.tar", broken=())
    for i in range(10):
        write_shard(home / f"data/mine/{i:05}.tar", broken=(3,))
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 30, 3)).astype(np.uint8)).save(home / "photos/one.jpg")
    return home


@pytest.mark.slow
def test_its_commands_and_its_python_run(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(home)
    found = commands("jclip")
    made = {"train", "eval", "report", "classify", "caption", "embed", "convert", "info", "compile", "data"}
    assert {command[1] for command in found} == made
    run([command for command in found if command[1] != "compile" and not is_fine_tuning(command)], capsys)
    for code in blocks("python"):
        exec(compile(code, "README.md", "exec"), {})


@pytest.mark.exhaustive
def test_its_fine_tuning_runs(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """After the commands that make what it starts from; test_init_from.py runs the same recipes on tiny models."""
    monkeypatch.chdir(home)
    makes = [command for command in commands("jclip") if {"runs/quickstart", "runs/clipart"} & {*command[2:]}]
    run([command for command in makes if command[1] in ("train", "convert") and not is_fine_tuning(command)], capsys)
    run([command for command in commands("jclip") if is_fine_tuning(command)], capsys)


def is_fine_tuning(command: list[str]) -> bool:
    return bool({"--weights", "--init-from.path"} & {*command})


def run(found: list[list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    for command in found:
        if "configs/vit_b16.py" in command:
            command = [*command, *SHALLOW, "--duration", "1", "--optim.warmup", "0", "--batch-size", "8", "--data.workers", "0"]
            command += ["--mesh.fsdp", "8"]
        elif command[1] == "train" and "--help" not in command:
            command = [*command, *SHORT]
            if "--weights" in command:
                command += ["--data.workers", "0", "--model.dtype", "float32"]
            else:
                command += SHALLOW
            if "configs/coca.py" in command:
                command += ["--evals", "none"]
            if "configs/quickstart.py" in command:
                command += [part for name, spec in FEW.items() for part in (f"--evals.{name}", spec)]
        elif "configs/suite_shapes.py" in command:
            # Without the curve over examples: that needs 16 of each of 56 classes.
            names = ("zero_shot", "heldout", "retrieval", "probe", "neighbours", "counting", "left_right")
            command = [*command, "--length", "200", "--cache", "runs/cache", "--evals", *names]
        assert exit_status(command[1:]) == 0, (command, capsys.readouterr().err)


@pytest.mark.slow
def test_its_compilations_run_or_name_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for _, _, recipe, *arguments in (command for command in commands("jclip") if command[1] == "compile"):
        if "cpu:8" in arguments:
            done = jclip_compile(*arguments, recipe=recipe)
            assert done.returncode == 0, done.stderr
            assert "fits" in done.stdout
        elif importlib.util.find_spec("libtpu") is None:
            assert "jclip[tpu]" in jclip_compile(*arguments, recipe=recipe).stderr


def test_every_file_it_names_exists() -> None:
    names = re.findall(r"`((?:jclip|configs|tools|tests|docs)/[\w/.]*)`", README) + re.findall(r"\]\(([\w/.]+)\)", README)
    assert names
    for name in names:
        assert (ROOT / name).exists(), name
    for command in commands("python"):
        assert (ROOT / command[1]).exists(), command


def test_no_number_is_left_to_fill_in() -> None:
    assert not re.search(r"@[A-Z]+@", README)


def test_its_test_command_is_the_one_that_ci_runs() -> None:
    assert "pip install -e '.[test]' && pytest" in README
    assert "pip install -e '.\\[test\\]' && pytest" in (ROOT / ".ci/run").read_text()
