"""Times the kinds of sources beside each other: the same pictures in a folder, tar shards, tables, records, read at random.

    python tools/bench_sources.py                 2,000 pictures of 640 x 480, some 34 KB each
    python tools/bench_sources.py --pictures 200  fewer
    python tools/bench_sources.py --many 10000    so many tars of 20 small pictures instead, in a full order and in blocks

Each source is opened in a process of its own, twice: "first" builds its index, "again" finds it. Then image and text of every
example are read in an order at random, without decoding, which is timed by the processor's time of one thread, after one round
that is not. Memory is what the process has grown by, at most. "cache N" keeps so many bytes of decoded row groups in place of
256 MiB: random access to a set that is larger than the cache, where nearly every example decodes its row group. Last all pictures
are decoded, and "arrays" is a digest of them with their captions: it is the same for all.
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
from hashlib import blake2b
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from bench_loader import picture
from rich.console import Console
from rich.table import Column, Table

SOURCES = {
    "folder": ("folder:{}/photos", 0),
    "webdataset": ("webdataset:{}/photos.tar", 0),
    "packed (jclip pack)": ("webdataset:{}/packed/*.tar", 0),
    "packed, --shards arrayrecord": ("arrayrecord:{}/records", 0),
    "tfds, array_record": ("tfds:pictures:train?data_dir={}/tfds", 0),
    "csv, paths": ("csv:{}/photos.csv?images={}/photos", 0),
    "jsonl, paths": ("jsonl:{}/photos.jsonl?images={}/photos", 0),
    "parquet, paths": ("parquet:{}/paths.parquet?images={}/photos", 0),
    "parquet, row groups of 100": ("parquet:{}/groups100.parquet", 0),
    "the same, cache 8 MiB": ("parquet:{}/groups100.parquet", 8 << 20),
    "parquet, row groups of 10, cache 8 MiB": ("parquet:{}/groups10.parquet", 8 << 20),
    "parquet, row groups of 1, cache 8 MiB": ("parquet:{}/groups1.parquet", 8 << 20),
}

EACH = 20
"""Pictures of each of many tars."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=2000, help="in each source (default: 2,000)")
    parser.add_argument("--many", type=int, default=0, help="tars, whose opening is measured instead")
    parser.add_argument("--worker", nargs=2, metavar=("SOURCE", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(measure_many(options.worker[1]) if options.worker[0] == "many" else measure(*options.worker)))
        return
    with tempfile.TemporaryDirectory() as folder:
        Console().print(many(Path(folder), options.many) if options.many else formats(Path(folder), options.pictures))


def formats(folder: Path, pictures: int) -> Table:
    """The table of all formats."""
    names = ("source", "first: s", "again: s", "a core: 1/s", "MiB", "arrays")
    table = Table(*(Column(name, no_wrap=True) for name in names))
    write(folder, pictures)
    for name in SOURCES:
        first, again, rate, memory, digest = work(name, folder, folder / "cache" / name)
        table.add_row(name, f"{first:.3f}", f"{again:.3f}", f"{rate:,.0f}", f"{memory:.0f}", digest)
    return table


def many(folder: Path, shards: int) -> Table:
    """The table of a set of many tars, opened twice, each time in a process of its own."""
    names = ("opened", "start: s", "MiB", "descriptors", "full: 1/s", "in blocks: 1/s", "MiB after both")
    table = Table(*(Column(name, no_wrap=True) for name in names), title=f"{shards:,} tars of {EACH} pictures")
    write_many(folder / "many", shards)
    for time_ in ("first", "again"):
        start, before, files, full, blocks, after = work("many", folder, folder / "cache")
        table.add_row(time_, f"{start:.2f}", f"{before:.0f}", f"{files:.0f}", f"{full:,.0f}", f"{blocks:,.0f}", f"{after:.0f}")
    return table


def work(name: str, folder: Path, cache: Path) -> Any:
    """Measurements of a process of its own."""
    command, variables = [sys.executable, __file__, "--worker", name, str(folder)], {"JCLIP_CACHE": str(cache)}
    done = subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


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
    command = [sys.executable, "-m", "jclip", "pack", f"webdataset:{folder}/photos.tar"]
    for out in (["packed"], ["records", "--shards", "arrayrecord"]):
        subprocess.run([*command, str(folder / out[0]), *out[1:]], check=True, capture_output=True)
    write_records(folder / "tfds", images, texts)


def write_records(folder: Path, images: list[bytes], texts: list[str]) -> None:
    """The data set pictures of TensorFlow Datasets, in the format array_record."""
    import tensorflow_datasets as tfds

    class Pictures(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self) -> Any:
            features = {"image": tfds.features.Image(shape=(None, None, 3)), "text": tfds.features.Text()}
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager: Any) -> Any:
            return {"train": self._generate_examples()}

        def _generate_examples(self) -> Any:
            for i, (image, text) in enumerate(zip(images, texts, strict=True)):
                yield i, {"image": BytesIO(image), "text": text}

    Pictures(data_dir=folder, file_format="array_record").download_and_prepare()


def write_many(folder: Path, shards: int) -> None:
    """Tars of small pictures."""
    folder.mkdir()
    image = picture(np.random.default_rng(0), 64, 64)
    for shard in range(shards):
        with tarfile.open(folder / f"{shard:05}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            for i in range(EACH):
                for kind, data in (("jpg", image), ("txt", f"picture {i} of shard {shard}".encode())):
                    member = tarfile.TarInfo(f"{i:04}.{kind}")
                    member.size = len(data)
                    tar.addfile(member, BytesIO(data))


def measure_many(folder: str) -> tuple[float, ...]:
    """Seconds until many tars are open, MiB that the process has grown by, open files after 20,000 examples at random, examples a
    second of a core in a full order and in blocks, and MiB after both."""
    from jclip.data import open_source
    from jclip.data.blocks import BlockOrder, Blocks

    before, began = most_resident(), time.perf_counter()
    source = open_source(f"webdataset:{folder}/many/*.tar")
    start, opened = time.perf_counter() - began, most_resident() - before
    rates, files, count = [], 0, min(20_000, len(source))
    blocks = BlockOrder(0, source, Blocks(8, 4), 256)
    for order in (np.random.default_rng(0).permutation(len(source)).tolist(), [blocks[i].example for i in range(count)]):
        began = time.process_time()
        for i in order[:count]:
            assert len(source[i]["image"]) > 500
        rates.append(count / (time.process_time() - began))
        files = max(files, len(os.listdir("/proc/self/fd")))
    return start, opened, files, *rates, most_resident() - before


def measure(name: str, folder: str) -> tuple[float, float, float, float, str]:
    """Seconds to open a source first and again, examples a second of a core, MiB that the process has grown by, and the digest of
    the decoded pictures and their captions, in the order of the captions."""
    from jclip.data import open_source, parquet

    pattern, cache = SOURCES[name]
    spec = pattern.replace("{}", folder)
    parquet.CACHE_BYTES = cache or parquet.CACHE_BYTES
    if spec.startswith("tfds:"):
        import tensorflow_datasets  # noqa: F401  its import, seconds, is no part of opening
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
    memory = most_resident() - before
    return times[0], times[1], len(source) / seconds, memory, digest_of(source)


def digest_of(source: Any) -> str:
    """Digest of all decoded pictures and captions, in the order of the captions."""
    from jclip.data.decoding import Decode

    found = blake2b(digest_size=4)
    for _, i in sorted((source[i]["text"], i) for i in range(len(source))):
        pixels = np.asarray(Decode()(source[i]["image"]))
        found.update(f"{source[i]['text']} {pixels.shape}{pixels.dtype}".encode() + pixels.tobytes())
    return found.hexdigest()


def most_resident() -> float:
    """MiB that this process has had in memory at most; getrusage would count the process that started it, too."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


if __name__ == "__main__":
    main()
