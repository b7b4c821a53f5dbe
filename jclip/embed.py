"""`jclip embed`: the embeddings of a source or a folder of images, written to .npy files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from jclip.config import ConfigError, architecture_names
from jclip.data import Source, eval_transform, open_source, read_once
from jclip.inference import Encoder, load


def main(
    model: str,
    source: str,
    out: str | Path,
    *,
    towers: Sequence[str] = ("image",),
    batch_size: int = 64,
    step: int | None = None,
    **how: Any,
) -> None:
    """Embeds every example of a source once; row i belongs to example i.

    Writes out/TOWER.npy (f32 [n, E], unit vectors; NaN where the example cannot be read), out/keys.txt (a key a line) and, where
    something cannot be read, out/problems.txt.

    Args:
        model: a workdir, weights, or the name of an architecture (see `jclip.load`).
        source: a source such as webdataset:PATTERN, or a folder of images.
        out: folder to write to; made where it is missing.
        towers: which towers; each finds its input in the field of its name.
        batch_size: rows a batch.
        step: which checkpoint of the workdir.
        how: further arguments of `jclip.load`.

    Raises:
        ConfigError: the model has no such tower.
    """
    console, out = Console(stderr=True, highlight=False, markup=False), Path(out)
    encoder = load(model, step=step, **how)
    if model in architecture_names() and not Path(model).exists():
        console.print(f"{model} is an architecture: its weights are random")
    for tower in towers:
        if tower not in encoder.model.towers:
            raise ConfigError(f"embed: the model has no tower {tower!r}; towers: {', '.join(encoder.model.towers)}")
    if batch_size < 1:
        raise ConfigError(f"embed: batch_size {batch_size} must be at least 1")
    examples = open_source(f"folder:{source}" if Path(source).is_dir() else source)
    out.mkdir(parents=True, exist_ok=True)
    (out / "problems.txt").unlink(missing_ok=True)
    for tower in towers:
        keys, problems = _embed_tower(encoder, tower, examples, out, batch_size, console)
        (out / "keys.txt").write_text("".join(f"{key}\n" for key in keys))
        if problems:
            with (out / "problems.txt").open("a") as file:
                file.writelines(f"{tower}: {problem}\n" for problem in problems)
            console.print(
                f"{tower}: {len(problems)} of {len(keys)} examples cannot be read: their rows are NaN, problems.txt says why"
            )
        console.print(f"wrote {len(keys)} embeddings of {encoder.model.embed_dim} numbers to {out / tower}.npy")


def _embed_tower(
    encoder: Encoder, tower: str, examples: Source, out: Path, batch_size: int, console: Console
) -> tuple[list[str], list[str]]:
    """Writes out/TOWER.npy; returns the keys of its rows and the problems."""
    size = -(-batch_size // encoder.mesh.size) * encoder.mesh.size
    partial = out / f"{tower}.npy.partial"
    array = np.lib.format.open_memmap(partial, mode="w+", dtype=np.float32, shape=(len(examples), encoder.model.embed_dim))
    keys: list[str] = []
    problems: list[str] = []
    batches = read_once(examples, {tower: eval_transform(encoder.model.towers[tower])}, batch_size=size)
    for batch in track(batches, f"embed {tower}", total=-(-len(examples) // size), console=console):
        start, count = len(keys), min(size, len(examples) - len(keys))
        z = encoder.encode_rows(batch.arrays, size)[tower].z
        array[start : start + count] = np.where(batch.mask[:, None], z, np.nan)[:count]
        keys += batch.keys[:count]
        problems += batch.problems
    array.flush()
    partial.replace(out / f"{tower}.npy")
    return keys, problems
