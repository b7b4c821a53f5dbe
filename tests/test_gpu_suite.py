"""The suite for a GPU runs whole, in small, without one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.exhaustive
def test_every_part_of_the_gpu_suite_runs_on_a_cpu_in_small(tmp_path: Path) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = ["bash", str(ROOT / "tools/gpu/run_all.sh"), str(tmp_path), "rehearsal"]
    done = subprocess.run(command, env=os.environ | {"PATH": path}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    results = ((tmp_path / f"{name}.jsonl").read_text().splitlines() for name in ("check", "steps"))
    checks, steps = ([json.loads(line) for line in lines] for lines in results)
    assert len(checks) == 33
    assert all(check["fine"] for check in checks)
    assert [(row["loop"], row["pairs_per_s"] > 0) for row in steps] == [("unroll", True), ("scan", True)]
