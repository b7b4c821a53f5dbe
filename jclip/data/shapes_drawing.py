"""Drawing of `shapes`: signed distances of eight shapes, eight colours, plain or noisy backgrounds."""

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "diamond", "crescent")
"""The eight shapes, in the order of the labels."""

RGB = {
    "red": (215, 35, 35),
    "orange": (245, 135, 25),
    "yellow": (245, 225, 50),
    "green": (40, 160, 60),
    "cyan": (60, 215, 225),
    "blue": (45, 70, 215),
    "purple": (125, 45, 175),
    "pink": (250, 150, 205),
}
"""The eight colours, before jitter: at least 80 apart in RGB."""

COLOURS = tuple(RGB)
"""The eight colours' names, in the order of the labels."""

JITTER = 25.0
"""Largest change of a channel of a colour: no shade is nearer, in Euclidean distance, to another colour than to its own."""

TILT = 0.2
"""Largest rotation of a shape, in radians: a square never looks like a diamond."""

NOISE = 28.0
"""Largest change of a channel of a pixel by background noise."""


def background(size: int, noisy: bool, rng: np.random.Generator) -> Floats:
    """f32[size,size,3] in 0 to 255: a slightly tinted grey, with or without noise."""
    grey = rng.random(4, np.float32)
    image = np.empty((size, size, 3), np.float32)
    image[:] = 30.0 + 190.0 * grey[3] + 12.0 * (grey[:3] - 0.5)
    if noisy:
        bits = np.frombuffer(rng.bytes(size * size * 3), np.uint8).reshape(size, size, 3)
        image += (bits - np.float32(127.5)) * np.float32(NOISE / 127.5)
    return image


def draw(image: Floats, colour: str, shape: str, x: float, y: float, r: float, rng: np.random.Generator) -> None:
    """Paints one shape into `image` f32[S,S,3]: centre (x, y) and radius r in fractions of the image, y downwards."""
    size = image.shape[0]
    cx, cy, radius = x * size - 0.5, y * size - 0.5, r * size
    left, right = max(0, math.floor(cx - radius)), min(size, math.ceil(cx + radius) + 1)
    top, bottom = max(0, math.floor(cy - radius)), min(size, math.ceil(cy + radius) + 1)
    dice = rng.random(4)
    angle = TILT * (2 * float(dice[3]) - 1)
    cos, sin = math.cos(angle) / radius, math.sin(angle) / radius
    u = np.arange(left - cx, right - cx - 0.5, dtype=np.float32)[None, :]
    v = np.arange(top - cy, bottom - cy - 0.5, dtype=np.float32)[:, None]
    distance = signed_distance(shape, cos * u + sin * v, cos * v - sin * u)
    cover = np.clip(0.5 - distance * np.float32(radius), 0, 1)[:, :, None]
    paint = np.asarray(RGB[colour], np.float32) + ((2 * dice[:3] - 1) * JITTER).astype(np.float32)
    patch = image[top:bottom, left:right]
    patch += cover * (paint - patch)


def signed_distance(shape: str, u: Floats, v: Floats) -> Floats:
    """About the distance to the outline, negative inside; every shape lies within the unit circle, v points down."""
    distance: Floats
    match shape:
        case "circle":
            distance = np.hypot(u, v) - np.float32(0.92)
        case "ring":
            distance = np.abs(np.hypot(u, v) - np.float32(0.7)) - np.float32(0.24)
        case "square":
            distance = np.maximum(np.abs(u), np.abs(v)) - np.float32(0.7)
        case "diamond":
            distance = (np.abs(u) * np.float32(1.7) + np.abs(v) - np.float32(0.98)) * np.float32(1 / math.hypot(1.7, 1))
        case "triangle":
            distance = np.maximum(v - np.float32(0.5), np.abs(u) * np.float32(0.866) - v * np.float32(0.5) - np.float32(0.48))
        case "cross":
            a, b = np.abs(u), np.abs(v)
            distance = np.maximum(np.maximum(a, b) - np.float32(0.92), np.minimum(a, b) - np.float32(0.29))
        case "star":
            distance = _star(u, v)
        case "crescent":
            bite = np.hypot(u - np.float32(0.45), v)
            distance = np.maximum(np.hypot(u, v) - np.float32(0.95), np.float32(0.72) - bite)
        case _:
            raise ValueError(f"there is no shape {shape!r}; shapes: {', '.join(SHAPES)}")
    return distance


def _star(u: Floats, v: Floats) -> Floats:
    """Five points up: every tenth of the circle is folded onto one, where the outline is a line from tip to notch."""
    tip, notch, tenth = 0.98, 0.42, math.pi / 5
    angle = np.abs(np.remainder(np.arctan2(u, -v) + np.float32(tenth), np.float32(2 * tenth)) - np.float32(tenth))
    radius = np.hypot(u, v)
    along, across = notch * math.cos(tenth) - tip, notch * math.sin(tenth)
    length = math.hypot(along, across)
    folded: Floats = (radius * np.cos(angle) - np.float32(tip)) * np.float32(across / length)
    folded -= radius * np.sin(angle) * np.float32(along / length)
    return folded
