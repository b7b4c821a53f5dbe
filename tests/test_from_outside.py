"""Kinds that others add without touching the package, as docs/add shows it: a tower with inputs of its own, a source, an
evaluation, an objective and a format of weights.
"""

import ast
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from pages import PAGES, blocks

import jclip
import jclip.report.data
import jclip.report.rate
from jclip import WeightsError, config, data, embed, eval, evaluate, filter, models, objectives, pack, report, train, weights
from jclip.config import Config, ConfigError, Data, Evaluation, Model, Optim, TextTower, Tower, check, from_json, to_json

TABLES = (
    (models, "TOWERS"),
    (data, "INPUTS"),
    (data, "SCHEMES"),
    (eval, "EVALUATORS"),
    (objectives, "OBJECTIVES"),
    (weights, "FORMATS"),
)


ADDITIONS = {f"docs/add/{name}.md": 60 for name in ("tower", "source", "evaluation", "weights")} | {"docs/objectives.md": 40}
"""The pages that add something, and the lines that it may take."""


def shown(page: str) -> list[str]:
    """The blocks of code of a page that add something."""
    code = blocks(PAGES[page], "python")
    return code[-1:] if page == "docs/objectives.md" else code


@pytest.mark.parametrize("page", ADDITIONS)
def test_an_addition_is_short_and_needs_no_private_name(page: str) -> None:
    code = "\n".join(shown(page))
    assert len(code.splitlines()) <= ADDITIONS[page]
    names = [node.attr for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Attribute)]
    names += [alias.name for node in ast.walk(ast.parse(code)) if isinstance(node, ast.ImportFrom) for alias in node.names]
    assert not [name for name in names if name.startswith("_") and not name.endswith("__")]


@pytest.fixture(scope="module")
def added() -> Any:
    """The names that the pages define; their rows are taken out of the tables in the end."""
    tables = [getattr(room, name) for room, name in TABLES]
    before = [dict(table) for table in tables]
    names: dict[str, Any] = {"__name__": "page"}
    for page in ADDITIONS:
        for code in shown(page):
            exec(compile(code, page, "exec"), names)
    yield type("Added", (), names)
    for table, rows in zip(tables, before, strict=True):
        table.clear()
        table.update(rows)


def recipe(added: Any) -> Config:
    text = TextTower(context_length=8, width=32, depth=1, heads=2)
    align = added.Alignment(a="points", b="text", weight=0.1)
    return Config(
        model=Model({"points": added.PointTower(), "text": text}, embed_dim=16),
        data=Data("clouds:64"),
        optim=Optim(lr=1e-2, warmup="2"),
        objectives={"points_text": config.Contrastive("points", "text"), "align": align},
        evals={
            "spread": added.Spread("clouds:12", "points"),
            "names": config.ZeroShot("clouds:32", templates=("a {}",), image="points"),
        },
        batch_size=16,
        eval_batch_size=16,
        duration="12",
        log_every=4,
    )


@pytest.mark.slow
def test_all_of_it_is_trained_saved_evaluated_and_loaded(added: Any, tmp_path: Path) -> None:
    results = train.main(recipe(added), tmp_path / "run")
    assert (results["names/classes"], results["spread/examples"]) == (4, 12)
    assert results["spread/spread"] > 0
    assert evaluate.main(tmp_path / "run") == pytest.approx(results)
    model = jclip.load(tmp_path / "run")
    clouds = [added.Clouds(4)[i]["points"] for i in range(4)]
    z = model.embed("points", clouds)
    np.testing.assert_allclose(model.encode(model.params, "points", np.stack(clouds)), z, atol=1e-5)
    np.testing.assert_allclose(model.embed("points", [clouds[0][::-1]]), z[:1], atol=1e-5)
    assert from_json(to_json(recipe(added))) == recipe(added)


def test_weights_of_a_format_of_ones_own_come_back(added: Any, tmp_path: Path) -> None:
    model = jclip.load("ViT-tiny-test")
    weights.write_weights(tmp_path / "w", "dotted", model.config, model.params)
    again = jclip.load(tmp_path / "w")
    assert (again.config, again.objectives) == (model.config, model.objectives)
    jax.tree.map(np.testing.assert_array_equal, again.params, model.params)
    description = (tmp_path / "w" / "dotted.json").read_text()
    (tmp_path / "w" / "dotted.json").write_text(description.replace('"embed_dim": 16', '"embed_dim": 17'))
    with pytest.raises(WeightsError, match="image_projection"):
        jclip.load(tmp_path / "w")


@pytest.mark.slow
def test_a_source_of_ones_own_is_given_as_it_is(added: Any, tmp_path: Path) -> None:
    config = replace(recipe(added), data=Data("my clouds"), evals={})
    train.main(config, tmp_path / "given", source=added.Clouds(64))
    train.main(replace(config, data=Data("clouds:64")), tmp_path / "named")
    given, named = (jclip.load(tmp_path / name).params for name in ("given", "named"))
    jax.tree.map(np.testing.assert_array_equal, given, named)


@dataclass(frozen=True)
class OfNothing(Evaluation):
    """An evaluation that declares neither fields nor a time."""

    def towers(self) -> tuple[str, ...]:
        return ("image",)

    def sources(self) -> dict[str, str]:
        return {}


def test_an_evaluation_may_leave_out_its_fields_and_its_time() -> None:
    found = OfNothing()
    check(Config(evals={"nothing": found}))
    assert (dict(found.fields), found.every) == ({}, "100%")


def test_what_nobody_has_added_is_said(added: Any) -> None:
    with pytest.raises(ConfigError, match=r"type 'Cube' is unknown; use one of .*PointTower.*or import first what defines it"):
        from_json({**to_json(added.PointTower()), "type": "Cube"}, Tower)
    with pytest.raises(ConfigError, match=r"config: evals.spread: there is no tower 'dots'; towers: points, text"):
        check(replace(recipe(added), evals={"spread": added.Spread("clouds:12", "dots")}))


class Shuffled:
    """A source of somebody's own: drawn scenes, the last first."""

    classes: tuple[str, ...] = ()
    templates: tuple[str, ...] = ()

    def __init__(self) -> None:
        self.scenes = data.open_source("shapes:test?size=32&length=6")

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> data.Example:
        scene = self.scenes[len(self) - 1 - index]
        return {name: scene[name] for name in ("key", "image", "text")}

    def fingerprint(self) -> str:
        return "the last first"


def test_commands_take_a_source_as_an_object(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = Shuffled()
    embed.main("ViT-tiny-test", source, tmp_path / "own", seed=0)
    embed.main("ViT-tiny-test", "shapes:test?size=32&length=6", tmp_path / "named", seed=0)
    np.testing.assert_allclose(np.load(tmp_path / "own/image.npy")[::-1], np.load(tmp_path / "named/image.npy"), atol=1e-6)
    assert json.loads((tmp_path / "own/embed.json").read_text())["source"] == "Shuffled"
    packed = data.open_source(pack.main(source, tmp_path / "packed"))
    assert [packed[i]["text"] for i in range(6)] == [source[i]["text"] for i in range(6)]
    assert len(filter.main(source, tmp_path / "kept", config.Filter()).read_text().splitlines()) == 6
    capsys.readouterr()
    report.data.main(source)
    report.rate.main(source, seconds=0.1)
    said = capsys.readouterr().out
    assert "looked at 6" in said
    assert "decode" in said
