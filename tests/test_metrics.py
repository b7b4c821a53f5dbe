"""Writers keep every number, once, also when a run was killed in the middle of a line."""

import dataclasses
import io
import json
import math
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from tiny import tiny_config

from jclip.clock import Clock
from jclip.config import SimReg
from jclip.metrics import JsonlWriter, NonFiniteLoss, TensorBoardWriter, Terminal, TrainLog
from jclip.operations import peak_steps, step_flops
from jclip.peaks import peak_flops


def test_lines_after_the_restored_step_and_half_lines_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 3.0}\n{"step": 2, "loss": 2.0}\n{"step": 3, "loss": 1.0}\n{"step": 1, "lo')
    writer = JsonlWriter(path, start=2)
    writer.write(3, {"loss": 1.5})
    writer.close()
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"step": 1, "loss": 3.0},
        {"step": 2, "loss": 2.0},
        {"step": 3, "loss": 1.5},
    ]


def make_log(out: io.StringIO, total: int = 4) -> TrainLog:
    terminal = Terminal(total, console=Console(file=out, width=120))
    return TrainLog([terminal], terminal, Clock(8, total), every=2, total=total, last_good=lambda step: "Go back to 7")


def test_metrics_come_a_step_late_and_every_few_steps() -> None:
    out = io.StringIO()
    with make_log(out) as log:
        log.step(1, {"loss": 5.0, "lr": 1.0, "grad_norm": 1.0}, [], [])
        log.step(2, {"loss": 4.0, "lr": 1.0, "grad_norm": 1.0}, [], [])
        assert "step" not in out.getvalue()
        log.step(3, {"loss": 3.0, "lr": 1.0, "grad_norm": 1.0}, [], [])
        assert "4.0000" in out.getvalue()
        log.step(4, {"loss": 2.0, "lr": 1.0, "grad_norm": 1.0}, [], [])
        log.flush()
    assert [line.split()[1] for line in out.getvalue().splitlines() if line] == ["2/4", "4/4"]


@pytest.mark.parametrize("bad", [{"loss": math.nan, "grad_norm": 1.0}, {"loss": 1.0, "grad_norm": math.inf}])
def test_a_number_that_is_none_stops_with_step_keys_and_remedy(bad: dict[str, float]) -> None:
    with make_log(io.StringIO()) as log:
        log.step(1, bad, ["a", "b"], [])
        with pytest.raises(NonFiniteLoss, match=r"step 1: .*Go back to 7.*The batch held a, b"):
            log.flush()


def test_of_a_large_batch_that_diverges_a_few_keys_are_named() -> None:
    with make_log(io.StringIO()) as log:
        log.step(1, {"loss": math.nan, "grad_norm": 1.0}, [f"k{i}" for i in range(4096)], [])
        with pytest.raises(NonFiniteLoss, match=r"The batch held k0, .*, k7 and 4,088 more$"):
            log.flush()


def test_problems_are_all_counted_and_the_first_ones_shown() -> None:
    out = io.StringIO()
    with make_log(out) as log:
        log.step(1, {"loss": 1.0, "grad_norm": 1.0}, [], [f"key {i}: cut" for i in range(9)])
        assert log.broken == 9
    assert "key 4: cut" in out.getvalue()
    assert "key 5: cut" not in out.getvalue()


def test_a_terminal_shows_results_as_they_come() -> None:
    out = io.StringIO()
    terminal = Terminal(10, console=Console(file=out, width=120))
    terminal.write(5, {"seen/top1": 0.5, "seen/examples": 2000.0})
    terminal.close()
    assert "step 5 of 10" in out.getvalue()
    assert "0.5000" in out.getvalue()
    assert "2,000" in out.getvalue()


def test_tensorboard_gets_every_scalar(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX", reason="the extra tensorboard is not installed")
    writer = TensorBoardWriter(tmp_path)
    writer.write(1, {"loss": 2.0})
    writer.close()
    (events,) = tmp_path.iterdir()
    assert b"loss" in events.read_bytes()


def test_the_speed_and_the_time_left_are_of_training_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("jclip.clock.time.perf_counter", lambda: now[0])
    clock = Clock(8, 100, start=10)
    clock.exclude(3.0)
    now[0] += 7.0  # 4 steps of 8 examples in 7 s, of which 3 were not training
    assert clock.read(14) == {"examples_per_second": 8.0, "data_wait": 0.0, "seconds_left": 86.0}
    now[0] += 2.0
    assert clock.read(15) == {"examples_per_second": 4.0, "data_wait": 0.0, "seconds_left": 170.0}


def test_utilization_is_a_share_of_the_steps_at_the_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("jclip.metrics.time.perf_counter", lambda: now[0])
    clock, out = Clock(8, 100, peak_steps=4.0), io.StringIO()
    now[0] += 2.0
    speed = clock.read(3)  # 1.5 of the 4 steps a second
    assert speed["mfu"] == 0.375
    Terminal(100, console=Console(file=out, width=200)).write(3, {"loss": 1.0, "lr": 1e-3, **speed})
    assert "12 examples/s  MFU 37.5%  data wait 0%" in out.getvalue()


@pytest.mark.parametrize("terminal", [False, True])
def test_the_step_line_has_the_shares_of_the_sources_of_a_mixture(terminal: bool) -> None:
    out = io.StringIO()
    shown = Terminal(100, console=Console(file=out, width=200, force_terminal=terminal, color_system=None))
    speed = {"examples_per_second": 12.0, "data_wait": 0.0, "seconds_left": 60.0}
    shown.write(3, {"loss": 1.0, "lr": 1e-3, **speed, "data/a": 30.0, "data/[b]": 10.0})
    shown.advance(3, 1.0, speed)
    shown.close()
    assert "data wait 0%, a 75%, [b] 25%" in out.getvalue()


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-40GB", 312e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5", 459e12),
        ("TPU v6 lite", 918e12),
        ("cpu", None),
        ("NVIDIA A10G", None),
    ],
)
def test_the_peak_is_that_of_the_kind_of_device(kind: str, peak: float | None) -> None:
    device: Any = SimpleNamespace(device_kind=kind)
    assert peak_flops(device) == peak
    config = tiny_config()
    mesh: Any = SimpleNamespace(devices=np.array([device] * 4), size=4)
    expected = None if peak is None else pytest.approx(4 * peak / step_flops(config))
    assert peak_steps(config, mesh) == expected
    late = dataclasses.replace(config, objectives={**config.objectives, "late": SimReg(begin=0.5)})
    assert peak_steps(late, mesh) is None


def test_waiting_for_data_is_a_share_of_the_time_between_two_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("jclip.clock.time.perf_counter", lambda: now[0])
    clock = Clock(8, 100)
    clock.wait(1.0)
    clock.wait(0.5)
    clock.exclude(2.0)
    now[0] += 8.0
    assert clock.read(4)["data_wait"] == 0.25
    now[0] += 1.0
    assert clock.read(5)["data_wait"] == 0.0


def test_only_the_time_counts_in_which_the_device_has_nothing_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    now, computed = [0.0], threading.Event()
    monkeypatch.setattr("jclip.clock.time.perf_counter", lambda: now[0])
    monkeypatch.setattr("jclip.metrics.jax.block_until_ready", lambda arrays: computed.wait(10))
    values = {"loss": 1.0, "lr": 1.0, "grad_norm": 1.0}
    out = io.StringIO()
    with make_log(out) as log:
        now[0] = 1.0
        log.waited(0.0)  # for the first batch, with nothing before it
        log.step(1, values, [], [])
        now[0] = 3.0
        log.waited(1.0)  # the step is not done: no loss
        computed.set()
        finish = log._finish
        while finish is not None and finish.time != 3.0:
            time.sleep(0.001)
        now[0] = 5.0
        log.waited(2.5)  # of these 2.5 s the device has computed for half a second
        log.step(2, values, [], [])
        now[0] = 10.0
        log.flush()
    assert "data wait 30%" in out.getvalue()  # 3 of 10 s


def test_the_time_of_an_evaluation_is_none_of_training(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("jclip.clock.time.perf_counter", lambda: now[0])
    written: dict[int, dict[str, float]] = {}

    class Kept:
        def write(self, step: int, values: Any) -> None:
            written[step] = written.get(step, {}) | dict(values)

        def close(self) -> None:
            pass

    def results() -> Iterator[tuple[str, float]]:
        now[0] += 50.0
        yield "seen/top1", 0.5

    terminal = Terminal(4, console=Console(file=io.StringIO(), width=120))
    with TrainLog([Kept()], terminal, Clock(8, 4), every=2, total=4, last_good=lambda step: "") as log:
        for step in (1, 2):
            now[0] += 1.0
            log.step(step, {"loss": 1.0, "lr": 1.0, "grad_norm": 1.0}, [], [])
        log.evaluation(2, results())
        for step in (3, 4):
            now[0] += 1.0
            log.step(step, {"loss": 1.0, "lr": 1.0, "grad_norm": 1.0}, [], [])
        log.flush()
    assert written[2]["seen/top1"] == 0.5
    assert [written[step]["examples_per_second"] for step in (2, 4)] == [8.0, 8.0]
    assert [written[step]["seconds_left"] for step in (2, 4)] == [2.0, 0.0]


def test_the_last_step_is_written_whatever_the_interval() -> None:
    out = io.StringIO()
    with make_log(out, total=3) as log:
        for step in (1, 2, 3):
            log.step(step, {"loss": 6.0 - step, "lr": 1.0, "grad_norm": 1.0}, [], [])
        log.flush()
    assert [line.split()[1] for line in out.getvalue().splitlines() if line] == ["2/3", "3/3"]


def test_letters_that_no_terminal_has_do_not_stop_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    terminal = Terminal(1)
    terminal.say("replaced a broken example: \ud83d bad")
    terminal.close()
    assert "replaced a broken example: \\ud83d bad" in capsys.readouterr().out
