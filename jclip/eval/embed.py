"""Embedding whole sources and lists of texts: batches in, a row for every example out."""

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jclip.config import Caption, Captioning, ConfigError, TokenTower, Tower, to_json
from jclip.data import BadExample, Source, Transform, eval_transform, read_once
from jclip.data.decoding import MAX_PIXELS
from jclip.data.fingerprint import file_digests
from jclip.embedding import Embedding
from jclip.eval.cache import Arrays, FeatureCache

log = logging.getLogger(__name__)


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
    cache: FeatureCache | None = None
    """Cache of features between runs, if `weights` are known."""
    weights: Callable[[str], str] | None = None
    """A tower's name -> the digest of its parameters; None where they change, as in training."""
    place: Callable[[np.ndarray], jax.Array] = jnp.asarray
    """An array [devices, ...] that is the same on every host -> spread over all devices by its first axis."""
    devices: int = 1
    """Number of devices."""
    max_pixels: int = MAX_PIXELS
    """Largest image, in pixels; a larger one is a broken example."""
    caption: Callable[[Captioning, Any, dict[str, np.ndarray]], np.ndarray] | None = None
    """(how, params, {image tower: host-local rows}) -> token ids of captions, rows of all hosts; None: nothing writes any."""
    captioners: Mapping[str, Caption] = field(default_factory=dict)
    """Captioners by the name of their parameters."""
    trained_on: tuple[str, Callable[[], Source]] | None = None
    """Name of the data that the model's run is trained on, and a function that opens them; None where nothing says it."""
    head: Callable[[Sequence[str], np.ndarray, np.ndarray], np.ndarray] | None = None
    """Head of an adapted model: (names of C classes, z [n, E], pooled [n, d]) -> scores f32 [n, C], in cosines, which
    take the place of prompts. None: the model has none."""


class Embedded(NamedTuple):
    """A source as features, the same on every host: row i belongs to example i."""

    pooled: np.ndarray
    """[n, D] float32."""
    z: np.ndarray
    """[n, E] float32, unit norm."""
    read: np.ndarray
    """bool [n]: False where the example is broken; its row means nothing."""


def embed_source(
    functions: Functions, params: Any, source: Source, name: str, tower: Tower, field: str | None = None
) -> Embedded:
    """Embeds every example of a source once.

    Args:
        functions: how to embed, and on which hosts.
        params: what `functions.embed` takes first.
        source: the examples; the same on every host.
        name: of the tower.
        tower: its configuration, which says how its inputs are made.
        field: of an example, which holds the input; None: the tower's name.

    Raises:
        ConfigError: the source is empty.
        SourceError: not one example can be read.
    """
    if not len(source):
        raise ConfigError("evaluation: the source has no examples")
    field = field or name

    def make() -> Arrays:
        return _embed_source(functions, params, source, name, tower, field)

    facts = {"tower": tower_facts(tower), "field": field, "max_pixels": functions.max_pixels}
    arrays = cached(functions, name, facts, source.fingerprint, make)
    return Embedded(arrays["pooled"], arrays["z"], arrays["read"])


def _embed_source(functions: Functions, params: Any, source: Source, name: str, tower: Tower, field: str) -> Arrays:
    pooled, z, read, problems = [], [], [], 0
    batches = read_once(
        source,
        {name: eval_transform(tower, max_pixels=functions.max_pixels)},
        batch_size=functions.batch_size,
        host=functions.host,
        hosts=functions.hosts,
        fields={name: field},
    )
    for batch in batches:
        embedding = functions.embed(params, batch.arrays)[name]
        pooled.append(embedding.pooled)
        z.append(embedding.z)
        read.append(functions.gather(batch.mask.astype(np.uint8)) != 0)
        for problem in batch.problems[: max(0, 5 - problems)]:
            log.warning("evaluation: an example is left out: %s", problem)
        problems += len(batch.problems)
    rows = slice(len(source))  # what follows is padding
    return {"pooled": np.concatenate(pooled)[rows], "z": np.concatenate(z)[rows], "read": np.concatenate(read)[rows]}


class EmbeddedTexts(NamedTuple):
    """Texts as features, the same on every host."""

    z: np.ndarray
    """[n, E] float32, unit norm."""
    read: np.ndarray
    """bool [n]: False where the text is broken, such as one that is far too long; its row means nothing."""


def embed_texts(functions: Functions, params: Any, texts: Sequence[str], name: str, tower: Tower) -> EmbeddedTexts:
    """Embeds n >= 1 texts, equal ones once.

    Args:
        functions: how to embed, and on which hosts.
        params: what `functions.embed` takes first.
        texts: the same on every host.
        name: of the tower.
        tower: its configuration, which says how its inputs are made.

    Raises:
        ConfigError: not one text can be read.
    """
    unique = list(dict.fromkeys(texts))

    def make() -> Arrays:
        return _embed_texts(functions, params, unique, name, tower)

    arrays = cached(functions, name, {"tower": tower_facts(tower)}, lambda: _digest(unique), make)
    place = {text: i for i, text in enumerate(unique)}
    rows = [place[text] for text in texts]
    return EmbeddedTexts(arrays["z"][rows], arrays["read"][rows])


def _embed_texts(functions: Functions, params: Any, texts: Sequence[str], name: str, tower: Tower) -> Arrays:
    tokenized = list(map(partial(_tokenize, eval_transform(tower)), texts))
    read = np.array([tokens is not None for tokens in tokenized])
    if not read.any():
        raise ConfigError(f"evaluation: none of {len(texts)} texts can be read; the first is {texts[0][:80]!r}")
    empty = np.zeros_like(tokenized[int(np.argmax(read))])
    size, local = functions.batch_size, functions.batch_size // functions.hosts
    own = slice(functions.host * local, (functions.host + 1) * local)
    parts = []
    for start in range(0, len(texts), size):
        chunk = np.stack([empty if tokens is None else tokens for tokens in tokenized[start : start + size]])
        padded = np.concatenate([chunk, np.repeat(chunk[:1], size - len(chunk), axis=0)])
        parts.append(functions.embed(params, {name: padded[own]})[name].z[: len(chunk)])
    return {"z": np.concatenate(parts), "read": read}


def _tokenize(tokenize: Transform, text: str) -> np.ndarray | None:
    try:
        tokens: np.ndarray = tokenize(text)
    except BadExample as problem:
        log.warning("evaluation: a text is left out: %s", problem)
        return None
    return tokens


def cached(
    functions: Functions, tower: str, facts: Mapping[str, Any], inputs: Callable[[], str], make: Callable[[], Arrays]
) -> Arrays:
    """Result of `make`, from the cache where it has it. Hosts agree on that, because they make features together."""
    cache, weights = functions.cache, functions.weights
    if cache is None or weights is None:
        return make()
    facts = {**facts, "weights": weights(tower), "inputs": inputs(), "dtype": "float32"}
    found = cache.load(facts)
    if functions.gather(np.array([found is not None], np.uint8)).all():
        return found or {}
    made = make()
    if functions.host == 0 or found is None:
        cache.save(facts, made)
    return made


def tower_facts(tower: Tower) -> dict[str, Any]:
    """All that a tower's features depend on but its weights: its configuration, and the bytes of its vocabulary."""
    facts: dict[str, Any] = to_json(tower)
    if isinstance(tower, TokenTower) and tower.tokenizer.file:
        facts["vocabulary"] = file_digests([Path(tower.tokenizer.file)])[0].hex()
    return facts


def _digest(texts: Sequence[str]) -> str:
    found = hashlib.blake2b(digest_size=16)
    for text in texts:
        data = text.encode(errors="surrogatepass")
        found.update(len(data).to_bytes(8, "little") + data)
    return found.hexdigest()
