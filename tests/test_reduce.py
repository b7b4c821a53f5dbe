"""Gradients of kernels are summed, over rows and over devices, in the type that is asked for."""

import importlib.util
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import extend as jex
from test_compile import jclip_compile
from tiny import tiny_config

from jclip.config import Config, MeshConfig, ResNetTower
from jclip.data import make_run_loader
from jclip.models.compute import Compute
from jclip.models.products import product
from jclip.program import make_program
from jclip.sharding import batch_sharding, make_mesh, to_global
from jclip.step import make_loss_and_grads
from jclip.tree import flatten

Types = dict[str, int]


def sums_over_rows(jaxpr: jex.core.Jaxpr, rows: int) -> list[str]:
    """The types of all products and convolutions that sum over rows, or over the tokens of all rows: gradients of kernels.

    No parameter may have an axis that `rows` divides.
    """
    found = []
    for equation in jaxpr.eqns:
        summed: list[int] = []
        if equation.primitive.name == "dot_general":
            (axes, _), _ = equation.params["dimension_numbers"]
            summed = [equation.invars[0].aval.shape[axis] for axis in axes]
        if equation.primitive.name == "conv_general_dilated":
            summed = [equation.invars[0].aval.shape[equation.params["dimension_numbers"].lhs_spec[1]]]
        if any(length % rows == 0 for length in summed):
            found.append(str(equation.outvars[0].aval.dtype))
        for inner in jex.core.jaxprs_in_params(equation.params):
            found += sums_over_rows(inner, rows)
    return found


def traced(config: Config) -> jex.core.Jaxpr:
    """Loss and gradients on eight devices."""
    mesh = make_mesh(config.mesh)
    program = make_program(config, mesh, warmup_steps=1, total_steps=2)
    return jax.make_jaxpr(make_loss_and_grads(config, mesh))(program.state.params, program.batch, jax.random.key(0)).jaxpr


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="unrolled"),
        pytest.param({"model.scan": True, "model.remat": ("q", "attention"), "accumulate": 3}, id="scan, names, parts"),
        pytest.param({"model.remat": "nothing_saveable", "mesh.fsdp": 4}, id="remat, fsdp"),
        pytest.param({"model.towers.image": ResNetTower(32, (1, 1, 1, 1), 8, 4)}, id="convolutions"),
    ],
)
def test_every_product_over_rows_gives_float32(changes: dict[str, Any]) -> None:
    config = tiny_config(**{"model.dtype": "bfloat16", "batch_size": 120}, **changes)
    types = sums_over_rows(traced(config), config.batch_size // config.accumulate)
    assert len(types) > 15
    assert set(types) == {"float32"}


def test_half_of_the_bytes_are_had_by_asking_for_them() -> None:
    config = tiny_config(**{"model.dtype": "bfloat16", "model.reduce_dtype": "bfloat16", "batch_size": 120})
    types = sums_over_rows(traced(config), 120)
    assert types.count("bfloat16") == len(types) - 1  # one is the loss's, of float32 embeddings


def test_partial_sums_that_nearly_cancel_between_eight_devices_keep_their_digits() -> None:
    rng = np.random.default_rng(0)
    x, dy = (np.asarray(jnp.asarray(rng.normal(size=(64, n)), jnp.bfloat16), np.float64) for n in (11, 13))
    dy[::16] *= 64
    x[8::16], dy[8::16] = x[::16], -dy[::16]  # of the next device
    want, rows = x.T @ dy, batch_sharding(make_mesh(MeshConfig()))

    def error(reduce: Any) -> float:
        def gradient(x: jax.Array, dy: jax.Array) -> jax.Array:
            return jax.vjp(lambda kernel: product(x, kernel, Compute(jnp.bfloat16, reduce=reduce)), jnp.ones((11, 13)))[1](dy)[0]

        found = jax.jit(gradient)(*(jax.device_put(jnp.asarray(y, jnp.bfloat16), rows) for y in (x, dy)))
        return float(np.linalg.norm(np.asarray(found, np.float64) - want) / np.linalg.norm(want))

    assert error(jnp.float32) < 1e-6
    assert error(jnp.bfloat16) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"mesh.fsdp": 4, "model.remat": "nothing_saveable"}, {"accumulate": 2}])
def test_a_step_summed_in_float32_is_nearer_to_float32_than_one_summed_in_bfloat16(changes: dict[str, Any]) -> None:
    def gradients(**how: Any) -> dict[str, np.ndarray]:
        config = tiny_config(**changes, **how)
        mesh = make_mesh(config.mesh)
        params = make_program(config, mesh, warmup_steps=1, total_steps=2).init().params
        with make_run_loader(config) as loader:
            batch = to_global(next(iter(loader)).arrays, mesh)
        grads = jax.jit(make_loss_and_grads(config, mesh))(params, batch, jax.random.key(0))[2]
        return {path: np.asarray(leaf) for path, leaf in flatten(grads).items()}

    def distance(found: dict[str, np.ndarray]) -> float:
        return float(np.sqrt(sum(np.sum((found[path] - want[path]) ** 2.0) for path in want)))

    want = gradients()
    wide, narrow = (gradients(**{"model.dtype": "bfloat16", "model.reduce_dtype": dtype}) for dtype in ("float32", "bfloat16"))
    assert 0 < distance(wide) < distance(narrow)
    for path in (path for path in want if path.endswith("kernel")):
        # Each number of a narrow one is held by bfloat16, unless parts of a batch are added.
        held = [np.array_equal(x, np.asarray(jnp.asarray(x, jnp.bfloat16), np.float32)) for x in (wide[path], narrow[path])]
        assert held == [False, "accumulate" not in changes], path


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
@pytest.mark.parametrize("fsdp", ["1", "2"])
def test_a_tpu_sums_gradients_between_chips_in_the_type_that_is_asked_for(fsdp: str) -> None:
    def reduced(dtype: str) -> Types:
        """Bytes of all-reduces and reduce-scatters by their type."""
        options = "--model.dtype", "bfloat16", "--model.reduce-dtype", dtype, "--mesh.fsdp", fsdp
        done = jclip_compile("--topology", "v5e:2x2", *options)
        assert done.returncode == 0, done.stderr
        sizes: Types = {}
        for line in done.stdout.splitlines():
            if re.match(r" *(all-reduce|reduce-scatter) ", line):
                for name, size, unit in re.findall(r"(bf16|f32) ([\d.]+) (KiB|MiB|B)", line):
                    sizes[name] = sizes.get(name, 0) + round(float(size) * {"B": 1, "KiB": 2**10, "MiB": 2**20}[unit])
        return sizes

    wide, narrow = reduced("float32"), reduced("bfloat16")
    assert wide.get("bf16", 0) <= 2**10  # a class token that is made whole of its shares
    assert narrow["bf16"] > 2**16
    assert wide["f32"] > narrow["f32"] + narrow["bf16"]
