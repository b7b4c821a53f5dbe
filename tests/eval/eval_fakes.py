"""Stand-ins that the evaluators' tests share: a tiny model of words, a source in memory, and hosts that are threads."""

import hashlib
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from jclip.data import BadExample
from jclip.eval import Embedding, Functions

LENGTH = 32


def letters(value: Any, rng: Any = None) -> np.ndarray:
    """The transform of every fake tower: a text's bytes, i32[LENGTH]."""
    if value == "broken":
        raise BadExample("it is broken")
    data = value.encode()[:LENGTH]
    return np.frombuffer(data.ljust(LENGTH, b"\0"), np.uint8).astype(np.int32)


def word_model(params: float, arrays: dict[str, np.ndarray]) -> dict[str, Embedding]:
    """Embeds equal texts equally and different ones differently, whatever the tower; params is a factor, 0 collapses it."""
    table = np.random.default_rng(0).normal(size=(256, LENGTH, 24))
    result = {}
    for name, rows in arrays.items():
        assert rows.shape[1:] == (LENGTH,)
        pooled = params * table[rows, np.arange(LENGTH)[None, :]].sum(axis=1) + 1.0
        z = pooled / np.linalg.norm(pooled, axis=1, keepdims=True)
        result[name] = Embedding(pooled.astype(np.float32), z.astype(np.float32))
    return result


@dataclass(frozen=True)
class Listed:
    """A source of examples in memory."""

    examples: tuple[dict[str, Any], ...]
    classes: tuple[str, ...] = ()
    templates: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"key": str(index), **self.examples[index]}

    def fingerprint(self) -> str:
        return hashlib.blake2b(repr((self.examples, self.classes)).encode(), digest_size=16).hexdigest()


class Rendezvous:
    """`gather` among threads: everybody puts rows down, waits, and takes all of them."""

    def __init__(self, hosts: int) -> None:
        self._rows: list[Any] = [None] * hosts
        self._barrier = threading.Barrier(hosts, timeout=30)

    def gather(self, host: int, rows: np.ndarray) -> np.ndarray:
        assert rows.dtype.itemsize <= 4, "JAX would cut this to 32 bits"
        self._rows[host] = rows
        self._barrier.wait()
        gathered = np.concatenate(self._rows)
        self._barrier.wait()
        return gathered


def on_hosts(hosts: int, batch_size: int, program: Callable[[Functions], Any], embed: Any = word_model) -> list[Any]:
    """Results of `program` on each of `hosts` hosts, which really exchange rows."""
    meeting = Rendezvous(hosts)

    def functions_of(host: int) -> Functions:
        def gather(rows: np.ndarray) -> np.ndarray:
            return meeting.gather(host, rows)

        def embed_all(params: Any, arrays: dict[str, np.ndarray]) -> dict[str, Embedding]:
            return embed(params, {name: gather(rows) for name, rows in arrays.items()})

        return replace(Functions(embed_all, batch_size), gather=gather, host=host, hosts=hosts)

    with ThreadPoolExecutor(hosts) as pool:
        return list(pool.map(program, [functions_of(host) for host in range(hosts)]))
