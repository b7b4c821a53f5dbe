"""Stages: cheaper parts of a run before its last, in one history of checkpoints."""

import dataclasses
import json
import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_cli import exit_status
from tiny import tiny_config

import jclip
from jclip import evaluate, train
from jclip.checkpoint import CheckpointError, Checkpoints
from jclip.config import Config, ConfigError, MeshConfig, Stage, ZeroShot, check, make_plans, stage_configs
from jclip.data import make_run_loader, open_source
from jclip.runs import load_run
from jclip.signals import StopSignal
from jclip.tree import flatten

SMALL = Stage("4", image_size=8, context_length=6, patch_dropout=0.0, batch_size=32, lr=5e-3, warmup="1")


def staged(**changes: Any) -> Config:
    """Four steps of 32 small images and short texts, and four of 16."""
    seen = ZeroShot("shapes:test?size=16&length=50", templates=("a {}",), every="2")
    config = tiny_config(**{"evals": {"seen": seen}, "checkpoint.keep": 9, "checkpoint.every": "2"})
    config = dataclasses.replace(config, stages={"small": SMALL}, duration="4", **changes)
    return dataclasses.replace(config, init_from=dataclasses.replace(config.init_from, text_positions="extend"))


def test_a_stage_is_the_last_part_with_its_own_sizes() -> None:
    small, last = stage_configs(staged())
    assert last == staged()
    image, text = small.model.towers["image"], small.model.towers["text"]
    assert (image.size, image.patch_dropout, text.context_length) == ((8, 8), 0.0, 6)
    assert (small.batch_size, small.optim.lr, small.optim.warmup, small.duration, small.stages) == (32, 5e-3, "1", "4", {})
    assert dataclasses.replace(small.optim, lr=last.optim.lr, warmup=last.optim.warmup) == last.optim


def test_stages_follow_each_other_in_steps_and_in_the_data() -> None:
    config = staged()
    first, second = make_plans(config, 200)
    assert [(p.first, p.total, p.length, p.skipped) for p in (first, second)] == [(0, 4, 4, 0), (4, 8, 4, 4 * 32)]
    source = open_source(config.data.source)
    with make_run_loader(config, source, skipped=second.skipped) as ours, make_run_loader(config, source, start=8) as straight:
        for _ in range(2):
            assert next(ours).keys == next(straight).keys


@pytest.mark.parametrize(
    ("stage", "said"),
    [
        (Stage("4"), r"stages\.small changes nothing of the last part"),
        (Stage("4", image_size=12), r"image_size 12 is not divisible by"),
        (Stage("4", batch_size=12), r"batch_size 12 is not divisible by 8 devices"),
        (Stage("none", lr=1e-3), r'stages\.small\.duration.* "none" is not understood'),
    ],
)
def test_stages_that_cannot_be_trained_are_refused(stage: Stage, said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        train.main(dataclasses.replace(staged(), stages={"small": stage}), tmp_path)


def test_a_cooldown_has_no_stages() -> None:
    config = staged()
    optim = dataclasses.replace(config.optim, schedule="cooldown")
    init = dataclasses.replace(config.init_from, path="run", step=4, text_positions="resample")
    with pytest.raises(ConfigError, match="stages: a cooldown goes on from another run"):
        check(dataclasses.replace(config, optim=optim, init_from=init))


def arrays(workdir: Path) -> dict[int, Any]:
    """Digests of the arrays of all checkpoints of a run, by step."""
    with Checkpoints(workdir, read_only=True) as checkpoints:
        return {step: checkpoints._digests(step)["arrays"] for step in checkpoints.steps}


def cut(workdir: Path, step: int, to: Path) -> Path:
    """A copy of a run as it was after a step."""
    shutil.copytree(workdir, to)
    for later in (each for each in arrays(to) if each > step):
        shutil.rmtree(to / "checkpoints" / str(later))
    return to


def damage(folder: Path) -> None:
    """Flips bits in the middle of the largest file."""
    largest = max(folder.rglob("*"), key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 255
    largest.write_bytes(content)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of stages that nothing has interrupted."""
    workdir = tmp_path_factory.mktemp("staged") / "whole"
    train.main(staged(), workdir)
    return workdir


@pytest.mark.slow
def test_a_run_of_stages_is_one_history_and_goes_on_in_each(whole: Path, tmp_path: Path) -> None:
    lines = [line for line in map(json.loads, (whole / "metrics.jsonl").read_text().splitlines()) if "lr" in line]
    assert [line["step"] for line in lines] == list(range(1, 9))
    assert lines[0]["lr"] == pytest.approx(5e-3)  # its own warm-up of one step
    assert lines[4]["lr"] == pytest.approx(1e-2 / 3)  # and one of three, from the start
    assert jclip.load(whole, step=4).config.towers["image"].size == (8, 8)
    assert jclip.load(whole).config.towers["image"].size == (16, 16)
    assert list(arrays(whole)) == [2, 4, 6, 8]
    for last in (2, 4, 6):  # in the first, between both, and in the second
        parts = cut(whole, last, tmp_path / str(last))
        train.main(staged(), parts)
        assert arrays(parts) == arrays(whole)


@pytest.mark.slow
def test_the_first_stage_is_the_run_that_its_configuration_says(whole: Path, tmp_path: Path) -> None:
    train.main(stage_configs(staged())[0], tmp_path)
    assert arrays(tmp_path) == {step: found for step, found in arrays(whole).items() if step <= 4}


@pytest.mark.slow
def test_evaluations_and_pages_go_on_over_the_border(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = json.loads((whole / "evaluations.json").read_text())
    assert list(kept) == ["2", "4", "6", "8"]
    for step in (4, 8):  # of small images and short texts, and of the others
        assert evaluate.main(whole, step=step, out=tmp_path / f"{step}.json") == pytest.approx(kept[str(step)])
    assert exit_status(["info", str(whole)]) == 0
    assert re.search(r"image size +16 ", capsys.readouterr().out)
    assert (
        exit_status(["report", *(str(tmp_path / f"{step}.json") for step in (4, 8)), "--html", str(tmp_path / "page.html")]) == 0
    )
    assert "top1" in (tmp_path / "page.html").read_text()


@pytest.mark.slow
def test_the_best_of_an_earlier_stage_is_kept(tmp_path: Path) -> None:
    config = staged(checkpoint=dataclasses.replace(staged().checkpoint, keep=1))
    train.main(config, tmp_path)
    kept = json.loads((tmp_path / "evaluations.json").read_text())
    best = max(kept.values(), key=lambda values: values["seen/top1"])
    assert {max(values["seen/top1"] for step, values in kept.items() if int(step) in arrays(tmp_path))} == {best["seen/top1"]}


@pytest.mark.slow
def test_damage_to_the_end_of_a_stage_is_reported_with_a_way_on(whole: Path, tmp_path: Path) -> None:
    parts = cut(whole, 4, tmp_path / "parts")
    damage(parts / "checkpoints/4/params")
    with pytest.raises(CheckpointError, match=r"checkpoints/4 is damaged: .*; --resume-from 2 goes on from the one before"):
        train.main(staged(), parts)
    train.main(staged(), parts, resume_from=2)
    assert arrays(parts) == arrays(whole)

    later = cut(whole, 6, tmp_path / "later")
    damage(later / "checkpoints/6/params")
    with pytest.raises(CheckpointError, match=r"checkpoints/6 is damaged: .*; --resume-from 4 goes on from the end of the stage"):
        train.main(staged(), later)
    assert "small" in json.loads((later / "config.json").read_text())["stages"]


@pytest.mark.slow
def test_a_stage_goes_on_from_the_one_before_on_another_mesh(whole: Path, tmp_path: Path) -> None:
    parts = cut(whole, 4, tmp_path / "parts")
    train.main(dataclasses.replace(staged(), mesh=MeshConfig(data=2, fsdp=4)), parts)
    losses = [
        [line["loss"] for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) if "loss" in line]
        for run in (whole, parts)
    ]
    np.testing.assert_allclose(*losses, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("evaluated", [True, False])
def test_a_signal_in_the_last_step_of_a_stage_is_heard(
    evaluated: bool, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = StopSignal.after_step

    def after_step(stop: StopSignal, step: int) -> bool:
        heard = asked(stop, step)
        if step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return heard

    without = {"evals": {}, "checkpoint": dataclasses.replace(staged().checkpoint, best=None)}
    config = staged() if evaluated else staged(**without)
    with monkeypatch.context() as patch:
        patch.setattr(StopSignal, "after_step", after_step)
        train.main(config, tmp_path)
    assert "stopped after step 4, which is saved" in capsys.readouterr().out
    assert list(arrays(tmp_path)) == [2, 4]
    train.main(config, tmp_path)
    said = capsys.readouterr().out
    assert ("evaluations of step 4 that were not finished come first: seen" in said) == evaluated
    assert ("stage small: steps 1 to 4" in said) == evaluated  # nothing of it is left to do without them
    assert "stage last: steps 5 to 8" in said
    assert "steps are done" not in said
    assert arrays(tmp_path) == arrays(whole)


@pytest.mark.slow
def test_a_stage_begins_with_the_parameters_of_the_one_before(tmp_path: Path) -> None:
    frozen = dataclasses.replace(staged().optim, lr_rules=(("image/.*|text/.*", 0.0), (".*", 1.0)))
    train.main(staged(optim=frozen), tmp_path)
    before, after = (flatten(load_run(tmp_path, step)[2]) for step in (4, 8))
    for path in before:
        if path.startswith(("image/", "text/")) and not path.endswith("pos_embed"):
            np.testing.assert_array_equal(before[path], after[path], err_msg=path)
    np.testing.assert_array_equal(after["text/pos_embed"][:6], before["text/pos_embed"])
    assert after["text/pos_embed"].shape == (8, 32)
    assert after["image/pos_embed"].shape == (5, 32)


@pytest.mark.slow
def test_a_run_that_went_back_before_a_border_does_not_go_back_again(tmp_path: Path) -> None:
    train.main(staged(), tmp_path)
    for _ in range(2):  # as a restart loop would
        train.main(staged(), tmp_path, resume_from=2)
        with Checkpoints(tmp_path, read_only=True) as checkpoints:
            assert checkpoints.steps == [2, 4, 6, 8]
            assert [checkpoints.record(step).get("resumed_from") for step in checkpoints.steps] == [None, 2, 2, 2]
        assert len(list((tmp_path / "set_aside").iterdir())) == 3
    longer = dataclasses.replace(staged(), stages={"small": dataclasses.replace(SMALL, duration="5")}, duration="9")
    with pytest.raises(CheckpointError, match="the stages before had 4 steps when this checkpoint was saved, and have 5 now"):
        train.main(longer, tmp_path)
