"""Mixtures: every place of the order is arithmetic, shares are exact, and each source is seen whole before any of it again."""

import dataclasses
import json
import math
import pickle
import re
import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_train import finish, losses, start_command, wait_for_step
from tiny import tiny_config

from jclip import facts, train
from jclip.checkpoint import Checkpoints
from jclip.config import Config, ConfigError, Data, Portion, Stage, check, make_plans, stage_configs
from jclip.data import BadExample, Mixture, Shares, SourceError, make_loader, open_data, open_source, planned
from jclip.data.mixture import in_numbers
from jclip.data.survey import shortcomings
from jclip.parts import prepare

SIZES = {"a": 1000, "b": 300, "c": 70}
WEIGHTS = (0.7, 0.2, 0.1)
LATER = (Shares(0, WEIGHTS), Shares(5000, (1.0, 1.0, 0.0), 16), Shares(7400, (0.0, 1.0, 2.0)))


class Letters:
    """Examples whose text is their source's letter and their number."""

    classes: tuple[str, ...] = ()
    templates: tuple[str, ...] = ()

    def __init__(self, name: str, size: int, broken: frozenset[int] = frozenset()) -> None:
        self.name, self.size, self.broken = name, size, broken

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        if index in self.broken:
            raise BadExample("torn")
        return {"key": str(index), "text": f"{self.name}{index}", "other": f"{self.name}{index}!"}

    def fingerprint(self) -> str:
        return f"{ord(self.name):016x}{self.size:016x}"


def letters(phases: tuple[Shares, ...] = (), **more: Any) -> Mixture:
    return Mixture({name: Letters(name, size) for name, size in SIZES.items()}, phases, **more)


def code(value: str, rng: Any = None) -> np.ndarray[Any, Any]:
    return np.frombuffer(value.ljust(6).encode(), np.uint8)


def test_shares_are_those_of_the_weights_at_every_place() -> None:
    order = letters((Shares(0, WEIGHTS),)).order(0)
    seen = Counter[str]()
    for place in range(6000):
        assert order.counts(place) == {name: seen[name] for name in SIZES}
        for name, weight in zip(SIZES, WEIGHTS, strict=True):
            assert abs(seen[name] - weight * place) <= 4 * math.sqrt(place * weight * (1 - weight)) + 1, (place, name)
        seen[order[place][0]] += 1
    for block in (1, 2, 7, 10**6):  # after whole blocks within one place of the share
        counts = order.counts(1024 * block)
        assert all(abs(counts[name] - 1024 * block * weight) <= 1 for name, weight in zip(SIZES, WEIGHTS, strict=True))
    whole = order.counts(10**15)
    assert [whole[name] / 10**15 for name in SIZES] == pytest.approx(WEIGHTS, abs=1e-12)
    assert sum(whole.values()) == 10**15


def test_each_source_is_seen_whole_before_any_of_it_comes_again() -> None:
    order, drawn = letters(LATER).order(5), {name: list[int]() for name in SIZES}
    for place in range(9000):
        name, index = order[place]
        drawn[name].append(index)
    for name, size in SIZES.items():
        epochs = [drawn[name][i : i + size] for i in range(0, len(drawn[name]) - size, size)]
        assert len(epochs) >= 4
        assert all(sorted(epoch) == list(range(size)) for epoch in epochs)
        assert len({tuple(epoch) for epoch in epochs}) == len(epochs)  # each in an order of its own


def test_weights_change_at_a_place_and_batches_may_be_of_one_source() -> None:
    order, seen, batches = letters(LATER).order(5), Counter[str](), set[tuple[str, ...]]()
    for place in range(7600):
        if place in (4999, 5000, 5007, 5016, 7399, 7400, 7401, 7500):
            assert order.counts(place) == {name: seen[name] for name in SIZES}
        if 5000 <= place < 7400 and (place - 5000) % 16 == 0:
            batches.add(tuple({order[place + row][0] for row in range(16)}))
        seen[order[place][0]] += 1
    assert batches == {("a",), ("b",)}  # a batch is of one source, and c has no weight
    assert order.counts(9000)["a"] == order.counts(7400)["a"]


def test_a_source_more_changes_no_order_of_another() -> None:
    def drawn(mixture: Mixture) -> list[int]:
        order = mixture.order(3)
        return [index for name, index in (order[place] for place in range(2000)) if name == "a"][:300]

    two = Mixture({name: Letters(name, SIZES[name]) for name in "ac"}, (Shares(0, (1.0, 1.0)),))
    assert drawn(letters((Shares(0, WEIGHTS),))) == drawn(two)

    twins = Mixture({name: Letters(name, 500) for name in "ab"}).order(3)
    orders = [[index for name, index in map(twins.__getitem__, range(600)) if name == which] for which in "ab"]
    assert orders[0][:200] != orders[1][:200]


def test_each_block_has_an_order_of_its_own() -> None:
    order = letters((Shares(0, (0.5, 0.25, 0.25)),)).order(0)
    blocks = ["".join(order[place][0] for place in range(first, first + 1024)) for first in (0, 1024)]
    assert blocks[0] != blocks[1]


def test_without_weights_an_epoch_has_every_example_once() -> None:
    mixture = letters()
    order, total = mixture.order(1), sum(SIZES.values())
    assert len(mixture) == total
    assert order.counts(1024 * total) == {name: 1024 * size for name, size in SIZES.items()}
    assert [mixture[i]["key"] for i in (0, 999, 1000, 1369)] == ["a/0", "a/999", "b/0", "c/69"]


WORKERS = [(0, 1), (0, 2), (0, 4), *(pytest.param(w, h, marks=pytest.mark.exhaustive) for w in (1, 3) for h in (1, 2, 4))]


@pytest.mark.parametrize(("workers", "hosts"), [*WORKERS, pytest.param(3, 2, marks=pytest.mark.slow)])
def test_batches_do_not_depend_on_hosts_workers_or_where_one_begins(workers: int, hosts: int) -> None:
    mixture, order = letters(LATER), letters(LATER).order(9)
    for start in (0, 311) if not workers else (311,):  # the second is within the second phase
        how: dict[str, Any] = {"batch_size": 16, "seed": 9, "start": start, "hosts": hosts, "workers": workers}
        loaders = [make_loader(mixture, {"text": code}, host=host, **how) for host in range(hosts)]
        for step in range(start, start + 3):
            rows = [key for loader in loaders for key in next(loader).keys]
            assert rows == ["{}/{}".format(*order[place]) for place in range(step * 16, step * 16 + 16)]
        for loader in loaders:
            loader.close()


def test_an_example_of_the_same_source_takes_the_place_of_a_broken_one() -> None:
    sources = {"a": Letters("a", 1000), "b": Letters("b", 300, frozenset(range(150)))}
    mixture = Mixture(sources, (Shares(0, (1.0, 1.0)),), {"b": {"text": "other"}})
    with make_loader(mixture, {"text": code}, batch_size=64) as loader:
        batch = next(loader)
    texts = [bytes(row).decode().strip() for row in batch.arrays["text"]]
    assert Counter(key[0] for key in batch.keys) == letters_of(mixture, 64)
    assert all(text.endswith("!") == text.startswith("b") for text in texts)  # each source has fields of its own
    assert batch.problems
    assert all(problem.startswith("example ") and problem.endswith("of b: torn") for problem in batch.problems)


def letters_of(mixture: Mixture, place: int) -> dict[str, int]:
    return {name: count for name, count in mixture.order(0).counts(place).items() if count}


def mixed(**changes: Any) -> Config:
    """A run of twelve steps on three sets of shapes."""
    sources = {
        "seen": Portion("shapes:train?size=16&length=100", 0.5, changes=(("50%", 0.0), ("75%", 1.0))),
        "val": Portion("shapes:val?size=16&length=30", 0.25),
        "test": Portion("shapes:test?size=16&length=20", 0.25, fields={"text": "text"}),
    }
    config = tiny_config(**{"evals": {}, "checkpoint.best": None, "checkpoint.keep": 9, "checkpoint.every": "3"})
    return dataclasses.replace(config, data=dataclasses.replace(config.data, source="", sources=sources, **changes))


def test_phases_are_those_of_the_recipe_and_its_stages() -> None:
    stage = Stage("4", lr=1e-3, batch_size=32, weights={"val": 1.0, "seen": 0.0})
    config = dataclasses.replace(mixed(batches="one_source"), stages={"first": stage})
    parts = stage_configs(config)
    source = open_data(config)
    assert isinstance(source, Mixture)
    found = planned(source, zip(parts, make_plans(config, len(source)), strict=True)).phases
    assert found == (
        Shares(0, (0.0, 1.0, 0.25), 32),
        Shares(128, (0.5, 0.25, 0.25), 16),
        Shares(128 + 6 * 16, (0.0, 0.25, 0.25), 16),
        Shares(128 + 9 * 16, (1.0, 0.25, 0.25), 16),
    )


def test_a_repeat_is_so_many_epochs_of_a_source() -> None:
    sources = {"a": Portion("shapes:train?length=100", repeat=1.0), "b": Portion("shapes:val?length=50", repeat=4.0)}
    config = dataclasses.replace(Config(), data=Data(sources=sources), batch_size=10, duration="100")
    source = open_data(config)
    assert isinstance(source, Mixture)
    mixture = planned(source, [(config, make_plans(config, len(source))[0])])
    lines = in_numbers(mixture, mixture.order(0), 0, 3 * 1024)
    assert lines == [
        "a: 100 examples, 33.3% of what is seen, 10.24 epochs",
        "b: 50 examples, 66.7% of what is seen, 40.96 epochs",
    ]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (Data(batches="one_source"), "there is only one source"),
        (Data("folder:x", {"a": Portion("shapes:val")}), "source 'folder:x' and sources cannot both be given"),
        (Data(sources={"a": Portion("shapes:val", 1.0), "b": Portion("shapes:test")}), "a have weights and b none"),
        (Data(sources={"a/b": Portion("shapes:val")}), "'a/b' is no name"),
        (Data(sources={"a": Portion("shapes:val", 1.0, repeat=2.0)}), "weight and repeat both say"),
        (Data(sources={"a": Portion("shapes:val", changes=(("5%", 1.0),))}), "changes: say the weight before"),
        (Data(sources={"a": Portion("shapes:val", 0.0)}), "all weights are 0"),
        (Data(sources={"a": Portion("shapes:val", fields={"sound": "wav"})}), "there is no tower 'sound'"),
    ],
)
def test_contradictions_are_refused(data: Data, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check(Config(data=data), devices=1)


def test_weights_that_leave_nothing_or_hardly_anything_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"a, b, c all have the weight 0 at once"):
        letters((Shares(0, (0.0, 0.0, 0.0)),))
    with pytest.raises(ConfigError, match=r"data.sources.c has 1e-07 of the examples, less than 1e-06"):
        letters((Shares(0, (1.0, 1.0, 2e-7)),))
    with pytest.raises(SourceError, match="b has no examples"):
        Mixture({"a": Letters("a", 3), "b": Letters("b", 0)})
    with pytest.raises(SourceError, match=r"data.sources.x: source 'nowhere': there is no such folder"):
        open_data(Config(data=Data(sources={"x": Portion("nowhere")})))


def test_a_mixture_is_a_source_with_a_fingerprint_and_shortcomings_of_its_own(tmp_path: Path) -> None:
    mixture = letters()
    assert mixture.fingerprint() == pickle.loads(pickle.dumps(mixture)).fingerprint()
    assert mixture.fingerprint() != dataclasses.replace(mixture, sources=dict(reversed(mixture.sources.items()))).fingerprint()
    (tmp_path / "x").mkdir()
    for i in range(4):
        Image.new("RGB", (8, 8)).save(tmp_path / f"x/{i}.png")
        (tmp_path / f"x/{i}.txt").write_text("one\ntwo\nthree")
    both = Mixture({"a": Letters("a", 3), "x": open_source(f"folder:{tmp_path / 'x'}")})
    (line,) = shortcomings(both, {"image": "image", "text": "text"})
    assert line.startswith("x: 4 of 4 texts that were looked at have several lines")


@pytest.mark.slow
def test_a_run_of_a_mixture_says_what_it_sees_and_goes_on_bit_equal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = mixed()
    train.main(config, tmp_path / "whole")
    said = capsys.readouterr().out
    assert "seen + val + test: 150 examples" in said
    assert re.search(r"seen: 100 examples, \d\d\.\d% of what is seen, 0\.\d\d epochs", said)
    lines = [json.loads(line) for line in (tmp_path / "whole/metrics.jsonl").read_text().splitlines()]
    assert [sum(line[f"data/{name}"] for name in ("seen", "val", "test")) for line in lines] == [16 * i for i in range(1, 13)]
    assert lines[5]["data/seen"] == lines[8]["data/seen"] < lines[9]["data/seen"]

    for last in (3, 9):
        parts = tmp_path / str(last)
        shutil.copytree(tmp_path / "whole", parts)
        for step in range(last + 3, 13, 3):
            shutil.rmtree(parts / "checkpoints" / str(step))
        train.main(dataclasses.replace(config, data=dataclasses.replace(config.data, workers=1)), parts)
        with Checkpoints(tmp_path / "whole", read_only=True) as one, Checkpoints(parts, read_only=True) as other:
            assert one._digests(12)["arrays"] == other._digests(12)["arrays"]

    capsys.readouterr()
    shutil.rmtree(parts / "checkpoints/12")
    sources = {**config.data.sources, "test": dataclasses.replace(config.data.sources["test"], weight=0.5)}
    train.main(dataclasses.replace(config, data=dataclasses.replace(config.data, sources=sources)), parts)
    assert "weights of sources are others" in capsys.readouterr().out


@pytest.mark.slow
def test_a_mixture_that_is_killed_goes_on_bit_equal_with_another_number_of_workers(tmp_path: Path) -> None:
    command = ("train", str(Path(__file__).parents[1] / "recipe_mixture.py"), "--workdir")
    finish(start_command(*command, str(tmp_path / "whole"), devices=1))
    for step, workers in ((8, "1"), (33, "0")):  # before and after the weights change
        process = start_command(*command, str(tmp_path / "killed"), "--data.workers", workers, devices=1)
        wait_for_step(tmp_path / "killed", step, process)
        process.kill()
        process.communicate()
    out, _ = finish(start_command(*command, str(tmp_path / "killed"), devices=1))
    assert "resuming after step" in out
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    with Checkpoints(tmp_path / "whole", read_only=True) as one, Checkpoints(tmp_path / "killed", read_only=True) as other:
        assert one._digests(60)["arrays"] == other._digests(60)["arrays"]


@pytest.mark.parametrize(
    ("phases", "said"),
    [
        ((Shares(100, WEIGHTS),), r"phases begin at \[100\]; use 0, and rising places"),
        ((Shares(0, WEIGHTS), Shares(0, WEIGHTS)), r"phases begin at \[0, 0\]"),
        ((Shares(0, (2.0, -1.0, 1.0)),), r"weights \(2.0, -1.0, 1.0\) of a, b, c; give each source one of 0 or more"),
        ((Shares(0, (math.nan, 1.0, 1.0)),), "give each source one of 0 or more"),
        ((Shares(0, (1.0,)),), "give each source one of 0 or more"),
        ((Shares(0, WEIGHTS, 0),), "together 0 must be at least 1"),
    ],
)
def test_a_mixture_of_ones_own_is_checked(phases: tuple[Shares, ...], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        letters(phases)


@pytest.mark.parametrize("changes", [(("80%", 0.1), ("50%", 0.5)), (("5000", 0.9),), (("50%", 0.1), ("50%", 0.2))])
def test_changes_that_are_not_in_order_or_never_come_are_refused(changes: Any) -> None:
    sources = {"a": Portion("shapes:val?length=50", 0.5, changes=changes), "b": Portion("shapes:test?length=20", 0.5)}
    config = dataclasses.replace(Config(), data=Data(sources=sources), batch_size=10, duration="100")
    source = open_data(config)
    assert isinstance(source, Mixture)
    with pytest.raises(ConfigError, match=r"a.changes are at steps .*; write them in their order, and before the end"):
        planned(source, [(config, make_plans(config, len(source))[0])])


def test_a_change_of_weights_is_reported_where_it_moves_what_was_seen_already() -> None:
    def record(duration: str, changes: Any) -> dict[str, Any]:
        sources = {"a": Portion("shapes:val?length=50", 0.7, changes=changes), "b": Portion("shapes:test?length=20", 0.3)}
        config = dataclasses.replace(Config(), data=Data(sources=sources), batch_size=10, duration=duration)
        return prepare(config, devices=1)[-1].record

    before = record("100", (("80%", 0.1),))
    for duration, changes, at, told in (("200", (("80%", 0.1),), 90, True), ("200", (("80%", 0.1),), 70, False),
                                        ("100", (("90%", 0.2),), 70, False), ("100", (("60%", 0.2),), 70, True)):  # fmt: skip
        lines = facts.changes(before, record(duration, changes), at, (0.0, 0.0))
        assert any("weights of sources are others" in line for line in lines) == told, (duration, changes, at)
