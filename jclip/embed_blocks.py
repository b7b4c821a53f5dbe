"""Embeddings that several processes make together: blocks of rows, each made by one of them, put in order by the first."""

import dataclasses
import json
import math
import shutil
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding
from rich.console import Console
from rich.progress import track

from jclip.config import ConfigError, Mesh
from jclip.data.caches import write_atomically
from jclip.embed import SAVED_EVERY, Job, Rows
from jclip.inference import Encoder
from jclip.processes import gather_texts, is_first, together
from jclip.sharding import make_mesh, replicated

FOLDER = "blocks"
"""Folder of the blocks, below that of the embeddings; it goes with the last of them."""


class StoppedByUser(Exception):
    """This process was stopped, by Ctrl-C; the others hear of it."""


class RowBlock(NamedTuple):
    """Rows from start to stop of a source."""

    start: int
    stop: int

    def path(self, out: Path, tower: str) -> Path:
        """The file of these rows of a tower."""
        return out / FOLDER / tower / f"{self.start}-{self.stop}.npz"


def with_own_devices(encoder: Encoder) -> Encoder:
    """The same model on the devices of this process alone, sharded over as many of them as divide what it is sharded over.

    Every process has to call it, where there are several; with one it is the model itself.
    """
    if jax.process_count() == 1:
        return encoder
    devices = jax.local_devices()
    mesh = make_mesh(Mesh(fsdp=math.gcd(encoder.mesh.shape["fsdp"], len(devices))), devices)
    whole = jax.jit(lambda x: x, out_shardings=replicated(encoder.mesh))

    def move(leaf: jax.Array) -> jax.Array:
        array = np.asarray(leaf if leaf.is_fully_replicated else whole(leaf))
        assert isinstance(leaf.sharding, NamedSharding)
        return jax.device_put(array, NamedSharding(mesh, leaf.sharding.spec))

    return dataclasses.replace(encoder, params=jax.tree.map(move, encoder.params), mesh=mesh, _compiled={})


def is_shared(out: Path) -> bool:
    """True where `share` has to embed: there are several processes, or blocks that several have made."""
    return jax.process_count() > 1 or (out / FOLDER).is_dir()


def share(job: Job, tower: str, field: str, batch_size: int, console: Console) -> None:
    """Writes out/TOWER.npy as `Job.embed` does, from blocks of rows of which each process makes its own.

    Blocks that an earlier call has made, of however many processes, are not made again. `out` has to be on storage that all
    see. Every process has to call it.

    Raises:
        ConfigError: the folder is not the same for all, or a block is damaged.
        Refused: another process has failed; it has said why.
        StoppedByUser: this process was stopped.
    """
    writing = together(lambda: job.begin(tower, field, console) if is_first() else None)
    todo: list[RowBlock] = []
    if writing is not None:
        todo = _blocks(job.done[tower]["rows"], len(job.source), SAVED_EVERY * job.rows_at_a_time(batch_size))
    missing = [block for block in todo if not block.path(job.out, tower).exists()]
    planned = [RowBlock(*block) for block in json.loads(gather_texts(json.dumps(missing))[0])]  # what the first sees
    mine = planned[jax.process_index() :: jax.process_count()]
    together(lambda: _make(job, tower, field, batch_size, mine, console))

    def merge() -> None:
        if writing is not None:
            for block in todo:
                writing.add(_read(job, tower, block))
                writing.save()
            writing.finish(console)
        if is_first():
            shutil.rmtree(job.out / FOLDER / tower, ignore_errors=True)

    together(merge)
    together(lambda: _require(job.out / f"{tower}.npy"))
    if is_first() and not any((job.out / FOLDER).glob("*")):
        shutil.rmtree(job.out / FOLDER, ignore_errors=True)


def _blocks(first: int, total: int, size: int) -> list[RowBlock]:
    """The rows from `first` on; the borders do not depend on how many processes there are."""
    return [RowBlock(start, min(start + size, total)) for start in range(first, total, size)]


def _make(job: Job, tower: str, field: str, batch_size: int, blocks: Sequence[RowBlock], console: Console) -> None:
    """Embeds some blocks and writes each in one step."""
    try:
        for block in track(blocks, f"embed {tower}", console=console):
            _write(block.path(job.out, tower), list(job.rows(tower, field, batch_size, *block)))
    except KeyboardInterrupt:
        raise StoppedByUser("it was stopped; the same command on all hosts goes on") from None


def _write(path: Path, parts: Sequence[Rows]) -> None:
    lines = {"keys": [key for part in parts for key in part.keys], "problems": [line for part in parts for line in part.problems]}
    text = np.frombuffer(json.dumps(lines).encode(), np.uint8)
    z = np.concatenate([part.z for part in parts])
    write_atomically(path, lambda part: np.savez(part, z=z, text=text))


def _read(job: Job, tower: str, block: RowBlock) -> Rows:
    """A block that a process has made.

    Raises:
        ConfigError: it is not there, or damaged.
    """
    path = block.path(job.out, tower)
    _require(path)
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as content:
            z, lines = content["z"], json.loads(content["text"].tobytes())
        rows = Rows(z, [str(key) for key in lines["keys"]], [str(line) for line in lines["problems"]])
        expected = (block.stop - block.start, job.encoder.config.embed_dim)
        if z.shape != expected or z.dtype != np.float32 or len(rows.keys) != len(z):
            raise ValueError(f"it holds {z.dtype} {z.shape} and {len(rows.keys)} keys, where f32 {expected} belong")
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise ConfigError(f"embed: {path} is damaged ({error}); remove it, and start the same command again") from None
    return rows


def _require(path: Path) -> None:
    if not path.exists():
        raise ConfigError(
            f"embed: {path} is not there, where a process has put it: the folder has to be on storage that all hosts see"
        )
