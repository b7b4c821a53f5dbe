"""Times the contrastive loss, value and gradients, beside others, and counts its memory.

    python tools/bench_loss.py                                     jclip's methods and the dense loss in JAX
    python tools/bench_loss.py --peer-python ../peer/bin/python    beside open_clip's ClipLoss and SigLipLoss as well
    python tools/bench_loss.py --memory                            memory on eight devices, compiled and not run

Times are medians of turns that the processes take on all of this machine's devices (open_clip: on one); a ratio is the median of
the turns' ratios of jclip's time (gather) to the other's, so below 1 jclip is faster. Memory is what the compiler plans
(`memory_analysis`) for a device; with --memory for unit vectors of 768 numbers, as ViT-L/14 has them, and the column beside it is
what Inf-CL is published to need for its loss on 8 GPUs (Cheng et al. 2024, table 1).
"""

import argparse
import os
import statistics
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table
from turns import Worker, median_ratio, serve, take_turns

KINDS = ("softmax", "sigmoid")
METHODS = ("gather", "ring")
PEER = {"softmax": "open_clip ClipLoss", "sigmoid": "open_clip SigLipLoss"}
INF_CL = {32_768: 0.18, 65_536: 0.36, 131_072: 0.72, 262_144: 1.45}
"""GB a GPU by batch, of ViT-L/14 on 8 GPUs."""


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[1024, 4096], help="batch sizes (default: 1024 4096)")
    parser.add_argument("--size", type=int, default=512, help="numbers of an embedding (default: 512)")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="which losses (default: both)")
    parser.add_argument("--block", type=int, default=256, help="columns of a tile of jclip's (default: 256)")
    parser.add_argument("--steps", type=int, default=15, help="timed turns (default: 15)")
    parser.add_argument("--warmup", type=int, default=3, help="turns before that, compilation included (default: 3)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads of the peer (default: all)")
    parser.add_argument("--memory", action="store_true", help="count memory instead of time")
    parser.add_argument("--peer-python", metavar="PYTHON", help="a Python with torch and open_clip")
    parser.add_argument("--peer-import", metavar="MODULE", help="a module the peer imports first")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        if options.worker.endswith("Loss"):
            serve(open_clip_step(options, options.kinds[0], options.batches[0]))
        else:
            step, temporaries = jax_step(options, options.kinds[0], options.batches[0])
            serve(step, temporaries=temporaries)
    else:
        Console().print(memory_table(options) if options.memory else time_table(options))


def time_table(options: argparse.Namespace) -> Table:
    """Milliseconds of each loss, the ratio of jclip's to them, and the temporary megabytes of a device."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # several processes share an accelerator
    table = Table("loss", "batch", "program", "ms", "jclip / it", "temporary MB")
    for kind in options.kinds:
        for batch in options.batches:
            names = [*(f"jclip {method}" for method in METHODS), "dense JAX", *([PEER[kind]] if options.peer_python else [])]
            workers = [start_worker(options, name, kind, batch) for name in names]
            times = take_turns(workers, warmup=options.warmup, steps=options.steps, title=f"{kind} {batch:,}")
            for name, worker, seconds in zip(names, workers, times, strict=True):
                memory = f"{worker.facts['temporaries'] / 1e6:.1f}" if worker.facts else ""
                ratio = f"{median_ratio(times[0], seconds):.2f}"
                table.add_row(kind, f"{batch:,}", name, f"{1e3 * statistics.median(seconds):.1f}", ratio, memory)
    return table


def start_worker(options: argparse.Namespace, name: str, kind: str, batch: int) -> Worker:
    """A process that computes one loss."""
    command = [__file__, "--worker", name, "--kinds", kind, "--batches", str(batch), "--size", str(options.size)]
    command += ["--block", str(options.block), "--threads", str(options.threads)]
    if name.endswith("Loss") and options.peer_import:
        command += ["--peer-import", options.peer_import]
    return Worker(options.peer_python if name.endswith("Loss") else sys.executable, *command)


def unit_rows(batch: int, size: int) -> tuple[Any, Any]:
    """Two sides, f32 [batch, size]."""
    import numpy as np

    sides = np.random.default_rng(0).normal(size=(2, batch, size)).astype(np.float32)
    za, zb = sides / np.linalg.norm(sides, axis=2, keepdims=True)
    return za, zb


def jax_step(options: argparse.Namespace, kind: Any, batch: int) -> tuple[Callable[[], None], int]:
    """Value and gradients of jclip's loss, or of the dense one, on all devices, and the temporary bytes of one of them."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import AxisType, NamedSharding, PartitionSpec

    from jclip.losses import contrastive

    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
    rows, everywhere = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
    method: Any = options.worker.removeprefix("jclip ")
    ours: Any = partial(contrastive, kind=kind, mesh=mesh, method=method, block=options.block)
    loss = partial(dense, kind) if options.worker == "dense JAX" else ours
    step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)), out_shardings=(everywhere, (rows, rows, everywhere)))
    za, zb = (jax.device_put(z, rows) for z in unit_rows(batch, options.size))
    scale = jax.device_put(jnp.float32(1 / 0.07), everywhere)
    compiled = step.lower(za, zb, scale).compile()
    memory: Any = compiled.memory_analysis()
    return lambda: jax.block_until_ready(compiled(za, zb, scale)) and None, int(memory.temp_size_in_bytes)


def dense(kind: str, za: Any, zb: Any, scale: Any) -> Any:
    """The loss as it is usually written, with all logits at once."""
    import jax
    import jax.numpy as jnp

    logits = scale * jnp.matmul(za, zb.T, precision="highest", preferred_element_type=jnp.float32)
    positive = jnp.diagonal(logits)
    if kind == "sigmoid":
        return (jax.nn.softplus(logits).sum() - positive.sum()) / len(za)
    both = jax.nn.logsumexp(logits, axis=1) + jax.nn.logsumexp(logits, axis=0)
    return (both / 2 - positive).mean()


def open_clip_step(options: argparse.Namespace, kind: str, batch: int) -> Callable[[], None]:
    """Value and gradients of open_clip's loss, on one device."""
    import importlib

    if options.peer_import:
        importlib.import_module(options.peer_import)
    torch = importlib.import_module("torch")
    torch.set_num_threads(options.threads)
    module = importlib.import_module("open_clip.loss")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    za, zb = (torch.tensor(z, device=device, requires_grad=True) for z in unit_rows(batch, options.size))
    scale = torch.tensor(1 / 0.07, device=device, requires_grad=True)
    bias = torch.tensor(0.0, device=device, requires_grad=True)
    loss_fn = module.ClipLoss() if kind == "softmax" else module.SigLipLoss()

    def step() -> None:
        for leaf in (za, zb, scale, bias):
            leaf.grad = None
        loss = loss_fn(za, zb, scale) if kind == "softmax" else loss_fn(za, zb, scale, bias)
        loss.backward()
        if device == "cuda":
            torch.cuda.synchronize()

    return step


def memory_table(options: argparse.Namespace) -> Table:
    """GB of temporaries a device, of value and gradients."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
    table = Table("batch", "gather GB", "ring GB", "dense JAX GB", "Inf-CL GB (published)")
    for batch in track(INF_CL, "compiling", console=Console(stderr=True)):
        sizes = [f"{temporary_bytes(options, batch, method) / 1e9:.3f}" for method in ("gather", "ring", "dense")]
        table.add_row(f"{batch:,}", *sizes, f"{INF_CL[batch]:.2f}")
    return table


def temporary_bytes(options: argparse.Namespace, batch: int, method: Any) -> int:
    """Temporary bytes of one of eight devices, for bfloat16 unit vectors of 768 numbers."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import AxisType, NamedSharding, PartitionSpec

    from jclip.losses import contrastive

    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    rows, everywhere = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
    side = jax.ShapeDtypeStruct((batch, 768), jnp.bfloat16, sharding=rows)
    scale = jax.ShapeDtypeStruct((), jnp.float32, sharding=everywhere)
    ours: Any = partial(contrastive, mesh=mesh, method=method, block=options.block)
    loss = partial(dense, "softmax") if method == "dense" else ours
    step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)), out_shardings=(everywhere, (rows, rows, everywhere)))
    memory: Any = step.lower(side, side, scale).compile().memory_analysis()
    return int(memory.temp_size_in_bytes)


if __name__ == "__main__":
    main()
