"""Global batches of a run's loaders, for tests that compare them."""

import numpy as np

from jclip.config import Config
from jclip.data import Batch, Source, make_run_loader


def batches(config: Config, count: int, start: int = 0, hosts: int = 1, source: Source | None = None) -> list[Batch]:
    """Global batches, put together from those of all hosts."""
    loaders = [make_run_loader(config, source, start=start, host=host, hosts=hosts) for host in range(hosts)]
    try:
        parts = [[next(loader) for loader in loaders] for _ in range(count)]
    finally:
        for loader in loaders:
            loader.close()
    return [
        Batch(
            {name: np.concatenate([part.arrays[name] for part in row]) for name in row[0].arrays},
            [key for part in row for key in part.keys],
            [problem for part in row for problem in part.problems],
        )
        for row in parts
    ]


def assert_equal(some: list[Batch], others: list[Batch]) -> None:
    assert len(some) == len(others)
    for a, b in zip(some, others, strict=True):
        assert (a.keys, a.problems) == (b.keys, b.problems)
        assert a.arrays.keys() == b.arrays.keys()
        for name in a.arrays:
            np.testing.assert_array_equal(a.arrays[name], b.arrays[name])
