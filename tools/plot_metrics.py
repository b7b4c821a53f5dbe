"""Draws the curves of one or more runs: the loss, and every evaluation asked for, over steps or minutes.

python tools/plot_metrics.py /tmp/quickstart --metrics seen/top1 heldout/top1 --out quickstart.png
"""

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def main() -> None:
    """Writes the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workdirs", nargs="+", type=Path, help="folders with a metrics.jsonl")
    parser.add_argument(
        "--metrics", nargs="*", default=[], help="evaluations to draw beside the loss; default: all that end in top1"
    )
    parser.add_argument("--out", type=Path, required=True, help="picture to write, such as curves.png or curves.svg")
    options = parser.parse_args()
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    for workdir in options.workdirs:
        lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
        prefix = f"{workdir.name}: " if len(options.workdirs) > 1 else ""
        losses = [(line["step"], line["loss"]) for line in lines if "loss" in line]
        left.plot(*zip(*losses, strict=True), label=f"{prefix}loss", linewidth=1)
        names = options.metrics or sorted({name for line in lines for name in line if name.endswith("top1")})
        for name in names:
            points = [(line["step"], line[name]) for line in lines if name in line]
            if not points:
                raise SystemExit(
                    f"{workdir} has no metric {name}; it has {', '.join(sorted({n for line in lines for n in line}))}"
                )
            right.plot(*zip(*points, strict=True), marker="o", markersize=3, label=f"{prefix}{name}")
    for axes, title in ((left, "training loss"), (right, "evaluations")):
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, frameon=False)
    figure.savefig(options.out, dpi=150)
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
