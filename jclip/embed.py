"""`jclip embed`: the embeddings of a source or a folder of images, written to .npy files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from jclip.data import eval_transform, open_source, read_once
from jclip.inference import load


def main(
    model: str, source: str, out: str | Path, *, towers: Sequence[str] = ("image",), batch_size: int = 64, step: int | None = None
) -> None:
    """Embeds every example of a source once; row i belongs to example i.

    Writes out/TOWER.npy (f32 [n, E], unit vectors; NaN where the example cannot be read), out/keys.txt (a key a line) and, where
    something cannot be read, out/problems.txt.

    Args:
        model: a workdir or the name of an architecture.
        source: a source such as webdataset:PATTERN, or a folder of images.
        out: folder to write to; made where it is missing.
        towers: which towers; each finds its input in the field of its name.
        batch_size: rows a batch.
        step: which checkpoint of the workdir.

    Raises:
        ValueError: the model has no such tower.
    """
    console, out = Console(stderr=True, highlight=False), Path(out)
    encoder = load(model, step=step)
    for tower in towers:
        if tower not in encoder.model.towers:
            raise ValueError(f"embed: the model has no tower {tower!r}; towers: {', '.join(encoder.model.towers)}")
    examples = open_source(f"folder:{source}" if Path(source).is_dir() else source)
    size = -(-batch_size // encoder.mesh.size) * encoder.mesh.size
    out.mkdir(parents=True, exist_ok=True)
    arrays = {tower: _create(out / f"{tower}.npy.partial", len(examples), encoder.model.embed_dim) for tower in towers}
    transforms = {tower: eval_transform(encoder.model.towers[tower]) for tower in towers}
    keys: list[str] = []
    problems: list[str] = []
    batches = read_once(examples, transforms, batch_size=size)
    for batch in track(batches, "embed", total=-(-len(examples) // size), console=console):
        start, count = len(keys), min(size, len(examples) - len(keys))
        for tower, z in encoder.embed_rows(batch.arrays, size).items():
            arrays[tower][start : start + count] = np.where(batch.mask[:, None], z, np.nan)[:count]
        keys += batch.keys[:count]
        problems += batch.problems
    for tower, array in arrays.items():
        array.flush()
        (out / f"{tower}.npy.partial").replace(out / f"{tower}.npy")
    (out / "keys.txt").write_text("".join(f"{key}\n" for key in keys))
    if problems:
        (out / "problems.txt").write_text("".join(f"{problem}\n" for problem in problems))
        console.print(f"{len(problems)} of {len(keys)} examples cannot be read: their rows are NaN, problems.txt says why")
    console.print(f"wrote {len(keys) - len(problems)} embeddings of {encoder.model.embed_dim} numbers to {out}")


def _create(path: Path, rows: int, columns: int) -> Any:
    return np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(rows, columns))
