"""Blocks of shards from a server: fetched ahead, once an epoch, within the limit of copies, whatever fails."""

import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from archives import write_tar
from batches import assert_equal
from servers import FileServer, file_server

from jclip.data import Batch, SourceError, make_loader, open_source
from jclip.data.blocks import Blocks

pytest.importorskip("fsspec", reason="the extra remote is not installed")

from jclip.data import copies, remote, stores

SHARDS, EXAMPLES = 16, 12


@pytest.fixture(autouse=True)
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JCLIP_CACHE", str(tmp_path / "cache"))
    for name in ("JCLIP_REMOTE", "JCLIP_CACHE_GB"):
        monkeypatch.delenv(name, raising=False)
    for name in ("FIRST_SECONDS", "MOST_SECONDS"):
        monkeypatch.setattr(remote, name, 0.002)
    monkeypatch.setattr(remote, "_lost", {})
    monkeypatch.setattr(copies, "_chosen", {})
    monkeypatch.setattr(stores, "_stores", {})


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tars of some 75 KB."""
    folder = tmp_path_factory.mktemp("shards")
    for shard in range(SHARDS):
        texts = {f"{i}.txt": f"text {shard} {i} ".encode() + b"x" * 5000 for i in range(EXAMPLES)}
        write_tar(folder / f"s{shard:02}.tar", texts)
    return folder


@pytest.fixture
def server(shards: Path) -> Iterator[FileServer]:
    with file_server(shards) as server:
        yield server


def size_of(shards: Path) -> int:
    return sum(path.stat().st_size for path in shards.iterdir())


def limit(monkeypatch: pytest.MonkeyPatch, bytes_: float) -> None:
    monkeypatch.setenv("JCLIP_CACHE_GB", str(bytes_ / 1e9))


def spec(server: FileServer) -> str:
    return f"webdataset:{server.url}/s{{00..{SHARDS - 1}}}.tar"


def text(value: str, rng: np.random.Generator) -> np.ndarray[Any, Any]:
    return np.array([*map(int, value.split()[1:3]), rng.integers(1 << 30)])


def read(source: str, count: int, **options: Any) -> list[Batch]:
    """Batches of 4 in two lanes of blocks of a shard, six batches a block: more than are read ahead."""
    options = {"batch_size": 4, "blocks": Blocks(2, 1), **options}
    with make_loader(source, {"text": text}, **options) as loader:
        return list(islice(loader, count))


def copied() -> int:
    """Bytes of whole copies, and of those that have begun."""
    total = 0
    for path in Path(os.environ["JCLIP_CACHE"], "files").glob("*"):
        with suppress(FileNotFoundError):  # finished, and called otherwise, or dropped meanwhile
            total += path.stat().st_size
    return total


EPOCH = SHARDS * EXAMPLES // 4


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_set_larger_than_the_cache_is_fetched_once_an_epoch(
    workers: int, server: FileServer, shards: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    one, total = size_of(shards) // SHARDS, size_of(shards)
    limit(monkeypatch, 6.5 * one)
    with caplog.at_level("INFO", "jclip.data"):
        open_source(spec(server))
        assert "by a request for each example" in caplog.text
        first = read(spec(server), 2)
    assert "are copied to" in caplog.text
    assert "because data.shuffle is blocks" in caplog.text
    assert "this host reads 16 of 16 remote shards" in caplog.text
    assert "are dropped behind the blocks" in caplog.text
    for path in Path(os.environ["JCLIP_CACHE"], "files").iterdir():
        path.unlink()
    server.requests.clear()
    most = 0
    with make_loader(spec(server), {"text": text}, batch_size=4, blocks=Blocks(2, 1), workers=workers) as loader:
        run = []
        for batch in islice(loader, 2 * EPOCH):
            run.append(batch)
            most = max(most, copied())
            time.sleep(0.005)  # a step
    assert 2 * total - 4 * one <= server.bytes_sent() <= 2 * total + 4 * one
    assert most <= 6.5 * one
    assert_equal(run[:2], first)
    assert_equal(run, read(f"webdataset:{shards}/*.tar", 2 * EPOCH))


def test_what_was_read_by_ranges_before_is_read_from_copies(
    server: FileServer, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit(monkeypatch, 4.5 * size_of(shards) / SHARDS)
    source = open_source(spec(server))
    assert all("text" in source[i]["text"] for i in range(len(source)))
    assert source.waits
    server.requests.clear()
    with make_loader(source, {"text": text}, batch_size=4, blocks=Blocks(2, 1)) as loader:
        run = list(islice(loader, EPOCH))
    assert not source.waits
    assert len(server.gets()) <= SHARDS + 4  # a request each
    assert_equal(run, read(f"webdataset:{shards}/*.tar", EPOCH))


def test_what_is_behind_is_dropped_though_there_is_room(
    server: FileServer, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = size_of(shards) // SHARDS
    limit(monkeypatch, 14.5 * one)
    most = 0
    with make_loader(spec(server), {"text": text}, batch_size=4, blocks=Blocks(2, 1)) as loader:
        for _ in islice(loader, EPOCH):
            most = max(most, copied())
    assert 2 * one < most <= 7 * one  # four, and what read-ahead and threads that are late have


def test_hosts_fetch_their_own_shards_alone(
    server: FileServer, shards: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    one, total = size_of(shards) // SHARDS, size_of(shards)
    limit(monkeypatch, 2.5 * one)
    open_source(spec(server))
    local = read(f"webdataset:{shards}/*.tar", EPOCH)
    for host in range(2):
        server.requests.clear()
        rows = read(spec(server), EPOCH, host=host, hosts=2)
        assert total / 2 <= server.bytes_sent() <= total / 2 + 2 * one
        assert [key for batch in rows for key in batch.keys] == [key for batch in local for key in batch.keys[2 * host :][:2]]
        assert len({path for path, _ in server.gets()}) == SHARDS // 2


def test_a_set_within_the_limit_stays(server: FileServer, shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit(monkeypatch, 1.1 * size_of(shards))
    read(spec(server), EPOCH)
    server.requests.clear()
    read(spec(server), 2 * EPOCH)
    assert not server.gets()


def test_lanes_of_a_host_within_the_limit_stay(
    server: FileServer, shards: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    limit(monkeypatch, 0.6 * size_of(shards))
    with caplog.at_level("INFO", "jclip.data"):
        read(spec(server), EPOCH, hosts=2)
    assert "this host reads 8 of 16 remote shards" in caplog.text
    assert "their copies stay" in caplog.text
    server.requests.clear()
    read(spec(server), 2 * EPOCH, hosts=2)
    assert not server.gets()


def test_a_limit_without_room_for_two_blocks_is_refused_with_the_least(
    server: FileServer, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = size_of(shards) // SHARDS
    limit(monkeypatch, 3.9 * one)
    with pytest.raises(SourceError, match=r"two blocks of shards in each lane .* are up to 0.000\d+ GB, .*set JCLIP_CACHE_GB"):
        read(spec(server), 1)
    read(spec(server), 1, hosts=2)  # one lane
    monkeypatch.setenv("JCLIP_REMOTE", "ranges")
    server.requests.clear()
    before = copied()
    read(spec(server), 1)
    assert 4 <= len(server.gets()) < 4 * 12  # a request for each example, and what is read ahead
    assert copied() == before


def test_requests_that_fail_lose_nothing(server: FileServer, shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit(monkeypatch, 4.5 * size_of(shards) / SHARDS)
    server.faults["error503"] = lambda method, name, number: number % 20 == 7
    server.faults["short"] = lambda method, name, number: number % 20 == 13
    assert_equal(read(spec(server), EPOCH + 5), read(f"webdataset:{shards}/*.tar", EPOCH + 5))
    assert remote.retries.total >= 3


def test_a_shard_that_is_gone_gives_its_places_to_its_block(
    server: FileServer, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit(monkeypatch, 8.5 * size_of(shards) / SHARDS)
    open_source(spec(server))
    server.faults["missing"] = lambda method, name, number: method == "GET" and name == "s05.tar"
    run = read(spec(server), EPOCH, blocks=Blocks(2, 2))
    problems = [problem for batch in run for problem in batch.problems]
    assert len(problems) >= EXAMPLES
    assert all("s05.tar cannot be read" in problem for problem in problems)
    local = read(f"webdataset:{shards}/*.tar", EPOCH, blocks=Blocks(2, 2))
    for batch, other in zip(run, local, strict=True):
        differ = [i for i, (a, b) in enumerate(zip(batch.keys, other.keys, strict=True)) if a != b]
        assert all(other.keys[i].startswith("s05") for i in differ)


def test_blocks_are_there_before_they_are_read(server: FileServer, shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second block of a lane is fetched while the first is read, by threads that end with the loader."""
    limit(monkeypatch, 8.5 * size_of(shards) / SHARDS)
    open_source(spec(server))
    folder = Path(os.environ["JCLIP_CACHE"], "files")
    threads = set(threading.enumerate())
    with make_loader(spec(server), {"text": text}, batch_size=2, blocks=Blocks(2, 1)) as loader:
        next(loader)
        end = time.monotonic() + 10
        while len(list(folder.glob("*.tar"))) < 4 and time.monotonic() < end:
            time.sleep(0.01)
        assert len(list(folder.glob("*.tar"))) == 4
    assert loader.ended
    ours = [thread for thread in set(threading.enumerate()) - threads if "fetch-ahead" in thread.name]
    assert not any(thread.is_alive() for thread in ours)


def test_a_loader_that_is_asked_to_fetches_nothing_ahead(
    server: FileServer, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit(monkeypatch, 0.5 * size_of(shards) / SHARDS)
    assert_equal(read(spec(server), 3, ahead=False), read(f"webdataset:{shards}/*.tar", 3))
    assert not copied()


def test_hosts_that_are_given_the_counts_fetch_their_shards_alone(
    server: FileServer, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file of counts, which sets of many shards have, is all that a start needs; indexes are made of the copies."""
    one, total = size_of(shards) // SHARDS, size_of(shards)
    limit(monkeypatch, 2.5 * one)
    monkeypatch.setattr("jclip.data.shards.MANY", SHARDS)
    open_source(spec(server))
    (tmp_path / "cache" / "shards").rename(tmp_path / "counts")
    for host in range(2):
        cache = tmp_path / f"cache of {host}"
        cache.mkdir()
        shutil.copytree(tmp_path / "counts", cache / "shards")
        monkeypatch.setenv("JCLIP_CACHE", str(cache))
        server.requests.clear()
        read(spec(server), EPOCH, host=host, hosts=2)
        assert total / 2 <= server.bytes_sent() <= total / 2 + 2 * one
