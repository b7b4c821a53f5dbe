"""configs/xclip.py: each option of x-clip is an objective, and the weights are those of x-clip."""

from pathlib import Path

import pytest

from jclip.config import Config, Contrastive, MultiView, SimSiam, check, load

RECIPE = Path(__file__).parents[2] / "configs" / "xclip.py"


def made(*options: str) -> Config:
    config = load(RECIPE, options)
    check(config)
    return config


@pytest.mark.parametrize("size", [[], ["--form", "clipart"], ["--form", "large"]], ids=["shapes", "clipart", "large"])
def test_the_snippet_of_the_readme_is_the_default(size: list[str]) -> None:
    config = made(*size)
    pair, ssl = config.objectives["image_text"], config.objectives["visual_ssl"]
    assert isinstance(pair, Contrastive)
    assert isinstance(ssl, SimSiam)
    assert (pair.decoupled, pair.extra_projections, pair.weight, ssl.weight) == (True, True, 0.95, 0.05)
    assert config.model.towers["image"].patch_dropout == 0.5
    assert config.objectives.keys() == {"image_text", "visual_ssl"}


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (["--no-use-visual-ssl"], {"image_text"}),
        (["--use-all-token-embeds"], {"image_text", "visual_ssl", "tokens"}),
        (["--use-mlm", "--no-use-visual-ssl"], {"image_text", "mlm"}),
        (["--sim-reg-loss-weight", "0.5"], {"image_text", "visual_ssl", "sim_reg"}),
        (["--use-mlm", "--multiview-loss-weight", "0.1"], {"image_text", "visual_ssl", "mlm"}),
    ],
)
def test_every_option_is_an_objective_and_the_rest_of_the_weight_is_the_pair_s(options: list[str], names: set[str]) -> None:
    config = made(*options)
    assert config.objectives.keys() == names
    weights = {name: how.weight for name, how in config.objectives.items()}
    pair = config.objectives["image_text"]
    further = pair.weight * pair.further if isinstance(pair, MultiView) else 0.0
    total = sum(weight for name, weight in weights.items() if name not in ("tokens", "sim_reg")) + further
    assert total == pytest.approx(1)
    assert further == pytest.approx(0.1 if "--multiview-loss-weight" in options else 0)
