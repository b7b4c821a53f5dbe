"""Checkpoints that stay: exact lists of steps, by the rule alone and through the loop with a scripted evaluator."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_config

from jclip import checkpoint, train
from jclip.checkpoint import Checkpoints
from jclip.config import Evaluation
from jclip.eval import EVALUATORS, Evaluator, Result
from jclip.keeping import kept, old_scores

RISES = {4: {"m": 0.1}, 8: {"m": 0.2}, 12: {"m": 0.3}, 16: {"m": 0.4}}
FALLS = {4: {"m": 0.4}, 8: {"m": 0.3}, 12: {"m": 0.2}, 16: {"m": 0.1}}
PEAKS = {4: {"m": 0.1}, 8: {"m": 0.9}, 12: {"m": 0.5}, 16: {"m": 0.2}}
STEPS = [4, 8, 12, 16]


@pytest.mark.parametrize(
    ("scores", "keep", "best", "stay"),
    [
        ({}, 1, None, [16]),
        ({}, 3, None, [8, 12, 16]),
        ({}, 9, None, [4, 8, 12, 16]),
        (RISES, 1, None, [16]),
        (RISES, 1, "m", [16]),
        (RISES, 2, "m", [12, 16]),
        (FALLS, 1, "m", [4, 16]),
        (FALLS, 2, "m", [4, 12, 16]),
        (PEAKS, 1, "m", [8, 16]),
        (PEAKS, 3, "m", [8, 12, 16]),
        ({4: {"m": 0.5}, 8: {"m": 0.5}, 12: {"m": 0.1}, 16: {}}, 1, "m", [8, 16]),  # of equal ones the later
        ({4: {"other": 9.0}, 8: {"m": -1.0}}, 1, "m", [8, 16]),  # what lacks the metric ranks last
        ({4: {"other": 9.0}, 8: {"other": 1.0}}, 1, "m", [16]),
        ({4: {"m": math.nan}, 8: {"m": -5.0}, 12: {"m": math.nan}}, 1, "m", [8, 16]),
        ({4: {"m": math.inf}, 8: {"m": 0.1}}, 1, "m", [8, 16]),
        ({4: {"m": 0.9}, 20: {"m": 1.0}}, 1, "m", [4, 16]),  # a step that is not saved cannot stay
    ],
)
def test_the_latest_and_the_best_stay(
    scores: Mapping[int, Mapping[str, float]], keep: int, best: str | None, stay: list[int]
) -> None:
    assert kept(STEPS, scores, keep=keep, best=best) == stay


@dataclass(frozen=True)
class Script(Evaluation):
    """An evaluation whose metric at each run of it is the next of a list."""

    values: tuple[float, ...]
    metric: str = "top1"
    every: str = "2"

    def towers(self) -> tuple[str, ...]:
        return ("image",)

    def sources(self) -> Mapping[str, str]:
        return {}


class Scripted(Evaluator):
    def __init__(self, config: Script, bench: Any) -> None:
        self.metric, self.values = config.metric, iter(config.values)

    def run(self, params: Any, *, details: bool = False) -> Result:
        return Result({self.metric: next(self.values)}, {})


EVALUATORS[Script] = Scripted


@pytest.mark.parametrize(
    ("values", "keep", "stay"),
    [
        pytest.param([0.1, 0.2, 0.3, 0.4], 1, [8], marks=pytest.mark.exhaustive),
        pytest.param([0.4, 0.3, 0.2, 0.1], 1, [2, 8], marks=pytest.mark.slow),
        pytest.param([0.1, 0.9, 0.5, 0.2], 1, [4, 8], marks=pytest.mark.exhaustive),
        ([0.1, 0.9, 0.5, 0.2], 2, [4, 6, 8]),
    ],
    ids=["rises", "falls", "peaks", "peaks, 2 kept"],
)
def test_the_loop_keeps_the_latest_and_the_best(tmp_path: Path, values: list[float], keep: int, stay: list[int]) -> None:
    changes = {"duration": "8", "checkpoint.every": "4", "checkpoint.keep": keep}
    config = tiny_config(evals={"seen": Script(tuple(values))}, **changes)
    train.main(config, tmp_path)
    assert Checkpoints(tmp_path, read_only=True).steps == stay
    assert json.loads((tmp_path / "evaluations.json").read_text())[str(stay[0])] == {"seen/top1": max(values)}


@pytest.mark.slow
def test_a_new_best_metric_does_not_stop_a_run_whose_checkpoints_lack_it(tmp_path: Path) -> None:
    changes = {"duration": "4", "checkpoint.every": "2", "checkpoint.keep": 1}
    train.main(tiny_config(evals={"seen": Script((0.9, 0.9), "top5")}, **changes, **{"checkpoint.best": None}), tmp_path)
    assert Checkpoints(tmp_path, read_only=True).steps == [4]
    train.main(tiny_config(evals={"seen": Script((0.5, 0.2))}, **{**changes, "duration": "8"}), tmp_path)
    assert Checkpoints(tmp_path, read_only=True).steps == [6, 8]


def test_results_that_an_older_jclip_kept_with_its_checkpoints_count_for_the_best(tmp_path: Path) -> None:
    for step, score in ((1, 0.9), (2, 0.1), (3, 0.5)):
        folder = tmp_path / "checkpoints" / str(step)
        (folder / "metrics").mkdir(parents=True)
        (folder / "metrics" / "metrics").write_text(json.dumps({"e/x": score}))
    (tmp_path / "checkpoints" / "3" / "metrics" / "metrics").write_text("{")  # damaged
    assert old_scores(tmp_path / "checkpoints", [1, 2, 3, 4]) == {1: {"e/x": 0.9}, 2: {"e/x": 0.1}}


def test_results_of_steps_that_do_not_count_any_more_are_forgotten_for_good(tmp_path: Path) -> None:
    (tmp_path / "evaluations.json").write_text(json.dumps({"10": {"e/x": 0.5}, "20": {"e/x": 0.9}}))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.steps = [10, 20]
        assert checkpoints.read_scores() == ""
        checkpoints.forget(after=10)
    assert json.loads((tmp_path / "evaluations.json").read_text()) == {"10": {"e/x": 0.5}}


def test_an_old_checkpoint_that_cannot_be_removed_is_said_and_one_that_is_gone_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(f"not permitted: {path}") if path.name == "2" else FileNotFoundError(path)

    monkeypatch.setattr(checkpoint, "_remove", refuse)
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.steps = [1, 2, 3]
        checkpoints._prune()
        (notice,) = checkpoints.notices()
        assert "checkpoints/2 could not be removed: not permitted" in notice
        assert checkpoints.poll() == "", "no save has failed, and none is tried again"
        assert checkpoints.steps == [3]
