"""Times of the kernels of a program on a GPU, by part of the model: the profiler's times beside the names in its HLO."""

import gzip
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

PARTS = ("attn", "mlp", "norm", "patch_embed", "token_embed", "projection")
"""Names of modules; the first that occurs in the path of an operation is its part."""


def by_part(step: Callable[[], Any], hlo: str, folder: Path) -> dict[str, float]:
    """Milliseconds of the kernels of one run of `step`, summed by kind and part, the largest first.

    Kinds: product (of matrices), attention (cuDNN's), memory (everything else). In `folder` go the program, hlo.txt.gz, and
    kernels.tsv: milliseconds, calls, name of the instruction, kernel, path of the operation. XLA says which kernel belongs to
    which instruction only without command buffers: XLA_FLAGS=--xla_gpu_enable_command_buffer= .
    """
    folder.mkdir(parents=True, exist_ok=True)
    with jax.profiler.trace(str(folder)):
        jax.block_until_ready(step())
    trace = max(folder.rglob("*.trace.json.gz"), key=lambda path: path.stat().st_mtime)
    paths = dict(re.findall(r"^\s*(?:ROOT )?%?([\w.-]+) = .*op_name=\"([^\"]*)\"", hlo, re.MULTILINE))
    with gzip.open(folder / "hlo.txt.gz", "wt") as file:
        file.write(hlo)
    times: Counter[tuple[str, str, str]] = Counter()
    calls: Counter[tuple[str, str, str]] = Counter()
    for event in kernels(json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]):
        instruction = event["args"].get("hlo_op", "")
        key = instruction, event["name"], paths.get(instruction, "")
        times[key] += event["dur"] / 1000
        calls[key] += 1
    with open(folder / "kernels.tsv", "w") as file:
        file.writelines(f"{ms:.4f}\t{calls[key]}\t" + "\t".join(key) + "\n" for key, ms in times.most_common())
    total: dict[str, float] = defaultdict(float)
    for (instruction, kernel, path), ms in times.items():
        total[f"{kind(kernel, instruction)} {part(path)}"] += ms
    return {name: round(ms, 2) for name, ms in sorted(total.items(), key=lambda item: -item[1])}


def kernels(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The events of a trace that are kernels on a device."""
    processes = {e["pid"]: e["args"]["name"] for e in events if e.get("ph") == "M" and e.get("name") == "process_name"}
    on_device = [e for e in events if e.get("ph") == "X" and "GPU" in processes.get(e["pid"], "")]
    return [e for e in on_device if "kernel_details" in e.get("args", {})]


def kind(kernel: str, instruction: str) -> str:
    """Kind of a kernel, by its name: product, attention or memory."""
    if "fmha" in kernel or "flash" in kernel or "cudnn" in kernel or "dot_product_attention" in instruction:
        return "attention"
    return "product" if re.search(r"nvjet|gemm|cutlass|xmma", kernel) else "memory"


def part(path: str) -> str:
    """Part of an operation, by its path: forward or backward, and the part of the model."""
    where = next((name for name in PARTS if name in path), "other")
    return f"{'backward' if 'transpose(' in path else 'forward'} {where}"


if __name__ == "__main__":
    raise SystemExit("a part of bench_steps.py --profile")
