"""Embedding whole sources and lists of texts: batches in, the rows of every real example out."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from jclip.config import ConfigError
from jclip.data import Source, Transform, read_once

log = logging.getLogger(__name__)


class Embedding(NamedTuple):
    """What a tower makes of n inputs."""

    pooled: np.ndarray
    """[n, D] float32, before the projection: what a linear probe reads."""
    z: np.ndarray
    """[n, E] float32, unit norm: what zero-shot classification and retrieval read."""


def _own_rows(rows: np.ndarray) -> np.ndarray:
    return rows


@dataclass(frozen=True)
class Functions:
    """All that an evaluator may use of a model and of the machines it runs on."""

    embed: Callable[[Any, dict[str, np.ndarray]], dict[str, Embedding]]
    """(params, {tower: host-local rows, as many on every host}) -> {tower: rows of all hosts, host by host}, computed in f32."""
    batch_size: int
    """Rows of a global batch; a multiple of `hosts`. No result depends on it."""
    gather: Callable[[np.ndarray], np.ndarray] = _own_rows
    """Host-local rows, as many on every host -> the rows of all hosts, host by host. Types of at most 32 bits."""
    host: int = 0
    """Index of this process."""
    hosts: int = 1
    """Number of processes. Each calls `embed` and `gather` equally often."""


class Embedded(NamedTuple):
    """A source as arrays, the same on every host; padding and broken examples are left out."""

    features: dict[str, np.ndarray]
    """{tower: [n, D or E] float32}."""
    extra: dict[str, np.ndarray]
    """{field: [n] int64}, rows as in `features`."""
    broken: int
    """Examples of all hosts that could not be read."""


def embed_source(
    functions: Functions,
    params: Any,
    source: Source,
    transforms: Mapping[str, Transform],
    *,
    fields: Mapping[str, str],
    extra: Mapping[str, Callable[[Any], int]],
    part: Literal["pooled", "z"] = "z",
) -> Embedded:
    """Embeds every example of a source once.

    Args:
        functions: how to embed, and on which hosts.
        params: what `functions.embed` takes first.
        source: the examples; the same on every host.
        transforms: {tower: what makes its input of an example's field}.
        fields: {tower: field of an example}, where that is not the tower's name.
        extra: {field of an example: what makes a 64-bit integer of it}. Integers, because only arrays travel between hosts.
        part: which half of an `Embedding` is kept.

    Raises:
        ConfigError: the source is empty, or not one example can be read.
    """
    if not len(source):
        raise ConfigError("evaluation: the source has no examples")
    features: dict[str, list[np.ndarray]] = {tower: [] for tower in transforms}
    columns: list[np.ndarray] = []
    problems: list[str] = []
    batches = read_once(
        source,
        transforms,
        batch_size=functions.batch_size,
        host=functions.host,
        hosts=functions.hosts,
        fields=fields,
        extra=tuple(extra),
    )
    for batch in batches:
        real, values = _gather_columns(functions, batch.mask, batch.extra, extra)
        for tower, embedding in functions.embed(params, batch.arrays).items():
            features[tower].append(getattr(embedding, part)[real])
        columns.append(values)
        problems += batch.problems
    broken = int(functions.gather(np.array([len(problems)], np.int32)).sum())
    for problem in problems[:5]:
        log.warning("evaluation: an example is left out: %s", problem)
    values = np.concatenate(columns)
    stacked = {tower: np.concatenate(rows) for tower, rows in features.items()}
    return Embedded(stacked, {name: values[:, i] for i, name in enumerate(extra)}, broken)


def embed_texts(functions: Functions, params: Any, texts: Sequence[str], tokenize: Transform, tower: str) -> np.ndarray:
    """Unit vectors [n, E] float32 of n >= 1 texts, the same on every host and for every batch size."""
    rows = np.stack([tokenize(text) for text in texts])
    size, local = functions.batch_size, functions.batch_size // functions.hosts
    own = slice(functions.host * local, (functions.host + 1) * local)
    parts = []
    for start in range(0, len(rows), size):
        chunk = rows[start : start + size]
        padded = np.concatenate([chunk, np.repeat(chunk[:1], size - len(chunk), axis=0)])
        parts.append(functions.embed(params, {tower: padded[own]})[tower].z[: len(chunk)])
    return np.concatenate(parts)


def _gather_columns(
    functions: Functions, mask: np.ndarray, extra: Mapping[str, list[Any]], convert: Mapping[str, Callable[[Any], int]]
) -> tuple[np.ndarray, np.ndarray]:
    """The mask [B] of all hosts, and [real rows, fields] int64; one collective for both."""
    values = np.zeros((len(mask), len(convert)), np.int64)
    for column, (name, to_int) in enumerate(convert.items()):
        for row in np.flatnonzero(mask):
            values[row, column] = to_int(extra[name][row])
    # JAX cuts int64 to int32 unless jax_enable_x64 is set, so each integer travels as two halves.
    packed = np.concatenate([mask[:, None].astype(np.uint32), values.view(np.uint32)], axis=1)
    gathered = functions.gather(packed)
    real = gathered[:, 0] != 0
    return real, np.ascontiguousarray(gathered[real, 1:]).view(np.int64)
