"""Times `jclip.load` beside reading the file of weights, and counts its memory.

    python tools/bench_load.py                     random weights of ViT-L-14 in open_clip's format, 1.7 GB in a temporary folder
    python tools/bench_load.py --folder DIR        weights that are there already

Both take turns, each turn in a process of its own that has started JAX before the clock runs, with the file in the page cache.
"read" is one read() of the whole file into new memory; "load" ends when every parameter is on the device, in our order, in f32.
The ratio is the median of the turns' ratios of load to read. CPU seconds are those of all threads of the process, with the
kernel's for it: on a machine that does other work at the same time, they say more than the clock.

Extra memory is how much the largest resident size of the process (VmHWM: parameters, buffers and mapped pages of the file, all of
it) grows while it reads or loads, in sizes of the file: 1.0 for the parameters themselves, where they are kept on the CPU.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table
from turns import median_ratio

KINDS = ("read", "load")
FILE = "open_clip_model.safetensors"


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", default="ViT-L-14", help="whose random weights (default: ViT-L-14)")
    parser.add_argument("--folder", type=Path, help="a folder of open_clip's format, instead of random weights")
    parser.add_argument("--turns", type=int, default=5, help="timed turns, after one that is not (default: 5)")
    parser.add_argument("--worker", choices=KINDS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(measure(options.worker, options.folder)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or random_weights(Path(temporary) / "weights", options.architecture)
        command = [sys.executable, __file__, "--folder", str(folder), "--worker"]
        results: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
        for turn in track(range(options.turns + 1), str(folder), console=Console(stderr=True)):
            for kind in KINDS:
                result = json.loads(subprocess.run([*command, kind], check=True, stdout=subprocess.PIPE).stdout)
                results[kind] += [result] if turn else []
        Console().print(table(results, (folder / FILE).stat().st_size))


def table(results: dict[str, list[dict[str, float]]], size: int) -> Table:
    """A row for each kind: medians, the ratio to reading, and the memory."""
    made = Table("", "seconds", "CPU seconds", "to read", "extra memory", title=f"{size / 1e9:.2f} GB")
    read = [turn["seconds"] for turn in results["read"]]
    for kind, turns in results.items():
        seconds, cpu, memory = ([turn[key] for turn in turns] for key in ("seconds", "cpu", "memory"))
        medians = (f"{statistics.median(seconds):.2f}", f"{statistics.median(cpu):.2f}")
        made.add_row(kind, *medians, f"{median_ratio(seconds, read):.2f}", f"{statistics.median(memory) / size:.2f}")
    return made


def random_weights(folder: Path, name: str) -> Path:
    """A folder of open_clip's format with random numbers."""
    from jclip.config import architecture
    from jclip.weights import tower_shapes, write_weights

    model, rng = architecture(name), np.random.default_rng(0)
    shapes = {**tower_shapes(model), "image_text/logit_scale": ()}
    write_weights(folder, "open_clip", model, {path: rng.random(shape, np.float32) for path, shape in shapes.items()})
    return folder


def measure(kind: str, folder: Path) -> dict[str, float]:
    """Seconds, CPU seconds, and bytes by which the process has grown at most."""
    import jax

    import jclip

    jax.block_until_ready(jax.device_put(0))  # which starts the devices
    jclip.load  # noqa: B018  which imports it
    before, used, began = peak_bytes(), cpu_seconds(), time.perf_counter()
    if kind == "read":
        kept: object = (folder / FILE).read_bytes()
    else:
        kept = jax.block_until_ready(jclip.load(folder).params)
    seconds = time.perf_counter() - began
    facts = {"seconds": seconds, "cpu": cpu_seconds() - used, "memory": float(peak_bytes() - before)}
    del kept
    return facts


def peak_bytes() -> int:
    """The largest resident size that this process has had."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def cpu_seconds() -> float:
    """Processor time of this process, in its own code and in the kernel."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
