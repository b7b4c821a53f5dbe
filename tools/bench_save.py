"""The cost of the digests that a checkpoint carries: saves with and without them take turns.

    python tools/bench_save.py [--million 50] [--turns 7]

The state is so many million f32 parameters with AdamW's two moments, in arrays of a million. A row each: "held up" is how long
the loop waits in the call that starts a save, "step" how long the next update of the state takes meanwhile, "background" the time
from the call until the checkpoint is safe on disk. Above stands what computing the digests takes alone. Medians of the turns, in
seconds. An accelerator computes digests as fast as it reads its memory; on a CPU they take cores from the step.
"""

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from jclip import checkpoint
from jclip.digests import tree_digests


def make_state(million: int) -> dict[str, Any]:
    """Parameters and moments on the default device."""
    keys = jax.random.split(jax.random.key(0), million)
    params = {f"layer{i:04d}": jax.random.normal(key, (1000, 1000)) for i, key in enumerate(keys)}
    return {"params": params, "opt_state": tuple(jax.tree.map(lambda x, s=scale: x * s, params) for scale in (0.1, 0.01))}


def save(folder: Path, state: dict[str, Any], digests: bool) -> tuple[Any, float]:
    """Starts a save; the response, and the seconds that the call took."""
    began = time.perf_counter()
    parts = dict(state)
    if digests:
        named = {name: (part, tree_digests(part)) for name, part in state.items()}
        parts[checkpoint.DIGESTS] = checkpoint._Digests(named, {})
    response = ocp.save_checkpointables_async(folder, parts)
    return response, time.perf_counter() - began


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--million", type=int, default=50, help="parameters (default: 50)")
    parser.add_argument("--turns", type=int, default=7, help="turns, after one that is not timed (default: 7)")
    options = parser.parse_args()
    state = make_state(options.million)
    update = jax.jit(lambda s: jax.tree.map(lambda x: x * 0.999, s), donate_argnums=0)
    times: dict[bool, list[tuple[float, float, float]]] = {False: [], True: []}
    alone = []
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(options.turns + 1):
            for digests in (False, True):
                jax.block_until_ready(state)
                began = time.perf_counter()
                response, held_up = save(Path(folder, f"{turn}-{digests}"), state, digests)
                before = time.perf_counter()
                state = jax.block_until_ready(update(state))
                step = time.perf_counter() - before
                response.result()
                if turn:
                    times[digests].append((held_up, step, time.perf_counter() - began))
            began = time.perf_counter()
            jax.block_until_ready([tree_digests(part) for part in state.values()])
            alone.append(time.perf_counter() - began)
    size = 3 * options.million * 4e6 / 1e9
    print(f"{size:.1f} GB of state on {jax.devices()[0].device_kind}; digests alone: {median(alone[1:]):.4f} s")
    print(f"{'':10}{'held up':>10}{'step':>10}{'background':>12}")
    for digests, rows in times.items():
        columns = [median(column) for column in zip(*rows, strict=True)]
        print(f"{'digests' if digests else 'without':10}{columns[0]:>10.3f}{columns[1]:>10.3f}{columns[2]:>12.3f}")


if __name__ == "__main__":
    main()
