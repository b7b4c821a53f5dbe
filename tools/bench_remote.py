"""Times training data from a disk beside the same data from a server: by ranges, and by copies in a cache, cold and warm.

    python tools/bench_remote.py                          1,000 pictures of 640 x 480, 10 shards, delays of 0, 1, 10 and 50 ms
    python tools/bench_remote.py --pictures 200 --delays 0 50
    python tools/bench_remote.py --delays 10 --stores http s3        also by the requests of S3, which are signed

The server is a process of this machine that answers each request after a delay. Batches of 100 come from `make_loader`: shuffled
over all shards, each picture decoded and cropped to 224 pixels (the column "loader"); and as bytes, not decoded, so that what
the store costs shows (the column "bytes"). The first batch, which opens shards, counts. Each figure is of a
process of its own; "cold" has no copies before, and fetches all shards; "warm" finds them; "blocks" shuffles in blocks of shards
(two lanes, blocks of one) with a cache of 0.6 of the set, cold but for the indexes. The time until the source is open is
"first" where the indexes are built, and "again" where they are found. docs/tutorials/buckets.md has what was measured.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from itertools import islice, product
from pathlib import Path
from typing import Any

import numpy as np
from bench_loader import picture
from rich.console import Console
from rich.table import Column, Table

BATCH, SHARDS = 100, 10
KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
"""Credentials of a bucket that the server pretends to have; it does not look at them."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=1000, help="in all shards together (default: 1,000)")
    parser.add_argument("--delays", type=float, nargs="+", default=[0, 1, 10, 50], help="ms before each answer of the server")
    parser.add_argument("--stores", nargs="+", choices=["http", "s3"], default=["http"], help="how shards are asked for (http)")
    parser.add_argument("--worker", nargs=2, metavar=("SOURCE", "KIND"), help=argparse.SUPPRESS)
    parser.add_argument("--serve", nargs=2, metavar=("FOLDER", "MS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(Path(options.serve[0]), float(options.serve[1]) / 1000)
        return
    if options.worker:
        print(json.dumps(measure(*options.worker)))
        return
    columns = ("source", "first: s", "again: s", "bytes: 1/s", "loader: 1/s", "threads")
    table = Table(*(Column(name, no_wrap=True) for name in columns))
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home, "shards")
        write(folder, options.pictures)
        table.add_row("disk", *row(f"webdataset:{folder}/*.tar", Path(home, "local"), "ranges"))
        for delay, store in product(options.delays, options.stores):
            with served(folder, delay) as url:
                os.environ.update(KEYS | {"AWS_ENDPOINT_URL": url})
                name, shards = f"{store}, {delay:g} ms", f"{{00..{SHARDS - 1:02}}}.tar"
                source = f"webdataset:{url if store == 'http' else 's3://bucket'}/{shards}"
                caches = Path(home, f"caches-{store}-{delay}")
                table.add_row(f"{name}, ranges", *row(source, caches / "ranges", "ranges"))
                table.add_row(f"{name}, copies, cold", *row(source, caches / "whole", "whole", "cold"))
                table.add_row(f"{name}, copies, warm", *row(source, caches / "whole", "whole", "warm"))
                table.add_row(f"{name}, blocks", *row(source, caches / "ranges", "", room=0.6 * size_of(folder)))
    Console().print(table)


def size_of(folder: Path) -> int:
    """Bytes of the files in a folder."""
    return sum(path.stat().st_size for path in folder.iterdir())


def row(source: str, cache: Path, way: str, state: str = "", room: float = 20e9) -> list[str]:
    """The cells of a source's row, which is read with so many bytes of copies; in blocks where no way is forced."""

    def run(kind: str, cache: Path) -> dict[str, float]:
        if state != "warm":
            shutil.rmtree(cache / "files", ignore_errors=True)
        environment = {**os.environ, "JCLIP_CACHE": str(cache), "JCLIP_REMOTE": way, "JCLIP_CACHE_GB": str(room / 1e9)}
        command = [sys.executable, __file__, "--worker", source, kind]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        found: dict[str, float] = json.loads(done.stdout)
        return found

    bytes_, loader = (run(kind, cache / kind if state else cache) for kind in ("bytes", "loader"))
    first = "-" if state == "warm" or not way else f"{bytes_['start']:.2f}"
    again = "-" if state == "cold" else f"{loader['start']:.2f}"
    return [first, again, f"{bytes_['rate']:,.0f}", f"{loader['rate']:,.0f}", f"{loader['threads']:.0f}"]


def write(folder: Path, count: int) -> None:
    """Shards of pictures and captions; bytes behind the end of a JPEG make each another one."""
    rng = np.random.default_rng(0)
    drawn = [picture(rng, 640, 480) for _ in range(min(count, 64))]
    folder.mkdir()
    for shard in range(SHARDS):
        with tarfile.open(folder / f"{shard:02}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            for i in range(shard, count, SHARDS):
                image, text = drawn[i % len(drawn)] + i.to_bytes(4, "little"), f"picture {i} with a caption".encode()
                for kind, data in (("jpg", image), ("txt", text)):
                    member = tarfile.TarInfo(f"{i:06}.{kind}")
                    member.size = len(data)
                    tar.addfile(member, BytesIO(data))


def measure(spec: str, kind: str) -> dict[str, float]:
    """Seconds until a source is open, examples a second of its first epoch, and threads that read."""
    import aiohttp  # noqa: F401  imports are no part of it
    import fsspec  # noqa: F401
    import grain  # noqa: F401

    if spec.startswith("webdataset:s3:"):
        import s3fs  # type: ignore[import-untyped, unused-ignore]  # noqa: F401

    from jclip.config import VisionTower
    from jclip.config.augment import Augment
    from jclip.data import make_loader, open_source, train_transform
    from jclip.data.blocks import Blocks
    from jclip.data.reader import reading_threads

    start = time.perf_counter()
    source = open_source(spec)
    found = {"start": time.perf_counter() - start, "threads": float(reading_threads(source)), "rate": 0.0}
    transform = train_transform(VisionTower(image_size=224), Augment()) if kind == "loader" else length
    batches = len(source) // BATCH
    start = time.perf_counter()
    blocks = None if os.environ["JCLIP_REMOTE"] else Blocks(2, 1)
    with make_loader(source, {"image": transform}, batch_size=BATCH, blocks=blocks) as loader:
        found["threads"] = float(reading_threads(source))  # blocks are read from copies
        problems = [problem for batch in islice(loader, batches) for problem in batch.problems]
    assert not problems, problems[0]
    return {**found, "rate": batches * BATCH / (time.perf_counter() - start)}


def length(value: Any, rng: object = None) -> Any:
    """A transform that does nothing with the bytes."""
    return np.array([len(value)], np.int64)


@contextmanager
def served(folder: Path, delay: float) -> Iterator[str]:
    """The url of a server of a folder, in a process of its own."""
    process = subprocess.Popen([sys.executable, __file__, "--serve", str(folder), str(delay)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.kill()
        process.wait()


def serve(folder: Path, seconds: float) -> None:
    """Serves files and ranges of them, each after a delay."""
    files = {path.name: path.read_bytes() for path in folder.iterdir()}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            time.sleep(seconds)
            data = files[self.path.rpartition("/")[2]]
            match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            part = memoryview(data)[int(match[1]) : int(match[2]) + 1] if match else memoryview(data)
            self.send_response(206 if match else 200)
            if match:
                self.send_header("Content-Range", f"bytes {match[1]}-{int(match[1]) + len(part) - 1}/{len(data)}")
            self.send_header("Content-Length", str(len(part)))
            self.send_header("ETag", f'"{self.path}"')
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(part)

        def log_message(self, *args: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        request_queue_size = 128  # of connections that wait to be taken; those beyond Python's 5 would try again after a second

    server = Server(("127.0.0.1", 0), Handler)
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
