"""Stages: cheaper parts of a run before its last, in one history of checkpoints."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import tiny_config

import jclip
from jclip import train
from jclip.checkpoint import CheckpointError, Checkpoints
from jclip.config import Config, ConfigError, Stage, check, make_plans, stage_configs
from jclip.data import make_run_loader, open_source
from jclip.runs import load_run
from jclip.tree import flatten

SMALL = Stage("4", image_size=8, context_length=6, patch_dropout=0.0, batch_size=32, lr=5e-3, warmup="1")


def staged(**changes: Any) -> Config:
    """Four steps of 32 small images and short texts, and four of 16."""
    config = tiny_config(**{"evals": {}, "checkpoint.best": None, "checkpoint.keep": 9, "checkpoint.every": "2"})
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


@pytest.mark.slow
def test_a_run_of_stages_is_one_history_and_goes_on_in_each(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train.main(staged(), whole)
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 9))
    assert lines[0]["lr"] == pytest.approx(5e-3)  # its own warm-up of one step
    assert lines[4]["lr"] == pytest.approx(1e-2 / 3)  # and one of three, from the start
    assert jclip.load(whole, step=4).config.towers["image"].size == (8, 8)
    assert jclip.load(whole).config.towers["image"].size == (16, 16)

    with Checkpoints(whole, read_only=True) as checkpoints:
        assert checkpoints.steps == [2, 4, 6, 8]
        digests = {step: checkpoints._digests(step) for step in checkpoints.steps}
    for last in (2, 4, 6):  # in the first, between both, and in the second
        shutil.copytree(whole, parts)
        for step in (s for s in (2, 4, 6, 8) if s > last):
            shutil.rmtree(parts / "checkpoints" / str(step))
        train.main(staged(), parts)
        with Checkpoints(parts, read_only=True) as checkpoints:
            assert {step: checkpoints._digests(step)["arrays"] for step in checkpoints.steps} == {
                step: found["arrays"] for step, found in digests.items()
            }
        shutil.rmtree(parts)


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
