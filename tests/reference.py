"""The towers once more, in numpy and f64, written from the papers' formulas and sharing nothing with jclip.models."""

import math
from typing import Any

import numpy as np

from jclip.config import BertTower, TextTower, VisionTower

Params = dict[str, Any]


def gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def gelu_tanh(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def quick_gelu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-1.702 * x))


ACTIVATIONS = {"gelu": gelu, "gelu_tanh": gelu_tanh, "quick_gelu": quick_gelu}


def dense(p: Params, x: np.ndarray) -> np.ndarray:
    return x @ p["kernel"] + p.get("bias", 0.0)


def layer_norm(p: Params, x: np.ndarray, eps: float) -> np.ndarray:
    mean = x.mean(-1, keepdims=True)
    return (x - mean) / np.sqrt(((x - mean) ** 2).mean(-1, keepdims=True) + eps) * p["scale"] + p["bias"]


def attend(p: Params, queries: np.ndarray, tokens: np.ndarray, heads: int, visible: np.ndarray) -> np.ndarray:
    """One example: queries [n, d], tokens [l, d], visible bool [n, l]."""
    q, k, v = dense(p["q"], queries), dense(p["k"], tokens), dense(p["v"], tokens)
    size = q.shape[1] // heads
    parts = []
    for h in range(heads):
        s = slice(h * size, (h + 1) * size)
        scores = np.where(visible, q[:, s] @ k[:, s].T / math.sqrt(size), -np.inf)
        weights = np.exp(scores - scores.max(1, keepdims=True))
        parts.append(weights / weights.sum(1, keepdims=True) @ v[:, s])
    return dense(p["out"], np.concatenate(parts, axis=1))


def mlp(p: Params, x: np.ndarray, activation: str) -> np.ndarray:
    return dense(p["fc2"], ACTIVATIONS[activation](dense(p["fc1"], x)))


def transformer(p: Params, x: np.ndarray, c: VisionTower | TextTower, visible: np.ndarray) -> np.ndarray:
    for i in range(c.depth):
        block = take_layer(p["blocks"], i)
        y = layer_norm(block["norm1"], x, c.norm_eps)
        x = x + attend(block["attn"], y, y, c.heads, visible)
        x = x + mlp(block["mlp"], layer_norm(block["norm2"], x, c.norm_eps), c.activation)
    return layer_norm(p["norm"], x, c.norm_eps)


def take_layer(tree: Params, i: int) -> Params:
    return {k: take_layer(v, i) if isinstance(v, dict) else v[i] for k, v in tree.items()}


def map_pool(p: Params, tokens: np.ndarray, c: VisionTower | TextTower, real: np.ndarray) -> np.ndarray:
    x = attend(p["attn"], p["probe"][0], tokens, c.heads, real[None])
    return (x + mlp(p["mlp"], layer_norm(p["norm"], x, c.norm_eps), c.activation))[0]


def vision(p: Params, image: np.ndarray, c: VisionTower) -> tuple[np.ndarray, np.ndarray]:
    """One image u8 [H, W, 3] -> pooled [d], tokens [l, d]."""
    pixels = (image / 255.0 - np.array(c.preprocess.mean)) / np.array(c.preprocess.std)
    for i, _ in enumerate(c.stem, 1):
        pixels = ACTIVATIONS[c.activation](convolve(p[f"stem{i}"], pixels))
    (rows, columns), size = c.grid, c.patch_size // 2 ** len(c.stem)
    places = [(size * row, size * column) for row in range(rows) for column in range(columns)]
    patches = [pixels[y : y + size, x : x + size].reshape(-1) for y, x in places]
    x = dense(p["patch_embed"], np.stack(patches))
    if c.positions == "sincos":
        positions = sincos(*c.grid, c.width)
        positions = np.concatenate([np.zeros((1, c.width)), positions]) if c.pool == "cls" else positions
    else:
        positions = p["pos_embed"]
    x = np.concatenate([p["cls"][None], x]) + positions if c.pool == "cls" else x + positions
    if c.pre_norm:
        x = layer_norm(p["norm_pre"], x, c.norm_eps)
    tokens = transformer(p, x, c, np.ones((len(x), len(x)), bool))
    if c.pool == "map":
        return map_pool(p["map"], tokens, c, np.ones(len(tokens), bool)), tokens
    return (tokens[0] if c.pool == "cls" else tokens.mean(0)), tokens


def convolve(p: Params, x: np.ndarray) -> np.ndarray:
    """Windows of 4 x 4 every 2 pixels, over one ring of zeros: [h, w, c] -> [h/2, w/2, features]."""
    height, width, channels = x.shape
    padded = np.zeros((height + 2, width + 2, channels))
    padded[1:-1, 1:-1] = x
    y = np.zeros((height // 2, width // 2, len(p["bias"])))
    for row in range(height // 2):
        for column in range(width // 2):
            window = padded[2 * row : 2 * row + 4, 2 * column : 2 * column + 4]
            y[row, column] = window.reshape(-1) @ p["kernel"].reshape(window.size, -1) + p["bias"]
    return y


def sincos(rows: int, columns: int, width: int) -> np.ndarray:
    table = np.zeros((rows, columns, width))
    quarter = width // 4
    for row in range(rows):
        for column in range(columns):
            for k in range(quarter):
                frequency = 10000 ** -(k / (quarter - 1))
                for part, angle in ((0, column * frequency), (2, row * frequency)):
                    table[row, column, part * quarter + k] = math.sin(angle)
                    table[row, column, (part + 1) * quarter + k] = math.cos(angle)
    return table.reshape(-1, width)


def text(p: Params, ids: np.ndarray, c: TextTower) -> tuple[np.ndarray, np.ndarray]:
    """One text i [L] -> pooled [d], tokens [L, d]."""
    length, end = len(ids), int(np.argmax(ids))
    real = np.arange(length) <= end
    visible = np.tril(np.ones((length, length), bool)) if c.causal else np.ones((length, length), bool)
    if c.mask_padding:
        visible &= real[None]
    tokens = transformer(p, p["token_embed"][ids] + p["pos_embed"], c, visible)
    if c.pool == "map":
        return map_pool(p["map"], tokens, c, real), tokens
    pooled = {"eot": tokens[end], "first": tokens[0], "last": tokens[-1], "mean": tokens[real].mean(0)}
    return pooled[c.pool], tokens


def bert(p: Params, ids: np.ndarray, c: BertTower) -> tuple[np.ndarray, np.ndarray]:
    """One text i [L] -> pooled [d], its real tokens [n, d]; padding is not even there."""
    real = ids[: int(np.flatnonzero(ids != c.tokenizer.pad_id)[-1]) + 1]
    places = [i if c.positions_from == "zero" else c.tokenizer.pad_id + 1 + i for i in range(len(real))]
    x = layer_norm(p["embed_norm"], p["token_embed"][real] + p["pos_embed"][places] + p["type_embed"][0], c.norm_eps)
    for i in range(c.depth):
        block = take_layer(p["blocks"], i)
        x = layer_norm(block["norm1"], x + attend(block["attn"], x, x, c.heads, np.ones((len(x), len(x)), bool)), c.norm_eps)
        x = layer_norm(block["norm2"], x + mlp(block["mlp"], x, c.activation), c.norm_eps)
    x = layer_norm(p["norm"], x, c.norm_eps) if c.final_norm else x
    x = dense(p["out"], x) if c.output_width is not None else x
    return {"first": x[0], "mean": x.mean(0), "pooler": np.tanh(dense(p["pooler"], x[0])) if "pooler" in p else x[0]}[c.pool], x
