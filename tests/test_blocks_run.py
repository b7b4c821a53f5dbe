"""A run on a bucket that is larger than the cache, shuffled in blocks of shards: killed, gone on with, and told."""

import dataclasses
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from archives import write_tar
from PIL import Image
from servers import file_server, s3_server
from test_train import finish, losses, start_jclip, wait_for_step
from tiny import tiny_config

from jclip import runs, train
from jclip.config import check, to_saved
from jclip.data import SourceError, open_source
from jclip.facts import changes
from jclip.tree import flatten

SHARDS, EXAMPLES = 12, 8
IN_BLOCKS = ("--data.shuffle", "blocks", "--data.lanes", "2", "--data.block-shards", "1", "--evals", "none", "--duration", "24")
IN_BLOCKS += ("--checkpoint.best", "None")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tars of drawn pictures, captions, and 5 KB that nobody reads."""
    folder, drawn = tmp_path_factory.mktemp("shards"), open_source(f"shapes:train?size=16&length={SHARDS * EXAMPLES}")
    for shard in range(SHARDS):
        members: dict[str, bytes] = {}
        for i in range(shard * EXAMPLES, (shard + 1) * EXAMPLES):
            png = io.BytesIO()
            Image.fromarray(np.asarray(drawn[i]["image"])).save(png, "PNG")
            members |= {f"{i}.png": png.getvalue(), f"{i}.txt": drawn[i]["text"].encode(), f"{i}.bin": bytes(5000)}
        write_tar(folder / f"s{shard:02}.tar", members)
    return folder


@pytest.fixture(scope="module")
def bucket(shards: Path) -> Iterator[dict[str, str]]:
    """The same in s3://blocks/set, and the variables that lead there."""
    with s3_server() as (variables, files):
        files.mkdir("blocks")
        for path in shards.iterdir():
            files.pipe_file(f"blocks/set/{path.name}", path.read_bytes())
        yield variables


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["0", pytest.param("2", marks=pytest.mark.exhaustive)])
def test_a_killed_run_on_a_bucket_larger_than_the_cache_goes_on_bit_by_bit(
    workers: str, bucket: dict[str, str], shards: Path, tmp_path: Path
) -> None:
    finish(start_jclip(tmp_path / "local", "--data.source", f"webdataset:{shards}/*.tar", *IN_BLOCKS))
    size = sum(path.stat().st_size for path in shards.iterdir())
    limits = {"JCLIP_CACHE": str(tmp_path / "cache"), "JCLIP_CACHE_GB": str(5.5 * size / SHARDS / 1e9)}
    command = ("--data.source", "webdataset:s3://blocks/set/*.tar", *IN_BLOCKS, "--data.workers", workers)
    process = start_jclip(tmp_path / "remote", *command, **bucket, **limits)
    wait_for_step(tmp_path / "remote", 9, process)
    process.kill()
    process.communicate()
    out, _ = finish(start_jclip(tmp_path / "remote", *command, **bucket, **limits))
    assert "resuming after step" in out
    assert "2 lanes of 48 to 48 examples, each with epochs of its own; 2 of 12 shards are mixed at a time" in out
    assert losses(tmp_path / "remote") == losses(tmp_path / "local")
    local, remote = (flatten(runs.load_run(tmp_path / name)[2]) for name in ("local", "remote"))
    for name, value in remote.items():
        np.testing.assert_array_equal(value, local[name])
    kept = sum(path.stat().st_size for path in (tmp_path / "cache" / "files").iterdir())
    assert 0 < kept <= 5.5 * size / SHARDS


def test_another_shuffle_at_a_resume_is_reported() -> None:
    def record(**data: Any) -> dict[str, Any]:
        config = dataclasses.replace(tiny_config(), data=dataclasses.replace(tiny_config().data, **data))
        check(config)
        facts = {"examples": 200, "fingerprint": "a", "shards": 9}
        rest = {"vocabulary": {}, "files": {}, "weights": "", "versions": {}}
        return {"format": 2, "config": to_saved(config), "data": facts, "plan": {"total": 12}, **rest}

    full, blocks, other = record(), record(shuffle="blocks"), record(shuffle="blocks", lanes=4)
    told = "examples are shuffled otherwise ({} instead of {}): the order goes on at the same place of another one"
    for before, now, ways in (
        (full, blocks, ("in 8 lanes of blocks of 4 shards", "all at once")),
        (blocks, other, ("in 4 lanes of blocks of 4 shards", "in 8 lanes of blocks of 4 shards")),
    ):
        lines = changes(before, now, 4, (0.1, 0.1))
        assert any(line.startswith(told.format(*ways)) for line in lines), lines
    assert changes(blocks, blocks, 4, (0.1, 0.1)) == []


def test_a_run_whose_blocks_find_no_room_is_refused_before_anything_else(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("fsspec", reason="the extra remote is not installed")
    size = sum(path.stat().st_size for path in shards.iterdir()) / SHARDS
    monkeypatch.setenv("JCLIP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("JCLIP_CACHE_GB", str(3.5 * size / 1e9))
    monkeypatch.setattr(train, "make_program", None)
    with file_server(shards) as server:
        data = {"source": f"webdataset:{server.url}/s{{00..11}}.tar", "shuffle": "blocks", "lanes": 2, "block_shards": 1}
        config = tiny_config(**{f"data.{name}": value for name, value in data.items()})
        with pytest.raises(SourceError, match=r"set JCLIP_CACHE_GB, or use fewer data.block_shards"):
            train.main(config, tmp_path / "run")
        with pytest.raises(SourceError, match="12 shards with examples are fewer than 16 lanes"):
            train.main(tiny_config(**{f"data.{name}": value for name, value in {**data, "lanes": 16}.items()}), tmp_path / "run")
