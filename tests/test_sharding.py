"""Places of arrays: parameters by rule, parts of a batch, and rows of hosts that lie scattered over the mesh of a TPU slice."""

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from jclip.config import ConfigError, MeshConfig
from jclip.sharding import by_host, extra_shardings, join_rows, make_mesh, moment_shardings, param_shardings, split_rows
from jclip.tree import flatten, unflatten

OWNERS = np.array([[0, 0, 1, 1], [1, 1, 0, 2], [3, 3, 3, 3], [2, 2, 2, 0]])  # of a v5e:4x4, along its wires


def test_rows_of_a_global_array_come_back_host_by_host() -> None:
    mesh: Any = SimpleNamespace(devices=np.array([[SimpleNamespace(process_index=p) for p in row] for row in OWNERS]))
    hosts = [np.arange(100 * host, 100 * host + 8).reshape(8, 1) for host in range(4)]  # two rows for each of four devices
    chunks = [list(rows.reshape(4, 2, 1)) for rows in hosts]
    in_mesh_order = np.concatenate([chunks[owner].pop(0) for owner in OWNERS.flat])
    assert not np.array_equal(in_mesh_order, np.concatenate(hosts))
    np.testing.assert_array_equal(by_host(in_mesh_order, mesh), np.concatenate(hosts))


SHAPES = {
    "image/blocks/attn/kernel": ((16, 8, 12), P(None, None, "fsdp")),  # sixteen layers stay whole: each device has a part of each
    "image/blocks/mlp/kernel": ((16, 12, 8), P(None, "fsdp")),
    "image/blocks/norm/scale": ((16, 6), P()),  # four devices do not divide six
    "image/pos_embed": ((16, 8), P("fsdp")),
    "text/token_embed": ((50, 8), P(None, "fsdp")),  # nor fifty
    "image_text/logit_scale": ((), P()),
    "text/whole": ((16, 16), P()),
}
RULES = MeshConfig(2, 4, rules=((".*/whole", "replicate"), (".*", "shard")))


def shapes_of(prefix: str = "") -> dict[str, Any]:
    return unflatten({prefix + path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, (shape, _) in SHAPES.items()})


def test_the_largest_axis_that_devices_divide_is_sharded_but_never_that_of_the_layers() -> None:
    found = flatten(param_shardings(shapes_of(), RULES, make_mesh(RULES)))
    assert {path: sharding.spec for path, sharding in found.items()} == {path: spec for path, (_, spec) in SHAPES.items()}
    whole = MeshConfig(8, 1, rules=RULES.rules)
    assert {sharding.spec for sharding in flatten(param_shardings(shapes_of(), whole, make_mesh(whole))).values()} == {P()}
    with pytest.raises(ConfigError, match="no rule covers parameter image/blocks/attn/kernel"):
        param_shardings(shapes_of(), MeshConfig(2, 4, rules=(("text/.*", "shard"),)), make_mesh(RULES))


def test_averages_and_moments_lie_where_their_parameters_do_and_the_rest_by_rule_or_everywhere() -> None:
    mesh, params = make_mesh(RULES), shapes_of()
    extra = {**shapes_of("ema/"), "bank": {"keys": jax.ShapeDtypeStruct((64, 8), jnp.float32)}}
    found = {path: sharding.spec for path, sharding in flatten(extra_shardings(extra, params, RULES, mesh)).items()}
    assert found == {**{f"ema/{path}": spec for path, (_, spec) in SHAPES.items()}, "bank/keys": P("fsdp")}

    adam, *_ = moment_shardings(jax.eval_shape(optax.adam(1e-3).init, params), params, RULES, mesh)
    for moment in (adam.mu, adam.nu):
        assert {path: sharding.spec for path, sharding in flatten(moment).items()} == {p: spec for p, (_, spec) in SHAPES.items()}
    assert adam.count.spec == P()


def test_a_part_of_a_batch_has_as_many_rows_of_every_device_in_their_order() -> None:
    mesh = make_mesh(MeshConfig(2, 4))
    rows = np.arange(48 * 3).reshape(48, 3)
    of_device = rows.reshape(8, 2, 3, 3)  # eight devices of six rows, in two parts
    expected = of_device.swapaxes(0, 1).reshape(2, 24, 3)
    parts = jax.jit(lambda x: split_rows(x, 2, mesh))(rows)
    np.testing.assert_array_equal(parts, expected)
    assert parts.sharding.spec == P(None, ("data", "fsdp"))
    np.testing.assert_array_equal(jax.jit(lambda x: join_rows(x, mesh))(parts), rows)
