"""Remote data: the same batches as from a disk, from servers of this machine that fail, stall, lie and change."""

import csv
import errno
import fcntl
import io
import json
import logging
import os
import pickle
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from archives import write_tar
from batches import assert_equal
from PIL import Image
from servers import FileServer, file_server

from jclip import cli
from jclip.config import Config, Data, TextTower, VisionTower, to_json
from jclip.data import BadExample, Batch, SourceError, eval_transform, make_loader, open_source

pytest.importorskip("aiohttp", reason="the extra remote is not installed")
pytest.importorskip("fsspec", reason="the extra remote is not installed")
pa = pytest.importorskip("pyarrow", reason="the extra tables is not installed")
import pyarrow.parquet as pq  # noqa: E402

from jclip.data import copies, remote, storage, stores, ways  # noqa: E402
from jclip.data.addresses import Address, public, shown  # noqa: E402
from jclip.data.reader import reading_threads  # noqa: E402
from jclip.data.source import Unreachable  # noqa: E402
from jclip.facts import between_hosts, changes  # noqa: E402

COUNT = 24
TEXTS = [f"picture {i}, in two\nlines" if i % 3 else f"picture {i}" for i in range(COUNT)]
TRANSFORMS = {"image": eval_transform(VisionTower(image_size=8)), "text": eval_transform(TextTower(context_length=8))}
FORMATS = {
    "webdataset": "webdataset:{}/s{{0..2}}.tar",
    "parquet": "parquet:{}/{{a,b}}.parquet",
    "csv": "csv:{}/photos.csv",
    "jsonl": "jsonl:{}/photos.jsonl?images={}/photos",
}


@pytest.fixture(autouse=True)
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of its own, the limit of a large disk, and pauses of a few milliseconds."""
    monkeypatch.setenv("JCLIP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("JCLIP_CACHE_GB", "1")
    for name in ("FIRST_SECONDS", "MOST_SECONDS"):
        monkeypatch.setattr(remote, name, 0.002)
    monkeypatch.setattr(remote, "_lost", {})
    monkeypatch.setattr(copies, "_chosen", {})
    monkeypatch.setattr(remote, "retries", remote._Retries())


def picture(i: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(i).integers(0, 256, (9, 8, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same pictures and texts in every format."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "photos").mkdir()
    names = [f"{i:03}.png" for i in range(COUNT)]
    for i, name in enumerate(names):
        (folder / "photos" / name).write_bytes(picture(i))
    for shard in range(3):
        indices = range(8 * shard, 8 * shard + 8)
        write_tar(
            folder / f"s{shard}.tar",
            {f"{i:03}.{kind}": part for i in indices for kind, part in (("png", picture(i)), ("txt", TEXTS[i].encode()))},
        )
    images = [picture(i) for i in range(COUNT)]
    for name, part in (("a", slice(0, 10)), ("b", slice(10, COUNT))):
        pq.write_table(pa.table({"image": images[part], "text": TEXTS[part]}), folder / f"{name}.parquet", row_group_size=4)
    with open(folder / "photos.csv", "w", newline="") as file:
        csv.writer(file).writerows(
            [("filepath", "title"), *((f"photos/{name}", text) for name, text in zip(names, TEXTS, strict=True))]
        )
    rows = [{"file_name": name, "text": text} for name, text in zip(names, TEXTS, strict=True)]
    (folder / "photos.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.fixture
def server(data: Path) -> Iterator[FileServer]:
    with file_server(data) as found:
        yield found


def spec(kind: str, place: Path | str) -> str:
    return FORMATS[kind].replace("{}", str(place)).replace("{{", "{").replace("}}", "}")


def loaded(name: str, count: int = 6, start: int = 0, workers: int = 0) -> list[Batch]:
    """Batches of more than an epoch."""
    with make_loader(open_source(name), TRANSFORMS, batch_size=6, seed=3, start=start, workers=workers) as loader:
        return list(islice(loader, count))


@pytest.mark.parametrize("way", ["ranges", "whole"])
@pytest.mark.parametrize("kind", FORMATS)
def test_batches_from_a_server_are_those_from_a_disk(
    kind: str, way: str, data: Path, server: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JCLIP_REMOTE", way)
    expected = loaded(spec(kind, data))
    assert not any(batch.problems for batch in expected)
    assert_equal(loaded(spec(kind, server.url)), expected)
    assert open_source(spec(kind, server.url)).fingerprint() == open_source(spec(kind, data)).fingerprint()


@pytest.mark.slow
@pytest.mark.parametrize("way", ["ranges", "whole"])
@pytest.mark.parametrize("kind", FORMATS)
def test_batches_from_a_server_do_not_depend_on_worker_processes(
    kind: str, way: str, data: Path, server: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JCLIP_REMOTE", way)
    assert_equal(loaded(spec(kind, server.url), workers=2), loaded(spec(kind, data)))


@pytest.mark.parametrize("kind", FORMATS)
def test_of_one_request_in_twenty_that_fails_nothing_is_lost(
    kind: str, data: Path, server: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JCLIP_REMOTE", "ranges")
    server.faults = {
        "error503": lambda method, path, number: number % 20 == 7,
        "short": lambda method, path, number: number % 20 == 13,
    }
    assert_equal(loaded(spec(kind, server.url), 12), loaded(spec(kind, data), 12))
    assert remote.retries.total >= 2
    assert_equal(loaded(spec(kind, server.url), 4, start=5), loaded(spec(kind, data), 9)[5:])


def test_a_store_that_throttles_is_asked_again_when_it_says(
    data: Path, server: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JCLIP_REMOTE", "ranges")
    expected = loaded(spec("webdataset", data), 2)
    source = open_source(spec("webdataset", server.url))
    begun = len(server.requests)
    server.faults = {"throttled": lambda method, path, number: number == begun and 1}
    began = time.monotonic()
    with make_loader(source, TRANSFORMS, batch_size=6, seed=3) as loader:
        assert_equal(list(islice(loader, 2)), expected)
    assert 1 <= time.monotonic() - began < 30
    times = [path for method, path, _ in server.requests[begun:] if path == server.requests[begun][1]]
    assert len(times) >= 2


def test_a_resumed_order_goes_on_after_requests_that_fail_at_random(
    data: Path, server: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JCLIP_REMOTE", "whole")
    draws = random.Random(0)
    server.faults = {fault: lambda *_: draws.random() < 0.1 for fault in ("error503", "short", "other_range")}
    assert_equal(loaded(spec("webdataset", server.url), 4, start=7), loaded(spec("webdataset", data), 11)[7:])


def test_a_second_start_reads_no_byte_of_a_file(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JCLIP_REMOTE", "ranges")
    for kind in ("webdataset", "jsonl"):
        first = len(open_source(spec(kind, server.url)))
        assert server.gets()
        server.requests.clear()
        code = f"from jclip.data import open_source; print(len(open_source({spec(kind, server.url)!r})))"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=100)
        assert done.stdout == f"{first}\n"
        assert {method for method, _, _ in server.requests} == {"HEAD"} | ({"GET"} if kind == "jsonl" else set())
        # Of JSON the first line names the columns, and the first rows are looked at for images that come again.
        assert server.bytes_sent() < (2000 if kind == "jsonl" else 100)
        server.requests.clear()


def test_an_example_is_one_request_and_what_is_large_in_a_tar_is_left_out_of_its_index(tmp_path: Path) -> None:
    members = {
        f"{i}.{kind}": bytes([i]) * (12 << 20 if kind == "bin" else 50) for i in range(3) for kind in ("bin", "jpg", "txt")
    }
    write_tar(tmp_path / "large.tar", members)
    with file_server(tmp_path) as server:
        os.environ["JCLIP_REMOTE"] = "ranges"
        try:
            source = open_source(f"webdataset:{server.url}/large.tar")
        finally:
            del os.environ["JCLIP_REMOTE"]
        assert server.bytes_sent() < 3 * (5 << 20)
        server.requests.clear()
        example = source[1]
        assert (example["image"], example["text"], len(example["bin"])) == (b"\1" * 50, "\1" * 50, 12 << 20)
        assert len(server.gets()) == 1


def test_examples_of_a_batch_are_asked_for_together(server: FileServer, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JCLIP_REMOTE", "ranges")
    source = open_source(spec("webdataset", server.url))
    server.most, server.faults = 0, {"held": lambda *_: 12}
    with make_loader(source, TRANSFORMS, batch_size=24, workers=0) as loader:
        keys = next(loader).keys
    assert sorted(keys) == sorted(source[i]["key"] for i in range(COUNT))
    assert server.most >= 12


def test_only_the_row_groups_that_are_needed_are_read(data: Path, server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JCLIP_REMOTE", "ranges")
    source = open_source(spec("parquet", server.url))
    server.requests.clear()
    assert source[22]["text"] == source[23]["text"].replace("23", "22")
    whole = (data / "b.parquet").stat().st_size
    assert {path for path, _ in server.gets()} == {"b.parquet"}
    texts = [wanted for _, wanted in server.gets()]
    assert len(texts) == 2, texts  # the footer, and a column of one row group
    assert server.bytes_sent() < whole + 1000


def opened(way: str, server: FileServer, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("JCLIP_REMOTE", way)
    return open_source(f"webdataset:{server.url}/s0.tar")


LIES = {
    "short": ({"short": lambda *_: True}, "bytes|payload"),
    "fewer": ({"fewer": lambda *_: True}, r"\d+ bytes came of \d+ \(tried 8 times\)"),
    "other range": ({"other_range": lambda *_: True}, "another range was sent"),
    "other total": ({"other_total": lambda *_: True}, "it was changed since it was opened"),
    "forbidden": ({"forbidden": lambda *_: True}, r"access is denied \(HTTP 403\)"),
    "down": ({"error503": lambda *_: True}, r"HTTP 503 Service Unavailable \(tried 8 times\)"),
}


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("way", ["ranges", "whole"])
def test_what_a_server_sends_wrongly_is_a_broken_example_and_never_read(
    lie: str, way: str, server: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = opened(way, server, monkeypatch)
    if way == "whole":
        for file in (Path(os.environ["JCLIP_CACHE"]) / "files").iterdir():
            file.unlink()
        source = pickle.loads(pickle.dumps(source))
    server.faults, message = LIES[lie]
    with pytest.raises(BadExample, match=message) as broken:
        source[0]["text"]
    assert isinstance(broken.value, Unreachable) == (lie != "other total")
    server.faults = {}
    monkeypatch.setattr(remote, "_lost", {})
    assert source[0]["text"] == TEXTS[0]


@pytest.mark.parametrize("fault", ["error503", "forbidden"])
@pytest.mark.parametrize("kind", FORMATS)
def test_what_a_store_refuses_is_out_of_reach_and_what_is_not_there_is_broken(
    kind: str, fault: str, server: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JCLIP_REMOTE", "ranges")
    source = open_source(spec(kind, server.url))
    fresh = pickle.loads(pickle.dumps(source))
    image = source[0]["image"]
    for one, field in ((source, "image"), (fresh, "image"), (fresh, "text")):
        server.faults = {fault: lambda *_: True}
        # Of parquet the row group is kept, and of rows the small file may be.
        if one is fresh or kind in ("csv", "jsonl", "webdataset"):
            with pytest.raises(Unreachable, match=r"503|403"):
                one[8][field]
        server.faults = {}
        assert source[0]["image"] == image
    if kind in ("csv", "jsonl"):
        server.faults = {"missing": lambda method, path, number: path.endswith(".png")}
        with pytest.raises(BadExample, match="there is no such file") as broken:
            source[8]["image"]
        assert type(broken.value) is BadExample


def test_a_disk_that_fails_is_out_of_reach_and_damage_is_broken(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("s0.tar", "a.parquet", "photos.csv")
    sources = [open_source(f"{kind}:{tmp_path}/{name}") for kind, name in _copied(data, tmp_path, names)]
    for name in names:
        (tmp_path / name).rename(tmp_path / f"{name}.away")
    for source in sources:
        with pytest.raises(Unreachable, match="cannot be read"):
            source[0]["text"]
    for name in names:
        (tmp_path / f"{name}.away").rename(tmp_path / name)
    table = bytearray((data / "a.parquet").read_bytes())
    table[4:200] = bytes(196)
    (tmp_path / "damaged.parquet").write_bytes(table)
    with pytest.raises(BadExample, match="cannot be read") as broken:
        open_source(f"parquet:{tmp_path}/damaged.parquet")[0]["image"]
    assert type(broken.value) is BadExample

    def fail(*_: Any) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    shard = open_source(f"webdataset:{data}/s0.tar")
    row = shard[0]
    monkeypatch.setattr(storage.LocalFile, "read", fail)
    with pytest.raises(Unreachable, match="Input/output error"):
        row["text"]


def _copied(data: Path, folder: Path, names: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    for kind, name in zip(("webdataset", "parquet", "csv"), names, strict=True):
        shutil.copy(data / name, folder / name)
        yield kind, name


@pytest.mark.parametrize("way", ["ranges", "whole"])
def test_of_a_server_without_ranges_nothing_is_misread(
    way: str, data: Path, server: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JCLIP_REMOTE", way)
    server.faults = {"no_ranges": lambda *_: True}
    for kind in FORMATS:
        assert_equal(loaded(spec(kind, server.url), 2), loaded(spec(kind, data), 2))
    monkeypatch.setattr(stores, "SLICED", 1000)
    source = opened("ranges", server, monkeypatch)
    with pytest.raises(BadExample, match="the server ignores ranges, and of larger files than"):
        source[0]["text"]


def test_lengths_that_the_server_does_not_tell_at_once_are_asked_for(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.faults = {"no_head": lambda *_: True}
    assert opened("ranges", server, monkeypatch)[0]["text"] == TEXTS[0]
    server.faults = {"no_length": lambda *_: True}
    assert opened("ranges", server, monkeypatch)[1]["text"] == TEXTS[1]
    server.faults = {"no_length": lambda *_: True, "no_ranges": lambda *_: True}
    with pytest.raises(SourceError, match="does not say how long it is"):
        opened("ranges", server, monkeypatch)


def test_nothing_that_is_kept_is_taken_for_a_file_of_which_nothing_says_that_it_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "files").mkdir()
    found = []
    with file_server(tmp_path / "files") as server:
        server.faults = {"no_tag": lambda *_: True}
        for way in ("ranges", "whole"):
            monkeypatch.setenv("JCLIP_REMOTE", way)
            for text in ("a dog", "a cat"):
                (tmp_path / "files" / "rows.jsonl").write_text(f'{{"text": "{text}"}}\n')
                source = open_source(f"jsonl:{server.url}/rows.jsonl")
                found += [source[0]["text"], source.fingerprint()]
            server.faults = {"no_tag": lambda method, *_: method == "HEAD"}
    assert found[::2] == ["a dog", "a cat"] * 2
    assert found[1] != found[3]
    assert found[1::4] == [found[1]] * 2


def test_a_body_without_end_is_not_read_to_its_end(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    source = opened("ranges", server, monkeypatch)
    table = open_source(f"jsonl:{server.url}/photos.jsonl?images={server.url}/photos")
    monkeypatch.setattr("jclip.data.files.MAX_BYTES", 1 << 20)
    rows = table[0]
    server.faults = {"endless": lambda *_: True, "no_length": lambda *_: True}
    with pytest.raises(Unreachable, match=r"\d+ bytes came of \d+ \(tried 8 times\)"):
        source[0]["text"]
    with pytest.raises(BadExample, match="more than 1048576"):
        rows["image"]


def test_a_loader_that_is_closed_leaves_no_request_to_be_made(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JCLIP_REMOTE", "ranges")
    source = open_source(spec("webdataset", server.url))
    before = set(threading.enumerate())
    server.requests.clear()
    server.faults = {"slow": lambda *_: 0.1}
    loader = make_loader(source, TRANSFORMS, batch_size=96)
    next(loader)
    loader.close()
    assert loader.ended
    asked = len(server.requests)
    time.sleep(0.3)
    assert len(server.requests) == asked
    assert not [thread.name for thread in set(threading.enumerate()) - before if "ThreadPoolExecutor" in thread.name]


def test_what_was_lost_is_forgotten_in_time() -> None:
    remote._lost.update({"old": time.monotonic() - 1, "new": time.monotonic() + 9})
    remote._forget_lost()
    assert list(remote._lost) == ["new"]


def test_a_server_that_stalls_is_given_up_and_asked_again(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "STALLED_SECONDS", 0.3)
    monkeypatch.setattr(stores, "_stores", {})
    source = opened("ranges", server, monkeypatch)
    after = len(server.requests)
    server.faults = {"stalled": lambda method, path, number: number == after}
    start = time.monotonic()
    assert source[0]["text"] == TEXTS[0]
    assert (len(server.requests) - after, remote.retries.total) == (2, 1)
    assert time.monotonic() - start < 30  # the server stalls for a minute


@pytest.mark.parametrize("way", ["ranges", "whole"])
def test_a_file_that_changes_in_a_run_is_broken_and_said(way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for shard in range(3):
        write_tar(tmp_path / f"s{shard}.tar", {f"{i}.txt": f"text {shard} {i}".encode() for i in range(8)})
    with file_server(tmp_path) as server:
        monkeypatch.setenv("JCLIP_REMOTE", way)
        source = open_source(f"webdataset:{server.url}/s{{0..2}}.tar")
        assert source[0]["text"] == "text 0 0"
        write_tar(tmp_path / "s1.tar", {f"{i}.txt": f"TEXT 1 {i}".encode() for i in range(8)})  # of the same size
        if way == "whole":
            for file in (tmp_path / "cache" / "files").glob("*-s1.tar"):
                file.unlink()
            source = pickle.loads(pickle.dumps(source))
        with pytest.raises(BadExample, match="it was changed since it was opened"):
            source[8]["text"]
        assert source[16]["text"] == "text 2 0"


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("s{0..3}.tar", r"/s3.tar: there is no such file \(HTTP 404\)"),
        ("s*.tar", "a server has no list of files"),
        ("nothing.csv", r"nothing.csv: there is no such file \(HTTP 404\)"),
    ],
)
def test_what_is_not_there_is_refused_at_the_start_by_name(pattern: str, message: str, server: FileServer) -> None:
    kind = "csv" if pattern.endswith("csv") else "webdataset"
    with pytest.raises(SourceError, match=message):
        open_source(f"{kind}:{server.url}/{pattern}")
    assert remote.retries.total == 0


def test_a_server_that_is_not_there_is_refused_at_the_start() -> None:
    with pytest.raises(SourceError, match=r"http://127.0.0.1:9/a.tar: .*Cannot connect.*tried 5 times"):
        open_source("webdataset:http://127.0.0.1:9/a.tar")


def test_a_shard_that_is_gone_costs_its_examples_alone_and_stalls_the_run_once(
    data: Path, server: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JCLIP_REMOTE", "ranges")
    source = open_source(spec("webdataset", server.url))
    server.faults = {"error503": lambda method, path, number: path == "s1.tar"}
    server.requests.clear()
    with make_loader(source, TRANSFORMS, batch_size=6, seed=3) as loader:
        some = list(islice(loader, 8))
    problems = [problem for batch in some for problem in batch.problems]
    assert problems
    assert all("its .png cannot be read: HTTP 503" in problem or "its .txt cannot" in problem for problem in problems)
    assert not any("s1.tar" in key for batch in some for key in batch.keys)
    asked = len([path for _, path, _ in server.requests if path == "s1.tar"])
    first = 6 * reading_threads()  # examples that are asked for at once, before any is known to fail: a batch a thread
    assert asked <= 7 * first + len(problems)  # those eight times, and all others once
    server.faults = {"forbidden": lambda *_: True}
    with (
        make_loader(source, TRANSFORMS, batch_size=6, seed=3) as loader,
        pytest.raises(SourceError, match="100 examples in a row"),
    ):
        next(loader)


def test_requests_that_are_made_again_are_counted_and_said_in_one_line(
    server: FileServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    source = opened("ranges", server, monkeypatch)
    server.faults = {"error503": lambda method, path, number: number % 2 == 0}
    assert [source[i]["text"] for i in range(8)] == TEXTS[:8]
    said = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert len(said) == 1
    assert "made again" in said[0]
    assert remote.retries.total >= 4


def test_signatures_and_passwords_are_in_no_error_log_or_name_of_a_file(
    tmp_path: Path, server: FileServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="jclip")
    secret = server.url.replace("http://", "http://user:hidden@")
    errors = []
    for way in ("ranges", "whole"):
        monkeypatch.setenv("JCLIP_REMOTE", way)
        source = open_source(f"webdataset:{secret}/s{{0..1}}.tar?captions=lines&sig=hidden")
        assert source[1]["captions"] == ("picture 1, in two", "lines")
        assert open_source(f"jsonl:{secret}/photos.jsonl?images={secret}/photos&sig=hidden")[2]["image"] == picture(2)
        server.faults = {"error503": lambda method, path, number: path == "s1.tar"}
        copy = pickle.loads(pickle.dumps(source))
        if way == "ranges":
            with pytest.raises(BadExample) as broken:
                copy[12]["text"]
            errors.append(str(broken.value))
        for kind, name in (("webdataset", "none.tar"), ("parquet", "none.parquet"), ("csv", "none.csv"), ("csv", "s0.tar")):
            with pytest.raises(SourceError) as refused:
                open_source(f"{kind}:{secret}/{name}?sig=hidden")
            errors.append(str(refused.value))
        server.faults = {}
    assert len(errors) == 9
    cached = [str(path) for path in (tmp_path / "cache").rglob("*")]
    content = [path.read_bytes() for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert cached
    assert caplog.messages
    assert not [text for text in (*errors, *cached, *caplog.messages) if "hidden" in text]
    assert not any(b"hidden" in text for text in content)


def test_an_address_shows_nothing_secret_however_it_is_printed_and_is_whole_for_the_store() -> None:
    address = Address("https://me:word@host/a.tar?X-Amz-Signature=0f")
    address.size, address.version = 3, "tag"
    again = pickle.loads(pickle.dumps(address))
    assert (again.exact, again.state) == ("https://me:word@host/a.tar?X-Amz-Signature=0f", address.state)
    assert f"{again}" == str(again) == "https://host/a.tar?..."
    assert f"{again!r} {[again]}" == "'https://host/a.tar?...' ['https://host/a.tar?...']"
    assert shown("s3://bucket/a?.tar and hf://datasets/a/b@main/x") == "s3://bucket/a?.tar and hf://datasets/a/b@main/x"
    assert address.state[1] < 0
    assert address.state[2] < 0


def test_a_signature_is_not_shown_however_its_address_is_written_nor_where_it_was_renewed(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    for text in ("ftp://u:SECRET@h/a", "https://me:p@SECRET@host/a.tar", "see 'https://host/a b.tar?sig=SECRET', please"):
        assert "SECRET" not in shown(text)
    for text in ("https://host/a 'b.tar?sig=it's a SECRET", "https://host/a.tar?sig=1?SECRET"):
        assert "SECRET" not in f"{Address(text)} {public(text)}"
    old, new = ({"config": to_json(Config(data=Data(source=f"csv:https://h/a.csv?sig={n}SECRET")))} for n in (1, 2))
    lines = [*changes(old, new, 0, (0.0, 0.0)), *between_hosts(["a", "b"], [old, new])]
    assert lines == ["data.source: 'csv:https://h/a.csv?...' -> 'csv:https://h/a.csv?...'", *lines[1:]]
    assert len(lines) == 2
    assert "SECRET" not in lines[1]
    with caplog.at_level(logging.WARNING, logger="jclip"):
        logging.getLogger("jclip").warning("at %s", "s3://u:SECRET@h/a")
    assert cli._Formatter("%(message)s").format(caplog.records[-1]) == "at s3://h/a"
    assert cli.main(["data", "ftp://u:SECRET@h"]) == 1
    assert "SECRET" not in capsys.readouterr().err


def test_copies_stay_below_their_limit_and_the_oldest_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "files").mkdir()
    for shard in range(6):
        write_tar(tmp_path / "files" / f"s{shard}.tar", {f"{i}.txt": f"{shard} {i}".encode() * 500 for i in range(30)})
    size = (tmp_path / "files" / "s0.tar").stat().st_size
    monkeypatch.setenv("JCLIP_REMOTE", "whole")
    monkeypatch.setenv("JCLIP_CACHE_GB", str(3.5 * size / 1e9))
    folder, most = tmp_path / "cache" / "files", []
    with file_server(tmp_path / "files") as server:
        source = open_source(f"webdataset:{server.url}/s{{0..5}}.tar")
        wanted = [open_source(f"webdataset:{tmp_path}/files/s{{0..5}}.tar")[i]["text"] for i in range(len(source))]

        def read(index: int) -> None:
            # Each as another process has it, which holds no file open.
            assert pickle.loads(pickle.dumps(source))[index]["text"] == wanted[index]
            total = 0
            for path in folder.glob("*-s*.tar"):
                with suppress(FileNotFoundError):  # dropped meanwhile, by another thread
                    total += path.stat().st_size
            most.append(total)

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(read, np.random.default_rng(0).integers(len(source), size=60).tolist()))
        assert max(most) <= 3.5 * size
        for index in (0, 30, 60):
            read(index)
        server.requests.clear()
        for index in (0, 90, 0, 30):  # 90 takes the place of 30, which was opened longest ago
            read(index)
        assert [path for path, _ in server.gets()] == ["s3.tar", "s1.tar"]
    monkeypatch.setenv("JCLIP_CACHE_GB", str(0.5 * size / 1e9))
    with pytest.raises(BadExample, match="set JCLIP_CACHE_GB"):
        pickle.loads(pickle.dumps(source))[150]["text"]


def test_a_part_is_deleted_by_nobody_but_who_holds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part, held = tmp_path / "x-5.part", []
    part.write_bytes(b"abc")
    unlink = Path.unlink

    def spied(path: Path, missing_ok: bool = False) -> None:
        with open(path, "rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                held.append(path)
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", spied)
    with copies._held(part):
        assert not copies._unlink_left(part)
    assert copies._unlink_left(part)
    assert held == [part]
    assert not part.exists()


def test_the_usual_limit_does_not_shrink_in_a_run_and_a_full_disk_is_heeded(
    server: FileServer, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("JCLIP_CACHE_GB")
    size, free = (data / "s0.tar").stat().st_size, [10**9]
    monkeypatch.setattr(copies, "disk_usage", lambda folder: SimpleNamespace(free=free[0]))
    monkeypatch.setenv("JCLIP_REMOTE", "whole")
    source = open_source(spec("webdataset", server.url))
    folder = Path(os.environ["JCLIP_CACHE"], "files")
    next(folder.glob("*-s0.tar")).unlink()
    free[0] = size + 10  # a limit of half of what is free would have none of them now
    assert pickle.loads(pickle.dumps(source))[0]["text"] == TEXTS[0]
    assert len(list(folder.glob("*.tar"))) == 3
    for copy in folder.glob("*.tar"):
        copy.unlink()
    free[0] = size - 10

    def read(index: int) -> None:
        with pytest.raises(Unreachable, match="its disk has"):
            pickle.loads(pickle.dumps(source))[index]["text"]

    with ThreadPoolExecutor(3) as pool:  # none of whom waits for the others
        list(pool.map(read, (0, 8, 16)))


def test_copies_of_another_user_are_read(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "utime", refuse)
    monkeypatch.setattr(os, "fchmod", refuse)
    source = opened("whole", server, monkeypatch)
    assert pickle.loads(pickle.dumps(source))[0]["text"] == TEXTS[0]


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_the_fingerprint_of_a_remote_table_asks_together_and_does_not_pass_over_a_store_that_fails(
    kind: str, data: Path, server: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JCLIP_REMOTE", "ranges")
    source = open_source(spec(kind, server.url))
    server.requests.clear()
    server.most, server.faults = 0, {"held": lambda *_: 12}
    expected = source.fingerprint()
    assert expected == open_source(spec(kind, data)).fingerprint()
    assert server.most >= 12
    assert len(server.requests) <= 2 * COUNT + 4  # two for each image, and a few for the table
    for fault, wanted in (("error503", "HEAD"), ("error503", "GET"), ("forbidden", "GET")):
        monkeypatch.setenv("JCLIP_CACHE", os.environ["JCLIP_CACHE"] + "x")
        server.faults = {fault: lambda method, path, number, wanted=wanted: method == wanted and path.endswith("7.png")}
        with pytest.raises(SourceError, match=r"7.png cannot be read: .*(503|403)"):
            source.fingerprint()
    server.faults = {"error503": lambda method, path, number: path.endswith(kind)}
    with pytest.raises(SourceError, match="its row cannot be read: HTTP 503"):
        source.fingerprint()
    server.faults = {"missing": lambda method, path, number: path.endswith("7.png")}
    assert source.fingerprint() != expected


def test_a_host_of_ipv6_is_no_glob(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ways._names("http://[::1]:8000/x.tar?a=[1]") == ["http://[::1]:8000/x.tar?a=[1]"]
    with pytest.raises(OSError, match="no list of files"):
        ways._names("http://[::1]:8000/[xy].tar")


def test_of_many_who_want_a_file_one_fetches_it(server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = opened("whole", server, monkeypatch)
    for file in Path(os.environ["JCLIP_CACHE"], "files").iterdir():
        file.unlink()
    server.requests.clear()
    server.faults = {"slow": lambda *_: 2.0}
    data = pickle.dumps(source)
    (tmp_path / "source").write_bytes(data)
    code = "import pickle, sys; print(pickle.load(open(sys.argv[1], 'rb'))[0]['text'])"
    command = [sys.executable, "-c", code, str(tmp_path / "source")]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    with ThreadPoolExecutor(3) as pool:
        texts = list(pool.map(lambda i: pickle.loads(data)[i]["text"], range(3)))
    assert texts == TEXTS[:3]
    assert [process.communicate(timeout=60)[0] for process in processes] == [f"{TEXTS[0]}\n"] * 2
    assert len(server.gets()) == 1


def test_a_download_that_was_cut_is_gone_on_with_and_never_taken_for_the_whole(
    server: FileServer, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copies, "BLOCK", 4096)
    source = opened("whole", server, monkeypatch)
    folder = Path(os.environ["JCLIP_CACHE"], "files")
    (whole,) = folder.glob("*-s0.tar")
    content = (data / "s0.tar").read_bytes()
    assert whole.read_bytes() == content
    whole.unlink()
    server.requests.clear()
    server.faults = {"forbidden": lambda method, path, number: number >= 2}
    with pytest.raises(BadExample, match="HTTP 403"):
        pickle.loads(pickle.dumps(source))[0]
    assert [path.name for path in folder.iterdir() if path.name != "lock"] == [f"{whole.name[:20]}-{len(content)}.part"]
    server.faults = {}
    server.requests.clear()
    assert pickle.loads(pickle.dumps(source))[0]["text"] == TEXTS[0]
    assert server.gets()[0] == ("s0.tar", "bytes=8192-12287")
    assert whole.read_bytes() == content


def test_the_rule_chooses_copies_within_the_limit_and_says_why(
    data: Path, server: FileServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="jclip.data.ways")
    total = sum((data / f"s{i}.tar").stat().st_size for i in range(3))
    name = spec("webdataset", server.url)
    monkeypatch.delenv("JCLIP_REMOTE", raising=False)
    for limit, way, said in (
        (total + 1, "whole", "are copied to"),
        (total - 1, "ranges", "by a request for each example or row group, because they are more than"),
    ):
        monkeypatch.setattr(copies, "_chosen", {})
        monkeypatch.setenv("JCLIP_CACHE_GB", str(limit / 1e9))
        caplog.clear()
        source = open_source(name)
        assert len(caplog.messages) == 1
        assert said in caplog.messages[0]
        assert all(path.whole == (way == "whole") for path in source._paths)
    monkeypatch.setattr(copies, "_chosen", {"another": total})
    monkeypatch.setenv("JCLIP_CACHE_GB", str(1.5 * total / 1e9))
    assert not any(path.whole for path in open_source(name)._paths)


@pytest.mark.parametrize("setting", ["JCLIP_REMOTE=copy", "JCLIP_CACHE_GB=0", "JCLIP_CACHE_GB=nan", "JCLIP_CACHE_GB=x"])
def test_a_setting_that_is_none_is_refused(setting: str, server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(*setting.split("="))
    with pytest.raises(SourceError, match=setting):
        open_source(spec("webdataset", server.url))


def test_without_the_extra_one_line_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "_stores", {})
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    with pytest.raises(SourceError, match=r"pip install 'jclip\[remote\]'"):
        open_source("webdataset:https://host/a.tar")


def test_local_paths_bring_nothing_of_it(data: Path) -> None:
    code = (
        "import sys; from jclip.data import open_source; [dict(open_source(name)[0]) for name in sys.argv[1:]]; "
        "print(*{'fsspec', 'aiohttp', 's3fs', 'jclip.data.remote', 'jclip.data.ways', 'jclip.data.stores'} & set(sys.modules))"
    )
    names = [spec(kind, data) for kind in FORMATS if kind != "parquet"]  # pyarrow imports fsspec where it is there
    done = subprocess.run([sys.executable, "-c", code, *names], capture_output=True, text=True, check=True, timeout=100)
    assert done.stdout.strip() == ""


def test_a_path_of_a_remote_table_is_a_name_whatever_letters_it_has(tmp_path: Path) -> None:
    names = ["a#b.png", "a?q.png", "100%.png", "..foo.png", "a b.png", "é.png"]
    (tmp_path / "in").mkdir()
    for name in (*(f"in/{name}" for name in names), "secret.png", "in/a"):
        (tmp_path / name).write_bytes(name.encode())
    rows = [{"file_name": name, "text": "a"} for name in (*names, "%2e%2e/secret.png", "..", "x/../../secret.png")]
    (tmp_path / "in" / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with file_server(tmp_path) as server:
        source = open_source(f"jsonl:{server.url}/in/rows.jsonl")
        assert [source[i]["image"].decode() for i in range(len(names))] == [f"in/{name}" for name in names]
        for index, message in enumerate(("there is no such file", "lies outside", "lies outside"), len(names)):
            with pytest.raises(BadExample, match=message):
                source[index]["image"]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_images_at_addresses_are_read_where_the_table_is_trusted(
    kind: str, server: FileServer, data: Path, tmp_path: Path
) -> None:
    urls = [f"{server.url}/photos/{i:03}.png" for i in range(8)]
    rows = [
        {"url": url, "text": f"picture {i}"}
        for i, url in enumerate([*urls, f"{server.url}/photos/none.png", "file:///etc/passwd"])
    ]
    table = tmp_path / f"links.{kind}"
    match kind:
        case "csv":
            with table.open("w", newline="") as file:
                csv.writer(file).writerows([("url", "text"), *((row["url"], row["text"]) for row in rows)])
        case "jsonl":
            table.write_text("\n".join(map(json.dumps, rows)))
        case _:
            pq.write_table(pa.Table.from_pylist(rows), table)
    source = open_source(f"{kind}:{table}?image=url&urls=yes")
    assert [source[i]["image"] for i in range(8)] == [picture(i) for i in range(8)]
    assert reading_threads(source) > reading_threads()
    for index, message in ((8, "there is no such file"), (9, "is an address")):
        with pytest.raises(BadExample, match=message):
            source[index]["image"]
    asked = len(server.requests)
    assert source.fingerprint() == open_source(f"{kind}:{table}?image=url&urls=yes").fingerprint()
    assert len(server.requests) == asked, "the table says what is read"
    untrusted = open_source(f"{kind}:{table}?image=url")
    with pytest.raises(BadExample, match="is an address; without urls=yes"):
        untrusted[0]["image"]
    with pytest.raises(SourceError, match="urls=maybe is unknown; use urls=yes or urls=no"):
        open_source(f"{kind}:{table}?image=url&urls=maybe")


def test_images_of_a_remote_table_stay_below_its_folder(server: FileServer, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"file_name": name, "text": "a"} for name in ("../s0.tar", "/s0.tar", f"{server.url}/s0.tar", "none.png")]
    (data / "photos" / "bad.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = open_source(f"jsonl:{server.url}/photos/bad.jsonl")
    for index, message in enumerate(("lies outside", "lies outside", "is an address", "there is no such file")):
        with pytest.raises(BadExample, match=message):
            source[index]["image"]
