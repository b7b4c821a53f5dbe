"""One run at a time writes to a workdir, also on storage that hosts share, and a lock does not outlive its run."""

import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import jclip.lock
from jclip.lock import FILE, LockedWorkdir, lock


def test_a_second_run_is_refused_with_host_process_and_start(tmp_path: Path) -> None:
    with lock(tmp_path):
        with pytest.raises(LockedWorkdir, match=rf"is in use by process {os.getpid()} on \S+, since \d{{4}}-"), lock(tmp_path):
            pass
        assert (tmp_path / FILE).exists()  # who is refused leaves it alone
    assert not list(tmp_path.iterdir())
    with lock(tmp_path):
        pass


def test_a_lock_of_a_process_that_was_killed_is_taken_over(tmp_path: Path) -> None:
    take = f"held = lock(Path({str(tmp_path)!r})); held.__enter__(); os._exit(9)"
    program = f"import os; from pathlib import Path; from jclip.lock import lock; {take}"
    subprocess.run([sys.executable, "-c", program], check=False)
    assert (tmp_path / FILE).exists()
    with lock(tmp_path):
        assert json.loads((tmp_path / FILE).read_text())["pid"] == os.getpid()


def test_a_later_process_with_the_same_number_is_another_one(tmp_path: Path) -> None:
    with lock(tmp_path):
        content = json.loads((tmp_path / FILE).read_text())
    (tmp_path / FILE).write_text(json.dumps({**content, "born": "1"}))
    with lock(tmp_path):
        pass


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[]", b'{"host": "elsewhere"}'])
def test_a_damaged_lock_without_signs_of_life_is_taken_over(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE).write_bytes(content)
    with lock(tmp_path, silent=0.2):
        pass


def elsewhere(tmp_path: Path) -> None:
    """A lock as a process on another machine has made it."""
    holder = {"host": "node17", "pid": 1, "start": "2026-11-26 10:00:00", "machine": "another", "born": "5", "id": "x"}
    (tmp_path / FILE).write_text(json.dumps(holder))


@pytest.mark.slow
def test_a_lock_of_another_machine_holds_while_it_gives_signs_of_life(tmp_path: Path) -> None:
    elsewhere(tmp_path)
    ended = threading.Event()

    def live() -> None:
        while not ended.wait(0.1):
            os.utime(tmp_path / FILE)

    thread = threading.Thread(target=live)
    thread.start()
    try:
        with pytest.raises(LockedWorkdir, match="process 1 on node17, since 2026-11-26 10:00:00"), lock(tmp_path, silent=30.0):
            pass
    finally:
        ended.set()
        thread.join()


def test_a_lock_of_another_machine_that_is_silent_is_taken_over(tmp_path: Path) -> None:
    elsewhere(tmp_path)
    said: list[str] = []
    with lock(tmp_path, silent=0.3, say=said.append):
        assert json.loads((tmp_path / FILE).read_text())["pid"] == os.getpid()
    assert said == [f"{tmp_path / FILE} is of process 1 on node17; waiting for a sign of life, 0 s at most"]


def test_a_held_lock_gives_signs_of_life(tmp_path: Path) -> None:
    with lock(tmp_path, beat=0.05):
        os.utime(tmp_path / FILE, (1, 1))
        deadline = time.monotonic() + 30
        while (tmp_path / FILE).stat().st_mtime < 2:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_a_holder_that_was_taken_for_dead_notices_and_leaves_the_lock_of_the_other_alone(tmp_path: Path) -> None:
    with lock(tmp_path, beat=60.0, silent=0.2) as paused:
        paused.check()
        content = json.loads((tmp_path / FILE).read_text())
        (tmp_path / FILE).write_text(json.dumps({**content, "machine": "another"}))  # as another machine sees it
        with lock(tmp_path, silent=0.2):
            with pytest.raises(
                LockedWorkdir, match=rf"taken over by process {os.getpid()} on .* it ends here and writes nothing more"
            ):
                paused.check()
            paused.release()
            assert (tmp_path / FILE).exists()
        with pytest.raises(LockedWorkdir, match="taken over by another run"):  # which has ended meanwhile
            paused.check()


def test_a_lock_that_somebody_removes_comes_back_while_its_run_gives_signs_of_life(tmp_path: Path) -> None:
    with lock(tmp_path, beat=0.02) as held:
        (tmp_path / FILE).unlink()
        deadline = time.monotonic() + 30
        while not (tmp_path / FILE).exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        held.check()


def test_a_lock_left_behind_is_not_taken_over_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere(tmp_path)
    os.utime(tmp_path / FILE, (1, 1))
    judge, found, taken = jclip.lock._is_alive, threading.Event(), threading.Event()

    def judge_slowly(*arguments: Any) -> bool:  # between the judgement and the removal, another run takes the lock over
        alive = judge(*arguments)
        if threading.current_thread() is not threading.main_thread() and not found.is_set():
            found.set()
            assert taken.wait(60)
        return alive

    def attempt() -> None:
        with pytest.raises(LockedWorkdir, match="is in use by process"), lock(tmp_path, silent=0.2):
            pass

    monkeypatch.setattr(jclip.lock, "_is_alive", judge_slowly)
    with ThreadPoolExecutor(1) as pool:
        slower = pool.submit(attempt)
        assert found.wait(60)
        with lock(tmp_path, silent=0.2) as held:
            before = (tmp_path / FILE).stat().st_ctime_ns
            taken.set()
            slower.result(60)
            held.check()
            assert (tmp_path / FILE).stat().st_ctime_ns == before  # nor was it away for a moment, when a third could make its own
    assert not list(tmp_path.iterdir())


def test_of_many_that_try_at_once_one_succeeds(tmp_path: Path) -> None:
    elsewhere(tmp_path)  # left behind: all find it, and all may take it over
    os.utime(tmp_path / FILE, (1, 1))
    held, refused, ready = [], [], threading.Barrier(8)
    done = threading.Event()

    def attempt() -> None:
        ready.wait()
        try:
            with lock(tmp_path, silent=0.2):
                held.append(1)
                done.wait(60)
        except LockedWorkdir:
            refused.append(1)

    threads = [threading.Thread(target=attempt) for _ in range(8)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 60
    while len(refused) < 7 and time.monotonic() < deadline:
        time.sleep(0.01)
    done.set()
    for thread in threads:
        thread.join()
    assert (len(held), len(refused)) == (1, 7)


def test_the_lock_of_another_run_that_took_it_over_is_left_alone(tmp_path: Path) -> None:
    with lock(tmp_path):
        elsewhere(tmp_path)  # this run was taken for dead
    assert json.loads((tmp_path / FILE).read_text())["host"] == "node17"
