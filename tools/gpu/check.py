"""Checks jclip on a GPU: one JSON object a line, with the error and the bound; status 1 where one is beyond its bound.

    PYTHONPATH=. python tools/gpu/check.py

Needs jax, flax, optax and numpy alone. References: float64 numpy for the losses and for attention with its gradients; the same
program in float32 on the CPU of the same machine for the towers; the float32 gradient for the bfloat16 one, with the plain form
of attention beside it. A run of a few steps is made twice and must agree to the bit.
"""

import argparse
import json
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jclip import losses
from jclip.config import Config, Contrastive, MeshConfig, Model, TextTower, Tower, VisionTower, replace
from jclip.encode import make_encode
from jclip.models import Backend
from jclip.models.attention import attend
from jclip.program import make_program
from jclip.sharding import make_mesh, param_shardings, to_global
from jclip.state import init_params, param_shapes
from jclip.step import make_loss_and_grads

Array = np.ndarray

failed = False


def main() -> None:
    """Prints a line a check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    checks = {
        "losses": check_losses,
        "attention": check_attention,
        "towers": check_towers,
        "gradients": check_gradients,
        "repeatable": check_repeatable,
    }
    parser.add_argument("checks", nargs="*", metavar="CHECK", help=f"which of {', '.join(checks)} (default: all)")
    for name in parser.parse_args().checks or checks:
        checks[name]()
    raise SystemExit(failed)


def report(name: str, error: float, bound: float, **facts: object) -> None:
    """Prints one check."""
    global failed
    fine = bool(error <= bound)
    failed = failed or not fine
    print(json.dumps({"check": name, "error": float(f"{error:.3e}"), "bound": bound, "fine": fine, **facts}), flush=True)


def relative(got: Any, want: Array) -> float:
    """|got - want| / |want| in the 2-norm."""
    return float(np.linalg.norm(np.asarray(got, np.float64) - want) / np.linalg.norm(want))


def rounded(x: Array, dtype: Any) -> Array:
    """x as `dtype` holds it, in f64."""
    return np.asarray(jnp.asarray(x, dtype).astype(jnp.float32), np.float64)


def check_losses() -> None:
    """Value and gradient of both losses against f64."""
    rng = np.random.default_rng(0)
    for kind in ("softmax", "sigmoid"):
        for dtype, bound in (("float32", 1e-6), ("bfloat16", 4e-3)):
            a, b = (rounded(x / np.linalg.norm(x, axis=-1, keepdims=True), dtype) for x in rng.normal(size=(2, 2048, 512)))
            s = 50.0 * a @ b.T - (10 if kind == "sigmoid" else 0)
            if kind == "softmax":
                rows, columns = np.exp(s - s.max(1, keepdims=True)), np.exp(s - s.max(0, keepdims=True))
                want = (np.log(rows.sum(1)) + s.max(1) + np.log(columns.sum(0)) + s.max(0) - 2 * np.diag(s)).mean() / 2
                slope = (rows / rows.sum(1, keepdims=True) + columns / columns.sum(0, keepdims=True) - 2 * np.eye(2048)) / 4096
            else:
                sign = 2 * np.eye(2048) - 1
                want = np.logaddexp(0, -sign * s).sum() / 2048
                slope = -sign / (1 + np.exp(sign * s)) / 2048
            bias = -10.0 if kind == "sigmoid" else None

            def loss(a: Any, b: Any, kind: Any = kind, bias: Any = bias) -> Any:
                return losses.contrastive(a, b, 50.0, bias, kind=kind)

            value, dza = jax.jit(jax.value_and_grad(loss))(jnp.asarray(a, dtype), jnp.asarray(b, dtype))
            report(f"loss {kind} {dtype}", abs(float(value) / want - 1), 1e-5)
            report(f"loss gradient {kind} {dtype}", relative(dza, 50.0 * slope @ b), bound)


def check_attention() -> None:
    """Fused attention and its gradients against f64, beside the plain form: no further off than that by more than a fifth."""
    rng = np.random.default_rng(1)
    fused = Backend.of(make_mesh(MeshConfig()))
    for length, causal, short in (
        (50, False, False),
        (78, True, False),
        (198, False, True),
        (258, False, True),
        (64, True, True),
    ):
        q, k, v, g = (rounded(x, "bfloat16") for x in rng.normal(size=(4, 8, length, 4, 64)))
        lengths = rng.integers(length // 2, length, 8).astype(np.int32) if short else None
        want = exact_attention(q, k, v, g, lengths, causal)

        def run(backend: Backend, *args: Any, lengths: Any = lengths, causal: bool = causal) -> Any:
            *qkv, g = (jnp.asarray(x, jnp.bfloat16) for x in args)
            y, back = jax.vjp(partial(attend, lengths=lengths, causal=causal, backend=backend), *qkv)
            return y, *back(g)

        ours, plain = (
            [relative(x, w) for x, w in zip(jax.jit(lambda *a, backend=backend: run(backend, *a))(q, k, v, g), want, strict=True)]
            for backend in (fused, fused._replace(fused_attention=False))
        )
        for name, mine, theirs in zip(("out", "dq", "dk", "dv"), ours, plain, strict=True):
            report(
                f"attention {name} l={length} causal={causal} lengths={short}",
                mine,
                round(1.2 * theirs, 6),
                plain=round(theirs, 6),
            )


def exact_attention(q: Array, k: Array, v: Array, g: Array, lengths: Array | None, causal: bool) -> tuple[Array, ...]:
    """The output for f64 [b, l, heads, d] and the gradients of q, k and v for its gradient g."""
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


def small(dtype: str, attention: str = "auto") -> Config:
    """A model of a few blocks whose attention can be fused: 17 tokens of an image, and 13 of a text."""
    towers: dict[str, Tower] = {
        "image": VisionTower(64, 16, width=128, depth=3, heads=2),
        "text": TextTower(context_length=13, vocab_size=1000, width=128, depth=3, heads=2),
    }
    model = replace(replace(Model(towers, embed_dim=64), "dtype", dtype), "attention", attention)
    return Config(model, batch_size=32, objectives={"image_text": Contrastive(block=16)})


def inputs(config: Config) -> dict[str, Array]:
    """Pixels and ids."""
    rng = np.random.default_rng(2)
    image = rng.integers(0, 256, (config.batch_size, 64, 64, 3)).astype(np.uint8)
    return {"image": image, "text": rng.integers(1, 1000, (config.batch_size, 13)).astype(np.int32)}


def on(config: Config, device: jax.Device, f: Callable[..., Any]) -> Any:
    """f(mesh, parameters, batch) on one device."""
    mesh = make_mesh(MeshConfig(), [device])
    with jax.default_device(device):
        params = init_params(config, param_shardings(param_shapes(config), config.mesh, mesh))
        return jax.device_get(f(mesh, params, to_global(inputs(config), mesh)))


def check_towers() -> None:
    """Embeddings in f32 against those of the CPU."""
    config = small("float32")
    here, there = (
        on(config, devices[0], lambda mesh, params, batch: make_encode(config.model, mesh)(params, batch))
        for devices in (jax.devices(), jax.devices("cpu"))
    )
    for name in here:
        report(f"embeddings {name} float32", float(np.abs(here[name][1] - there[name][1]).max()), 2e-6)


def check_gradients() -> None:
    """The gradient of a bfloat16 step against the f32 one of the CPU, with fused attention and with the plain form."""

    def gradients(config: Config, device: jax.Device) -> Array:
        def run(mesh: Any, params: Any, batch: Any) -> Any:
            with jax.default_matmul_precision("highest"):
                return jax.jit(make_loss_and_grads(config, mesh))(params, batch, jax.random.key(0))[2]

        return np.concatenate([np.ravel(x).astype(np.float64) for x in jax.tree.leaves(on(config, device, run))])

    want = gradients(small("float32"), jax.devices("cpu")[0])
    report("gradient of a step float32", relative(gradients(small("float32"), jax.devices()[0]), want), 1e-4)
    plain = relative(gradients(small("bfloat16", "plain"), jax.devices()[0]), want)
    ours = relative(gradients(small("bfloat16"), jax.devices()[0]), want)
    report("gradient of a step bfloat16", ours, round(1.2 * plain, 6), plain=round(plain, 6))


def check_repeatable() -> None:
    """Five steps, twice."""
    config = small("bfloat16")
    mesh = make_mesh(config.mesh)
    program = make_program(config, mesh, warmup_steps=2, total_steps=10)

    def run() -> Any:
        state, batch = program.init(), to_global(inputs(config), mesh)
        for _ in range(5):
            state, _ = program.train_step(state, batch)
        return jax.tree.leaves(jax.device_get(state))

    report(
        "two runs of five steps, arrays that differ", sum(not np.array_equal(a, b) for a, b in zip(run(), run(), strict=True)), 0
    )


if __name__ == "__main__":
    main()
