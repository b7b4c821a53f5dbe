"""Data in buckets: S3's interface by moto's server, Google's and the Hugging Face hub's by small servers of their requests."""

import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
from archives import write_tar
from batches import assert_equal
from servers import bucket_server, hub_server, s3_server

from jclip.config import TextTower
from jclip.data import BadExample, Batch, SourceError, eval_transform, make_loader, open_source

pytest.importorskip("fsspec", reason="the extra remote is not installed")

from jclip.data import copies, remote, stores

TRANSFORMS = {"text": eval_transform(TextTower(context_length=8))}


@pytest.fixture(autouse=True)
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JCLIP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("JCLIP_CACHE_GB", "1")
    monkeypatch.setenv("JCLIP_REMOTE", "ranges")
    for name in ("FIRST_SECONDS", "MOST_SECONDS"):
        monkeypatch.setattr(remote, name, 0.002)
    monkeypatch.setattr(remote, "_lost", {})
    monkeypatch.setattr(copies, "_chosen", {})
    monkeypatch.setattr(stores, "_stores", {})


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    for shard in range(3):
        write_tar(folder / f"s{shard}.tar", {f"{i}.txt": f"text {shard} {i}".encode() for i in range(8)})
    return folder


@pytest.fixture
def google(shards: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, bytes]]:
    pytest.importorskip("gcsfs", reason="the extra remote is not installed")
    files = {f"set/{path.name}": path.read_bytes() for path in sorted(shards.glob("s?.tar"))}
    with bucket_server(files) as url:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", url)
        yield files


@pytest.fixture(scope="module")
def s3(shards: Path) -> Iterator[None]:
    """A bucket "data" with the shards in its folder "set"."""
    with s3_server() as (_, files):
        files.mkdir("bucket")
        for path in sorted(shards.glob("s?.tar")):
            files.pipe_file(f"bucket/set/{path.name}", path.read_bytes())
        yield


def loaded(name: str, workers: int = 0) -> list[Batch]:
    with make_loader(open_source(name), TRANSFORMS, batch_size=6, workers=workers) as loader:
        return list(islice(loader, 5))


def assert_same_as_local(address: str, shards: Path, workers: int = 0) -> None:
    assert_equal(loaded(f"webdataset:{address}", workers), loaded(f"webdataset:{shards}/s{{0..2}}.tar"))


@pytest.mark.parametrize("way", ["ranges", "whole"])
@pytest.mark.parametrize("pattern", ["s{0..2}.tar", "*.tar"])
def test_a_bucket_of_google_gives_what_a_disk_does(
    pattern: str, way: str, google: dict[str, bytes], shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JCLIP_REMOTE", way)
    assert_same_as_local(f"gs://bucket/set/{pattern}", shards)


def test_an_object_of_google_that_changes_is_a_broken_example(google: dict[str, bytes]) -> None:
    source = open_source("webdataset:gs://bucket/set/s{0..1}.tar")
    assert source[0]["text"] == "text 0 0"
    google["set/s0.tar"] = google["set/s0.tar"].replace(b"text", b"TEXT")
    with pytest.raises(BadExample, match="there is no such file"):
        source[0]["text"]
    assert source[8]["text"] == "text 1 0"
    assert open_source("webdataset:gs://bucket/set/s{0..1}.tar")[0]["text"] == "TEXT 0 0"
    with pytest.raises(SourceError, match=r"gs://bucket/set/x.tar: there is no such file"):
        open_source("webdataset:gs://bucket/set/x.tar")


@pytest.mark.parametrize("way", ["ranges", "whole"])
@pytest.mark.parametrize("pattern", ["s{0..2}.tar", "*.tar"])
@pytest.mark.usefixtures("s3")
def test_a_bucket_of_s3_gives_what_a_disk_does(pattern: str, way: str, shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JCLIP_REMOTE", way)
    assert_same_as_local(f"s3://bucket/set/{pattern}", shards)


@pytest.mark.slow
@pytest.mark.usefixtures("s3")
def test_worker_processes_read_a_bucket(shards: Path) -> None:
    assert_same_as_local("s3://bucket/set/*.tar", shards, workers=2)


@pytest.mark.usefixtures("s3")
def test_an_object_of_s3_that_changes_or_is_not_there_is_reported() -> None:
    import fsspec

    files = fsspec.filesystem("s3", skip_instance_cache=True)
    files.copy("bucket/set/s0.tar", "bucket/other/s0.tar")
    source = open_source("webdataset:s3://bucket/other/s0.tar")
    assert source[0]["text"] == "text 0 0"
    files.pipe_file("bucket/other/s0.tar", files.cat_file("bucket/other/s0.tar").replace(b"text", b"TEXT"))
    with pytest.raises(BadExample, match="it was changed since it was opened"):
        source[1]["text"]
    for pattern, message in (
        ("set/x.tar", "s3://bucket/set/x.tar: there is no such file"),
        ("set/x*.tar", "no file matches"),
        ("set", "there is no such file, but a folder"),
    ):
        with pytest.raises(SourceError, match=message):
            open_source(f"webdataset:s3://bucket/{pattern}")


@pytest.mark.usefixtures("s3")
def test_a_bucket_without_credentials_is_refused_at_the_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(SourceError, match="access is denied: Unable to locate credentials"):
        open_source("webdataset:s3://bucket/set/s0.tar")
    assert "hidden" not in os.environ.values()


HUB = """
import os
from jclip.data import SourceError, open_source

for way in ("ranges", "whole"):
    os.environ["JCLIP_REMOTE"] = way
    for pattern in ("s{0..2}.tar", "*.tar"):
        source = open_source(f"webdataset:hf://datasets/org/name/data/{pattern}")
        assert [source[i]["text"] for i in range(24)] == [f"text {i // 8} {i % 8}" for i in range(24)]
for place in ("name/data", "none"):
    try:
        open_source(f"webdataset:hf://datasets/org/{place}/x.tar")
    except SourceError as error:
        print(error)
"""


def test_a_data_set_of_the_hub_gives_what_a_disk_does(shards: Path) -> None:
    pytest.importorskip("huggingface_hub", reason="the extra remote is not installed")
    with hub_server({f"data/{path.name}": path.read_bytes() for path in shards.glob("s?.tar")}) as url:
        # The library reads its environment where it is imported.
        environment = {**os.environ, "HF_ENDPOINT": url}
        command = [sys.executable, "-c", HUB]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr
    assert "hf://datasets/org/name/data/x.tar: there is no such file" in done.stdout
    assert "hf://datasets/org/none/x.tar: there is no such file" in done.stdout


MOVED = """
import pickle
from jclip.data import open_source, stores

name = "webdataset:hf://datasets/org/name/data/s{0..1}.tar"
source = open_source(name)
print(source[0]["text"], flush=True)
input()
print(source[1]["text"])
stores._stores.clear()
print(pickle.loads(pickle.dumps(source))[2]["text"], open_source(name)[3]["text"], sep="\\n")
"""


def test_a_branch_of_the_hub_that_moves_moves_nothing_that_is_open(shards: Path) -> None:
    pytest.importorskip("huggingface_hub", reason="the extra remote is not installed")
    files = {f"data/{path.name}": path.read_bytes() for path in shards.glob("s?.tar")}
    with hub_server(files) as url:
        environment = {**os.environ, "HF_ENDPOINT": url}
        command, pipe = [sys.executable, "-c", MOVED], subprocess.PIPE
        with subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
            assert process.stdout is not None
            first = process.stdout.readline()
            files["data/s0.tar"] = files["data/s0.tar"].replace(b"text", b"TEXT")
            rest, errors = process.communicate("\n", timeout=100)
    assert (first + rest).splitlines() == ["text 0 0", "text 0 1", "text 0 2", "TEXT 0 3"], errors
