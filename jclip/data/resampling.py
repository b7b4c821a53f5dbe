"""Antialiased resizing: Pillow's, and with the extra `fast` (numba) the same bits of an RGB image in a third of its time."""

import math
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Box = tuple[float, float, float, float]
"""Left, top, right and bottom, in pixels."""

FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}

BITS = 22
"""Bits of a weight's fraction: 8 of 32 are a pixel's, and 2 are for sums below black and above white (Pillow's Resample.c)."""

_compiled: list[Callable[..., Any]] | None = None
"""Result of `compiled`, once it is known."""
_compiling = threading.Lock()


def resize(image: Image.Image, size: tuple[int, int], interpolation: str, box: Box | None = None) -> Image.Image:
    """An image of width and height `size`, whose pixels are weighted means of all that they cover: Pillow's, bit for bit.

    Args:
        image: of any mode; numba resizes RGB.
        size: width and height.
        interpolation: a key of FILTERS.
        box: the part that is resized; None: all. What lies around it counts at its edges.
    """
    if image.mode == "RGB" and _rows_come_first(image.size, size, box) and (functions := compiled()):
        return resized_by(functions, image, size, interpolation, box)
    return image.resize(size, FILTERS[interpolation], box=box)


def _rows_come_first(have: tuple[int, int], size: tuple[int, int], box: Box | None) -> bool:
    """True where Pillow is known to resize rows before columns: each pass rounds to 8 bits, so their order shows in the result.

    Before Pillow 13 rows always came first; since then columns do where they lose more than twice as many pixels.
    """
    wide, high = have if box is None else (box[2] - box[0], box[3] - box[1])
    return max(have[1], high) - size[1] < 2 * (min(have[0], wide) - size[0])


def resized_by(
    functions: Sequence[Callable[..., Any]], image: Image.Image, size: tuple[int, int], interpolation: str, box: Box | None
) -> Image.Image:
    """The RGB image of `resize`, rows first, by `functions`: `find_weights` and `add_lines`, compiled or not.

    Sums of lines are sums of vectors, which a compiler makes fast; so the image is turned before its rows are resized, and back.
    """
    find_weights, add_lines = functions
    left, top, right, bottom = map(float, box or (0, 0, *image.size))
    across = find_weights(image.width, left, right, size[0], interpolation == "bicubic")
    down = find_weights(image.height, top, bottom, size[1], interpolation == "bicubic")
    columns = add_lines(_lines(image.transpose(Image.Transpose.TRANSPOSE)), *across).reshape(size[0], image.height, 3)
    rows = _lines(Image.fromarray(columns).transpose(Image.Transpose.TRANSPOSE))
    return Image.fromarray(add_lines(rows, *down).reshape(size[1], size[0], 3))


def _lines(image: Image.Image) -> NDArray[np.uint8]:
    """u8[h, 3 w] of an RGB image."""
    return np.asarray(image).reshape(image.height, 3 * image.width)


def compiled() -> list[Callable[..., Any]]:
    """`find_weights` and `add_lines` as machine code; empty without numba, or where this Pillow's bits are others."""
    global _compiled
    with _compiling:  # once: threads that come meanwhile wait
        if _compiled is None:
            _compiled = _compile()
    return _compiled


def _compile() -> list[Callable[..., Any]]:
    try:
        import numba
    except ImportError:
        return []
    try:
        functions = [numba.njit(nogil=True, cache=True)(function) for function in (find_weights, add_lines)]
    except RuntimeError:  # there is no folder in which machine code could be kept
        functions = [numba.njit(nogil=True)(function) for function in (find_weights, add_lines)]
    probe = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8))
    for interpolation, pillow in FILTERS.items():
        if resized_by(functions, probe, (11, 9), interpolation, None) != probe.resize((11, 9), pillow):
            return []
    return functions


def find_weights(length: int, start: float, stop: float, size: int, bicubic: bool) -> Any:
    """Weights of the pixels that each pixel of the result covers along one axis, rounded as Pillow rounds them.

    The filter, a cubic with a = -1/2 (Keys 1981) or a triangle, is stretched where the result has fewer pixels than the image.

    Args:
        length: pixels of the image.
        start: of the part that is resized.
        stop: its end.
        size: pixels of the result.
        bicubic: which filter.

    Returns:
        The first pixel that counts, i64[size]; how many do, i64[size]; their weights in units of 2^-BITS, i32[size, most].
    """
    scale = (stop - start) / size
    stretch = max(scale, 1.0)
    support = (2.0 if bicubic else 1.0) * stretch
    first, count = np.zeros(size, np.int64), np.zeros(size, np.int64)
    weights = np.zeros((size, math.ceil(support) * 2 + 1), np.int32)
    exact = np.zeros(weights.shape[1])
    for i in range(size):
        center = start + (i + 0.5) * scale
        first[i] = max(0, int(center - support + 0.5))
        count[i] = min(length, int(center + support + 0.5)) - first[i]
        total = 0.0
        for j in range(count[i]):
            x = abs((j + first[i] - center + 0.5) * (1.0 / stretch))
            if not bicubic:
                exact[j] = max(1.0 - x, 0.0)
            elif x < 1.0:
                exact[j] = (1.5 * x - 2.5) * x * x + 1.0
            else:
                exact[j] = (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5 if x < 2.0 else 0.0
            total += exact[j]
        for j in range(count[i]):
            weight = exact[j] / total * (1 << BITS)
            weights[i, j] = int(weight - 0.5) if weight < 0.0 else int(weight + 0.5)
    return first, count, weights


def add_lines(
    lines: NDArray[np.uint8], first: NDArray[np.int64], count: NDArray[np.int64], weights: NDArray[np.int32]
) -> NDArray[np.uint8]:
    """Weighted sums of lines, u8[n, m] to u8[size, m], as `find_weights` gives them; rounded, and cut at 0 and 255."""
    result = np.empty((len(first), lines.shape[1]), np.uint8)
    sums = np.empty(lines.shape[1], np.int32)
    for i in range(len(first)):
        sums[:] = 1 << (BITS - 1)
        for j in range(count[i]):
            weight, line = weights[i, j], lines[first[i] + j]
            for k in range(len(sums)):
                sums[k] += weight * np.int32(line[k])
        for k in range(len(sums)):
            result[i, k] = min(max(sums[k] >> BITS, 0), 255)
    return result
