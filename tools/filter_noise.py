"""Shuffles the captions of part of a drawn data set, filters it with a model that was trained on it, and trains on what is kept.

    python tools/filter_noise.py runs/noise
    python tools/filter_noise.py runs/noise --examples 20000 --steps 900 --noise 0.3

The claims: by the cosines of a model that has seen the noise, at least 90% of the shuffled captions are found at 10% of the
others dropped; and training as long on what `jclip filter` keeps gives better zero-shot accuracy than training on all. The exit
status is 0 where both hold. Models are those of configs/quickstart.py; the same command goes on where it was stopped.
"""

import argparse
import io
import json
import sys
import tarfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from jclip import filter, train
from jclip.config import Filter, load
from jclip.data import open_source
from jclip.data.caches import write_atomically

RECIPE = Path(__file__).parent.parent / "configs" / "quickstart.py"
EVALS = ("seen", "heldout")


def main() -> int:
    """Makes the data, trains, filters, trains again, and prints how they compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of data and runs; made where it is missing")
    parser.add_argument("--examples", type=int, default=20_000, help="pictures (default: 20,000)")
    parser.add_argument("--noise", type=float, default=0.3, help="share of captions that are shuffled (default: 0.3)")
    parser.add_argument("--steps", type=int, default=900, help="of either training (default: 900)")
    options = parser.parse_args()
    tar = options.folder / "noisy.tar"
    if not tar.exists():
        write_atomically(tar, lambda part: write_noisy(part, options.examples, options.noise))
    spec = f"webdataset:{tar}"
    before = trained(options.folder / "all", spec, options.steps)
    out = options.folder / "filtered"
    rules = Filter(model=str(options.folder / "all"), score_best=1 - options.noise)
    kept = filter.main(spec, out, rules)
    after = trained(options.folder / "kept", spec, options.steps, "--data.subset.keys", str(kept))
    found = found_at(out / "table.parquet", 0.1)
    print(f"shuffled captions found at 10% of the others dropped: {found:.1%}")
    for name in EVALS:
        print(f"{name}/top1: {before[name]:.2%} trained on all, {after[name]:.2%} on what is kept")
    return 0 if found >= 0.9 and all(after[name] > before[name] for name in EVALS) else 1


def write_noisy(path: Path, examples: int, noise: float) -> None:
    """Drawn pictures with complete captions as a tar; keys of shuffled ones end in "-shuffled"."""
    source = open_source(f"shapes:train?size=32&length={examples}&captions=complete")
    texts = [source[i]["text"] for i in range(examples)]
    shuffled = shuffle(texts, noise)
    with tarfile.open(path, "w") as tar:
        for i, (text, false) in enumerate(zip(texts, shuffled, strict=True)):
            picture = io.BytesIO()
            Image.fromarray(source[i]["image"]).save(picture, "PNG")
            key = f"{i:06}" + ("-shuffled" if text != false else "")
            for name, data in ((f"{key}.png", picture.getvalue()), (f"{key}.txt", false.encode())):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def shuffle(texts: list[str], noise: float) -> list[str]:
    """The texts, of which a share is passed around among its members; one that meets its equal is unchanged."""
    chosen = np.random.default_rng(0).permutation(len(texts))[: round(noise * len(texts))]
    shuffled = list(texts)
    for own, other in zip(chosen, np.roll(chosen, 1), strict=True):
        shuffled[own] = texts[other]
    return shuffled


def trained(workdir: Path, spec: str, steps: int, *overrides: str) -> dict[str, float]:
    """The zero-shot accuracies at the end of a run of the quickstart's recipe."""
    config = load(RECIPE, ["--data.source", spec, "--duration", str(steps), *overrides, "--evals", *EVALS])
    train.main(config, workdir)
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {name: next(line[f"{name}/top1"] for line in reversed(lines) if f"{name}/top1" in line) for name in EVALS}


def found_at(table: Path, dropped: float) -> float:
    """Share of shuffled captions among what is dropped, where the threshold drops this share of the others."""
    columns = pq.read_table(table, columns=["key", "score"]).to_pydict()
    score: NDArray[np.float64] = np.array(columns["score"], np.float64)
    false = np.array([key.endswith("-shuffled") for key in columns["key"]])
    return float(np.mean(score[false] < np.quantile(score[~false], dropped)))


if __name__ == "__main__":
    sys.exit(main())
