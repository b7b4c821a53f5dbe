"""The pages: all that they show runs, once, and what docs/objectives.md shows is what it says."""

import dataclasses
import os
import re
import tomllib
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax.experimental import topologies
from pages import MAKERS, PAGES, ROOT, SHOWN, Reader, blocks, commands, files
from test_cli import exit_status
from test_compile import jclip_compile
from tiny import tiny_config

from jclip import objectives
from jclip.cli import COMMANDS
from jclip.config import MeshConfig, check, load
from jclip.data import make_run_loader
from jclip.models import MultiTower
from jclip.program import make_program
from jclip.sharding import make_mesh, to_global
from jclip.step import make_loss_and_grads


def marked(page: str) -> Any:
    """Fine-tuning needs runs and weights made first, and test_init_from.py runs its recipes on tiny models."""
    runs = commands(PAGES[page], "jclip") or any("runs/" in code for code in blocks(PAGES[page], "python"))
    marks = [pytest.mark.slow] * bool(runs) + [pytest.mark.exhaustive] * (page == "docs/tutorials/fine_tuning.md")
    return pytest.param(page, marks=marks)


SHOWING = [page for page, text in PAGES.items() if commands(text, "jclip") or blocks(text, "python")]


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    return Reader(tmp_path_factory.mktemp("home"))


@pytest.fixture
def at_home(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> Reader:
    monkeypatch.chdir(reader.home)
    monkeypatch.setattr(objectives, "OBJECTIVES", dict(objectives.OBJECTIVES))
    return reader


@pytest.mark.parametrize("page", [marked(page) for page in SHOWING])
def test_the_commands_and_the_python_of_a_page_run(page: str, at_home: Reader) -> None:
    for command in commands(PAGES[page], "jclip"):
        if command[1] != "compile":
            at_home.run(command)
    names: dict[str, Any] = {"__name__": "page"}
    for code in blocks(PAGES[page], "python"):
        at_home.make(code)
        exec(compile(code, page, "exec"), names)


@pytest.mark.slow
def test_a_cooldown_takes_up_the_step_that_the_page_names(at_home: Reader) -> None:
    at_home.make("runs/cooled")
    assert Path("runs/cooled/checkpoints/4").is_dir()


def test_the_recipe_of_the_page_is_sound_and_short(at_home: Reader) -> None:
    code = files(PAGES["docs/tutorials/own_data.md"])["my_recipe.py"]
    assert len(code.splitlines()) < 20
    config = load("my_recipe.py", ["--root", "elsewhere", "--optim.lr", "1e-3"])
    check(config, devices=8)
    assert (config.data.source, config.optim.lr) == ("webdataset:elsewhere/{00000..00008}.tar", 1e-3)


def test_every_command_of_jclip_is_shown() -> None:
    assert {command[1] for command in SHOWN} == COMMANDS.keys()


def test_what_pages_read_some_command_makes() -> None:
    for page, text in PAGES.items():
        shown = "\n".join([*blocks(text, "python"), *(" ".join(command) for command in commands(text, "jclip"))])
        assert set(re.findall(r"runs/[\w.]*\w", shown)) <= MAKERS.keys(), page


COMPILED = [command for command in SHOWN if command[1] == "compile"]


@pytest.mark.slow
def test_compilations_for_a_cpu_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    found = [command for command in COMPILED if "cpu:8" in command]
    assert found
    for _, _, recipe, *arguments in found:
        done = jclip_compile(*arguments, recipe=recipe)
        assert done.returncode == 0, done.stderr
        assert "fits" in done.stdout


def test_compilations_for_a_tpu_come_as_far_as_its_compiler(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The compiler itself would take minutes; without the extra the commands name it."""
    monkeypatch.chdir(ROOT)

    def compiler(*, topology_name: str, **_: object) -> None:
        raise ValueError(f"the compiler is asked for {topology_name}")

    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setattr(topologies, "get_topology_desc", compiler)
    found = [command for command in COMPILED if "cpu:8" not in command]
    assert found
    for command in found:
        assert exit_status(command[1:]) == 1
        error = capsys.readouterr().err
        assert "the compiler is asked for" in error or "pip install 'jclip[tpu]'" in error, error


def test_extras_that_pages_install_exist() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    shown = re.findall(r"'(?:\.|jclip)\[([\w,]+)\]'", "\n".join(PAGES.values()))
    assert shown
    assert {extra for names in shown for extra in names.split(",")} <= extras.keys()


def test_programs_that_pages_show_exist() -> None:
    """test_examples.py runs the examples."""
    shown = {words for text in PAGES.values() for words in re.findall(r"python ((?:tools|examples)/[\w/]+\.py)", text)}
    assert shown
    for path in shown:
        assert (ROOT / path).exists(), path


def snippets(page: str) -> list[str]:
    return blocks(PAGES[f"docs/{page}"], "python")


def test_the_views_of_the_page_are_a_configuration() -> None:
    names: dict[str, Any] = {}
    exec(snippets("objectives.md")[0], names)
    check(names["slip"])
    assert set(names["slip"].inputs()) == {"image", "text", "image@1", "image@2"}
    exec(next(code for code in snippets("objectives.md") if "stored=" in code), names)
    check(names["taught"])
    assert {name for name, view in names["taught"].inputs().items() if view.stored} == {"image@teacher", "text@teacher"}


def test_the_captioner_of_the_page_is_a_configuration() -> None:
    names: dict[str, Any] = {}
    exec(next(code for code in snippets("objectives.md") if "Caption" in code), names)
    check(names["coca"])
    assert names["coca"].captioners() == {"caption": names["Caption"]()}


@pytest.mark.parametrize(("data", "parts"), [(2, 4)])
def test_the_objective_that_the_page_adds_is_its_formula_on_a_mesh_and_in_parts(
    data: int, parts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objectives, "OBJECTIVES", dict(objectives.OBJECTIVES))
    code = snippets("objectives.md")[-1]
    assert len([line for line in code.splitlines() if line.strip()]) <= 40
    names: dict[str, Any] = {"__name__": "page"}
    exec(code, names)
    small = {"model.towers.image.patch_dropout": 0.0, "model.towers.image.depth": 1, "model.towers.text.depth": 1}
    config = tiny_config(accumulate=parts, **small)
    config = dataclasses.replace(config, objectives={"align": names["Alignment"]()})
    mesh = make_mesh(MeshConfig(data, 1), jax.devices()[:data])
    params = make_program(config, mesh, warmup_steps=1, total_steps=2).init().params
    with make_run_loader(config) as loader:
        batch = next(loader).arrays
    loss, metrics, *_ = jax.jit(make_loss_and_grads(config, mesh))(params, to_global(batch, mesh), jax.random.key(0))
    encoded = jax.jit(MultiTower(config.model).apply)({"params": params}, batch)
    za, zb = (np.asarray(encoded[view].z, np.float64) for view in ("image", "text"))
    apart = [((z[:, None] - z[None]) ** 2).sum(2) for z in (za, zb)]
    want = np.mean([np.log(np.exp(-2 * distance).mean()) for distance in apart])
    assert float(metrics["align/uniformity"]) == pytest.approx(want, rel=1e-4)
    assert float(loss) == pytest.approx(want + ((za - zb) ** 2).sum(1).mean(), rel=1e-4)
