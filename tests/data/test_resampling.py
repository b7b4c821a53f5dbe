"""Resizing: the bits of Pillow, whether numba computes them or not."""

import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jclip.data import resampling
from jclip.data.resampling import FILTERS, Box, add_lines, find_weights, resize, resized_by

PLAIN = (find_weights, add_lines)
"""Both in plain Python, without numba."""


def picture(width: int, height: int, seed: int, levels: int = 256) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, levels, (height, width, 3)) * (255 // (levels - 1))
    return Image.fromarray(values.astype(np.uint8))


def assert_pillows(functions: Sequence[Callable[..., Any]], image: Image.Image, size: tuple[int, int], box: Box | None) -> None:
    for interpolation, pillow in FILTERS.items():
        result = resized_by(functions, image, size, interpolation, box)
        np.testing.assert_array_equal(np.asarray(result), np.asarray(image.resize(size, pillow, box=box)), strict=True)


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resampling, "_compiled", None)


@pytest.mark.parametrize("levels", [256, 2])  # black and white overshoot on both sides of an edge
@pytest.mark.parametrize(
    ("have", "size", "box"),
    [
        ((24, 18), (7, 5), None),
        ((24, 18), (23, 17), None),
        ((24, 18), (24, 5), None),
        ((30, 9), (1, 1), None),
        ((24, 18), (7, 5), (2.5, 0.25, 23.125, 17.75)),
        ((24, 18), (9, 9), (0.5, 0.5, 20.5, 16.0)),
        ((5, 4), (9, 7), None),
    ],
)
def test_sums_of_lines_are_pillows_bits(have: tuple[int, int], size: tuple[int, int], box: Box | None, levels: int) -> None:
    assert_pillows(PLAIN, picture(*have, seed=1, levels=levels), size, box)


def test_machine_code_gives_pillows_bits_at_any_size() -> None:
    pytest.importorskip("numba", reason="the extra fast is not installed")
    assert len(resampling.compiled()) == 2
    rng = np.random.default_rng(0)
    rows_first = 0
    for i in range(400):
        width, height = (int(n) for n in rng.integers(1, (20, 200, 700)[i % 3], 2))
        size = (int(rng.integers(1, 250)), int(rng.integers(1, 250)))
        left, top = (int(rng.integers(0, 8 * n)) / 8 for n in (width, height))
        box = None if i % 2 else (left, top, float(rng.uniform(left, width)) + 1 / 64, float(rng.uniform(top, height)) + 1 / 64)
        if box is not None:
            box = (left, top, *(max(start + 1 / 8, int(8 * end) / 8) for start, end in zip((left, top), box[2:], strict=True)))
        image, interpolation = picture(width, height, i, (256, 2)[i // 2 % 2]), list(FILTERS)[i // 4 % 2]
        expected = image.resize(size, FILTERS[interpolation], box=box)
        np.testing.assert_array_equal(np.asarray(resize(image, size, interpolation, box)), np.asarray(expected))
        rows_first += resampling._rows_come_first(image.size, size, box)
    assert rows_first > 100


def test_an_image_whose_columns_pillow_may_resize_first_is_left_to_pillow(fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resampling, "_compiled", list(PLAIN))
    used: list[tuple[int, int]] = []
    monkeypatch.setattr(resampling, "resized_by", lambda functions, image, size, *rest: used.append(image.size) or image)
    for have in ((40, 30), (30, 40), (22, 31), (20, 31), (20, 200), (9, 9), (200, 20)):
        resize(picture(*have, seed=0), (10, 10), "bicubic")
    assert used == [(40, 30), (30, 40), (22, 31), (200, 20)]
    resize(picture(40, 30, 0).convert("L"), (10, 10), "bicubic")  # and one that is not RGB
    assert len(used) == 4


def fake_numba(monkeypatch: pytest.MonkeyPatch, *, caches: bool = True) -> None:
    """A numba that compiles nothing."""

    def njit(nogil: bool, cache: bool = False) -> Callable[[Any], Any]:
        if cache and not caches:
            raise RuntimeError("no locator available")
        return lambda function: function

    numba = ModuleType("numba")
    numba.njit = njit  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "numba", numba)


@pytest.mark.parametrize("caches", [True, False])
def test_numba_is_used_where_it_is_installed(fresh: None, monkeypatch: pytest.MonkeyPatch, caches: bool) -> None:
    fake_numba(monkeypatch, caches=caches)
    assert resampling.compiled() == list(PLAIN)
    monkeypatch.setattr(resampling, "_compile", lambda: pytest.fail("compiled twice"))
    assert resampling.compiled() == list(PLAIN)


def test_pillow_resizes_where_there_is_no_numba_or_its_bits_are_others(fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    image = picture(40, 30, 0)
    expected = image.resize((9, 11), FILTERS["bilinear"])
    monkeypatch.setitem(sys.modules, "numba", None)
    assert resampling.compiled() == []
    assert resize(image, (9, 11), "bilinear") == expected
    fake_numba(monkeypatch)
    monkeypatch.setattr(resampling, "_compiled", None)
    monkeypatch.setattr(resampling, "add_lines", lambda lines, *weights: add_lines(lines, *weights) // 2)
    assert resampling.compiled() == []
    assert resize(image, (9, 11), "bilinear") == expected
