"""Times the ranks of N x N retrieval, counts the memory, and compares some of them with brute force.

    python tools/bench_retrieval.py                     100,000 x 100,000 vectors of 256 numbers
    python tools/bench_retrieval.py --examples 20000

Each row of `b` is its row of `a` with noise, so that the ranks are neither all first nor random. Seconds are those of one
direction, compilation included. Memory is the largest resident size of the process (VmHWM), with Python, JAX, both matrices and
everything else. Brute force has the scores of some queries in f64; a rank may differ where a wrong candidate is within rounding
of the margin of a tie, which is counted.
"""

import argparse
import time

import numpy as np
from rich.console import Console
from rich.table import Table

from jclip.eval.ranks import TIE, rank_answers

ROUNDING = 1e-6  # of an f32 cosine against one in f64, with room


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=100_000, help="N (default: 100000)")
    parser.add_argument("--width", type=int, default=256, help="E (default: 256)")
    parser.add_argument(
        "--noise", type=float, default=4.0, help="length of the noise on b, where vectors have length 1 (default: 4)"
    )
    parser.add_argument("--sample", type=int, default=200, help="queries that are compared with brute force (default: 200)")
    options = parser.parse_args()
    n, groups = options.examples, np.arange(options.examples)
    za, zb = vectors(n, options.width, options.noise)
    before = peak_gb()
    began = time.perf_counter()
    ranking = rank_answers(za, zb, groups, groups, k=10, progress=f"{n:,} x {n:,}")
    seconds, memory = time.perf_counter() - began, peak_gb()
    sample = np.random.default_rng(1).choice(n, min(n, options.sample), replace=False)
    low, high = brute_force(za, zb, sample)
    differ = np.count_nonzero((ranking.rank[sample] < low) | (ranking.rank[sample] > high))
    made = Table("", f"{n:,} x {n:,}, E={options.width}")
    made.add_row("seconds", f"{seconds:.1f}")
    made.add_row("peak memory", f"{memory:.2f} GB, {before:.2f} of it before")
    made.add_row("median rank, map@10", f"{np.median(ranking.rank):.0f}, {ranking.average_precision_at(10).mean():.4f}")
    made.add_row(
        "compared with brute force", f"{len(sample)}, of which {np.count_nonzero(low != high)} are within rounding of a tie"
    )
    made.add_row("different", str(differ))
    Console().print(made)


def vectors(n: int, width: int, noise: float) -> tuple[np.ndarray, np.ndarray]:
    """Two matrices [n, width] of float32 unit vectors, made in place."""
    rng = np.random.default_rng(0)
    za = rng.standard_normal((n, width), np.float32)
    za /= np.linalg.norm(za, axis=1, keepdims=True)
    zb = rng.standard_normal((n, width), np.float32)
    zb *= noise / np.float32(width**0.5)
    zb += za
    zb /= np.linalg.norm(zb, axis=1, keepdims=True)
    return za, zb


def brute_force(za: np.ndarray, zb: np.ndarray, sample: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The lowest and the highest rank of each query of the sample that rounding allows; equal for nearly all."""
    low, high = np.ones(len(sample), np.int64), np.ones(len(sample), np.int64)
    for row, i in enumerate(sample):
        scores = np.concatenate([part.astype(np.float64) @ za[i].astype(np.float64) for part in np.array_split(zb, 64)])
        bar, wrong = scores[i] - TIE, np.delete(scores, i)
        low[row] += np.count_nonzero(wrong >= bar + ROUNDING)
        high[row] += np.count_nonzero(wrong >= bar - ROUNDING)
    return low, high


def peak_gb() -> float:
    """The largest resident size of this process so far, in GB."""
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e9


if __name__ == "__main__":
    main()
