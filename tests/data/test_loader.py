"""The loader: batches that depend on nothing but the config and the step, whatever is broken in the source."""

import io
import itertools
import os
import subprocess
import sys
import tarfile
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from batches import assert_equal, batches
from flawed import Flawed
from PIL import Image

from jclip.config import Augment, Config, Contrastive, Data, Model, TextTower, VisionTower
from jclip.data import (
    Batch,
    SourceError,
    eval_transform,
    make_loader,
    make_run_loader,
    open_source,
)
from jclip.data.transforms import Decode

TOWERS = {"image": VisionTower(image_size=8, patch_size=4), "text": TextTower(context_length=12)}
CONFIG = Config(
    model=Model(towers=TOWERS),
    data=Data(source="shapes:train?size=12&length=50", augment=Augment(scale=(0.3, 1.0), flip=0.5)),
    batch_size=8,
    seed=3,
)


@pytest.fixture(scope="module")
def reference() -> list[Batch]:
    return batches(CONFIG, 20)


@pytest.mark.parametrize(("hosts", "workers"), [(2, 0), (4, 0), (1, 2), (2, 1)])
def test_batches_do_not_depend_on_hosts_or_workers(reference: list[Batch], hosts: int, workers: int) -> None:
    config = replace(CONFIG, data=replace(CONFIG.data, workers=workers))
    assert_equal(batches(config, 9, hosts=hosts), reference[:9])


@pytest.mark.parametrize("start", [1, 7, 13])
@pytest.mark.parametrize("hosts", [1, 2])
def test_starting_at_a_step_continues_the_run(reference: list[Batch], start: int, hosts: int) -> None:
    assert_equal(batches(CONFIG, 20 - start, start=start, hosts=hosts), reference[start:])


def test_starting_late_costs_nothing() -> None:
    assert len(batches(CONFIG, 1, start=10**9)[0].keys) == 8


def test_every_epoch_has_every_example_once_in_an_order_of_its_own(reference: list[Batch]) -> None:
    keys = [key for batch in batches(CONFIG, 25) for key in batch.keys]  # 200 rows are four epochs of 50
    epochs = [keys[i : i + 50] for i in range(0, 200, 50)]
    every = {f"shapes:train:{i}" for i in range(50)}
    assert all(set(epoch) == every for epoch in epochs)
    for a, b in itertools.combinations(epochs, 2):
        assert a != b
    assert epochs[0] != sorted(epochs[0])


def test_a_row_holds_its_example_and_augments_it_anew_each_epoch() -> None:
    source = open_source(CONFIG.data.source)
    texts = {source[i]["key"]: eval_transform(TOWERS["text"])(source[i]["text"]) for i in range(50)}
    images: dict[str, list[Any]] = {}
    for batch in batches(CONFIG, 13):
        assert batch.arrays["image"].shape == (8, 8, 8, 3)
        assert (batch.arrays["image"].dtype, batch.arrays["text"].dtype) == (np.uint8, np.int32)
        assert not batch.problems
        for key, image, text in zip(batch.keys, batch.arrays["image"], batch.arrays["text"], strict=True):
            np.testing.assert_array_equal(text, texts[key])
            images.setdefault(key, []).append(image)
    twice = [pair for pair in images.values() if len(pair) == 2]
    assert len(twice) == 46  # 104 rows: two epochs of 50, and four rows of the third
    assert sum((a != b).any() for a, b in twice) >= 44  # two crops may show the same plain background


def test_augmentation_and_largest_size_are_those_of_the_configuration() -> None:
    """Whole images that are always flipped are the mirrored pixels; the defaults would crop, and never flip."""
    whole = Augment(scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=1.0)
    towers = {**TOWERS, "image": VisionTower(image_size=12, patch_size=4)}
    config = replace(CONFIG, model=Model(towers=towers), data=replace(CONFIG.data, augment=whole))
    source = open_source(config.data.source)
    images = {source[i]["key"]: np.asarray(Decode()(source[i]["image"])) for i in range(50)}
    for batch in batches(config, 2):
        for key, image in zip(batch.keys, batch.arrays["image"], strict=True):
            np.testing.assert_array_equal(image, images[key][:, ::-1])
    small = replace(config, data=replace(config.data, max_pixels=143))
    with make_run_loader(small) as loader, pytest.raises(SourceError, match="12 x 12 pixels, more than 143"):
        next(loader)


def test_another_seed_is_another_order(reference: list[Batch]) -> None:
    assert batches(replace(CONFIG, seed=4), 1)[0].keys != reference[0].keys


def test_a_batch_may_be_larger_than_the_source() -> None:
    config = replace(CONFIG, data=Data(source="shapes:train?size=12&length=3"))
    assert set(Counter(key for b in batches(config, 3) for key in b.keys).values()) == {8}
    assert len(batches(replace(config, data=Data(source="shapes:train?size=12&length=1")), 2)) == 2


@pytest.mark.parametrize("workers", [0, 1])
def test_closing_ends_threads_and_processes(workers: int) -> None:
    threads = set(threading.enumerate())
    loader = make_run_loader(replace(CONFIG, data=replace(CONFIG.data, workers=workers)))
    with loader:
        next(loader)
    with pytest.raises(StopIteration):
        next(loader)
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    if workers and children.exists():
        commands = [Path(f"/proc/{pid}/cmdline").read_text() for pid in children.read_text().split()]
        assert not [command for command in commands if "spawn_main" in command]
    for thread in set(threading.enumerate()) - threads:
        thread.join(10)
        assert not thread.is_alive()
    loader.close()


def test_a_loader_left_open_does_not_hang_or_complain_at_exit() -> None:
    code = "import jclip.data; from test_loader import CONFIG; l = jclip.data.make_run_loader(CONFIG); print(len(next(l).keys))"
    options: dict[str, Any] = {"cwd": Path(__file__).parent, "capture_output": True, "text": True, "timeout": 60}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}, **options
    )
    assert (done.stdout, done.stderr, done.returncode) == ("8\n", "", 0)


@pytest.fixture
def flawed() -> Flawed:
    return Flawed({0, 1, 2, 3, 9})


def test_a_broken_example_gives_its_place_to_another_and_is_counted(flawed: Flawed) -> None:
    config = replace(CONFIG, batch_size=10)
    run = batches(config, 4, source=flawed)
    for epoch in (run[:2], run[2:]):
        keys = [key for batch in epoch for key in batch.keys]
        assert len(keys) == 20
        assert set(keys) >= {f"k{i}" for i in range(20)} - {f"k{i}" for i in flawed.broken}
        reported = {problem.split(":")[0] for batch in epoch for problem in batch.problems}
        assert reported >= {"example 0", "k1", "k2", "k3", "k9"}
        for batch in epoch:
            for key, image in zip(batch.keys, batch.arrays["image"], strict=True):
                assert (image == int(key[1:])).all()  # the row is that of its key
                assert int(key[1:]) not in flawed.broken
    reasons = " ".join(problem for batch in run for problem in batch.problems)
    for reason in ("gone", "no JPEG", "no text: fields are key, image, label", "caption is empty"):
        assert reason in reasons
    assert_equal(batches(config, 4, hosts=2, source=flawed), run)
    assert_equal(batches(config, 2, start=2, source=flawed), run[2:])


def test_a_source_where_everything_is_broken_is_given_up_with_reasons(flawed: Flawed) -> None:
    flawed.broken = set(range(20))
    message = r"100 examples in a row, \d+ different ones, are broken; mend the source or data\.fields"
    with make_run_loader(CONFIG, flawed) as loader, pytest.raises(SourceError, match=message):
        next(loader)


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_reading_stops_at_a_broken_example_where_that_is_asked_for(workers: int) -> None:
    config = replace(CONFIG, data=replace(CONFIG.data, broken="stop", workers=workers))
    whole = batches(config, 3, source=Flawed(set()))
    first = {key: i for i, batch in reversed(list(enumerate(whole))) for key in batch.keys}
    index = next(index for index in (1, 2, 3, 5, 6, 7, 9, 10, 11) if first[f"k{index}"] == 1)
    message = rf"^k{index}: .*; with data\.broken replace another example takes its place$"
    with make_run_loader(config, Flawed({index})) as loader:
        assert_equal([next(loader)], whole[:1])
        with pytest.raises(SourceError, match=message):
            next(loader)
    with make_run_loader(CONFIG, Flawed({index})) as loader:
        assert next(itertools.islice(loader, 1, None)).problems


def test_errors_of_the_program_are_not_swallowed(flawed: Flawed, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(self: Flawed, index: int) -> dict[str, Any]:
        raise ZeroDivisionError("a mistake")

    monkeypatch.setattr(Flawed, "__getitem__", wrong)
    with make_run_loader(CONFIG, flawed) as loader, pytest.raises(ZeroDivisionError):
        next(loader)


def test_fields_say_where_a_tower_finds_its_input(flawed: Flawed) -> None:
    flawed.broken = set()
    towers = {"left": TOWERS["image"], "right": TOWERS["image"]}
    config = replace(CONFIG, model=Model(towers=towers), data=Data(fields={"left": "image", "right": "image"}))
    config = replace(config, objectives={"sides": Contrastive("left", "right")})
    batch = batches(config, 1, source=flawed)[0]
    assert set(batch.arrays) == {"left", "right"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size 0 must be at least 1"),
        ({"batch_size": -4}, "batch_size -4 must be at least 1"),
        ({"workers": -1}, "workers -1 at least 0"),
        ({"batch_size": 10, "hosts": 3}, "batch_size 10 is not divisible by 3 hosts"),
        ({"host": 2, "hosts": 2}, "host 2 of 2 from batch 0 .* does not exist"),
        ({"host": -1}, "host -1 of 1 "),
        ({"hosts": 0}, "host 0 of 0 "),
        ({"start": -1}, "from batch -1 "),
        ({"skipped": -1}, "behind -1 examples"),
        ({"fields": {"imgae": "jpg"}}, "no transform makes imgae; there are image, text"),
        ({"same": {"image": "other"}}, "no transform makes other"),
        ({"same": {"other": "image"}}, "no transform makes other"),
    ],
)
def test_what_a_loader_cannot_do_is_said_before_anything_is_read(options: dict[str, Any], message: str) -> None:
    transforms = {name: eval_transform(tower) for name, tower in TOWERS.items()}
    with pytest.raises(ValueError, match=message):
        make_loader(Flawed(set(range(20))), transforms, **{"batch_size": 4, **options})


def test_a_webdataset_is_trained_on_by_worker_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JCLIP_CACHE", str(tmp_path))
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        for i in range(12):
            file = io.BytesIO()
            Image.new("RGB", (9, 9), (i, i, i)).save(file, "PNG")
            for name, data in ((f"{i}.png", file.getvalue()), (f"{i}.txt", b"" if i == 5 else b"text")):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    config = replace(CONFIG, data=Data(source=f"webdataset:{tmp_path}/s.tar"), batch_size=6)
    here = batches(config, 4)
    assert {problem for batch in here for problem in batch.problems} == {"s.tar:5: caption is empty"}
    assert_equal(batches(replace(config, data=replace(config.data, workers=2)), 4), here)


class Counted:
    """Arrays, and which of them were read."""

    def __init__(self, length: int) -> None:
        self.length, self.read = length, list[int]()

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        self.read.append(index)
        return {"key": f"k{index}", "image": np.full((8, 8, 3), index % 256, np.uint8), "text": "a text"}

    def fingerprint(self) -> str:
        return str(self.length)


def test_the_next_epoch_is_read_before_the_last_one_ends() -> None:
    source = Counted(20)
    with make_run_loader(replace(CONFIG, data=Data(source="counted"), batch_size=5), source) as loader:
        for _ in range(4):
            next(loader)
        deadline = time.monotonic() + 20
        while len(source.read) < 25 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert set(source.read) == set(range(20))
    assert len(source.read) >= 25


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
@pytest.mark.parametrize("workers", [pytest.param(0, marks=pytest.mark.exhaustive), 1])
def test_memory_is_the_same_after_a_thousand_batches_and_after_ten_thousand(workers: int) -> None:
    def megabytes() -> float:
        folders = ["self", *Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]
        return sum(int(Path(f"/proc/{of}/status").read_text().split("RssAnon:")[1].split()[0]) for of in folders) / 1024

    config = replace(CONFIG, data=Data(source="counted", workers=workers), batch_size=4)
    with make_run_loader(config, Counted(1000)) as loader:
        for _ in range(1000):
            next(loader)
        before = megabytes()
        for _ in range(9000):
            next(loader)
        assert megabytes() - before < 16
