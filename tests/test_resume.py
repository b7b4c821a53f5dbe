"""Going on: from a damaged checkpoint, with other data or options, and what is said of it."""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import tiny_config

from jclip import train
from jclip.checkpoint import CheckpointError, Checkpoints
from jclip.config import Model
from jclip.config.same import model_changes
from jclip.lock import LockedWorkdir

ORBAX = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # what its errors leave behind
PLAIN: dict[str, Any] = {"evals": {}, "checkpoint.best": None, "checkpoint.keep": 3}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workdir with the checkpoints 4, 8 and 12; to be read."""
    workdir = tmp_path_factory.mktemp("run")
    train.main(tiny_config(**PLAIN), workdir)
    return workdir


@pytest.fixture
def workdir(run: Path, tmp_path: Path) -> Path:
    shutil.copytree(run, tmp_path, dirs_exist_ok=True)
    return tmp_path


def go_on(workdir: Path, resume_from: int | None = None, **changes: Any) -> None:
    train.main(tiny_config(**{**PLAIN, **changes}), workdir, resume_from=resume_from)


def steps(workdir: Path) -> list[int]:
    return Checkpoints(workdir, read_only=True).steps


def flip(path: Path) -> None:
    """Changes a byte in the middle of the largest file below a path."""
    file = max((file for file in path.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0x10
    file.write_bytes(data)


@ORBAX
def test_a_damaged_checkpoint_is_refused_and_the_last_whole_one_is_gone_on_from(
    workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flip(workdir / "checkpoints" / "12" / "opt_state")
    (workdir / "checkpoints" / "8" / "params" / "manifest.ocdbt").unlink()
    with pytest.raises(CheckpointError) as error:
        go_on(workdir)
    message = str(error.value)
    assert f"checkpoint {workdir}/checkpoints/12 is damaged: " in message
    assert "the last whole one is step 4: --resume-from 4 goes on from there" in message
    assert "\n" not in message
    with pytest.raises(CheckpointError, match=r"--resume-from 5: .* has no such checkpoint; it has 4, 8, 12"):
        go_on(workdir, resume_from=5)

    go_on(workdir, resume_from=4)
    assert "resuming after step 4" in capsys.readouterr().out
    assert steps(workdir) == [4, 8, 12]
    assert sorted(path.name for path in (workdir / "set_aside").iterdir()) == ["12", "8"]
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 13))

    go_on(workdir, resume_from=4)  # the same command again, as after an interruption, does not begin anew
    assert "resuming after step 12" in capsys.readouterr().out
    flip(workdir / "checkpoints" / "12" / "params")  # but for what came from step 4 it does, where that is damaged in its turn
    go_on(workdir, resume_from=4)
    assert "resuming after step 4" in capsys.readouterr().out


@ORBAX
def test_where_no_checkpoint_is_whole_it_is_said(workdir: Path) -> None:
    for step in steps(workdir):
        (workdir / "checkpoints" / str(step) / "digests" / "digests.json").write_text("{")
    with pytest.raises(CheckpointError, match="no earlier one is whole; start anew in another --workdir"):
        go_on(workdir)


def test_what_does_not_change_the_parameters_may_change_and_is_listed(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changes = {
        "model.attention": "plain",
        "model.remat": "nothing_saveable",
        "model.dtype": "bfloat16",
        "model.scan": True,
        "model.towers.image.patch_dropout": 0.5,
        "model.towers.text.dropout": 0.1,
    }
    go_on(workdir, duration="14", **changes)
    out = capsys.readouterr().out
    for field in changes:
        assert f"\n  {field}: " in out
    assert steps(workdir) == [8, 12, 14]


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("model.towers.image.patch_size", 4, "model.towers.image.patch_size: 8 -> 4"),
        ("model.towers.image.activation", "quick_gelu", "model.towers.image.activation: 'gelu' -> 'quick_gelu'"),
        ("model.towers.text.tokenizer.clean", "canonicalize", "model.towers.text.tokenizer.clean: 'lower' -> 'canonicalize'"),
        ("model.embed_dim", 8, "model.embed_dim: 16 -> 8"),
    ],
)
def test_a_refusal_names_the_fields(run: Path, field: str, value: Any, said: str) -> None:
    with pytest.raises(CheckpointError, match="holds another model") as error:
        go_on(run, **{field: value})
    assert said in str(error.value)


@pytest.mark.slow
def test_other_data_batches_and_schedule_are_said_with_their_effect(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    go_on(workdir, **{"data.source": "shapes:train?size=16&length=120", "batch_size": 8, "duration": "2ep"})
    out = capsys.readouterr().out
    assert "jclip: shapes:train?size=16&length=120: 120 examples, an epoch is 15.0 steps" in out
    assert "the data has 120 examples instead of 200" in out
    # 12 steps of 16 examples of 200 were seen; 12 of 8 of 120 is where the order goes on
    assert (
        "batches of 8 instead of 16: 0.96 epochs were seen, and the order goes on at 0.80: what lies between is seen again" in out
    )
    assert "the run is 30 steps long instead of 12" in out
    # lr 1e-2, warm-up of 3 steps: the cosine of 12 steps has come to 0, that of 30 is at (12 - 3) / 27 of its half wave
    rate = 1e-2 * 0.5 * (1 + np.cos(np.pi * 9 / 27))
    assert f"the learning rate of step 13 is {rate:.3g}, where the schedule of before gave 0" in out


def test_the_same_number_of_other_examples_is_noticed(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    go_on(workdir, **{"data.source": "shapes:train?size=16&length=200&seed=1"})
    assert "the data is other than it was (examples), in the same number of examples" in capsys.readouterr().out


def test_nothing_is_said_where_nothing_has_changed(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    go_on(workdir)
    assert "another configuration" not in capsys.readouterr().out


def damage_metrics(workdir: Path) -> None:
    path = workdir / "metrics.jsonl"
    lines = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([lines[0], b'{"step": 2, "\xff\xfe', b"[1]", *lines[2:], b'{"step": 1', b""]))


def test_other_damaged_files_are_named_and_do_not_stop_a_resume(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damage_metrics(workdir)
    (workdir / "config.json").write_text('{"format": 2, "type": "Con')
    (workdir / "evaluations.json").write_bytes(b'{"4": {"seen\xff')
    go_on(workdir, duration="13")
    out = capsys.readouterr().out
    assert re.search("2 lines of .*metrics.jsonl are damaged, and are dropped", out)
    assert "evaluations.json is damaged" in out
    assert "config.json is missing or damaged; it is written anew" in out
    json.loads((workdir / "config.json").read_text())
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines][-2:] == [12, 13]


def test_factors_of_channels_may_have_begun_elsewhere_but_not_come_or_go() -> None:
    def model(layer_scale: float | None) -> Model:
        return tiny_config(**{"model.towers.image.layer_scale": layer_scale}).model

    assert model_changes(model(0.1), model(0.2)) == []
    for before, now in ((None, 0.1), (0.1, None)):
        assert model_changes(model(before), model(now)) == [f"model.towers.image.layer_scale: {before} -> {now}"]


def test_lines_that_were_never_to_be_written_are_not_lost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    go_on(tmp_path, log_every=100)
    go_on(tmp_path, resume_from=4, log_every=1)
    assert "they are lost" not in capsys.readouterr().out


def test_lost_lines_of_metrics_are_reported(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = workdir / "metrics.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:6]))
    go_on(workdir, duration="13")
    assert "metrics.jsonl has no line of the steps 7 to 12: they are lost" in capsys.readouterr().out
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["step"] for line in lines][-2:] == [6, 13]


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl", "evaluations.json", "run.lock"])
def test_a_pipe_in_place_of_a_file_is_named_and_not_waited_for(
    workdir: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (workdir / name).unlink(missing_ok=True)
    os.mkfifo(workdir / name)
    if name == "run.lock":
        with pytest.raises(LockedWorkdir, match=r"run\.lock cannot be read .*no regular file.*; remove it"):
            go_on(workdir)
        return
    go_on(workdir)
    assert re.search(rf"{name}.*(written anew|no longer written|is damaged|no regular file)", capsys.readouterr().out)
