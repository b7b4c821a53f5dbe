"""Times the kinds of sources beside each other: the same pictures in a folder, tar shards and tables, read at random.

    python tools/bench_sources.py                 2,000 pictures of 640 x 480, some 34 KB each
    python tools/bench_sources.py --pictures 200  fewer

Each source is opened in a process of its own, twice: "first" builds its index, "again" finds it. Then image and text of every
example are read in an order at random, without decoding, which is timed by the processor's time of one thread, after one round
that is not. Memory is what the process has grown by, at most. "cache N" keeps so many bytes of decoded row groups in place of
256 MiB: random access to a set that is larger than the cache, where nearly every example decodes its row group.
docs/speed.md has what was measured.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
from bench_loader import picture
from rich.console import Console
from rich.table import Column, Table

SOURCES = {
    "folder": ("folder:{}/photos", 0),
    "webdataset": ("webdataset:{}/photos.tar", 0),
    "csv, paths": ("csv:{}/photos.csv?images={}/photos", 0),
    "jsonl, paths": ("jsonl:{}/photos.jsonl?images={}/photos", 0),
    "parquet, paths": ("parquet:{}/paths.parquet?images={}/photos", 0),
    "parquet, row groups of 100": ("parquet:{}/groups100.parquet", 0),
    "the same, cache 8 MiB": ("parquet:{}/groups100.parquet", 8 << 20),
    "parquet, row groups of 10, cache 8 MiB": ("parquet:{}/groups10.parquet", 8 << 20),
    "parquet, row groups of 1, cache 8 MiB": ("parquet:{}/groups1.parquet", 8 << 20),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=2000, help="in each source (default: 2,000)")
    parser.add_argument("--worker", nargs=2, metavar=("SOURCE", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(measure(*options.worker)))
        return
    table = Table(*(Column(name, no_wrap=True) for name in ("source", "first: s", "again: s", "a core: 1/s", "MiB")))
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), options.pictures)
        for name in SOURCES:
            command = [sys.executable, __file__, "--worker", name, folder]
            done = subprocess.run(
                command, env={**os.environ, "JCLIP_CACHE": f"{folder}/cache/{name}"}, capture_output=True, text=True, check=True
            )
            first, again, rate, memory = json.loads(done.stdout)
            table.add_row(name, f"{first:.3f}", f"{again:.3f}", f"{rate:,.0f}", f"{memory:.0f}")
    Console().print(table)


def write(folder: Path, count: int) -> None:
    """The same pictures and captions in every format; bytes behind the end of a JPEG make each another one."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng = np.random.default_rng(0)
    drawn = [picture(rng, 640, 480) for _ in range(min(count, 64))]
    images = [drawn[i % len(drawn)] + i.to_bytes(4, "little") for i in range(count)]
    names = [f"{i:06d}.jpg" for i in range(count)]
    texts = [f"picture {i}, which has a caption of usual length" for i in range(count)]
    photos = folder / "photos"
    photos.mkdir()
    for name, image, text in zip(names, images, texts, strict=True):
        (photos / name).write_bytes(image)
        (photos / name).with_suffix(".txt").write_text(text)
    with tarfile.open(folder / "photos.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        for file in sorted(photos.iterdir()):
            tar.add(file, file.name)
    with open(folder / "photos.csv", "w", newline="") as table:
        csv.writer(table).writerows([("filepath", "title"), *zip(names, texts, strict=True)])
    rows = [{"file_name": name, "text": text} for name, text in zip(names, texts, strict=True)]
    (folder / "photos.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pq.write_table(pa.table({"path": names, "text": texts}), folder / "paths.parquet")
    structs = [{"bytes": image, "path": name} for image, name in zip(images, names, strict=True)]
    for group in (100, 10, 1):
        pq.write_table(pa.table({"image": structs, "text": texts}), folder / f"groups{group}.parquet", row_group_size=group)


def measure(name: str, folder: str) -> tuple[float, float, float, float]:
    """Seconds to open a source first and again, examples a second of a core, and MiB that the process has grown by."""
    from jclip.data import open_source, parquet

    pattern, cache = SOURCES[name]
    spec = pattern.replace("{}", folder)
    parquet.CACHE_BYTES = cache or parquet.CACHE_BYTES
    if spec.startswith("parquet:"):
        import pyarrow.parquet  # noqa: F401  its import, half a second, is no part of opening
    before = most_resident()
    times = []
    for _ in range(2):
        start = time.perf_counter()
        source = open_source(spec)
        times.append(time.perf_counter() - start)
    seconds = 0.0
    for turn in range(2):
        start = time.process_time()
        for i in np.random.default_rng(turn).permutation(len(source)).tolist():
            example = source[i]
            assert len(example["image"]) > 1000
            assert example["text"]
        seconds = time.process_time() - start
    return times[0], times[1], len(source) / seconds, most_resident() - before


def most_resident() -> float:
    """MiB that this process has had in memory at most; getrusage would tell of the process that started it, too."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


if __name__ == "__main__":
    main()
