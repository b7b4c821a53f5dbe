"""Embeddings and filters that several processes make together: the files of one process, whoever has made which block."""

import json
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from test_processes import finish_all, two_processes
from test_train import finish, start_command

from jclip.config import ConfigError
from jclip.data import SourceError, open_source
from jclip.data.reader import read_once
from jclip.embed import SAVED_EVERY, Job, Rows
from jclip.embed_blocks import RowBlock, StoppedByUser, _blocks, is_shared, share
from jclip.inference import Encoder, load

BATCH = 8  # as many as the devices of a test
BLOCK = SAVED_EVERY * BATCH
COUNT = 2 * BLOCK + 5
CONSOLE = Console(quiet=True)


class Numbered:
    """Examples of one colour each, of which every 100th has no image."""

    classes: tuple[str, ...] = ()
    templates: tuple[str, ...] = ()

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int) -> dict[str, object]:
        colour = (index % 251, index % 241, index % 239)
        return {"key": f"k{index}", **({} if index % 100 == 7 else {"image": np.full((8, 8, 3), colour, np.uint8)})}

    def fingerprint(self) -> str:
        return "0" * 32


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return load("ViT-tiny-test")


def job(out: Path, encoder: Encoder) -> Job:
    out.mkdir(exist_ok=True)
    return Job(out, "numbered", Numbered(), encoder, 10**6)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, encoder: Encoder) -> dict[str, bytes]:
    """The files that one process writes, row after row."""
    out = tmp_path_factory.mktemp("alone")
    job(out, encoder).embed("image", "image", BATCH, CONSOLE)
    return files(out)


def files(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def test_blocks_make_the_files_of_one_process_and_are_gone_after(
    tmp_path: Path, encoder: Encoder, alone: Mapping[str, bytes]
) -> None:
    assert not is_shared(tmp_path)
    share(job(tmp_path, encoder), "image", "image", BATCH, CONSOLE)
    assert files(tmp_path) == alone
    z = np.load(tmp_path / "image.npy")
    assert np.flatnonzero(np.isnan(z[:, 0])).tolist() == list(range(7, COUNT, 100))
    assert not (tmp_path / "blocks").exists()
    share(job(tmp_path, encoder), "image", "image", BATCH, CONSOLE)  # nothing is left to do
    assert files(tmp_path) == alone


def test_blocks_of_an_earlier_call_are_not_made_again_and_what_one_process_has_begun_is_gone_on_from(
    tmp_path: Path, encoder: Encoder, alone: Mapping[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = Job.rows

    def stop_at(row: int) -> None:
        def until(self: Job, tower: str, field: str, batch_size: int, start: int, stop: int) -> Iterator[Rows]:
            for at, part in zip(range(start, stop, BATCH), rows(self, tower, field, batch_size, start, stop), strict=True):
                if at >= row:
                    raise KeyboardInterrupt
                yield part

        monkeypatch.setattr(Job, "rows", until)

    stop_at(24)
    with pytest.raises(KeyboardInterrupt):
        job(tmp_path, encoder).embed("image", "image", BATCH, CONSOLE)
    stop_at(24 + BLOCK + 8)
    with pytest.raises(StoppedByUser, match="the same command on all hosts goes on"):
        share(job(tmp_path, encoder), "image", "image", BATCH, CONSOLE)
    monkeypatch.setattr(Job, "rows", rows)
    made = sorted((tmp_path / "blocks/image").iterdir())
    assert [path.name for path in made] == [f"24-{24 + BLOCK}.npz"]
    assert is_shared(tmp_path)
    before = made[0].read_bytes()
    for damage in (before[: len(before) // 2], b"", before[:-200] + bytes(200)):
        made[0].write_bytes(damage)
        with pytest.raises(ConfigError, match=r"npz is damaged \(.*\); remove it, and start the same command again"):
            share(job(tmp_path, encoder), "image", "image", BATCH, CONSOLE)
    made[0].write_bytes(before)
    changed = made[0].stat().st_mtime_ns
    second = sorted((tmp_path / "blocks/image").iterdir())[-1]
    np.savez(second, z=np.zeros((3, 4), np.float32), text=np.frombuffer(b'{"keys": [], "problems": []}', np.uint8))
    with pytest.raises(ConfigError, match=r"it holds float32 \(3, 4\) and 0 keys"):
        share(job(tmp_path, encoder), "image", "image", BATCH, CONSOLE)
    assert made[0].stat().st_mtime_ns == changed
    second.unlink()
    share(job(tmp_path, encoder), "image", "image", BATCH, CONSOLE)
    assert files(tmp_path) == alone


def test_borders_of_blocks_cover_each_row_once() -> None:
    for first, total, size in ((0, 10, 4), (3, 11, 4), (5, 5, 2), (0, 8, 8)):
        rows = [row for block in _blocks(first, total, size) for row in range(*block)]
        assert rows == list(range(first, total))
    assert RowBlock(3, 7).path(Path("out"), "text") == Path("out/blocks/text/3-7.npz")


def test_a_reader_ends_before_a_row() -> None:
    source = open_source("shapes:train?size=16&length=20")
    transforms = {"image": lambda value, rng=None: np.asarray(value)}
    batches = list(read_once(source, transforms, batch_size=4, start=3, stop=12))
    assert [key for batch in batches for key in batch.keys if key] == [source[i]["key"] for i in range(3, 12)]
    assert [int(batch.mask.sum()) for batch in batches] == [4, 4, 1]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """150 pictures with captions: number 5 and 70 are broken, 90 repeats 2."""
    folder, drawn = tmp_path_factory.mktemp("pictures"), open_source("shapes:train?size=16&length=150")
    for i in range(150):
        if i in (5, 70):
            (folder / f"{i:03}.png").write_bytes(b"torn")
        else:
            Image.fromarray(drawn[2 if i == 90 else i]["image"]).save(folder / f"{i:03}.png")
        (folder / f"{i:03}.txt").write_text(drawn[i]["text"])
    return folder


def arguments(pictures: Path, out: Path) -> list[str]:
    rules = ["--model", "ViT-tiny-test", "--score-best", "0.99", "--duplicates", "0.999999", "--batch-size", "1"]
    return ["filter", f"folder:{pictures}", str(out), *rules, "--against", "shapes:val?size=16&length=70", "--contaminated", "1"]


@pytest.mark.slow
def test_two_processes_filter_as_one_and_go_on_after_one_is_killed(pictures: Path, tmp_path: Path) -> None:
    said = finish(start_command(*arguments(pictures, tmp_path / "one"), devices=1))
    both = [start_command(*arguments(pictures, tmp_path / "two"), devices=1, **names) for names in two_processes()]
    wait_for(tmp_path / "two/embeddings/blocks/image", both)
    both[1].send_signal(signal.SIGKILL)
    ended = [process.communicate(timeout=120) for process in both]
    assert [process.returncode != 0 for process in both] == [True, True], ended
    assert not (tmp_path / "two/kept.jsonl").exists()
    (out, err), (other_out, other_err) = finish_all(
        [start_command(*arguments(pictures, tmp_path / "two"), devices=1, **names) for names in two_processes()]
    )
    assert said[0].replace("/one/", "/two/") in out  # beside what Gloo says
    assert "jclip" not in other_out
    assert "examples are kept" in err
    assert "examples are kept" not in other_err
    one, two = files(tmp_path / "one"), files(tmp_path / "two")
    assert one.keys() == two.keys()
    for name in one.keys() - {"filter.json"}:
        assert one[name] == two[name], name
    records = [json.loads(content["filter.json"]) for content in (one, two)]
    assert records[0]["counts"] == records[1]["counts"]
    assert records[0]["counts"]["duplicate"] >= 1
    assert records[0]["counts"]["unreadable"] == 2


def wait_for(path: Path, processes: list[subprocess.Popen[str]]) -> None:
    """Returns once a folder has a file."""
    for _ in range(3000):
        if any(path.glob("*.npz")):
            return
        assert all(process.poll() is None for process in processes), [process.communicate() for process in processes]
        time.sleep(0.02)
    raise AssertionError(f"nothing in {path}")


@pytest.mark.slow
def test_processes_with_other_rules_are_refused_on_both(pictures: Path, tmp_path: Path) -> None:
    first, second = two_processes()
    rules = arguments(pictures, tmp_path / "out")
    processes = (
        start_command(*rules, devices=1, **first),
        start_command(*[{"0.99": "0.7"}.get(word, word) for word in rules], devices=1, **second),
    )
    said = [process.communicate(timeout=120) for process in processes]
    for process, (_, err) in zip(processes, said, strict=True):
        assert process.returncode == 1
        assert "the processes differ" in err
        assert "rules.score_best is 0.99 on process 0 and 0.7 on process 1" in err
    assert not (tmp_path / "out").exists()


def test_without_a_picture_that_can_be_read_the_reason_is_said(tmp_path: Path, encoder: Encoder) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.png").write_bytes(b"torn")
    (tmp_path / "out").mkdir()
    torn = Job(tmp_path / "out", "torn", open_source(f"folder:{tmp_path}/in"), encoder, 10**6)
    with pytest.raises(SourceError, match="no example of the source can be read"):
        share(torn, "image", "image", BATCH, CONSOLE)
