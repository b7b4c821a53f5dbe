"""tools/compare_objectives.py: every variant is a configuration, and the table says what the runs of its file are."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from jclip.config import check

TOOLS = Path(__file__).parents[1] / "tools"


@pytest.fixture(scope="module")
def tool() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(TOOLS))
        import compare_objectives  # type: ignore[import-not-found, unused-ignore]

        yield compare_objectives
        sys.modules.pop("compare_objectives")


@pytest.mark.parametrize(("form", "data"), [("shapes", ""), ("clipart", "data")])
def test_every_variant_can_be_trained_and_changes_the_plain_recipe(tool: Any, form: str, data: str) -> None:
    plain = tool.make_config(form, data, "plain", 300)
    for variant in (*tool.CHANGES, *(tool.WITH_FIELDS if form == "clipart" else ()), *tool.RECIPES):
        config = tool.make_config(form, data, variant, 300, seed=1, teacher="ViT-B-32")
        check(config)
        assert (config.seed, config.optim.warmup) == (1, plain.optim.warmup)
        assert config.evals == plain.evals
        stages = [int(part.duration) for part in (*config.stages.values(), config)]
        assert stages == ([300] if variant != "clipa_l16" else [200, 100] if form == "shapes" else [240, 60])
        parts = [(c.model, c.views, c.objectives, c.optim, c.data, c.stages) for c in (config, plain)]
        assert parts[0] != parts[1] or (form, variant) == ("shapes", "text in both directions")  # which is plain there


def test_the_table_has_means_and_deviations_of_seeds(tool: Any, tmp_path: Path) -> None:
    def row(variant: str, seed: int, budget: str, steps: int, top1: float, seconds: float) -> str:
        results = dict.fromkeys(tool.METRICS["shapes"], top1)
        facts = {"form": "shapes", "variant": variant, "seed": seed, "budget": budget, "steps": steps}
        return json.dumps({**facts, "results": results, "step_seconds": seconds})

    lines = [row("plain", seed, "steps", 300, 0.5 + seed / 10, 1.0) for seed in range(3)]
    lines += [row("slip", 0, "steps", 300, 0.8, 3.0), row("slip", 0, "seconds", 100, 0.4, 3.0)]
    lines += [row("ema", 0, "steps", 300, 0.7, 2.0)]
    (tmp_path / "r.jsonl").write_text("\n".join(lines) + "\n")
    table = tool.Comparison("shapes", tmp_path / "r.jsonl", "", tmp_path).table()
    plain, slip, ema = zip(*(column.cells for column in table.columns), strict=True)
    assert plain == ("plain", "1.00", "3", *["60.0 ± 10.0"] * 3, "as many", "", "", "")
    assert slip == ("slip", "3.00", "1", *["80.0"] * 3, "100", *["40.0"] * 3)
    assert ema[6:] == ("not run", "", "", "")


def test_the_table_in_markdown_has_its_cells(tool: Any) -> None:
    table = tool.Table("", "steps")
    table.add_row("plain", "300")
    assert tool.markdown(table) == "|  | steps |\n| --- | --- |\n| plain | 300 |"
