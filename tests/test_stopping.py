"""Signals and what goes wrong around a run: heard wherever it is, and the last completed step is saved."""

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from test_train import finish, losses, start_jclip, wait_for_step, whole_lines
from tiny import tiny_config

from jclip import train
from jclip.checkpoint import Checkpoints
from jclip.data.workers import why_lost
from jclip.signals import SIGNALS, Stopped, StopSignal

LONG = ("--duration", "100000", "--checkpoint.every", "100000", "--evals.seen.every", "100000", "--optim.warmup", "10")


def saved(workdir: Path) -> list[int]:
    return Checkpoints(workdir, read_only=True).steps


def wait_for(condition: object, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 240
    while not condition():  # type: ignore[operator]
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def workers_of(process: subprocess.Popen[str]) -> list[int]:
    """Worker processes that read data."""
    children = [pid for file in Path(f"/proc/{process.pid}/task").glob("*/children") for pid in file.read_text().split()]
    commands = {int(pid): Path(f"/proc/{pid}/cmdline").read_bytes() for pid in children}
    found = [pid for pid, command in commands.items() if b"spawn_main" in command]
    assert len(found) == 2
    return found


def processor_seconds(pid: int) -> float:
    """Time that cores have worked for a process, without its children."""
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def stopped(process: subprocess.Popen[str]) -> tuple[str, float]:
    """Output of a process that is told to stop, and how long cores worked for it from then on, however busy the machine is."""
    before = last = processor_seconds(process.pid)
    process.send_signal(signal.SIGTERM)
    while process.poll() is None:
        with suppress(OSError):
            last = processor_seconds(process.pid)
        time.sleep(0.02)
    out, _ = finish(process)
    return out, last - before


@pytest.fixture(autouse=True)
def heard() -> Iterator[None]:
    """SIGHUP as a process has it that was not started by nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_every_signal_is_heard_after_a_step_and_between_batches(number: int) -> None:
    stop = StopSignal()
    assert not stop.after_step(1)
    with stop.listening():
        stop.between_batches()
        os.kill(os.getpid(), number)
        assert stop.after_step(2)
        with pytest.raises(Stopped):
            stop.between_batches()


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_a_signal_ends_a_wait_at_once(number: int) -> None:
    stop = StopSignal()

    def wait() -> None:
        os.kill(os.getpid(), number)
        time.sleep(60)

    with stop.listening(), pytest.raises(Stopped), stop.may_leave():
        wait()
    with pytest.raises(Stopped), stop.may_leave():  # nor does another wait begin
        time.sleep(60)


def test_a_signal_that_is_ignored_by_whoever_started_the_run_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        stop = StopSignal()
        with stop.listening():
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.after_step(1)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_run_in_another_thread_than_the_main_one_trains_and_hears_no_signal(tmp_path: Path) -> None:
    config = tiny_config(**{"duration": "3", "evals": {}, "checkpoint.best": None, "optim.warmup": "1"})
    with ThreadPoolExecutor(1) as pool:
        pool.submit(train.main, config, tmp_path).result()
    assert saved(tmp_path) == [3]


def test_several_processes_stop_after_the_same_step_and_none_leaves_alone() -> None:
    told = [0, 0]
    stops = [StopSignal(2, lambda count: sum(told)) for _ in range(2)]
    stops[1].receive(signal.SIGTERM)
    told[1] = 1
    assert [stop.after_step(4) for stop in stops] == [False, False]
    assert [stop.after_step(5) for stop in stops] == [True, True]
    with stops[1].may_leave():
        stops[1].receive(signal.SIGTERM)
    for stop in stops:
        for _ in range(4):
            stop.between_batches()
        with pytest.raises(Stopped):
            stop.between_batches()


@pytest.mark.slow
def test_an_evaluation_is_cut_short_saved_and_made_up(tmp_path: Path) -> None:
    options = ("--duration", "4", "--optim.warmup", "1", "--checkpoint.every", "4", "--log-every", "1")
    long = ("--evals.seen.source", "shapes:test?size=16&length=60000", "--evals.seen.every", "2")
    process = start_jclip(tmp_path, *options, *long)
    wait_for(lambda: saved(tmp_path) == [2], process)
    out, seconds = stopped(process)
    assert seconds < 10  # the whole evaluation takes minutes
    assert "stopped after step 2, which is saved" in out
    assert saved(tmp_path) == [2]
    assert not any("seen/top1" in line for line in whole_lines(tmp_path))

    out, _ = finish(start_jclip(tmp_path, *options, "--evals.seen.every", "2"))
    assert "evaluations of step 2 that were not finished come first: seen" in out
    assert [line["step"] for line in whole_lines(tmp_path) if "seen/top1" in line] == [2, 4]
    assert list(json.loads((tmp_path / "evaluations.json").read_text())) == ["2", "4"]
    assert list(losses(tmp_path)) == [1, 2, 3, 4]


@pytest.mark.slow
def test_a_frozen_worker_does_not_keep_a_signal_from_being_heard(tmp_path: Path) -> None:
    process = start_jclip(tmp_path, *LONG, "--data.workers", "2")
    wait_for_step(tmp_path, 4, process)
    for pid in workers_of(process):
        os.kill(pid, signal.SIGSTOP)
    last = -1.0
    while (now := max(losses(tmp_path))) != last:  # until what is read ahead is used up
        last = now
        time.sleep(2)
    out, seconds = stopped(process)
    assert seconds < 10
    (step,) = saved(tmp_path)
    assert f"stopped after step {step:,}, which is saved" in out
    assert step in (last, last + 1)  # metrics are written a step late


@pytest.mark.slow
def test_a_killed_worker_is_explained_and_the_steps_done_are_saved(tmp_path: Path) -> None:
    process = start_jclip(tmp_path, *LONG, "--data.workers", "2")
    wait_for_step(tmp_path, 4, process)
    os.kill(workers_of(process)[0], signal.SIGKILL)
    _, err = process.communicate(timeout=240)
    assert process.returncode == 1
    assert "jclip: LostWorker: a worker process that reads data was killed by SIGKILL" in err
    assert "out of memory" in err
    (step,) = saved(tmp_path)
    assert f"step {step:,} is saved: the same command goes on from there" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("code", "said"),
    [(-7, "SIGBUS; /dev/shm is too small .* --shm-size"), (-9, "SIGKILL; .*out of memory"), (3, "status 3"), (-64, "SIGRTMAX")],
)
def test_how_a_worker_ended_is_shown_by_its_exit_code(code: int, said: str) -> None:

    assert re.search(said, why_lost(code).replace("killed by ", ""))


@pytest.mark.slow
def test_the_same_command_twice_is_one_line(tmp_path: Path) -> None:
    process = start_jclip(tmp_path, *LONG)
    wait_for_step(tmp_path, 2, process)
    second = start_jclip(tmp_path, *LONG)
    _, err = second.communicate(timeout=240)
    assert second.returncode == 1
    (line,) = [line for line in err.splitlines() if line.startswith("jclip")]
    assert f"{tmp_path} is in use by process {process.pid} on " in line
    assert "Traceback" not in err
    process.send_signal(signal.SIGTERM)
    out, _ = finish(process)
    assert "which is saved" in out


def test_a_second_ctrl_c_ends_the_run_at_once_and_a_second_sigterm_does_not() -> None:
    stop = StopSignal()
    stop.receive(signal.SIGTERM)
    stop.receive(signal.SIGTERM)
    assert stop.after_step(1)
    with pytest.raises(KeyboardInterrupt):
        stop.receive(signal.SIGINT)
    first = StopSignal()
    first.receive(signal.SIGINT)
    assert first.after_step(1)
