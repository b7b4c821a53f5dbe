"""`jclip embed`: the embeddings of a source or a folder of images, written to .npy files."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from jclip.config import ConfigError, Subset
from jclip.data import Source, open_part, read_once, source_name
from jclip.data.caches import write_atomically
from jclip.data.decoding import MAX_PIXELS
from jclip.data.fields import check_fields
from jclip.data.fingerprint import combine, sample_fingerprint
from jclip.eval.embed import tower_facts
from jclip.files import read_whole
from jclip.inference import Encoder, load, tower_digest

FORMAT = "jclip embed 1"
"""Name of the file that says what a folder holds."""


def main(
    model: str | Path | Encoder,
    source: str | Source,
    out: str | Path,
    *,
    towers: Sequence[str] = ("image",),
    subset: Subset = Subset(),
    fields: Mapping[str, str] | None = None,
    batch_size: int = 64,
    step: int | None = None,
    max_pixels: int = MAX_PIXELS,
    **how: Any,
) -> None:
    """Embeds every example of a source once; row i belongs to example i.

    Writes out/TOWER.npy (f32 [n, E], unit vectors; NaN where the example cannot be read), out/keys.jsonl (line i is the key of
    row i, a JSON string), where something cannot be read out/problems.txt, and out/embed.json, which says of what. Goes on where
    an earlier call for the same model and source was stopped.

    Args:
        model: a workdir, weights, or the name of an architecture (see `jclip.load`).
        source: a source such as webdataset:PATTERN, a folder of images, or a Source.
        out: folder to write to; made where it is missing.
        towers: which towers.
        subset: the part of the source that is embedded.
        fields: fields of an example by tower, where they are not the tower's own name, as in data.fields; of alternatives, the
            first that an example has.
        batch_size: rows a batch.
        step: which checkpoint of the workdir.
        max_pixels: of an image; a larger one is a row of NaN.
        how: further arguments of `jclip.load`.

    Raises:
        ConfigError: the model has no such tower, a field is no expression or of no tower, or `out` holds embeddings of another
            source, model or field.
        SystemExit: status 130, after Ctrl-C; what is done is kept.
    """
    if batch_size < 1:
        raise ConfigError(f"embed: batch_size {batch_size} must be at least 1")
    fields = fields or {}
    check_fields(fields, "embed")
    if unknown := fields.keys() - {*towers}:
        raise ConfigError(f"embed: --fields of {', '.join(sorted(unknown))}, of which no embedding is asked; see --towers")
    console, out = Console(emoji=False, stderr=True, highlight=False, markup=False), Path(out)
    examples = open_part(source, subset, "embed")
    encoder = load(model, step=step, **how)
    for tower in towers:
        if tower not in encoder.config.towers:
            raise ConfigError(f"embed: the model has no tower {tower!r}; towers: {', '.join(encoder.config.towers)}")
    out.mkdir(parents=True, exist_ok=True)
    job = Job(out, source_name(source), examples, encoder, max_pixels)
    try:
        for tower in towers:
            job.embed(tower, fields.get(tower, tower), batch_size, console)
    except KeyboardInterrupt:
        console.print(f"stopped; what is done is in {out}, and the same command goes on from there", soft_wrap=True)
        raise SystemExit(130) from None


SAVED_EVERY = 64
"""Batches after which a killed process goes on."""


class Rows(NamedTuple):
    """Embeddings of some examples that follow each other."""

    z: NDArray[np.float32]
    """f32 [n, E]; NaN where an example cannot be read."""
    keys: list[str]
    """n keys."""
    problems: list[str]
    """A line for each example that cannot be read."""


class Job:
    """The folder of one source as one model sees it, and how far it is; a guest neither reads nor writes it."""

    def __init__(self, out: Path, spec: str, source: Source, encoder: Encoder, max_pixels: int, *, guest: bool = False) -> None:
        self.out, self.source, self.encoder, self.max_pixels = out, source, encoder, max_pixels
        self.spec = spec
        self.place = out / "embed.json"
        weights = combine(*(tower_digest(encoder.params, tower, encoder.mesh) for tower in sorted(encoder.config.towers)))
        towers = {name: tower_facts(tower) for name, tower in encoder.config.towers.items()}
        self.facts = {
            "examples": len(source),
            "data": sample_fingerprint(source),
            "weights": weights,
            "model": combine(json.dumps(towers, sort_keys=True)),
            "max_pixels": max_pixels,
        }
        self.done: dict[str, Any] = {}
        if guest:
            return
        if self.place.exists():
            self._resume()
        elif old := [path.name for path in out.iterdir() if path.name == "keys.txt" or path.suffix == ".npy"]:
            raise ConfigError(f"embed: {out} has {old[0]}, and no embed.json that says of what; give another --out, or empty it")
        self.save()

    def _resume(self) -> None:
        try:
            known = json.loads(read_whole(self.place))
            facts = {name: known[name] for name in self.facts}
            self.done = {
                tower: {"rows": int(at["rows"]), "broken": int(at["broken"]), "field": str(at.get("field", tower))}
                for tower, at in known["towers"].items()
            }
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ConfigError(f"embed: {self.place} is damaged ({error}); give another --out, or empty it") from None
        of = {"weights": "model", "model": "model, or of other pixels or tokens", "max_pixels": "--max-pixels"}
        for name in self.facts:
            if facts[name] != self.facts[name]:
                what = f"another {of.get(name, 'source')} ({known.get('source')!r}, {facts['examples']} examples)"
                raise ConfigError(f"embed: {self.out} holds embeddings of {what}; give another --out, or empty it")

    def save(self) -> None:
        """Writes embed.json."""
        text = json.dumps({"format": FORMAT, "source": self.spec, **self.facts, "towers": self.done}, indent=1)
        write_atomically(self.place, lambda part: part.write_text(text, encoding="ascii"))

    def embed(self, tower: str, field: str, batch_size: int, console: Console) -> None:
        """Writes out/TOWER.npy of a field of each example, from the row on that an earlier call has come to."""
        if (writing := self.begin(tower, field, console)) is None:
            return
        start, total = self.done[tower]["rows"], len(self.source)
        batches = self.rows(tower, field, batch_size, start, total)
        steps = -(-(total - start) // self.rows_at_a_time(batch_size))
        try:
            for number, rows in enumerate(track(batches, f"embed {tower}", total=steps, console=console), 1):
                writing.add(rows)
                if number % SAVED_EVERY == 0:
                    writing.save()
        finally:
            writing.save()
        writing.finish(console)

    def rows_at_a_time(self, batch_size: int) -> int:
        """The size of a batch, rounded up to a multiple of the devices."""
        return -(-batch_size // self.encoder.mesh.size) * self.encoder.mesh.size

    def rows(self, tower: str, field: str, batch_size: int, start: int, stop: int) -> Iterator[Rows]:
        """Embeddings of the rows from start to stop, a batch at a time."""
        size = self.rows_at_a_time(batch_size)
        transforms = {tower: self.encoder.transform(tower, self.max_pixels)}
        batches = read_once(self.source, transforms, batch_size=size, start=start, stop=stop, fields={tower: field})
        for first, batch in zip(range(start, stop, size), batches, strict=True):
            count = min(size, stop - first)
            z = self.encoder.encode_rows(batch.arrays, size)[tower].z
            rows = np.where(batch.mask[:, None], z, np.nan)[:count]
            yield Rows(rows, batch.keys[:count], [_one_line(f"{tower}: {problem}") for problem in batch.problems])

    def begin(self, tower: str, field: str, console: Console) -> "Writing | None":
        """The files that rows of a tower are added to, from row done[tower]["rows"] on; None where all are there."""
        total, whole, partial = len(self.source), self.out / f"{tower}.npy", self.out / f"{tower}.npy.partial"
        done = self.done.setdefault(tower, {"rows": 0, "broken": 0, "field": field})
        if done["field"] != field:
            what = f"{tower} of another field, {done['field']!r}"
            raise ConfigError(f"embed: {self.out} holds embeddings of {what}; give another --out, or empty it")
        if not (whole if done["rows"] == total else partial).exists():
            done.update(rows=0, broken=0)
        keys, problems = _LineWriter(self.out / "keys.jsonl"), _LineWriter(self.out / "problems.txt")
        keys.require(done["rows"])
        problems.require(self.broken)
        if done["rows"]:
            console.print(f"{tower}: {done['rows']:,} of {total:,} rows are there")
        if done["rows"] == total:
            return None
        if not done["rows"]:
            shape = (total, self.encoder.config.embed_dim)
            np.lib.format.open_memmap(partial, mode="w+", dtype=np.float32, shape=shape).flush()
        return Writing(self, tower, self._rows(partial), keys, problems)

    @property
    def broken(self) -> int:
        """Number of inputs of all towers that cannot be read."""
        return sum(int(at["broken"]) for at in self.done.values())

    def _rows(self, partial: Path) -> "np.memmap[Any, Any]":
        """The rows of a tower, f32 [n, E], of which an earlier call may have written some."""
        try:
            array: np.memmap[Any, Any] = np.lib.format.open_memmap(partial, mode="r+")
        except (OSError, ValueError) as error:
            raise ConfigError(f"embed: {partial} is damaged ({error}); remove it, and embed.json beside it") from None
        if array.dtype != np.float32 or array.shape != (len(self.source), self.encoder.config.embed_dim):
            raise ConfigError(f"embed: {partial} is damaged: it holds {array.dtype} {array.shape}; remove it, and embed.json")
        return array


@dataclass
class Writing:
    """The files of one tower while rows are added to them, in their order."""

    job: Job
    tower: str
    array: "np.memmap[Any, Any]"
    keys: "_LineWriter"
    problems: "_LineWriter"

    def add(self, rows: Rows) -> None:
        """Adds the rows that follow those which are there."""
        done = self.job.done[self.tower]
        start, stop = done["rows"], done["rows"] + len(rows.z)
        self.array[start:stop] = rows.z
        self.keys.write(start, map(json.dumps, rows.keys))
        self.problems.write(self.job.broken, rows.problems)
        done.update(rows=stop, broken=done["broken"] + len(rows.problems))

    def save(self) -> None:
        """From here on another call goes on."""
        self.array.flush()
        self.job.save()

    def finish(self, console: Console) -> None:
        """Gives the file its name; all rows are there."""
        whole, done, (total, width) = self.job.out / f"{self.tower}.npy", self.job.done[self.tower], self.array.shape
        whole.with_name(f"{whole.name}.partial").replace(whole)
        if done["broken"]:
            why = "their rows are NaN, problems.txt says why"
            console.print(f"{self.tower}: {done['broken']} of {total} examples cannot be read: {why}")
        console.print(f"wrote {total} embeddings of {width} numbers to {whole}")


class _LineWriter:
    """A file of lines, of which those that are there are not written again; it is made with its first line."""

    def __init__(self, path: Path) -> None:
        self._path = path
        data = read_whole(path) if path.exists() else b""
        self._count = data.count(b"\n")
        if data and not data.endswith(b"\n"):  # half a line: a process was killed
            path.write_bytes(data[: data.rfind(b"\n") + 1])

    def require(self, lines: int) -> None:
        """Raises ConfigError where fewer lines are left than have been written: those that follow would stand in their places."""
        if self._count < lines:
            raise ConfigError(
                f"embed: {self._path} is damaged: it has {self._count:,} lines, where {lines:,} were written; give another "
                "--out, or empty this folder"
            )

    def write(self, first: int, lines: Any) -> None:
        """Appends lines, the first of which is line `first`."""
        new = list(lines)[max(0, self._count - first) :]
        if new:
            with self._path.open("a", encoding="utf-8", newline="\n") as file:
                file.writelines(f"{line}\n" for line in new)
            self._count += len(new)


def _one_line(text: str) -> str:
    """A text without line breaks, in letters that UTF-8 has."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\n", "\\n").replace("\r", "\\r")
