"""Files with random mistakes: whether reading them ends soon, in a line, in little memory, and changes nothing else.

    python tools/mutate_files.py [--images 5000] [--others 200] [--seed 0]

Images, tars (with pax and GNU headers), torch archives and JSON files (configurations of three libraries, a tokenizer.json, an
index of weights, results) are made and mutated: bytes changed, moved, doubled, cut; values of JSON replaced by odd ones. Each
kind is read in a process of its own. A row a kind: how many were "read" and how many "refused" with a line; how many raised
something "raw" that jclip does not explain, or took more than 5 s ("slow"); the longest, in seconds; the most memory beside what
the process had before, in MB; and what was "changed" in the process. The exit status is 0 where nothing is raw, slow, above
500 MB or changed.
"""

import argparse
import io
import json
import logging
import multiprocessing
import os
import random
import resource
import signal
import sys
import tarfile
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from PIL import Image, ImageFile

from jclip.config import ConfigError, architecture
from jclip.config import TokenizerConfig as TokenizerConfig
from jclip.data import BadExample, SourceError, open_source
from jclip.data.decoding import Decode
from jclip.data.vocabulary import _load, load_vocabulary
from jclip.report.read import checked_results
from jclip.weights import WeightsError, read_weights, tower_shapes, write_weights
from jclip.weights.io.files import open_tensors

SECONDS, MEGABYTES = 5, 500
EXPLAINED = (BadExample, SourceError, ConfigError, WeightsError)
GOLDEN = Path(__file__).parents[1] / "tests" / "weights" / "golden"
ODD: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    1e300,
    float("nan"),
    10**30,
    "",
    "x",
    [],
    {},
    [1],
    {"a": 1},
    [[]],
    1.5,
    [None],
    {"": None},
)

EXIF = b"Exif\0\0MM\0*\0\0\0\x08\0\0"

Case = tuple[Path, bytes, Callable[[Path], object]]
"""A file, what is written to it, and how it is read."""


def mutated(data: bytes, dice: random.Random) -> bytes:
    """The bytes with some changed, moved, doubled or cut."""
    changed = bytearray(data)
    for _ in range(dice.choice((1, 1, 2, 5, 30))):
        at, size = dice.randrange(max(1, len(changed))), dice.randrange(1, 20)
        other = dice.randrange(max(1, len(changed)))
        match dice.randrange(5):
            case 0:
                changed[at : at + 1] = bytes([dice.randrange(256)])
            case 1:
                changed[at : at + size] = dice.randbytes(size)
            case 2:
                changed[at:at] = changed[other : other + size]
            case 3:
                del changed[at : at + size]
            case _:
                changed[at : at + size] = changed[other : other + size]
    return bytes(changed[: dice.randrange(len(changed))] if changed and dice.random() < 0.1 else changed)


def images(folder: Path, count: int, dice: random.Random) -> Iterator[Case]:
    """Pictures of every format that is read."""
    wholes = []
    pixels = np.random.default_rng(0).integers(0, 256, (24, 30, 3), np.uint8)
    for name, options in (
        ("PNG", {}),
        ("JPEG", {"exif": EXIF}),
        ("WEBP", {}),
        ("GIF", {}),
        ("BMP", {}),
        ("TIFF", {}),
    ):
        for mode in ("RGB", "L"):
            out = io.BytesIO()
            Image.fromarray(pixels).convert(mode).save(out, name, **options)
            wholes.append(out.getvalue())
    for _ in range(count):
        yield folder / "image", mutated(dice.choice(wholes), dice), lambda path: Decode()(path.read_bytes())


def tars(folder: Path, count: int, dice: random.Random) -> Iterator[Case]:
    """Shards with long names, pax records (of sizes, times, comments, sparse files) and links."""

    def read(path: Path) -> None:
        source = open_source(f"webdataset:{path}")
        for i in range(len(source)):
            try:
                example = source[i]
                for field in example:
                    example[field]
            except BadExample:
                pass

    wholes = []
    for kind in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT):
        out = io.BytesIO()
        with tarfile.open(
            fileobj=out, mode="w", format=kind, pax_headers={"comment": "global"} if kind == tarfile.PAX_FORMAT else {}
        ) as tar:
            for i in range(6):
                name = f"{'long/' * (30 if i % 2 and kind != tarfile.USTAR_FORMAT else 1)}{i}"
                for suffix, data in (("txt", b"a caption"), ("json", b'{"a": 1}'), ("png", b"no image")):
                    info = tarfile.TarInfo(f"{name}.{suffix}")
                    info.size = len(data)
                    if kind == tarfile.PAX_FORMAT:
                        info.pax_headers = (
                            {"mtime": "1.5", "size": str(len(data)), "GNU.sparse.realsize": "9"} if i == 3 else {"comment": "x"}
                        )
                    tar.addfile(info, io.BytesIO(data))
            link = tarfile.TarInfo("link.txt")
            link.type, link.linkname = tarfile.LNKTYPE, "0.txt"
            tar.addfile(link)
        wholes.append(out.getvalue())
    for i in range(count):
        shard = bytearray(dice.choice(wholes))
        if i % 2:  # in headers, which must have their checksum again to be looked at
            block = dice.randrange(len(shard) // 512) * 512
            shard[block : block + 512] = (mutated(bytes(shard[block : block + 512]), dice) + bytes(512))[:512]
            shard[block + 148 : block + 156] = b" " * 8
            shard[block + 148 : block + 156] = b"%06o\0 " % sum(shard[block : block + 512])
        else:
            shard = bytearray(mutated(bytes(shard), dice))
        yield folder / f"{i}.tar", bytes(shard), read


def archives(folder: Path, count: int, dice: random.Random) -> Iterator[Case]:
    """Torch archives: a state dict and a TorchScript module."""

    def read(path: Path) -> None:
        for array in open_tensors(path).values():
            np.asarray(array).astype(np.float32)

    wholes = []
    for file in ("state_dict", "torchscript"):
        with zipfile.ZipFile(GOLDEN / f"{file}.pt") as whole:
            wholes.append({info.filename: whole.read(info) for info in whole.infolist()})
    for i in range(count):
        contents = dict(dice.choice(wholes))
        pickled = next(name for name in contents if name.endswith("/data.pkl"))
        if i % 4:
            contents[pickled] = mutated(contents[pickled], dice)
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w") as written:
            for name, data in contents.items():
                written.writestr(name, data)
        yield folder / "w.pt", out.getvalue() if i % 4 else mutated(out.getvalue(), dice), read


def json_files(folder: Path, count: int, dice: random.Random) -> Iterator[Case]:
    """Configurations of three libraries with their tokenizers, an index of weights, a tokenizer.json, and results."""
    import tokenizers

    model = architecture("ViT-tiny-test")
    shapes = tower_shapes(model) | {"image_text/logit_scale": ()}
    readers: list[tuple[Path, Callable[[Path], object]]] = []
    for to in ("jclip", "open_clip", "hugging_face"):
        write_weights(folder / to, to, model, {path: np.zeros(shape, np.float32) for path, shape in shapes.items()})
        readers += [(file, lambda path: read_weights(path.parent)) for file in sorted((folder / to).glob("*.json"))]
    weights = folder / "open_clip" / "open_clip_model.safetensors"
    index = folder / "open_clip" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(open_tensors(weights), weights.name)}))
    readers.append((index, open_tensors))
    vocabulary = folder / "tokenizer.json"
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "cat": 1, "?": 2}, unk_token="?"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    words.save(str(vocabulary))
    tokenizer = TokenizerConfig(kind="hugging_face", file=str(vocabulary), clean="none")
    readers.append(
        (
            vocabulary,
            lambda path: _load.__wrapped__(tokenizer.kind, str(path), "", tokenizer.clean).encode("a cat", 8, bare=False),
        )
    )
    results = folder / "results.json"
    subject = {"name": "a", "step": 1, "weights": "b", "towers": {}}
    result = {"protocol": "", "settings": {}, "dtype": "", "data": {}, "counts": {"n": 1}, "metrics": {"top1": 0.5}}
    about = {"versions": {}, "devices": "", "suite": "", "training": [{"step": 1}]}
    results.write_text(json.dumps({"format": "jclip results 1", "model": subject, **about, "results": {"a": result}}))
    readers.append((results, checked_results))
    wholes = [(path, path.read_bytes(), read) for path, read in readers]
    for path, _, read in wholes:
        read(path)  # or what is refused below would say nothing
    for i in range(count):
        path, whole, read = wholes[i % len(wholes)]
        for other, before, _ in wholes:
            other.write_bytes(before)
        depth = dice.randrange(20)
        if depth == 0:
            data = dice.choice((b"[", b'{"a":')) * 100_000
        elif depth < 12:
            content = json.loads(whole)
            data = json.dumps(_put(content, dice.choice(_places(content)), dice.choice(ODD))).encode()
        else:
            data = mutated(whole, dice)
        yield path, data, read


def _read_vocabulary(path: Path) -> None:
    _load.cache_clear()
    load_vocabulary(TokenizerConfig(kind="hugging_face", file=str(path), clean="none")).encode("a cat", 8, bare=False)


def _places(data: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    return [at, *(place for key, value in inner for place in _places(value, (*at, key)))]


def _put(data: Any, at: tuple[Any, ...], value: Any) -> Any:
    if not at:
        return value
    copy = dict(data) if isinstance(data, dict) else list(data)
    copy[at[0]] = _put(copy[at[0]], at[1:], value)
    return copy


KINDS: dict[str, Callable[[Path, int, random.Random], Iterator[Case]]] = {
    "images": images,
    "tars": tars,
    "torch archives": archives,
    "JSON": json_files,
}


def process_state() -> dict[str, Any]:
    """Parts of the process that a file might change."""
    one = np.array([1.5, -2], ml_dtypes.bfloat16)
    return {
        "bfloat16": (one.tobytes(), one.astype(np.float32).tolist(), np.dtype(ml_dtypes.bfloat16).metadata),
        "numpy": sorted(vars(np)),
        "Pillow": (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES),
        "environment": dict(os.environ),
        "path": list(sys.path),
        "folder": Path.cwd(),
        "recursion": sys.getrecursionlimit(),
        "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)],
    }


class Slow(BaseException):
    """The time of a file is over."""


def read_all(kind: str, count: int, seed: int, answer: Any) -> None:
    """Reads the files of a kind, in a process of its own; sends its row."""

    def over(number: int, frame: object) -> None:
        raise Slow

    signal.signal(signal.SIGALRM, over)
    logging.disable()
    warnings.simplefilter("ignore")
    row = dict.fromkeys(("read", "refused", "raw", "slow"), 0)
    longest, before, memory = 0.0, process_state(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tempfile.TemporaryDirectory() as folder:
        os.environ["JCLIP_CACHE"] = before["environment"]["JCLIP_CACHE"] = f"{folder}/cache"
        for path, data, read in KINDS[kind](Path(folder), count, random.Random(seed)):
            path.write_bytes(data)
            began = time.perf_counter()
            signal.alarm(SECONDS)
            try:
                read(path)
                row["read"] += 1
            except EXPLAINED as error:
                row["raw" if "\n" in str(error) else "refused"] += 1
            except Slow:
                row["slow"] += 1
            except Exception as error:
                row["raw"] += 1
                print(f"raw: {kind}: {path.name}: {type(error).__name__}: {str(error)[:200]}", file=sys.stderr)
            finally:
                signal.alarm(0)
            longest = max(longest, time.perf_counter() - began)
    after = process_state()
    changed = [name for name in before if before[name] != after[name]]
    answer.send((row, longest, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) / 1024, changed))


def main() -> int:
    """Prints the table; 1 where something is raw, slow, large or changed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000, help="how many images (default: 5000)")
    parser.add_argument("--others", type=int, default=200, help="how many of each other kind (default: 200)")
    parser.add_argument("--seed", type=int, default=0, help="of the mistakes (default: 0)")
    options = parser.parse_args()
    print(f"{'':16}{'read':>8}{'refused':>8}{'raw':>6}{'slow':>6}{'longest':>9}{'MB':>6}  changed")
    bad = False
    for kind in KINDS:
        here, there = multiprocessing.Pipe()
        count = options.images if kind == "images" else options.others
        process = multiprocessing.get_context("fork").Process(target=read_all, args=(kind, count, options.seed, there))
        process.start()
        there.close()
        try:
            row, longest, memory, changed = here.recv()
        except EOFError:
            process.join()
            print(f"{kind:16} ended by {process.exitcode}")
            bad = True
            continue
        process.join()
        print(
            f"{kind:16}{row['read']:>8}{row['refused']:>8}{row['raw']:>6}{row['slow']:>6}{longest:>9.2f}{memory:>6.0f}  "
            f"{', '.join(changed) or 'nothing'}",
            flush=True,
        )
        bad |= bool(row["raw"] or row["slow"] or memory > MEGABYTES or changed)
    return int(bad)


if __name__ == "__main__":
    sys.exit(main())
