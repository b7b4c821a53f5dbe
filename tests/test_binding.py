"""Binding by images: what was never seen together meets, and towers that no objective reads stay as they are."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from tiny import tiny_config

import jclip
from jclip.config import Config, ConfigError, Contrastive, MeshConfig, ZeroShot, check, load, replace_each
from jclip.data import Mixture, open_data
from jclip.program import make_program
from jclip.sharding import make_mesh
from jclip.train import main
from jclip.tree import flatten

ROOT = Path(__file__).parents[1]
LOCKED = (("(image|text)(_projection)?/.*", 0.0), (".*", 1.0))


def bound(rules: Any = LOCKED) -> Config:
    """Depth bound to a locked tower of images; no objective reads texts, which an evaluation asks with."""
    base = tiny_config(**{"data.fields": {"depth": "image"}, "optim.lr_rules": rules, "duration": "4", "checkpoint.best": None})
    towers = {**base.model.towers, "depth": base.model.towers["image"]}
    evals = {"depth": ZeroShot("shapes:test?size=16&length=20", templates=("a {}",), image="depth", fields={"depth": "image"})}
    return replace_each(
        base, {"model.towers": towers, "objectives": {"image_depth": Contrastive("image", "depth")}, "evals": evals}
    )


def test_a_locked_tower_that_no_objective_reads_stays_for_evaluations(tmp_path: Path) -> None:
    config = bound()
    assert config.idle_towers() == {"text"}
    results = main(config, tmp_path)
    assert "depth/top1" in results
    program = make_program(config, make_mesh(MeshConfig(1, 1), jax.devices()[:1]), warmup_steps=1, total_steps=4)
    before, after = flatten(jax.device_get(program.init().params)), flatten(jclip.load(tmp_path).params)
    assert before.keys() == after.keys()
    for path, leaf in before.items():
        if path.startswith(("image/", "image_projection", "text")):
            np.testing.assert_array_equal(leaf, after[path], err_msg=path)
    assert not np.array_equal(before["depth/patch_embed/kernel"], after["depth/patch_embed/kernel"])


def test_one_that_is_not_locked_or_not_whole_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"none trains the tower text; .* begin with \('text\(_projection\)\?/\.\*', 0\.0\)"):
        check(bound((("image(_projection)?/.*", 0.0), (".*", 1.0))), devices=1)
    half = bound((("(image|text)/.*|image_projection/.*", 0.0), (".*", 1.0)))
    check(half, devices=1)
    with pytest.raises(ConfigError, match="tower text is read by no objective; freeze it"):
        make_program(half, make_mesh(MeshConfig(1, 1), jax.devices()[:1]), warmup_steps=1, total_steps=4)


class Shuffled:
    """Scenes with the sounds of others."""

    classes = ()
    templates = ()

    def __init__(self, scenes: Any) -> None:
        self.scenes = scenes

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> dict[str, Any]:
        here, there = self.scenes[index], self.scenes[(7919 * index + 12345) % len(self)]
        return {"key": here["key"], "image": here["image"], "sound": there["sound"]}

    def fingerprint(self) -> str:
        return f"shuffled {self.scenes.fingerprint()}"


@pytest.mark.exhaustive
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_sounds_are_named_by_texts_that_they_never_met_and_by_chance_where_they_belong_to_others(
    seed: int, tmp_path: Path
) -> None:
    config = replace_each(load(ROOT / "configs/imagebind.py", []), {"seed": seed, "duration": "300"})
    data = open_data(config)
    assert isinstance(data, Mixture)
    mixed = dataclasses.replace(data, sources={**data.sources, "heard": Shuffled(data.sources["heard"])})
    chance = 1 / 56
    assert main(config, tmp_path / "true", source=data)["emergent/top1"] > 5 * chance
    assert main(config, tmp_path / "shuffled", source=mixed)["emergent/top1"] < 3 * chance


def test_the_large_form_binds_the_sensors_that_have_shards() -> None:
    sensors = {"sound": "20", "depth": "5", "thermal": "10", "imu": "5"}
    named = [word for name in sensors for word in (f"--{name}", f"/data/{name}/{{00..09}}.tar")]
    config = load(ROOT / "configs/imagebind.py", ["--large", "--weights", "ViT-tiny-test", *named])
    check(config, devices=8)
    assert [*config.data.sources] == [*config.data.optional] == [*sensors]
    for name, portion in config.data.sources.items():
        assert portion.source == f"webdataset:/data/{name}/{{00..09}}.tar"
        assert [other for other in sensors if portion.fields.get(other) != ""] == [name]
        assert config.objectives[f"image_{name}"].logit_scale == float(sensors[name])  # type: ignore[attr-defined]
    assert config.idle_towers() == {"text"}
    few = load(ROOT / "configs/imagebind.py", ["--large", "--weights", "ViT-tiny-test", "--depth", ""])
    assert [*few.data.sources] == ["sound"]
