"""Attention: every form of it against float64, and what makes the forms fit."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jclip.config import MeshConfig, TextTower, VisionTower
from jclip.models import Backend, Compute, TextTransformer, VisionTransformer, attention, attention_tpu
from jclip.models.attention import attend, with_even_length
from jclip.sharding import make_mesh

TPU = Backend("tpu")


def examples(length, heads, size, *, short, dtype="float32"):
    """q, k, v and a gradient of the output, f64 [6, length, heads, size] of numbers that `dtype` holds, and lengths."""
    rng = np.random.default_rng(length)
    arrays = (jnp.asarray(rng.normal(size=(6, length, heads, size)), dtype).astype(jnp.float32) for _ in range(4))
    lengths = rng.integers(1, length + 1, 6).astype(np.int32) if short else None
    return *(np.asarray(x, np.float64) for x in arrays), lengths


def exact(q, k, v, g, lengths, causal):
    """The output, and the gradients of q, k and v, in f64 (Dao et al. 2022, appendix B.2)."""
    n, root = q.shape[1], np.sqrt(q.shape[-1])
    s = np.einsum("bnhd,blhd->bhnl", q, k) / root
    if lengths is not None:
        s = np.where((np.arange(n)[None] < lengths[:, None])[:, None, None], s, -np.inf)
    if causal:
        s = np.where(np.tri(n, dtype=bool), s, -np.inf)
    p = np.exp(s - s.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    dp = np.einsum("bnhd,blhd->bhnl", g, v)
    ds = p * (dp - (p * dp).sum(-1, keepdims=True)) / root
    pairs = (("bhnl,blhd->bnhd", p, v), ("bhnl,blhd->bnhd", ds, k), ("bhnl,bnhd->blhd", ds, q), ("bhnl,bnhd->blhd", p, g))
    return tuple(np.einsum(*pair) for pair in pairs)


def value_and_gradients(f, q, k, v, g, dtype):
    y, back = jax.vjp(f, *(jnp.asarray(x, dtype) for x in (q, k, v)))
    return y, *back(jnp.asarray(g, dtype))


def errors(got, want):
    return [float(np.linalg.norm(np.asarray(x, np.float64) - w) / np.linalg.norm(w)) for x, w in zip(got, want, strict=True)]


CASES = [(12, 4, 64, False, False), (19, 4, 32, True, False), (16, 1, 128, False, True), (9, 2, 64, True, True)]


@pytest.mark.parametrize("backend", [Backend(), Backend("gpu"), TPU], ids=lambda backend: backend.platform)
@pytest.mark.parametrize(("length", "heads", "size", "causal", "short"), CASES)
def test_plain_forms_are_exact_to_f32_rounding_with_gradients(backend, length, heads, size, causal, short):
    *arrays, lengths = examples(length, heads, size, short=short)
    with jax.default_matmul_precision("highest"):
        got = value_and_gradients(lambda q, k, v: attend(q, k, v, lengths, causal, backend), *arrays, "float32")
    assert max(errors(got, exact(*arrays, lengths, causal))) < 1e-6


@pytest.mark.parametrize(("length", "heads", "size", "causal", "short"), CASES)
def test_the_tpu_kernel_is_no_further_from_f64_than_the_plain_form(length, heads, size, causal, short):
    *arrays, lengths = examples(length, heads, size, short=short, dtype="bfloat16")
    want = exact(*arrays, lengths, causal)
    kernel = value_and_gradients(
        lambda q, k, v: attention_tpu.attend(q, k, v, lengths, causal=causal, interpret=True), *arrays, "bfloat16"
    )
    plain = value_and_gradients(lambda q, k, v: attend(q, k, v, lengths, causal, TPU), *arrays, "bfloat16")
    for ours, theirs in zip(errors(kernel, want), errors(plain, want), strict=True):
        assert ours < 1.5 * theirs < 6e-3


def test_the_tpu_kernel_reads_its_own_lengths_on_each_of_8_devices():
    """48 examples in programs of 6 on 8 devices: the lengths must be those of the device's own rows, for gradients too."""
    q, k, v, g, _ = (np.tile(x, (8, 1, 1, 1)) if isinstance(x, np.ndarray) else x for x in examples(9, 2, 64, short=False))
    lengths = np.arange(48, dtype=np.int32) % 9 + 1
    backend = Backend("tpu", mesh=make_mesh(MeshConfig(data=4, fsdp=2)))

    def rows(q, k, v, lengths):
        return attention_tpu.attend(q, k, v, lengths, causal=False, interpret=True)

    def spread(q, k, v):
        return backend.by_rows(rows)(q, k, v, jnp.asarray(lengths))

    got = value_and_gradients(jax.jit(spread), q, k, v, g, "bfloat16")
    assert max(errors(got, exact(q, k, v, g, lengths, False))) < 6e-3


def test_which_shapes_the_tpu_kernel_takes():
    def fits(*shape):
        return attention_tpu.fits(jax.ShapeDtypeStruct(shape, jnp.bfloat16))

    assert fits(8, 196, 12, 64)
    assert fits(8, 640, 8, 128)
    assert not fits(8, 641, 8, 128)  # the logits would not fit
    assert not fits(8, 196, 16, 72)  # heads do not fill the lanes (SigLIP So400m)
    assert not fits(8, 196, 3, 64)  # half of the lanes would be empty


def test_fused_attention_is_for_devices_that_have_it_and_where_it_is_not_forbidden():
    mesh = make_mesh(MeshConfig())
    assert Backend.of(mesh) == ("cpu", False, mesh)

    class Device:
        def __init__(self, platform, compute_capability=None):
            self.platform, self.compute_capability = platform, compute_capability

    class FakeMesh:
        def __init__(self, *device):
            self.devices = np.array([Device(*device)])

    assert Backend.of(FakeMesh("gpu", "9.0")).fused_attention
    assert Backend.of(FakeMesh("tpu")).fused_attention
    assert not Backend.of(FakeMesh("gpu", "7.5")).fused_attention
    assert not Backend.of(FakeMesh("gpu", "gfx942")).fused_attention
    assert not Backend.of(FakeMesh("tpu"), "plain").fused_attention


@pytest.mark.parametrize("pool", [pytest.param("cls", marks=pytest.mark.slow), "avg"])
def test_one_more_token_changes_no_other_and_no_random_number(pool, monkeypatch):
    """Stacks of an odd number of tokens, with and without the token that is added for cuDNN, both in the plain form."""
    monkeypatch.setattr(attention, "fits_cudnn", lambda q: False)
    fused = Compute(jnp.bfloat16, backend=Backend("gpu", fused_attention=True))
    assert with_even_length(jnp.zeros((4, 17, 8)), None, False, fused)[0].shape == (4, 18, 8)
    rng = np.random.default_rng(0)
    vision = VisionTower(32, 8, width=32, depth=2, heads=1, dropout=0.3, pool=pool, class_token=True)
    text = TextTower(7, vocab_size=50, width=32, depth=2, heads=1, causal=pool == "cls", mask_padding=pool == "avg")
    images, texts = rng.integers(0, 256, (4, 32, 32, 3)).astype(np.uint8), rng.integers(1, 50, (4, 7)).astype(np.int32)
    for make, config, x in ((VisionTransformer, vision, images), (TextTransformer, text, texts)):
        params = make(config).init(jax.random.key(0), x)

        def outputs(how, make=make, config=config, x=x, params=params):
            run = jax.jit(partial(make(config, how).apply, rngs={"dropout": jax.random.key(1)}))
            return [np.asarray(y, np.float32) for y in run(params, x, rows=jnp.arange(4))[:2]]

        for ours, theirs in zip(outputs(fused), outputs(fused._replace(backend=Backend("gpu"))), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=0.04)  # bf16, with sums in another order
