"""Every recipe can be trained."""

from pathlib import Path

import pytest

from jclip.config import ConfigError, check, load

RECIPES = sorted((Path(__file__).parent.parent / "configs").glob("*.py"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_every_recipe_passes_the_check_and_says_how_it_is_run(path: Path) -> None:
    check(load(path), devices=8)
    assert f"jclip train configs/{path.name}" in path.read_text().split('"""')[1]


def test_a_recipe_has_options_of_its_own() -> None:
    config = load(RECIPES[0].parent / "clipart.py", ["--root", "elsewhere", "--optim.lr", "0.5"])
    assert config.data.source.startswith("webdataset:elsewhere/")
    assert config.optim.lr == 0.5


def test_a_wrong_number_of_devices_is_found_before_anything_is_made() -> None:
    with pytest.raises(ConfigError, match="not divisible by 7 devices"):
        check(load(RECIPES[0]), devices=7)
