"""Times the linear probe of the protocol `openai`, its whole search, beside the same search with scikit-learn.

    python tools/bench_probe.py                                          20,000 examples, 512 features, 100 classes: long
    python tools/bench_probe.py --train 2000 --dim 128 --classes 20      seconds

Both get the same float32 features: class means and correlated noise with standard deviations that fall from one direction to
the next, as those of CLIP's features do. A fifth of --train is the validation split. Both try the same strengths, the ones that
the protocol asks for given the scores they find, and then fit to train and validation. scikit-learn's LogisticRegression has
L-BFGS, at most 1,000 iterations, no warm starts, and the `tol` of --tol: since 1.4 its objective is a mean over examples, so that
the 1e-4 it had on the sum, when CLIP's authors used it, is 1e-4 / n on the mean, 6e-9 for 16,000 examples (hence 1e-8). Its
default, 1e-4, ends far from the optimum: `--tol 1e-4` shows how far. Seconds are by the clock, compilation included; CPU seconds,
of all threads, say more on a machine that does other work at the same time.
"""

import argparse
import importlib
import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

Split = tuple[np.ndarray, np.ndarray]


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=int, default=20_000, help="examples of train and validation (default: 20000)")
    parser.add_argument("--test", type=int, default=5_000, help="examples of test (default: 5000)")
    parser.add_argument("--dim", type=int, default=512, help="features (default: 512)")
    parser.add_argument("--classes", type=int, default=100, help="classes (default: 100)")
    parser.add_argument("--tol", type=float, default=1e-8, help="scikit-learn's tolerance (default: 1e-8)")
    parser.add_argument("--seed", type=int, default=0, help="of the features (default: 0)")
    parser.add_argument("--only", choices=("jclip", "scikit-learn"), help="time one of the two")
    options = parser.parse_args()
    x, y = synthetic(options.train + options.test, options.dim, options.classes, options.seed)
    ends = (options.train * 4 // 5, options.train)
    train, validation, test = ((a, b) for a, b in zip(np.split(x, ends), np.split(y, ends), strict=True))
    console, errors, rows = Console(), Console(stderr=True), []
    for name, run in (("jclip", with_jclip), ("scikit-learn", with_scikit_learn)):
        if options.only in (None, name):
            errors.print(f"{name} ...")
            began, used = time.perf_counter(), time.process_time()
            strength, tried, predict, iterations = run(train, validation, options)
            seconds, cpu = time.perf_counter() - began, time.process_time() - used
            rows.append(Row(name, seconds, cpu, strength, tried, accuracy(predict, test), iterations))
            errors.print(rows[-1])
    console.print(table(rows, options))


class Row(NamedTuple):
    """Findings of one of the two, and the time they took."""

    name: str
    seconds: float
    cpu: float
    strength: float
    tried: dict[float, float]
    test: float
    iterations: str


def table(rows: list[Row], options: argparse.Namespace) -> Table:
    """A row for each of the two."""
    title = f"{options.train:,} + {options.test:,} examples, {options.dim} features, {options.classes} classes"
    made = Table("", "seconds", "ratio", "CPU s", "lambda", "validation", "test", "iterations", title=title)
    for row in rows:
        times = (f"{row.seconds:.1f}", f"{row.seconds / rows[0].seconds:.1f}", f"{row.cpu:.1f}")
        scores = (f"{100 * max(row.tried.values()):.2f} %", f"{100 * row.test:.2f} %")
        made.add_row(row.name, *times, f"{row.strength:.4g}", *scores, row.iterations)
    return made


def accuracy(predict: Callable[[np.ndarray], np.ndarray], examples: Split) -> float:
    """Share of the classes that are predicted right."""
    return float(np.mean(predict(examples[0]) == examples[1]))


def synthetic(n: int, dim: int, classes: int, seed: int) -> Split:
    """Features [n, dim] float32 and labels [n]."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    turn = np.linalg.qr(rng.normal(size=(dim, dim)))[0]
    deviations = np.arange(1, dim + 1) ** -0.5
    deviations *= 10 / np.linalg.norm(deviations)
    means = rng.normal(size=(classes, dim)) * 4 / np.sqrt(dim)  # four deviations of the noise long, whatever dim is
    noise = rng.normal(size=(n, dim))
    x = ((means[labels] + noise) * deviations) @ turn + 0.3 * rng.normal(size=dim)
    return x.astype(np.float32), labels


def with_jclip(train: Split, validation: Split, options: argparse.Namespace) -> tuple[float, dict[float, float], Any, str]:
    """The strength, the scores of those tried, a function that predicts, and iterations of the last fit."""
    from jclip.eval.probes import fit_probe

    probe = fit_probe("openai", train, validation, options.classes)
    return probe.strength, dict(probe.tried), probe.predict, f"{probe.iterations} ({len(probe.tried) + 1} fits)"


def with_scikit_learn(train: Split, validation: Split, options: argparse.Namespace) -> tuple[float, dict[float, float], Any, str]:
    """The same, with scikit-learn."""
    from jclip.eval.probes import OPENAI_GRID, search

    regression = importlib.import_module("sklearn.linear_model").LogisticRegression
    warnings.simplefilter("ignore")  # of fits that do not converge: their iterations are counted
    iterations = []

    def fit(index: int, x: np.ndarray, y: np.ndarray) -> Any:
        made = regression(C=1 / OPENAI_GRID[index], tol=options.tol, max_iter=1000).fit(x, y)
        iterations.append(int(made.n_iter_[0]))
        return made

    best, scores = search(lambda index: accuracy(fit(index, *train).predict, validation))
    x, y = (np.concatenate(both) for both in zip(train, validation, strict=True))
    last = fit(best, x, y)
    note = f"{iterations[-1]} ({sum(iterations):,} in {len(iterations)} fits)"
    return float(OPENAI_GRID[best]), {float(OPENAI_GRID[i]): scores[i] for i in sorted(scores)}, last.predict, note


if __name__ == "__main__":
    main()
