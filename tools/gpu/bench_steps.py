"""Times training steps on a GPU, data excluded: CLIP's models in bfloat16, one JSON object a line.

    PYTHONPATH=. python tools/gpu/bench_steps.py                               the table of docs/speed.md, in about eight minutes
    PYTHONPATH=. python tools/gpu/bench_steps.py ViT-B-32:2048:none:unroll     one row: model, batch, remat, unroll or scan
    PYTHONPATH=. python tools/gpu/bench_steps.py ... --profile DIR             and what each kernel takes, by part of the model

Needs jax, flax and optax alone. All programs are compiled first, side by side; then each is run on random data that lies on the
device, the state donated, and the median of the later steps counts. MFU is 3 x forward FLOPs x rate / peak of dense bfloat16
products; what is computed again to save memory is not counted. A row that does not fit the memory says so.
"""

import argparse
import json
import statistics
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from kernels import by_part

from jclip.config import Config, Contrastive, architecture, replace
from jclip.operations import step_flops
from jclip.program import Program, make_program
from jclip.sharding import make_mesh, to_global

PEAK = {"H100": 989e12, "H200": 989e12, "A100": 312e12}
"""Dense bfloat16 FLOP/s, by what the name of the card contains."""

ROWS = (
    "ViT-B-32:1024:none:unroll",
    "ViT-B-32:2048:none:unroll",
    "ViT-B-16:512:none:unroll",
    "ViT-B-16-SigLIP:512:none:unroll",
    "ViT-L-14:128:none:unroll",
    "ViT-L-14:256:none:unroll",
    "ViT-L-14:512:nothing_saveable:scan",
)


class Row(NamedTuple):
    """One program to measure."""

    model: str
    batch: int
    remat: str
    loop: str
    attention: str = "auto"

    def config(self) -> Config:
        """The configuration of its step."""
        model = architecture(self.model)
        values = {"dtype": "bfloat16", "remat": self.remat, "scan": self.loop == "scan", "attention": self.attention}
        for path, value in values.items():
            model = replace(model, path, value)
        sigmoid = "SigLIP" in self.model
        return Config(
            model,
            batch_size=self.batch,
            objectives={"image_text": Contrastive(dtype="bfloat16", loss="sigmoid" if sigmoid else "softmax", block=1024)},
        )


class Compiled(NamedTuple):
    """A compiled row."""

    config: Config
    program: Program
    step: Any
    seconds: float


def main() -> None:
    """Prints a line a row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", default=ROWS, help="MODEL:BATCH:REMAT:unroll|scan[:plain] (default: the table's)")
    parser.add_argument("--steps", type=int, default=10, help="timed steps of each (default: 10)")
    parser.add_argument("--seconds", type=float, default=420, help="no row is begun after this many (default: 420)")
    parser.add_argument("--profile", type=Path, metavar="DIR", help="where the programs and the times of their kernels go")
    parser.add_argument("--compilers", type=int, default=8, help="programs compiled at a time (default: 8)")
    options = parser.parse_args()
    began = time.perf_counter()
    rows = [Row(name, int(batch), *rest) for name, batch, *rest in (row.split(":") for row in options.rows)]
    facts = {"device": jax.devices()[0].device_kind, "jax": jax.__version__, "commit": commit()}
    with ThreadPoolExecutor(options.compilers) as pool:
        compiled = list(pool.map(attempt(compile_row), rows))
    for row, result in zip(rows, compiled, strict=True):
        if time.perf_counter() - began > options.seconds:
            result = "left out: out of time"
        if isinstance(result, Compiled):
            result = attempt(partial(measure, row, steps=options.steps, profile=options.profile))(result)
        print(json.dumps(row._asdict() | facts | (result if isinstance(result, dict) else {"error": result})), flush=True)


def attempt(f: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """f, or the first line of its error: out of memory is a result too."""

    def run(x: Any) -> Any:
        try:
            return f(x)
        except Exception as error:
            return str(error).splitlines()[0][:300]

    return run


def compile_row(row: Row) -> Compiled:
    """Compiles the train step."""
    began = time.perf_counter()
    config = row.config()
    program = make_program(config, make_mesh(config.mesh), warmup_steps=10, total_steps=1000)
    return Compiled(config, program, program.compile(), time.perf_counter() - began)


def measure(row: Row, compiled: Compiled, steps: int, profile: Path | None) -> dict[str, Any]:
    """Runs it, and returns what is reported."""
    config, program, step, seconds = compiled
    batch = random_batch(config)
    state, times, losses = program.init(), [], []
    for _ in range(steps + 3):
        began = time.perf_counter()
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
        times.append(time.perf_counter() - began)
    median = statistics.median(times[3:])
    kind = jax.devices()[0].device_kind
    peak = next((peak for name, peak in PEAK.items() if name in kind), None)
    facts = {
        "seconds": round(median, 4),
        "pairs_per_s": round(config.batch_size / median, 1),
        "mfu": peak and round(step_flops(config) / median / peak, 4),
        "temporaries_gib": round(step.memory_analysis().temp_size_in_bytes / 2**30, 2),
        "compile_s": round(seconds, 1),
        "first_loss": round(losses[0], 4),
        "last_loss": round(losses[-1], 4),
    }
    if profile is not None:
        name = "-".join(map(str, row))
        facts["milliseconds"] = by_part(lambda: step(state, batch), step.as_text(), profile / name)
    return facts


def random_batch(config: Config) -> dict[str, jax.Array]:
    """A batch of random pixels and texts of about 20 tokens."""
    rng = np.random.default_rng(0)
    towers = config.model.towers
    pixels, (length,) = towers["image"].input()[0], towers["text"].input()[0]
    text = rng.integers(1, 30000, (config.batch_size, length)).astype(np.int32)
    text[:, min(20, length - 1)] = 49407 if getattr(towers["text"], "vocab_size", 0) > 49407 else 1
    image = rng.integers(0, 256, (config.batch_size, *pixels)).astype(np.uint8)
    return to_global({"image": image, "text": text}, make_mesh(config.mesh))


def commit() -> str:
    """The commit of this checkout, or of the file COMMIT where it is no checkout."""
    root = Path(__file__).parents[2]
    if (root / "COMMIT").exists():
        return (root / "COMMIT").read_text().strip()
    found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=root, capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"


if __name__ == "__main__":
    main()
