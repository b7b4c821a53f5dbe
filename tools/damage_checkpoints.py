"""Damage to checkpoints: random changes to the files of one, and whether reading it shows them.

    python tools/damage_checkpoints.py [--damages 120] [--seed 0]

Each damage changes one file of a fresh copy: a bit, a byte, 16 bytes, two runs of bytes that change places, a hole of zeros, the
end cut off, or the file taken away. A row a kind: "found" are refused with one line that names the checkpoint, "harmless" load
bit-equal to what was saved, "silent" load something else, "raw" raise an error that jclip does not explain. The last two must be
0, and the exit status says so.
"""

import argparse
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jclip.checkpoint import CheckpointError, Checkpoints
from jclip.config import Config, Data, MeshConfig, Model, Optim, TextTower, VisionTower, make_plan
from jclip.data import open_source
from jclip.facts import make_record
from jclip.program import Program, make_program
from jclip.sharding import make_mesh

KINDS = ("bit", "byte", "16 bytes", "swapped runs", "hole", "cut", "gone")


def damage(path: Path, kind: str, random: np.random.Generator) -> None:
    """Changes the bytes of a file in one place; what it changes is never what was there."""
    if kind == "gone":
        path.unlink()
        return
    data = bytearray(path.read_bytes())
    before, at = bytes(data), int(random.integers(max(1, len(data))))
    size = int(random.integers(1, 65))
    while bytes(data) == before and data:
        match kind:
            case "bit":
                data[at] ^= 1 << int(random.integers(8))
            case "byte":
                data[at] = int(random.integers(256))
            case "16 bytes":
                data[at : at + 16] = random.bytes(len(data[at : at + 16]))
            case "swapped runs":
                other = int(random.integers(len(data)))
                size = min(size, len(data) - max(at, other))
                data[at : at + size], data[other : other + size] = data[other : other + size], data[at : at + size]
                at = int(random.integers(len(data)))
                size = 64
            case "hole":
                data[at : at + size] = bytes(len(data[at : at + size]))
                at = int(random.integers(len(data)))
            case "cut":
                del data[at:]
    path.write_bytes(data)


def small_config() -> Config:
    """Two towers of some thousand parameters."""
    image = VisionTower(image_size=16, patch_size=8, width=16, depth=2, heads=2)
    text = TextTower(context_length=16, vocab_size=256, width=16, depth=1, heads=1)
    model = Model(towers={"image": image, "text": text}, embed_dim=8)
    data = Data(source="shapes:train?size=16&length=64")
    return Config(model=model, data=data, optim=Optim(warmup="2"), batch_size=8, duration="8", mesh=MeshConfig())


def save_one(workdir: Path) -> tuple[Program, dict[str, Any]]:
    """A checkpoint of step 0 in a workdir, as a run saves it; the program, and what was saved."""
    config = small_config()
    source = open_source(config.data.source)
    plan = make_plan(config, len(source))
    program = make_program(config, make_mesh(config.mesh), warmup_steps=plan.warmup, total_steps=plan.total)
    state = program.init()
    with Checkpoints(workdir) as checkpoints:
        checkpoints.save(0, state.saved(), make_record(config, source, plan))
        if problem := checkpoints.wait():
            raise CheckpointError(problem)
    return program, jax.device_get(state.saved())


def outcome(workdir: Path, program: Program, saved: Any) -> str:
    """Outcome of reading the checkpoint: found, harmless, silent or raw."""
    try:
        with Checkpoints(workdir, read_only=True) as checkpoints:
            config = checkpoints.config(0)
            found = jax.device_get(checkpoints.restore(0, program.state.saved()))
    except CheckpointError as error:
        return "found" if str(workdir) in str(error) and "\n" not in str(error) else "raw"
    except Exception as error:
        print(f"raw: {type(error).__name__}: {error}", file=sys.stderr)
        return "raw"
    same = jax.tree.map(lambda a, b: a.dtype == b.dtype and a.tobytes() == b.tobytes(), found, saved)
    return "harmless" if config == small_config() and jax.tree.all(same) else "silent"


def experiment(folder: Path, damages: int, seed: int) -> dict[str, Counter[str]]:
    """Counts of outcomes by kind of damage; the kinds take turns, and the files are drawn by their size or alike."""
    program, saved = save_one(folder / "whole")
    random = np.random.default_rng(seed)
    counts: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS}
    for number in range(damages):
        kind, workdir = KINDS[number % len(KINDS)], folder / "damaged"
        shutil.copytree(folder / "whole", workdir)
        files = sorted(path for path in workdir.rglob("*") if path.is_file() and path.stat().st_size)
        sizes = np.array([path.stat().st_size for path in files], float)
        weights = sizes / sizes.sum() if number % 2 else None  # most bytes are arrays, most files are not
        damage(files[int(random.choice(len(files), p=weights))], kind, random)
        counts[kind][outcome(workdir, program, saved)] += 1
        shutil.rmtree(workdir)
    return counts


def main() -> int:
    """Prints the table; 1 where a damage was silent or not explained."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--damages", type=int, default=120, help="how many (default: 120)")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn (default: 0)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        counts = experiment(Path(folder), options.damages, options.seed)
    columns = ("found", "harmless", "silent", "raw")
    print(f"{'damage':14}" + "".join(f"{column:>10}" for column in columns))
    for kind, row in {**counts, "all": sum(counts.values(), Counter())}.items():
        print(f"{kind:14}" + "".join(f"{row[column]:>10}" for column in columns))
    return int(any(row["silent"] or row["raw"] for row in counts.values()))


if __name__ == "__main__":
    sys.exit(main())
