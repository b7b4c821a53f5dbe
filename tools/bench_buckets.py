"""Times the training step of a recipe with text buckets beside the same without, on its own captions.

    python tools/bench_buckets.py configs/clipart.py --root data/clipart --buckets text 16 0.8

Two processes take turns on the same batches, read before the clock starts. The table says how many of the batches fit into the
buckets, which share of the text tokens was not computed, and the median of the ratios of the pairs of steps.
"""

import argparse
import statistics
import sys
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.table import Table
from turns import Worker, median_ratio, serve, take_turns


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", metavar="CONFIG.py", help="a recipe; its options follow, --buckets among them")
    parser.add_argument("--steps", type=int, default=10, help="timed steps of each (default: 10)")
    parser.add_argument("--warmup", type=int, default=2, help="steps before that (default: 2)")
    parser.add_argument("--worker", choices=["padded", "buckets"], help=argparse.SUPPRESS)
    options, overrides = parser.parse_known_args()
    if options.worker:
        step, facts = make_step(options.recipe, overrides, options.steps + options.warmup, options.worker == "buckets")
        serve(step, **facts)
        return
    command = [sys.executable, __file__, options.recipe, "--steps", str(options.steps), "--warmup", str(options.warmup)]
    workers = [Worker(*command, "--worker", kind, *overrides) for kind in ("padded", "buckets")]
    padded, bucketed = take_turns(workers, warmup=options.warmup, steps=options.steps, title="steps")
    facts = workers[1].facts
    table = Table("padded s/step", "buckets s/step", "median of ratios", "batches that fit", "text tokens saved")
    table.add_row(
        f"{statistics.median(padded):.3f}",
        f"{statistics.median(bucketed):.3f}",
        f"{median_ratio(bucketed, padded):.2f}",
        f"{facts['fit']:.0%}",
        f"{facts['saved']:.0%}",
    )
    Console(width=None if sys.stdout.isatty() else 120).print(table)


def make_step(recipe: str, overrides: list[str], batches: int, buckets: bool) -> tuple[Callable[[], None], dict[str, float]]:
    """A step of the real train step on the next batch, waited for; and what share fits, and is saved."""
    import itertools

    import jax
    import numpy as np

    from jclip.config import TextTower, groups_of, load, replace
    from jclip.data import make_run_loader
    from jclip.models import fits_buckets
    from jclip.program import make_program
    from jclip.sharding import make_mesh, to_global

    config = load(recipe, overrides)
    mesh = make_mesh(config.mesh)
    saved = {}
    for name, groups in groups_of(config.buckets).items():
        tower = config.model.towers[name]
        assert isinstance(tower, TextTower)
        saved[name] = sum(share * (1 - tokens / tower.context_length) for tokens, share in groups)
    if not saved:
        raise SystemExit("give --buckets, such as: --buckets text 16 0.8")
    with make_run_loader(config) as loader:
        read = [next(loader).arrays for _ in range(batches)]
    fits = [bool(fits_buckets(config, to_global(rows, mesh), mesh)) for rows in read]
    facts = {"fit": float(np.mean(fits)), "saved": float(np.mean(fits)) * statistics.mean(saved.values())}
    program = make_program(config if buckets else replace(config, "buckets", ()), mesh, warmup_steps=60, total_steps=1000)
    state: Any = program.init()
    following = itertools.cycle(read)

    def step() -> None:
        nonlocal state
        state, _ = program.train_step(state, to_global(next(following), mesh))
        jax.block_until_ready(state)

    return step, facts


if __name__ == "__main__":
    main()
