"""The launch scripts, on a machine where gcloud, srun and jclip are stand-ins that say how they were called."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

LAUNCH = Path(__file__).parent.parent / "tools" / "launch"
TRAIN = ["configs/x.py", "--workdir", "/a b", "--seed", "3"]
CALLED = "train configs/x.py --workdir /a b --seed 3"


@pytest.fixture
def machine(tmp_path: Path) -> dict[str, str]:
    """The environment of a machine with stand-ins in its PATH, which write to tmp_path/log."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "jclip").mkdir()
    return {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "HOME": str(tmp_path), "LOG": str(tmp_path / "log")}


def stand_in(machine: dict[str, str], name: str, script: str) -> None:
    path = Path(machine["HOME"]) / "bin" / name
    path.write_text(f"#!/usr/bin/env bash\n{script}\n")
    path.chmod(0o755)


def log(machine: dict[str, str]) -> list[str]:
    path = Path(machine["LOG"])
    return path.read_text().splitlines() if path.exists() else []


def run(machine: dict[str, str], script: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [str(LAUNCH / script), *arguments]
    return subprocess.run(command, env={**machine, **variables}, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("script", ["gpu_host.sh", "slurm.sh", "tpu_slice.sh"])
def test_without_arguments_it_explains_itself(script: str, machine: dict[str, str]) -> None:
    done = run(machine, script)
    assert done.returncode == 2
    assert f"tools/launch/{script}" in done.stdout
    assert "--workdir" in done.stdout


def test_a_gpu_host_starts_again_after_an_error_and_the_callers_flags_come_last(machine: dict[str, str]) -> None:
    stand_in(machine, "jclip", 'echo "$* $XLA_FLAGS" >> $LOG; [ $(wc -l < $LOG) -ge 3 ]')
    done = run(machine, "gpu_host.sh", *TRAIN, XLA_FLAGS="--mine")
    assert done.returncode == 0
    assert log(machine) == [f"{CALLED} --xla_gpu_enable_latency_hiding_scheduler=true --mine"] * 3
    assert run(machine, "gpu_host.sh", *TRAIN, ATTEMPTS="1").returncode == 0
    stand_in(machine, "jclip", "exit 1")
    assert run(machine, "gpu_host.sh", *TRAIN, ATTEMPTS="2").returncode == 1


def test_slurm_requeues_a_job_that_has_stopped_because_its_time_is_up(machine: dict[str, str]) -> None:
    # The real srun kills its tasks when it gets a SIGTERM: the signal has to come from scancel.
    stand_in(
        machine,
        "srun",
        'trap "echo saved >> $LOG; exit 0" USR1; echo $$ > $HOME/step; echo "$*" >> $LOG; while sleep 0.05; do :; done',
    )
    stand_in(machine, "scancel", 'echo "scancel $*" >> $LOG; kill -USR1 $(cat $HOME/step)')
    stand_in(machine, "scontrol", 'echo "scontrol $*" >> $LOG')
    process = subprocess.Popen([str(LAUNCH / "slurm.sh"), *TRAIN], env={**machine, "SLURM_JOB_ID": "7"})
    deadline = time.monotonic() + 30
    while not log(machine):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 0
    stopped = ["scancel --signal=TERM 7.0", "saved", "scontrol requeue 7"]
    assert log(machine) == [f"--kill-on-bad-exit=1 jclip {CALLED}", *stopped]


@pytest.mark.parametrize("status", [0, 3])
def test_slurm_ends_with_the_status_of_the_run(machine: dict[str, str], status: int) -> None:
    stand_in(machine, "srun", f"exit {status}")
    assert run(machine, "slurm.sh", *TRAIN, SLURM_JOB_ID="7").returncode == status


def test_a_tpu_slice_starts_the_command_on_all_hosts_and_stops_it(machine: dict[str, str]) -> None:
    stand_in(machine, "gcloud", 'echo "$*" | head -1 >> $LOG; bash -c "${!##--command=}"')
    stand_in(machine, "jclip", 'echo "jclip $* $JCLIP_DISTRIBUTED $LIBTPU_INIT_ARGS" >> $LOG')
    stand_in(machine, "pkill", 'echo "pkill $*" >> $LOG')
    assert run(machine, "tpu_slice.sh", "slice", "zone", *TRAIN, LIBTPU_INIT_ARGS="--a=1 --b=2").returncode == 0
    first, second = log(machine)
    assert first.startswith("compute tpus tpu-vm ssh slice --zone=zone --worker=all --command=cd ~/jclip")
    assert second == f"jclip {CALLED} 1 --a=1 --b=2"
    assert run(machine, "tpu_slice.sh", "slice", "zone", STOP="1").returncode == 0
    assert log(machine)[-1] == "pkill -TERM -f bin/[j]clip train"
