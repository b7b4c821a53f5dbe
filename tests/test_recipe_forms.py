"""Recipes with forms: each trains in its small ones, on drawn scenes and on shards like those of clip art."""

from dataclasses import replace
from pathlib import Path

import pytest
from test_config import FORMS
from test_train import write_shard

from jclip import train
from jclip.config import Config, load, replace_each


def shortened(config: Config, steps: int = 2) -> Config:
    """So few steps that a test can take them; of a run with stages one in each."""
    stages = {name: replace(stage, duration="1", warmup="0", batch_size=None) for name, stage in config.stages.items()}
    changes = {
        "duration": str(steps),
        "stages": stages,
        "batch_size": 16,
        "optim.warmup": "0",
        "evals": {},
        "checkpoint.best": None,
        "checkpoint.every": "100%",
        "data.workers": 0,
        "log_every": 1,
    }
    return replace_each(config, changes)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the names of clip art's shards."""
    folder = tmp_path_factory.mktemp("clipart")
    for name in ("val-00000", *(f"train-{i:05}" for i in range(6))):
        write_shard(folder / f"clipart-{name}.tar", broken=())
    return folder


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("path", "form"), [(path, form) for path, form in FORMS if form != "large"], ids=lambda value: getattr(value, "name", value)
)
def test_a_recipe_trains_in_its_small_forms(path: Path, form: str, shards: Path, tmp_path: Path) -> None:
    options = ["--form", form, *(["--data", str(shards)] if form == "clipart" else [])]
    if path.name == "distill.py":
        train.main(shortened(load(path.with_name("plain.py"), options)), tmp_path / "teacher")
        options += ["--teacher", str(tmp_path / "teacher")]
    config = shortened(load(path, options))
    train.main(config, tmp_path / "run")
    last = len(config.stages) + 2
    assert (tmp_path / "run/checkpoints" / str(last)).is_dir()
