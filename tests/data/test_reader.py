"""The reader: a source once and in order, whatever is broken in it."""

from typing import Any

import numpy as np
import pytest
from flawed import Flawed

from jclip.config import TextTower, VisionTower
from jclip.data import BadExample, SourceError, eval_transform, read_field, read_once
from jclip.data.reader import READ_AHEAD, make_arrays

TOWERS = {"image": VisionTower(image_size=8, patch_size=4), "text": TextTower(context_length=12)}


@pytest.mark.parametrize("hosts", [1, 2, 4])
@pytest.mark.parametrize("length", [1, 7, 8, 20])
def test_once_means_every_example_once_in_order_and_padding_masked(hosts: int, length: int) -> None:
    source = Flawed(set(), length)
    transforms = {"image": eval_transform(TOWERS["image"])}
    runs = [list(read_once(source, transforms, batch_size=8, host=h, hosts=hosts)) for h in range(hosts)]
    assert {len(run) for run in runs} == {-(-length // 8)}
    rows: list[int] = []
    for parts in zip(*runs, strict=True):
        for batch in parts:
            assert batch.arrays["image"].shape == (8 // hosts, 8, 8, 3)
            assert batch.mask.dtype == np.bool_
            assert not batch.arrays["image"][~batch.mask].any()
            assert [key == "" for key in batch.keys] == [not real for real in batch.mask]
            rows += batch.arrays["image"][batch.mask][:, 0, 0, 0].tolist()
    assert rows == list(range(length))


@pytest.mark.parametrize("hosts", [1, 2])
def test_reading_once_begins_where_it_is_asked_to(hosts: int) -> None:
    transforms = {"image": eval_transform(TOWERS["image"])}
    runs = [list(read_once(Flawed(set()), transforms, batch_size=8, host=h, hosts=hosts, start=7)) for h in range(hosts)]
    keys = [key for parts in zip(*runs, strict=True) for batch in parts for key in batch.keys]
    assert keys == [f"k{i}" for i in range(7, 20)] + [""] * 3


def test_broken_examples_are_masked_and_counted_once() -> None:
    source = Flawed({0, 1, 2, 3, 4, 5, 6, 7, 13})
    transforms = {name: eval_transform(tower) for name, tower in TOWERS.items()}
    run = list(read_once(source, transforms, batch_size=4))
    mask = np.concatenate([batch.mask for batch in run])
    assert np.flatnonzero(~mask).tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 13]
    assert sum(len(batch.problems) for batch in run) == 9
    assert not run[0].arrays["image"].any()
    only_images = list(read_once(source, {"image": transforms["image"]}, batch_size=20))
    assert np.flatnonzero(~only_images[0].mask).tolist() == [0, 1, 4, 5, 13]  # a bad caption does not spoil an image


def test_a_field_is_read_of_every_example_in_order_and_says_where_it_cannot() -> None:
    values = list(read_field(Flawed({2}, 2500), "text"))
    assert len(values) == 2500
    assert [i for i, value in enumerate(values) if isinstance(value, BadExample)] == [2]
    assert values[3] == Flawed(set())[3]["text"]
    assert all(isinstance(value, BadExample) for value in read_field(Flawed(set(), 3), "none"))


def test_nothing_readable_is_an_error_not_an_empty_result() -> None:
    with pytest.raises(SourceError, match="no example of the source can be read"):
        next(read_once(Flawed(set(range(20))), {name: eval_transform(tower) for name, tower in TOWERS.items()}, batch_size=4))


def test_reading_once_stays_a_few_batches_ahead() -> None:
    read: list[int] = []

    class Counting(Flawed):
        def __getitem__(self, index: int) -> dict[str, Any]:
            read.append(index)
            return super().__getitem__(index)

    reader = read_once(Counting(set(), 1000), {"image": eval_transform(TOWERS["image"])}, batch_size=10)
    for _ in range(3):
        next(reader)
    assert len(read) <= 10 * (3 + READ_AHEAD)
    reader.close()  # type: ignore[attr-defined]
    assert len(read) <= 10 * (3 + READ_AHEAD)


def test_fields_say_where_a_tower_finds_its_input() -> None:
    (batch,) = read_once(Flawed(set()), {"x": eval_transform(TOWERS["image"])}, batch_size=20, fields={"x": "image"})
    assert batch.arrays["x"][:, 0, 0, 0].tolist() == list(range(20))


def test_arrays_of_two_fields_of_an_example_are_not_mixed_up() -> None:
    transform = eval_transform(TOWERS["image"])
    example = {"key": "k", "black": np.zeros((8, 8, 3), np.uint8), "white": np.full((8, 8, 3), 255, np.uint8)}
    arrays = make_arrays({"left": transform, "right": transform}, example, {"left": "white", "right": "black"}, None)
    assert (arrays["left"] == 255).all()
    assert (arrays["right"] == 0).all()


def test_errors_of_the_program_are_not_swallowed() -> None:
    class Wrong(Flawed):
        def __getitem__(self, index: int) -> dict[str, Any]:
            raise ZeroDivisionError("a mistake")

    with pytest.raises(ZeroDivisionError):
        next(read_once(Wrong(set()), {"image": eval_transform(TOWERS["image"])}, batch_size=4))


def test_errors_of_reading_once() -> None:
    for options in ({"batch_size": 10, "hosts": 3}, {"batch_size": 0}, {"batch_size": 4, "host": 1}):
        with pytest.raises(ValueError, match="cannot be shared"):
            read_once(Flawed(set()), {}, **options)
