"""Rows of hosts whose devices are scattered over the mesh, as on a TPU slice."""

from types import SimpleNamespace
from typing import Any

import numpy as np

from jclip.sharding import by_host

OWNERS = np.array([[0, 0, 1, 1], [1, 1, 0, 2], [3, 3, 3, 3], [2, 2, 2, 0]])  # of a v5e:4x4, along its wires


def test_rows_of_a_global_array_come_back_host_by_host() -> None:
    mesh: Any = SimpleNamespace(devices=np.array([[SimpleNamespace(process_index=p) for p in row] for row in OWNERS]))
    hosts = [np.arange(100 * host, 100 * host + 8).reshape(8, 1) for host in range(4)]  # two rows for each of four devices
    chunks = [list(rows.reshape(4, 2, 1)) for rows in hosts]
    in_mesh_order = np.concatenate([chunks[owner].pop(0) for owner in OWNERS.flat])
    assert not np.array_equal(in_mesh_order, np.concatenate(hosts))
    np.testing.assert_array_equal(by_host(in_mesh_order, mesh), np.concatenate(hosts))
