"""Times the loading of training pictures beside open_clip, webdataset and torchvision: processes that take turns on one machine.

    python tools/bench_loader.py                                     jclip alone
    python tools/bench_loader.py --peer-python ../peer/bin/python    beside the others, installed in another environment
    python tools/bench_loader.py --steady                            jclip's batches over many epochs, and its memory

The pictures are drawn: noise with the spectrum of photographs, 640 x 480, JPEG of quality 75, which makes about 34 KB each; in a
WebDataset shard, with captions, that stands for 64 of them, and for torchvision in a folder. They become 224 x 224 as open_clip's
training makes them: a crop of 0.9 to 1.0 of the area, resized with a cubic filter. jclip gives u8, which the device normalises;
the others normalise to f32.

"A core" is decoding and transforming in one thread, of bytes in memory, by CPU time. "A host" is the loader from the files, with
a worker process a core, by the clock: jclip's with its captions as tokens, webdataset's with open_clip's transform, torchvision's
of an ImageFolder, by torch's resize of u8. What a loader has read ahead while others had their turn is taken before the clock
starts. Ratios are medians of the turns' ratios, which a noisy machine disturbs least.

Measured on two cores of an EPYC that had other work (so the ratios count; Pillow 13.0, numba 0.68, open_clip 3.3.0, torchvision
0.28, webdataset 1.0), pictures a second of a core and times open_clip's, and of the host and times webdataset's:

    jclip exact             338   1.78      244   2.78
    jclip fast              678   3.66      336   3.68
    jclip exact, no numba   231   1.24
    jclip fast, no numba    453   2.44
    open_clip               186   1.00       92   1.00
    torchvision             296   1.61      141   1.56

In three other runs, of a core: exact 1.83, 1.47 and 1.36 (the last two before the loader kept the memory of a picture for the
next, see jclip/data/allocator.py), fast 3.37, 3.60 and 3.43. --steady: 396 batches at the end of an epoch took 3.4 ms in the
median, 65 at 99% and 85 at most, 9,503 others 3.5, 66 and 155; memory 372 MiB after 1,000 batches and 373 after 10,000.
"""

import argparse
import importlib
import io
import itertools
import os
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table
from turns import Worker, median_ratio, serve, take_turns

OURS = ("jclip exact", "jclip fast", "jclip exact, no numba", "jclip fast, no numba")
PROGRAMS = {"core": (*OURS, "open_clip", "torchvision"), "host": (*OURS[:2], "webdataset", "torchvision")}
SIZE, BATCH, AHEAD = 224, 16, 2
"""Pixels, rows of a batch, and batches that a worker process reads ahead."""
READY = 0.005
"""Seconds that no batch takes that was read ahead."""


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=256, help="drawn for the shard (default: 256)")
    parser.add_argument("--turns", type=int, default=10, help="timed turns of each, after one that is not (default: 10)")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="worker processes of a loader (default: all cores)")
    parser.add_argument("--kinds", nargs="+", choices=PROGRAMS, default=list(PROGRAMS), help="which tables (default: both)")
    parser.add_argument("--steady", action="store_true", help="in place of them: batches over many epochs, and memory")
    parser.add_argument("--batches", type=int, default=10_000, help="batches of --steady (default: 10,000)")
    parser.add_argument("--peer-python", metavar="PYTHON", help="a Python with torch, torchvision, open_clip and webdataset")
    parser.add_argument("--peer-import", metavar="MODULE", help="a module the peers import first")
    parser.add_argument("--worker", nargs=3, metavar=("KIND", "PROGRAM", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        kind, program, folder = options.worker
        if options.peer_import:
            importlib.import_module(options.peer_import)
        serve((core_step if kind == "core" else host_step)(program, Path(folder), options.workers))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        os.environ["JCLIP_CACHE"] = str(folder / "cache")
        if options.steady:
            draw(folder, 400, (16, 16), shards=1)
            Console().print(steady(folder, options.batches, options.workers))
            return
        draw(folder, options.pictures)
        for kind in options.kinds:
            Console().print(compare(kind, folder, options))


def compare(kind: str, folder: Path, options: argparse.Namespace) -> Table:
    """A table of the programs of a kind."""
    programs = [name for name in PROGRAMS[kind] if name.startswith("jclip") or options.peer_python]
    first = ["--peer-import", options.peer_import] if options.peer_import else []
    common = [__file__, "--workers", str(options.workers)]
    workers = [
        Worker(sys.executable, *common, "--worker", kind, name, str(folder))
        if name.startswith("jclip")
        else Worker(options.peer_python, *common, *first, "--worker", kind, name, str(folder))
        for name in programs
    ]
    times = take_turns(workers, warmup=1, steps=options.turns, title=kind)
    count = pictures_of(kind, folder, options.workers)
    table = Table(f"a {kind}", "pictures/s", "times open_clip's")
    others = [seconds for name, seconds in zip(programs, times, strict=True) if not name.startswith("jclip")]
    for name, seconds in zip(programs, times, strict=True):
        ratio = f"{median_ratio(others[0], seconds):.2f}" if others else ""
        table.add_row(name, f"{count / statistics.median(seconds):,.0f}", ratio)
    return table


def pictures_of(kind: str, folder: Path, workers: int) -> int:
    """Pictures of one turn."""
    return min(64, len(encoded(folder))) if kind == "core" else 16 * BATCH * max(1, workers)


def draw(folder: Path, count: int, size: tuple[int, int] = (640, 480), shards: int = 64) -> None:
    """Writes 00.tar and links to it and, for torchvision, pictures/0/*.jpg."""
    (folder / "pictures" / "0").mkdir(parents=True)
    with tarfile.open(folder / "00.tar", "w") as tar:
        for i in track(range(count), "drawing", console=Console(stderr=True)):
            data = picture(np.random.default_rng(i), *size)
            (folder / "pictures" / "0" / f"{i:05}.jpg").write_bytes(data)
            for name, content in ((f"{i:05}.jpg", data), (f"{i:05}.txt", b"noise with the spectrum of photographs")):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    for i in range(1, shards):
        os.link(folder / "00.tar", folder / f"{i:02}.tar")


def picture(rng: np.random.Generator, width: int, height: int) -> bytes:
    """A JPEG of noise whose amplitude falls as frequency^-1.6, with three bands that are much alike."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = np.inf
    noise = rng.normal(size=(3, *frequency.shape)) + 1j * rng.normal(size=(3, *frequency.shape))
    bands = np.fft.irfft2(noise * frequency**-1.6, s=(height, width))
    bands[1:] = 0.9 * bands[:1] + 0.3 * bands[1:]
    pixels = np.clip(128 + 50 * bands / bands.std(axis=(1, 2), keepdims=True), 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels.transpose(1, 2, 0)).save(file, "JPEG", quality=75)
    return file.getvalue()


def encoded(folder: Path) -> list[bytes]:
    """The pictures of the folder."""
    return [path.read_bytes() for path in sorted((folder / "pictures" / "0").iterdir())]


def core_step(program: str, folder: Path, workers: int) -> Callable[[], float]:
    """CPU seconds of decoding and transforming some of the pictures in one thread."""
    transform = jclip_transform(program) if program.startswith("jclip") else peer_transform(program)
    pictures = itertools.cycle(encoded(folder))
    count = pictures_of("core", folder, workers)

    def step() -> float:
        began = time.process_time()
        for data in itertools.islice(pictures, count):
            transform(data)
        return time.process_time() - began

    return step


def jclip_transform(program: str) -> Callable[[bytes], Any]:
    """A picture's bytes to u8[224,224,3]."""
    if program.endswith("no numba"):
        sys.modules["numba"] = None  # type: ignore[assignment]  # so that it cannot be imported
    from jclip.config import Augment, VisionTower
    from jclip.data import train_transform
    from jclip.data.allocator import keep_freed_memory

    keep_freed_memory()  # as the loader does
    decode: Any = program.removeprefix("jclip ").split(",")[0]
    transform = train_transform(VisionTower(image_size=SIZE, patch_size=32), Augment(), decode=decode)
    rng = np.random.default_rng(0)
    return lambda data: transform(data, rng)


def peer_transform(program: str) -> Callable[[bytes], Any]:
    """A picture's bytes to f32[3,224,224], normalised."""
    importlib.import_module("torch").set_num_threads(1)
    transform = (torchvision_transform if program == "torchvision" else open_clip_transform)()
    return lambda data: transform(Image.open(io.BytesIO(data)))


def open_clip_transform() -> Any:
    """The transform of a Pillow image in open_clip's training."""
    return importlib.import_module("open_clip.transform").image_transform(SIZE, is_train=True)


def torchvision_transform() -> Any:
    """The same by torch's resize of u8, which torchvision recommends for speed."""
    torch, v2 = importlib.import_module("torch"), importlib.import_module("torchvision.transforms.v2")
    crop = v2.RandomResizedCrop(SIZE, scale=(0.9, 1.0), interpolation=v2.InterpolationMode.BICUBIC, antialias=True)
    means = ((0.4815, 0.4578, 0.4082), (0.2686, 0.2613, 0.2758))
    return v2.Compose([v2.RGB(), v2.PILToTensor(), crop, v2.ToDtype(torch.float32, scale=True), v2.Normalize(*means)])


def host_step(program: str, folder: Path, workers: int) -> Callable[[], float]:
    """Seconds of some batches of a loader."""
    make = {"webdataset": webdataset_batches, "torchvision": torchvision_batches}.get(program, jclip_batches)
    batches = make(program, folder, workers)
    count = pictures_of("host", folder, workers) // BATCH

    def step() -> float:
        time.sleep(0.5)  # until the processes of those before have read ahead what they do
        for _ in range(100):
            began = time.perf_counter()
            next(batches)
            if time.perf_counter() - began > READY:
                break
        began = time.perf_counter()
        for _ in range(count):
            next(batches)
        return time.perf_counter() - began

    return step


def jclip_batches(program: str, folder: Path, workers: int, size: int = SIZE) -> Iterator[Any]:
    """Batches of the shards, with their captions."""
    from jclip.config import Config, Data, Model, TextTower, VisionTower
    from jclip.data import make_run_loader

    model = Model({"image": VisionTower(size, size // 7), "text": TextTower()})
    decode: Any = program.removeprefix("jclip ")
    data = Data(f"webdataset:{folder}/*.tar", workers=workers, decode=decode)
    return make_run_loader(Config(model, data, batch_size=BATCH))


def webdataset_batches(program: str, folder: Path, workers: int) -> Iterator[Any]:
    """Batches of the shards, as open_clip puts its pipeline together."""
    wds, torch = importlib.import_module("webdataset"), importlib.import_module("torch")
    transform = open_clip_transform()
    stages = [
        wds.ResampledShards(sorted(map(str, folder.glob("*.tar")))),
        wds.tarfile_to_samples(),
        wds.shuffle(100),
        wds.decode("pilrgb"),
        wds.rename(image="jpg"),
        wds.map_dict(image=transform),
        wds.to_tuple("image"),
        wds.batched(BATCH),
    ]
    data = wds.DataPipeline(*stages)
    return iter(torch.utils.data.DataLoader(data, batch_size=None, num_workers=workers, prefetch_factor=AHEAD))


def torchvision_batches(program: str, folder: Path, workers: int) -> Iterator[Any]:
    """Batches of the folder, for ever."""
    torch, datasets = importlib.import_module("torch"), importlib.import_module("torchvision.datasets")
    data = datasets.ImageFolder(str(folder / "pictures"), torchvision_transform())
    sampler = torch.utils.data.RandomSampler(data, replacement=True, num_samples=10**9)
    loader = torch.utils.data.DataLoader(
        data, batch_size=BATCH, sampler=sampler, num_workers=workers, prefetch_factor=AHEAD, drop_last=True
    )
    return iter(loader)


def steady(folder: Path, batches: int, workers: int) -> Table:
    """Times of batches at the ends of epochs and elsewhere, and the memory after a tenth of them and after all."""
    examples = len(encoded(folder))
    loader = jclip_batches("jclip fast", folder, workers, 14)
    within, at_ends, memory = list[float](), list[float](), dict[int, float]()
    began = time.perf_counter()
    for batch in track(range(batches), "batches", console=Console(stderr=True)):
        next(loader)
        now = time.perf_counter()
        first, last = batch * BATCH, (batch + 1) * BATCH
        if batch > 100:
            (at_ends if first // examples < last // examples else within).append(1000 * (now - began))
        if batch + 1 in (batches // 10, batches):
            memory[batch + 1] = sum(map(resident, processes())) / 2**20
        began = now
    table = Table("batches", "median ms", "99%", "longest")
    for name, times in (("at the end of an epoch", at_ends), ("elsewhere", within)):
        cuts = (statistics.median(times), float(np.quantile(times, 0.99)), max(times))
        table.add_row(f"{len(times):,} {name}", *(f"{cut:.2f}" for cut in cuts))
    table.caption = "; ".join(f"{size:,.0f} MiB after {batch:,} batches" for batch, size in memory.items())
    return table


def processes() -> list[Path]:
    """Folders in /proc of this process and its children."""
    children = Path(f"/proc/{os.getpid()}/task").glob("*/children")
    return [Path("/proc/self"), *(Path("/proc") / number for path in children for number in path.read_text().split())]


def resident(process: Path) -> int:
    """Bytes of its own in memory; shared ones are counted once, where batches are handed over."""
    status = (process / "status").read_text()
    return 1024 * int(status.split("RssAnon:")[1].split()[0])


if __name__ == "__main__":
    main()
