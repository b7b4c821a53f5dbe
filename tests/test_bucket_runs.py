"""Runs whose workdir is in a bucket: trained in a local folder, kept up with by the bucket, gone on with anywhere."""

import dataclasses
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from servers import google_server, s3_server
from test_processes import two_processes
from test_train import HERE, finish, start_jclip
from tiny import flags_for, tiny_config

import jclip
from jclip import bucket_lock, evaluate, mirror, runs, train
from jclip.bucket import Bucket, complete_steps, digest_of, is_copy, local_run
from jclip.bucket_lock import BucketLock
from jclip.config import ConfigError
from jclip.data import stores
from jclip.lock import LockedWorkdir
from jclip.mirror import Mirror, NotCopied
from jclip.tree import flatten
from jclip.weights import WeightsError


@pytest.fixture(scope="module")
def store() -> Iterator[dict[str, str]]:
    """A server with S3's interface, an empty bucket "runs" in it, and the variables that lead there."""
    with s3_server() as (variables, files):
        files.mkdir("runs")
        yield variables


def same_parameters(one: str | Path, other: str | Path) -> None:
    a, b = (flatten(runs.load_run(path)[2]) for path in (one, other))
    assert a.keys() == b.keys()
    for name, value in a.items():
        np.testing.assert_array_equal(value, b[name])


def test_a_run_in_a_bucket_goes_on_on_another_machine_bit_by_bit(
    store: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bucket_lock, "SETTLED", 0.1)
    config = dataclasses.replace(tiny_config(), duration="6")
    train.main(config, tmp_path / "whole")
    address = "s3://runs/a/run"
    monkeypatch.setenv("JCLIP_CACHE", str(tmp_path / "first"))
    train.main(dataclasses.replace(config, duration="3"), address)
    assert local_run(address).is_dir()
    monkeypatch.setenv("JCLIP_CACHE", str(tmp_path / "second"))
    train.main(config, address + "/")
    out = capfd.readouterr().out
    assert "fetching the checkpoints of s3://runs/a/run (step 3)" in out
    assert "resuming after step 3" in out
    same_parameters(local_run(address), tmp_path / "whole")
    files = Bucket(address).files()
    steps = {int(path.name) for path in (tmp_path / "whole" / "checkpoints").iterdir()}
    assert set(complete_steps(Bucket(address), files)) == steps, "what the workdir has no more is gone from the bucket"
    assert {"config.json", "metrics.jsonl", "evaluations.json", "complete/6.json"} <= files.keys()
    assert "run.lock" not in files
    steps = [json.loads(line)["step"] for line in (local_run(address) / "metrics.jsonl").read_text().splitlines()]
    assert max(steps) == 6
    monkeypatch.setenv("JCLIP_CACHE", str(tmp_path / "reader"))
    np.testing.assert_array_equal(
        jclip.load(address).embed_text(["a red circle"]), jclip.load(tmp_path / "whole").embed_text(["a red circle"])
    )
    names = list(config.evals)[:1]
    assert evaluate.main(address, names=names) == evaluate.main(tmp_path / "whole", names=names)
    with pytest.raises(WeightsError, match="s3://runs/b holds no run of jclip with a whole checkpoint"):
        jclip.load("s3://runs/b")


OFTEN = "import sys; from jclip import cli, mirror; mirror.EVERY = 0.05; sys.exit(cli.main(sys.argv[1:]))"
"""`jclip` that copies to a bucket all the time."""


def start_often(address: str, *options: str, **variables: str) -> subprocess.Popen[str]:
    process = [sys.executable, "-c", OFTEN, "train", str(HERE / "recipe_tiny.py"), "--workdir", address, *options]
    environment = {**os.environ, "XLA_FLAGS": flags_for(1), "PYTHONPATH": f"{HERE.parent}{os.pathsep}{HERE}", **variables}
    return subprocess.Popen(process, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True)


@pytest.mark.slow
def test_a_run_that_is_killed_goes_on_from_its_bucket_bit_by_bit(store: dict[str, str], tmp_path: Path) -> None:
    options = ("--duration", "400", "--checkpoint.every", "20", "--evals", "none", "--checkpoint.best", "None")
    finish(start_jclip(tmp_path / "whole", *options))
    bucket = Bucket("s3://runs/killed")
    process = start_often(bucket.address, *options, **store, JCLIP_CACHE=str(tmp_path / "one"))
    while not any(name.startswith("complete/") for name in bucket.files()):
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    process.kill()
    process.communicate()
    (step, *_) = complete_steps(bucket, bucket.files())
    assert step < 400, "it was killed on its way"
    out, _ = finish(start_often(bucket.address, *options, **store, JCLIP_CACHE=str(tmp_path / "two")))
    assert "resuming after step" in out
    same_parameters(local_run(bucket.address), tmp_path / "whole")


@pytest.mark.slow
def test_two_processes_share_the_local_folder_of_a_bucket_or_are_refused(store: dict[str, str], tmp_path: Path) -> None:
    def run(address: str, caches: tuple[str, str]) -> list[tuple[int, str, str]]:
        processes = [
            start_jclip(address, "--duration", "4", devices=1, **store, **who, JCLIP_CACHE=str(tmp_path / cache))
            for who, cache in zip(two_processes(), caches, strict=True)
        ]
        said = [process.communicate(timeout=240) for process in processes]
        return [(process.returncode, *texts) for process, texts in zip(processes, said, strict=True)]

    for status, out, err in run("s3://runs/two", ("shared", "shared")):
        assert status == 0, out + err
    bucket = Bucket("s3://runs/two")
    assert 4 in complete_steps(bucket, bucket.files())
    for status, out, err in run("s3://runs/apart", ("here", "there")):
        assert status == 1, out
        assert "differ" in err or "have to share" in err
    assert not any(name.startswith("complete/") for name in Bucket("s3://runs/apart").files())


class Memory(Bucket):
    """A bucket that lives in memory, of which single requests can be made to fail."""

    def __init__(self) -> None:
        super().__init__("s3://memory/run")
        self.content: dict[str, bytes] = {}
        self.order: list[str] = []
        self.failing = ""

    def files(self) -> dict[str, int]:
        return {name: len(content) for name, content in self.content.items()}

    def read(self, name: str) -> bytes | None:
        return self.content.get(name)

    def write(self, name: str, content: bytes) -> None:
        if self.failing and name.startswith(self.failing):
            raise OSError("the store does not answer")
        self.content[name] = content
        self.order.append(name)

    def put(self, name: str, path: Path) -> int:
        self.write(name, path.read_bytes())
        return path.stat().st_size

    def fetch(self, name: str, size: int, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self.content[name])

    def remove(self, name: str) -> None:
        del self.content[name]
        self.order.append(f"-{name}")


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirror, "EVERY", 0.01)


def fill(folder: Path, files: dict[str, str]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)


STEP_4 = {"checkpoints/4/params/a": "aa", "checkpoints/4/.zarray": "z"}


def mirror_of(bucket: Bucket, folder: Path, said: list[str] | None = None) -> Mirror:
    return Mirror(bucket, folder, (said if said is not None else []).append, lambda: None)


def test_the_list_of_a_checkpoint_is_written_last_and_removed_first(tmp_path: Path) -> None:
    bucket = Memory()
    kept = mirror_of(bucket, tmp_path)
    kept.begin()
    fill(tmp_path, {**STEP_4, "metrics.jsonl": "{}", "run.lock": "x", "checkpoints/8.orbax-checkpoint-tmp-1/a": "half"})
    kept._copy()
    assert bucket.content.keys() == {*STEP_4, "metrics.jsonl", "complete/4.json"}
    assert bucket.order.index("complete/4.json") > max(bucket.order.index(name) for name in STEP_4)
    for name in STEP_4:
        (tmp_path / name).unlink()
    kept.close()
    assert bucket.content.keys() == {"metrics.jsonl"}
    assert bucket.order[-3] == "-complete/4.json"


def test_the_bucket_counts_where_another_machine_has_gone_on(tmp_path: Path) -> None:
    bucket, here, there = Memory(), tmp_path / "here", tmp_path / "there"
    for folder, step in ((here, 4), (there, 8)):
        kept = mirror_of(bucket, folder)
        kept.begin()
        fill(folder, {f"checkpoints/{step}/a": folder.name, "metrics.jsonl": folder.name})
        kept.close()
    assert (there / "checkpoints/4/a").read_text() == "here"
    fill(here, {"checkpoints/6/a": "of nobody"})
    kept = mirror_of(bucket, here, said := [])
    kept.begin()
    assert (here / "metrics.jsonl").read_text() == "there"
    assert sorted(path.name for path in (here / "checkpoints").iterdir()) == ["4", "8"]
    assert said == [f"fetching the checkpoints of s3://memory/run (step 4, 8) to {here}"]
    fill(here, {"checkpoints/9/a": "killed before it was copied"})
    kept.close()
    fill(here, {"checkpoints/10/a": "and this one too"})
    kept = mirror_of(bucket, here, said := [])
    kept.begin()
    assert said == [], "no other machine has gone on: the folder is the newest there is"
    kept.close()
    assert list(complete_steps(bucket, bucket.files())) == [4, 8, 9, 10]


def test_half_a_checkpoint_does_not_count_and_a_shorter_file_is_named(tmp_path: Path) -> None:
    bucket = Memory()
    bucket.content = {"checkpoints/4/a": b"aa", "checkpoints/8/a": b"half", "complete/4.json": b'{"checkpoints/4/a": 2}'}
    assert list(complete_steps(bucket, bucket.files())) == [4]
    kept = mirror_of(bucket, tmp_path)
    kept.begin()
    assert not (tmp_path / "checkpoints/8").exists()
    kept.close()
    assert "checkpoints/8/a" not in bucket.content
    for listed, message in (
        (b'{"checkpoints/4/a": 3}', "checkpoints/4/a is missing or not as long"),
        (b'{"../../a": 2}', "../../a is missing"),
        (b'{"config.json": 2}', "config.json is missing"),
        (b"[", "complete/4.json is damaged"),
    ):
        bucket.content["complete/4.json"] = listed
        with pytest.raises(OSError, match=message):
            complete_steps(bucket, {**bucket.files(), "../../a": 2, "config.json": 2})


def test_a_store_that_does_not_answer_stops_no_training_and_is_reported(tmp_path: Path, often: None) -> None:
    bucket, told, good = Memory(), threading.Event(), threading.Event()
    said: list[str] = []

    def say(message: str) -> None:
        said.append(message)
        (good if message.endswith("up to date again") else told).set()

    kept = Mirror(bucket, tmp_path, say, lambda: None)
    kept.begin()
    bucket.failing = "metrics"
    fill(tmp_path, {"metrics.jsonl": "{}"})
    assert told.wait(5)
    assert said == ["not copied to s3://memory/run: the store does not answer; training goes on, and it is tried again"]
    bucket.failing = ""
    assert good.wait(5)
    bucket.failing = "checkpoints"
    fill(tmp_path, STEP_4)
    with pytest.raises(NotCopied, match=f"last files of the run are in {tmp_path}, and could not be copied"):
        kept.close()
    assert not is_copy(tmp_path, bucket.address, digest_of({4: {}}))


def test_two_runs_do_not_write_to_one_bucket(tmp_path: Path) -> None:
    bucket, said = Memory(), list[str]()
    first = BucketLock(bucket, said.append, settled=0.0)
    with pytest.raises(LockedWorkdir, match="s3://memory/run is in use by process"):
        BucketLock(bucket, said.append, settled=0.0)
    first.check()
    first.release()
    assert not bucket.content

    def of(**facts: object) -> bytes:
        return json.dumps({"id": "other", "machine": "another", "host": "h", "pid": 1, **facts}).encode()

    bucket.content["run.lock"] = of()
    second = BucketLock(bucket, said.append, beat=0.01, silent=0.2, settled=0.0)
    assert said == ["s3://memory/run is locked by process 1 on h; waiting 0 s for a sign of life"]
    bucket.content["run.lock"] = of()
    second._thread.join(5)
    with pytest.raises(LockedWorkdir, match="was taken over by process 1 on h"):
        second.check()
    second.release()
    assert "run.lock" in bucket.content, "it is the other run's"

    class Signs(Memory):
        def read(self, name: str) -> bytes | None:
            self.order.append(name)
            return of(sign=len(self.order))

    with pytest.raises(LockedWorkdir, match="in use by process 1 on h"):
        BucketLock(Signs(), said.append, silent=1.0, settled=0.0)


def test_a_bucket_that_is_not_there_is_named(store: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JCLIP_CACHE", str(tmp_path))
    with pytest.raises(ConfigError, match=r"--workdir s3://nowhere/run cannot be used: there is no such"):
        train.main(tiny_config(), "s3://nowhere/run")
    with pytest.raises(ConfigError, match=r"azure://a/run is no folder, nor in a bucket"):
        train.main(tiny_config(), "azure://a/run")


def test_a_folder_of_something_else_is_refused_and_foreign_files_are_left_alone(tmp_path: Path) -> None:
    bucket = Memory()
    bucket.content = {"photos/1.jpg": b"1", "photos/2.jpg": b"2", "run.lock": b"of this run"}
    with pytest.raises(OSError, match=r"holds 2 files of something else, such as photos/1\.jpg; give a folder of its own"):
        mirror_of(bucket, tmp_path).begin()
    bucket.content = {"config.json": b'{"architectures": ["CLIPModel"]}', "model.safetensors": b"w"}
    with pytest.raises(OSError, match=r"holds 2 files of something else, such as config.json"):
        mirror_of(bucket, tmp_path).begin()
    bucket.content = {"config.json": b'{"type": "Config"}', ".hidden": b"h", "notes.tmp": b"n"}
    kept = mirror_of(bucket, tmp_path)
    kept.begin()
    kept.close()
    bucket.content["notes.txt"] = b"put there while nothing ran"
    kept = mirror_of(bucket, tmp_path)
    kept.begin()
    kept.close()
    assert bucket.content.keys() == {"config.json", ".hidden", "notes.tmp", "notes.txt"}


def test_another_checkpoint_by_the_same_number_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    """The work of --resume-from; also where the run is killed before it is copied, and bytes are as many as before."""
    bucket = Memory()
    kept = mirror_of(bucket, tmp_path)
    kept.begin()
    fill(tmp_path, STEP_4)
    kept._copy()
    for round_, content in enumerate(("bb", "cc")):
        if round_:
            kept.close()
        (tmp_path / "checkpoints/4").rename(tmp_path / f"set-aside-{round_}")
        fill(tmp_path, STEP_4 | {"checkpoints/4/params/a": content})
        if round_:
            kept = mirror_of(bucket, tmp_path, said := [])
            kept.begin()
            assert said == [], "it is the newest there is"
        del bucket.order[:]
        kept._copy()
        assert bucket.content["checkpoints/4/params/a"] == content.encode()
        assert bucket.order[0] == "-complete/4.json"
        assert bucket.order.index("complete/4.json") > bucket.order.index("checkpoints/4/params/a")
    kept.close()
    assert list(complete_steps(bucket, bucket.files())) == [4]


def test_a_checkpoint_that_is_being_removed_loses_its_list_first(tmp_path: Path) -> None:
    bucket = Memory()
    kept = mirror_of(bucket, tmp_path)
    kept.begin()
    fill(tmp_path, STEP_4)
    kept._copy()
    (tmp_path / "checkpoints/4/.zarray").unlink()
    kept.close()
    assert bucket.order.index("-complete/4.json") < bucket.order.index("-checkpoints/4/.zarray")


def test_the_newest_checkpoint_is_copied_first_and_those_removed_before_they_are_copied_are_said(tmp_path: Path) -> None:
    class Slow(Memory):
        def put(self, name: str, path: Path) -> int:
            if name.startswith("checkpoints/") and name not in stay:
                path.unlink()
                raise FileNotFoundError(name)
            return super().put(name, path)

    bucket, said, stay = Slow(), list[str](), {"checkpoints/9/a"}
    kept = mirror_of(bucket, tmp_path, said)
    kept.begin()
    for step in (1, 2, 3):
        fill(tmp_path, {f"checkpoints/{step}/a": "a", "metrics.jsonl": str(step)})
        kept._copy()
        assert bucket.content["metrics.jsonl"] == str(step).encode(), "what else there is does not wait"
    assert said == [
        "3 checkpoints in a row were removed before they were copied to s3://memory/run, which has none; save less often "
        "(--checkpoint.every) or keep more of them (--checkpoint.keep)"
    ]
    stay.add("checkpoints/8/a")
    fill(tmp_path, {"checkpoints/8/a": "8", "checkpoints/9/a": "9"})
    kept._copy()
    assert bucket.order.index("complete/9.json") < bucket.order.index("checkpoints/8/a")
    kept.close()


@pytest.mark.parametrize("scheme", ["s3", "gs"])
def test_files_are_put_listed_fetched_and_removed_in_every_kind_of_bucket(
    scheme: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(stores, "_stores", {})
    with ExitStack() as stack:
        if scheme == "gs":
            stack.enter_context(google_server())
        else:
            request.getfixturevalue("store")
        bucket = Bucket(f"{scheme}://runs/files")
        assert bucket.files() == {}
        bucket.write("complete/4.json", b"{}")
        content = np.random.default_rng(0).bytes(300_000)
        fill(tmp_path, {"empty": ""})
        (tmp_path / "file").write_bytes(content)
        for name in ("file", "empty"):
            assert bucket.put(f"checkpoints/4/{name}", tmp_path / name) == (tmp_path / name).stat().st_size
        assert bucket.files() == {"complete/4.json": 2, "checkpoints/4/file": 300_000, "checkpoints/4/empty": 0}
        bucket.fetch("checkpoints/4/file", 300_000, tmp_path / "fetched")
        assert (tmp_path / "fetched").read_bytes() == content
        assert (bucket.read("complete/4.json"), bucket.read("complete/5.json")) == (b"{}", None)
        for _ in range(2):  # one that is gone already is no error
            bucket.remove("checkpoints/4/file")
        assert bucket.files() == {"complete/4.json": 2, "checkpoints/4/empty": 0}
    assert not [record for record in caplog.records if "credentials" in record.message]
