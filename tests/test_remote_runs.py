"""Whole runs on remote data, as a user starts them: killed while the server fails, and gone on with to the same bits."""

import io
import random
import signal
from pathlib import Path

import numpy as np
import pytest
from archives import write_tar
from PIL import Image
from servers import file_server
from test_bucket_runs import same_parameters
from test_train import finish, losses, start_jclip, wait_for_step

pytest.importorskip("aiohttp", reason="the extra remote is not installed")
pytest.importorskip("fsspec", reason="the extra remote is not installed")

STEPS = 120
OPTIONS = ("--duration", str(STEPS), "--checkpoint.every", "10", "--evals", "none", "--checkpoint.best", "None")


def write_shards(folder: Path) -> None:
    """Four shards of eight pictures with captions."""
    folder.mkdir()
    for shard in range(4):
        members = {}
        for i in range(8 * shard, 8 * shard + 8):
            file = io.BytesIO()
            Image.fromarray(np.random.default_rng(i).integers(0, 256, (24, 24, 3), np.uint8)).save(file, "PNG")
            members |= {f"{i:03}.png": file.getvalue(), f"{i:03}.txt": f"picture {i}".encode()}
        write_tar(folder / f"s{shard}.tar", members)


@pytest.mark.slow
@pytest.mark.parametrize(("way", "workers"), [("ranges", 1), pytest.param("whole", 0, marks=pytest.mark.exhaustive)])
def test_a_run_is_killed_while_requests_fail_and_ends_as_from_a_disk(way: str, workers: int, tmp_path: Path) -> None:
    write_shards(tmp_path / "data")
    pattern = "webdataset:{}/s{{0..3}}.tar"
    finish(start_jclip(tmp_path / "disk", "--data.source", pattern.format(tmp_path / "data"), *OPTIONS))
    settings = {"JCLIP_CACHE": str(tmp_path / "cache"), "JCLIP_REMOTE": way}
    draws = random.Random(0)
    with file_server(tmp_path / "data") as server:
        server.faults = {fault: lambda *_: draws.random() < 0.05 for fault in ("error503", "short")}
        command = ("--data.source", pattern.format(server.url), "--data.workers", str(workers), *OPTIONS)
        process = start_jclip(tmp_path / "run", *command, **settings)
        wait_for_step(tmp_path / "run", 25, process)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert max(losses(tmp_path / "run")) < STEPS, "it was killed on its way"
        out, _ = finish(start_jclip(tmp_path / "run", *command, **settings))
    assert "resuming after step" in out
    assert "broken" not in out
    assert losses(tmp_path / "run") == losses(tmp_path / "disk")
    same_parameters(tmp_path / "run", tmp_path / "disk")
