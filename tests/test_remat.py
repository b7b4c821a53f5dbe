"""Values kept for the backward pass by name: the same loss and gradients as ever, for as much memory as is kept."""

from dataclasses import replace
from functools import lru_cache
from typing import Any

import jax
import jax.extend as jex
import jax.numpy as jnp
import numpy as np
import pytest

from jclip.config import ConfigError, MeshConfig, Model, TextTower, check_model
from jclip.config.io import from_json, to_json
from jclip.models import TextTransformer
from jclip.models.compute import Backend, Compute, cudnn_attention
from jclip.sharding import make_mesh

TOWER = TextTower(context_length=16, vocab_size=64, width=32, depth=3, heads=2, pool="mean", causal=False, eot_id=63)
UNIT = 4 * 3 * 64 * 16 * 32
"""Bytes of a number for each channel of each token in each block."""
ATTENTION: Any = ("q", "k", "v", "attention", "out")
ALL: Any = ("norm1", *ATTENTION, "norm2", "fc1")


@lru_cache
def compiled(remat: Any, scan: bool = True) -> tuple[Any, Any]:
    """The compiled step, parameters -> (loss, gradients), and the parameters."""
    tower = TextTransformer(TOWER, Compute(scan=scan, remat=remat))
    ids = jnp.asarray(np.random.default_rng(0).integers(0, 64, (64, 16)).astype(np.int32))
    params = jax.jit(tower.init)(jax.random.key(0), ids)["params"]

    def loss(params: Any) -> jax.Array:
        out = tower.apply({"params": params}, ids)
        return jnp.mean(jnp.sin(out.pooled)) + jnp.mean(out.tokens**2)

    return jax.jit(jax.value_and_grad(loss)).lower(params).compile(), params


MORE = [pytest.param(*how, marks=pytest.mark.exhaustive) for how in ((ATTENTION, False), (("attention", "fc1"), True))]


@pytest.mark.parametrize(("remat", "scan"), [(ATTENTION, True), (ALL, True), *MORE])
def test_what_is_kept_changes_neither_loss_nor_gradients(remat: Any, scan: bool) -> None:
    (step, params), (plain, _) = compiled(remat, scan), compiled("none")
    (value, gradients), (want, want_gradients) = step(params), plain(params)
    np.testing.assert_allclose(value, want, rtol=1e-6)
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(want_gradients))
    for got, leaf in zip(*map(jax.tree.leaves, (gradients, want_gradients)), strict=True):
        np.testing.assert_allclose(got, leaf, rtol=0, atol=1e-6 * largest)


def test_memory_grows_by_what_is_kept() -> None:
    nothing, attention, everything, none = (
        compiled(remat)[0].memory_analysis().temp_size_in_bytes / UNIT for remat in ("nothing_saveable", ATTENTION, ALL, "none")
    )
    assert nothing + 4 < attention < nothing + 6
    assert attention < everything < none


def kernels(jaxpr: jex.core.Jaxpr) -> int:
    """Calls of kernels of our own in a program, in loops too."""
    inner = (each for equation in jaxpr.eqns for each in jex.core.jaxprs_in_params(equation.params))
    return sum(equation.primitive.name == "pallas_call" for equation in jaxpr.eqns) + sum(map(kernels, inner))


@pytest.mark.parametrize("devices", [pytest.param(1, marks=pytest.mark.exhaustive), 8])
@pytest.mark.parametrize(("remat", "calls"), [("nothing_saveable", 3), (("q", "k", "v"), 3), (("attention",), 2), (ATTENTION, 2)])
def test_a_kernel_whose_result_is_kept_is_not_run_again(remat: Any, calls: int, devices: int) -> None:
    """Forward, and for the gradients: traced as for a TPU, alone and with rows on every device."""
    backend = Backend("tpu", True, make_mesh(MeshConfig(), jax.devices()[:devices]))
    tower = TextTransformer(replace(TOWER, width=128), Compute(jnp.bfloat16, scan=True, remat=remat, backend=backend))
    ids = jnp.zeros((8, 16), jnp.int32)
    params = jax.eval_shape(tower.init, jax.random.key(0), ids)["params"]
    loss = jax.grad(lambda params: tower.apply({"params": params}, ids).pooled.astype(jnp.float32).sum())
    assert kernels(jax.make_jaxpr(loss)(params).jaxpr) == calls


def test_the_sums_that_cudnn_makes_beside_its_result_are_kept_with_it() -> None:
    """The name of cuDNN's primitive: no other test on a CPU would notice that it had become another."""
    stablehlo = pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo")
    assert cudnn_attention(stablehlo._dot_product_attention_fwd_p_wrapper)
    assert not cudnn_attention(stablehlo._dot_product_attention_bwd_p_wrapper)
    assert Compute(remat=("attention",)).policy(stablehlo._dot_product_attention_fwd_p_wrapper)
    assert not Compute(remat=("q",)).policy(stablehlo._dot_product_attention_fwd_p_wrapper)


def test_layers_that_are_kept_are_saved_with_a_model_and_others_are_refused() -> None:
    model = Model(remat=("attention", "fc1"))
    assert from_json(to_json(model), Model) == model
    check_model(model)
    wrong: Any = ("attention", "fc3")
    with pytest.raises(ConfigError, match="remat"):
        check_model(Model(remat=wrong))
