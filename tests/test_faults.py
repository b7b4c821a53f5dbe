"""Faults around a run, which do not end it and are said: full disks, broken writers, divergence."""

import errno
import io
import json
import os
import re
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import pytest
from rich.console import Console
from tiny import tiny_config

from jclip import checkpoint, train
from jclip.checkpoint import CheckpointError, Checkpoints
from jclip.lock import LockedWorkdir
from jclip.metrics import Guarded, JsonlWriter, NonFiniteLoss, Terminal, TrainLog, Values, open_writers
from jclip.program import Program

PLAIN: dict[str, Any] = {"evals": {}, "checkpoint.best": None, "checkpoint.keep": 9}


class FullDisk:
    """Stand-in for Orbax's function that saves: some of its calls fail, at once or in the background."""

    def __init__(self, fail: set[int], at_once: bool) -> None:
        self.fail, self.at_once, self.calls = fail, at_once, 0
        self.save = checkpoint.ocp.save_checkpointables_async

    def __call__(self, path: Path, *args: Any, **options: Any) -> Any:
        self.calls += 1
        if self.calls not in self.fail:
            return self.save(path, *args, **options)
        path.with_name(f"{path.name}.orbax-checkpoint-tmp").mkdir()
        if self.at_once:
            self.result()
        return self

    def result(self) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/w/checkpoints")


@pytest.mark.parametrize("at_once", [pytest.param(True, marks=pytest.mark.slow), False])
def test_a_save_that_fails_is_said_and_tried_again_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], at_once: bool
) -> None:
    monkeypatch.setattr(checkpoint.ocp, "save_checkpointables_async", FullDisk({2}, at_once))
    train.main(tiny_config(**PLAIN, **{"checkpoint.every": "6", "duration": "18"}), tmp_path)
    out = capsys.readouterr().out
    (line,) = [line for line in out.splitlines() if "could not be saved" in line]
    assert f"step 12 could not be saved in {tmp_path}/checkpoints: [Errno 28] No space left on device" in line
    again = re.search(r"the checkpoints before stay, training goes on, and it is tried again after step (\d+)$", line)
    assert again is not None
    assert int(again[1]) in ((13,) if at_once else range(13, 18))  # in the background it may be noticed a few steps later
    assert Checkpoints(tmp_path, read_only=True).steps == [6, int(again[1]), 18]
    assert not list((tmp_path / "checkpoints").glob("*tmp*"))


@pytest.mark.slow
def test_a_last_save_that_fails_is_tried_once_more_and_then_the_end_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint.ocp, "save_checkpointables_async", FullDisk({3}, at_once=False))
    train.main(tiny_config(**PLAIN), tmp_path / "once")
    assert Checkpoints(tmp_path / "once", read_only=True).steps == [4, 8, 12]
    monkeypatch.setattr(checkpoint.ocp, "save_checkpointables_async", FullDisk({3, 4, 5, 6, 7, 8, 9}, at_once=False))
    with pytest.raises(CheckpointError, match=r"No space left on device.*; the last whole checkpoint is 8; make room"):
        train.main(tiny_config(**PLAIN), tmp_path / "always")
    assert Checkpoints(tmp_path / "always", read_only=True).steps == [4, 8]


def test_a_divergence_in_the_last_update_is_not_saved_as_success(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # the loss of step 1 is finite, and its update is not: 10 x 1e38 is infinite in f32; no configuration may ask for so much
    monkeypatch.setattr("jclip.program.make_schedule", lambda *args, **kwargs: lambda count: jnp.float32(1e38))
    changes = {"optim.lr_rules": ((".*", 10.0),), "optim.warmup": "0", "duration": "1"}
    with pytest.raises(NonFiniteLoss, match=r"step 1: its update has made \d+ arrays infinite or no number, such as "):
        train.main(tiny_config(**PLAIN, **changes), tmp_path)
    assert Checkpoints(tmp_path, read_only=True).steps == []


@pytest.mark.slow
def test_a_run_whose_workdir_was_taken_over_while_it_was_paused_writes_nothing_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "checkpoints" / "8.orbax-checkpoint-tmp" / "params"  # what the other run is writing
    save = Checkpoints.save

    def then_taken_over(checkpoints: Checkpoints, step: int, *args: Any) -> None:
        save(checkpoints, step, *args)
        if step == 4:
            assert not checkpoints.wait()
            (tmp_path / "run.lock").write_text(json.dumps({"id": "other", "pid": 7, "host": "node17", "machine": "another"}))
            other.mkdir(parents=True)

    monkeypatch.setattr(Checkpoints, "save", then_taken_over)
    with pytest.raises(
        LockedWorkdir, match=r"run\.lock was taken over by process 7 on node17, because this run gave no sign of life"
    ):
        train.main(tiny_config(**PLAIN, **{"duration": "9"}), tmp_path)
    assert Checkpoints(tmp_path, read_only=True).steps == [4]
    assert other.exists()
    assert json.loads((tmp_path / "run.lock").read_text())["id"] == "other"


def test_a_run_whose_workdir_was_taken_over_while_it_compiled_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train.main(tiny_config(**PLAIN, **{"duration": "4"}), tmp_path)
    compile_phases = Program.compile_phases

    def meanwhile(program: Program) -> Any:
        (tmp_path / "run.lock").write_text(json.dumps({"id": "other", "pid": 7, "host": "node17", "machine": "another"}))
        (tmp_path / "metrics.jsonl").write_text('{"step": 9}\n')
        (tmp_path / "checkpoints" / "9").mkdir()
        return compile_phases(program)

    monkeypatch.setattr(Program, "compile_phases", meanwhile)
    before = (tmp_path / "config.json").read_text()
    with pytest.raises(LockedWorkdir, match=r"taken over by process 7 on node17"):
        train.main(tiny_config(**PLAIN, **{"duration": "5"}), tmp_path)
    assert (tmp_path / "config.json").read_text() == before
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 9}\n'
    assert (tmp_path / "checkpoints" / "9").is_dir()


class Broken:
    """A writer whose every call fails."""

    def write(self, step: int, values: Values) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def close(self) -> None:
        raise RuntimeError("closed")


def test_a_writer_that_fails_is_said_once_and_dropped() -> None:
    said: list[str] = []
    guarded = Guarded("/w/metrics.jsonl", Broken, said.append)
    for step in range(3):
        guarded.write(step, {"loss": 1.0})
    guarded.close()
    assert said == ["metrics are no longer written to /w/metrics.jsonl: [Errno 28] No space left on device; training goes on"]


def test_a_writer_that_cannot_be_opened_is_said_and_the_others_write(tmp_path: Path) -> None:
    (tmp_path / "tensorboard").write_text("a file where a folder belongs")
    out = io.StringIO()
    terminal = Terminal(4, console=Console(file=out, width=300))
    for writer in (writers := open_writers(tmp_path, terminal)):
        writer.write(1, {"loss": 2.0})
        writer.close()
    assert len(writers) == 2
    assert f"metrics are no longer written to {tmp_path}/tensorboard" in out.getvalue()
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 1, "loss": 2.0}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_raises_at_the_line_that_does_not_fit_and_leaves_nothing_to_flush() -> None:
    writer = JsonlWriter.__new__(JsonlWriter)
    with Path("/dev/full").open("ab", buffering=0) as writer._file, pytest.raises(OSError, match="No space left"):
        writer.write(1, {"loss": 2.0})


class FullFile(io.StringIO):
    """A file on a full disk."""

    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_terminal_whose_disk_is_full_falls_silent() -> None:
    terminal = Terminal(4, console=Console(file=FullFile(), width=80))
    terminal.say("this does not fit")
    assert terminal.console.quiet
    terminal.write(1, {"loss": 1.0, "lr": 1.0, "examples_per_second": 1.0})
    terminal.close()


def test_what_an_evaluation_has_yielded_is_written_also_where_the_next_is_cut_short() -> None:
    written: list[tuple[int, dict[str, float]]] = []

    class Kept(Broken):
        def write(self, step: int, values: Values) -> None:
            written.append((step, dict(values)))

        def close(self) -> None:
            pass

    def results() -> Any:
        yield "a/top1", 0.5
        raise KeyboardInterrupt

    terminal = Terminal(4, console=Console(file=io.StringIO()))
    log = TrainLog([Kept()], terminal, train.Clock(8, 4), every=1, total=4, last_good=lambda step: "")
    with pytest.raises(KeyboardInterrupt):
        log.evaluation(3, results())
    assert written == [(3, {"a/top1": 0.5})]
