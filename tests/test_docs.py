"""What the pages of docs/ show runs, and is what they say."""

import dataclasses
import re
import shlex
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from test_train import write_shard
from tiny import tiny_config

from jclip import cli, objectives
from jclip.config import Mesh, check
from jclip.data import make_run_loader
from jclip.models import MultiTower
from jclip.program import make_program
from jclip.sharding import make_mesh, to_global
from jclip.step import make_loss_and_grads

DOCS = Path(__file__).parents[1] / "docs"


def snippets(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), re.S)


@pytest.mark.slow
def test_the_commands_of_training_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(DOCS.parent / "configs")
    (tmp_path / "data" / "clipart").mkdir(parents=True)
    for i in range(6):
        write_shard(tmp_path / f"data/clipart/clipart-train-{i:05}.tar", broken=())
    fields = {"batch-size": "32", "evals": "none", "checkpoint.every": "2", "checkpoint.best": "None", "optim.warmup": "1"}
    fields |= {"model.towers.image.depth": "1", "model.towers.text.depth": "1"}
    short = [word for field, value in fields.items() for word in (f"--{field}", value)]
    fewer = {"900": "4", "675": "2", "135": "2"}  # steps
    found = [shlex.split(line) for line in re.findall(r"^jclip .*", (DOCS / "training.md").read_text(), re.M)]
    assert len(found) == 6
    for command in found:
        words = [fewer.get(word, word) for word in command[1:]]
        assert cli.main([*words, *short, *([] if "--duration" in words else ["--duration", "2"])]) == 0
    assert (tmp_path / "runs" / "cooled" / "checkpoints" / "4").is_dir()


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
    names: dict[str, Any] = {"__name__": "added"}
    exec(code, names)
    small = {"model.towers.image.patch_dropout": 0.0, "model.towers.image.depth": 1, "model.towers.text.depth": 1}
    config = tiny_config(accumulate=parts, **small)
    config = dataclasses.replace(config, objectives={"align": names["Alignment"]()})
    mesh = make_mesh(Mesh(data, 1), jax.devices()[:data])
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
