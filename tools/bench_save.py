"""The cost of the digests that a checkpoint carries: saves with and without them take turns.

    python tools/bench_save.py [--million 50] [--turns 7] [--work 10]

The state is so many million f32 parameters with AdamW's two moments, in arrays of a million. A row each: "held up" is how long
the loop waits in the call that starts a save, "step" how long the next step takes meanwhile, "background" the time from the call
until the checkpoint is safe on disk, and "processor" what all cores together have worked in it. Above stands what computing the
digests takes alone. Medians of the turns, in seconds.

On a CPU a thread of low priority computes the digests, which leaves the cores to the step: where it takes them all the digests
come later, and "background" grows with it.
"""

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
from orbax.checkpoint import v1 as ocp

from jclip.digests import begin_digests
from jclip.saved_digests import DIGESTS, SavedDigests


def make_state(million: int) -> dict[str, Any]:
    """Parameters and moments on the default device."""
    keys = jax.random.split(jax.random.key(0), million)
    params = {f"layer{i:04d}": jax.random.normal(key, (1000, 1000)) for i, key in enumerate(keys)}
    return {"params": params, "opt_state": tuple(jax.tree.map(lambda x, s=scale: x * s, params) for scale in (0.1, 0.01))}


def make_step(work: int) -> Any:
    """A step: so many products of matrices, which take every core of a CPU, and an update of the state, which it is given."""

    def step(state: Any, x: jax.Array) -> tuple[Any, jax.Array]:
        x = jax.lax.fori_loop(0, work, lambda i, x: jnp.tanh(x @ x), x)
        return jax.tree.map(lambda leaf: leaf * 0.999, state), x

    return jax.jit(step, donate_argnums=0)


def save(folder: Path, state: dict[str, Any], digests: bool) -> tuple[Any, float]:
    """Starts a save; the response, and the seconds that the call took."""
    began = time.perf_counter()
    parts = dict(state)
    if digests:
        named = {name: (part, begin_digests(part)) for name, part in state.items()}
        parts[DIGESTS] = SavedDigests(named, {})
    response = ocp.save_checkpointables_async(folder, parts)
    return response, time.perf_counter() - began


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--million", type=int, default=50, help="parameters (default: 50)")
    parser.add_argument("--work", type=int, default=10, help="products of 2,048 by 2,048 matrices in a step (default: 10)")
    parser.add_argument("--turns", type=int, default=7, help="turns, after one that is not timed (default: 7)")
    options = parser.parse_args()
    state = make_state(options.million)
    step, x = make_step(options.work), jnp.ones((2048, 2048)) / 2048
    times: dict[bool, list[tuple[float, ...]]] = {False: [], True: []}
    alone = []
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(options.turns + 1):
            for digests in (False, True):
                jax.block_until_ready(state)
                began, worked = time.perf_counter(), time.process_time()
                response, held_up = save(Path(folder, f"{turn}-{digests}"), state, digests)
                before = time.perf_counter()
                state, x = jax.block_until_ready(step(state, x))
                took = time.perf_counter() - before
                response.result()
                if turn:
                    times[digests].append((held_up, took, time.perf_counter() - began, time.process_time() - worked))
            began = time.perf_counter()
            for future in [begin_digests(part) for part in state.values()]:
                future.result()
            alone.append(time.perf_counter() - began)
    size = 3 * options.million * 4e6 / 1e9
    print(f"{size:.1f} GB of state on {jax.devices()[0].device_kind}; digests alone: {median(alone[1:]):.4f} s")
    print(f"{'':10}{'held up':>10}{'step':>10}{'background':>12}{'processor':>12}")
    for digests, rows in times.items():
        columns = [median(column) for column in zip(*rows, strict=True)]
        name = "digests" if digests else "without"
        print(f"{name:10}" + "".join(f"{column:>{width}.3f}" for column, width in zip(columns, (10, 10, 12, 12), strict=True)))


if __name__ == "__main__":
    main()
